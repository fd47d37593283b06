"""A captioner describes an image, and what a group has in common."""

from tools.drawing import Drawing


def draw() -> Drawing:
    """One image above, a group of four below; one captioner, one store."""
    drawing = Drawing(
        760,
        360,
        "Captions of images and of groups",
        "One image and a question go to a captioner, and a sentence comes back. Four "
        "images with the same pseudolabel, tiled into one picture, go to the same "
        "captioner, which says what they have in common. All sentences are kept.",
    )
    drawing.text(380, 28, "One image, one group, two sentences", bold=True, size=19)
    drawing.picture(66, 70, 76)
    drawing.text(104, 164, "an image", size=14, kind="image")
    for number in range(4):
        drawing.picture(62 + number % 2 * 44, 200 + number // 2 * 44, 40)
    drawing.text(
        104, 304, "four images with the\nsame pseudolabel", size=14, kind="guess"
    )
    box = drawing.box(262, 134, 132, 96, "captioner", "guess", filled=True, size=17)
    drawing.arrow((150, 108), (258, 160), "“Describe it.”", offset=(22, -16))
    drawing.arrow((152, 242), (258, 206), "“What is common?”", offset=(22, 22))
    one = drawing.box(
        476,
        84,
        260,
        52,
        "“a thick digit leaning right,\none closed loop”",
        "text",
        size=14,
    )
    all_four = drawing.box(
        476, 226, 260, 52, "“thick digits,\nno closed loops”", "text", size=14
    )
    drawing.arrow((398, 164), one.left)
    drawing.arrow((398, 204), all_four.left)
    drawing.arrow((606, 140), (606, 160))
    drawing.arrow((606, 222), (606, 202))
    drawing.text(
        606, 181, "kept, never asked twice", size=14, kind="trained", bold=True
    )
    drawing.text(
        box.middle[0],
        300,
        "a language model, a function, or a ruler",
        size=14,
        kind="guess",
    )
    return drawing
