"""What the notebooks kept: outputs, found by a piece of the code that made them. No
page of the site has a measured figure that somebody typed.

The pages in nbs/pages are Jinja templates. They may say

    {{ table("07_grip", "unsupervised.groupby") }}
        the table which that cell printed
    {{ value("15_compare", "tabulate(everything, test)", "GRIP", "accuracy") }}
        one number of it, by its row and column
    {{ percent("15_compare", "tabulate(everything, test)", "GRIP", "accuracy") }}
        the same number, times a hundred, with one decimal
    {{ text("15_compare", "print(recommend(everything") }}
        what it printed
    {{ plot("15_compare", "plot_cost(everything") }}
        its picture

The code must occur in exactly one code cell of the notebook, and the cell must have
kept such an output; anything else is an error.
"""

import ast
import base64
import html
import json
import re
from functools import cache, partial
from pathlib import Path

import jinja2
import yaml
from bs4 import BeautifulSoup

project = Path(__file__).resolve().parent.parent
nbs = project / "nbs"


def sidebar() -> list[dict]:
    """The sidebars of nbs/sidebar.yml."""
    return yaml.safe_load((nbs / "sidebar.yml").read_text(encoding="utf-8"))["website"][
        "sidebar"
    ]


def listed(contents: list) -> list[str]:
    """The files a sidebar lists, in its order."""
    files = []
    for entry in contents:
        entry = {"href": entry} if isinstance(entry, str) else entry
        files += listed(entry["contents"]) if "contents" in entry else [entry["href"]]
    return files


def chapters() -> list[str]:
    """The notebooks in the order of the course, as paths below nbs/ without their
    ending."""
    return [
        file[: -len(".ipynb")]
        for bar in sidebar()
        for file in listed(bar["contents"])
        if file.endswith(".ipynb")
    ]


