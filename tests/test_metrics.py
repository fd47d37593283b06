"""Metrics against scikit-learn, against numbers computed by hand, and against each
other."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import escapes
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
)

from clipadapt.judge import plots
from clipadapt.learning import metrics

PERFECT, CONSTANT = np.eye(4)[np.arange(40) % 4], np.full((40, 4), 0.25)
LABELS = np.arange(40) % 4
WRONG = np.eye(4)[(LABELS + 1) % 4]


def draw(seed, images=60, classes=4):
    """Labels and probabilities that lean towards them."""
    rng = np.random.default_rng(seed)
    labels, logits = (
        rng.integers(classes, size=images),
        rng.normal(size=(images, classes)),
    )
    logits[np.arange(images), labels] += 1
    return labels, torch.from_numpy(2 * logits).softmax(1).numpy()


@pytest.mark.parametrize(
    "metric, perfect, constant, wrong",
    [
        (metrics.expected_calibration_error, 0, 0, 1),
        (metrics.adaptive_calibration_error, 0, 0, 1),
        (metrics.brier_score, 0, 0.75, 2),
        (metrics.negative_log_likelihood, 0, np.log(4), -np.log(np.finfo(float).eps)),
        (metrics.area_under_risk_coverage, 0, 0.75, 1),
    ],
)
def test_perfect_constant_and_wrong_predictors(metric, perfect, constant, wrong):
    np.testing.assert_allclose(
        [metric(LABELS, probabilities) for probabilities in (PERFECT, CONSTANT, WRONG)],
        [perfect, constant, wrong],
        atol=1e-12,
    )


def test_random_predictors():
    rng = np.random.default_rng(0)
    labels, probabilities = (
        rng.integers(4, size=20_000),
        rng.dirichlet(np.ones(4), size=20_000),
    )
    confidence = probabilities.max(axis=1).mean()
    assert metrics.accuracy(labels, probabilities.argmax(1)) == pytest.approx(
        0.25, abs=0.01
    )
    assert metrics.expected_calibration_error(labels, probabilities) == pytest.approx(
        confidence - 0.25, abs=0.01
    )
    assert metrics.adaptive_calibration_error(labels, probabilities) == pytest.approx(
        confidence - 0.25, abs=0.01
    )
    assert metrics.area_under_risk_coverage(labels, probabilities) == pytest.approx(
        0.75, abs=0.02
    )
    assert metrics.detection(
        rng.normal(size=20_000), rng.normal(size=20_000)
    ) == pytest.approx({"auroc": 0.5, "aupr": 0.5, "fpr95": 0.95}, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scikit_learn_agrees(seed):
    labels, probabilities = draw(seed)
    assert metrics.negative_log_likelihood(labels, probabilities) == pytest.approx(
        log_loss(labels, probabilities, labels=range(4))
    )
    assert metrics.brier_score(labels, probabilities) == pytest.approx(
        sum(brier_score_loss(labels == c, probabilities[:, c]) for c in range(4))
    )
    inside, outside = (
        np.random.default_rng(seed).normal(1, size=30).round(1),
        np.random.default_rng(seed + 1).normal(size=20).round(1),
    )
    truth, scores = np.repeat([1, 0], [30, 20]), np.concatenate([inside, outside])
    found = metrics.detection(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores)) and found[
        "aupr"
    ] == pytest.approx(average_precision_score(truth, scores))
    threshold = max(t for t in inside if (inside >= t).mean() >= 0.95)
    assert found["fpr95"] == pytest.approx((outside >= threshold).mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_the_images_does_not_matter(seed):
    labels, distinct = draw(seed)
    tied = (
        np.eye(4)[distinct.argmax(1)] * 0.4 + 0.15
    )  # all equally sure: nothing but ties
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in (
        metrics.adaptive_calibration_error,
        metrics.area_under_risk_coverage,
        metrics.brier_score,
        metrics.expected_calibration_error,
        metrics.negative_log_likelihood,
        metrics.fit_temperature,
    ):
        for probabilities in (distinct, tied):
            assert metric(labels, probabilities) == pytest.approx(
                metric(labels[order], probabilities[order]), rel=1e-5
            )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 5))
def test_a_temperature_changes_no_answer_and_is_found_again(seed, temperature):
    labels, probabilities = draw(seed, 200)
    scaled = metrics.apply_temperature(probabilities, temperature)
    assert np.array_equal(scaled.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(
        metrics.apply_temperature(scaled, 1 / temperature), probabilities, atol=1e-6
    )
    best = metrics.fit_temperature(labels, probabilities)
    losses = [
        metrics.negative_log_likelihood(
            labels, metrics.apply_temperature(probabilities, best * factor)
        )
        for factor in (1, 0.9, 1.1)
    ]
    assert losses[0] == min(losses)


@pytest.mark.parametrize(
    "sure, right, classes", [(0.9, 3, 2), (0.6, 3, 2), (0.99, 2, 4), (0.3, 2, 4)]
)
def test_a_temperature_by_hand(sure, right, classes):
    """Of four images with the same probabilities `right` are right: the best
    temperature makes the odds right : wrong."""
    probabilities = np.tile(
        [sure] + [(1 - sure) / (classes - 1)] * (classes - 1), (4, 1)
    )
    labels = [0] * right + [1] * (4 - right)
    odds, wanted = sure / probabilities[0, 1], right / (4 - right) * (classes - 1)
    assert metrics.fit_temperature(labels, probabilities) == pytest.approx(
        np.log(odds) / np.log(wanted), rel=1e-4
    )


scores = st.lists(
    st.integers(-5, 5), min_size=1, max_size=20
)  # small integers: many ties


@settings(max_examples=30, deadline=None)
@given(scores, scores, st.floats(0.01, 1))
def test_detection_of_any_scores(inside, outside, rate):
    found = metrics.detection(inside, outside, rate)
    assert found["auroc"] == pytest.approx(
        1 - metrics.detection(outside, inside)["auroc"]
    )  # swapped
    assert found["auroc"] == pytest.approx(
        np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside])
    )
    threshold = max(t for t in inside if np.mean(np.array(inside) >= t) >= rate - 1e-12)
    assert found["fpr95"] == pytest.approx(np.mean(np.array(outside) >= threshold))
    assert found == pytest.approx(
        metrics.detection(inside[::-1], outside[::-1], rate)
    )  # in another order
    assert found == pytest.approx(
        metrics.detection(np.exp(inside), np.exp(outside), rate)
    )  # only the order of scores counts


@pytest.mark.parametrize(
    "inside, outside, auroc, aupr, fpr95",
    [
        ([2, 3], [0, 1], 1, 1, 0),
        ([0], [1], 0, 0.5, 1),
        ([1, 1], [1, 1, 1], 0.5, 0.4, 1),
        ([3, 2, 1], [2.5, 0], 4 / 6, (1 + 2 / 3 + 3 / 4) / 3, 0.5),
    ],
)
def test_detection_by_hand(inside, outside, auroc, aupr, fpr95):
    assert metrics.detection(inside, outside) == pytest.approx(
        {"auroc": auroc, "aupr": aupr, "fpr95": fpr95}
    )
    assert all(
        type(value) is float for value in metrics.detection(inside, outside).values()
    )


@pytest.mark.parametrize("count", [7, 20, 60, 100])
def test_the_dashed_line_is_the_threshold_of_fpr95(count):
    inside = np.arange(count, dtype=float)
    line = plots.plot_detection(inside, [-1.0]).lines[0].get_xdata()[0]
    assert line == count - np.ceil(0.95 * count - 1e-9)
    assert (
        metrics.detection(inside, [line])["fpr95"] == 1
        and metrics.detection(inside, [line - 0.5])["fpr95"] == 0
    )
    plt.close("all")


@pytest.mark.parametrize(
    "inside, outside",
    [([1, 1], [1]), ([1.0], [1 - 1e-16]), ([1e20], [1e20]), ([True, False], [False])],
)
def test_scores_that_hardly_differ_can_be_drawn(inside, outside):
    axes = plots.plot_detection(inside, outside)
    assert sum(patch.get_height() for patch in axes.patches) == pytest.approx(200)
    plt.close("all")


def test_risk_and_coverage_by_hand():
    sure = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    table = metrics.risk_coverage([0, 1, 0, 1], sure)
    np.testing.assert_allclose(table["coverage"], [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(table["risk"], [0, 1 / 2, 1 / 3, 1 / 2])
    assert metrics.area_under_risk_coverage([0, 1, 0, 1], sure) == pytest.approx(4 / 12)
    tied = [[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]  # the two share half an error each
    np.testing.assert_allclose(
        metrics.risk_coverage([0, 0, 1], tied)["risk"], [0, 1 / 4, 1 / 3]
    )
    np.testing.assert_allclose(
        metrics.risk_coverage([0, 1, 0], tied)["risk"], [0, 1 / 4, 1 / 3]
    )


@pytest.mark.parametrize(
    "labels, probabilities, title",
    [
        (LABELS, PERFECT, "No answer is wrong"),
        (LABELS, CONSTANT, "No coverage halves the risk of 75 %"),
        (LABELS, WRONG, "No coverage halves the risk of 100 %"),
        (
            [0, 0, 1, 1],
            [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]],
            "Answering the surest 50 % halves the risk of 50 %",
        ),
        (
            [0, 1, 1, 0, 0],
            [[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7]],
            "Answering the surest 20 % halves the risk of 80 %",
        ),
    ],
)
def test_the_title_of_risk_and_coverage_is_true(labels, probabilities, title):
    assert plots.plot_risk_coverage(labels, probabilities).get_title() == title
    plt.close("all")


def test_adaptive_bins_by_hand():
    probabilities = [[0.9, 0.1], [0.1, 0.9], [0.62, 0.38], [0.38, 0.62]]
    for bins, value in (
        (1, 0.01),
        (2, 0.39),
        (4, 0.39),
        (15, 0.39),
    ):  # equal confidences share: 0.9 is right half of the time, 0.62 always
        assert metrics.adaptive_calibration_error(
            [0, 0, 0, 1], probabilities, bins
        ) == pytest.approx(value)
    assert metrics.adaptive_calibration_error(
        [0, 1, 0], [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], 2
    ) == pytest.approx((abs(1.7 - 1) + abs(0.6 - 1)) / 3)


def test_entropies_are_never_negative():
    rows = np.array(
        [[1.0005, 0.0], [0.9995, 0.0], [1.0, 0.0]]
    )  # rounded in half precision
    assert (metrics.negative_entropy(rows) == 0).all() and not np.signbit(
        metrics.negative_entropy(rows)
    ).any()
    assert (metrics.epistemic_uncertainty([rows, rows]).to_numpy() == 0).all()


def test_energy_remembers_what_softmax_forgets():
    logits = torch.tensor([[3.0, 1, 0], [13, 11, 10]])
    probabilities = logits.softmax(1)
    assert (
        np.ptp(metrics.max_probability(probabilities)) < 1e-6
        and np.ptp(metrics.negative_entropy(probabilities)) < 1e-6
    )
    np.testing.assert_allclose(
        metrics.negative_energy(logits), torch.logsumexp(logits.double(), 1)
    )
    assert metrics.negative_energy(logits[:, :1], temperature=3) == pytest.approx(
        [3, 13]
    )


def test_ensembles_of_tensors():
    several = [torch.from_numpy(draw(seed)[1]) for seed in range(3)]
    expected = metrics.epistemic_uncertainty(np.stack(several))
    for other in (
        several,
        [model.requires_grad_() for model in several],
        torch.stack(several),
    ):
        np.testing.assert_array_equal(metrics.epistemic_uncertainty(other), expected)
    assert metrics.epistemic_uncertainty([model.half() for model in several])[
        "total"
    ].to_numpy() == pytest.approx(expected["total"].to_numpy(), abs=0.02)
    by_hand = metrics.epistemic_uncertainty([[[1.0, 0]], [[0.5, 0.5]]]).iloc[0]
    total = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert by_hand.tolist() == pytest.approx(
        [total, np.log(2) / 2, total - np.log(2) / 2]
    )


def test_an_ensemble_splits_its_uncertainty():
    several = np.stack([draw(seed)[1] for seed in range(5)])
    table = metrics.epistemic_uncertainty(several)
    np.testing.assert_allclose(table["total"], table["aleatoric"] + table["epistemic"])
    assert (
        (table["epistemic"] >= 0).all()
        and (table["epistemic"] <= np.log(5)).all()
        and (table["total"] <= np.log(4) + 1e-12).all()
    )
    assert (
        metrics.epistemic_uncertainty(np.stack([several[0]] * 3))["epistemic"] < 1e-12
    ).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.brier_score([0], [[2.0, -1.0]]), "negative number"),
        (lambda: metrics.brier_score([4], [[0.5, 0.5]]), "outside 0 .. 1"),
        (lambda: metrics.adaptive_calibration_error([-1], [[1.0]]), "-1"),
        (lambda: metrics.adaptive_calibration_error([0], [[1.0]], bins=True), "bins"),
        (
            lambda: metrics.fit_temperature(LABELS, PERFECT),
            "100% of the answers agree.*another view",
        ),
        (
            lambda: metrics.fit_temperature(LABELS, WRONG * 0.4 + 0.15),
            "only 0% of the answers agree",
        ),
        (lambda: metrics.fit_temperature(LABELS, CONSTANT), "equally probable"),
        (lambda: metrics.fit_temperature([0, 0], [[1.0], [1.0]]), "equally probable"),
        (lambda: metrics.fit_temperature([-1], [[0.5, 0.5]]), "unlabelled"),
        *(
            (
                lambda value=value: metrics.apply_temperature(PERFECT, value),
                "temperature must be a finite number above 0",
            )
            for value in (-1, 0, np.nan, np.inf, "1", None, True)
        ),
        (lambda: metrics.detection([], [1]), "inside must be numbers of shape"),
        (lambda: metrics.detection([1], [[1]]), "outside must be numbers of shape"),
        (lambda: metrics.detection(["a"], [1]), "inside must be numbers"),
        (lambda: metrics.detection([1j], [1]), "inside must be numbers"),
        (
            lambda: metrics.detection([1, np.inf], [1]),
            "inside must be finite, but 1 of 2 are not, for instance inf",
        ),
        *(
            (lambda rate=rate: metrics.detection([1], [1], rate=rate), "rate must be")
            for rate in (0, 95, np.nan, "0.95")
        ),
        (lambda: plots.plot_detection([1], [np.nan]), "outside must be finite"),
        (lambda: metrics.negative_energy([1.0]), "shape"),
        (lambda: metrics.negative_energy([[1.0]], 0), "above 0"),
        (lambda: metrics.negative_energy([[1.0]], np.inf), "above 0"),
        (lambda: metrics.negative_energy([["a"]]), "logits must be numbers"),
        (lambda: metrics.negative_entropy([[0.5]]), "sum to one"),
        (lambda: metrics.max_probability([[0.5]]), "sum to one"),
        (lambda: metrics.epistemic_uncertainty(PERFECT), "models, images, classes"),
        (lambda: metrics.epistemic_uncertainty([]), "models, images, classes"),
        (
            lambda: metrics.epistemic_uncertainty([PERFECT, PERFECT[:3]]),
            "shapes .*3, 4.*40, 4",
        ),
        (lambda: metrics.epistemic_uncertainty(3 * PERFECT[None]), "sum to one"),
        (lambda: metrics.risk_coverage([0, 1], [[1.0]]), "2 labels|outside"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


THREE = np.random.default_rng(0).dirichlet(np.ones(3), 12).astype(np.float32)
OF_THREE = np.arange(12) % 3


@pytest.mark.parametrize(
    "name",
    [
        "negative_log_likelihood",
        "brier_score",
        "fit_temperature",
        "expected_calibration_error",
        "adaptive_calibration_error",
        "risk_coverage",
        "calibration_bins",
        "accuracy",
        "confusion",
        "per_class_accuracy",
        "mean_class_accuracy",
        "max_probability",
        "negative_entropy",
        "negative_energy",
        "apply_temperature",
        "detection",
        "harmonic_mean",
        "bin_scores",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_nothing_but_value_errors_comes_of_odd_values(name):
    arguments = {
        "accuracy": [OF_THREE, OF_THREE],
        "max_probability": [THREE],
        "negative_entropy": [THREE],
        "negative_energy": [THREE, 1.0],
        "apply_temperature": [THREE, 1.0],
        "detection": [[1.0, 2.0], [0.0], 0.9],
        "harmonic_mean": [0.5, 0.5],
        "bin_scores": [THREE[:, 0], OF_THREE == 0, 5],
        **{
            classes: [OF_THREE, OF_THREE, 3]
            for classes in ("confusion", "per_class_accuracy", "mean_class_accuracy")
        },
    }.get(name, [OF_THREE, THREE])
    assert not escapes(getattr(metrics, name), arguments, range(len(arguments)))
