"""The anchored mixture: its formulas, its limits, and what a folder can do to it."""

import warnings

import numpy as np
import pytest
import torch

from clipadapt import AnchoredMixture, FeatureSet, digits
from clipadapt.clip.templates import average_prompts, encode_prompts
from clipadapt.learning.testing import check_adapter
from clipadapt.methods import mixture as module
from clipadapt.methods.mixture import (
    SMALL,
    Pool,
    Pull,
    _sums,
    coverage,
    fit_mixture,
    text_anchors,
)
from clipadapt.methods.transduction import nearest_rows

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:these images seem to show"),
]


@pytest.fixture(scope="module")
def pool(clip):
    train = digits("train")
    return FeatureSet(clip.encode_image(train), train.classnames, train.labels)


@pytest.fixture(scope="module")
def prompts(clip, pool):
    return average_prompts(encode_prompts(clip, pool.classnames))


def random_unit(rows, width, seed):
    draws = np.random.default_rng(seed).standard_normal((rows, width))
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)


def softmax(logits):
    exponentials = np.exp(np.array(logits) - max(logits))
    return exponentials / exponentials.sum()


def by_hand(x, t, scale, kappa, shrink, r, text_weight, near, w, rounds):
    """The formulas of the chapter, image by image and class by class."""
    count, classes, width = len(x), len(t), x.shape[1]
    y = np.array([softmax([scale * t[c] @ row for c in range(classes)]) for row in x])
    share = [np.mean([y[i, c] for i in range(count)]) for c in range(classes)]
    mean_text = sum(share[c] * t[c] for c in range(classes))
    mean_image = sum(x) / count
    above = below = 0.0
    for c in range(classes):
        own = sum(y[i, c] * x[i] for i in range(count)) / (count * share[c])
        above += share[c] * (own - mean_image) @ (t[c] - mean_text)
        below += share[c] * (t[c] - mean_text) @ (t[c] - mean_text)
    slope = above / below
    anchors = [mean_image + slope * (t[c] - mean_text) for c in range(classes)]
    z = y
    for _ in range(rounds):
        n = [sum(z[i, c] for i in range(count)) for c in range(classes)]
        mu, pi = [], []
        for c in range(classes):
            total = sum(z[i, c] * x[i] for i in range(count)) + kappa * anchors[c]
            mu.append(total / (n[c] + kappa))
            pi.append((n[c] + r * count / classes) / (count * (1 + r)))
        within = np.zeros((width, width))
        for i in range(count):
            for c in range(classes):
                within += z[i, c] * np.outer(x[i] - mu[c], x[i] - mu[c]) / count
        sigma = within + shrink * np.trace(within) / width * np.eye(width)
        inverse, after = np.linalg.inv(sigma), []
        for i in range(count):
            logits = []
            for c in range(classes):
                away = x[i] - mu[c]
                logit = -away @ inverse @ away / 2 + np.log(pi[c])
                logit += text_weight * np.log(y[i, c])
                logits.append(logit + w * sum(z[j, c] for j in near[i]))
            after.append(softmax(logits))
        z = np.array(after)
    return np.array(anchors), np.array(mu), np.array(pi), z


@pytest.mark.parametrize("kappa, shrink, r, w", [(10, 0.5, 0.1, 0.5), (1, 2, 0, 0)])
def test_the_formulas(kappa, shrink, r, w):
    x, t = random_unit(14, 3, 0), random_unit(4, 3, 1)
    cosines = x @ x.T - 9 * np.eye(14)
    near = np.argsort(-cosines, axis=1)[:, :2]
    # prompts that lie where images are, so that the slope is positive
    t = (t + 2 * x[:4]) / np.linalg.norm(t + 2 * x[:4], axis=1, keepdims=True)
    anchors, mu, pi, z = by_hand(x, t, 5.0, kappa, shrink, r, 0.3, near, w, 4)
    features, text = torch.tensor(x).float(), torch.tensor(t).float()
    start = (5 * features @ text.T).softmax(1)
    ours = text_anchors(features, text, start)
    assert ours is not None
    assert np.allclose(ours, anchors, atol=1e-5)
    assert (nearest_rows(features, 2)[1].numpy() == near).all()
    pool = Pool(
        features,
        0.3 * 5 * text,
        ours,
        torch.full((14,), -1),
        torch.ones(14),
        _sums(features, features)[1],
        torch.tensor(near),
    )
    fit = fit_mixture(pool, start, Pull(kappa, shrink, r, w), iterations=4)
    assert np.allclose(fit.classes.means, mu, atol=1e-4)
    assert np.allclose(fit.classes.prior, pi, atol=1e-4)
    assert np.allclose(fit.assignments, z, atol=1e-3)


