"""Every method on another device than the CPU: on a GPU, or on a pretended one.

A pretended GPU computes on the CPU, so answers are the CPU's to the last digits. On a
real one sums are in another order, and convolutions may use fewer bits.
"""

import json
import runpy
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pretended_gpu import OnGPU, pretended_gpu
from tiny_llava import save_tiny_llava
from torch.optim.optimizer import register_optimizer_step_post_hook

from clipadapt import CLIP, FLYP, GRIP, CoReg, LatteCLIP, ReCLIP, digits, load_clip
from clipadapt.app.cli import main
from clipadapt.app.demo import small_methods
from clipadapt.clip import model
from clipadapt.clip.captions import TransformersCaptioner
from clipadapt.images.sets import seeded
from clipadapt.learning import prompts
from clipadapt.learning.prompts import VisualPrompt
from clipadapt.learning.training import Recipe, minimise

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tools import check_gpu  # noqa: E402

REAL = torch.cuda.is_available()
CLOSE = 0.05 if REAL else 1e-4  # of probabilities
SHORT = {
    "epochs": 1,
    "warmup_epochs": 1,
    "delay": 0,
    "rounds": 1,
    "iterations": 2,
    "steps": 50,
}
NARROW = {"width": 8}
LATE = {FLYP: 3, CoReg: 7, GRIP: 2}  # the step that is the last, see below
VARIANTS = {  # beside what `small_methods` has
    "GRIP, visual": (GRIP, {"prompt": "visual", "k": 1}),
    "GRIP, multimodal": (GRIP, {"prompt": "multimodal", "k": 1}),
    "CoReg, head": (CoReg, {"student": "head", "views": 1, "templates": "single"}),
    "CoReg, clip": (CoReg, {"student": "clip", "views": 1, "templates": "single"}),
    "FLYP, in parts": (FLYP, {"accumulate": 2, "batch_size": 12}),
    "LatteCLIP, in parts": (LatteCLIP, {"accumulate": 2, "batch_size": 12}),
    "ReCLIP, in parts": (ReCLIP, {"accumulate": 2, "batch_size": 12}),
}


@pytest.fixture(scope="module")
def device():
    """A GPU, pretended where there is none."""
    with nullcontext() if REAL else pretended_gpu():
        yield torch.device("cuda")


@pytest.fixture(scope="module")
def exact():
    """The built-in CLIP on the CPU, and images for it: 24 to learn from, 12 others."""
    clip = load_clip(device="cpu", precision="float32")
    return clip, digits("train").subset(range(24)), digits("test").subset(range(12))


@pytest.fixture(scope="module")
def there(device):
    """The built-in CLIP on the GPU; in float32, so that it can be compared."""
    return load_clip(device=device, precision="float32")


def shortened(method):
    """The same method, for two steps or so."""
    known = method.get_params(deep=False)
    short = {name: value for name, value in SHORT.items() if name in known}
    if known.get("student") == "resnet":
        short |= {"options": NARROW, "views": 2, "templates": "single"}
    return method.set_params(**short)


def made(clip, names):
    """Every method by name, and its variants, unfitted."""
    methods = {type(each).__name__: each for each in small_methods(clip, names)}
    for name, (kind, given) in VARIANTS.items():
        known = kind(clip, names).get_params(deep=False)
        parts = {"checkpointing": True} if "in parts" in name else {}
        parts = {key: value for key, value in parts.items() if key in known}
        methods[name] = kind(clip, names, **given, **parts)
    return {name: shortened(method) for name, method in methods.items()}


def names():
    """All but two that GRIP is made of."""
    known = made(load_clip(device="cpu"), digits("train").classnames)
    return [name for name in known if name not in ("FPL", "IFPL")]


@pytest.mark.parametrize("name", names())
def test_a_method_answers_on_a_gpu_as_on_the_cpu(name, there, exact, tmp_path):
    clip, train, test = exact
    here = made(clip, train.classnames)[name].fit(train)
    method = made(there, train.classnames)[name].fit(train)
    answers = method.predict_proba(test)
    np.testing.assert_allclose(answers, here.predict_proba(test), atol=CLOSE)
    method.save(tmp_path / "saved")
    for another in (clip, there):  # what a GPU has learned is of use without one
        loaded = type(method).load(tmp_path / "saved", another)
        np.testing.assert_allclose(loaded.predict_proba(test), answers, atol=CLOSE)


