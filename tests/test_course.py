"""The course as a whole: chapters that are as they have to be, and links between
chapters, solutions and the pages for teaching that lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

project = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(project))
from tools import badges, course_stats  # noqa: E402

nbs = project / "nbs"
chapters = sorted(nbs.glob("[01]*.ipynb"))
engine = sorted((nbs / "engine").glob("*.ipynb"))
notebooks = [*chapters, *engine]
solutions = sorted((project / "solutions").rglob("*.ipynb"))
pages = sorted((nbs / "course").glob("*.md"))
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


def name(path: Path) -> str:
    return path.relative_to(project).with_suffix("").as_posix()


@pytest.mark.parametrize("path", notebooks, ids=name)
def test_a_notebook_reads_as_it_has_to(path):
    assert course_stats.complaints(course_stats.Notebook(path)) == []


def test_time_and_cost_are_those_that_were_measured():
    command = [sys.executable, project / "tools" / "costs.py"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


NAMED = re.compile(r"pip install 'clipadapt\[(\w+)\]'")
BY_PARTS = {"datatools"}  # an extra for each of its tools, named where it is used


def test_a_notebook_that_needs_an_extra_says_so_before_it_begins():
    found = {}
    for path in engine:
        code = ["".join(cell["source"]) for cell in cells(path, "code")]
        asked = set(NAMED.findall("".join(c for c in code if "#| export" in c)))
        if asked and path.stem not in BY_PARTS:
            begin = ["".join(cell["source"]) for cell in cells(path, "markdown")[:2]]
            found[path.stem] = asked - set(NAMED.findall("".join(begin)))
    assert len(found) > 4 and not any(found.values()), found


def test_chapters_have_numbers_of_their_own():
    numbers = [int(path.stem[:2]) for path in chapters]
    assert numbers == list(range(1, len(chapters) + 1))


@pytest.mark.parametrize(
    "path",
    [*notebooks, nbs / "index.ipynb", *solutions, *pages],
    ids=name,
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


@pytest.mark.parametrize("path", solutions, ids=name)
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


def exercises(path: Path) -> list[str]:
    """The numbers of a notebook's exercises, or of those that its solutions answer."""
    text = prose(path)
    found = re.findall(r"(?m)^#{2,3} (?:Exercise )?(\d+(?:\.\d+)?)\b", text)
    return found or re.findall(r"(?m)^(\d)\. \*\*", prose(path).split("\n## ")[-1])


@pytest.mark.parametrize("path", chapters, ids=name)
def test_every_exercise_has_a_solution(path):
    answers = project / "solutions" / path.name
    assert answers.exists() and exercises(path) == exercises(answers) != []
    assert f"solutions/{path.name}" in prose(path)


@pytest.mark.parametrize("path", solutions, ids=name)
def test_solutions_belong_to_a_notebook(path):
    relative = path.relative_to(project / "solutions")
    up = "../" * len(relative.parts)
    assert (nbs / relative).exists() and f"({up}nbs/{relative.as_posix()})" in prose(
        path
    )
    assert exercises(path) == exercises(nbs / relative) != []
    assert any(cell["outputs"] for cell in cells(path, "code"))


def test_syllabus_and_timetable_know_every_chapter():
    syllabus, lecturer = (
        next(page for page in pages if page.stem == name).read_text(encoding="utf-8")
        for name in ("syllabus", "lecturer")
    )
    assert [
        path.name
        for path in notebooks
        if f"../{path.relative_to(nbs).as_posix()})" not in syllabus
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


@pytest.mark.parametrize("path", chapters, ids=name)
def test_chapters_open_in_colab_and_binder(path):
    """As settings.ini names the repository: `python tools/badges.py --write`."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert badges.with_badges(notebook, path.stem) == notebook
    facts = badges.settings()
    place = f"{facts['user']}/{facts['repo']}"
    links = badges.links(path.stem)
    where = f"github/{place}/blob/{facts['branch']}/nbs/{path.name}"
    assert links["colab"].endswith(where) and links["colab"] in prose(path)
    where = f"gh/{place}/{facts['branch']}?urlpath=lab/tree/nbs/{path.name}"
    assert links["binder"].endswith(where) and links["binder"] in prose(path)


def test_binder_installs_what_the_package_needs(tmp_path):
    """All of settings.ini comes from one of both files, PyTorch and FAISS for CPUs."""
    made = (project / ".binder" / "postBuild").read_text()
    script = made.partition("<<'PYTHON'\n")[2].partition("PYTHON\n")[0]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    by_pip = done.stdout.split()
    settings = badges.settings()
    wanted = {one.partition(";")[0] for one in settings["requirements"].split()}
    left = sorted(wanted - {*by_pip})
    assert [one.split(">")[0] for one in left] == ["faiss-gpu", "torch", "torchvision"]
    by_conda = (project / ".binder" / "environment.yml").read_text()
    for one in left[1:]:
        assert one.replace("torch>", "pytorch-cpu>") in by_conda
