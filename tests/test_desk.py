"""The command line in a script and on a desk that was moved: one JSON value on the
standard output, paths that lead anywhere, models that lie elsewhere by now."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import clipadapt.__main__
from clipadapt import Adapter, digits
from clipadapt.app import course, doctor
from clipadapt.app.cli import _tags_in, main
from clipadapt.app.runs import read_config
from clipadapt.clip.model import builtin_directory
from clipadapt.learning import hub

PROJECT = Path(__file__).resolve().parent.parent
CLASSES = ",".join(digits("test").classnames)


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="clipadapt")


def in_json(*arguments):
    """The exit code and the value that `--json` prints, and nothing else with it."""
    done = run(*arguments, "--json")
    return done.exit_code, json.loads(done.stdout)


def commands(group=main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Images with labels, a model in a folder, templates, and a run with all three."""
    root = tmp_path_factory.mktemp("desk")
    images = digits("test").subset(range(12))
    for number, (image, label) in enumerate(images):
        place = root / "photos" / images.classnames[label]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    shutil.copytree(builtin_directory(), root / "model")
    (root / "templates.json").write_text('["a photo of the digit {}."]')
    (root / "classes.txt").write_text(CLASSES.replace(",", "\n"))
    before = os.getcwd()
    os.chdir(root)
    try:
        code, answer = in_json(*ADAPT)
    finally:
        os.chdir(before)
    assert code == 0, answer
    return root, answer


ADAPT = "adapt --images photos --classes classes.txt --model local-dir:model".split()
ADAPT += "--method prototypes --set templates=templates.json --out run".split()


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_answers_in_json(path):
    code, answer = in_json(*path, "--no-such-option")
    assert (
        code == 2 and set(answer) == {"error", "exit_code"} and answer["exit_code"] == 2
    )
    assert "--json" in run(*path, "--help").stdout


def test_results_are_one_json_value(desk, tmp_path, monkeypatch):
    root, adapted = desk
    assert adapted["out"] == str(root / "run") and adapted["images"] == 12
    same = ("--saved", root / "run", "--images", root / "photos", "--model")
    same += (f"local-dir:{root / 'model'}",)
    code, answer = in_json("predict", *same)
    assert code == 0 and answer["count"] == len(answer["rows"]) == 12
    assert answer["accuracy"] == adapted["accuracy"]
    code, written = in_json("predict", *same, "--out", tmp_path / "a.csv")
    assert code == 0 and written["out"] == str(tmp_path / "a.csv")
    assert "rows" not in written and (tmp_path / "a.csv").is_file()
    monkeypatch.setattr("clipadapt.judge.report.report", lambda *_: None)  # plots
    code, answer = in_json(
        *("compare", "--images", root / "photos", "--out", tmp_path / "compared"),
        *("--methods", "zero-shot,prototypes"),
    )
    assert code == 0 and [row["method"] for row in answer["table"]] == [
        "zero-shot",
        "prototypes",
    ]
    code, answer = in_json(
        "encode", "--images", root / "photos", "--out", tmp_path / "f.npy"
    )
    assert (code, answer["count"], answer["dim"]) == (0, 12, 64)
    for command in ("list", "verify", "compact"):
        code, answer = in_json("store", command)
        assert code == 0 and answer


def test_errors_are_json_with_the_exit_code(desk, tmp_path, monkeypatch):
    root, _ = desk
    asked = ("zero-shot", "--images", root / "photos", "--classes", CLASSES)
    code, answer = in_json("zero-shot", "--images", tmp_path / "no", "--classes", "a,b")
    assert code == answer["exit_code"] == 1 and "no such folder" in answer["error"]
    code, answer = in_json("teach")
    assert code == answer["exit_code"] == 2 and "No such command" in answer["error"]
    for error, code, words in (
        (KeyboardInterrupt(), 130, "interrupted. Nothing was written."),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
    ):
        monkeypatch.setattr(
            "clipadapt.clip.features.StoredCLIP.encode_image",
            lambda *_, error=error, **__: (_ for _ in ()).throw(error),
        )
        done = run(*asked, "--json")
        answer = json.loads(done.stdout)
        assert done.exit_code == code, done.output
        assert answer == {"error": words, "exit_code": code}


