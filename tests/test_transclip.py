"""TransCLIP and StatA: each against its formulas, written down image by image; few
labels, blocks, pools of every odd kind, and what is kept."""

import warnings

import numpy as np
import pytest
import torch

from clipadapt import CLIP, FeatureSet, StatA, TransCLIP
from clipadapt.learning import adapter
from clipadapt.learning.testing import check_adapter
from clipadapt.methods import transclip

NAMES = ["zero", "one", "two", "three", "four"]
both = pytest.mark.parametrize("kind", [TransCLIP, StatA])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def text(clip):
    prompts = [f"a photo of a {name}." for name in NAMES]
    return clip.encode_text(prompts).numpy().astype(np.float64)


def cloud(text, count, seed, classes=5):
    """Unit rows [N, D] around texts, in no order, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    middles = unit(text + 0.5 * unit(rng.standard_normal(text.shape)))
    noise = unit(rng.standard_normal((count, text.shape[1])))
    return unit(middles[labels] + 1.5 * noise).astype(np.float32), labels


# The formulas, image by image and class by class.


def softmax(logits):
    powers = [np.exp(logit - max(logits)) for logit in logits]
    return np.array(powers) / sum(powers)


def one_hot(label, count):
    return np.array([float(c == label) for c in range(count)])


def tied(x, k):
    """w: the cosines of each image with its k nearest others, else 0."""
    w = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        for j in sorted(others, key=lambda j: -(x[i] @ x[j]))[:k]:
            w[i, j] = x[i] @ x[j]
    return w


def assign(x, log_density, log_y, z, w, labels, lam, temper, k, weight, sweeps):
    """The sweeps of a round; log_density: of image i in class c."""
    for _ in range(sweeps):
        after = np.zeros_like(z)
        for i in range(len(x)):
            logits = []
            for c in range(z.shape[1]):
                heard = sum((w[i, j] + w[j, i]) * z[j, c] for j in range(len(x)))
                logit = lam * log_y[i, c] + log_density(x[i], c) / temper
                logits.append(logit + weight * heard / (2 * k))
            known = labels[i] >= 0
            after[i] = one_hot(labels[i], z.shape[1]) if known else softmax(logits)
        z = after
    return z


def guesses(x, t, scale, labels):
    log_y = np.log([softmax(scale * (t @ row)) for row in x])
    z = np.exp(log_y)
    for i in np.flatnonzero(labels >= 0):
        z[i] = one_hot(labels[i], len(t))
    return log_y, z


def naive_transclip(
    x, t, scale, labels, text_weight=None, k=3, neighbour_weight=1.0, temper=50.0,
    rounds=10, sweeps=5, label_weight=1.0,
):  # fmt: skip
    x, known = x.astype(np.float64), labels >= 0
    lam = (0.5 if known.any() else 1.0) if text_weight is None else text_weight
    log_y, z = guesses(x, t, scale, labels)
    w, dim = tied(x, k), x.shape[1]
    mu, sigma = np.zeros(t.shape), np.ones(dim) / dim
    for c in range(len(t)):
        shots = [i for i in range(len(x)) if labels[i] == c]
        best = shots or sorted(range(len(x)), key=lambda i: -z[i, c])[:8]
        mu[c] = unit(sum((1 if shots else z[i, c]) * x[i] for i in best))
    counts = np.ones(len(x)) / max((~known).sum(), 1)
    counts[known] = label_weight / max(known.sum(), 1)

    def log_density(row, c):
        return -0.5 * sum((row - mu[c]) ** 2 / sigma)

    for number in range(rounds + 1):
        given = (lam, temper, k, neighbour_weight, sweeps)
        z = assign(x, log_density, log_y, z, w, labels, *given)
        if number == rounds:
            break
        for c in range(len(t)):
            mu[c] = unit(sum(counts[i] * z[i, c] * x[i] for i in range(len(x))))
        sigma = sum(
            counts[i] * z[i, c] * (x[i] - mu[c]) ** 2
            for i in range(len(x))
            for c in range(len(t))
        ) / sum(counts)

    def answer(row):
        pairs = zip(range(len(t)), lam * scale * (t @ row))
        return softmax([log_density(row, c) / temper + text for c, text in pairs])

    return z, answer


def naive_stata(
    x, t, scale, labels, text_weight=1.0, anchor_weight=1.0, soft_counts=False, k=3,
    neighbour_weight=1.0, temper=50.0, rounds=10, sweeps=5,
):  # fmt: skip
    x, n, classes = x.astype(np.float64), len(x), range(len(t))
    log_y, z = guesses(x, t, scale, labels)
    w = tied(x, k)
    anchor = sum(z[i, c] * (x[i] - t[c]) ** 2 for i in range(n) for c in classes) / n
    mu, sigma = t.copy(), np.array([anchor] * len(t))

    def log_density(row, c):
        distance = sum((row - mu[c]) ** 2 / sigma[c])
        return -0.5 * distance - 0.5 * sum(np.log(sigma[c]))

    for number in range(rounds + 1):
        given = (text_weight, temper, k, neighbour_weight, sweeps)
        z = assign(x, log_density, log_y, z, w, labels, *given)
        if number == rounds:
            break
        for c in classes:
            hard = sum(1 for i in range(n) if z[i].argmax() == c)
            mass = sum(z[i, c] for i in range(n))
            count = mass if soft_counts else hard
            beta = count / (count + anchor_weight)
            mean = unit(sum(z[i, c] * x[i] for i in range(n)))
            mu[c] = unit(beta * mean + (1 - beta) * t[c])
            spread = sum(z[i, c] * (x[i] - mu[c]) ** 2 for i in range(n)) / mass
            sigma[c] = beta * spread + (1 - beta) * (anchor + (t[c] - mu[c]) ** 2)

    def answer(row):
        pairs = zip(classes, text_weight * scale * (t @ row))
        return softmax([log_density(row, c) / temper + text for c, text in pairs])

    return z, answer


NAIVE = {TransCLIP: naive_transclip, StatA: naive_stata}
OPTIONS = [
    (TransCLIP, {}),
    (TransCLIP, {"scale": 100.0, "text_weight": 0.1}),
    (TransCLIP, {"k": 1, "neighbour_weight": 4.0}),
    (TransCLIP, {"temper": 5.0, "rounds": 2, "sweeps": 1}),
    (StatA, {}),
    (StatA, {"scale": 100.0, "text_weight": 0.1}),
    (StatA, {"soft_counts": True, "anchor_weight": 5.0}),
    (StatA, {"temper": 5.0, "rounds": 2, "sweeps": 1, "k": 5}),
]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kind, options", OPTIONS)
def test_a_method_is_what_its_formulas_say(clip, text, kind, options, labelled):
    x, truth = cloud(text, 30, seed=len(options) + 10 * labelled)
    labels = np.full(30, -1)
    if labelled:  # of three classes, two images each
        for c in range(3):
            shown = np.flatnonzero(truth == c)[:2]
            labels[shown] = c
    scale = options.get("scale", clip.logit_scale)
    rest = {name: value for name, value in options.items() if name != "scale"}
    z, answer = NAIVE[kind](x, text, scale, labels, **rest)
    method = kind(clip, NAMES, **options).fit(FeatureSet(x, NAMES), labels)
    found = method._pool_proba(None).numpy()
    assert found.dtype == np.float32 and np.abs(found - z).max() < 1e-4
    assert np.array_equal(method.pseudolabels_, z.argmax(1))
    assert len(method.history_) == options.get("rounds", 10) + 1
    new, _ = cloud(text, 9, seed=99)
    expected = np.array([answer(row.astype(np.float64)) for row in new])
    assert np.abs(method.predict_proba(FeatureSet(new)) - expected).max() < 1e-4


def test_the_weight_of_labels(clip, text):
    x, truth = cloud(text, 30, seed=3)
    labels = np.where(np.arange(30) < 8, truth, -1)
    for weight in (0.1, 10.0):
        given = {"label_weight": weight, "temper": 5.0}
        z, _ = naive_transclip(x, text, clip.logit_scale, labels, **given)
        method = TransCLIP(clip, NAMES, **given).fit(FeatureSet(x), labels)
        assert np.abs(method._pool_proba(None).numpy() - z).max() < 1e-4
    every = TransCLIP(clip, NAMES).fit(FeatureSet(x), truth)
    assert np.array_equal(every.pseudolabels_, truth)


def test_the_transcriptions_do_not_agree_by_doing_nothing(clip, text):
    x, _ = cloud(text, 30, seed=0)
    log_y, _ = guesses(x, text, clip.logit_scale, np.full(30, -1))
    for kind in (TransCLIP, StatA):
        found = kind(clip, NAMES).fit(FeatureSet(x))._pool_proba(None).numpy()
        assert np.abs(found - np.exp(log_y)).max() > 0.1


# Blocks, and what is kept.


@both
def test_the_size_of_a_block_changes_nothing(clip, text, kind, monkeypatch):
    x, _ = cloud(text, 300, seed=1)
    whole = kind(clip, NAMES).fit(FeatureSet(x))
    monkeypatch.setattr(transclip, "BLOCK", 5 * 17)  # 17 images, and 1 for sums
    parts = kind(clip, NAMES).fit(FeatureSet(x))
    together = whole._pool_proba(None), parts._pool_proba(None)
    assert torch.allclose(*together, atol=1e-4)
    answers = whole.predict_proba(FeatureSet(x)), parts.predict_proba(FeatureSet(x))
    assert np.allclose(*answers, atol=1e-4)


def test_ties_are_few():
    points = torch.nn.functional.normalize(torch.randn(500, 8), dim=1)
    ties = transclip.neighbour_ties(points, 3)
    assert ties.nnz <= 2 * 3 * 500 and ties.dtype == np.float32
    assert abs(ties - ties.T).max() == 0 and not ties.diagonal().any()


@both
def test_assignments_of_a_large_pool_are_not_kept(clip, text, kind, monkeypatch):
    images = FeatureSet(cloud(text, 30, seed=1)[0])
    method = kind(clip, NAMES).fit(images)
    kept = method._pool_proba(images)
    kept[:] = 0  # the caller's own
    assert method._pool_proba(images).max() > 0
    monkeypatch.setattr(adapter, "KEPT", 149)
    again = method.fit(images)
    expected = again.predict_proba(images)
    assert np.array_equal(np.asarray(again._pool_proba(images)), expected)


@both
def test_what_is_saved_answers_alike(clip, text, kind, tmp_path):
    images = FeatureSet(cloud(text, 30, seed=1)[0])
    method = kind(clip, NAMES, k=2, scale=50.0).fit(images)
    method.save(tmp_path / "kept")
    loaded = kind.load(tmp_path / "kept", clip)
    assert np.array_equal(loaded.predict_proba(images), method.predict_proba(images))
    assert np.array_equal(loaded.pseudolabels_, method.pseudolabels_)
    assert (loaded.history_, loaded.scale) == (method.history_, 50.0)
    assert not hasattr(loaded, "_assignments")


# Pools of every odd kind.


@both
def test_a_class_that_nobody_shows(clip, text, kind):
    x, truth = cloud(text, 60, seed=4, classes=2)
    method = kind(clip, NAMES, scale=200.0, text_weight=5.0).fit(FeatureSet(x))
    assert method.history_[-1]["empty"] >= 1
    found = method.predict_proba(FeatureSet(x))
    assert np.isfinite(found).all() and (method.pseudolabels_ == truth).mean() > 0.5


def test_a_class_without_an_image_stays_at_its_text():
    generator = torch.Generator().manual_seed(0)
    points, text = torch.nn.functional.normalize(
        torch.randn(23, 6, generator=generator), dim=1
    ).split([20, 3])
    z = torch.tensor([0.5, 0.4, 0.1]).expand(20, 3).contiguous().numpy()
    anchors = transclip.text_gaussians(z, points, text)
    moved = transclip.anchored_gaussians(z, points, anchors)
    assert torch.allclose(moved.means[1:], anchors.means[1:], atol=1e-12)
    assert torch.allclose(moved.variances[1:], anchors.variances)
    assert not torch.allclose(moved.means[0], anchors.means[0], atol=0.1)
    free = transclip.anchored_gaussians(z, points, anchors, 0.0, soft_counts=True)
    mean = torch.nn.functional.normalize(points.double().mean(0), dim=0)
    assert torch.allclose(free.means, mean.expand(3, 6), atol=1e-6)
    first = np.zeros((20, 3), np.float32)
    first[:, 0] = 1
    kept = transclip.shared_gaussians(first, points, anchors.means)
    assert torch.equal(kept.means[1:], anchors.means[1:])


@both
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_few_images_and_equal_images(clip, text, kind, count):
    for x in (
        cloud(text, count, seed=5)[0],
        cloud(text, 1, seed=5)[0].repeat(count, 0),
    ):
        images = FeatureSet(x)
        method = kind(clip, NAMES).fit(images)
        found = method.predict_proba(images)
        assert np.isfinite(found).all() and method._pool_proba(None).isfinite().all()
    expected = (clip.logit_scale * x.astype(np.float64) @ text.T).argmax(1)
    assert np.array_equal(method.pseudolabels_, expected), "nothing tells them apart"
    alike = found - found[:1]
    assert np.abs(alike).max() < 1e-5


@both
def test_one_class(clip, text, kind):
    images = FeatureSet(cloud(text, 7, seed=6)[0])
    method = kind(clip, NAMES[:1]).fit(images)
    assert (method.predict_proba(images) == 1).all()
    assert not method.pseudolabels_.any()


@both
def test_features_that_are_not_numbers_are_refused(clip, text, kind, monkeypatch):
    images = FeatureSet(cloud(text, 7, seed=6)[0])
    broken = torch.full((7, text.shape[1]), torch.nan)
    monkeypatch.setattr(CLIP, "encode_image", lambda self, images: broken)
    with pytest.raises(ValueError, match="features hold NaN"):
        kind(clip, NAMES).fit(images)


@pytest.mark.parametrize("kind, options", [OPTIONS[2], OPTIONS[6]])
def test_every_promise_is_kept_with_options(kind, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_adapter(kind, **options)
