"""The API reference: one Markdown page a module, from signatures and docstrings.

Nothing is imported, so it takes no time and shows defaults as they are written.

python tools/api.py FOLDER     write the pages (tools/docs.py does that)
"""

import ast
import html
import json
import re
import sys
from copy import copy
from functools import cache
from pathlib import Path

import kept

package = kept.project / "clipadapt"


# The rooms of the house, in the order in which images become answers.
ROOMS = {
    "images": "Pictures in, whatever they are",
    "clip": "A frozen CLIP, and what is kept of it",
    "learning": "The tools that every method shares",
    "methods": "One file a method",
    "judge": "Which method, how good, how sure",
    "app": "Without writing Python",
}


@cache
def modules() -> dict[str, str]:
    """The modules that notebooks export, module -> notebook: room by room, and in a
    room each behind those that it imports, else in the order of the sidebar."""
    found = {
        name: chapter for chapter in kept.chapters() if (name := kept.module(chapter))
    }
    return {
        name: found[name]
        for room in ROOMS
        for name in _in_order([name for name in found if _room(name) == room])
    }


def _room(module: str) -> str:
    return module.partition(".")[0]


def _in_order(names: list[str]) -> list[str]:
    """Modules of a room, each behind those that it imports."""
    ordered: list[str] = []
    while len(ordered) < len(names):
        waiting = [name for name in names if name not in ordered]
        ready = [name for name in waiting if not imported(name) & set(waiting) - {name}]
        ordered.append((ready or waiting)[0])
    return ordered


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports where it is loaded."""
    found = set()
    for node in parse(module).body:
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = f"clipadapt.{module}".split(".")[: -node.level]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("clipadapt.") for name in found}


def path_of(module: str) -> Path:
    return package / f"{module.replace('.', '/')}.py"


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def public(tree: ast.Module) -> list[str]:
    """The names in __all__."""
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "__all__"
    ]
    return list(ast.literal_eval(found[0].value)) if found else []


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Public name -> where it is defined, in the order of the file: functions, classes,
    constants."""
    names, found = set(public(tree)), {}
    for node in tree.body:
        targets = (
            [node.name]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            else [
                target.id
                for target in getattr(node, "targets", [getattr(node, "target", None)])
                if isinstance(target, ast.Name)
            ]
        )
        found |= {
            name: node
            for name in targets
            if name in names and (name.isupper() or not isinstance(node, ast.Assign))
        }
    return found


def index() -> dict[str, str]:
    """Public name -> module, for names that are public in one module only."""
    owners: dict[str, list[str]] = {}
    for module in modules():
        for name in definitions(parse(module)):
            owners.setdefault(name, []).append(module)
    return {name: owner[0] for name, owner in owners.items() if len(owner) == 1}


def escape(text: str) -> str:
    """Plain text as Markdown that shows it as it is; what stands in backticks is left
    alone."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part
        if part.startswith("`")
        else re.sub(r"([\\*_$<>\[\]|~^#@{}])", r"\\\1", part)
        for part in parts
    )


def prose(text: str) -> str:
    """A docstring as paragraphs. Lists in docstrings stay lists."""
    return "\n\n".join(escape(part) for part in re.split(r"\n\s*\n", text) if part)


def split_parameters(text: str, known: set[str]) -> tuple[str, dict[str, str], str]:
    """A docstring in three: what stands above the parameters, the parameters, the rest.

    A parameter is a line `name: text` or `name, other: text` with names of the
    signature; lines that are indented go on with it. The second name of a line is said
    to be described with the first.
    """
    above, described, below = [], {}, []
    names: list[str] = []
    for line in text.splitlines():
        found = re.match(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(.*)", line)
        listed = [name.lstrip("*") for name in found[1].split(", ")] if found else []
        if listed and set(listed) <= known and not set(listed) & set(described):
            names = listed
            described |= dict.fromkeys(names[1:], f"See `{names[0]}`.")
            described[names[0]] = found[2]
        elif names and line.startswith(" "):
            described[names[0]] += " " + line.strip()
        else:
            names = []
            (below if described else above).append(line)
    return "\n".join(above).strip(), described, "\n".join(below).strip()


def inline(text: str) -> str:
    """A line of a docstring as HTML: what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def table(shown: list[str], described: dict[str, str]) -> str:
    """The parameters of a signature as a table: name, type, default, what it is."""
    lines = []
    for argument in shown:
        name, annotation, default = taken_apart(argument)
        if not name:
            continue
        cells = [f"<code>{html.escape(name, quote=False)}</code>"]
        cells += [
            f"<code>{html.escape(part, quote=False)}</code>" if part else ""
            for part in (annotation, default)
        ]
        cells.append(inline(described.get(name.lstrip("*"), "")))
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{head}</th>" for head in ("parameter", "type", "default", ""))
    return (
        '```{=html}\n<div class="parameters"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>\n```"
    )


