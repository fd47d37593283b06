"""`python -m tools.drawings [NAME ...]`: write nbs/drawings/NAME.svg, or all of
them."""

import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / "nbs" / "drawings"


def names() -> list[str]:
    """All drawings that there are."""
    return sorted(path.stem for path in HERE.glob("[a-z]*.py"))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or names():
        drawing = import_module(f"tools.drawings.{name}").draw()
        drawing.save(FOLDER / f"{name}.svg")
        print(FOLDER / f"{name}.svg")