@cache
def notebook(name: str) -> dict:
    path = nbs / f"{name}.ipynb"
    if not path.exists():
        raise FileNotFoundError(f"there is no notebook nbs/{name}.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def title(name: str) -> str:
    """The title of a chapter, its first line."""
    return source(notebook(name)["cells"][0]).splitlines()[0].removeprefix("# ")


def promise(name: str) -> str:
    """The line under the title."""
    return re.search(r"(?m)^> (.*)$", source(notebook(name)["cells"][0])).group(1)


def module(name: str) -> str | None:
    """The module which a chapter exports, None for a chapter that exports none."""
    code = "\n".join(
        source(cell) for cell in notebook(name)["cells"] if cell["cell_type"] == "code"
    )
    found = re.search(r"(?m)^#\| *default_exp +(\S+)", code)
    return found and found.group(1)


def find(name: str, code: str) -> dict:
    """The one code cell of a notebook whose source contains `code`."""
    found = [
        cell
        for cell in notebook(name)["cells"]
        if cell["cell_type"] == "code" and code in source(cell)
    ]
    if len(found) != 1:
        raise LookupError(
            f"nbs/{name}.ipynb: {len(found) or 'no'} code cells contain {code!r}; a "
            "page of the site needs exactly one. Give a piece of the code that "
            "occurs once"
        )
    return found[0]


def kept(name: str, code: str, kind: str) -> str:
    """The first output of a kind ("text/html", "image/png", ...) that a cell kept; for
    "stream", all that it printed and said."""
    cell = find(name, code)
    said = [
        output["text"] if "text" in output else output["data"]["text/plain"]
        for output in cell["outputs"]
        if output["output_type"] == "stream"
        or set(output.get("data", {})) == {"text/plain"}
    ]
    if kind == "stream" and said:
        return "\n".join("".join(text).strip("\n") for text in said)
    for output in cell["outputs"]:
        if kind in output.get("data", {}):
            return "".join(output["data"][kind])
    raise LookupError(
        f"nbs/{name}.ipynb: the cell with {code!r} kept no output of the kind {kind}; "
        "run it and commit its output"
    )


def link(name: str) -> str:
    """A Markdown link to a chapter, for a page in nbs/pages."""
    return f"[{title(name)}](../{name}.ipynb)"


def rows(table_html: str) -> list[list[str]]:
    """The cells of an HTML table, row by row. Raises ValueError for one with cells that
    span several rows or columns."""
    found = BeautifulSoup(table_html, "html.parser").find_all("tr")
    if any(
        cell.get("rowspan", "1") != "1" or cell.get("colspan", "1") != "1"
        for row in found
        for cell in row.find_all(["th", "td"])
    ):
        raise ValueError(
            "this table has cells that span rows or columns: show it whole, with "
            "table(...)"
        )
    return [
        [cell.get_text(" ", strip=True) for cell in row.find_all(["th", "td"])]
        for row in found
    ]


def value(name: str, code: str, row: str, column: str) -> str:
    """One entry of a table: by the first cell of its row (or the second, behind a row
    number), and the heading of its column."""
    lines = rows(kept(name, code, "text/html"))
    heads = lines[0]
    found = [line for line in lines[1:] if row in line[:2]]
    if column not in heads or len(found) != 1:
        raise LookupError(
            f"nbs/{name}.ipynb: the table of {code!r} has no single entry in row "
            f"{row!r}, column {column!r}; columns: {heads}, rows: "
            f"{[line[:2] for line in lines[1:]]}"
        )
    return found[0][heads.index(column)]


def percent(name: str, code: str, row: str, column: str) -> str:
    """A share of 0 to 1 in a table, as "86.9 %", with a blank that does not break."""
    return f"{100 * float(value(name, code, row, column)):.1f}\N{NO-BREAK SPACE}%"


def breakable(table_html: str) -> str:
    """A table whose headings may break behind an underscore."""
    return re.sub(
        r"(<th\b[^>]*>)([^<]*)",
        lambda found: found.group(1) + found.group(2).replace("_", "_<wbr>"),
        table_html,
    )


def table(name: str, code: str) -> str:
    """A table as the chapter shows it, with a line that says where it is from."""
    shown = re.sub(
        r"<style scoped>.*?</style>",
        "",
        breakable(kept(name, code, "text/html")),
        flags=re.DOTALL,
    )
    return (
        f'```{{=html}}\n<div class="kept">\n'
        f"{shown.strip()}\n</div>\n```\n"
        f"\n[From the chapter {link(name)}.]{{.kept-from}}\n"
    )


def text(name: str, code: str) -> str:
    """What a cell printed."""
    return (
        f":::: {{.wrapped}}\n```text\n{kept(name, code, 'stream').strip()}\n"
        f"```\n::::\n\n[Printed in the chapter {link(name)}.]{{.kept-from}}\n"
    )


def about(name: str, cell: dict) -> str:
    """What a picture shows, in words, from the code that drew it: its titles (… where a
    measured number stands), else the section it stands in."""
    titles = [
        words
        for words in map(words_of, titles_of(cell))
        if re.search(r"[a-zA-Z]{3}", words)
    ]
    cells = notebook(name)["cells"]
    above = "\n".join(
        source(other)
        for other in cells[: cells.index(cell)]
        if other["cell_type"] == "markdown"
    )
    sections = re.findall(r"(?m)^#{1,4} (.+)$", above)
    section = (
        promise(name).rstrip(".")
        if len(sections) < 2
        else sections[-1].replace("`", "")
    )
    drawn = " ".join(re.findall(r"\bplot_(\w+)\(", source(cell))[-1:]).replace("_", " ")
    return "; ".join(dict.fromkeys(titles)) or section + (
        f" ({drawn})" if drawn else ""
    )


def titles_of(cell: dict) -> list[ast.expr]:
    """The expressions that a cell's code uses as titles: `title=...`, `set_title(...)`,
    `suptitle(...)`."""
    code = re.sub(r"(?m)^%.*$", "", source(cell))
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    calls.sort(key=lambda call: (call.lineno, call.col_offset))
    named = [
        keyword.value
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "title"
        and getattr(call.func, "attr", "") not in ("legend", "format")
    ]
    return named + [
        call.args[0]
        for call in calls
        if getattr(call.func, "attr", "") in ("set_title", "suptitle") and call.args
    ]


def words_of(node: ast.expr) -> str:
    """A string of the code in words, with … for what was computed."""
    if isinstance(node, ast.Constant):
        return (
            re.sub(r"\s+", " ", str(node.value)) if isinstance(node.value, str) else ""
        )
    if isinstance(node, ast.JoinedStr):
        return re.sub(
            r"\s+",
            " ",
            "".join(
                part.value if isinstance(part, ast.Constant) else "…"
                for part in node.values
            ),
        )
    if isinstance(node, ast.BinOp):
        return words_of(node.left) + words_of(node.right)
    if isinstance(node, ast.IfExp):
        return words_of(node.body)
    return "…"


def pictures(name: str) -> list[tuple[dict, str]]:
    """The cells of a chapter that kept a picture, each with its base64 PNG; a cell with
    several pictures comes several times."""
    return [
        (cell, "".join(output["data"]["image/png"]))
        for cell in notebook(name)["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def save_png(picture: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(picture))


def plot(folder: Path, name: str, code: str) -> str:
    """The picture of a cell, saved into a folder beside the page."""
    cell, picture = find(name, code), kept(name, code, "image/png")
    file = f"kept/{name.replace('/', '-')}-{cell['id']}.png"
    save_png(picture, folder / file)
    words = about(name, cell).replace('"', "”")
    return (
        f'![{words}]({file}){{fig-alt="{words}"}}\n'
        f"\n[From the chapter {link(name)}.]{{.kept-from}}\n"
    )


def gallery(folder: Path) -> str:
    """Every picture of every chapter, in the order of the course, each a link to the
    cell that drew it."""
    parts = []
    for name in chapters():
        shown = []
        for number, (cell, picture) in enumerate(pictures(name)):
            file = f"gallery/{name.replace('/', '-')}-{number}.png"
            save_png(picture, folder / file)
            words = html.escape(about(name, cell))
            shown.append(
                f'<a href="../{name}.html#at-{cell["id"]}"><img src="{file}" '
                f'alt="{words}" loading="lazy"><span>{words}</span></a>'
            )
        if shown:
            parts.append(
                f'## {link(name)}\n\n```{{=html}}\n<div class="gallery">\n'
                + "\n".join(shown)
                + "\n</div>\n```\n"
            )
    return "\n".join(parts)


def fill(page: str, folder: Path) -> str:
    """A page with its marks replaced by what the notebooks kept; pictures are saved
    into the folder."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        comment_start_string="{##",
        comment_end_string="##}",
        keep_trailing_newline=True,
    )
    environment.globals.update(
        table=table,
        value=value,
        percent=percent,
        text=text,
        link=link,
        plot=partial(plot, folder),
        gallery=partial(gallery, folder),
    )
    return environment.from_string(page).render()
