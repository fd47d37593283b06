"""Label propagation: two labels spread over a graph of neighbours."""

import math

from tools.drawing import Drawing


def _crescents(left: float, top: float) -> list[list[tuple[float, float]]]:
    """Two crescents of dots that reach into each other."""
    upper, lower = [], []
    for place in range(9):
        angle = math.pi * place / 8
        wobble = 5 if place % 2 else -4
        upper.append(
            (
                left + 96 - (92 + wobble) * math.cos(angle),
                top + 96 - (86 + wobble) * math.sin(angle),
            )
        )
        lower.append(
            (
                left + 192 + (92 + wobble) * math.cos(angle),
                top + 70 + (86 + wobble) * math.sin(angle),
            )
        )
    return [upper, lower]


def draw() -> Drawing:
    """Left: each dot takes the nearest prompt; right: labels run along the edges."""
    drawing = Drawing(
        760,
        300,
        "Label propagation",
        "Two curved rows of dots, the images, with a star at one end of each, the "
        "prompts. Left, every dot takes the label of the nearest star, and half of "
        "each row is wrong. Right, dots are tied to their neighbours, the labels run "
        "along the ties, and each row gets the label of its own star.",
    )
    drawing.text(190, 28, "Each image alone: the nearest prompt", bold=True)
    drawing.text(570, 28, "All at once: along the neighbours", bold=True)
    for left, spread in ((46, False), (426, True)):
        upper, lower = _crescents(left, 58)
        stars = [(left - 14, 176), (left + 302, 106)]
        rows = ((upper, "image", stars[0]), (lower, "text", stars[1]))
        for dots, kind, star in rows:
            if spread:
                drawing.line([star, *dots], kind, width=2)
        for dots, kind, star in rows:
            for dot in dots:
                near = min(stars, key=lambda place: math.dist(place, dot))
                shown = kind if spread else ("image" if near is stars[0] else "text")
                drawing.dots([dot], shown, radius=7)
            drawing.star(*star, kind, 15)
    drawing.line([(380, 50), (380, 250)], "frozen", width=1, dashed=True)
    drawing.star(180, 281, "plain", 9)
    drawing.text(196, 281, "prompt of a class", size=14, align="start")
    drawing.dots([(352, 281)], "plain", radius=6)
    drawing.text(366, 281, "image", size=14, align="start")
    drawing.line([(442, 281), (474, 281)], "plain", width=2)
    drawing.text(484, 281, "near each other", size=14, align="start")
    return drawing
