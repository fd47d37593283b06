"""FLYP: both towers are pulled together on pairs of image and pseudolabel prompt."""

from tools.drawing import Drawing

PROMPTS = ("a photo of a seven.", "a photo of a one.", "a photo of a four.")


def draw() -> Drawing:
    """Images and prompts outside, towers inside, the table of pairs in the middle."""
    drawing = Drawing(
        760,
        340,
        "FLYP on pseudolabels",
        "Three images go into the image tower, and the prompts of their pseudolabels "
        "into the text tower. Between the towers is a table of all pairs: those on the "
        "diagonal, an image with its own prompt, are pulled together, all others are "
        "pushed apart. Both towers learn. The pseudolabels come from the model itself.",
    )
    drawing.text(
        380, 28, "Each image with the prompt of its pseudolabel", bold=True, size=18
    )
    image = drawing.box(104, 92, 110, 130, "image\ntower\nlearns", "image")
    text = drawing.box(470, 92, 110, 130, "text\ntower\nlearns", "text")
    for row in range(3):
        y = 84 + row * 52
        drawing.picture(28, y, 42)
        drawing.arrow((74, y + 21), (101, y + 21), kind="image")
        drawing.box(612, y + 4, 134, 34, PROMPTS[row], "guess", size=13)
        drawing.arrow((609, y + 21), (583, y + 21), kind="text")
        for column in range(3):
            same = row == column
            drawing.box(
                264 + column * 54,
                80 + row * 52,
                48,
                46,
                "pull" if same else "push",
                "trained" if same else "frozen",
                filled=same,
                dashed=not same,
                size=14,
                radius=5,
            )
    drawing.arrow(image.right, (258, 157), kind="image")
    drawing.arrow(text.left, (426, 157), kind="text")
    drawing.text(342, 254, "similarity of every image with every prompt", size=14)
    drawing.line([(159, 225), (159, 306), (679, 306), (679, 246)], "guess", width=2)
    drawing.arrow((679, 252), (679, 236), kind="guess")
    drawing.text(
        420, 291, "the model labels the images: its pseudolabels", kind="guess", size=15
    )
    return drawing
