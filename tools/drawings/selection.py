"""Four kinds of scores that need no label, and what they are held against."""

from tools.drawing import Drawing

ANSWERS = {
    "agreement": ("do other methods\nsay the same?", "3 7 8 1", "3 1 8 1"),
    "stability": ("does another seed\nsay the same?", "3 7 8 1", "3 7 8 9"),
}


def draw() -> Drawing:
    """Four panels of scores above, the two orders of methods below."""
    drawing = Drawing(
        760,
        400,
        "Choosing without labels",
        "Four kinds of scores that need no label: agreement with other methods, "
        "stability over seeds, confidence and information, and the silhouette of the "
        "answers among the image features. Each puts the methods in an order, which "
        "is held against the order by true accuracy.",
    )
    for column in range(4):
        drawing.box(20 + 184 * column, 20, 168, 210, "", "frozen", dashed=True)
    for column, (name, (words, first, second)) in enumerate(ANSWERS.items()):
        x = 20 + 184 * column
        drawing.text(x + 84, 42, name, bold=True, size=16)
        pairs = zip(first.split(), second.split())
        for row, (one, other) in enumerate(pairs):
            y = 64 + 28 * row
            kind = "trained" if one == other else "wrong"
            drawing.box(x + 30, y, 34, 24, one, kind, radius=4)
            drawing.box(x + 104, y, 34, 24, other, kind, radius=4)
            sign = "=" if one == other else "≠"
            drawing.text(x + 84, y + 12, sign, kind=kind, bold=True, size=17)
        drawing.text(x + 84, 202, words, size=13)
    _confidence(drawing, 388)
    _silhouette(drawing, 572)
    for column in range(4):
        drawing.arrow((104 + 184 * column, 234), (200 + 40 * column, 292), kind="guess")
    drawing.box(140, 298, 200, 76, "an order of the methods,\nfrom each score", "guess")
    drawing.box(
        470, 298, 230, 76, "their order by accuracy,\nwhich needs labels", "text"
    )
    drawing.arrow((344, 336), (466, 336), both=True)
    drawing.text(405, 318, "the same?", bold=True, size=15)
    return drawing


def _confidence(drawing: Drawing, x: float) -> None:
    """A sure answer, and answers spread over the classes."""
    drawing.text(x + 84, 42, "confidence,", bold=True, size=16)
    drawing.text(x + 84, 62, "information", bold=True, size=16)
    for bar, height in enumerate((6, 14, 74, 9, 18)):
        kind = "guess"
        y = 164 - height
        drawing.box(
            x + 34 + 21 * bar, y, 16, height, "", kind, filled=height > 50, radius=2
        )
    drawing.line([(x + 28, 166), (x + 142, 166)])
    drawing.text(x + 84, 202, "sure, and not of\none class only?", size=13)


def _silhouette(drawing: Drawing, x: float) -> None:
    """Three clouds of answers, one dot in the wrong cloud."""
    drawing.text(x + 84, 42, "silhouette", bold=True, size=16)
    shape = [(0, 0), (14, 5), (5, 15), (19, 19), (-7, 11), (9, -9)]
    clouds = (((36, 84), "image"), ((110, 92), "trained"), ((68, 146), "text"))
    for (left, top), kind in clouds:
        drawing.dots([(x + left + a, top + b) for a, b in shape], kind)
    drawing.dots([(x + 134, 104)], "image")
    drawing.text(x + 84, 202, "do equal answers\nlie together?", size=13)
