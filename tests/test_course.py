"""The course as a whole: costs said at the head of every chapter, and links between
chapters, solutions and the pages for teaching that lead somewhere."""

import json
import re
from pathlib import Path

import pytest

project = Path(__file__).resolve().parent.parent
chapters = sorted(
    path
    for path in [
        *(project / "nbs").glob("[01]*.ipynb"),
        *(project / "nbs" / "appendix").glob("*.ipynb"),
    ]
)
solutions = sorted((project / "solutions").glob("*.ipynb"))
pages = sorted((project / "nbs" / "course").glob("*.md"))
SITE = "https://github.com/clipadapt/clipadapt/blob/main/"


def cells(path: Path, kind: str) -> list[dict]:
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def prose(path: Path) -> str:
    return (
        path.read_text(encoding="utf-8")
        if path.suffix == ".md"
        else "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    )


@pytest.mark.parametrize("path", chapters, ids=lambda path: path.stem)
def test_costs_are_said_in_full(path):
    cost = re.search(r"(?m)^> \*\*Time and cost\*\*: (.*)$", prose(path))
    assert (
        cost
        and [
            word
            for word in ("to read", "to run", "memory", "download", "GPU")
            if word not in cost.group(1)
        ]
        == []
    )


@pytest.mark.parametrize(
    "path",
    [*chapters, *solutions, *pages],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_links_lead_to_files(path):
    text = re.sub(r"(?s)```.*?```", "", prose(path))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link.removeprefix(SITE) for link in links if link.startswith(SITE)]
    assert [link for link in local if not (project / link).exists()] == []
    assert [
        link
        for link in links
        if link and "://" not in link and not (path.parent / link).exists()
    ] == []


@pytest.mark.parametrize("path", solutions, ids=lambda path: path.stem)
def test_solutions_are_kept_with_what_came_out(path):
    code = cells(path, "code")
    silent = [
        source
        for cell in code
        if (source := "".join(cell["source"]))
        and not cell["outputs"]
        and not source.startswith("#| cuda")
        and re.search(r"(?m)^print\(", source)
    ]
    assert silent == [] and not any(
        output["output_type"] == "error" for cell in code for output in cell["outputs"]
    )
    assert all(
        "".join(cell["source"]).startswith(("#| slow", "#| cuda"))
        for cell in code
        if re.search(r"#\| (slow|cuda)", "".join(cell["source"]))
    )


def test_syllabus_and_timetable_know_every_chapter():
    syllabus, lecturer = (
        next(page for page in pages if page.stem == name).read_text(encoding="utf-8")
        for name in ("syllabus", "lecturer")
    )
    assert [
        path.name
        for path in chapters
        if f"{path.relative_to(project / 'nbs')})" not in syllabus
    ] == []
    numbers = sorted({path.stem[:2] for path in chapters if path.stem[:2].isdigit()})
    assert [
        number
        for number in numbers
        if not re.search(rf"(?m)^\| {number} .*\| \d", lecturer)
    ] == []
    assert [
        number for number in range(1, 7) if f"## Week {number}: " not in syllabus
    ] == []
    assert (
        sum(
            map(
                int,
                re.findall(
                    r"(?m)^\| [^|]+ \| (\d+) \| .* \|$",
                    syllabus.partition("## The project")[2],
                ),
            )
        )
        == 100
    )
