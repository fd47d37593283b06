"""Build the site into _docs: with quarto where it is on PATH, else with smalldocs,
which needs nothing but Python. Then check it.

python tools/docs.py               what `make docs` does
python tools/docs.py smalldocs     the same without quarto, though it is there
"""

import html
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import api
import badges
import check_site
import fresh
import kept
import yaml
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

site, out = kept.project / "_proc", kept.project / "_docs"
FLAGS = {
    "slow": "Slow: not run by make test; the result is kept.",
    "cuda": "For a GPU: not run by make test.",
}


def prepare() -> None:
    """Fill _proc: notebooks as nbdev prepares them, then what the site adds to them,
    the pages, the gallery, the reference."""
    refresh_quarto_yml()
    proc_nbs(
        n_workers=0, force=True, skip_folder_re=r"^([_.]|data$|runs$)"
    )  # data sets and results of runs may be large, and are not pages
    names = api.index()
    for name in kept.chapters():
        chapter(name, names)
    for path in sorted((site / "pages").glob("*.md")):
        path.write_text(
            kept.fill(path.read_text(encoding="utf-8"), path.parent), encoding="utf-8"
        )
    api.write(site / "api")
    bars = yaml.safe_load((site / "sidebar.yml").read_text(encoding="utf-8"))
    for bar in bars["website"]["sidebar"]:
        bar["contents"] = numbered(bar["contents"])
    bars["website"]["sidebar"].append(reference())
    (site / "sidebar.yml").write_text(
        yaml.safe_dump(bars, sort_keys=False), encoding="utf-8"
    )


def numbered(contents: list) -> list:
    """The entries of a sidebar, chapters with the number that their file names have."""
    entries = []
    for entry in contents:
        number = (
            re.match(r"(\d\d)_\w+\.ipynb$", entry) if isinstance(entry, str) else None
        )
        if number:
            text = f"{number[1]} {kept.title(entry.removesuffix('.ipynb'))}"
            entry = {"text": text, "href": entry}
        elif "contents" in entry:
            entry = {**entry, "contents": numbered(entry["contents"])}
        entries.append(entry)
    return entries


def reference() -> dict:
    """The sidebar of the reference: a section a room."""
    rooms: dict[str, list] = {}
    for module in api.modules():
        room = module.partition(".")[0]
        entry = {"text": module, "href": f"api/{module}.md"}
        rooms.setdefault(f"clipadapt.{room}", []).append(entry)
    sections = [{"section": room, "contents": rooms[room]} for room in rooms]
    contents = ["api/index.md", *sections]
    return {"id": "reference", "style": "floating", "contents": contents}


def chapter(name: str, names: dict[str, str]) -> None:
    """Rewrite a notebook in _proc for the site."""
    path = site / f"{name}.ipynb"
    page = json.loads(path.read_text(encoding="utf-8"))
    flags = {
        cell["id"]: [
            flag for flag in FLAGS if re.match(rf"#\| *{flag}\b", kept.source(cell))
        ]
        for cell in kept.notebook(name)["cells"]
    }
    described = {cell["id"]: kept.about(name, cell) for cell, _ in kept.pictures(name)}
    ages = fresh.made_with(kept.project / "nbs" / f"{name}.ipynb")
    cells = []
    for cell in page["cells"]:
        text = kept.source(cell)
        if cell["id"] in badges.CELLS:  # they stand in the line of links
            continue
        if cell["cell_type"] == "raw":
            cells += [{**cell, "source": front_matter(text)}, markdown(links(name))]
        elif cell["cell_type"] == "markdown":
            text = link_names(drawings(text), names, "../" * name.count("/"))
            cells.append({**cell, "source": text})
        elif text.strip() and "default_exp" not in text:
            said = [FLAGS[flag] for flag in flags[cell["id"]]]
            said += [ages[cell["id"]]] if cell["id"] in ages else []
            cells += code(cell, " ".join(said), described.get(cell["id"]))
    page["cells"] = [
        {**cell, "id": f"cell-{position}"} for position, cell in enumerate(cells)
    ]
    path.write_text(json.dumps(page, ensure_ascii=False), encoding="utf-8")


def code(cell: dict, said: str, described: str | None) -> list[dict]:
    """A code cell with what the site puts around it: a place to link to (#at- and the
    cell's id), what is said of when it runs, words for its picture, lines that wrap."""
    before = [
        markdown(f'```{{=html}}\n<a id="at-{cell["id"]}"></a>\n```'),
        *([markdown(f"[{said}]{{.flag}}")] if said else []),
    ]
    if described:
        cell = {
            **cell,
            "source": (
                f"#| fig-alt: {json.dumps(described, ensure_ascii=False)}\n"
                f"{kept.source(cell)}"
            ),
        }
    for output in cell["outputs"]:
        if "text/html" in output.get("data", {}):
            output["data"]["text/html"] = kept.breakable(
                "".join(output["data"]["text/html"])
            )
    return (
        [*before, markdown(":::: {.wrapped}"), cell, markdown("::::")]
        if printed_prose(cell)
        else [*before, cell]
    )


def printed_prose(cell: dict) -> bool:
    """Did the cell print sentences, whose long lines should wrap? Tables, whose columns
    stand under each other, should scroll."""
    lines = [
        line
        for output in cell["outputs"]
        for line in "".join(output.get("text", "")).splitlines()
    ]
    return any(len(line) > 90 for line in lines) and not any(
        re.search(r"\S {2,}\S", line) for line in lines
    )


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def front_matter(text: str) -> str:
    """nbdev's front matter, without the file name that leaves out the number of the
    chapter."""
    found = yaml.safe_load(text.strip().strip("-"))
    found.pop("output-file", None)
    return f"---\n{yaml.safe_dump(found, allow_unicode=True, width=1000)}---\n"