def test_what_a_library_prints_is_no_json(desk, monkeypatch):
    import clipadapt.clip.model as model

    root, _ = desk
    load = model.load_clip
    monkeypatch.setattr(
        model, "load_clip", lambda *a, **k: print("downloading") or load(*a, **k)
    )
    done = run(
        *("zero-shot", "--images", root / "photos", "--classes", CLASSES, "--json")
    )
    assert json.loads(done.stdout)["count"] == 12 and "downloading" in done.stderr


def test_a_run_goes_on_from_another_folder(desk, tmp_path, monkeypatch):
    root, _ = desk
    options = read_config(root / "run" / "config.json")
    assert options["model"] == f"local-dir:{root / 'model'}"
    assert options["settings"] == [f"templates={root / 'templates.json'}"]
    assert options["images"] == str(root / "photos")
    assert options["classes"] == str(root / "classes.txt")
    monkeypatch.chdir(tmp_path)
    (root / "run" / "record.json").unlink()  # else the run is finished
    again = ("adapt", "--config", root / "run" / "config.json", "--resume")
    before = pd.read_csv(root / "run" / "predictions.csv")
    done = run(*again, "--out", root / "run")
    assert done.exit_code == 0, done.output
    again = pd.read_csv(root / "run" / "predictions.csv")
    assert [*again.image] == [str(root / name) for name in before.image]
    pd.testing.assert_frame_equal(again, before.assign(image=again.image))


WRITES = {
    "run": ("adapt", "--method", "zero-shot"),
    "answers.csv": ("predict",),
    "answers.json": ("predict",),
    "guesses.csv": ("zero-shot",),
    "captions.csv": ("caption", "--captioner", "attributes"),
    "f.npy": ("encode",),
}


@pytest.mark.parametrize(
    "given, written", [("photos", WRITES), ("{root}/photos", ["run", "answers.csv"])]
)
def test_every_table_calls_an_image_as_it_was_given(
    desk, tmp_path, monkeypatch, given, written
):
    root, _ = desk
    monkeypatch.chdir(root)
    given = given.format(root=root)
    names = sorted(map(str, Path(given).rglob("*.png")))
    tables = []
    for name in written:
        command = [*WRITES[name], "--images", given, "--out", tmp_path / name]
        if command[0] != "caption":
            command += ["--model", "local-dir:model"]
        if command[0] == "predict":
            command += ["--saved", tmp_path / "run"]
        code, answer = in_json(*command)
        assert code == 0 and answer["out"] == str(tmp_path / name), answer
    tables = [pd.read_csv(one) for one in tmp_path.rglob("*.csv")]
    tables += [pd.read_json(one) for one in tmp_path.rglob("answers.json")]
    found = [sorted(table.image) for table in tables]
    found += [json.loads(one.read_text())["names"] for one in tmp_path.rglob("f.json")]
    assert len(found) == len(written) and found == [names] * len(found)
    kept = read_config(tmp_path / "run" / "config.json")
    assert kept["images"] == str(root / "photos")


