"""Drawings of ideas, as SVG: boxes, arrows, dots and words with one look.

A drawing stands on a card of its own, light with dark ink, so that it can be read on a
light page and on a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

INK, QUIET, CARD, EDGE = "#1f2933", "#52606d", "#fbfaf7", "#d5d2c9"
COLOURS = {
    "image": "#2b6cb0",  # pictures and the image tower
    "text": "#b7521e",  # words and the text tower
    "guess": "#6b46a8",  # pseudolabels, captions, teachers
    "trained": "#1c7c54",  # what learns
    "frozen": "#7b8794",  # what stays as it is
    "wrong": "#b83247",
    "plain": INK,
}
Point = tuple[float, float]


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


class Drawing:
    """A drawing, from the first mark to the last; later ones lie on top.

    width, height: of the card, in units that are pixels at full size.
    title: a few words, the name of the drawing.
    description: what somebody should know who cannot see it, one to three sentences.
    """

    def __init__(self, width: int, height: int, title: str, description: str):
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.marks: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str = "",
        kind: str = "plain",
        *,
        filled: bool = False,
        dashed: bool = False,
        size: float = 15,
        radius: float = 8,
    ) -> Box:
        """A rectangle with words in the middle; lines are parted by newlines.

        x, y: of the upper left corner.
        kind: a name in `COLOURS`.
        filled: in the full colour with light words, else a light tint.
        dashed: with a dashed edge.
        size: of the letters.
        """
        colour = COLOURS[kind]
        fill = colour if filled else colour + "1a"
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.marks.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}" rx="{_number(radius)}" fill="{fill}" '
            f'stroke="{colour}" stroke-width="1.6"{dash}/>'
        )
        ink = "#ffffff" if filled else INK
        self.text(x + width / 2, y + height / 2, words, colour=ink, size=size)
        return Box(x, y, width, height)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        kind: str | None = None,
        colour: str = INK,
        size: float = 15,
        align: str = "middle",
        bold: bool = False,
        italic: bool = False,
    ) -> None:
        """Words around the point (x, y); lines are parted by newlines.

        kind: a name in `COLOURS`, instead of `colour`.
        align: "start", "middle" or "end".
        """
        lines = words.split("\n") if words else []
        style = ' font-weight="600"' if bold else ""
        style += ' font-style="italic"' if italic else ""
        colour = COLOURS[kind] if kind else colour
        top = y - (len(lines) - 1) * size * 0.62
        for row, line in enumerate(lines):
            self.marks.append(
                f'<text x="{_number(x)}" y="{_number(top + row * size * 1.24)}" '
                f'fill="{colour}" font-size="{_number(size)}" text-anchor="{align}" '
                f'dominant-baseline="central"{style}>{escape(line)}</text>'
            )

    def arrow(
        self,
        start: Point,
        end: Point,
        words: str = "",
        *,
        kind: str = "plain",
        bend: float = 0,
        dashed: bool = False,
        both: bool = False,
        size: float = 13,
        offset: Point = (0, -11),
    ) -> None:
        """An arrow from `start` to `end`, with words beside its middle.

        bend: how far the middle is pushed to the left of the way, 0 for straight.
        both: with a head at either end.
        offset: of the words from the middle.
        """
        colour = COLOURS[kind]
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1
        middle = (
            (x0 + x1) / 2 + bend * (y1 - y0) / length,
            (y0 + y1) / 2 - bend * (x1 - x0) / length,
        )
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        control = (2 * middle[0] - (x0 + x1) / 2, 2 * middle[1] - (y0 + y1) / 2)
        path = (
            f"M{_number(x0)} {_number(y0)} Q{_number(control[0])} "
            f"{_number(control[1])} {_number(x1)} {_number(y1)}"
        )
        self.marks.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        )
        self._head(control, end, colour)
        if both:
            self._head(control, start, colour)
        if words:
            self.text(
                middle[0] + offset[0],
                middle[1] + offset[1],
                words,
                colour=colour,
                size=size,
            )

    def _head(self, before: Point, tip: Point, colour: str) -> None:
        angle = math.atan2(tip[1] - before[1], tip[0] - before[0])
        corners = [tip]
        for turn in (2.7, -2.7):
            corners.append(
                (
                    tip[0] + 9 * math.cos(angle + turn),
                    tip[1] + 9 * math.sin(angle + turn),
                )
            )
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in corners)
        self.marks.append(f'<polygon points="{points}" fill="{colour}"/>')

    def line(
        self,
        points: Sequence[Point],
        kind: str = "plain",
        *,
        width: float = 1.5,
        dashed: bool = False,
    ) -> None:
        """A line through points."""
        way = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.marks.append(
            f'<polyline points="{way}" fill="none" stroke="{COLOURS[kind]}" '
            f'stroke-width="{_number(width)}"{dash}/>'
        )

    def dots(
        self,
        points: Sequence[Point],
        kind: str = "plain",
        *,
        radius: float = 5,
        hollow: bool = False,
    ) -> None:
        """Discs at points, hollow for what is not known yet."""
        fill = CARD if hollow else COLOURS[kind]
        for x, y in points:
            self.marks.append(
                f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" '
                f'fill="{fill}" stroke="{COLOURS[kind]}" stroke-width="1.6"/>'
            )

    def star(self, x: float, y: float, kind: str = "plain", radius: float = 10) -> None:
        """A star, for a prototype or a class's own point."""
        corners = []
        for corner in range(10):
            far = radius if corner % 2 == 0 else radius * 0.45
            angle = -math.pi / 2 + corner * math.pi / 5
            corners.append((x + far * math.cos(angle), y + far * math.sin(angle)))
        points = " ".join(f"{_number(a)},{_number(b)}" for a, b in corners)
        self.marks.append(
            f'<polygon points="{points}" fill="{COLOURS[kind]}" stroke="{CARD}"/>'
        )

    def picture(self, x: float, y: float, side: float = 46, kind: str = "image") -> Box:
        """A small photograph: a frame, a hill and a sun."""
        colour, third = COLOURS[kind], side / 3
        self.box(x, y, side, side, "", kind, radius=4)
        hill = [
            (x + 3, y + side - 4),
            (x + third * 1.1, y + side * 0.5),
            (x + third * 1.7, y + side * 0.72),
            (x + third * 2.2, y + side * 0.58),
            (x + side - 3, y + side - 4),
        ]
        points = " ".join(f"{_number(a)},{_number(b)}" for a, b in hill)
        self.marks.append(
            f'<polygon points="{points}" fill="{colour}" opacity="0.75"/>'
        )
        self.marks.append(
            f'<circle cx="{_number(x + side * 0.72)}" cy="{_number(y + side * 0.28)}" '
            f'r="{_number(side * 0.1)}" fill="{colour}"/>'
        )
        return Box(x, y, side, side)

    def svg(self) -> str:
        """The whole drawing."""
        marks = "\n".join(self.marks)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} '
            f'{self.height}" width="{self.width}" height="{self.height}" role="img" '
            'aria-labelledby="title description" font-family="Helvetica, Arial, '
            'sans-serif">\n'
            f'<title id="title">{escape(self.title)}</title>\n'
            f'<desc id="description">{escape(self.description)}</desc>\n'
            f'<rect x="1" y="1" width="{self.width - 2}" height="{self.height - 2}" '
            f'rx="12" fill="{CARD}" stroke="{EDGE}"/>\n{marks}\n</svg>\n'
        )

    def save(self, path: str | Path) -> None:
        """Write the drawing to a file."""
        Path(path).write_text(self.svg(), encoding="utf-8")


class Box:
    """Where a box is, for the arrows that begin and end at it."""

    def __init__(self, x: float, y: float, width: float, height: float):
        self.left = (x - 3, y + height / 2)
        self.right = (x + width + 3, y + height / 2)
        self.top = (x + width / 2, y - 3)
        self.bottom = (x + width / 2, y + height + 3)
        self.middle = (x + width / 2, y + height / 2)
