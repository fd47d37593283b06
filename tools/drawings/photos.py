"""From a folder of photographs to answers, with three looks on the way."""

from tools.drawing import Drawing

LOOKS = [
    ("confidence", "as high as chance?"),
    ("names", "all prompts alike?"),
    ("images", "like lies beside like?"),
]


def draw() -> Drawing:
    """Folder, three looks, two ways to adapt, answers."""
    drawing = Drawing(
        760,
        340,
        "Your own images",
        "A folder of photographs, most of them loose and a few sorted by class, goes "
        "through three looks that need no label: confidence, names and images. If the "
        "names are known, a method adapts without labels, if not, with a few. Then "
        "come the answers, the least certain first.",
    )
    heads = ((100, "pool/"), (300, "three looks"), (506, "adapt"), (672, "answers.csv"))
    for x, words in heads:
        drawing.text(x, 34, words, bold=True, size=17)
    drawing.box(20, 56, 160, 260, "", "image", dashed=True)
    for row in range(2):
        for column in range(3):
            drawing.picture(32 + 48 * column, 68 + 46 * row, 40)
    drawing.text(100, 170, "most of them loose", size=13)
    for row, name in enumerate(("sky/", "tree/")):
        y = 192 + 50 * row
        drawing.text(34, y + 20, name, size=14, align="start", kind="text", bold=True)
        for column in range(2):
            drawing.picture(78 + 48 * column, y, 40, "text")
    drawing.text(100, 302, "a few sorted", size=13)
    for row, (name, words) in enumerate(LOOKS):
        y = 66 + 84 * row
        drawing.box(222, y, 156, 40, name, "guess", size=15)
        drawing.text(300, y + 54, words, size=13)
    drawing.arrow((184, 186), (216, 186))
    known = drawing.box(444, 92, 124, 58, "without labels", "trained", size=14)
    few = drawing.box(444, 226, 124, 58, "with a few\nlabels", "text", size=14)
    drawing.arrow((384, 170), known.left, kind="trained")
    drawing.text(414, 112, "names\nknown", size=13, kind="trained")
    drawing.arrow((384, 200), few.left, kind="text")
    drawing.text(414, 262, "names\nunknown", size=13, kind="text")
    answers = drawing.box(618, 126, 122, 124, "", "plain")
    drawing.text(
        *answers.middle, "tree  0.38\ntree  0.52\ntree  0.59\nsky   0.71\n…", size=15
    )
    drawing.text(679, 282, "least certain first:\nlook at these", size=13)
    drawing.arrow(known.right, (612, 166))
    drawing.arrow(few.right, (612, 212))
    return drawing