def test_blocks_change_nothing(clip, pool, monkeypatch):
    whole = AnchoredMixture(clip, pool.classnames).fit(pool)
    monkeypatch.setattr(
        module, "_rows", lambda table: module.row_blocks(len(table), 100)
    )
    parts = AnchoredMixture(clip, pool.classnames).fit(pool)
    assert (
        np.abs(whole.weight_ - parts.weight_).max() < 0.02 * np.abs(whole.weight_).max()
    )
    assert (whole.pseudolabels_ != parts.pseudolabels_).mean() < 0.01


def test_order_of_images_and_classes_does_not_matter(clip, pool):
    there = AnchoredMixture(clip, pool.classnames).fit(pool)
    back = np.arange(len(pool))[::-1].copy()
    images = AnchoredMixture(clip, pool.classnames).fit(pool.subset(back))
    assert (images.pseudolabels_[::-1] != there.pseudolabels_).mean() < 0.01
    names = pool.classnames[::-1]
    classes = AnchoredMixture(clip, names).fit(FeatureSet(pool.features, names))
    assert (9 - classes.pseudolabels_ != there.pseudolabels_).mean() < 0.01


def test_a_folder_twice_says_the_same(pool, prompts):
    """With twice the images and twice the anchors' weight nothing changes."""
    x = torch.from_numpy(np.array(pool.features))
    start = (20 * x @ prompts.T).softmax(1)
    anchors = text_anchors(x, prompts, start)
    fits = []
    for times in (1, 2):
        some, begun = x.repeat(times, 1), start.repeat(times, 1)
        count = len(some)
        once = Pool(
            some,
            6 * prompts,
            anchors,
            torch.full((count,), -1),
            torch.ones(count),
            _sums(some, some)[1],
            torch.empty(count, 0, dtype=torch.int64),
        )
        fits.append(fit_mixture(once, begun, Pull(10.0 * times, 0.5, 0.1, 0), 20))
    assert torch.allclose(fits[0].classes.means, fits[1].classes.means, atol=1e-5)
    assert torch.allclose(fits[0].classes.prior, fits[1].classes.prior, atol=1e-5)


def test_labels_are_kept_and_help(clip, pool):
    known = np.full(len(pool), -1)
    for digit in range(10):
        known[np.flatnonzero(pool.labels == digit)[:4]] = digit
    without = AnchoredMixture(clip, pool.classnames, refine=False).fit(pool)
    taught = AnchoredMixture(clip, pool.classnames, refine=False).fit(pool, known)
    given = known >= 0
    assert (taught.pseudolabels_[given] == known[given]).all()
    right = [(m.pseudolabels_ == pool.labels)[~given].mean() for m in (without, taught)]
    assert right[1] > right[0] + 0.02


@pytest.mark.parametrize(
    "count, names",
    [(1, 10), (2, 10), (3, 10), (30, 1), (12, 2), (5, 10)],
)
def test_small_folders(clip, pool, count, names):
    some = FeatureSet(pool.features[:count], pool.classnames[:names])
    model = AnchoredMixture(clip, pool.classnames[:names]).fit(some)
    assert model.pseudolabels_.shape == (count,)
    answers = model.predict_proba(pool)
    assert np.isfinite(answers).all()
    assert 0 < model.coverage_ <= 1 + 1e-9


