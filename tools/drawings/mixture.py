"""The anchored mixture: names become anchors, and means walk from there."""

import math
import random

from tools.drawing import COLOURS, Drawing

CLOUDS = {"image": (226, 104), "guess": (296, 186)}
NAMES = {"image": (58, 116), "guess": (112, 256), "wrong": (40, 196)}
ANCHORS = {"image": (196, 138), "guess": (244, 226), "wrong": (164, 196)}


def _cloud(centre: tuple[float, float], count: int, seed: int) -> list:
    """Dots around a centre, stretched along the same slope as all others."""
    draw = random.Random(seed)
    dots = []
    for _ in range(count):
        along, across = draw.gauss(0, 24), draw.gauss(0, 11)
        dots.append(
            (
                centre[0] + 0.9 * along + 0.43 * across,
                centre[1] - 0.43 * along + 0.9 * across,
            )
        )
    return dots


def _ellipse(
    drawing: Drawing, centre: tuple[float, float], kind: str, size: float = 1
) -> None:
    """The covariance around a mean, two standard deviations wide."""
    x, y = centre
    drawing.marks.append(
        f'<ellipse cx="{x}" cy="{y}" rx="{54 * size}" ry="{25 * size}" fill="none" '
        f'stroke="{COLOURS[kind]}" stroke-width="2" '
        f'transform="rotate({-math.degrees(math.atan2(0.43, 0.9)):.0f} {x} {y})"/>'
    )


def _walk(drawing: Drawing, start: int, kind: str) -> None:
    """Let all marks since `start` come from the anchor, again and again."""
    (x0, y0), (x1, y1) = ANCHORS[kind], CLOUDS[kind]
    inside = "".join(drawing.marks[start:])
    del drawing.marks[start:]
    away = f"translate({x0 - x1}px, {y0 - y1}px)"
    drawing.marks.append(
        f"<style>@keyframes {kind} {{0% {{transform: {away}}} "
        "50%, 100% {transform: none}} "
        "@media (prefers-reduced-motion: no-preference) "
        f"{{.{kind} {{animation: {kind} 6s infinite}}}}</style>"
        f'<g class="{kind}">{inside}</g>'
    )


def draw() -> Drawing:
    """Left: names are moved into the images; right: means walk, one stays behind."""
    drawing = Drawing(
        760,
        330,
        "Anchored mixture",
        "Left, the names of three classes lie outside the images; each is moved in and "
        "becomes an anchor. Right, the means of two classes walk from their anchors to "
        "the middle of their clouds, with one ellipse for both, the covariance. The "
        "third class has no images, and its mean stays at its anchor.",
    )
    drawing.text(190, 28, "1. Names become anchors", size=16, bold=True)
    drawing.text(570, 28, "2. Means walk to the middle of their clouds", bold=True)
    drawing.line([(380, 50), (380, 270)], "frozen", width=1, dashed=True)
    for left in (0, 380):
        for seed, (kind, (x, y)) in enumerate(CLOUDS.items()):
            shown = kind if left else "frozen"
            drawing.dots(_cloud((x + left, y), 34, seed), shown, radius=3)
    for kind, place in NAMES.items():
        drawing.arrow(place, ANCHORS[kind], kind=kind)
        drawing.star(*place, kind, 12)
        drawing.dots([ANCHORS[kind]], kind, radius=7)
    for kind, (x, y) in ANCHORS.items():
        drawing.dots([(x + 380, y)], kind, radius=7)
        if kind in CLOUDS:
            middle = (CLOUDS[kind][0] + 380, CLOUDS[kind][1])
            start = len(drawing.marks)
            _ellipse(drawing, middle, kind)
            drawing.dots([middle], "plain", radius=6)
            _walk(drawing, start, kind)
    drawing.text(500, 238, "no images:\nits mean stays", kind="wrong", size=14)
    drawing.star(66, 304, "plain", 9)
    drawing.text(82, 304, "name (prompt)", size=14, align="start")
    drawing.dots([(206, 304)], "plain", radius=7)
    drawing.text(220, 304, "anchor, mean", size=14, align="start")
    drawing.dots([(338, 304)], "frozen", radius=3)
    drawing.text(350, 304, "image", size=14, align="start")
    _ellipse(drawing, (500, 302), "plain", 0.5)
    drawing.text(540, 304, "covariance, one for all", size=14, align="start")
    return drawing
