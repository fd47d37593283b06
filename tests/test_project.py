"""The project as a whole: README and package are what the notebooks say, the wheel
works alone, `make` repairs its environment."""

import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import yaml

import clipadapt
from clipadapt import ZeroShot, digits, load_clip
from tools import clean, versions

project = Path(__file__).resolve().parent.parent
notebooks = sorted(
    path
    for path in (project / "nbs").rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
FIRST_LINE = (
    "from clipadapt import load_clip, digits, ZeroShot; d=digits('test'); "
    "m=ZeroShot(load_clip(), d.classnames).fit(digits('train')); print(m.score(d))"
)


def test_readme_is_the_index_notebook(tmp_path):
    subprocess.run(
        [sys.executable, project / "tools" / "readme.py", tmp_path], check=True
    )
    made, kept = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in [folder / "README.md", *folder.glob("images/readme_*")]
        }
        for folder in (tmp_path, project)
    )
    assert made == kept, (
        "README.md or its pictures are not those of nbs/index.ipynb: run `make readme`"
    )


@pytest.mark.parametrize("path", notebooks, ids=[path.stem for path in notebooks])
def test_notebook_is_run_and_clean(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    silent = [
        source
        for cell in cells
        if (source := "".join(cell["source"]))
        and cell["cell_type"] == "code"
        and not cell["outputs"]
        and not source.startswith(("#| cuda", "#| eval: false"))
        and re.search(r"(?m)^(print\(|show_images\(|plot_\w+\()", source)
    ]
    assert outputs and not silent, (
        f"run the notebook and commit its outputs; this cell has none: {silent[:1]}"
    )
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(
        re.search(r"\d+%\|", str(output)) or "widget-view" in str(output)
        for output in outputs
    ), "a progress bar was kept"
    assert "".join(cells[0]["source"]).startswith("# ") and "\n> " in "".join(
        cells[0]["source"]
    ), "a title and a one-line promise come first"


def test_no_kept_output_shows_where_it_was_run():
    for path in [
        *(project / "nbs").rglob("*.ipynb"),
        *(project / "solutions").rglob("*.ipynb"),
    ]:
        text = path.read_text(encoding="utf-8")
        assert str(project) not in text and not re.search(
            r"\.py:\d+: \w*Warning", text
        ), f"{path.name} keeps a path of this machine, perhaps in a warning"


def test_site_configuration_is_shared():
    assert (project / "nbs" / "_quarto.yml").is_symlink() and (
        project / "nbs" / "_quarto.yml"
    ).resolve() == project / "_quarto.yml"


def settings_version():
    settings = (project / "settings.ini").read_text(encoding="utf-8")
    return re.search(r"(?m)^version = (\S+)$", settings)[1]


def test_the_citation_is_that_of_this_version():
    text = (project / "CITATION.cff").read_text(encoding="utf-8")
    citation = yaml.safe_load(text)
    assert citation["version"] == settings_version()
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    papers = citation["references"]
    methods = [name for paper in papers for name in paper["notes"].split(", ")]
    assert set(methods) - {"CLIP"} <= set(clipadapt.__all__)
    for paper in papers:  # names must differ, as the format asks
        names = [str(author) for author in paper["authors"]]
        assert paper["type"] and paper["title"] and len(set(names)) == len(names)
    known = (project / "nbs" / "pages" / "bibliography.md").read_text(encoding="utf-8")
    assert all(f"({paper['url']})" in known for paper in papers)


def test_the_changelog_says_where_modules_are():
    """What it tells people of 0.1.0 to import is there."""
    text = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    moving = text.split("### Moving from 0.1.0")[1].split("### New")[0]
    rows = re.findall(r"(?m)^\| `clipadapt\..*?\| (.*) \|$", moving)
    rooms = {"images", "clip", "learning", "methods", "judge", "app"}
    named = {
        name
        for row in rows
        for name in re.findall(r"`(\w+\.\w+)`", row)
        if name.split(".")[0] in rooms
    }
    assert len(named) > 30
    assert all(
        (project / "clipadapt" / f"{n.replace('.', '/')}.py").exists() for n in named
    )
    lines = [
        line.split("#")[0]
        for line in re.findall(r"(?m)^from .*$", moving)
        if any(line.startswith(f"from clipadapt.{room}.") for room in rooms)
    ]
    assert len(lines) >= 4
    for line in lines:
        exec(line, {})


def test_links_of_the_papers_lead_somewhere():
    for page in project.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
            assert (project / link).exists(), f"{page.name}: {link}"


def shipped():
    """What is shipped and is neither code nor a notebook, as paths; nothing that git
    ignores, such as what building the site leaves."""
    folders = ["clipadapt", "nbs", "images"]
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", *folders]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True)
    paths = [Path(name) for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix not in {".py", ".ipynb"}]


def test_licences_list_every_file_that_is_no_code():
    text = (project / "LICENCES.md").read_text(encoding="utf-8")
    table = re.findall(r"(?m)^\| (`.*?`) \| ", text)
    patterns = [pattern for row in table for pattern in re.findall(r"`(.*?)`", row)]
    files = shipped()
    assert len(files) > 40
    for path in files:
        assert any(path.match(pattern) for pattern in patterns), f"list {path}"
    for pattern in patterns:
        assert any(path.match(pattern) for path in files), f"nothing is {pattern}"


def test_builtin_model_is_small():
    assert (
        sum(
            path.stat().st_size
            for path in (project / "clipadapt" / "clip" / "builtin").iterdir()
        )
        <= 4_000_000
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            folder,
            project,
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_model_and_nothing_foreign(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "clipadapt/clip/builtin/weights.safetensors",
        "clipadapt/clip/builtin/open_clip_config.json",
        "clipadapt/images/datasets.json",
        "clipadapt/judge/report.html",
        "clipadapt/__main__.py",
        "clipadapt/course/nbs/01_zeroshot.ipynb",
        "clipadapt/course/solutions/18_project.ipynb",
        "clipadapt/course/nbs/engine/growth.jsonl",
    } <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "clipadapt"
    }
    licences = {n.split("/")[-1] for n in names if ".dist-info/licenses/" in n}
    assert licences == {"LICENSE", "LICENCES.md"}
    assert wheel.stat().st_size <= 4_500_000  # 1.3 MB of them for the course


def test_wheel_works_outside_the_checkout_and_offline(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "installed"),
        "CLIPADAPT_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    code = (
        f"import clipadapt; assert clipadapt.__file__.startswith({str(tmp_path)!r}); "
        f"{FIRST_LINE}"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    train, test = digits("train"), digits("test")
    assert float(answer.stdout) == ZeroShot(load_clip(), train.classnames).fit(
        train
    ).score(test)


STAND_IN = """#!/bin/sh
# a stand-in for python: makes a .venv whose python does nothing but write down what it
# was asked
echo "$@" >> calls
case "$*" in *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;; esac
case "$*" in *"pip install"*) [ ! -e fail ] || exit 1 ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and a stand-in for python."""
    for name in ("Makefile", "settings.ini", "setup.py"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755 | stat.S_IEXEC)
    return tmp_path


def make_demo(folder: Path) -> tuple[int, list[str]]:
    """Run `make demo`; return its exit code and the commands that the stand-in saw."""
    (folder / "calls").write_text("")
    code = subprocess.run(
        ["make", "demo", "PYTHON=./python"], cwd=folder, capture_output=True
    ).returncode
    return code, (folder / "calls").read_text().splitlines()


def test_make_sets_up_once_and_repairs_a_half_made_environment(checkout):
    (checkout / "fail").touch()
    code, calls = make_demo(checkout)
    assert code != 0 and any("-m venv" in call for call in calls)
    (checkout / "fail").unlink()
    code, calls = make_demo(checkout)
    assert (
        code == 0
        and any("-m venv --clear" in call for call in calls)
        and any("demo()" in call for call in calls)
    )
    code, calls = make_demo(checkout)
    assert code == 0 and len(calls) == 1 and "demo()" in calls[0], (
        "the second call starts at once"
    )


def test_the_extra_dev_asks_for_what_the_other_extras_ask_for():
    own = versions.requirements("dev_")
    others = versions.requirements(*(f"{extra}_" for extra in versions.EXTRAS))
    both = own.keys() & others.keys()
    assert {"onnx", "cleanlab"} <= both
    assert {name: own[name] for name in both} == {name: others[name] for name in both}


def test_tables_have_the_same_names_in_every_run():
    def kept(drawn: str):
        html = f'<style>#T_{drawn}_row0 {{}}</style><table id="T_{drawn}">'
        table = {"output_type": "display_data", "metadata": {}}
        table["data"] = {"text/html": html}
        cell = nbformat.v4.new_code_cell(id="cell-1")
        cell.outputs = [nbformat.from_dict(table) for _ in range(2)]
        return nbformat.v4.new_notebook(cells=[cell])

    one, another = kept("00abc"), kept("fffff")
    assert clean.clean(one) and clean.clean(another) and one == another
    first, second = (str(output) for output in one.cells[0].outputs)
    assert "#T_cell-1_row0" in first and "T_cell-1-1" in second
    assert not clean.clean(one)
