"""The widgets without a browser: sliders and buttons are attributes, and what is shown
is what the plain functions say."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipadapt import ImageSet
from clipadapt.app import widgets
from clipadapt.app.widgets import (
    audit,
    browse_pseudolabels,
    compare_on_image,
    curves,
    describe,
    disagreeing,
    live_curves,
    select,
    suspicion,
    thumbnail,
)
from clipadapt.judge.compare import Run
from clipadapt.judge.plots import label_text
from clipadapt.learning.pseudolabels import above_threshold, purity, top_k

pytest.importorskip("ipywidgets")
NAMES = ["cat", "dog", "<b>owl</b>"]
rng = np.random.default_rng(0)
TABLE = rng.dirichlet(np.full(3, 0.5), 12).astype(np.float32)
LABELS = np.array([0, 1, 2, -1] * 3)


@pytest.fixture
def images():
    return ImageSet(
        list(rng.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)), NAMES, LABELS
    )


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Pictures of few pixels, whose parts are not moved apart, are drawn faster. The
    chapter draws the real ones."""
    draw = widgets._png

    def small(figure, dpi=96, level=6):
        figure.set_layout_engine("none")
        return draw(figure, 30)

    monkeypatch.setattr(widgets, "_png", small)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


@given(seed=st.integers(0, 10**6), k=st.integers(1, 20), threshold=st.floats(0, 1))
@settings(deadline=None)
def test_a_selection_is_both_rules_at_once(seed, k, threshold):
    table = (
        np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 15).astype(np.float32)
    )
    pairs = [
        set(zip(chosen.images.tolist(), chosen.classes.tolist()))
        for chosen in (
            select(table, k, threshold),
            top_k(table, k, "argmax"),
            above_threshold(table, threshold),
        )
    ]
    assert pairs[0] == pairs[1] & pairs[2]


@given(seed=st.integers(0, 10**6), by=st.sampled_from(["margin", "self_confidence"]))
@settings(deadline=None)
def test_suspicion_is_the_one_of_loops(seed, by):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(4, 0.5), 15).astype(np.float32)
    labels = rng.integers(-1, 4, 15)
    found = suspicion(table, labels, by)
    assert sorted(found["image"]) == np.flatnonzero(labels >= 0).tolist()
    assert (np.diff(found[by]) >= 0).all()
    thresholds = [
        np.mean(table[labels == c, c]) if c in labels else 2 for c in range(4)
    ]
    for row in found.itertuples():
        others = [c for c in range(4) if c != row.label]
        assert row.suggestion == max(others, key=lambda c: table[row.image, c])
        assert row.margin == pytest.approx(
            table[row.image, row.label] - table[row.image, row.suggestion], abs=1e-6
        )
        reached = [c for c in range(4) if table[row.image, c] >= thresholds[c] - 1e-6]
        assert row.off_diagonal == (
            bool(reached)
            and max(reached, key=lambda c: table[row.image, c]) != row.label
        )


def test_the_browser_follows_its_sliders(images):
    browser = browse_pseudolabels(images, TABLE, NAMES, LABELS)
    seen = {browser.picture.value}
    for k, threshold, number in [
        (12, 0.0, 1),
        (2, 0.0, 1),
        (2, 0.7, 1),
        (2, 0.7, 2),
        (1, 1.0, 2),
    ]:
        browser.k.value = k
        browser.threshold.value = threshold
        browser.classname.value = number
        expected = select(TABLE, browser.k.value, threshold)
        assert browser.chosen.images.tolist() == expected.images.tolist()
        assert browser.text() == describe(expected, number, NAMES, 12, LABELS)
        assert (
            browser.text().replace("<", "&lt;").replace(">", "&gt;")
            in browser.line.value
        )
        seen.add(browser.picture.value)
    assert len(seen) >= 5, "the picture did not change with the sliders"


def test_purity_counts_labelled_images_only(images):
    chosen = select(TABLE, 12)
    known = LABELS >= 0
    assert purity(chosen, LABELS) == pytest.approx(
        (TABLE.argmax(1) == LABELS)[known].mean()
    )
    assert "purity" not in browse_pseudolabels(images, TABLE, NAMES).text()
    assert (
        "purity"
        not in browse_pseudolabels(images, TABLE, NAMES, np.full(12, -1)).text()
    )


