"""The API reference: one Markdown page a module, from signatures and docstrings.
Nothing is imported, so it takes no time and shows defaults as they are written.

python tools/api.py FOLDER     write the pages (tools/docs.py does that)
"""

import ast
import json
import re
import sys
from copy import copy
from functools import cache
from pathlib import Path

import kept

package = kept.project / "clipadapt"


def modules() -> dict[str, str]:
    """The modules that chapters export, in the order of the course: module -> chapter.
    One chapter may be the only door to several modules."""
    return {
        name: chapter for chapter in kept.chapters() if (name := kept.module(chapter))
    }


@cache
def parse(module: str) -> ast.Module:
    return ast.parse((package / f"{module}.py").read_text(encoding="utf-8"))


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


def prose(node: ast.stmt) -> str:
    """A docstring as paragraphs. Lists in docstrings stay lists."""
    text = ast.get_docstring(node) or ""
    return "\n\n".join(escape(part) for part in re.split(r"\n\s*\n", text))


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
    if len(line) > 90:
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
        prose(node),
    ]


def klass(name: str, node: ast.ClassDef, owners: dict[str, str]) -> list[str]:
    """A class: how it is made, what it is, its fields, its own methods. Inherited ones
    stand where they are written."""
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    start = next((item for item in methods if item.name == "__init__"), None)
    fields = [
        item
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
    ]
    shown = (
        arguments(start, True)
        if start
        else [
            one(ast.arg(item.target.id, item.annotation), item.value) for item in fields
        ]
    )
    bases = [ast.unparse(base) for base in node.bases]
    linked = [
        f"[{base}]({owners[base]}.md#{base})" if base in owners else f"`{base}`"
        for base in bases
    ]
    lines = [f"## {escape(name)} {{#{name}}}", signature(name, shown), prose(node)]
    lines += [f"Inherits from {', '.join(linked)}."] if linked else []
    lines += [prose(start)] if start and prose(start) else []
    for item in methods:
        if not item.name.startswith("_") and prose(item):
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
    lines = (package / f"{module}.py").read_text(encoding="utf-8").splitlines()
    return [
        (number, line.rsplit("#", 1)[1])
        for number, line in enumerate(lines, 1)
        if re.match(r"# %% \.\./nbs/\S+\.ipynb #", line)
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
        f"Why it is as it is: the chapter [{kept.title(chapter)}](../{chapter}.ipynb).",
    ]
    for name, node in definitions(tree).items():
        if isinstance(node, ast.FunctionDef):
            lines += function(name, node, "##")
        elif isinstance(node, ast.ClassDef):
            lines += klass(name, whole(node, tree), owners)
        else:
            lines += [
                f"## {escape(name)} {{#{name}}}",
                f"```python\n{ast.unparse(node)}\n```",
            ]
        if cell := cell_of(module, node.lineno):
            lines.append(
                "[[The code, in its "
                f"chapter](../{chapter}.ipynb#at-{cell})]{{.kept-from}}"
            )
    return "\n\n".join(line for line in lines if line) + "\n"


def contents() -> str:
    """The first page of the reference: every module with its public names."""
    lines = [
        "---\ntitle: API reference\n"
        "description: Every public name of clipadapt, module by module\n---",
        (
            "One page a module, made from the signatures and docstrings of the "
            "package. "
            "What everybody needs can be imported from `clipadapt` itself: "
        )
        + ", ".join(f"[`{name}`]({module}.md#{name})" for name, module in front())
        + ".",
    ]
    for module, chapter in modules().items():
        names = ", ".join(
            f"[`{name}`]({module}.md#{name})" for name in definitions(parse(module))
        )
        lines.append(
            f"## [clipadapt.{module}]({module}.md) {{#{module}}}\n"
            f"\n{escape(kept.promise(chapter))}\n\n{names}"
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