def test_paths_in_a_config_begin_at_home(desk, tmp_path, monkeypatch):
    root, _ = desk
    monkeypatch.setenv("HOME", str(root))
    config = {"command": "adapt", "images": "~/photos", "classes": "~/classes.txt"}
    config |= {"model": "local-dir:~/model", "method": "prototypes"}
    config |= {"settings": ["templates=~/templates.json"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, answer = in_json(
        *("adapt", "--config", tmp_path / "config.json", "--out", tmp_path / "run")
    )
    assert code == 0 and answer["images"] == 12, answer
    kept = read_config(tmp_path / "run" / "config.json")
    assert kept["images"] == str(root / "photos")
    assert kept["model"] == f"local-dir:{root / 'model'}"
    assert kept["settings"] == [f"templates={root / 'templates.json'}"]


NOBODY = "~nobody-of-this-name/x"


@pytest.mark.parametrize("path, command", [*commands()], ids=str)
def test_nobodys_home_is_one_sentence_in_every_path(path, command):
    """Options are read in their order; what is required before is given."""
    from clipadapt.app.cli import PATH

    for option in command.params:
        if option.type is PATH:
            named = [option.opts[0]] if isinstance(option, click.Option) else []
            done = run(*path, *_others(command, option), *named, NOBODY)
            assert done.exit_code == 2, (option.name, done.output)
            assert "no user 'nobody-of-this-name' here" in done.stderr, done.output


def _others(command, option):
    for other in command.params:
        if other.required and other is not option and other.opts[0].startswith("-"):
            yield from (other.opts[0], "x")


def test_a_model_that_moved_is_named_and_compared(desk, tmp_path):
    root, adapted = desk
    saved = ("--saved", root / "run", "--images", root / "photos", "--json")
    shutil.copytree(root / "model", tmp_path / "moved")
    refused = run("predict", *saved)
    assert (
        refused.exit_code == 1
        and "where it lies now" in json.loads(refused.stdout)["error"]
    )
    moved = run("predict", *saved, "--model", f"local-dir:{tmp_path / 'moved'}")
    assert moved.exit_code == 0, moved.output
    assert json.loads(moved.stdout)["accuracy"] == adapted["accuracy"]
    (file,) = (tmp_path / "moved").glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if weights[name].is_floating_point())
    weights[name] = weights[name] + torch.ones_like(weights[name])
    save_file(weights, file)
    other = run("predict", *saved, "--model", f"local-dir:{tmp_path / 'moved'}")
    assert other.exit_code == 1 and "other weights" in json.loads(other.stdout)["error"]


@pytest.fixture
def clinic(monkeypatch, tmp_path):
    """The doctor, who looks at four libraries that take no time; one is sound."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('nms is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    listed = [
        doctor.Needed("click", ">=8.1", "click"),
        doctor.Needed("tqdm", ">=999", "tqdm"),
        doctor.Needed("numpy", "", "broken_library"),
        doctor.Needed("never-heard-of", ">=1", "never_heard_of"),
    ]
    core = lambda extra="": [] if extra else listed
    monkeypatch.setattr(doctor, "needed", core)
    facts = {"threads": 1, "build": None, "cuda": [], "mps": False, "openmp": []}
    folders = {"folders": {"clipadapt": str(tmp_path / "cache")}}
    look = doctor.imported
    answers = {"devices": facts, "caches": folders}
    monkeypatch.setattr(
        doctor,
        "imported",
        lambda names: {**look([n for n in names if n not in answers]), **answers},
    )
    return answers


def findings(answer):
    return {one["name"]: one for one in answer["findings"]}


def test_the_doctor_names_what_is_broken_and_the_line_that_repairs_it(clinic):
    code, answer = in_json("doctor")
    assert code == 1 and answer["broken"] == ["tqdm", "numpy", "never-heard-of"]
    found = findings(answer)
    assert found["click"]["state"] == "ok"
    assert found["tqdm"]["repair"] == "pip install --upgrade 'tqdm>=999'"
    assert "nms is missing" in found["numpy"]["text"]
    assert found["never-heard-of"]["repair"] == "pip install 'never-heard-of>=1'"
    done = run("doctor")
    assert done.exit_code == 1 and "Broken: tqdm, numpy, never-heard-of." in done.stdout


def test_the_doctor_looks_at_caches_configs_and_both_builds_of_faiss(
    clinic, monkeypatch, tmp_path
):
    monkeypatch.setattr(doctor, "needed", lambda extra="": [])
    code, answer = in_json("doctor")
    assert code == 0 and answer["broken"] == [], answer
    monkeypatch.setattr(
        doctor, "_installed", lambda: {"faiss-cpu": "1.9", "faiss-gpu": "1.15"}
    )
    (tmp_path / "cache").write_text("a file where a folder should be")
    (tmp_path / "config.json").write_text("[]")
    code, answer = in_json("doctor", tmp_path / "config.json")
    assert code == 1
    assert answer["broken"] == ["faiss", "clipadapt", str(tmp_path / "config.json")]
    assert "pip uninstall -y faiss-cpu faiss-gpu" in findings(answer)["faiss"]["repair"]


def test_the_doctor_sees_gpus_that_are_not_used(clinic, monkeypatch):
    facts = clinic["devices"]
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (gpu,) = (one for one in doctor.check_devices(clinic) if one.name == "GPU")
    assert gpu.state == "broken" and "built for CPUs" in gpu.text
    facts.update(build="13.0", reason="the driver is too old")
    (gpu,) = (one for one in doctor.check_devices(clinic) if one.name == "GPU")
    assert gpu.state == "broken" and "driver" in gpu.repair
    facts.update(cuda=["NVIDIA H100"])
    (gpu,) = (one for one in doctor.check_devices(clinic) if one.name == "GPU")
    assert gpu.state == "ok" and gpu.text == "NVIDIA H100"


def test_a_check_that_fails_is_a_finding(clinic, monkeypatch):
    def fail(*_):
        raise RuntimeError("ill itself")

    monkeypatch.setattr(doctor, "check_devices", fail)
    code, answer = in_json("doctor")
    assert (
        code == 1 and findings(answer)["doctor"]["text"] == "RuntimeError: ill itself"
    )


def test_the_doctor_comes_where_the_command_line_cannot_be_imported(
    clinic, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "clipadapt.app.cli", None)
    monkeypatch.setattr(sys, "argv", ["clipadapt", "doctor", "--json"])
    with pytest.raises(SystemExit) as end:
        clipadapt.__main__.main()
    assert (
        end.value.code == 1 and "tqdm" in json.loads(capsys.readouterr().out)["broken"]
    )
    monkeypatch.setattr(sys, "argv", ["clipadapt", "adapt"])
    with pytest.raises(SystemExit, match="`clipadapt doctor` says how to repair it"):
        clipadapt.__main__.main()


def test_the_doctor_imports_only_what_comes_with_python():
    code = (
        "import sys; before = {*sys.modules}; import clipadapt.app.doctor; "
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before})"
    )
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} - {"clipadapt"} <= sys.stdlib_module_names


def test_the_doctor_knows_every_extra():
    lines = (PROJECT / "settings.ini").read_text().splitlines()
    extras = [
        line.split("_requirements")[0] for line in lines if "_requirements =" in line
    ]
    assert set(doctor.EXTRAS) == set(extras) != set()


def test_a_method_is_pushed_and_used_by_its_name(desk, monkeypatch):
    root, adapted = desk
    pushed = []

    def push_to_hub(method, name, *, private=True, test=None):
        score = None if test is None else method.score(test)
        pushed.append((name, private, score))
        return f"https://hub/{name}"

    monkeypatch.setattr(Adapter, "push_to_hub", push_to_hub)
    same = ("--saved", root / "run", "--model", f"local-dir:{root / 'model'}")
    code, answer = in_json("push", "me/pets", *same, "--test", root / "photos")
    assert (code, answer["address"]) == (0, "https://hub/me/pets")
    done = run("push", "me/pets", *same, "--public")
    said = [f"uploading {root / 'run'} to me/pets", "it is at https://hub/me/pets"]
    assert done.exit_code == 0 and done.stderr.splitlines()[-2:] == said
    accuracy = pytest.approx(adapted["accuracy"])
    assert pushed == [("me/pets", True, accuracy), ("me/pets", False, None)]

    fetched = []
    monkeypatch.setattr(
        hub, "fetch", lambda name: fetched.append(name) or root / "run" / "model"
    )
    same = ("--saved", "hf-hub:me/pets", *same[2:], "--images", root / "photos")
    code, answer = in_json("predict", *same)
    assert code == 0 and answer["accuracy"] == adapted["accuracy"]
    assert fetched == ["hf-hub:me/pets"]


def test_a_failed_push_is_one_sentence(desk, monkeypatch):
    root, _ = desk

    def push_to_hub(*_, **__):
        raise PermissionError("me/pets cannot be written without a token")

    monkeypatch.setattr(Adapter, "push_to_hub", push_to_hub)
    same = ("--saved", root / "run", "--model", f"local-dir:{root / 'model'}")
    code, answer = in_json("push", "me/pets", *same)
    assert code == 1 and answer["error"] == "me/pets cannot be written without a token"


def test_the_course_is_written_and_what_was_changed_is_kept(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(course, "open_course", opened.append)
    place = tmp_path / "mine"
    code, answer = in_json("course", place)
    assert code == 0 and answer["kept"] == [] and opened == []
    written = {name for name in answer["written"] if name.startswith("nbs/")}
    there = {f"nbs/{one.name}" for one in (PROJECT / "nbs").glob("[01]*.ipynb")}
    assert there <= written and len(there) == 18
    first = place / "nbs" / "01_zeroshot.ipynb"
    assert json.loads(first.read_text())["metadata"]["kernelspec"]["name"] == "python3"
    first.write_text("mine")
    done = run("course", place, "--no-open")
    assert done.exit_code == 0 and "kept nbs/01_zeroshot.ipynb" in done.stderr
    assert first.read_text() == "mine" and opened == []
    assert run("course", place, "--overwrite").exit_code == 0
    assert json.loads(first.read_text())["cells"] and opened == [str(place)]
    (tmp_path / "file").touch()
    code, answer = in_json("course", tmp_path / "file")
    assert code == 1 and "is a file" in answer["error"]


def test_the_course_is_there_without_jupyterlab(tmp_path, monkeypatch):
    find = course.find_spec
    absent = lambda name: None if name == "jupyterlab" else find(name)
    monkeypatch.setattr(course, "find_spec", absent)
    done = run("course", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    remedy = "to open it: pip install --upgrade 'clipadapt[course]'"
    assert done.stderr.splitlines()[-1] == remedy
    assert (tmp_path / "mine" / "nbs" / "18_project.ipynb").is_file()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return course.write_course(tmp_path_factory.mktemp("course") / "mine").folder


def test_links_of_the_written_course_lead_somewhere(written):
    """To this disk, or to the web; none leads to what only a checkout has."""
    for path in written.rglob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"]) * (cell["cell_type"] == "markdown")
            text = re.sub(r"(?s)```.*?```", "", text)
            for link in re.findall(r"\]\(([^)\s#]+)", text):
                assert "://" in link or (path.parent / link).exists(), (path, link)
            assert cell["cell_type"] != "code" or cell["outputs"] == []


def test_only_cells_that_are_begun_or_slow_may_fail_in_the_written_course(written):
    """Jupyter's "Run all" goes on behind them, and stops at any other error."""
    nbformat = pytest.importorskip("nbformat")
    begun, slow = 0, 0
    for path in written.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            lines = cell.source.split("\n") if cell.cell_type == "code" else [""]
            is_begun, is_slow = lines[0] == "#| eval: false", lines[0] == "#| slow"
            tagged = "raises-exception" in cell.metadata.get("tags", [])
            assert tagged == (is_begun or is_slow), (path, cell.id)
            code = [*(line for line in lines if not line.startswith("#|")), ""]
            assert code[0].startswith("raise RuntimeError(") == is_slow, (path, cell.id)
            begun, slow = begun + is_begun, slow + is_slow
    assert begun > 50 and slow > 50


def test_chapters_say_where_the_results_of_slow_cells_are(written):
    """They come without outputs, so nothing is shown below these cells."""
    for path in written.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        text = "".join("".join(cell["source"]) for cell in notebook["cells"])
        assert "whose results are shown)" not in text or path.stem == "course", path
    chapter = (written / "nbs" / "07_grip.ipynb").read_text(encoding="utf-8")
    assert f"[their results]({course.WEBSITE}07_grip.html)" in chapter


def test_a_cell_that_is_begun_keeps_its_other_tags():
    cells = [
        {"cell_type": kind, "metadata": {"tags": ["mine"]}, "source": [source]}
        for kind in ("code", "markdown")
        for source in ("#| code-fold: true\n#| eval: false\n...", "x\n#| eval: false")
    ]
    text = course.for_student(json.dumps({"cells": cells}), "nbs/a.ipynb", [])
    tags = [cell["metadata"]["tags"] for cell in json.loads(text)["cells"]]
    assert tags == [["mine", "raises-exception"], *[["mine"]] * 3]


def test_the_written_course_holds_what_its_notebooks_read(written):
    """Modules of folders beside the notebooks, and files that are read by name."""
    found = set()
    for path in (written / "nbs").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        codes = [
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        ]
        code = "\n".join(codes)
        for folder in re.findall(r"sys\.path\.\w+\(.*?\"((?:\.\./)+\w+)\"\)", code):
            names = re.findall(r"(?m)^from (\w+) import|^import (\w+)", code)
            beside = {one.stem for one in (PROJECT / Path(folder).name).glob("*.py")}
            used = {name for pair in names for name in pair if name in beside}
            assert used, (path, folder)
            found |= {path.parent / folder / f"{name}.py" for name in used}
        for name in re.findall(r"\"((?:engine/)?\w+\.jsonl?)\"", code):
            if (PROJECT / path.relative_to(written)).parent.joinpath(name).is_file():
                found.add(path.parent / name)
    assert len(found) >= 8
    assert [str(one) for one in found if not one.is_file()] == []


def test_the_course_names_the_site_and_the_repository_as_settings_ini_does():
    facts = dict(
        line.split(" = ", 1)
        for line in (PROJECT / "settings.ini").read_text().splitlines()
        if re.match(r"\w+ = ", line)
    )
    site = facts["doc_host"] + facts["doc_baseurl"] + "/"
    assert course.WEBSITE == site
    assert course.REPOSITORY == f"{facts['git_url']}/blob/{facts['branch']}/"


SHELL = ShellComplete(main, {}, "clipadapt", "_CLIPADAPT_COMPLETE")


def completed(line, incomplete=""):
    return [one.value for one in SHELL.get_completions(line.split(), incomplete)]


def test_tab_offers_commands_methods_models_and_saved_folders(desk, monkeypatch):
    root, _ = desk
    assert completed("", "comp") == ["compare", "completion"]
    assert completed("adapt --method", "z") == ["zero-shot", "zlap"]
    assert completed("compare --methods", "grip,cp") == ["grip,cpl"]
    assert completed("compare --methods", "a") == ["all"]
    assert "ViT-B-32" in completed("predict --model", "ViT-B-3")
    assert completed("encode --model", "local") == ["local-dir:"]
    monkeypatch.chdir(root)
    assert completed("predict --saved", "r") == ["run"]
    assert completed("predict --saved", "run/") == ["run/model"]
    assert completed("export --saved", f"{root}/r") == [f"{root}/run"]
    (other,) = SHELL.get_completions(["predict", "--saved"], "pho")
    assert (other.type, other.value) == ("dir", "pho")
    folders = [
        (path, option.opts[0])
        for path, command in commands()
        for option in command.params
        if option.metavar == "DIR"
    ]
    assert (("predict",), "--images") in folders and len(folders) > 10
    for path, option in folders:
        (other,) = SHELL.get_completions([*path, option], "pho")
        assert (other.type, other.value) == ("dir", "pho")
    (other,) = SHELL.get_completions(["adapt", "--classes"], "pho")
    assert (other.type, other.value) == ("file", "pho")


def test_tab_offers_the_weights_that_openclip_has_for_a_model():
    from open_clip import list_pretrained_tags_by_model

    for model in ("ViT-B-32", "EVA02-B-16", "convnext_base"):
        tags = sorted(list_pretrained_tags_by_model(model))
        assert tags and completed(f"adapt --model {model} --pretrained") == tags
    assert completed("predict --model ViT-B-32 --pretrained", "opena") == ["openai"]
    assert completed("adapt --model nothing --pretrained") == []
    assert completed("adapt --pretrained") == []


@pytest.mark.parametrize("code", ["", "_PRETRAINED = {}", "_PRETRAINED = dict(a=b)"])
def test_another_openclip_completes_no_weights(code):
    assert _tags_in(code, "ViT-B-32") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_completes_in_each_shell(shell):
    code, answer = in_json("completion", shell)
    script = run("completion", shell).stdout
    assert code == 0 and answer["script"] == script
    assert "_CLIPADAPT_COMPLETE" in script and "# To install it" in script
    assert "mkdir -p" in script.splitlines()[-1]
    if shell == "zsh":
        assert script.startswith("#compdef clipadapt")  # zsh reads it there only


def test_the_script_of_bash_completes(tmp_path):
    """What the shell asks the command, through the variable of the script."""
    environment = {"_CLIPADAPT_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    environment["COMP_WORDS"] = "clipadapt adapt --method otte"
    done = CliRunner(env=environment).invoke(main, [], prog_name="clipadapt")
    assert done.output.split() == ["plain,otter"]


def test_help_is_sorted_and_coloured_on_a_screen_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = run("adapt", "--help").output
    assert "\x1b" not in plain and plain.startswith("Usage: clipadapt adapt")
    parts = [plain.index(f"\n{title}:") for title in ("Options", "Model", "Results")]
    assert parts == sorted(parts)
    assert plain.index("\nModel:") < plain.index("--pretrained TAG")
    every = [option.opts[-1] for option in main.commands["adapt"].params]
    assert [name for name in every if name not in plain] == []
    coloured = CliRunner().invoke(main, ["adapt", "--help"], color=True).output
    assert "\x1b[36m--model NAME\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    bare = CliRunner().invoke(main, ["adapt", "--help"], color=True).output
    assert "\x1b" not in bare
