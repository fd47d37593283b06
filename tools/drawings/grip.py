"""The GRIP loop, and FPL and IFPL as shorter versions of it."""

from tools.drawing import Drawing

TITLE = "FPL, IFPL and GRIP"
DESCRIPTION = (
    "A loop of three steps: the model labels all images, the K surest images of each "
    "class are chosen, and a new prompt is trained on them, with which the model "
    "labels again. Bars below show K for each round: FPL has one round, IFPL ten "
    "rounds with the same K, and in GRIP K grows until nearly all images are used."
)
STRATEGIES = {
    "FPL": ("once", [16]),
    "IFPL": ("again and again", [16] * 10),
    "GRIP": ("until nearly all", [9 * step for step in range(1, 11)]),
}


def draw() -> Drawing:
    """The loop above, the sizes of the three strategies below."""
    drawing = Drawing(760, 400, TITLE, DESCRIPTION)
    drawing.text(380, 28, "Guess, choose, train, and guess again", bold=True, size=18)
    drawing.picture(24, 70, 54)
    drawing.text(51, 146, "images,\nno labels", kind="image", size=14)
    guess = drawing.box(120, 64, 160, 66, "the model labels\nall images", "guess")
    choose = drawing.box(330, 64, 170, 66, "keep the K surest\nof each class", "guess")
    train = drawing.box(
        550, 64, 180, 66, "train a new prompt\non these guesses", "trained"
    )
    drawing.arrow((82, 97), guess.left, kind="image")
    drawing.arrow(guess.right, choose.left, kind="guess")
    drawing.arrow(choose.right, train.left, kind="guess")
    low = 172
    drawing.line([train.bottom, (640, low), (200, low)], "trained", width=1.8)
    drawing.arrow((200, low), guess.bottom, kind="trained")
    again = "next round: label anew (GRIP: with a larger K)"
    drawing.text(420, low + 18, again, kind="trained")
    drawing.text(24, 236, "K in each round:", align="start", bold=True)
    for column, (name, (words, sizes)) in enumerate(STRATEGIES.items()):
        _bars(drawing, 60 + column * 240, name, words, sizes)
    return drawing


def _bars(drawing: Drawing, x: float, name: str, words: str, sizes: list[int]) -> None:
    """One bar for the K of each round."""
    floor = 350
    for number, size in enumerate(sizes):
        drawing.box(x + number * 17, floor - size, 13, size, "", "trained", radius=2)
    drawing.line([(x - 6, floor + 1), (x + 174, floor + 1)], "frozen")
    drawing.text(x, 374, name, align="start", bold=True, size=16)
    drawing.text(x + 174, 374, words, align="end", kind="frozen", size=14)