@pytest.mark.parametrize("count,width", [(1, 1), (4, 1), (3, 40)])
def test_one_image_one_class_many_classes(count, width):
    images = [np.full((5, 9), 40 * i, np.uint8) for i in range(count)]
    table = np.random.default_rng(1).dirichlet(np.ones(width), count)
    names = [f"class {i}" for i in range(width)]
    panels = [
        browse_pseudolabels(images, table, names, np.zeros(count, int)),
        audit(images, table, np.zeros(count, int), names),
        compare_on_image({"a": table, 2: table}, images, names),
    ]
    for panel in panels:
        assert (
            pixels(panel.picture.value).shape[0] > 50
            and pixels(panel.static().data)[..., 3].any()
        )
    panels[1].keep.click()
    panels[1].place.value = panels[1].place.max
    assert panels[1].labels.tolist() == [0] * count
    panels[2].place.value = panels[2].place.max
    assert panels[2].image == count - 1


@pytest.mark.parametrize(
    "panel",
    [
        lambda x, p: browse_pseudolabels(x, p, NAMES),
        lambda x, p: audit(x, p, np.zeros(len(x), int), NAMES),
        lambda x, p: compare_on_image({"a": p}, x, NAMES),
    ],
    ids=["browse", "audit", "compare"],
)
@pytest.mark.parametrize(
    "count,table,message",
    [
        (0, TABLE[:0], "no images"),
        (12, TABLE[:5], "shape \\[12, "),
        (12, TABLE[0], "shape \\[12, "),
        (12, 9 * TABLE, "softmax"),
        (12, np.full((12, 3), np.nan), "not finite"),
        (12, np.full((12, 2), 0.5), "3|2"),
        (12, np.zeros((12, 3), int), "sum to one"),
        (12, np.full((12, 3), "a"), "must be numbers"),
        (12, None, "must be numbers"),
    ],
)
def test_bad_input_is_refused(panel, count, table, message):
    with pytest.raises(ValueError, match=message):
        panel(list(np.zeros((count, 4, 4), np.uint8)), table)