def taken_apart(argument: str) -> tuple[str, str, str]:
    """Name, annotation and default of an argument as `arguments` shows it."""
    if argument in ("*", "/"):
        return "", "", ""
    stars = re.match(r"\**", argument)[0]
    made = ast.parse(f"def f({argument.removeprefix(stars)}): pass").body[0].args
    annotation = made.args[0].annotation
    return (
        stars + made.args[0].arg,
        ast.unparse(annotation) if annotation else "",
        ast.unparse(made.defaults[0]) if made.defaults else "",
    )


def description(text: str, shown: list[str], inherited: dict[str, str]) -> list[str]:
    """A docstring for a page, with its parameters as a table where it lists them."""
    known = {taken_apart(argument)[0].lstrip("*") for argument in shown} - {""}
    above, described, below = split_parameters(text, known)
    described = {
        name: words for name, words in inherited.items() if name in known
    } | described
    if not described:
        return [prose(text)]
    return [prose(above), table(shown, described), prose(below)]


def arguments(node: ast.FunctionDef, method: bool) -> list[str]:
    """Each argument with its annotation and default, as written, without self; "*" and
    "/" where they stand."""
    spec, shown = node.args, []
    plain = spec.posonlyargs + spec.args
    defaults = [None] * (len(plain) - len(spec.defaults)) + spec.defaults
    static = any(
        getattr(decorator, "id", "") == "staticmethod"
        for decorator in node.decorator_list
    )
    for position, (argument, default) in enumerate(zip(plain, defaults)):
        if not (method and not static and position == 0):
            shown.append(one(argument, default))
        if spec.posonlyargs and position == len(spec.posonlyargs) - 1:
            shown.append("/")
    if spec.vararg or spec.kwonlyargs:
        shown.append(f"*{one(spec.vararg, None)}" if spec.vararg else "*")
    shown += [
        one(argument, default)
        for argument, default in zip(spec.kwonlyargs, spec.kw_defaults)
    ]
    return shown + ([f"**{one(spec.kwarg, None)}"] if spec.kwarg else [])


def one(argument: ast.arg, default: ast.expr | None) -> str:
    annotated = argument.arg + (
        f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    )
    return (
        annotated
        if default is None
        else annotated + (" = " if argument.annotation else "=") + ast.unparse(default)
    )


def signature(name: str, shown: list[str], returns: ast.expr | None = None) -> str:
    """A signature as a block of code, one argument a line where it is long."""
    end = f" -> {ast.unparse(returns)}" if returns else ""
    line = f"{name}({', '.join(shown)}){end}"
    if len(line) > 88:
        line = (
            f"{name}(\n"
            + "".join(f"    {argument},\n" for argument in shown)
            + f"){end}"
        )
    return f"```python\n{line}\n```"


