"""Pseudolabels: one table of answers, and four ways to choose from it."""

import math

from tools.drawing import Drawing

# How sure the model is of its answers (0-1), for three classes.
ANSWERS = {
    "zero": (0.95, 0.88, 0.80, 0.66, 0.45),
    "four": (0.98, 0.91, 0.85, 0.74, 0.58, 0.40, 0.30),
    "seven": (0.62, 0.44),
}
KINDS = ("image", "trained", "guess")
WIDE, TOP, BOTTOM = 178, 92, 262


def _height(sure: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * sure


def _panel(drawing: Drawing, number: int, title: str, words: str) -> float:
    left = 14 + 184 * number
    drawing.box(left, 52, WIDE, 252, "", "frozen")
    drawing.text(left + WIDE / 2, 72, title, bold=True, size=15)
    drawing.text(left + WIDE / 2, 334, words, size=14)
    return left


def _answers(drawing: Drawing, left: float, threshold: float = 0, top: int = 9) -> None:
    """A column of dots for each class; those that are not chosen are hollow."""
    for column, (name, sure) in enumerate(ANSWERS.items()):
        x = left + 38 + 52 * column
        drawing.text(x, 287, name, size=14)
        for place, value in enumerate(sure):
            out = value < threshold or place >= top
            point = [(x, _height(value))]
            drawing.dots(point, "frozen" if out else KINDS[column], hollow=out)


def _gaussians(drawing: Drawing, left: float) -> None:
    """Two heaps of losses with a curve over each; the lower one is kept."""
    heaps = ((52, 17, 120, "trained", 6), (122, 24, 70, "frozen", 4))
    for middle, width, height, kind, count in heaps:
        curve = [
            (left + x, 258 - height * math.exp(-0.5 * ((x - middle) / width) ** 2))
            for x in range(6, WIDE - 5, 2)
        ]
        drawing.line(curve, kind, width=2.2)
        places = (2 * (i + 0.5) / count - 1 for i in range(count))
        points = [(left + middle + 1.5 * width * place, 258) for place in places]
        drawing.dots(points, kind, hollow=kind == "frozen")
    drawing.text(left + WIDE / 2, 287, "small loss  …  large loss", size=14)


def draw() -> Drawing:
    """The four ways side by side."""
    drawing = Drawing(
        760,
        372,
        "Four ways to choose pseudolabels",
        "Every dot is an image in the column of the model's answer, the surest on top. "
        "Everybody: all are kept, only two are sevens. A threshold keeps what is above "
        "a line, and no seven. Top-K keeps the best three for each class, so seven "
        "gets a third image. Two Gaussians keep the heap of small losses.",
    )
    drawing.text(
        380,
        27,
        "Every dot is an image; the model is surest of those on top. Filled: kept",
        size=16,
    )
    left = _panel(drawing, 0, "Everybody", "hardly a “seven”")
    _answers(drawing, left)
    left = _panel(drawing, 1, "A threshold", "no “seven” at all")
    _answers(drawing, left, threshold=0.7)
    y = _height(0.7)
    drawing.line([(left + 8, y), (left + WIDE - 8, y)], "wrong", dashed=True)
    left = _panel(
        drawing, 2, "Top-K (here 3)", "three of each,\none against its own vote"
    )
    _answers(drawing, left, top=3)
    point = (left + 38 + 104, _height(0.2))
    drawing.dots([point], "guess")
    drawing.arrow(
        (left + 95, _height(0.27)), (point[0] - 8, point[1]), kind="guess", dashed=True
    )
    left = _panel(drawing, 3, "Two Gaussians", "the heap of small losses")
    _gaussians(drawing, left)
    return drawing
