"""One loop for every method, from images to a table."""

from tools.drawing import Drawing

METHODS = [("zero-shot", "frozen"), ("prototypes", "trained"), ("LP-CLIP", "trained")]
ASKED = [
    ("the table", "right on average?"),
    ("four pictures", "which class, which image,\nat what price?"),
    ("draw again", "would another test half\nsay the same?"),
]


def draw() -> Drawing:
    """Images without labels, one loop, probabilities, and what is made of them."""
    drawing = Drawing(
        760,
        370,
        "Comparing methods",
        "Every method with every seed is fitted to the same images without labels and "
        "asked once about the same test images. The probabilities are kept, and the "
        "table, the pictures and the bootstrap are all made from them.",
    )
    heads = (
        (90, "the same images"),
        (270, "every method"),
        (453, "answers, kept"),
        (658, "judged"),
    )
    for x, words in heads:
        drawing.text(x, 32, words, bold=True, size=17)
    for y, kind, words in (
        (70, "image", "to adapt on,\nno labels"),
        (222, "text", "to test on,\nwith labels"),
    ):
        for row in range(3):
            drawing.picture(30 + 10 * row, y + 10 * row, 56, kind)
        drawing.text(74, y + 98, words, size=14)
    drawing.box(200, 56, 140, 292, "", "frozen", dashed=True)
    drawing.box(386, 56, 134, 292, "", "guess", dashed=True)
    drawing.arrow((118, 118), (194, 118), "1. fit", kind="image", size=14)
    drawing.arrow((118, 270), (194, 270), "2. ask", kind="text", size=14)
    for row, (name, kind) in enumerate(METHODS):
        y = 66 + 96 * row
        drawing.box(210, y + 8, 120, 62, f"{name}\nseeds 0, 1, 2", kind, size=14)
        drawing.arrow((334, y + 39), (392, y + 39))
        _table(drawing, 400, y + 8)
    for row, (name, words) in enumerate(ASKED):
        y = 66 + 96 * row
        box = drawing.box(576, y + 8, 164, 28, name, "plain", size=14)
        drawing.arrow((524, box.left[1]), box.left)
        drawing.text(658, y + 60, words, size=13)
    return drawing


def _table(drawing: Drawing, x: float, y: float) -> None:
    """A few rows of probabilities, the highest of each row dark."""
    for row, highest in enumerate((1, 4, 0)):
        for column in range(6):
            drawing.box(
                x + 18 * column,
                y + 4 + 18 * row,
                16,
                16,
                "",
                "guess",
                filled=column == highest,
                radius=2,
            )
