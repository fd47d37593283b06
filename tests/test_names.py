"""Names that programs which draw, write or show text could take for something else:
each is shown as it is, and bounded."""

import html
import re
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

from clipadapt import ImageSet, Prototypes, ZeroShot
from clipadapt.app import widgets
from clipadapt.judge import compare, plots, report, robustness, selection
from clipadapt.judge.compare import Run
from clipadapt.judge.plots import label_text, label_texts
from clipadapt.learning.pseudolabels import quality, top_k

HORRIBLE = [
    "$x^$",
    "$$",
    "_hidden",
    "$5 to $10",
    "<b>bold</b>",
    "=1+1",
    "x" * 1500,
    "y" * 1500,
    "{}",
    "%s",
    "\\frac",
    r"\$",
    "a & b",
    "\x1b[31m",
    "caf\udce9",
    "שלום",
    "\u202eabc",
    "method",
    "class",
    "{{ 7 * 7 }}",
    "0",
]
METHODS = [name for name in HORRIBLE if name != "caf\udce9"]
UNSEEN = ["\x1b[31m", "caf\udce9", "\u202eabc"]  # refused as names of classes
CLASSES = [name for name in HORRIBLE if name not in UNSEEN]
C, N = len(CLASSES), 3 * len(CLASSES)
LABELS = np.arange(N) % C


def answers(wrong):
    """Probabilities [N, C]: every image right but the first `wrong`, which go to the
    next class."""
    classes = (LABELS + (np.arange(N) < wrong)) % C
    return (0.8 * np.eye(C) + 0.2 / C)[classes].astype(np.float32)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return ImageSet(
        list(rng.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)), CLASSES, LABELS
    )


