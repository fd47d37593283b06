"""Open in Colab, launch Binder: two cells under the title of every chapter.

python tools/badges.py           which chapters lack them, or have others (exit code 1)
python tools/badges.py --write   writes them

The first cell holds the badges, whose links settings.ini decides (user, repo, branch).
The second one installs the package in Colab, where a notebook comes alone, and fetches
the files that it reads; anywhere else it does nothing. On the site both stand in the
line of links under the title (tools/docs.py).
"""

import json
import sys
from configparser import ConfigParser
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tools.course_stats import BADGES as CELLS  # noqa: E402

COLAB = """#| eval: false
#| code-fold: true
#| code-summary: "Only in Colab: install clipadapt, and fetch what the chapters read"
import sys

if "google.colab" in sys.modules:
    %pip install --quiet clipadapt "fastcore<2"
    !clipadapt course /content/course --no-open
    %cd /content/course/nbs"""


def settings() -> dict[str, str]:
    """What settings.ini says."""
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(PROJECT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def links(name: str) -> dict[str, str]:
    """The address of each service for the notebook `name`, such as "01_zeroshot"."""
    facts = settings()
    place, branch = f"{facts['user']}/{facts['repo']}", facts["branch"]
    path = f"nbs/{name}.ipynb"
    colab, binder = "https://colab.research.google.com", "https://mybinder.org"
    return {
        "colab": f"{colab}/github/{place}/blob/{branch}/{path}",
        "binder": f"{binder}/v2/gh/{place}/{branch}?urlpath=lab/tree/{path}",
    }


def badges(name: str) -> str:
    """The badges of a notebook, in Markdown."""
    up, to = "../" * name.count("/"), links(name)
    return (
        f"[![Open in Colab]({up}badges/colab.svg)]({to['colab']})"
        f" [![Launch Binder]({up}badges/binder.svg)]({to['binder']})"
    )


def with_badges(notebook: dict, name: str) -> dict:
    """A notebook with both cells under its title."""
    lines = COLAB.splitlines(keepends=True)
    first = {"cell_type": "markdown", "id": "badges", "metadata": {}}
    second = {"cell_type": "code", "execution_count": None, "id": "colab"}
    second |= {"metadata": {}, "outputs": [], "source": lines}
    title, *others = [one for one in notebook["cells"] if one["id"] not in CELLS]
    cells = [title, {**first, "source": [badges(name)]}, second, *others]
    return {**notebook, "cells": cells}


def main(arguments: list[str]) -> int:
    """Check or write; return the exit code."""
    wrong = []
    for path in sorted((PROJECT / "nbs").glob("[01]*.ipynb")):
        text = path.read_text(encoding="utf-8")
        notebook = with_badges(json.loads(text), path.stem)
        right = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        if text != f"{right}\n":
            wrong.append(path.name)
            if "--write" in arguments:
                path.write_text(f"{right}\n", encoding="utf-8")
    if wrong and "--write" not in arguments:
        print(f"run `python tools/badges.py --write` for {', '.join(wrong)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
