"""CLIP: two towers, the matrix of similarities, and what its loss does to it."""

from tools.drawing import Drawing

CELL, LEFT, TOP = 54, 470, 126
ROWS = 4


def _matrix(drawing: Drawing) -> None:
    """Similarities of four images with four captions; the pairs are the diagonal."""
    for row in range(ROWS):
        for column in range(ROWS):
            pair = row == column
            drawing.box(
                LEFT + CELL * column,
                TOP + CELL * row,
                CELL - 6,
                CELL - 6,
                "↑" if pair else "↓",
                "trained" if pair else "frozen",
                filled=pair,
                size=20,
                radius=5,
            )
    names = "₁₂₃₄"
    for number in range(ROWS):
        middle = LEFT + CELL * number + CELL / 2 - 3
        drawing.text(middle, TOP - 16, f"g(t{names[number]})", kind="text", size=14)
        middle = TOP + CELL * number + CELL / 2 - 3
        drawing.text(LEFT - 30, middle, f"f(x{names[number]})", kind="image", size=14)


def draw() -> Drawing:
    """Images and captions on the left, their similarities on the right."""
    drawing = Drawing(
        720,
        400,
        "CLIP and its loss",
        "An image tower turns four images, a text tower their four captions into "
        "vectors. A matrix holds the similarity of every image with every caption. "
        "Training pulls the diagonal up, which holds the true pairs, and pushes all "
        "other cells down.",
    )
    drawing.text(360, 30, "Two towers learn which caption fits", bold=True, size=19)
    for number in range(4):
        drawing.picture(42 + 50 * (number % 2), 172 + 50 * (number // 2), 44)
    drawing.text(90, 288, "images x", kind="image", size=15)
    tower = drawing.box(190, 166, 130, 100, "image tower\nf", "image", size=17)
    drawing.arrow((142, 216), tower.left, kind="image")
    drawing.arrow(tower.right, (LEFT - 62, 216), kind="image")
    captions = drawing.box(20, 62, 140, 62, "“a photo of\na seven.”", "text")
    drawing.text(90, 142, "captions t", kind="text", size=15)
    words = drawing.box(190, 56, 130, 74, "text tower\ng", "text", size=17)
    drawing.arrow(captions.right, words.left, kind="text")
    drawing.arrow(words.right, (684, 93), kind="text")
    drawing.text(578, 74, "similarities f(x)·g(t)", size=14)
    _matrix(drawing)
    drawing.box(30, 318, 22, 22, "↑", "trained", filled=True, radius=4)
    drawing.text(62, 330, "true pair: pulled up", size=15, align="start")
    drawing.box(218, 318, 22, 22, "↓", "frozen", radius=4)
    drawing.text(250, 330, "all others: pushed down", size=15, align="start")
    drawing.text(
        360,
        376,
        "Zero-shot: write one caption per class; the largest of an image’s row wins.",
        size=15,
    )
    return drawing
