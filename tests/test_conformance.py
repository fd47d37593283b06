"""Every method, command and report on other kinds of CLIP; see `conformance`."""

import gc
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conformance.cases import CASES, REFUSED, check_words, choose, try_case
from conformance.models import KINDS, WHOLE, write_model
from conformance.photographs import (
    SHAPES,
    TEXTURES,
    disc,
    proportions,
    write_photographs,
)
from PIL import Image

from clipadapt import ImageSet, Prototypes, ZeroShot, load_clip
from clipadapt.app.cli import main
from clipadapt.app.runs import METHODS
from clipadapt.clip.model import CLIP
from clipadapt.images import corruptions
from clipadapt.judge import robustness
from clipadapt.judge.compare import corruption_accuracies, run_all, tabulate
from clipadapt.judge.selection import label_free, recommend_without_labels
from clipadapt.learning import students, training

NARROW = [kind for kind in KINDS if kind != WHOLE]
QUICK = {  # a narrow student, fewer views and fewer templates, so that it is quick
    "CoReg, resnet": {"options": {"width": 8}, "views": 2},
    "CoReg, as for EuroSAT": {
        "options": {"width": 8, "preactivation": True, "stride": 2},
        "templates": "single",
    },
    "CoReg, head": {"templates": "single", "views": 2},
    "CoReg, clip": {"templates": "single", "views": 1},
    "LPCLIP": {"templates": "single"},
    "LPCLIP, new views": {"templates": "single"},
}
ONCE = (  # they tell nothing of another kind that another case does not
    "CoReg, resnet",
    "CoReg, as for EuroSAT",
    "LPCLIP, new views",
    "FLYP, half",
    "ZeroShot, DTD's templates",
)
FEATURES = (  # they see rows of features, whichever network made them
    "NearestNeighbours",
    "Prototypes",
    "AnchoredMixture",
    "TransCLIP",
    "StatA",
    "ZLaP",
    "GaussianEM",
    "EMDirichlet",
    "OTTER",
    "InMaP",
)
INSIDE = ("FPL", "IFPL", "GRIP", "CPL", "LatteCLIP", "FLYP", "ReCLIP", "CoReg, clip")
MEMORY = 3000  # megabytes


