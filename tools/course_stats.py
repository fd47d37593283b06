"""How a chapter reads, in figures: `python tools/course_stats.py [NOTEBOOK ...]`.

Prints a table of the notebooks, and fails (exit code 1) when one is not as a chapter of
this course has to be; what is wrong is said for each. Without names it reads all.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).resolve().parent.parent
WIDEST, LONGEST = 88, 40
BADGES = ("badges", "colab")  # cells that tools/badges.py writes; nobody reads them
# Chapters that develop no method: what a method needs is not asked of them.
NO_METHOD = ("02", "15", "16", "17", "18")
FOLDED = re.compile(r"^#\|\s*code-fold:\s*(true|show)\s*$", re.M)
SUMMARY = re.compile(r"^#\|\s*code-summary:.*$", re.M)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
WE = re.compile(r"\b(we|us|our|ours|let's)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-zÀ-ÿ]+(?:[’'-][A-Za-z]+)*")


@dataclass
class Cell:
    """A cell of a notebook."""

    kind: str
    source: str

    @property
    def is_folded(self) -> bool:
        """Whether the site shows it folded."""
        return bool(FOLDED.search(self.source))

    @property
    def code(self) -> str:
        """The source without directives."""
        return DIRECTIVE.sub("", self.source).strip("\n")


class Notebook:
    """A chapter of the course, or a notebook of the engine room."""

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        content = json.loads(self.path.read_text(encoding="utf-8"))
        self.cells = [
            Cell(cell["cell_type"], "".join(cell["source"]))
            for cell in content["cells"]
            if cell.get("id") not in BADGES
        ]

    @property
    def name(self) -> str:
        """The path from the folder of notebooks, without the ending."""
        parts = self.path.with_suffix("").parts
        return "/".join(
            parts[parts.index("nbs") + 1 :] if "nbs" in parts else parts[-1:]
        )

    @property
    def is_chapter(self) -> bool:
        """Whether it belongs to the course, not to the engine room."""
        return self.name[:2].isdigit()

    @property
    def is_method_chapter(self) -> bool:
        """Whether it develops a method."""
        return self.is_chapter and self.name[:2] not in NO_METHOD

    @cached_property
    def code(self) -> list[Cell]:
        """The cells of code."""
        return [cell for cell in self.cells if cell.kind == "code"]

    @cached_property
    def prose(self) -> str:
        """All text."""
        texts = (cell.source for cell in self.cells if cell.kind == "markdown")
        return "\n\n".join(texts)

    @cached_property
    def words(self) -> int:
        """How many words a reader reads: no formulas, links or addresses."""
        text = re.sub(r"(?s)\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", " ", self.prose)
        return len(WORD.findall(re.sub(r"\]\([^)]*\)", "]", text)))

    @cached_property
    def summaries(self) -> list[str]:
        """What the site writes over folded cells."""
        return [line for cell in self.code for line in SUMMARY.findall(cell.source)]

    @cached_property
    def lines(self) -> list[str]:
        """All lines of code."""
        return [line for cell in self.code for line in cell.source.splitlines()]

    def after(self, heading: str) -> Iterator[Cell]:
        """The cells below a heading of the second level, to the next one."""
        inside = False
        for cell in self.cells:
            headings = []
            if cell.kind == "markdown":
                headings = re.findall(r"^## (.*)$", cell.source, re.M)
            if headings:
                inside = headings[-1].strip().startswith(heading)
                if not inside and any(h.startswith(heading) for h in headings):
                    yield cell
            if inside:
                yield cell


def self_imports(notebook: Notebook) -> list[str]:
    """Names that a notebook imports from the module that it defines itself."""
    module, defined, found = None, set(), []
    for cell in notebook.code:
        named = re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M)
        module = f"clipadapt.{named.group(1)}" if named else module
        try:
            tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", cell.source, flags=re.M))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {alias.name for alias in node.names}
                full = {f"{node.module}.{name}" for name in names}
                again = names & defined if node.module == "clipadapt" else set()
                if node.module == module or module in full or again:
                    found.append(ast.unparse(node))
        if re.search(r"^#\|\s*exporti?\s*$", cell.source, re.M):
            kinds = (ast.FunctionDef, ast.ClassDef)
            defined |= {node.name for node in tree.body if isinstance(node, kinds)}
    return found


def _is_plain_compared(notebook: Notebook) -> bool:
    tests = (cell.code for cell in notebook.code if "assert" in cell.code)
    return any(re.search(r"\bplain\w*", code) for code in tests)


def _without_scaffold(notebook: Notebook) -> list[str]:
    """Exercises that no scaffold cell follows."""
    bare, waiting = [], None
    for cell in notebook.cells:
        if cell.kind == "code":
            if cell.source.startswith("#| eval: false"):
                waiting = None
            continue
        for title in re.findall(r"^### (Exercise [^\n]*)$", cell.source, re.M):
            bare += [waiting] if waiting else []
            waiting = title
    return bare + ([waiting] if waiting else [])


def complaints(notebook: Notebook) -> list[str]:
    """What is wrong with a notebook; nothing, if it is as it has to be."""
    found = []
    wide = [line for line in notebook.lines if len(line) > WIDEST]
    long = [
        cell
        for cell in notebook.code
        if not cell.is_folded and len(cell.code.splitlines()) > LONGEST
    ]
    found += [f"{len(wide)} code lines over {WIDEST} columns"] if wide else []
    found += [f"{len(long)} visible cells over {LONGEST} lines"] if long else []
    found += [f"imports itself: {line}" for line in self_imports(notebook)]
    if any("`" in line for line in notebook.summaries):
        found.append("a code-summary with `, which ends the cell's fence on the site")
    if "TODO" in notebook.prose:
        found.append("a TODO is left")
    if notebook.is_chapter:
        found += _chapter_complaints(notebook)
    if notebook.is_method_chapter:
        found += _method_complaints(notebook)
    return found


def _chapter_complaints(notebook: Notebook) -> list[str]:
    found = []
    exercises = re.findall(r"^### Exercise \d+\.\d+", notebook.prose, re.M)
    quiz = re.findall(r"<details>\s*<summary>\d\. ", notebook.prose)
    if not re.search(r"!\[[^\]]{20,}\]\(drawings/\w+\.svg\)", notebook.prose):
        found.append("no drawing with a text alternative")
    if "> **Time and cost**: " not in notebook.prose:
        found.append("no line of time and cost")
    if not 3 <= len(exercises) <= 6:
        found.append(f"{len(exercises)} exercises (### Exercise N.1: title)")
    found += [f"no scaffold below {title!r}" for title in _without_scaffold(notebook)]
    if len(quiz) != 5:
        found.append(f"{len(quiz)} quiz questions with folded answers, not 5")
    return found


def _method_complaints(notebook: Notebook) -> list[str]:
    found = []
    if not re.search(r"(?m)^> \*\*Algorithm\b", notebook.prose):
        found.append("no algorithm box (> **Algorithm.** ...)")
    if "$$" not in notebook.prose:
        found.append("no displayed objective")
    plain = [
        cell for cell in notebook.after("The plain version") if cell.kind == "code"
    ]
    lengths = [len(cell.code.splitlines()) for cell in plain]
    if not any(10 <= length <= LONGEST for length in lengths):
        found.append(
            "no plain version (## The plain version, a cell of 10 to 40 lines)"
        )
    if not _is_plain_compared(notebook):
        found.append("no cell that compares the plain version with the class")
    return found


def figures(notebook: Notebook) -> dict:
    """A row of the table."""
    longest = max((len(cell.code.splitlines()) for cell in notebook.code), default=0)
    visible = [
        len(cell.code.splitlines()) for cell in notebook.code if not cell.is_folded
    ]
    return {
        "notebook": notebook.name,
        "words": notebook.words,
        "code lines": len(notebook.lines),
        f"over {WIDEST}": sum(len(line) > WIDEST for line in notebook.lines),
        "longest cell": longest,
        f"visible over {LONGEST}": sum(length > LONGEST for length in visible),
        "drawings": len(re.findall(r"\(drawings/", notebook.prose)),
        "we per 1000": round(
            1000 * len(WE.findall(notebook.prose)) / max(notebook.words, 1), 1
        ),
        "wrong": len(complaints(notebook)),
    }


def all_notebooks() -> list[Path]:
    """The chapters in their order, then the engine room."""
    nbs = PROJECT / "nbs"
    return [*sorted(nbs.glob("[01]*.ipynb")), *sorted((nbs / "engine").glob("*.ipynb"))]


def main(paths: list[str]) -> int:
    """Print the table and what is wrong; return the exit code."""
    notebooks = [Notebook(path) for path in paths or all_notebooks()]
    table = pd.DataFrame([figures(notebook) for notebook in notebooks])
    print(table.to_string(index=False))
    wrong = [(book.name, words) for book in notebooks for words in complaints(book)]
    for name, words in wrong:
        print(f"{name}: {words}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
