"""The steps of a project: the test half stays sealed until the choice is made."""

from tools.drawing import Drawing

STEPS = [
    ("1", "question\nand data", "text"),
    ("2", "baselines", "frozen"),
    ("3", "compare and\nchoose, without\nlabels", "guess"),
    ("4", "open and\nmeasure", "trained"),
    ("5", "doubt", "wrong"),
    ("6", "write", "plain"),
]


def draw() -> Drawing:
    """Six steps in a row, the pool and the sealed test half below."""
    drawing = Drawing(
        760,
        330,
        "A project",
        "Six steps in a row: question and data, baselines, compare and choose without "
        "labels, open and measure, doubt, write. The pool is used from the beginning; "
        "the labelled test half stays sealed until the fourth step, when the choice "
        "has been written down.",
    )
    for column, (number, words, kind) in enumerate(STEPS):
        x = 20 + 122 * column
        drawing.text(x + 55, 34, number, bold=True, size=20, kind=kind)
        box = drawing.box(x, 54, 110, 76, words, kind, size=14)
        if column:
            drawing.arrow((box.left[0] - 8, box.left[1]), box.left)
    drawing.box(20, 196, 232, 112, "", "image", dashed=True)
    for column in range(4):
        drawing.picture(34 + 54 * column, 208, 44)
    drawing.text(136, 274, "the pool, without labels:\nadapt and choose here", size=14)
    drawing.arrow((75, 192), (75, 134), kind="image")
    drawing.arrow((197, 192), (197, 134), kind="image")
    drawing.arrow((240, 192), (310, 134), kind="image")
    drawing.box(386, 196, 232, 112, "", "text")
    for column in range(4):
        drawing.picture(400 + 54 * column, 208, 44, "text")
    drawing.text(502, 274, "the test half, with labels:\nsealed until step 4", size=14)
    drawing.arrow((441, 192), (441, 134), "once", kind="text", size=15, offset=(24, 0))
    return drawing