def test_a_pretended_gpu_refuses_what_lies_elsewhere():
    here, rows = torch.ones(3), torch.tensor([0, 2])
    with pretended_gpu() as gpu:
        there = here.to(gpu)
        assert isinstance(there, OnGPU) and there.device == gpu and there.is_cuda
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[rows.to(gpu)],
            lambda: there.index_put((rows,), here[:2]),
            lambda: torch.nn.Linear(3, 2)(there),
            lambda: torch.nn.Linear(3, 2).to(gpu)(here),
        ):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        for unreadable in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises((TypeError, RuntimeError)):
                unreadable()
        with pytest.raises(RuntimeError, match="pin"):
            there.pin_memory()
        assert there[rows].cpu().tolist() == [1, 1]  # indices may lie on the CPU
        assert (there + torch.tensor(1.0)).sum().item() == 6  # so may a single number
        assert torch.zeros(2, device="cuda").add_(there[:2]).tolist() == [1, 1]


def test_patches_that_do_not_fit_on_the_gpu(there, exact, monkeypatch):
    """They stay in main memory, and go over batch by batch, to train as to answer."""
    _, train, _ = exact
    answers = []
    for share in (0.5, 0):
        monkeypatch.setattr(prompts, "DEVICE_SHARE", share)
        prompt = VisualPrompt(there, train.classnames)
        inputs = prompt.prepare(train)
        assert inputs.device.type == ("cuda" if share else "cpu")
        classes = torch.arange(len(train), device=there.device) % 10
        loss = lambda rows: torch.nn.functional.cross_entropy(
            prompt(inputs, rows), classes[rows]
        )
        minimise(prompt.parameters(), loss, len(train), Recipe(epochs=1), seed=0)
        answers.append(prompt.score(inputs))
    np.testing.assert_allclose(*answers, atol=20 * CLOSE)  # logits


@pytest.mark.parametrize("kind", [FLYP, CoReg, GRIP])
def test_a_run_that_was_cut_off_goes_on_on_a_gpu(kind, there, exact, tmp_path):
    """Weights and an optimiser's memory come back to where they were."""
    _, train, test = exact
    given = {GRIP: {"prompt": "visual", "k": 1}, CoReg: {"student": "head"}}

    def run(name):
        method = shortened(kind(there, train.classnames, **given.get(kind, {})))
        longer = {GRIP: {"rounds": 3}, FLYP: {"epochs": 2, "iterations": None}}
        method.set_params(**longer.get(kind, {"epochs": 3}), batch_size=12)
        method.set_params(checkpoint=str(tmp_path / name))
        return method.fit(train).predict_proba(test)

    steps, stop = [], None

    def count(*_):
        steps.append(None)
        if len(steps) == stop:
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(count)
    try:
        whole = run("whole")
        needed, stop = len(steps), LATE[kind]
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            run("cut off")
        stop = None
        steps.clear()
        np.testing.assert_allclose(run("cut off"), whole, atol=CLOSE)
    finally:
        hook.remove()
    assert 0 < len(steps) < needed, "it began anew"


def test_files_are_decoded_on_the_gpu(there, tmp_path):
    """What it cannot read is left to the CPU."""
    rng, files = np.random.default_rng(0), []
    for number, (mode, size) in enumerate(
        [("RGB", (700, 500)), ("L", (300, 400)), ("CMYK", (300, 300))]
    ):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        files.append(tmp_path / f"{number}.jpg")
        coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(files[-1])
    (tmp_path / "cut.jpg").write_bytes(files[0].read_bytes()[:-500])
    clip = load_clip(device="cpu", precision="float32")
    features = there.encode_image(files)
    assert there.decoder == "nvJPEG" or REAL
    assert (features * clip.encode_image(files)).sum(1).min() > 0.99
    with pytest.raises(ValueError, match="cut.jpg"):
        there.encode_image([*files, tmp_path / "cut.jpg"])