def test_an_audit_corrects_and_saves(images, tmp_path):
    review = audit(images, TABLE, LABELS)
    first, second = review.order["image"][:2]
    proposed = review.target.value
    assert proposed == review.order["suggestion"][0]
    review.change.click()
    assert (
        review.image == second and review.target.value == review.order["suggestion"][1]
    )
    review.keep.click()
    expected = LABELS.copy()
    expected[first] = proposed
    assert (
        review.labels.tolist() == expected.tolist()
        and review.given.tolist() == LABELS.tolist()
    )
    assert "2 decided, 1 changed" in review.line.value
    review.save(tmp_path / "a.csv")
    review.save(tmp_path / "a.json")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows[0] == {
        "image": first,
        "label": NAMES[LABELS[first]],
        "decision": NAMES[proposed],
        "changed": True,
    }
    assert pd.read_csv(tmp_path / "a.csv").to_dict("records") == rows
    with pytest.raises(ValueError, match="must end in .csv or .json"):
        review.save(tmp_path / "a.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


@pytest.mark.parametrize("label", [-1, 3, 1.0, None])
def test_an_audit_takes_no_decision_that_is_no_class(images, tmp_path, label):
    review = audit(images, TABLE, LABELS)
    with pytest.raises(ValueError, match="label"):
        review.decide(label)
    assert (
        review.labels.tolist() == LABELS.tolist()
        and review.decisions.empty
        and review.place.value == 0
    )


def test_odd_names_are_saved_as_they_are(tmp_path):
    names = ["=1+1", "a\tb, c", 'caf "x"', "-@"]
    review = audit(
        [np.zeros((4, 4), np.uint8)] * 4, np.full((4, 4), 0.25), range(4), names
    )
    for _ in range(4):
        review.keep.click()
    review.save(tmp_path / "a.json")
    kept = [
        row["label"]
        for row in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    ]
    assert sorted(kept) == sorted(review.classnames)
    review.save(tmp_path / "a.csv")
    with open(
        tmp_path / "a.csv", encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        kept = [row["label"] for row in csv.DictReader(file)]
    assert sorted(kept) == sorted(["'=1+1", "a b, c", 'caf "x"', "'-@"])
    review.line.value.encode("utf-8")  # what the browser gets


def test_an_audit_of_nothing_decided_is_saved(images, tmp_path):
    audit(images, TABLE, LABELS).save(tmp_path / "a.csv")
    assert pd.read_csv(tmp_path / "a.csv").columns.tolist() == [
        "image",
        "label",
        "decision",
        "changed",
    ]


def test_an_audit_ends_at_the_last_image_and_takes_pseudolabels(images):
    review = audit(images, TABLE, select(TABLE, 2))
    assert (review.given >= 0).sum() == len(select(TABLE, 2)) == len(review.order)
    for _ in range(8):
        review.keep.click()
    assert review.place.value == len(review.order) - 1 and len(review.decisions) == len(
        review.order
    )
    assert not review.decisions["changed"].any()


def test_a_comparison_filters(images):
    other = TABLE.copy()
    other[[3, 7, 8]] = TABLE[[3, 7, 8]][:, [1, 2, 0]]
    panel = compare_on_image({"a": TABLE, "b": other}, images)
    assert disagreeing(panel.tables).tolist() == [3, 7, 8]
    panel.place.value = 11
    panel.only_disagreeing.value = True
    assert [panel.image, panel.place.max] == [3, 2]
    panel.place.value = 2
    assert panel.image == 8 and "Image 8, labelled cat" in panel.line.value
    panel.only_disagreeing.value = False
    assert [panel.image, panel.place.max] == [0, 11]
    agreeing = compare_on_image({"a": TABLE, "b": TABLE}, images)
    assert (
        agreeing.only_disagreeing.disabled and "disagree on 0 of 12" in agreeing.text()
    )


def test_a_comparison_takes_runs(images):
    runs = [
        Run("a", None, TABLE, 0.0, 0),
        Run("a", None, TABLE, 0.0, 1),
        Run("b", None, TABLE, 0.0, 0),
        Run("c", None, None, 0.0, 0, "broke"),
    ]
    assert list(compare_on_image(runs, images).tables) == [
        "a, seed 0",
        "a, seed 1",
        "b",
    ]
    with pytest.raises(ValueError, match="two methods are called 'a, seed 0'"):
        compare_on_image([runs[0], runs[0]], images)


@pytest.mark.parametrize(
    "methods",
    [
        TABLE,
        "LPCLIP",
        SimpleNamespace(predict_proba=lambda x: TABLE),
        [TABLE, TABLE],
        None,
    ],
)
def test_a_comparison_says_what_it_takes(images, methods):
    with pytest.raises(ValueError, match="give a dict of fitted methods"):
        compare_on_image(methods, images)


def test_curves_are_throttled_and_complete(monkeypatch):
    now = iter(np.arange(0, 1000, 0.1))
    monkeypatch.setattr("clipadapt.app.widgets.time.monotonic", lambda: next(now))
    watch = live_curves(lambda method: {"accuracy": len(method.history_)}, every=1)
    method = SimpleNamespace(history_=[])
    for epoch in range(50):
        method.history_.append(
            {"loss": 1.0 / (epoch + 1), "phase": "a", "nothing": None}
        )
        assert watch.on_step(method, method.history_[-1]) == {"accuracy": epoch + 1}
        method.history_[-1]["accuracy"] = epoch + 1  # what `note` does
    assert 3 <= watch.drawn <= 6 and watch.history == method.history_
    table = curves(watch.history)
    assert table.columns.tolist() == ["loss", "accuracy"] and table[
        "accuracy"
    ].tolist() == list(range(1, 51))
    for seconds in (-1, float("nan"), None):
        with pytest.raises(ValueError, match="at least 0"):
            live_curves(every=seconds)


def test_curves_show_the_last_epochs_after_an_error():
    watch, method = live_curves(every=1e9), SimpleNamespace(history_=[])
    with pytest.raises(RuntimeError, match="out of paper"), watch:
        for epoch in range(3):
            method.history_.append({"loss": float(epoch)})
            watch.on_step(method, method.history_[-1])
        raise RuntimeError("out of paper")
    assert "3 steps" in watch.line.value


def test_a_thumbnail_keeps_proportions():
    small = thumbnail(Image.new("RGB", (100, 50), (200, 10, 10)), 20)
    rows = np.flatnonzero(small[..., 3].any(1))
    assert small.shape == (20, 20, 4) and [rows[0], rows[-1]] == [5, 14]


@pytest.mark.parametrize("most", [12, 18, 24])
def test_long_names_stay_apart(most):
    names = [f"a rather long name of class {number}" for number in range(40)]
    short = [label_text(name, most) for name in names]
    assert (
        len(set(short)) == 40
        and max(map(len, short)) <= most
        and label_text("owl", most) == "owl"
    )


def test_a_slider_does_not_read_photographs_anew(monkeypatch):
    """Forty photographs of 12 million pixels took 24 seconds for each move of a
    slider."""
    photographs = ImageSet(
        [Image.effect_noise((600, 400), 50).convert("RGB") for _ in range(6)],
        ["a", "b"],
    )
    reads, read = [], ImageSet.__getitem__
    monkeypatch.setattr(
        ImageSet,
        "__getitem__",
        lambda self, index: reads.append(index) or read(self, index),
    )
    table = np.tile(np.array([[0.9, 0.1]], np.float32), (6, 1))
    browser = browse_pseudolabels(photographs, table, photographs.classnames)
    assert sorted(reads) == list(range(6)) and browser._reduced[0][0].size == (224, 149)
    browser.threshold.value = 0.5
    browser.k.value = 3
    assert len(reads) == 6
