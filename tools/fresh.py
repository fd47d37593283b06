"""Whether the notebooks show what today's code makes.

`python tools/fresh.py` names what is stale; the exit code is 1 if an ordinary cell is.
`--run ordinary` makes these outputs anew, `--run slow` those of slow cells, too:
notebook by notebook, so it can be stopped at any time and goes on where it was.

A cell depends on its own code, on the cells above that make what it uses, and on the
parts of the package which all these reach (`reach.py`), with the data of the built-in
CLIP. A notebook keeps a hash of that in its metadata, `made_with`: one for all ordinary
cells together, and one for every slow or cuda cell, with the version and what it cost.

The slow cells of `RECORDS` trained weights that ship. Their outputs are the record of
that run: current as long as these weights ship, and no code can make them older.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import symtable
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from clipadapt import __version__  # noqa: E402
from tools.reach import Package, canonical, digest, names_in  # noqa: E402

STAMP = "made_with"
MAGIC = re.compile(r"(?m)^(\s*)[%!].*$")
FILE = re.compile(r"[\w-]+(/[\w-]+)*\.\w+")  # a file beside the notebook, or below
RECORDS = {"tiny_clip": Path("clip/builtin/weights.safetensors")}
LATER = ("slow", "cuda")  # flags of cells that `make test` does not run
LIBRARIES = ("plt", "sns", "np", "pd", "torch", "warnings", "sys", "os")
SETTING = re.compile(r"set|seed|manual_seed|use|filter|simplefilter|environ|path")


@cache
def package() -> Package:
    """The package, read once."""
    return Package(PROJECT / "clipadapt")


@cache
def data() -> str:
    """The files of the package that are no code: weights, templates, tables."""
    paths = (path for path in package().folder.rglob("*") if path.is_file())
    paths = [p for p in sorted(paths) if p.suffix not in (".py", ".pyc", ".html")]
    return digest(f"{path.name} {path.read_bytes().hex()}" for path in paths)


@cache
def benchmarks() -> dict[str, str]:
    """The code of every benchmark, by its name."""
    paths = sorted((PROJECT / "benchmarks").glob("*.py"))
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    return {name: canonical(tree) for name, tree in trees.items()}


@dataclass
class Cell:
    """A code cell.

    content: as the notebook has it.
    """

    content: dict

    @cached_property
    def source(self) -> str:
        """Its text."""
        return "".join(self.content["source"])

    @cached_property
    def flag(self) -> str:
        """Its first directive: "slow", "cuda", "notest", "export" ..., or ""."""
        found = re.match(r"#\|\s*([\w-]+)\s*$", self.source.split("\n")[0])
        return found.group(1) if found else ""

    @property
    def runs(self) -> bool:
        """Whether a run of the notebook runs it."""
        return self.flag != "notest" and not re.search(
            r"(?m)^#\|\s*eval:\s*false\s*$", self.source
        )

    def is_run_with(self, flags: Collection[str]) -> bool:
        """Whether a run with these flags runs it."""
        return self.runs and (self.flag not in LATER or self.flag in flags)

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree. A line for IPython is an expression that says its text."""
        code = MAGIC.sub(lambda line: f"{line[1]}{line[0].strip()!r}", self.source)
        return ast.parse(code)

    @cached_property
    def every(self) -> list[ast.AST]:
        """The nodes of that tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def text(self) -> str:
        """What is hashed of it."""
        return canonical(self.tree)

    @cached_property
    def says(self) -> set[str]:
        """The names in it, those of modules that it imports included."""
        found = names_in(self.every)
        for node in self.every:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
        return found

    @cached_property
    def imports(self) -> set[str]:
        """The modules of the package that it imports."""
        return package().imported(self.every)

    @cached_property
    def files(self) -> list[str]:
        """What may be a file in it: strings that look like a path."""
        texts = (node.value for node in self.every if isinstance(node, ast.Constant))
        return sorted({t for t in texts if isinstance(t, str) and FILE.fullmatch(t)})

    @cached_property
    def benchmarks(self) -> set[str]:
        """The benchmarks that it imports, or names in a string to start them."""
        found = {node.value for node in self.every if isinstance(node, ast.Constant)}
        for node in self.every:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
        names = {one.removesuffix(".py") for one in found if isinstance(one, str)}
        return names & benchmarks().keys()

    @cached_property
    def uses(self) -> set[str]:
        """The names that it takes from cells above."""
        found, own = set(), set()
        for node in self.tree.body:
            table = symtable.symtable(ast.unparse(node), "a cell", "exec")
            found |= _taken(table) - own
            own |= _bound(table)
        return found

    @cached_property
    def makes(self) -> set[str]:
        """The names that it gives a value, or whose value it may change."""
        found = _bound(symtable.symtable(ast.unparse(self.tree), "a cell", "exec"))
        for node in self.every:
            found |= _changed(node)
        return found


def _taken(table: symtable.SymbolTable) -> set[str]:
    """The names of the notebook that some code reads, its functions included."""
    at_top = table.get_type() == "module"
    found = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (at_top or symbol.is_global())
    }
    return found.union(*map(_taken, table.get_children()))


def _bound(table: symtable.SymbolTable) -> set[str]:
    """The names of the notebook to which some code gives a value."""
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }


def _changed(node: ast.AST) -> set[str]:
    """The names on which a statement calls a method, or sets an item or attribute."""
    if isinstance(node, ast.Expr):
        targets = [node.value]
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
        targets = getattr(node, "targets", None) or [node.target]
    else:
        return set()
    return {name for target in targets if (name := _root(target))}


def _root(node: ast.expr) -> str:
    """The name at the head of `name.part[3].method()`. Of a module only what sets
    something counts, for example a seed."""
    last = ""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        last = last or getattr(node, "attr", "")
        node = node.func if isinstance(node, ast.Call) else node.value
    name = node.id if isinstance(node, ast.Name) else ""
    return "" if name in LIBRARIES and not SETTING.match(last) else name


def needed(cell: Cell, above: list[Cell]) -> list[Cell]:
    """The cells that make what a cell uses, and the cell itself, in their order."""
    names, found = set(cell.uses), [cell]
    for other in reversed(above):
        if not other.makes.isdisjoint(names):
            found.append(other)
            names |= other.uses
    return found[::-1]


@dataclass
class Notebook:
    """A notebook and what its outputs were made with."""

    path: Path
    content: dict = field(init=False)

    def __post_init__(self) -> None:
        self.content = json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def cells(self) -> list[Cell]:
        """The code cells that can run."""
        every = (Cell(c) for c in self.content["cells"] if c["cell_type"] == "code")
        return [cell for cell in every if cell.runs]

    @property
    def ordinary(self) -> list[Cell]:
        """Those that `make test` runs."""
        return [cell for cell in self.cells if cell.flag not in LATER]

    @property
    def later(self) -> list[Cell]:
        """The slow cells that kept an output, and those for a GPU."""
        slow = [c for c in self.cells if c.flag == "slow" and c.content["outputs"]]
        return [c for c in self.cells if c in slow or c.flag == "cuda"]

    @cached_property
    def has_benchmarks(self) -> bool:
        """Whether some cell names their folder."""
        return any("benchmarks" in cell.source for cell in self.cells)

    def is_record(self, cell: Cell | None) -> bool:
        """Whether a cell belongs to the run that made weights which ship."""
        return cell is not None and cell.flag == "slow" and self.path.stem in RECORDS

    def now(self, cell: Cell | None = None) -> str:
        """The hash of today's code, of all ordinary cells or of one other; for a record
        the hash of what it made."""
        if self.is_record(cell):
            made = package().folder / RECORDS[self.path.stem]
            return digest([made.read_bytes().hex()])
        used = self.ordinary
        if cell is not None:
            above = self.cells[: self.cells.index(cell)]
            used = needed(cell, [other for other in above if other.flag != "cuda"])
        names = set().union(*(one.says for one in used))
        modules = set().union(*(one.imports for one in used))
        pieces = package().reached(names, modules)
        files = [*self._files(used)]
        texts = [one.text for one in used] + [piece.text for piece in pieces]
        return digest([*texts, *files, data()])

    def _files(self, cells: list[Cell]) -> Iterator[str]:
        """The files that cells name, and the benchmarks that they import."""
        for cell in cells:
            for name in cell.files:
                path = self.path.parent / name
                if path.is_file():
                    yield f"{name} {path.read_bytes().hex()}"
            if self.has_benchmarks:
                for name in sorted(cell.benchmarks):
                    yield benchmarks()[name]

    def stale(self, ordinary: bool = False) -> Iterator[tuple[str, str, float]]:
        """What is older than today's code: the id of a cell ("" for the ordinary ones),
        its flag, and the seconds it took.

        ordinary: look at no other cells, which takes half the time.
        """
        stamp = self.content["metadata"].get(STAMP, {})
        if stamp.get("code") != self.now():
            yield "", "", stamp.get("seconds", 0)
        for cell in () if ordinary else self.later:
            stamp = cell.content["metadata"].get(STAMP, {})
            if stamp.get("code") != self.now(cell):
                yield cell.content["id"], cell.flag, stamp.get("seconds", 0)


def run(path: Path, flags: Collection[str]) -> None:
    """Run a notebook and keep its outputs, with what they were made with.

    flags: of the cells to run beside the ordinary ones; others keep what they have.

    Raises RuntimeError when somebody saved the notebook while it ran: that stays.
    """
    import nbformat  # slow to import, and the check does without
    from nbclient import NotebookClient

    from clipadapt.images.files import whole_file

    before, notebook = path.read_bytes(), Notebook(path)
    stamps = _stamps(notebook, flags)  # of the code that runs, not of a later one
    content = nbformat.read(path, as_version=4)
    waiting = []
    for cell in content.cells:
        one = Cell(cell)
        if cell.cell_type == "code" and not one.is_run_with(flags):
            waiting.append((cell, cell.pop("outputs"), cell.pop("execution_count")))
            cell.cell_type = "raw"
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(content, timeout=None, resources=resources)
    client.extra_arguments = ["--log-level=ERROR"]  # it warns of its own connection
    client.store_widget_state = False  # its picture is enough
    client.execute()
    for cell, outputs, count in waiting:
        cell.update(cell_type="code", outputs=outputs, execution_count=count)
    records = [cell for cell in notebook.cells if notebook.is_record(cell)]
    made = {cell.content["id"]: notebook.now(cell) for cell in records}
    stamps |= {name: made[name] for name in stamps.keys() & made.keys()}
    _stamp(content, stamps, {cell.content["id"] for cell in notebook.ordinary})
    if path.read_bytes() != before:
        raise RuntimeError(f"{path} was changed while it ran, and stays as it is")
    with whole_file(path) as draft:
        nbformat.write(content, str(draft))


def _stamps(notebook: Notebook, flags: Collection[str]) -> dict[str, str]:
    """The hashes to keep: that of the ordinary cells by "", of others by their ids."""
    later = [cell for cell in notebook.cells if cell.flag in LATER]
    own = {cell.content["id"]: cell for cell in later if cell.flag in flags}
    return {"": notebook.now(), **{name: notebook.now(own[name]) for name in own}}


def _stamp(content: NotebookNode, stamps: dict[str, str], ordinary: set[str]) -> None:
    """Write into a notebook that has run what its outputs were made with."""
    seconds = {cell.id: _seconds(cell) for cell in content.cells}
    places = {cell.id: cell.metadata for cell in content.cells}
    seconds[""] = sum(seconds[name] for name in ordinary)
    places[""] = content.metadata
    for name, code in stamps.items():
        places[name][STAMP] = {
            "version": __version__,
            "code": code,
            "seconds": round(seconds[name]),
        }


def _seconds(cell: NotebookNode) -> float:
    """How long a cell ran; nothing for one that did not."""
    times = cell.metadata.pop("execution", {})
    names = "iopub.execute_input", "shell.execute_reply"
    if not all(name in times for name in names):
        return 0.0
    begun, ended = (datetime.fromisoformat(times[name].rstrip("Z")) for name in names)
    return (ended - begun).total_seconds()


def made_with(path: Path) -> dict[str, str]:
    """What the site says of every slow or cuda cell that has an output, by its id."""
    notebook, said = Notebook(path), {}
    old = {name for name, *_ in notebook.stale()}
    for cell in notebook.later:
        name, stamp = cell.content["id"], cell.content["metadata"].get(STAMP, {})
        if cell.content["outputs"]:
            version = f"version {stamp['version']}" if stamp else "an earlier version"
            since = ", code since changed" if name in old else ""
            if notebook.is_record(cell):
                since = ", by the run that made the weights which ship" * (not since)
            said[name] = f"Made with {version}{since}."
    return said


def in_words(name: str, flag: str, seconds: float) -> str:
    """What is older than the code."""
    cost = f" ({seconds:g} s when last run)" if seconds else ""
    if not flag:
        return f"its outputs are older than the code{cost}"
    if flag == "cuda":
        return f"the cuda cell {name} has not run with this code{cost}"
    return f"the slow cell {name} is older than the code{cost}"


def main() -> int:
    """Name what is stale, or make it anew; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--run", choices=["ordinary", *LATER])
    parser.add_argument("--ordinary", action="store_true", help="name no other cells")
    parser.add_argument("--again", action="store_true", help="run what is fresh, too")
    given = parser.parse_args()
    flags = [given.run] if given.run in LATER else []
    wanted, failed = {"", *(flags or LATER)}, False
    if given.ordinary or given.run == "ordinary":
        wanted = {""}
    for path in given.notebooks or sorted((PROJECT / "nbs").rglob("[!.]*.ipynb")):
        path = path.resolve()
        old = stale(path, wanted)
        if given.run and (old or given.again):
            print(f"{shown(path)} ...", flush=True)
            run(path, flags)
            old = stale(path, wanted)
        for name, flag, seconds in old:
            failed |= not flag
            print(f"{shown(path)}: {in_words(name, flag, seconds)}", flush=True)
    return int(failed)


def stale(path: Path, wanted: Collection[str]) -> list[tuple[str, str, float]]:
    """What `Notebook.stale` says of a notebook; `wanted`: the flags of the cells, ""
    for the ordinary ones."""
    found = Notebook(path).stale(ordinary=wanted == {""})
    return [one for one in found if one[1] in wanted]


def shown(path: Path) -> str:
    """The path of a notebook, as short as it is clear."""
    inside = path.is_relative_to(PROJECT)
    return path.relative_to(PROJECT).as_posix() if inside else path.name


if __name__ == "__main__":
    sys.exit(main())
