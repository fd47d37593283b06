"""Where the trainable vectors enter the two towers of a CLIP."""

from tools.drawing import Box, Drawing

TITLE = "Where prompts enter"
DESCRIPTION = (
    "Two frozen towers. Into the text tower go a start token, the trained vectors t1 "
    "to "
    "tn, the class name and an end token; into the image tower go a class token, the "
    "trained vectors v1 to vn and the patches. Textual prompts train the t, visual "
    "ones "
    "the v, and multimodal ones make both in one small network."
)


def draw() -> Drawing:
    """Text tower above, image tower below, the network that joins them between."""
    drawing = Drawing(760, 400, TITLE, DESCRIPTION)
    drawing.text(
        380,
        28,
        "Only the green parts are trained; both towers are frozen",
        bold=True,
        size=17,
    )
    text = _row(drawing, 86, ("start", "t", "class name", "end"), "text")
    image = _row(drawing, 276, ("class", "v", "patches", ""), "image")
    drawing.text(216, 64, "textual: t", kind="trained", bold=True)
    drawing.text(216, 350, "visual: v", kind="trained", bold=True)
    joint = drawing.box(88, 184, 256, 44, "one small network", "trained", dashed=True)
    drawing.arrow((216, 182), (216, 141), kind="trained", dashed=True)
    drawing.arrow((216, 230), (216, 273), kind="trained", dashed=True)
    drawing.text(
        joint.right[0] + 8,
        206,
        "multimodal:\nboth come from here",
        kind="trained",
        align="start",
        bold=True,
        size=14,
    )
    compare = drawing.box(664, 170, 80, 72, "cosine,\nsoftmax", size=14)
    drawing.arrow(text.right, compare.top, bend=-12, kind="text")
    drawing.arrow(image.right, compare.bottom, bend=12, kind="image")
    drawing.text(
        380,
        382,
        "The loss sends its gradient through the towers to the green vectors.",
        kind="frozen",
        size=14,
    )
    return drawing


def _row(drawing: Drawing, y: float, names: tuple[str, ...], kind: str) -> Box:
    """What a tower reads, and the tower."""
    first, vector, rest, last = names
    drawing.box(24, y, 56, 52, first, kind, size=14)
    for number, index in enumerate(("1", "2", "…", "n")):
        words = index if index == "…" else f"{vector}{_low(index)}"
        drawing.box(88 + number * 66, y, 58, 52, words, "trained", filled=True, size=17)
    width = 100 if last else 168
    drawing.box(352, y, width, 52, rest, kind, size=14)
    if last:
        drawing.box(460, y, 60, 52, last, kind, size=14)
    tower = drawing.box(552, y - 8, 92, 68, f"{kind}\ntower", "frozen", filled=True)
    drawing.arrow((523, y + 26), tower.left, kind=kind)
    return tower


def _low(index: str) -> str:
    """An index below the line."""
    return {"1": "₁", "2": "₂", "n": "ₙ"}[index]