@pytest.fixture(scope="module", autouse=True)
def little_to_collect():
    """`try_case` collects garbage: not again and again among all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The cache of a test, its own; and no progress bars, and no network."""
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CLIPADAPT_CACHE", str(place))
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs in 47 sub-folders, two a class."""
    return write_photographs(tmp_path_factory.mktemp("images") / "photographs")


@pytest.fixture(scope="module")
def photographs(folder):
    return choose(folder, unlabelled=8, test=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Narrow models by kind, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            place = tmp_path_factory.mktemp("models") / "model"
            made[kind] = load_clip(write_model(kind, place), device="cpu")
        return made[kind]

    return get


def test_photographs_have_every_shape_and_mode(folder):
    images = ImageSet.from_folder(folder)
    assert images.classnames == TEXTURES and len(TEXTURES) == 47 and not images.skipped
    for number, shape in enumerate(SHAPES):
        path = next(folder.rglob(f"{number:03d}.*"))
        with Image.open(path) as kept:
            assert kept.mode == shape.mode and kept.size == shape.size
        read = images[list(images.images).index(path)][0]
        assert read.mode == "RGB"
        assert read.size == (shape.size[::-1] if shape.turned else shape.size)


def _runs(kind, name):
    """Whether a case belongs to the short run of a kind.

    Quick-GELU is seen only by what computes with the towers' own layers, or trains
    them; a ResNet by all that does more than read features.
    """
    if kind == "ViT, quick-GELU":
        return name.startswith(INSIDE) and name not in ONCE
    if kind in ("ResNet", "ConvNeXt") and name in FEATURES:
        return False
    return kind == "ViT" or name not in ONCE


def _case(kind, name):
    """A case of a kind. A ConvNeXt differs from a ResNet, which is seen every time, in
    its layers alone."""
    marks = [pytest.mark.large] if kind == "ConvNeXt" else []
    return pytest.param(kind, name, marks=marks)


@pytest.mark.parametrize(
    ("kind", "name"),
    [_case(kind, name) for kind in NARROW for name in CASES if _runs(kind, name)],
)
def test_every_method_runs_or_says_why_not(models, photographs, tmp_path, kind, name):
    few = 4 if name == "CoReg, clip" else 8
    result = try_case(
        models(kind), name, photographs, tmp_path, few, **QUICK.get(name, {})
    )
    expected = REFUSED.get((kind, name))
    if expected is None:
        assert result.status == "ok", result.reason
    else:
        assert result.status == "refused" and expected in result.reason
        assert "\n" not in result.reason and len(result.reason) < 500


@pytest.fixture
def seen(monkeypatch):
    """Width over height of the disc in all that a CLIP or a student reads."""
    found, prepare, answer = [], CLIP._input, students.Student.forward

    def prepared(self, *pixels):
        batch = prepare(self, *pixels)
        found.extend(proportions(image.mean(0).numpy()) for image in batch)
        return batch

    def forward(self, inputs):
        if inputs.ndim == 4:
            found.extend(proportions(image.mean(0).numpy()) for image in inputs)
        return answer(self, inputs)

    monkeypatch.setattr(CLIP, "_input", prepared)
    monkeypatch.setattr(students.Student, "forward", forward)
    return found


VIEWED = [
    "CoReg, resnet",
    "CoReg, head",
    "CoReg, clip",
    "LatteCLIP",
    "LPCLIP",
    "FLYP",
    "ReCLIP",
]


@pytest.mark.parametrize("kind", ["ViT", "SigLIP"])
@pytest.mark.parametrize("name", VIEWED)
def test_a_disc_keeps_its_proportions(models, seen, kind, name):
    """Those of the photograph, or, for a CLIP that squashes, as that sees it.

    CLIP's own training crop, which fine-tuning takes, changes them by up to a quarter.
    """
    images, case = ImageSet([disc(300, 200)] * 16), CASES[name]
    plain = {"templates": "single", "mixup": 0.0} if name.startswith("CoReg") else {}
    changed = {**case.params, **QUICK.get(name, {}), **plain}
    method = case.method(models(kind), TEXTURES, **changed).fit(images)
    trained = np.nanmedian(seen)
    seen.clear()
    method.predict(images.subset(range(2)))
    squashed = kind == "SigLIP" and name != "CoReg, resnet"
    assert np.nanmedian(seen) == pytest.approx(2 / 3 if squashed else 1, abs=0.05)
    free = name in ("LatteCLIP", "FLYP") and not squashed
    assert trained == pytest.approx(np.nanmedian(seen), rel=0.27 if free else 0.12)


def test_runs_are_compared_selected_and_corrupted(models, photographs):
    clip, pool, test = models("SigLIP"), photographs.pool, photographs.test
    methods = [ZeroShot(clip, TEXTURES), Prototypes(clip, TEXTURES)]
    runs = run_all(methods, pool, test)
    table = tabulate(runs, test)
    check_words(table.to_string() + recommend_without_labels(runs, test), "the table")
    assert label_free(runs, test)["confidence"].between(0, 1).all()
    few = test.subset(range(2))
    assert corruption_accuracies(runs, few, severity=3).to_numpy().min() >= 0
    outside = {"noise": robustness.noise(3)}
    facts = robustness.evaluate(
        runs[1].method, few, corruptions=["fog"], severities=[5], outside=outside
    )
    summary = robustness.summarise(facts)
    check_words(facts.to_string() + summary.to_string(), "the table")
    assert np.isfinite(facts["value"]).all()


@pytest.mark.parametrize("shape", [SHAPES[i] for i in (0, 3, 6, 9)], ids=str)
def test_corruptions_keep_the_size(folder, shape):
    path = next(folder.rglob(f"{SHAPES.index(shape):03d}.*"))
    for name in corruptions.CORRUPTIONS:
        corrupted = corruptions.corrupt(path, name, 5, np.random.default_rng(0))
        assert corrupted.size == shape.size and corrupted.mode == "RGB", name


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    """Options for a photograph of every shape, in sub-folders, and all 47 classes."""
    place = tmp_path_factory.mktemp("single")
    for number in range(len(SHAPES)):
        path = next(folder.rglob(f"{number:03d}.*"))
        (place / "photographs" / path.parent.name).mkdir(parents=True)
        shutil.copy(path, place / "photographs" / path.parent.name)
    (place / "classes.txt").write_text("\n".join(TEXTURES))
    return ["--images", place / "photographs", "--classes", place / "classes.txt"]


def command(*arguments):
    """What a command says; it must succeed, and must not speak of handwriting."""
    given = [str(argument) for argument in arguments]
    done = CliRunner().invoke(main, given, prog_name="clipadapt")
    assert done.exit_code == 0, done.output
    check_words(done.output, arguments[0])
    return done.output


def check_files(folder):
    """No file of text below `folder` speaks of handwriting."""
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".json", ".txt", ".html", ".sqlite"):
            text = path.read_bytes().decode("utf-8", "ignore")
            check_words(re.sub(r"data:image/[^\"]*", "", text), path.name)


SHORT = {
    **{name: ["epochs=2", "rounds=2", "k=1"] for name in ("fpl", "ifpl", "grip")},
    "cpl": ["epochs=2", "rounds=2"],
    **{name: ["epochs=2"] for name in ("latteclip", "flyp", "reclip")},
    "lpclip": ["epochs=2", "templates=single"],
    "coreg": ["epochs=2", "warmup_epochs=1", 'options={"width": 8}', "views=1"],
}


@pytest.mark.parametrize("method", METHODS)
def test_adapt_and_predict_on_photographs(single, models, tmp_path, cache, method):
    model = ["--model", models("ViT").name, "--device", "cpu"]
    settings = [part for text in SHORT.get(method, []) for part in ("--set", text)]
    out, answers = tmp_path / "run", tmp_path / "answers.csv"
    command("adapt", *single, *model, "--method", method, *settings, "--out", out)
    command("predict", *single[:2], *model, "--saved", out, "--out", answers)
    assert len(answers.read_text().splitlines()) == 1 + len(SHAPES)
    check_files(tmp_path)
    check_files(cache)


def test_the_other_commands_on_photographs(single, models, tmp_path, cache):
    model = ["--model", models("SigLIP").name, "--device", "cpu"]
    answers, features = tmp_path / "answers.json", tmp_path / "features.npy"
    command("zero-shot", *single, *model, "--probabilities", "--out", answers)
    command("encode", *single[:2], *model, "--out", features)
    methods = ["--methods", "prototypes,zero-shot"]
    command("compare", *single, *model, *methods, "--out", tmp_path / "compared")
    assert np.load(features).shape == (len(SHAPES), 96)
    assert (tmp_path / "compared" / "report.html").is_file()
    check_files(tmp_path)
    check_files(cache)


WHOLE_MODEL = """
import json, sys
from tests.conformance.__main__ import peak_megabytes
from clipadapt.app.cli import main

