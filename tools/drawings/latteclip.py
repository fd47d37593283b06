"""LatteCLIP: three texts for an image, a mixer, prototypes, two pseudolabels."""

from tools.drawing import Drawing

TEXTS = [
    ("class", "“a photo of a seven.”", "guess"),
    ("image", "“a thin digit leaning right”", "text"),
    ("group", "“digits with no closed loops”", "text"),
]


def draw() -> Drawing:
    """The image on the left, its target on the right, the prototype below."""
    drawing = Drawing(
        760,
        424,
        "LatteCLIP",
        "Three texts of an image are weighed by the mixer; the mix is blended with the "
        "prototype of the class and becomes the target of the image. This is done for "
        "two pseudolabels, the frozen CLIP's and the trained model's. Both towers "
        "learn, and the prototype follows the mix.",
    )
    drawing.text(380, 28, "Three texts, one target", bold=True, size=19)
    drawing.text(150, 62, "three texts for an image", size=14, kind="text")
    boxes = []
    for row, (name, words, kind) in enumerate(TEXTS):
        y = 78 + row * 62
        box = drawing.box(22, y, 256, 50, "", kind)
        drawing.text(150, y + 15, name, kind=kind, bold=True, size=14)
        drawing.text(150, y + 34, words, size=14)
        boxes.append(box)
    tower = drawing.box(318, 130, 76, 70, "text\ntower", "trained")
    mixer = drawing.box(440, 130, 92, 70, "mixer\nby the gap", "plain")
    target = drawing.box(622, 130, 112, 70, "target", "text", filled=True)
    for box in boxes:
        drawing.arrow(box.right, (tower.left[0], 165 + (box.right[1] - 165) * 0.25))
    drawing.arrow(tower.right, mixer.left)
    drawing.arrow(mixer.right, target.left, "1 %")
    star = (577, 266)
    drawing.star(*star, "guess", 16)
    drawing.text(577, 302, "prototype\nof the class", size=14, kind="guess")
    drawing.arrow((592, 254), (650, 204), "99 %", kind="guess", offset=(26, 6))
    drawing.arrow((497, 204), (560, 256), "moves\nslowly", dashed=True, offset=(-34, 6))
    drawing.picture(22, 318, 62)
    image = drawing.box(318, 314, 76, 70, "image\ntower", "trained")
    drawing.arrow((90, 349), image.left, "a random view")
    drawing.line([image.right, (678, 349)], "trained")
    drawing.arrow((678, 349), target.bottom, kind="trained")
    drawing.text(706, 270, "find\nyour\nown", size=14, kind="trained")
    drawing.text(
        380,
        404,
        "done twice, for two pseudolabels: the frozen CLIP's and the trained model's",
        kind="guess",
        size=14,
    )
    return drawing