def function(
    name: str, node: ast.FunctionDef, heading: str, method: bool = False
) -> list[str]:
    shown = signature(name.split(".")[-1], arguments(node, method), node.returns)
    kind = next(
        (
            decorator.id
            for decorator in node.decorator_list
            if getattr(decorator, "id", "")
            in ("property", "cached_property", "classmethod", "staticmethod")
        ),
        "",
    )
    kind = kind.removeprefix("cached_")
    if kind == "property":
        kind_of_value = f": {ast.unparse(node.returns)}" if node.returns else ""
        shown = f"```python\n{name.split('.')[-1]}{kind_of_value}\n```"
    return [
        f"{heading} {escape(name)} {{#{name}}}",
        *([f"*{kind}*"] if kind else []),
        shown,
        *description(ast.get_docstring(node) or "", arguments(node, method), {}),
    ]


def written(module: str, node: ast.stmt) -> str:
    """The code of a constant as it is written, on lines that fit the page."""
    text = path_of(module).read_text(encoding="utf-8")
    return ast.get_source_segment(text, node) or ast.unparse(node)


def base_of(node: ast.ClassDef, module: str) -> tuple[ast.ClassDef, str] | None:
    """The first base class that the package defines, and its module."""
    names = [base.id for base in node.bases if isinstance(base, ast.Name)]
    for place in (module, *(name for name in modules() if name in imported(module))):
        for other in parse(place).body:
            if isinstance(other, ast.ClassDef) and other.name in names:
                return other, place
    return None


