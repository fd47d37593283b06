"""The pools, the scores and the promises of benchmarks/regimes.py, on made-up data."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipadapt import FeatureSet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import regime_data  # noqa: E402
import regime_tables  # noqa: E402
import regimes  # noqa: E402


@pytest.fixture(scope="module")
def source():
    """Ten classes with forty images each, ten foreign ones, and ten absent names."""
    images, labels, new, new_labels, text = regime_data.family(
        0, 20, 40, 5, 1.0, 0.3, dim=48, flat=24
    )
    every = [f"class{c}" for c in range(20)]
    labels[labels >= 10] = -1
    pool = FeatureSet(images.numpy(), every[:10], labels.numpy())
    own = new_labels < 10
    new = FeatureSet(new[own].numpy(), every[:10], new_labels[own].numpy())
    clip = regime_data.NamedVectors(every, text, 100.0)
    return regime_data.Source(clip, every[:10], every[10:], pool, pool, new, new)


@pytest.mark.parametrize(
    ("regime", "counts"),
    [
        ("balanced, 10 a class", [10] * 10),
        ("balanced, 30 a class", [30] * 10),
        ("all", [40] * 10),
        ("tail 10:1", [4, 5, 6, 8, 11, 14, 18, 23, 30, 40]),
        ("7 of 10 classes", [0] * 3 + [40] * 7),
        ("4 of 10 classes", [0] * 6 + [40] * 4),
        ("2 of 10 classes", [0] * 8 + [40] * 2),
        ("1 of 10 classes", [0] * 9 + [40]),
        ("twice the names", [40] * 10),
        ("a misleading name", [40] * 10),
    ],
)
def test_a_pool_has_the_classes_that_its_regime_names(source, regime, counts):
    task = regime_data.draw(source, regime, 3)
    assert sorted(np.bincount(task.labels, minlength=10)) == counts
    assert (task.features.labels == -1).all()  # nobody can peek
    assert len(task.images) == len(task.features) == len(task.labels)


def test_foreign_images_are_a_tenth_and_have_no_label(source):
    task = regime_data.draw(source, "a tenth foreign", 0)
    assert (task.labels < 0).mean() == pytest.approx(0.1, abs=0.01)


def test_names_are_doubled_or_one_is_wrong(source):
    twice = regime_data.draw(source, "twice the names", 0).names
    assert twice[:10] == source.names and len(set(twice)) == 20
    wrong = regime_data.draw(source, "a misleading name", 0).names
    changed = [name for name, own in zip(wrong, source.names) if name != own]
    assert len(changed) == 1 and changed[0] in source.absent


def test_pools_differ_by_seed_and_by_nothing_else(source):
    first, same, other = (
        regime_data.draw(source, "Dirichlet", seed) for seed in (0, 0, 1)
    )
    assert (first.features.features == same.features.features).all()
    assert len(first.labels) != len(other.labels)


def test_new_images_count_as_the_pool_has_them():
    pool = np.array([0, 0, 0, 1, -1])
    new_labels, new = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 0, 0])
    found = regimes.accuracies(np.array([0, 0, 1, 1, 2]), pool, new, new_labels)
    assert found["pool"] == 75  # the foreign image is not scored
    assert found["new"] == 100 * (0.75 * 1 + 0.25 * 0.5)
    assert found["balanced"] == pytest.approx(100 * (1 + 0.5 + 0) / 3, abs=1e-3)


def test_made_up_features_look_like_those_of_a_large_clip():
    images, labels, _, _, text = regime_data.family(0, 100, 10, 1, 1.2, 0.5)
    cosines = images @ text.T
    assert 0.2 < cosines[range(len(labels)), labels].mean() < 0.35
    assert 0.1 < cosines.mean() < 0.25
    assert 0.6 < (cosines.argmax(1) == labels).float().mean() < 0.8


def test_a_run_goes_on_where_it_stopped(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(regimes.SOURCES, "small", lambda seed: source)
    options = argparse.Namespace(
        data=["small"],
        regimes=["all", "2 of 10 classes"],
        methods=["ZeroShot"],
        seeds=[0, 1],
        out=tmp_path / "found.jsonl",
    )
    regimes.run(options)
    first = options.out.read_text()
    assert len(first.splitlines()) == 4
    options.methods = ["ZeroShot", "Prototypes", "FPL"]  # FPL trains: not here
    regimes.run(options)
    assert options.out.read_text().startswith(first)
    found = regime_tables.read_results(options.out)
    assert len(found) == 8
    assert (found.loc[found["method"] == "ZeroShot", "gain_pool"] == 0).all()


def made_up_results(gains: dict[str, list[float]]) -> pd.DataFrame:
    """Two seeds of the first regimes, all three answers with the same gains."""
    return pd.DataFrame(
        {
            "data": "x",
            "regime": regime_data.REGIMES[place // 2],
            "method": method,
            "seed": place % 2,
            **{f"gain_{answer}": gain for answer in regime_tables.ANSWERS},
        }
        for method, column in gains.items()
        for place, gain in enumerate(column)
    )


@pytest.mark.parametrize(
    ("ours", "holds"),
    [
        ([4, 6, 0, 0, 1, 1, 2, 2], True),
        ([4, 6, -2, 0, 1, 1, 2, 2], False),  # a mean of -1
        ([20, -8, 0, 0, 1, 1, 2, 2], False),  # a run of -8
        ([4, 6, 0, 0, -0.2, -0.2, 0.9, 0.9], False),  # near the best in two of four
    ],
)
def test_promises_are_kept_or_not(ours, holds):
    results = made_up_results(
        {
            "AnchoredMixture": ours,
            "AnchoredMixture, SMALL": [30] * 8,  # is no other method
            "Other": [5, 5, -9, -9, 2, 2, 3, 3],
        }
    )
    assert regime_tables.promises(results)["holds"].tolist() == [holds] * 3


def test_a_table_has_the_mean_and_the_worst_of_the_seeds():
    results = made_up_results({"A": [1, 3, 0, 0], "B": [-4, 8, 2, 2]})
    assert regime_tables.table(results, "pool").loc["B"].tolist() == [2, 2]
    assert regime_tables.table(results, "pool", "min").loc["B"].tolist() == [-4, 2]
    results.loc[len(results)] = results.loc[0].to_dict() | {
        "method": "C",
        "gain_pool": 9,
    }
    found = regime_tables.table(results, "pool")
    assert found.index.tolist() == ["B", "A", "C"], "C was run in one regime only"
    assert regime_tables.without_loss(results, "pool") == ["B", "A"]
    results.loc[0, "gain_pool"] = -5
    assert regime_tables.without_loss(results, "pool") == ["B"], "A loses a point"
    figure = regime_tables.show_gains(results, "new", "title")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "+2.0" in texts and "-4" in texts


def test_the_best_rival_is_named():
    results = made_up_results(
        {"A": [1, 1], "A, bold": [9, 9], "B": [2, 2], "C": [0, 3]}
    )
    found = regime_tables.cells(results, "A")
    assert found["best"].tolist() == [2] * 3 and found["rival"].tolist() == ["B"] * 3


def test_an_overview_counts_the_folders_that_lose():
    results = made_up_results({"A": [1, 3, 0, 0], "B": [-4, 2, 2, 2]})
    found = regime_tables.overview(results)
    assert found.index.tolist() == ["A", "B"]
    assert found.loc["B"].tolist() == [0.5, -1, -4, 0.5, 1]
