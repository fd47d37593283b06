"""Label-free scores: by hand, without labels, and on runs that are lame."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from clipadapt import AnchoredMixture, FeatureSet, Prototypes, ZeroShot, digits
from clipadapt.images.sets import ImageSet
from clipadapt.judge.compare import Run, run_all
from clipadapt.judge.selection import (
    POOL_SCORES,
    SCORES,
    agreement,
    half_agreement,
    label_free,
    plot_score,
    pool_scores,
    rank_quality,
    rank_together,
    recommend_without_labels,
)
from clipadapt.methods.prototypes import NearestNeighbours

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import selection as benchmark  # noqa: E402
import selection_tables  # noqa: E402


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


def test_a_constant_score_does_not_rank():
    table = pd.DataFrame({"set": "x", "accuracy": [0.5, 0.6, 0.7], "own": 1.0})
    assert rank_quality(table, ["own"]).loc["own", "spearman"] == 0
    table["own"] = [1, 2, 3]
    assert rank_quality(table, ["own"]).loc["own"].tolist() == [1, 1, 0, 1]


@pytest.fixture(scope="module")
def pool(clip):
    return digits("train").subset(range(150))


def on_pool(name, method, images):
    answered = method.fit_predict_proba(images.unlabelled())
    return Run(name, method, answered, 0.0)


def test_scores_of_a_pool_do_not_read_labels(clip, pool):
    names = pool.classnames
    runs = [
        on_pool("zero-shot", ZeroShot(clip, names), pool),
        on_pool("prototypes", Prototypes(clip, names), pool),
        on_pool("mixture", AnchoredMixture(clip, names), pool),
    ]
    told = pool_scores(runs, pool, refit=True)
    others = ImageSet(pool.images, names, pool.labels[::-1])
    assert told.equals(pool_scores(runs, others, refit=True))
    assert list(told) == ["method", *POOL_SCORES]
    told = told.set_index("method")
    assert told.loc["zero-shot", "names"] == told["names"].max()
    assert told.loc["zero-shot", ["sure_agreement", "half_agreement"]].tolist() == [
        1,
        1,
    ]
    objective = runs[2].method.history_[-1]["objective"]
    assert told["objective"].dropna().to_dict() == {"mixture": objective}
    light = [replace(run, method=clone(run.method)) for run in runs]
    assert pool_scores(light, pool)["objective"].dropna().tolist() == [objective]
    assert pool_scores(runs, pool)["half_agreement"].isna().all()


def test_the_likelihood_prefers_true_classes_to_random_ones(clip, pool):
    method, classes = ZeroShot(clip, pool.classnames), np.eye(10, dtype=np.float32)
    random = np.random.default_rng(0).permutation(pool.labels)
    runs = [
        Run("true", method, classes[pool.labels], 0.0),
        Run("random", method, classes[random], 0.0),
    ]
    told = pool_scores(runs, pool).set_index("method")
    for score in ("likelihood", "names", "neighbour_agreement"):
        assert told.loc["true", score] > told.loc["random", score]
    assert told["coverage"].nunique() == 1, "the shares are the same"


def test_several_seeds_are_averaged_and_failures_left_out(clip, pool):
    run = on_pool("a", ZeroShot(clip, pool.classnames), pool)
    again = Run("a", run.method, np.roll(run.probabilities, 1, axis=1), 0.0, 1)
    failed = Run("b", run.method, None, np.nan, 0, "ValueError: no")
    one, other = (pool_scores([r], pool).loc[0, "names"] for r in (run, again))
    both = pool_scores([run, failed, again], pool)
    assert both["method"].tolist() == ["a"]
    assert both.loc[0, "names"] == pytest.approx((one + other) / 2)


def test_a_pool_of_equal_images_has_no_likelihood(clip, pool):
    features = np.repeat(clip.encode_image(pool.subset([0])).numpy(), 6, axis=0)
    same = FeatureSet(features, pool.classnames)
    told = pool_scores([on_pool("a", ZeroShot(clip, pool.classnames), same)], same)
    assert np.isnan(told.loc[0, "likelihood"])
    assert told.loc[0, "neighbour_agreement"] == 1


def test_other_images_and_a_single_one_are_refused(clip, pool):
    run = on_pool("a", ZeroShot(clip, pool.classnames), pool)
    with pytest.raises(ValueError, match="150 images and 10 classes"):
        pool_scores([run], pool.subset(range(9)))
    with pytest.raises(ValueError, match="two images at least, not 1"):
        half_agreement(run.method, pool.subset([0]))


def test_halves_leave_the_method_as_it_is(clip, pool):
    method = NearestNeighbours(clip, pool.classnames)
    first = half_agreement(method, pool)
    assert 0 < first < 1 and first == half_agreement(method, pool)
    assert not hasattr(method, "classnames_")


def test_the_benchmark_writes_each_pool_once_and_its_table_is_by_hand(
    tmp_path, monkeypatch
):
    out = tmp_path / "lines.jsonl"
    command = (
        f"selection.py --regimes all --methods ZeroShot AnchoredMixture --out {out}"
    )
    monkeypatch.setattr(sys, "argv", command.split())
    for _ in range(2):
        quick = benchmark.QUICK
        benchmark.run(benchmark.parsed(benchmark.__doc__, quick, quick, "unused"))
    table = selection_tables.read_pools(out)
    assert table["method"].tolist() == ["ZeroShot", "AnchoredMixture"]
    quality = selection_tables.quality(table)
    assert quality["regret"].min() == 0
    lost = 100 * (table["accuracy"].max() - table.loc[0, "accuracy"])
    assert quality.loc["always zero-shot", "regret"] == pytest.approx(lost)
    kinds = selection_tables.by_data(table, "regret")
    assert (kinds["mean"] == kinds["handwriting"]).all()


def test_a_mixture_is_recommended_whatever_the_scores_say(clip, pool):
    runs = [
        on_pool("prototypes", Prototypes(clip, pool.classnames), pool),
        on_pool("mixture", AnchoredMixture(clip, pool.classnames), pool),
    ]
    said = recommend_without_labels(runs, pool)
    assert said.startswith("Without labels, take mixture: on average over our folders")
    assert "no photographs" in said
    said = recommend_without_labels(
        runs[:1] * 2 + [made_up("c", [0] * 150, classes=10)]
    )
    assert (
        said.startswith("Without labels, take prototypes") and "Run one, too." in said
    )
    scores = label_free(runs, pool)
    assert recommend_without_labels(runs, scores=scores) == recommend_without_labels(
        runs, pool
    ), "what is known is not computed again"
    frozen = Run("mixture", runs[1].method, np.eye(10)[[3] * 150], 0.0)
    assert "take prototypes" in recommend_without_labels([runs[0], frozen], pool)


def test_ranks_are_added_by_hand():
    table = pd.DataFrame({"a": [1.0, 2, 3, np.nan], "b": [2.0, 1, 4, 3]})
    together = rank_together(table, ["a", "b"])
    assert together.tolist() == pytest.approx([5 / 12, 11 / 24, 1, 3 / 4])
    with pytest.raises(ValueError, match="lacks the columns c"):
        rank_together(table, ["a", "c"])