@pytest.fixture(scope="module")
def runs(clip):
    kinds = [ZeroShot] + [Prototypes] * len(METHODS)
    return [
        Run(name, kind(clip, CLASSES), answers(i + 1), 1.0 + i, 0)
        for i, (name, kind) in enumerate(zip(METHODS, kinds))
    ]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn_texts(figure):
    """Draw a figure, and return its texts as a reader sees them; none of them is a
    formula."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.set_layout_engine("none")
        figure.canvas.draw()
    texts = [
        text for text in figure.findobj(Text) if text.get_text() and text.get_visible()
    ]
    ours = [
        text for text in texts if "mathdefault" not in text.get_text()
    ]  # 10² on logarithmic axes
    assert not any(is_math_text(text.get_text()) is True for text in ours)
    assert max(len(line) for text in ours for line in text.get_text().split("\n")) < 150
    return [text.get_text().replace(r"\$", "$").replace("\u200b", "") for text in ours]


def as_read(name, most=30):
    return label_text(name, most).replace(r"\$", "$").replace("\u200b", "")


LITERAL = [
    "$x^$",
    "$$",
    "_hidden",
    "$5 to $10",
    "<b>bold</b>",
    "=1+1",
    "{}",
    "%s",
    "\\frac",
    r"\$",
]


def test_a_label_is_what_a_formula_is_not():
    """Pixel by pixel what matplotlib draws when it may not parse formulas."""
    pictures = []
    for parse, shown in ((True, label_text), (False, str)):
        figure = plt.figure(figsize=(4, 4), dpi=50)
        for row, name in enumerate(LITERAL):
            figure.text(0.1, row / len(LITERAL), shown(name), parse_math=parse)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba()))
    assert np.array_equal(*pictures)


@given(st.lists(st.text(st.characters(), max_size=60), max_size=20), st.integers(8, 40))
@settings(deadline=None, max_examples=200)
def test_labels_are_distinct_short_and_safe(names, most):
    names = list(dict.fromkeys(map(plots.one_line, names)))
    labels = label_texts(names, most)
    assert len(set(labels)) == len(names)
    for label in labels:
        shown = label.replace(r"\$", "$").removeprefix("\u200b")
        assert len(shown) <= most and "\n" not in label and not label.startswith("_")
        assert is_math_text(label) is False or "$" not in label
        label.encode("utf-8")
        assert shown in names or "…" in shown or re.search(r" \(\d+\)$", shown)


PLOTS = {
    "confusion": lambda runs, test: (
        plots.plot_confusion(LABELS, answers(9).argmax(1), CLASSES).figure
    ),
    "per class": lambda runs, test: (
        plots.plot_per_class(LABELS, answers(9).argmax(1), CLASSES).figure
    ),
    "classes": lambda runs, test: compare.plot_classes(runs, test).figure,
    "latent": lambda runs, test: robustness.plot_latent(
        {"$x^$": np.random.default_rng(0).normal(size=(N, 4))}, LABELS, CLASSES
    ),
}
METHOD_PLOTS = {
    "accuracies": lambda runs, test: compare.plot_accuracies(runs, test).figure,
    "rows": lambda runs, test: compare.plot_classes(runs, test).figure,
    "changes": lambda runs, test: compare.plot_changes(runs, test).figure,
    "cost": lambda runs, test: compare.plot_cost(runs, test).figure,
    "severity": lambda runs, test: robustness.plot_severity(severities(METHODS)).figure,
    "score": lambda runs, test: selection.plot_score(scores(METHODS)).figure,
    "answers": lambda runs, test: widgets.plot_answers(
        test[0], {run.name: run.probabilities[0] for run in runs}, test.classnames
    ),
    "curves": lambda runs, test: widgets.plot_curves(
        [{run.name: 1.0 for run in runs}] * 3
    ),
}


def severities(names):
    rows = [
        (name, kind, kind, severity, "", "accuracy", 0.9 - i / 50 - severity / 10)
        for i, name in enumerate(names)
        for kind, severity in (("test", 0), ("corruption", 1), ("corruption", 2))
    ]
    return pd.DataFrame(rows, columns=robustness.COLUMNS)


def scores(names):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "set": name,
                "accuracy": rng.random(),
                **{score: rng.random() for score in selection.SCORES},
            }
            for name in names
            for _ in range(3)
        ]
    )


@pytest.mark.parametrize("plot", PLOTS)
def test_names_of_classes_are_drawn_as_they_are(runs, images, plot):
    texts = drawn_texts(PLOTS[plot](runs, images))
    missing = [
        name for name in CLASSES if len(name) < 30 and as_read(name) not in texts
    ]
    assert not missing
    assert (
        sum("x…x" in text for text in texts) >= 1
        and sum("y…y" in text for text in texts) >= 1
    )


@pytest.mark.parametrize("plot", METHOD_PLOTS)
def test_names_of_methods_and_sets_are_drawn_as_they_are(runs, images, plot):
    texts = drawn_texts(METHOD_PLOTS[plot](runs, images))
    everything = "\n".join(texts)
    assert not [
        name
        for name in METHODS
        if len(name) < 30
        and as_read(name) not in everything
        and not (name == METHODS[0] and plot == "changes")
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_the_other_plots_draw_any_name(runs, images, name):
    number = CLASSES.index(name)
    shown = as_read(name)
    chosen = top_k(answers(3), 2, "argmax")
    order = widgets.suspicion(answers(3), LABELS)
    order = order[order["label"] == number].reset_index(drop=True)
    for figure in (
        plots.plot_detection([1.0, 2.0], [0.0], name).figure,
        widgets.plot_selection(images, chosen, number, images.classnames, LABELS),
        widgets.plot_suspect(images, answers(3), order, 0, images.classnames),
    ):
        assert any(shown[:8] in text for text in drawn_texts(figure))


def test_the_tables_keep_names_whole(runs, images):
    assert compare.tabulate(runs, images)["method"].tolist() == METHODS
    assert (
        list(quality(top_k(answers(0), 1), LABELS, images.classnames).index)
        == images.classnames
    )
    assert set(robustness.summarise(severities(METHODS))["method"]) == set(METHODS)


def test_a_report_with_any_names(runs, images, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        start = time.process_time()
        page = report.report(
            [runs[0], runs[4], runs[6]], images, images, tmp_path / "report.html"
        ).read_text(encoding="utf-8")
        seconds = time.process_time() - start
    assert seconds < 30, "a name of 1,500 letters took 90 seconds"
    assert (
        "<b>" not in page
        and "&lt;b&gt;bold&lt;/b&gt;" in page
        and "{{ 7 * 7 }}" in page
    )
    drawn = page.split("What to use")[1]
    described = html.unescape(" ".join(re.findall(r'alt="([^"]*)"', drawn)))
    assert "“$x^$” images are called “$$”" in described and r"\$" not in described


def test_a_thousand_classes_are_drawn_in_seconds(clip, tmp_path):
    classes, count = 1000, 2000
    names, labels = [f"class {c}" for c in range(classes)], np.arange(count) % classes
    rng = np.random.default_rng(0)

    def table():
        return np.eye(classes, dtype=np.float32)[
            np.where(rng.random(count) < 0.3, rng.integers(classes, size=count), labels)
        ]

    runs = [
        Run(name, kind(clip, names), table(), 1.0)
        for name, kind in (("a", ZeroShot), ("b", Prototypes))
    ]
    test = ImageSet([np.zeros((8, 8), np.uint8)] * count, names, labels)
    figures = [
        plots.plot_confusion(labels, runs[0].probabilities.argmax(1), names).figure,
        plots.plot_per_class(labels, runs[0].probabilities.argmax(1), names).figure,
        compare.plot_classes(runs, test).figure,
    ]
    assert max(max(figure.get_size_inches()) for figure in figures) < 25
    assert all(
        any("30" in text and "1,000" in text for text in drawn_texts(figure))
        for figure in figures
    ), "how many are shown is said"
    start = time.process_time()
    page = report.report(runs, test, test, tmp_path / "report.html")
    assert time.process_time() - start < 30 and page.stat().st_size < 5e6
