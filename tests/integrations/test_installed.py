"""The package as pip installs it: its course, written and run, and its doctor where a
library is broken. Minutes, because a wheel is built and a chapter is run."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PROJECT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def build(source, target):
    """The wheel of a source tree, made with the setuptools that are here."""
    how = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(target)]
    subprocess.run([*PIP, "wheel", *how, str(source)], check=True)
    return next(Path(target).glob("*.whl"))


def call(*arguments, cwd, path=(), **more):
    """A command of the package that `path` leads to."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "clipadapt", *map(str, arguments)]
    how = {"capture_output": True, "text": True, "env": environment | more}
    return subprocess.run(command, cwd=cwd, **how)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git knows of this project, without results of earlier builds."""
    root = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True)
    for name in listed.stdout.decode().split("\n"):
        if name and (PROJECT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, root / name)
    return root


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the package, for sys.path."""
    place = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(place)
    return place


def contents(wheel):
    return {one.filename: one.CRC for one in zipfile.ZipFile(wheel).infolist()}


def test_the_sources_make_the_same_wheel(checkout, wheel, tmp_path):
    before = (checkout / "nbs" / "01_zeroshot.ipynb").read_bytes()
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True)
    assert (checkout / "nbs" / "01_zeroshot.ipynb").read_bytes() == before
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    stripped = json.loads((sources / "nbs" / "01_zeroshot.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in stripped["cells"])
    assert contents(build(sources, tmp_path / "wheel")) == contents(wheel)


def test_the_course_is_written_from_an_editable_installation(checkout, tmp_path):
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    (site,) = (tmp_path / "environment" / "lib").glob("*/site-packages")
    ours = [one for one in sys.path if one.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(ours))
    how = ["--no-deps", "--no-build-isolation", "--quiet", "--editable", checkout]
    subprocess.run([python, "-m", "pip", "install", *how], check=True)
    environment = {
        name: os.environ[name] for name in os.environ if name != "PYTHONPATH"
    }
    command = [python, "-m", "clipadapt", "course", tmp_path / "mine", "--json"]
    how = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr
    assert "nbs/18_project.ipynb" in json.loads(done.stdout)["written"]
    assert not (checkout / "clipadapt" / "course").exists()


@pytest.mark.parametrize("name", ["01_zeroshot", "09_captions", "16_selection"])
def test_a_chapter_runs_where_it_was_written(name, installed, tmp_path, monkeypatch):
    done = call("course", "mine", "--json", cwd=tmp_path, path=[installed])
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("PYTHONPATH", str(installed))
    path = tmp_path / "mine" / "nbs" / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    where = "import clipadapt; print(clipadapt.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(where))
    for cell in notebook.cells:
        if cell.source.startswith(("#| slow", "#| cuda", "#| eval: false")):
            cell.source = ""
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert str(installed) in notebook.cells[-1].outputs[0].text


def test_the_doctor_comes_where_a_library_is_broken(installed, tmp_path):
    for name, content in (
        ("pandas", "raise ImportError('built for another Python')"),
        ("seaborn", "import os; os.kill(os.getpid(), 4)"),
    ):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{name}.py").write_text(content)
    path = [tmp_path / "broken", installed]
    done = call("doctor", "--json", cwd=tmp_path, path=path)
    answer = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    found = {one["name"]: one for one in answer["findings"]}
    assert "built for another Python" in found["pandas"]["text"]
    assert "pip install --force-reinstall" in found["pandas"]["repair"]
    assert "signal 4" in found["seaborn"]["text"]
    assert found["numpy"]["state"] == found["torch"]["state"] == "ok"
    done = call("adapt", cwd=tmp_path, path=path)
    assert done.returncode == 1 and "doctor` says how to repair it" in done.stderr
