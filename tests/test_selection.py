"""Label-free scores: by hand, without labels, and on runs that are lame."""

import numpy as np
import pandas as pd
import pytest

from clipadapt import Prototypes, ZeroShot, digits
from clipadapt.images.sets import ImageSet
from clipadapt.judge.compare import Run, run_all
from clipadapt.judge.selection import (
    SCORES,
    agreement,
    label_free,
    plot_score,
    rank_quality,
    recommend_without_labels,
)


def made_up(name, answers, seed=0, sure=0.8, classes=3):
    answers = np.array(answers)
    return Run(
        name,
        None,
        np.where(np.eye(classes)[answers] > 0, sure, (1 - sure) / (classes - 1)),
        1.0,
        seed,
    )


def test_agreement_is_symmetric_and_counts_pairs():
    runs = [made_up("a", [0, 1, 2, 0], seed) for seed in range(3)] + [
        made_up("b", [0, 1, 1, 1]),
        made_up("c", [2, 2, 2, 2]),
    ]
    table = agreement(runs)
    assert (
        table.equals(table.T)
        and table.loc["a", "a"] == 1
        and np.isnan(table.loc["b", "b"])
    )
    assert (
        table.loc["a", "b"] == 0.5
        and table.loc["a", "c"] == 0.25
        and table.loc["b", "c"] == 0
    )
    np.testing.assert_allclose(
        label_free(runs).set_index("method")["agreement"], [0.375, 0.25, 0.125]
    )


def test_scores_do_not_depend_on_the_order_of_runs_or_images():
    rng = np.random.default_rng(0)
    runs = [
        made_up(name, rng.integers(3, size=30), seed)
        for name in "abc"
        for seed in range(2)
    ]
    scores, order = label_free(runs).set_index("method"), rng.permutation(30)
    shuffled = [
        Run(run.name, None, run.probabilities[order], 1.0, run.seed) for run in runs
    ]
    for others in (shuffled, runs[::-1]):
        pd.testing.assert_frame_equal(
            label_free(others).set_index("method").loc[list("abc")], scores
        )


def test_what_cannot_be_known_is_nan():
    alone = label_free([made_up("a", [0, 1])]).iloc[0]
    assert alone[
        ["agreement", "stability", "calibrated_confidence", "silhouette"]
    ].isna().all() and alone["confidence"] == pytest.approx(0.8)
    twins = label_free([made_up("a", [0, 1]), made_up("b", [0, 1])])
    assert (
        twins["agreement"].tolist() == [1, 1]
        and twins["calibrated_confidence"].isna().all()
    ), "no temperature is best when all agree"
    assert np.isnan(
        label_free([Run("a", None, np.ones((2, 1)), 1.0)]).loc[0, "information"]
    )


def test_failed_runs_are_left_out():
    runs = [made_up("a", [0, 1]), Run("b", None, None, np.nan, 0, "ValueError: no")]
    assert label_free(runs)["method"].tolist() == [
        "a"
    ] and "nothing to choose between" in recommend_without_labels(runs)
    for nothing in ([], runs[1:]):
        with pytest.raises(ValueError, match="runs that succeeded"):
            label_free(nothing)


def test_a_method_that_always_answers_the_same_is_not_recommended():
    stuck = [made_up("a", [1, 1, 1], sure=1.0), made_up("b", [2, 2, 2])]
    assert recommend_without_labels(stuck).startswith(
        "Every method gives all images one and the same answer"
    )
    text = recommend_without_labels([*stuck, made_up("c", [0, 1, 2], sure=0.5)])
    assert (
        text.startswith("Without labels, take c")
        and "Left out, because all their answers are the same: a, b." in text
    )


def test_runs_on_different_images_are_refused():
    with pytest.raises(ValueError, match="the same images"):
        label_free([made_up("a", [0, 1]), made_up("b", [0, 1, 2])])


def test_labels_are_not_read(clip, test_images):
    methods = [
        ZeroShot(clip, test_images.classnames),
        Prototypes(clip, test_images.classnames),
    ]
    runs = run_all(methods, digits("train").subset(range(60)), test_images.unlabelled())
    shuffled = ImageSet(
        test_images.images, test_images.classnames, test_images.labels[::-1]
    )
    assert (
        label_free(runs, test_images).equals(label_free(runs, shuffled))
        and label_free(runs, test_images)["silhouette"].notna().all()
    )
    assert recommend_without_labels(runs, test_images).startswith(
        "Without labels, take "
    )


def test_ranks_by_hand():
    table = pd.DataFrame(
        {
            "method": list("abcabc"),
            "set": list("xxxyyy"),
            "accuracy": [0.5, 0.6, 0.7, 0.9, 0.8, 0.1],
            **dict.fromkeys(SCORES, [1.0, 2, 3, 1, 2, 3]),
        }
    )
    quality = rank_quality(table)
    assert quality.loc["agreement"].tolist() == [0, -1, pytest.approx(40), 2]
    assert (
        plot_score(table, "information").get_title()
        == "Information ranks methods with correlation 0.00, at worst -1.00"
    )
    with pytest.raises(ValueError, match="lacks the columns accuracy"):
        rank_quality(table.drop(columns="accuracy"))
