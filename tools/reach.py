"""What code can change a result: the parts of the package that a piece of code reaches.

The package is read, never imported. It is cut into pieces: functions, methods, classes,
assignments, and what runs when a module is imported. A piece is reached by its name:
whoever says `top_k` anywhere reaches every piece of that name, in all modules which are
imported on the way. A private name that stands alone means its own module, unless it is
imported. That is more than what runs, never less, as long as names are not put together
at run time; a string that is a name counts as one.

Docstrings, comments and layout are no part of a piece.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
NOT_CODE = {"kind", "type_comment"}  # fields of a syntax tree
IDENTIFIER = re.compile(r"[^\W\d]\w*")


def canonical(node: object) -> str:
    """A syntax tree as text, the same in every Python: without empty fields, places and
    docstrings."""
    if isinstance(node, list):
        return f"[{', '.join(map(canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False):
        fields["body"] = node.body[1:]
    parts = [
        f"{name}={canonical(value)}"
        for name, value in fields.items()
        if name not in NOT_CODE and value is not None and value != []
    ]
    return f"{type(node).__name__}({', '.join(parts)})"


def digest(texts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that change when a text does."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()[:16]


def names_in(nodes: Iterable[ast.AST], module: str | None = None) -> set[str]:
    """Every name that nodes of a syntax tree say, those in strings included.

    module: in which the code stands, for which "module:_name" is a private name of it.
    """
    found: set[str] = set()
    for child in nodes:
        if isinstance(child, ast.Name):
            own = module is not None and child.id.startswith("_")
            found.add(f"{module}:{child.id}" if own else child.id)
        elif isinstance(child, ast.Attribute):
            found.add(child.attr)
        elif isinstance(child, ast.alias) and child.asname:
            found |= {child.asname, child.name.rpartition(".")[2]}
        elif isinstance(child, ast.alias) and child.name.startswith("_"):
            found.add(child.name)
        elif is_word(child):
            found.add(child.value)
    return found


def is_word(node: ast.AST) -> bool:
    """Whether a node is a string that is a name."""
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text and bool(IDENTIFIER.fullmatch(node.value))


@dataclass
class Piece:
    """A function, method, class, assignment, or what an import runs (no names)."""

    module: str
    names: set[str]
    nodes: list[ast.stmt]
    owner: str = ""  # the class of a method

    @cached_property
    def text(self) -> str:
        """What is hashed."""
        code = ", ".join(map(canonical, self.nodes))
        return f"{self.module} {self.owner} {sorted(self.names)} {code}"

    @cached_property
    def every(self) -> list[ast.AST]:
        """The nodes of its syntax tree."""
        return [child for node in self.nodes for child in ast.walk(node)]

    @cached_property
    def says(self) -> set[str]:
        """The names in it."""
        return names_in(self.every, self.module)

    def is_said(self, name: str, names: set[str]) -> bool:
        """Whether names have one of its module among them."""
        return name in names or f"{self.module}:{name}" in names

    def is_reached(self, names: set[str]) -> bool:
        """Whether somebody who says these names runs it."""
        if self.owner and not self.is_said(self.owner, names):
            return False
        own = self.names
        always = not own or any(name.startswith("__") for name in own)
        return always or any(self.is_said(name, names) for name in own)


def assigned(node: ast.stmt) -> set[str]:
    """The names that an assignment makes; nothing for any other statement."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = getattr(node, "targets", None) or [node.target]
        found = [child for target in targets for child in ast.walk(target)]
        if not any(
            isinstance(child, (ast.Attribute, ast.Subscript)) for child in found
        ):
            return {child.id for child in found if isinstance(child, ast.Name)}
    return set()


