"""Prototypes: names outside the clouds, then prototypes inside them."""

import random

from tools.drawing import Drawing

CLOUDS = ((92, 120, "image"), (220, 92, "guess"), (170, 212, "trained"))
NAMES = ((118, 42), (285, 150), (92, 258))


def _panel(drawing: Drawing, left: float, moved: bool) -> None:
    chance = random.Random(4)
    for (x, y, kind), (name_x, name_y) in zip(CLOUDS, NAMES, strict=True):
        points = [
            (left + x + chance.gauss(0, 21), y + 30 + chance.gauss(0, 17))
            for _ in range(26)
        ]
        drawing.dots(points, kind, radius=3.6, hollow=not moved)
        start = (left + name_x, name_y + 30)
        middle = (left + x, y + 30)
        if moved:
            drawing.arrow(start, middle, kind=kind, dashed=True)
            drawing.star(*middle, kind, 16)
        else:
            drawing.star(*start, kind, 16)


def draw() -> Drawing:
    """Two panels: before the loop, and after it."""
    drawing = Drawing(
        760,
        350,
        "Prototypes walk from the names into the images",
        "Left: stars for three class names lie outside three clouds of images. Right: "
        "each star has walked into the middle of its cloud.",
    )
    drawing.text(180, 28, "names (stars) beside the images", size=16, bold=True)
    drawing.text(575, 28, "prototypes among the images", size=16, bold=True)
    _panel(drawing, 10, moved=False)
    _panel(drawing, 400, moved=True)
    drawing.arrow((335, 170), (405, 170))
    drawing.text(370, 150, "a few", size=14)
    drawing.text(370, 190, "rounds", size=14)
    drawing.text(
        380,
        330,
        "Each round: assign every image to its nearest star, then move each "
        "star to its images.",
        size=14,
        kind="frozen",
    )
    return drawing
