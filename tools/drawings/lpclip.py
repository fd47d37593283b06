"""LP-CLIP: a teacher looks at a weak view, a student at a strong one."""

from tools.drawing import Drawing


def draw() -> Drawing:
    """One image, two views: the frozen CLIP names one, a linear layer the other."""
    drawing = Drawing(
        760,
        330,
        "LP-CLIP",
        "One image becomes a weak and a strong view. The frozen CLIP looks at the weak "
        "view and answers 'four, 80 % sure'. A linear layer on the same frozen "
        "image encoder looks at the strong view and learns that answer, with a "
        "weight of 0.8.",
    )
    drawing.text(380, 30, "Same answer, harder look", bold=True, size=19)
    image = drawing.picture(34, 145, 60)
    drawing.text(64, 232, "an image,\nno label", size=14)
    _teacher(drawing, image)
    _student(drawing, image)
    drawing.text(
        380,
        310,
        "Only the green layer learns. No label is read.",
        kind="frozen",
        size=14,
    )
    return drawing


def _teacher(drawing: Drawing, image) -> None:
    """The upper row: what the frozen CLIP says of the weak view."""
    weak = drawing.picture(168, 68, 56)
    drawing.text(196, 54, "weak view: a crop", size=14)
    encoder = drawing.box(290, 68, 120, 56, "CLIP's image\nencoder", "frozen")
    text = drawing.box(462, 68, 110, 56, "CLIP's class\nwords", "text")
    answer = drawing.box(632, 68, 106, 56, "four\n80 % sure", "guess", filled=True)
    drawing.arrow(image.right, weak.left)
    drawing.arrow(weak.right, encoder.left)
    drawing.arrow(encoder.right, text.left)
    drawing.arrow(text.right, answer.left)
    drawing.text(685, 52, "teacher", kind="guess", bold=True, size=14)
    drawing.arrow((685, 128), (685, 203), kind="guess", dashed=True)
    drawing.text(
        672, 164, "learn “four”,\nweight 0.8", kind="guess", size=14, align="end"
    )


def _student(drawing: Drawing, image) -> None:
    """The lower row: what the linear layer says of the strong view."""
    strong = drawing.picture(168, 206, 56, "wrong")
    drawing.box(198, 234, 18, 18, "", "frozen", filled=True, radius=2)
    drawing.line([(172, 216), (222, 222)], "wrong", width=3)
    drawing.text(196, 276, "strong view: distorted", size=14)
    encoder = drawing.box(290, 206, 120, 56, "the same\nencoder", "frozen")
    layer = drawing.box(462, 206, 110, 56, "linear layer\nW, b", "trained", filled=True)
    answer = drawing.box(632, 206, 106, 56, "four? nine?", "trained")
    drawing.arrow(image.right, strong.left)
    drawing.arrow(strong.right, encoder.left)
    drawing.arrow(encoder.right, layer.left)
    drawing.arrow(layer.right, answer.left)
    drawing.text(685, 276, "student", kind="trained", bold=True, size=14)