for arguments in json.loads(sys.argv[1]):
    main(arguments, standalone_mode=False)
print(peak_megabytes())
"""


@pytest.mark.large
def test_a_whole_model_needs_less_than_three_gigabytes(single, tmp_path):
    """ViT-B/32, random, in a process of its own: a command, and a report."""
    model = write_model(WHOLE, tmp_path / "model")
    given = ["--model", model, "--device", "cpu", "--out", str(tmp_path / "run")]
    commands = [["compare", *map(str, single), *given, "--methods", "zero-shot"]]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_MODEL, json.dumps(commands)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[-1]) < MEMORY
    check_words(done.stdout + done.stderr, "compare")
    check_files(tmp_path / "run")


def test_the_benchmark_for_a_gpu_runs_without_one():
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    gpu = runpy.run_path(str(path))
    clip, images = gpu["random_clip"]("cpu", narrow=True), gpu["noise"](4)
    for kind, params in gpu["CASES"].values():
        kind(clip, TEXTURES, **params)  # a parameter that is gone is an error
    row = gpu["measure"]("ReCLIP, 64", clip, images, batch=2)
    assert row["error"] is None and row["steps"] >= 2 and row["steps a second"] > 0


def test_it_counts_a_step_that_a_large_network_takes_in_parts_as_one(monkeypatch):
    path = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    gpu = runpy.run_path(str(path))
    monkeypatch.setattr(training, "GRADIENTS", 1000)
    clip, images = gpu["random_clip"]("cpu", narrow=True), gpu["noise"](4)
    row = gpu["measure"]("FLYP, 512", clip, images, batch=2)
    assert row["error"] is None and row["steps"] == 2 * 2