def test_commands_on_a_gpu(device, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_PRECISION", "float32")
    images, classes, out = tmp_path / "images", tmp_path / "classes", tmp_path / "run"
    images.mkdir()
    train = digits("train").subset(range(24))
    for number in range(len(train)):
        train[number][0].save(images / f"{number:02}.png")
    classes.write_text("\n".join(train.classnames))

    def run(*words):
        done = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    on = ("--images", images, "--device", "cuda")
    run("encode", *on, "--out", tmp_path / "features.parquet")
    fit = ("--classes", classes, "--method", "flyp", "--set", "epochs=1")
    run("adapt", *on, *fit, "--out", out)
    for place in ("cuda", "cpu"):
        where = ("--images", images, "--device", place)
        run("predict", "--saved", out, *where, "--out", tmp_path / f"{place}.csv")
    first, second = ((tmp_path / f"{place}.csv") for place in ("cuda", "cpu"))
    answers = [pd.read_csv(file).iloc[:, 1] for file in (first, second)]
    assert (answers[0] == answers[1]).mean() > (0.8 if REAL else 0.999)


def test_a_rate_of_a_gpu_is_that_of_its_tower(device, there, monkeypatch):
    """No picture is prepared meanwhile, which takes a CPU longer than a GPU's tower."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rates = runpy.run_path(str(ROOT / "benchmarks" / "rates.py"))
    encoding = rates["encoding"]

    def prepared(*_):
        raise AssertionError("a picture was prepared")

    tower = CLIP(
        there.model, there.preprocess, None, device=device, precision="float32"
    )
    monkeypatch.setattr(model, "cut_image", prepared)
    monkeypatch.setitem(encoding.__globals__, "random_clip", lambda *_: tower)
    monkeypatch.setitem(
        encoding.__globals__, "choose_precision", lambda *_: torch.float32
    )
    row = encoding("the built-in one", "cuda", 6, batch_size=4)
    assert row["rate"] > 0 and row["precision"] == "float32"


def test_what_fails_on_a_gpu_stops_nothing(tmp_path, capsys):
    """`tools/check_gpu.py` goes on, and says so in its summary and its exit code."""
    code = "import sys, time; print('said'); "
    commands = {
        "bad": [sys.executable, "-c", code + "sys.exit(3)"],
        "slow": [sys.executable, "-c", code + "time.sleep(60)"],
        "not there": [str(tmp_path / "nothing")],
        "good": [sys.executable, "-c", code],
    }
    assert check_gpu.run_all(commands, tmp_path, limit=10) == 1
    rows = json.loads((tmp_path / "summary.json").read_text())
    told = {row["step"]: row["status"] for row in rows}
    assert told["bad"] == "failed (3)" and told["slow"].startswith("stopped")
    assert told["not there"].startswith("failed") and told["good"] == "ok"
    assert "said" in (tmp_path / "bad.log").read_text()
    assert "not there" in capsys.readouterr().out
    assert check_gpu.run_all({"good": commands["good"]}, tmp_path, limit=10) == 0


def test_the_steps_for_a_gpu_exist():
    for device in ("cuda", "cpu"):
        words = [w for c in check_gpu.steps(device, ROOT).values() for w in c]
        files = [word for word in words if word.startswith(("benchmarks/", "tests/"))]
        assert len(files) == 9 and all((ROOT / file).exists() for file in files)
    assert all((ROOT / f"nbs/{name}.ipynb").is_file() for name in check_gpu.NOTEBOOKS)


@pytest.mark.skipif(not REAL, reason="transformers sees through a pretended GPU")
def test_a_captioner_on_a_gpu(tmp_path):
    captioner = TransformersCaptioner(
        save_tiny_llava(tmp_path / "tiny"), max_new_tokens=4
    )
    assert captioner.device.type == "cuda"
    images = [picture for picture, _ in digits("train").subset(range(2))]
    told = captioner.describe(images, ["?", "?"])
    assert len(told) == 2 and all(isinstance(text, str) for text in told)


def test_several_gpus_are_no_reason_to_warn(monkeypatch):
    """PyTorch warns when it keeps the random state of all without being told which."""
    kept = {number: f"state {number}" for number in range(8)}
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kept))
    monkeypatch.setattr(torch.cuda, "get_rng_state", kept.__getitem__)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, gpu: kept.update({gpu: state})
    )
    expected = dict(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with seeded(0):
            kept.update(dict.fromkeys(kept, "seeded"))
    assert kept == expected


def test_the_default_is_a_gpu(device):
    assert load_clip().device.type == "cuda" and load_clip().precision == "bf16"
    assert load_clip(device="cpu").device.type == "cpu"
