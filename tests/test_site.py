"""The site's sources fit together. Nothing is rendered here; `make docs` renders, and
checks every link of what it made."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

project = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(project / "tools"))
import api  # noqa: E402
import check_site  # noqa: E402
import docs  # noqa: E402
import kept  # noqa: E402

nbs = project / "nbs"
pages = sorted((nbs / "pages").glob("*.md"))
notebooks = sorted(
    path.relative_to(nbs).as_posix()
    for path in nbs.rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
listed = [file for bar in kept.sidebar() for file in kept.listed(bar["contents"])]


def test_every_notebook_and_page_is_in_the_sidebar_once():
    assert sorted(listed) == sorted(
        notebooks
        + [
            str(page.relative_to(nbs))
            for page in [*pages, *(nbs / "course").glob("*.md")]
        ]
    ), "nbs/sidebar.yml lists every notebook and page once, and nothing else"


def test_the_navbar_leads_to_pages():
    settings = yaml.safe_load((project / "_quarto.yml").read_text(encoding="utf-8"))
    entries = [
        entry["href"] if isinstance(entry, dict) and "href" in entry else entry
        for entry in settings["website"]["navbar"]["left"]
    ]
    links = [
        link
        for entry in entries
        for link in ([entry] if isinstance(entry, str) else entry["menu"])
    ]
    assert set(links) <= set(listed) | {"api/index.md"}
    assert all(
        (nbs / settings_file).exists()
        for settings_file in (
            settings["website"]["favicon"],
            settings["format"]["html"]["css"],
            "sidebar.yml",
        )
    )


@pytest.mark.parametrize("page", pages, ids=[page.stem for page in pages])
def test_a_page_has_a_title_and_its_marks_find_what_the_notebooks_kept(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["title"] and front["description"]
    filled = kept.fill(text, tmp_path)
    assert "{{" not in filled and "{%" not in filled
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", filled):
        found = (tmp_path / target).exists() or (
            page.parent / target
        ).resolve().exists()
        assert found, f"{page.name} links to {target}"


def test_a_mark_whose_cell_is_gone_or_not_alone_is_an_error():
    with pytest.raises(
        LookupError, match="no code cells contain 'a cell that was deleted'"
    ):
        kept.find("15_compare", "a cell that was deleted")
    with pytest.raises(LookupError, match="code cells contain 'import'"):
        kept.find("15_compare", "import")
    with pytest.raises(LookupError, match="no single entry in row 'Oracle'"):
        kept.value("15_compare", "tabulate(everything, test)", "Oracle", "accuracy")
    with pytest.raises(FileNotFoundError, match="99_nothing"):
        kept.table("99_nothing", "x")


def test_a_value_is_that_of_its_row_and_column(monkeypatch):
    table = (
        "<table><tr><th></th><th>method</th><th>ece</th></tr>"
        "<tr><th>0</th><td>A</td><td>0.25</td></tr>"
        "<tr><th>1</th><td>B</td><td>0.5</td></tr></table>"
    )
    monkeypatch.setattr(kept, "kept", lambda name, code, kind: table)
    assert (
        kept.value("any", "any", "B", "ece") == "0.5"
        and kept.percent("any", "any", "A", "ece") == "25.0\N{NO-BREAK SPACE}%"
    )
    monkeypatch.setattr(
        kept,
        "kept",
        lambda name, code, kind: table.replace("<td>A", "<td rowspan='2'>A"),
    )
    with pytest.raises(ValueError, match="span"):
        kept.value("any", "any", "A", "ece")


def test_every_picture_is_described_in_words():
    for name in kept.chapters():
        for cell, _ in kept.pictures(name):
            words = kept.about(name, cell)
            assert (
                re.search(r"[A-Za-z]{3}", words)
                and "\n" not in words
                and "{" not in words
            ), (name, cell["id"], words)


def test_the_reference_has_every_public_name_as_it_is(tmp_path):
    api.write(tmp_path)
    for module in api.modules():
        text = (tmp_path / f"{module}.md").read_text(encoding="utf-8")
        missing = [
            name
            for name in api.definitions(api.parse(module))
            if f"{{#{name}}}" not in text
        ]
        assert not missing, (module, missing)
    package = project / "clipadapt"
    assert set(api.modules()) == {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if not path.stem.startswith("_")
    }


def test_the_reference_follows_the_flow():
    rooms = [module.partition(".")[0] for module in api.modules()]
    assert list(dict.fromkeys(rooms)) == list(api.ROOMS)
    assert len([1 for a, b in zip(rooms, rooms[1:]) if a != b]) == len(api.ROOMS) - 1
    before: set[str] = set()
    for module in api.modules():
        assert not api.imported(module) & set(api.modules()) - before, module
        before.add(module)


def test_parameters_are_shown_as_a_table(tmp_path):
    text = (
        "What it does.\n\nsize: how many, at\n    most `five`.\n"
        "low, high: the ends.\n\nReturns a | b. Raises: nothing."
    )
    known = {"size", "low", "high", "seed"}
    above, described, below = api.split_parameters(text, known)
    assert above == "What it does." and below == "Returns a | b. Raises: nothing."
    assert described == {
        "size": "how many, at most `five`.",
        "low": "the ends.",
        "high": "See `low`.",
    }
    shown = ["size: int | None = 3", "*", "low: float", "high", "seed: str = 'a, b'"]
    table = api.table(shown, described)
    for cell in ("int | None", "3", "how many, at most <code>five</code>.", "'a, b'"):
        assert cell in table, cell
    assert table.count("<tr>") == 5
    api.write(tmp_path)
    page = (tmp_path / "methods.latteclip.md").read_text(encoding="utf-8")
    cells = ("group_size", "int", "4")
    assert "".join(f"<td><code>{cell}</code></td>" for cell in cells) in page


def test_a_class_without_a_constructor_shows_the_inherited_one():
    tree = api.parse("methods.grip")
    node = api.definitions(tree)["GRIP"]
    shown = ", ".join(api.constructor(node, "methods.grip"))
    assert "clip: CLIP" in shown and "rounds: int = 10" in shown


def test_a_signature_is_what_python_makes_of_it():
    code = (
        "class K:\n    def __init__(self, a, b: int = 2, /, c: str = 'x', *rest: "
        "float, d, e: list | None = None, **more): pass\ndef f(a, *, b=()): pass\n"
    )
    space: dict = {}
    exec(code, space)
    made, plain = ast.parse(code).body
    assert ", ".join(api.arguments(made.body[0], True)) == (
        "a, b: int = 2, /, c: str = 'x', *rest: float, d, e: list | None = None, **more"
    )
    for shown, real in (
        (api.arguments(made.body[0], True), space["K"]),
        (api.arguments(plain, False), space["f"]),
    ):
        assert f"({', '.join(shown)})" == str(inspect.signature(real))


def test_a_drawing_is_described_and_has_no_caption():
    text = 'Look: ![A loop of "three"\nsteps.](../drawings/loop.svg) and ![x](x.png)'
    made = 'Look: ![](../drawings/loop.svg){fig-alt="A loop of ”three” steps."}'
    assert docs.drawings(text) == f"{made} and ![x](x.png)"


def test_chapters_have_their_numbers_in_the_sidebar():
    entries = ["index.ipynb", {"section": "I", "contents": ["07_grip.ipynb"]}]
    first, second = docs.numbered([*entries, "engine/model.ipynb"])[:2]
    assert first == "index.ipynb"
    assert second["contents"] == [
        {"text": f"07 {kept.title('07_grip')}", "href": "07_grip.ipynb"}
    ]


def test_names_become_links_but_in_questions_that_fold():
    text = "`GRIP` loops.\n<details><summary>1. Why `GRIP`?</summary>"
    linked = docs.link_names(text, {"GRIP": "methods.grip"}, "../")
    assert linked == text.replace(
        "`GRIP` loops", "[`GRIP`](../api/methods.grip.md#GRIP) loops"
    )


def test_papers_that_the_chapters_cite_are_in_the_bibliography():
    known = (nbs / "pages" / "bibliography.md").read_text(encoding="utf-8").splitlines()
    cited = set()
    for name in kept.chapters():
        text = "".join(kept.source(cell) for cell in kept.notebook(name)["cells"])
        cited |= set(
            re.findall(
                r"([A-Z][\w'’-]+)(?: et al\.,?| (?:and|&) [A-Z][\w'’-]+) "
                r"\(?((?:19|20)\d\d)",
                text,
            )
        )
    missing = [
        pair
        for pair in sorted(cited)
        if not any(pair[0] in line and pair[1] in line for line in known)
    ]
    assert len(cited) > 30 and not missing, (
        f"add to nbs/pages/bibliography.md: {missing}"
    )


def test_papers_that_the_project_links_to_are_in_the_bibliography():
    known = "".join(
        page.read_text(encoding="utf-8")
        for page in pages
        if page.stem.startswith(("bibliography", "paper_"))
    )
    files = [
        *nbs.rglob("*.ipynb"),
        *nbs.rglob("*.md"),
        *(project / "solutions").rglob("*.ipynb"),
    ]
    missing = {
        (file.name, number)
        for file in files
        if ".ipynb_checkpoints" not in file.parts
        for number in re.findall(
            r"arxiv\.org/abs/(\d{4}\.\d{5})", file.read_text(encoding="utf-8")
        )
        if number not in known
    }
    assert not missing, f"add to nbs/pages/bibliography.md: {sorted(missing)}"


def test_figures_of_the_sample_solution_on_the_page_are_those_it_printed():
    page = (nbs / "pages" / "which_method.md").read_text(encoding="utf-8")
    solution = json.loads(
        (project / "solutions" / "18_project.ipynb").read_text(encoding="utf-8")
    )
    printed = "".join(
        "".join(output.get("text", ""))
        for cell in solution["cells"]
        for output in cell.get("outputs", [])
    )
    for method in ("zero-shot", "prototypes"):
        (share,) = re.findall(rf"(?m)^{method} {{2,}}(\d\d\.\d)$", printed)
        assert f"{share} %" in page, f"{method}: {share} %"


def test_commands_on_the_pages_exist():
    from clipadapt.app.cli import main

    commands = [
        line
        for page in pages
        for line in re.sub(r"\\\n *", "", page.read_text(encoding="utf-8")).splitlines()
        if re.match(r"clipadapt \w", line)
    ]
    assert len(commands) >= 3
    for line in commands:
        _, name, *words = line.split()
        command = main.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
        assert CliRunner().invoke(command, ["--help"]).exit_code == 0


def test_the_check_finds_what_is_broken(tmp_path):
    head = (
        "<html><head><title>A</title><meta name='description' "
        "content='b'></head><body><h1 id='top'>A</h1>"
    )
    (tmp_path / "good.html").write_text(
        head
        + (
            "<a href='#top'>x</a><a href='good.html#top'>y</a><a "
            "href='https://example.org/z'>z</a><img src='data:image/png;base64,x' "
            "alt='x'><code>{{</code>"
        )
    )
    assert check_site.check(tmp_path) == []
    (tmp_path / "bad.html").write_text(
        "<html><body><a href='gone.html'>x</a><a href='good.html#nowhere'>y</a><img "
        "src='gone.png'>{{ mark }}"
    )
    found = "\n".join(check_site.check(tmp_path))
    for problem in (
        "no title",
        "no description",
        "without a description: gone.png",
        "broken link: gone.html",
        "broken link: gone.png",
        "no such place on the page: good.html#nowhere",
        "not read as Markdown",
    ):
        assert problem in found, problem
    assert "good.html:" not in found


def shell_commands(text):
    """The commands of clipadapt in the shell blocks of a page, as lists of words."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|-m )clipadapt (.*)", line.partition("#")[0])
            if called:
                yield re.findall(r"'[^']*'|\"[^\"]*\"|\S+", called[1])


@pytest.mark.parametrize("page", pages, ids=[page.stem for page in pages])
def test_the_commands_of_a_page_have_the_options_that_they_name(page):
    from clipadapt.app.cli import main

    for name, *words in shell_commands(page.read_text(encoding="utf-8")):
        command = main.commands[name]
        if name == "store":
            command = command.commands[words.pop(0)]
        known = {one for option in command.params for one in option.opts}
        named = {word.strip('"') for word in words if word.startswith("--")}
        assert named <= known, name
        needed = {each.opts[0] for each in command.params if each.required}
        assert needed <= named or "--config" in named, name
