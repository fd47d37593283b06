"""Co-Reg: a teacher who may be unsure, and two networks that split for each other."""

from tools.drawing import Drawing

TITLE = "Co-Reg"
DESCRIPTION = (
    "CLIP gives every image a set of candidate classes. Two small networks learn from "
    "the sets, each on its own. Then each splits the images by its losses into clean "
    "and noisy ones, and the other network learns from that split."
)


def draw() -> Drawing:
    """From left to right: sets, warm-up, split; arrows that cross lead back."""
    drawing = Drawing(760, 400, TITLE, DESCRIPTION)
    drawing.text(
        380, 28, "CLIP names candidates, two networks sort them", bold=True, size=18
    )
    drawing.picture(24, 158, 58)
    drawing.text(53, 238, "images,\nno labels", kind="image", size=14)
    clip = drawing.box(112, 150, 96, 74, "CLIP\n27 templates", "frozen", size=14)
    drawing.arrow((86, 187), clip.left, kind="image")
    sets = drawing.box(246, 150, 104, 74, "candidates\n{seven, one}", "guess", size=14)
    drawing.arrow(clip.right, sets.left, kind="frozen")
    networks = [
        drawing.box(412, y, 120, 66, f"network {name}", "trained", filled=True)
        for name, y in (("A", 74), ("B", 236))
    ]
    for network in networks:
        drawing.arrow(sets.right, network.left, kind="guess")
    drawing.text(318, 92, "warm-up:\neach on its own", kind="guess", size=14)
    for (name, y), network in zip((("A", 74), ("B", 236)), networks):
        _split(drawing, 588, y - 10, name)
        drawing.arrow(network.right, (584, y + 33), kind="trained")
    drawing.text(558, 88, "look", kind="trained", size=13)
    drawing.text(558, 250, "look", kind="trained", size=13)
    drawing.arrow((600, 152), (536, 240), kind="wrong")
    drawing.arrow((600, 222), (536, 136), kind="wrong")
    drawing.text(
        616, 187, "each learns from\nthe other's split", kind="wrong", align="start"
    )
    drawing.text(
        380,
        350,
        "Clean images (low loss) keep their candidates. For noisy ones (high loss)\n"
        "both networks guess together. Later, embeddings of one class are pulled\n"
        "to its prototype and to each other (contrast).",
        size=15,
    )
    return drawing


def _split(drawing: Drawing, x: float, y: float, name: str) -> None:
    """A histogram of losses, low ones clean and high ones noisy."""
    heights = (16, 40, 46, 24, 9, 7, 14, 22, 13)
    for place, height in enumerate(heights):
        kind = "trained" if place < 5 else "frozen"
        left = x + 6 + place * 14
        drawing.box(left, y + 62 - height, 12, height, "", kind, filled=True, radius=1)
    drawing.line([(x, y + 63), (x + 138, y + 63)])
    drawing.line([(x + 75, y + 14), (x + 75, y + 63)], dashed=True)
    drawing.text(x + 38, y + 76, "clean", kind="trained", size=13)
    drawing.text(x + 106, y + 76, "noisy", kind="frozen", size=13)
    drawing.text(x + 69, y + 2, f"losses of {name}", size=13)
