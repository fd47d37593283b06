"""Outputs are older than the code when what made them changed, and only then."""

import json
import sys

import pytest

from tools import fresh, reach

PACKAGE = {
    "__init__": '_MODULES = {"rooms.one": ["first"], "rooms.two": ["Second"]}\n',
    "rooms/__init__": "",
    "rooms/one": '''
from .three import deep, SIZE, _kept

_LIMIT = 5

def first(x):
    """What it does."""
    return deep(x) + SIZE + _kept() if x < _LIMIT else 0

def other(x):
    return x
''',
    "rooms/two": """
class Second:
    def fit(self):
        return 1

    def draw(self):
        return 2
""",
    "rooms/three": """
SIZE = 3
_LIMIT = 10

def deep(x):
    return x

def _kept():
    return 7

def unused():
    return 4
""",
}
CODE = "from tiny import first\nfirst(2)"


def project(folder, **changes) -> "reach.Package":
    """A small package, some modules of which have another text."""
    for name, text in {**PACKAGE, **changes}.items():
        path = folder / "tiny" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return reach.Package(folder / "tiny")


def cell(source: str, name: str = "", outputs=()) -> "fresh.Cell":
    content = {"id": name, "cell_type": "code", "metadata": {}, "source": source}
    return fresh.Cell({**content, "outputs": list(outputs), "execution_count": None})


def digest(package, source=CODE) -> str:
    """What a cell that reaches a package depends on."""
    one = cell(source)
    pieces = package.reached(one.says, package.imported(one.every))
    return reach.digest([one.text, *(piece.text for piece in pieces)])


@pytest.mark.parametrize(
    ("module", "old", "new", "matters"),
    [
        ("rooms/one", "deep(x) + SIZE", "deep(x) - SIZE", True),
        ("rooms/three", "SIZE = 3", "SIZE = 4", True),  # what it imports
        ("rooms/three", "    return x\n", "    return -x\n", True),
        ("rooms/three", "return 4", "return 5", False),  # nobody says this name
        ("rooms/three", "return 7", "return 8", True),  # private, but imported
        ("rooms/one", "_LIMIT = 5", "_LIMIT = 6", True),
        ("rooms/three", "_LIMIT = 10", "_LIMIT = 11", False),  # another's of this name
        ("rooms/one", "What it does.", "What else it does.", False),
        ("rooms/one", "    return x\n", "    # why\n    return (x)\n", False),
        ("rooms/two", "return 1", "return 7", False),  # not imported
    ],
)
def test_a_cell_ages_with_what_it_reaches(tmp_path, module, old, new, matters):
    before = digest(project(tmp_path / "before"))
    assert old in PACKAGE[module]
    changed = {module: PACKAGE[module].replace(old, new)}
    after = digest(project(tmp_path / "after", **changed))
    assert (before != after) is matters


def test_a_method_counts_when_somebody_says_its_name(tmp_path):
    package = project(tmp_path)
    fitted = "from tiny import Second\nSecond().fit()"
    changed = {"rooms/two": PACKAGE["rooms/two"].replace("return 2", "return 3")}
    other = project(tmp_path / "other", **changed)
    assert digest(package, fitted) == digest(other, fitted)
    drawn = fitted.replace("fit", "draw")
    assert digest(package, drawn) != digest(other, drawn)


@pytest.mark.parametrize(
    ("first", "second"),
    [("x = 1", "x=1  # one"), ("def f():\n    'a'\n    return 1", "def f(): return 1")],
)
def test_layout_comments_and_docstrings_do_not_count(first, second):
    assert cell(first).text == cell(second).text != cell("x = 2").text


def test_a_slow_cell_needs_what_makes_its_names():
    above = [
        cell("a = 1", "a"),
        cell("b = []", "b"),
        cell("b.append(a)", "fill"),
        cell("print(b)", "shown"),
        cell("c = 3", "c"),
        cell("torch.manual_seed(0)", "seed"),
    ]
    used = fresh.needed(cell("#| slow\nresult = sum(b)", "last"), above)
    assert [one.content["id"] for one in used] == ["a", "b", "fill", "last"]
    used = fresh.needed(cell("torch.rand(1)", "last"), above)
    assert [one.content["id"] for one in used] == ["seed", "last"]


SOURCES = {"one": "a = 2", "two": "#| slow\na * 3", "three": "#| cuda\na * 4"}


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A small notebook beside a small package: its path."""
    monkeypatch.setattr(fresh, "package", lambda: project(tmp_path))
    cells = [cell(source, name).content for name, source in SOURCES.items()]
    cells[1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "6"}]
    spec = {"display_name": "p", "language": "python", "name": "python3"}
    about = {"kernelspec": spec}
    content = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps(content))
    return path


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def names(path) -> list[str]:
    return [name for name, *_ in fresh.Notebook(path).stale()]


def test_a_run_makes_outputs_fresh_and_a_change_makes_them_stale(
    notebook, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["fresh.py", str(notebook)])
    assert names(notebook) == ["", "two", "three"] and fresh.main() == 1
    assert "its outputs are older than the code" in capsys.readouterr().out
    assert fresh.made_with(notebook)["two"].startswith("Made with an earlier version, ")
    fresh.run(notebook, ["slow"])
    kept = json.loads(notebook.read_text())["cells"]
    assert kept[1]["outputs"][0]["data"]["text/plain"] == ["6"]
    assert names(notebook) == ["three"] and fresh.main() == 0  # a GPU may be missing
    assert "cuda cell three" in capsys.readouterr().out
    version = f"Made with version {fresh.__version__}"
    assert fresh.made_with(notebook) == {"two": f"{version}."}
    changed(notebook, "a * 3", "a * 5")
    assert names(notebook) == ["two", "three"] and fresh.main() == 0
    assert fresh.made_with(notebook) == {"two": f"{version}, code since changed."}
    changed(notebook, "a = 2", "a = 8")
    assert names(notebook) == ["", "two", "three"] and fresh.main() == 1


def test_what_is_saved_while_a_notebook_runs_stays(notebook):
    changed(notebook, "a = 2", "open('page.ipynb', 'a').write(' ')")
    before = notebook.read_text()
    with pytest.raises(RuntimeError, match="was changed while it ran"):
        fresh.run(notebook, [])
    assert notebook.read_text() == before + " "


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import scale\nfolder = 'benchmarks'", 1),
        ("from scale import cost\nfolder = 'benchmarks'", 1),
        ("command = ['benchmarks', 'scale.py']", 1),
        ("scale = 'benchmarks'", 0),  # a variable
        ("import scale", 0),  # another module of that name
    ],
)
def test_benchmarks_count_where_a_notebook_names_their_folder(notebook, code, count):
    changed(notebook, "a = 2", json.dumps(code)[1:-1])
    named = fresh.Notebook(notebook)
    assert [*named._files(named.cells)] == [fresh.benchmarks()["scale"]] * count


def test_the_run_that_made_weights_is_current_as_long_as_they_ship(
    notebook, monkeypatch, tmp_path
):
    made = tmp_path / "weights"
    monkeypatch.setattr(fresh, "RECORDS", {"page": made})
    changed(notebook, "a = 2", f"a = open({str(made)!r}, 'w').write('new')")
    made.write_bytes(b"old")
    fresh.run(notebook, ["slow"])
    changed(notebook, "a = ", "a = 1 + ")
    assert names(notebook) == ["", "three"]
    assert fresh.made_with(notebook)["two"].endswith("which ship.")
    made.write_bytes(b"newer")
    assert names(notebook) == ["", "two", "three"]