def links(name: str) -> str:
    """The line under a chapter's title: where to run it, and its page in the reference.
    The index is the front page and needs none."""
    if name == "index":
        return ""
    module, up = kept.module(name), "../" * name.count("/")
    reference = (
        f"[Reference: clipadapt.{module}]({up}api/{module}.md)"
        if module
        else f"[Reference]({up}api/index.md)"
    )
    notebook = f"https://github.com/clipadapt/clipadapt/blob/main/nbs/{name}.ipynb"
    services = badges.badges(name)
    if "/" in name:  # a notebook of the engine room installs nothing by itself
        first = "In Colab, first run: %pip install clipadapt fastcore"
        services = f'[Open in Colab]({badges.links(name)["colab"]}){{title="{first}"}}'
    return f"::: {{.chapter-links}}\n{services} [Notebook]({notebook}) {reference}\n:::"


def drawings(text: str) -> str:
    """Drawings with their text alternative, which is not shown as a caption, too."""

    def described(found: re.Match) -> str:
        words = found[1].replace('"', "”").replace("\n", " ")
        return f'![]({found[2]}){{fig-alt="{words}"}}'

    return re.sub(r"!\[([^\]]+)\]\(((?:\.\./)*drawings/[^)]+)\)", described, text)


def link_names(text: str, names: dict[str, str], up: str) -> str:
    """Names of the package that stand in backticks become links to the reference,
    outside headings, tables, HTML, code blocks and links. Plain words stay."""

    def linked(found: re.Match) -> str:
        name = found.group(1)
        return (
            f"[`{name}`]({up}api/{names[name]}.md#{name})"
            if name in names and re.search("[A-Z_]", name)
            else found.group(0)
        )

    parts = re.split(
        r"(?ms)(^```.*?^```|^#.*?$|^\|.*?$|^<.*?$|\[[^\]]*\]\([^)]*\))", text
    )
    return "".join(
        part if position % 2 else re.sub(r"(?<!`)`(\w+)`(?!`)", linked, part)
        for position, part in enumerate(parts)
    )


def render(renderer: str) -> None:
    """Make _docs from _proc."""
    shutil.rmtree(out, ignore_errors=True)
    if renderer == "quarto":
        subprocess.run(
            ["quarto", "render", "--no-execute", "--to", "html"], cwd=site, check=True
        )
    else:
        if not find_spec("smalldocs"):
            sys.exit(
                "the site needs quarto on the PATH, or Python 3.11 or newer for "
                "smalldocs (make PYTHON=python3.12 in a fresh checkout)"
            )
        from smalldocs.site import build

        warnings = [
            line for line in build(site, quiet=True).warnings if line not in KNOWN
        ]
        if warnings:
            sys.exit("\n".join(["smalldocs has warnings:", *warnings]))
        for path in (site / "_docs").rglob("*.html"):
            path.write_text(
                offline_maths(path.read_text(encoding="utf-8")), encoding="utf-8"
            )
        for path in (site / "_docs" / "site_libs" / "themes").glob("*.css"):
            path.write_text(
                re.sub(
                    r"@import url\([^)]*fonts\.googleapis[^)]*\);",
                    "",
                    path.read_text(encoding="utf-8"),
                ),
                encoding="utf-8",
            )
    shutil.move(site / "_docs", out)
    for path in (out / "api").glob("*.html"):
        path.write_text(
            edit_where_written(path.read_text(encoding="utf-8")), encoding="utf-8"
        )


# What quarto reads and smalldocs does not; the site does without it.
KNOWN = {"format.html.html-math-method is ignored", "format.html.grid is ignored"}


def offline_maths(page: str) -> str:
    """Formulas as MathML, which browsers draw themselves; smalldocs would have them
    drawn by a script from the network."""
    from latex2mathml.converter import convert

    def formula(found: re.Match) -> str:
        kind, tex = found.group(1), html.unescape(found.group(2)).strip()
        drawn = convert(
            re.sub(r"\\arg\b", r"\\operatorname{arg}", tex),
            display="block" if kind == "display" else "inline",
        )
        if "\\" in drawn:
            raise ValueError(
                f"latex2mathml leaves a command of this formula as it is: {tex}"
            )
        return f'<span class="math {kind}">{drawn}</span>'

    page = re.sub(
        r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>',
        formula,
        page,
        flags=re.DOTALL,
    )
    return re.sub(r"<link[^>]*katex[^>]*>|<script[^>]*katex[^>]*></script>", "", page)


def edit_where_written(page: str) -> str:
    """The reference is written in the notebooks' docstrings, so that is where "edit
    this page" leads."""
    for module, name in api.modules().items():
        page = page.replace(f"/main/nbs/api/{module}.md", f"/main/nbs/{name}.ipynb")
    return page.replace("/main/nbs/api/index.md", "/main/tools/api.py")


if __name__ == "__main__":
    renderer = (
        sys.argv[1]
        if len(sys.argv) > 1
        else "quarto"
        if shutil.which("quarto")
        else "smalldocs"
    )
    prepare()
    render(renderer)
    problems = check_site.check(out)
    print(*problems, sep="\n")
    pages = len(list(out.rglob("*.html")))
    sys.exit(f"{len(problems)} problems on {pages} pages") if problems else print(
        f"{pages} pages in {out.relative_to(kept.project)}/, made with {renderer}; "
        f"open {out.relative_to(kept.project)}/index.html"
    )
