"""ReCLIP: two towers label the images, and learn from those on which they agree."""

from tools.drawing import Drawing


def draw() -> Drawing:
    """Images left, two towers in the middle, their labels right, training below."""
    drawing = Drawing(
        760,
        340,
        "ReCLIP: two towers that must agree",
        "The images go to two towers of one CLIP. One learns in its text encoder and "
        "classifies by prompts, the other learns in its image encoder and classifies "
        "by centroids. Each labels all images by propagation. Images with the same "
        "label from both go back and train both towers; the others are left out.",
    )
    drawing.text(380, 28, "Two towers, and only what they agree on", bold=True, size=18)
    for row in range(4):
        drawing.picture(28, 62 + row * 50, 40)
    text = drawing.box(126, 66, 196, 74, "text tower learns,\nprompts classify", "text")
    image = drawing.box(
        126, 182, 196, 74, "image tower learns,\ncentroids classify", "image"
    )
    drawing.arrow((74, 128), (text.left[0], 110))
    drawing.arrow((74, 192), (image.left[0], 212))
    drawing.text(398, 52, "labels by propagation", kind="guess", size=14)
    labels = (("7 3 1 9", "text", text, 103), ("7 8 1 9", "image", image, 219))
    for names, kind, tower, height in labels:
        drawing.arrow(tower.right, (360, height), kind=kind)
        for place, name in enumerate(names.split()):
            wrong = place == 1
            drawing.box(
                368 + place * 38,
                height - 16,
                32,
                32,
                name,
                "wrong" if wrong else kind,
                dashed=wrong,
            )
    for place in range(4):
        same = place != 1
        drawing.text(
            384 + place * 38,
            161,
            "=" if same else "≠",
            kind="trained" if same else "wrong",
            bold=True,
            size=22,
        )
    agreed = drawing.box(
        578, 128, 154, 66, "images with the\nsame label", "trained", filled=True
    )
    drawing.arrow((528, 161), agreed.left, kind="trained")
    drawing.line([agreed.bottom, (655, 296), (97, 296), (97, 162)], "trained", width=2)
    drawing.arrow((97, 162), (text.left[0] + 2, 124), kind="trained")
    drawing.line([(97, 250), (97, 249)], "trained", width=2)
    drawing.arrow((97, 262), (image.left[0] + 2, 236), kind="trained")
    drawing.text(
        380, 316, "train both towers on these, then label anew", kind="trained", size=15
    )
    return drawing