def constructor(node: ast.ClassDef, module: str) -> list[str]:
    """The arguments with which a class is made, its own or those of its base class."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return arguments(item, True)
    fields = [
        one(ast.arg(item.target.id, item.annotation), item.value)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
        and not ast.unparse(item.annotation).startswith("ClassVar")
    ]
    base = base_of(node, module)
    if fields and not only_declares(node, module):
        return fields
    return constructor(*base) if base else []


def only_declares(node: ast.ClassDef, module: str) -> bool:
    """Whether annotations in the class are no arguments: in estimators and networks.

    There they tell a type checker what an attribute is.
    """
    if {ast.unparse(base) for base in node.bases} & {"BaseEstimator", "nn.Module"}:
        return True
    base = base_of(node, module)
    return base is not None and only_declares(*base)


def inherited(node: ast.ClassDef, module: str) -> dict[str, str]:
    """What the base classes say of their parameters."""
    base = base_of(node, module)
    if not base:
        return {}
    shown = constructor(*base)
    known = {taken_apart(argument)[0].lstrip("*") for argument in shown} - {""}
    return inherited(*base) | documented(base[0], known)


def documented(node: ast.ClassDef, known: set[str]) -> dict[str, str]:
    """What a class says of its parameters, in its docstring or that of __init__."""
    start = [item for item in node.body if getattr(item, "name", "") == "__init__"]
    found: dict[str, str] = {}
    for text in map(ast.get_docstring, [*start, node]):
        found |= split_parameters(text or "", known)[1]
    return found


def klass(
    name: str, node: ast.ClassDef, owners: dict[str, str], module: str
) -> list[str]:
    """A class: how it is made, what it is, its parameters, its own methods. Inherited
    methods stand where they are written."""
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    start = next((item for item in methods if item.name == "__init__"), None)
    shown = constructor(node, module)
    bases = [ast.unparse(base) for base in node.bases]
    linked = [
        f"[{base}]({owners[base]}.md#{base})" if base in owners else f"`{base}`"
        for base in bases
    ]
    told = "\n\n".join(
        text for item in (node, start) if item and (text := ast.get_docstring(item))
    )
    lines = [f"## {escape(name)} {{#{name}}}", signature(name, shown)]
    lines += description(told, shown, inherited(node, module))
    lines += [f"Inherits from {', '.join(linked)}."] if linked else []
    for item in methods:
        if not item.name.startswith("_") and ast.get_docstring(item):
            lines += function(f"{name}.{item.name}", item, "###", method=True)
    return lines


def whole(node: ast.ClassDef, tree: ast.Module) -> ast.ClassDef:
    """A class with the methods of private classes that it is put together from.

    Those have no entry of their own, so what they bring is shown where it arrives.
    """
    private = {
        item.name: item
        for item in tree.body
        if isinstance(item, ast.ClassDef) and item.name.startswith("_")
    }
    parts = [
        private.get(base.id) if isinstance(base, ast.Name) else None
        for base in node.bases
    ]
    known = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    inherited = [
        item
        for part in parts
        if part
        for item in whole(part, tree).body
        if isinstance(item, ast.FunctionDef) and item.name not in known
    ]
    result = copy(node)
    result.bases = [base for base, part in zip(node.bases, parts) if not part]
    result.body = [*node.body, *inherited]
    return result


@cache
def cells(module: str) -> list[tuple[int, str]]:
    """Where each exported cell begins in a module, and its id."""
    lines = path_of(module).read_text(encoding="utf-8").splitlines()
    return [
        (number, line.rsplit("#", 1)[1])
        for number, line in enumerate(lines, 1)
        if re.match(r"# %% (\.\./)+nbs/\S+\.ipynb #", line)
    ]


def cell_of(module: str, line: int) -> str:
    """The id of the notebook cell from which a line of a module was exported, which
    nbdev writes above it."""
    return next((cell for start, cell in reversed(cells(module)) if start < line), "")


def page(module: str, chapter: str, owners: dict[str, str]) -> str:
    """The page of one module."""
    tree = parse(module)
    promise = (ast.get_docstring(tree) or module).splitlines()[0]
    lines = [
        f"---\ntitle: clipadapt.{module}\n"
        f"description: {json.dumps(promise, ensure_ascii=False)}\n---",
        f"Why it is as it is: [{kept.title(chapter)}](../{chapter}.ipynb).",
    ]
    for name, node in definitions(tree).items():
        if isinstance(node, ast.FunctionDef):
            lines += function(name, node, "##")
        elif isinstance(node, ast.ClassDef):
            lines += klass(name, whole(node, tree), owners, module)
        else:
            lines += [
                f"## {escape(name)} {{#{name}}}",
                f"```python\n{written(module, node)}\n```",
            ]
        if cell := cell_of(module, node.lineno):
            lines.append(
                f"[[The code, where it is explained]"
                f"(../{chapter}.ipynb#at-{cell})]{{.kept-from}}"
            )
    return "\n\n".join(line for line in lines if line) + "\n"


def contents() -> str:
    """The first page of the reference: room by room, every module with its names."""
    offered = ", ".join(f"[`{name}`]({module}.md#{name})" for name, module in front())
    lines = [
        "---\ntitle: API reference\n"
        "description: Every public name of clipadapt, module by module\n---",
        "One page a module, made from the signatures and docstrings of the package, in "
        "the order in which images become answers. What everybody needs can be "
        f"imported from `clipadapt` itself: {offered}.",
    ]
    room = ""
    for module, chapter in modules().items():
        if _room(module) != room:
            room = _room(module)
            lines.append(f"## clipadapt.{room}: {ROOMS[room]} {{#{room}}}")
        names = ", ".join(
            f"[`{name}`]({module}.md#{name})" for name in definitions(parse(module))
        )
        lines.append(
            f"### [clipadapt.{module}]({module}.md) {{#{module}}}\n\n"
            f"{escape(kept.promise(chapter))}\n\n{names}"
        )
    return "\n\n".join(lines) + "\n"


def front() -> list[tuple[str, str]]:
    """What `from clipadapt import ...` offers: names and their modules."""
    table = next(
        node.value
        for node in parse("__init__").body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_MODULES"
    )
    return [
        (name, module)
        for module, names in ast.literal_eval(table).items()
        for name in names
    ]


def write(folder: Path) -> None:
    """Write the pages and the first page into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    owners = index()
    for module, chapter in modules().items():
        (folder / f"{module}.md").write_text(
            page(module, chapter, owners), encoding="utf-8"
        )
    (folder / "index.md").write_text(contents(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
