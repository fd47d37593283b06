"""Four questions to the same twelve answers: right, fair, sure, silent."""

from tools.drawing import COLOURS, Drawing

# The answers, surest first: the bird (g a gull, h a heron) and whether it is right.
ANSWERS = ["g+", "g+", "h-", "g+", "g+", "g+", "h-", "g+", "g+", "h+", "g+", "g-"]
WIDE, RADIUS = 172, 11


def _answer(drawing: Drawing, x: float, y: float, answer: str) -> None:
    right = answer[1] == "+"
    kind = "trained" if right else "wrong"
    drawing.dots([(x, y)], kind, radius=RADIUS, hollow=not right)
    ink = "#ffffff" if right else COLOURS["wrong"]
    drawing.text(x, y, answer[0], colour=ink, size=13, bold=True)


def _rows(drawing: Drawing, left: float, top: float, answers: list[str]) -> None:
    """Answers in rows of five."""
    for place, answer in enumerate(answers):
        _answer(drawing, left + 28 * (place % 5), top + 28 * (place // 5), answer)


def _panel(drawing: Drawing, number: int, question: str, finding: str) -> float:
    """A column with its question above and its finding below; returns its left edge."""
    left = 18 + 184 * number
    drawing.box(left, 62, WIDE, 258, "", "frozen")
    drawing.text(left + WIDE / 2, 84, question, bold=True, size=16)
    drawing.text(left + WIDE / 2, 282, finding, size=14)
    return left


def draw() -> Drawing:
    """The same answers four times, sorted by what is asked."""
    drawing = Drawing(
        760,
        370,
        "Four questions to the same answers",
        "Twelve answers about gulls and herons, nine of them right, shown four times. "
        "How right: 9 of 12. How fair: 8 of 9 gulls but only 1 of 3 herons. How sure: "
        "of 8 answers that claim 90 percent, 6 are right. When to be silent: of the "
        "surest six, only one is wrong.",
    )
    drawing.text(
        380, 32, "The same twelve answers, asked four times", bold=True, size=19
    )
    left = _panel(drawing, 0, "How right?", "9 of 12 are right")
    _rows(drawing, left + 30, 140, ANSWERS)
    left = _panel(drawing, 1, "How fair?", "gulls: 8 of 9\nherons: 1 of 3")
    for row, bird in enumerate("gh"):
        some = [answer for answer in ANSWERS if answer[0] == bird]
        drawing.text(
            left + WIDE / 2, (112, 202)[row], ("gulls", "herons")[row], size=14
        )
        _rows(drawing, left + 30, (138, 228)[row], some)
    left = _panel(drawing, 2, "How sure?", "of “90 % sure”\n6 of 8 are right")
    for row, (some, words) in enumerate(
        ((ANSWERS[:8], "90 % sure"), (ANSWERS[8:], "60 % sure"))
    ):
        drawing.text(left + WIDE / 2, (112, 202)[row], words, size=14)
        _rows(drawing, left + 30, (138, 228)[row], some)
    left = _panel(drawing, 3, "When silent?", "of the surest six\nonly 1 is wrong")
    drawing.text(left + WIDE / 2, 112, "answered", size=14)
    _rows(drawing, left + 30, 138, ANSWERS[:6])
    drawing.line([(left + 14, 186), (left + WIDE - 14, 186)], "plain", dashed=True)
    drawing.text(left + WIDE / 2, 202, "passed on", size=14)
    for place in range(6):
        x, y = left + 30 + 28 * (place % 5), 228 + 24 * (place // 5)
        drawing.dots([(x, y)], "frozen", radius=8, hollow=True)
    drawing.text(
        380,
        344,
        "g gull, h heron; filled: right, open: wrong; the surest first",
        size=14,
    )
    return drawing
