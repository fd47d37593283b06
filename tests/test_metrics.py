"""Metrics against scikit-learn, against numbers computed by hand, and against each other."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from clipadapt import metrics

PERFECT, CONSTANT = np.eye(4)[np.arange(40) % 4], np.full((40, 4), 0.25)
LABELS = np.arange(40) % 4
WRONG = np.eye(4)[(LABELS + 1) % 4]


def draw(seed, images=60, classes=4):
    """Labels and probabilities that lean towards them."""
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(classes, size=images), rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1
    return labels, torch.from_numpy(2 * logits).softmax(1).numpy()


@pytest.mark.parametrize("metric, perfect, constant, wrong", [
    (metrics.expected_calibration_error, 0, 0, 1), (metrics.adaptive_calibration_error, 0, 0, 1), (metrics.brier_score, 0, 0.75, 2),
    (metrics.negative_log_likelihood, 0, np.log(4), -np.log(np.finfo(float).eps)), (metrics.area_under_risk_coverage, 0, 0.75, 1)])
def test_perfect_constant_and_wrong_predictors(metric, perfect, constant, wrong):
    np.testing.assert_allclose([metric(LABELS, probabilities) for probabilities in (PERFECT, CONSTANT, WRONG)], [perfect, constant, wrong], atol=1e-12)


def test_random_predictors():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(4, size=20_000), rng.dirichlet(np.ones(4), size=20_000)
    confidence = probabilities.max(axis=1).mean()
    assert metrics.accuracy(labels, probabilities.argmax(1)) == pytest.approx(0.25, abs=0.01)
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(confidence - 0.25, abs=0.01)
    assert metrics.adaptive_calibration_error(labels, probabilities) == pytest.approx(confidence - 0.25, abs=0.01)
    assert metrics.area_under_risk_coverage(labels, probabilities) == pytest.approx(0.75, abs=0.02)
    assert metrics.detection(rng.normal(size=20_000), rng.normal(size=20_000)) == pytest.approx({"auroc": 0.5, "aupr": 0.5, "fpr95": 0.95}, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scikit_learn_agrees(seed):
    labels, probabilities = draw(seed)
    assert metrics.negative_log_likelihood(labels, probabilities) == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
    assert metrics.brier_score(labels, probabilities) == pytest.approx(sum(brier_score_loss(labels == c, probabilities[:, c]) for c in range(4)))
    inside, outside = np.random.default_rng(seed).normal(1, size=30).round(1), np.random.default_rng(seed + 1).normal(size=20).round(1)
    truth, scores = np.repeat([1, 0], [30, 20]), np.concatenate([inside, outside])
    found = metrics.detection(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores)) and found["aupr"] == pytest.approx(average_precision_score(truth, scores))
    threshold = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert found["fpr95"] == pytest.approx((outside >= threshold).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_the_images_does_not_matter(seed):
    labels, probabilities = draw(seed)
    probabilities = np.eye(4)[probabilities.argmax(1)] * 0.4 + 0.15       # all equally sure: nothing but ties
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in (metrics.adaptive_calibration_error, metrics.area_under_risk_coverage, metrics.brier_score, metrics.expected_calibration_error):
        assert metric(labels, probabilities) == pytest.approx(metric(labels[order], probabilities[order]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 5))
def test_a_temperature_changes_no_answer_and_is_found_again(seed, temperature):
    labels, probabilities = draw(seed, 200)
    scaled = metrics.apply_temperature(probabilities, temperature)
    assert np.array_equal(scaled.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(metrics.apply_temperature(scaled, 1 / temperature), probabilities, atol=1e-6)
    best = metrics.fit_temperature(labels, probabilities)
    losses = [metrics.negative_log_likelihood(labels, metrics.apply_temperature(probabilities, best * factor)) for factor in (1, 0.9, 1.1)]
    assert losses[0] == min(losses)


def test_scores_of_swapped_sets_are_swapped():
    inside, outside = np.random.default_rng(0).normal(1, size=50), np.random.default_rng(1).normal(size=70)
    assert metrics.detection(inside, outside)["auroc"] == pytest.approx(1 - metrics.detection(outside, inside)["auroc"])


def test_energy_remembers_what_softmax_forgets():
    logits = torch.tensor([[3., 1, 0], [13, 11, 10]])
    probabilities = logits.softmax(1)
    assert np.ptp(metrics.max_probability(probabilities)) < 1e-6 and np.ptp(metrics.negative_entropy(probabilities)) < 1e-6
    np.testing.assert_allclose(metrics.negative_energy(logits), torch.logsumexp(logits.double(), 1))
    assert metrics.negative_energy(logits[:, :1], temperature=3) == pytest.approx([3, 13])


def test_an_ensemble_splits_its_uncertainty():
    several = np.stack([draw(seed)[1] for seed in range(5)])
    table = metrics.epistemic_uncertainty(several)
    np.testing.assert_allclose(table["total"], table["aleatoric"] + table["epistemic"])
    assert (table["epistemic"] >= 0).all() and (table["epistemic"] <= np.log(5)).all() and (table["total"] <= np.log(4) + 1e-12).all()
    assert (metrics.epistemic_uncertainty(np.stack([several[0]] * 3))["epistemic"] < 1e-12).all()


@pytest.mark.parametrize("call, message", [
    (lambda: metrics.brier_score([0], [[2.0, -1.0]]), "negative number"), (lambda: metrics.brier_score([4], [[0.5, 0.5]]), "outside 0 .. 1"),
    (lambda: metrics.adaptive_calibration_error([-1], [[1.0]]), "-1"), (lambda: metrics.adaptive_calibration_error([0], [[1.0]], bins=True), "bins"),
    (lambda: metrics.fit_temperature(LABELS, PERFECT), "100% of the answers agree"), (lambda: metrics.fit_temperature(LABELS, WRONG * 0.4 + 0.15), "no best temperature"),
    (lambda: metrics.apply_temperature(PERFECT, -1), "above 0"), (lambda: metrics.apply_temperature(PERFECT, float("nan")), "above 0"),
    (lambda: metrics.detection([], [1]), "inside must be finite"), (lambda: metrics.detection([1], [[1]]), "outside must be finite"),
    (lambda: metrics.detection([1, np.inf], [1]), "inside must be finite"), (lambda: metrics.detection([1], [1], rate=0), "rate"),
    (lambda: metrics.negative_energy([1.0]), "shape"), (lambda: metrics.negative_energy([[1.0]], 0), "above 0"), (lambda: metrics.max_probability([[0.5]]), "sum to one"),
    (lambda: metrics.epistemic_uncertainty(PERFECT), "models, images, classes"), (lambda: metrics.epistemic_uncertainty(3 * PERFECT[None]), "sum to one"),
    (lambda: metrics.risk_coverage([0, 1], [[1.0]]), "2 labels|outside")])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
