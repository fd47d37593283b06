"""GaussianEM against its formulas, written out once more as loops, and odd pools."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from clipadapt import FeatureSet, GaussianEM, ZeroShot, digits
from clipadapt.clip.featuresets import row_blocks
from clipadapt.clip.templates import average_prompts, encode_prompts
from clipadapt.learning.testing import CHECKS, check_adapter
from clipadapt.methods import discriminant

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = digits("train").classnames


@pytest.fixture(scope="module")
def pool(clip):
    images = digits("train").subset(range(80))
    return FeatureSet(clip.encode_image(images), NAMES, images.labels)


def softmax(row):
    powers = np.exp(row - max(row))
    return powers / sum(powers)


def written_out(x, text, labels, scale, rounds, factor):
    """Means, covariance, precision and mass after some rounds, from the formulas."""
    (count, dim), classes = x.shape, len(text)

    def kept(i, answer):
        return answer if labels[i] < 0 else np.eye(classes)[labels[i]]

    z = [kept(i, softmax([scale * x[i] @ t for t in text])) for i in range(count)]
    for _ in range(rounds):
        mass = [sum(z[i][c] for i in range(count)) for c in range(classes)]
        means = [
            sum(z[i][c] * x[i] for i in range(count)) / mass[c] for c in range(classes)
        ]
        covariance = np.zeros((dim, dim))
        for i in range(count):
            for c in range(classes):
                apart = x[i] - means[c]
                covariance += z[i][c] * np.outer(apart, apart) / count
        ridged = (count - 1) * covariance + np.trace(covariance) * np.eye(dim)
        precision = (dim if factor else count - 1) * np.linalg.inv(ridged)
        z = []
        for i in range(count):
            logs = [-(x[i] - mean) @ precision @ (x[i] - mean) / 2 for mean in means]
            z.append(kept(i, softmax(np.array(logs))))
    return means, precision, np.mean(z, 0)


@pytest.mark.parametrize(
    "params, labelled",
    [
        ({"iterations": 1}, False),
        ({"iterations": 4}, False),
        ({"iterations": 4}, True),
        ({"iterations": 3, "gaussian_weight": 0.2, "scale": 100.0}, False),
        ({"iterations": 3, "ridge_factor": True}, True),
        ({"iterations": 2, "templates": "imagenet7", "gaussian_weight": 10}, False),
    ],
)
def test_it_is_what_the_formulas_say(clip, pool, params, labelled):
    labels = np.where(np.arange(len(pool)) % 7 == 0, pool.labels, -1)
    labels = labels if labelled else np.full(len(pool), -1)
    method = GaussianEM(clip, NAMES, **params).fit(pool, labels)
    prompts = encode_prompts(clip, NAMES, params.get("templates", "single"))
    text = average_prompts(prompts).double().numpy()
    x, scale = pool.features.astype(float), params.get("scale", clip.logit_scale)
    means, precision, shares = written_out(
        x, text, labels, scale, params["iterations"], params.get("ridge_factor")
    )
    weight, expected = params.get("gaussian_weight", 1), []
    for row in x:
        logs = [-(row - mean) @ precision @ (row - mean) / 2 for mean in means]
        expected.append(softmax(scale * text @ row + weight * np.array(logs)))
    np.testing.assert_allclose(method.predict_proba(pool), expected, atol=2e-4)
    np.testing.assert_allclose(method.class_distribution_, shares, atol=1e-4)
    answers = np.where(labels >= 0, labels, np.argmax(expected, 1))
    assert (method.pseudolabels_ == answers).all()
    density = sum(
        multivariate_normal(mean, np.linalg.inv(precision)).pdf(x) / len(means)
        for mean in means
    )
    likelihood = method.history_[-1]["log_likelihood"]
    if not labelled:
        assert np.isclose(likelihood, np.log(density).mean(), atol=1e-3)


def test_the_likelihood_rises_and_the_means_come_to_rest(clip):
    images = digits("train")
    pool = FeatureSet(clip.encode_image(images), NAMES)
    history = GaussianEM(clip, NAMES, iterations=100).fit(pool).history_
    likelihoods = [entry["log_likelihood"] for entry in history]
    assert (np.diff(likelihoods) > -1e-3).all() and likelihoods[-1] > likelihoods[0] + 1
    assert len(history) < 100 and history[-1]["moved"] < 1e-3


def test_blocks_change_nothing(clip, pool, monkeypatch):
    whole = GaussianEM(clip, NAMES, iterations=5).fit(pool)
    monkeypatch.setattr(discriminant, "row_blocks", lambda count: row_blocks(count, 7))
    parts = GaussianEM(clip, NAMES, iterations=5).fit(pool)
    np.testing.assert_allclose(
        parts.predict_proba(pool), whole.predict_proba(pool), atol=1e-4
    )


def test_the_literal_formula_makes_all_classes_one(clip):
    images = digits("train")
    pool = FeatureSet(clip.encode_image(images), NAMES)
    literal = GaussianEM(clip, NAMES, ridge_factor=True).fit(pool)
    zero_shot = ZeroShot(clip, NAMES).fit(pool)
    np.testing.assert_allclose(literal.class_distribution_, 0.1, atol=1e-3)
    assert (literal.predict(pool) == zero_shot.predict(pool)).mean() > 0.99


@pytest.mark.parametrize("params", [{}, {"gaussian_weight": 0.3, "scale": 30.0}])
def test_it_keeps_every_promise(params):
    assert len(check_adapter(GaussianEM, **params)) == len(CHECKS)


def test_odd_pools(clip, pool):
    for count in (1, 2, 5):  # fewer images than classes
        few = GaussianEM(clip, NAMES).fit(pool.subset(range(count)))
        assert np.isfinite(few.predict_proba(pool)).all()
    alike = GaussianEM(clip, NAMES).fit(pool.subset([3] * 9))
    zero_shot = ZeroShot(clip, NAMES).fit(pool)
    assert np.array_equal(alike.predict(pool), zero_shot.predict(pool))
    alone = GaussianEM(clip, NAMES[:1]).fit(pool.unlabelled())
    assert (alone.predict(pool) == 0).all()
    labels = np.where(pool.labels < 4, pool.labels, 0)  # nobody is in classes 4 to 9
    told = GaussianEM(clip, NAMES).fit(pool, labels)
    assert np.isfinite(told.predict_proba(pool)).all()
    assert np.allclose(told.class_distribution_[4:], 0)
    assert np.array_equal(told.pseudolabels_, labels)


@pytest.mark.parametrize("apart", [0, 1e-6, 1e-5, 1e-4, 1e-3])
def test_classes_of_nearly_equal_images(apart):
    """What varies within them is partly rounding, on which nothing must be built."""
    draw = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(3, 64, generator=draw), dim=1)
    near = text.repeat_interleave(400, 0)
    noise = apart * torch.randn(near.shape, generator=draw)
    near = torch.nn.functional.normalize(near + noise, dim=1)
    found = discriminant.fit_gaussians(near, text, 1000.0, torch.full((1200,), -1))
    logits = near @ (1000 * text + found.weights).T.float() + found.biases.float()
    assert torch.equal(logits.argmax(1), torch.arange(1200) // 400)
    assert all(np.isfinite(entry["log_likelihood"]) for entry in found.history)
    np.testing.assert_allclose(found.distribution, 1 / 3, atol=1e-6)


def test_a_pool_is_encoded_once_and_keeps_its_labels(clip, pool, monkeypatch):
    labels = np.where(np.arange(len(pool)) % 7 == 0, pool.labels, -1)
    method = GaussianEM(clip, NAMES)
    found = method.fit_predict_proba(pool, labels)
    known, free = labels >= 0, labels < 0
    assert (found[known, labels[known]] == 1).all()
    assert np.array_equal(found[free], method.predict_proba(pool)[free])
    monkeypatch.setattr(discriminant, "KEPT", 799)
    large = method.fit_predict_proba(pool, labels)
    assert np.array_equal(large, method.predict_proba(pool)), "nothing is kept"
    assert np.array_equal(method.pseudolabels_[known], labels[known])


def test_what_it_refuses(clip, pool):
    broken = pool.subset(np.arange(80)[::-1])
    broken.features[5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        GaussianEM(clip, NAMES).fit(broken)
    for params, what in [
        ({"gaussian_weight": -1}, "gaussian_weight"),
        ({"gaussian_weight": np.nan}, "gaussian_weight"),
        ({"iterations": 0}, "iterations"),
        ({"scale": 0}, "scale"),
        ({"scale": -3.0}, "scale"),
    ]:
        with pytest.raises(ValueError, match=what):
            GaussianEM(clip, NAMES, **params).fit(pool)
