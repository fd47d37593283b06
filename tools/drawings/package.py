"""The package as a whole: from images to answers through six rooms."""

from tools.drawing import Drawing

ROOMS = [
    ("images", "pictures in,\nwhatever they are", "image"),
    ("clip", "a frozen CLIP, and\nwhat is kept of it", "frozen"),
    ("learning", "the tools that\nevery method shares", "plain"),
    ("methods", "one file\na method", "trained"),
    ("judge", "which method,\nhow good, how sure", "guess"),
    ("app", "command line\nand widgets", "text"),
]


def draw() -> Drawing:
    """Two rows of three rooms; images go in above, answers come out below."""
    drawing = Drawing(
        760,
        330,
        "The package as a whole",
        "Six rooms: images, clip, learning, methods, judge and app. Images and class "
        "names go in at the first; answers, a table and a report come out at the last. "
        "A room imports only from rooms before it.",
    )
    drawing.text(380, 30, "From image to answer, room by room", bold=True, size=19)
    drawing.picture(24, 76, 48)
    drawing.text(48, 142, "your images", size=14)
    drawing.text(48, 162, "class names", kind="text", size=14)
    boxes = []
    for number, (name, words, kind) in enumerate(ROOMS):
        x, y = 128 + number % 3 * 182, 62 if number < 3 else 190
        box = drawing.box(x, y, 154, 96, "", kind)
        drawing.text(box.middle[0], y + 22, name, kind=kind, bold=True, size=18)
        drawing.text(box.middle[0], y + 62, words, size=14)
        boxes.append(box)
    drawing.arrow((84, 110), boxes[0].left)
    for before, after in zip(boxes, boxes[1:]):
        if after is boxes[3]:
            low = (before.bottom[1] + after.top[1]) / 2
            drawing.line([before.bottom, (before.bottom[0], low), (after.top[0], low)])
            drawing.arrow((after.top[0], low), after.top)
        else:
            drawing.arrow(before.right, after.left)
    drawing.arrow(boxes[5].right, (668, 238))
    for row, words in enumerate(("answers", "a table", "a report")):
        drawing.text(710, 216 + row * 22, words, bold=row == 0, size=14)
    drawing.text(
        380, 308, "A room uses only the rooms before it.", kind="frozen", size=14
    )
    return drawing