def test_equal_images_are_read_by_their_names(clip, pool):
    equal = FeatureSet(np.repeat(pool.features[:1], 40, 0), pool.classnames)
    model = AnchoredMixture(clip, pool.classnames).fit(equal)
    assert model.stage_ == "zero-shot"
    assert (model.pseudolabels_ == model.predict(equal)).all()


def test_nearly_equal_images_do_not_fail(clip, pool):
    draws = np.random.default_rng(0).standard_normal((30, clip.embed_dim))
    rows = pool.features[:1] + 1e-4 * draws
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    for options in ({}, {"shrink": 0.0}):
        model = AnchoredMixture(clip, pool.classnames, **options)
        model.fit(FeatureSet(rows, pool.classnames))
        assert np.isfinite(model.predict_proba(pool)).all()


def test_an_absent_class_stays_at_its_anchor(clip, pool):
    few = pool.subset(np.flatnonzero(pool.labels < 4))
    with pytest.warns(UserWarning, match="of 10 classes"):
        warnings.simplefilter("always")
        model = AnchoredMixture(clip, pool.classnames).fit(few)
    assert model.stage_ == "anchored"
    assert (model.class_shares_[4:].sum()) < 0.3
    assert np.isclose(model.class_shares_.sum(), 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"anchor_weight": -1}, "anchor_weight"),
        ({"text_weight": float("nan")}, "text_weight"),
        ({"shrink": "much"}, "shrink"),
        ({"neighbours": -1}, "neighbours"),
        ({"iterations": 0}, "iterations"),
        ({"label_weight": 0.5}, "label_weight"),
        ({"caution": -2}, "caution"),
        ({"refine": "auto"}, "refine"),
    ],
)
def test_options_out_of_range(clip, pool, options, message):
    with pytest.raises(ValueError, match=message):
        AnchoredMixture(clip, pool.classnames, **options).fit(pool)


def test_what_is_nan_is_refused(clip, pool):
    broken = np.array(pool.features[:20])
    broken[3] = np.nan
    with pytest.raises(ValueError, match="finite|NaN"):
        AnchoredMixture(clip, pool.classnames).fit(FeatureSet(broken, pool.classnames))


def test_saved_and_loaded(clip, pool, tmp_path):
    model = AnchoredMixture(clip, pool.classnames, **SMALL).fit(pool)
    model.save(tmp_path / "saved")
    again = AnchoredMixture.load(tmp_path / "saved", clip)
    assert (again.predict_logits(pool) == model.predict_logits(pool)).all()
    assert again.stage_ == model.stage_ == "refined"


def test_the_second_stage_waits_for_all_classes(clip, pool):
    whole = AnchoredMixture(clip, pool.classnames, **SMALL).fit(pool)
    assert whole.stage_ == "refined"
    shut = AnchoredMixture(clip, pool.classnames, **SMALL, gate=1.0).fit(pool)
    assert shut.stage_ == "anchored"
    assert AnchoredMixture(clip, pool.classnames).fit(pool).stage_ == "anchored"
    forced = AnchoredMixture(clip, pool.classnames, refine=True)
    assert forced.fit(pool.subset(range(60))).stage_ == "refined"


def test_who_belongs_where_is_told_of_the_pool_itself(clip, pool):
    model = AnchoredMixture(clip, pool.classnames).fit(pool)
    own = model._pool_proba(pool).numpy()
    assert (own.argmax(1) == model.pseudolabels_).all()
    assert np.allclose(own.sum(1), 1, atol=1e-5)
    model._pool_proba(pool)[:] = 0  # whoever asks may write into the answer
    assert np.array_equal(model._pool_proba(pool).numpy(), own)


def test_coverage_counts_classes():
    assert coverage(torch.full((5, 8), 1 / 8)) == pytest.approx(1)
    assert coverage(torch.eye(8)[[1, 1, 1]]) == pytest.approx(1 / 8)


def test_contract():
    check_adapter(AnchoredMixture)
