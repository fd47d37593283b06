"""Clean, corrupted and outside images, and what one asks of the answers."""

from tools.drawing import Drawing

ROWS = [
    ("clean", "an eight\nas it was scanned", "8", "image"),
    ("corrupted", "the same eight\nin the fog", "8", "frozen"),
    ("outside", "a letter:\nnone of the classes", "K", "wrong"),
]
ASKED = [
    ("“eight”, 90 %", "Is it right?\nIn nine cases of ten?", "accuracy, ECE"),
    ("“three”, 60 %", "Right as often?\nAnd if not: less sure?", "accuracy, ECE"),
    ("“four”, 35 %", "Less sure than\nof any digit?", "AUROC"),
]


def draw() -> Drawing:
    """Three rows: an image, the classifier's answer, what one asks of it."""
    drawing = Drawing(
        760,
        380,
        "What robustness means",
        "Three images go into one classifier. Of a clean eight one asks whether the "
        "answer is right and the confidence true; of a corrupted eight the same; of a "
        "letter, which is none of the classes, that the classifier be less sure.",
    )
    for x, words in ((116, "the image"), (392, "the answer"), (610, "what we ask")):
        drawing.text(x, 30, words, bold=True, size=17)
    box = drawing.box(258, 54, 44, 304, "", "frozen")
    drawing.text(*box.middle, "c\nl\na\ns\ns\ni\nf\ni\ne\nr", size=15)
    for row, (name, words, character, kind) in enumerate(ROWS):
        y = 58 + 104 * row
        image = drawing.box(24, y + 8, 72, 72, "", kind, filled=kind == "image")
        _write(drawing, image.middle, character, kind)
        drawing.text(108, y + 26, name, bold=True, size=15, align="start")
        drawing.text(108, y + 58, words, size=13, align="start", kind="frozen")
        drawing.arrow((226, y + 44), (254, y + 44))
        answer, question, measure = ASKED[row]
        said = drawing.box(332, y + 18, 124, 52, answer, "guess")
        drawing.arrow((306, y + 44), said.left)
        drawing.arrow(said.right, (484, y + 44))
        drawing.text(492, y + 44, question, size=14, align="start")
        drawing.text(
            744, y + 44, measure, size=14, align="end", kind="trained", bold=True
        )
    return drawing


def _write(drawing: Drawing, middle, character: str, kind: str) -> None:
    """The character of an image, with fog on it where the image is corrupted."""
    ink = "#ffffff" if kind == "image" else "#9aa5b1" if kind == "frozen" else "#b83247"
    drawing.text(*middle, character, colour=ink, size=44, bold=True)
    if kind == "frozen":
        x, y = middle
        for step in (-22, -8, 8, 22):
            drawing.line([(x - 30, y + step), (x + 30, y + step + 4)], "frozen")