def pieces_of(module: str, tree: ast.Module) -> Iterator[Piece]:
    """A module in pieces."""
    at_import: list[ast.stmt] = []
    for node in tree.body:
        names = assigned(node)
        if names == {"__all__"}:
            continue
        if isinstance(node, ast.ClassDef):
            yield from _pieces_of_class(module, node)
        elif isinstance(node, FUNCTIONS):
            yield Piece(module, {node.name}, [node])
        elif names:
            yield Piece(module, names, [node])
        else:
            at_import.append(node)
    yield Piece(module, set(), at_import)


def _pieces_of_class(module: str, node: ast.ClassDef) -> Iterator[Piece]:
    methods = [child for child in node.body if isinstance(child, FUNCTIONS)]
    rest = [child for child in node.body if child not in methods]
    bare = ast.ClassDef(
        name=node.name,
        bases=node.bases,
        keywords=node.keywords,
        body=rest or [ast.Pass()],
        decorator_list=node.decorator_list,
    )
    yield Piece(module, {node.name}, [bare])
    for method in methods:
        yield Piece(module, {method.name}, [method], owner=node.name)


@dataclass
class Package:
    """The pieces of a package, and what reaches what.

    folder: with its modules.
    """

    folder: Path
    pieces: dict[str, list[Piece]] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.folder.name
        self.pieces = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = path.relative_to(self.folder).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            if module != "_modidx":
                tree = ast.parse(path.read_text(encoding="utf-8"))
                self.pieces[module] = list(pieces_of(module, tree))

    @cached_property
    def homes(self) -> dict[str, str]:
        """Public names, each with its module: the table `_MODULES` of the package."""
        for piece in self.pieces[""]:
            if piece.names == {"_MODULES"}:
                table = ast.literal_eval(piece.nodes[0].value)
                return {name: home for home, names in table.items() for name in names}
        return {}

    @cached_property
    def _imports(self) -> dict[int, set[str]]:
        """The modules that each piece imports."""
        return {
            id(piece): self.imported(piece.every, module)
            for module, pieces in self.pieces.items()
            for piece in pieces
        }

    def imported(self, nodes: Iterable[ast.AST], module: str = "") -> set[str]:
        """The modules of the package that nodes of a syntax tree import.

        module: in which the code stands, for relative imports.
        """
        found: set[str] = set()
        for child in nodes:
            if isinstance(child, ast.Import):
                for alias in child.names:
                    found |= self._below(alias.name)
            elif isinstance(child, ast.ImportFrom):
                found |= self._from(child, module)
            elif isinstance(child, ast.Constant) and isinstance(child.value, str):
                found |= self._below(child.value)
        return found

    def _from(self, node: ast.ImportFrom, module: str) -> set[str]:
        base = node.module or ""
        if node.level:
            above = [self.name, *module.split(".")[: -node.level]]
            base = ".".join([*above, base] if base else above)
        found = self._below(base)
        for alias in node.names:
            found |= self._below(f"{base}.{alias.name}")
            if base == self.name and alias.name in self.homes:
                found.add(self.homes[alias.name])
        return found

    def _below(self, dotted: str) -> set[str]:
        """The module that a dotted name means, with the packages it lies in."""
        head, *rest = dotted.split(".")
        if head != self.name:
            return set()
        found = (".".join(rest[:count]) for count in range(len(rest) + 1))
        return {module for module in found if module in self.pieces}

    def reached(self, names: set[str], modules: set[str]) -> list[Piece]:
        """All pieces that some code reaches, in the order of the package.

        names: that the code says.
        modules: that it imports.
        """
        names, modules = set(names), set(modules)
        found: dict[int, Piece] = {}
        before = -1
        while before < len(found):
            before = len(found)
            if "" in modules:
                modules |= {self.homes[name] for name in names & set(self.homes)}
            for module in sorted(modules - {""}):  # its table says every name
                for piece in self.pieces[module]:
                    if id(piece) not in found and piece.is_reached(names):
                        found[id(piece)] = piece
                        names |= piece.says
                        modules |= self._imports[id(piece)]
        every = (piece for pieces in self.pieces.values() for piece in pieces)
        return [piece for piece in every if id(piece) in found]
