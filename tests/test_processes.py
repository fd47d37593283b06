"""What several processes need, as far as it can be tested in one."""

import os
import signal
import socket
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import program

from clipadapt import CPL, FLYP, FPL, LatteCLIP, ReCLIP, digits
from clipadapt.app.cli import main
from clipadapt.learning import processes
from clipadapt.learning.processes import Processes, in_parts, pixel_parts
from clipadapt.learning.training import Checkpoint, Recipe, minimise


@pytest.fixture
def second():
    """This process as the second of two that work together."""
    token = processes._here.set(Processes(1, 2))
    yield
    processes._here.reset(token)


@pytest.fixture
def launched(monkeypatch):
    """The environment of one of two processes."""

    def launch(rank: int) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))

    yield launch
    assert not processes._joined


@pytest.fixture(scope="module")
def pool():
    return digits("train").subset(range(23))


def test_one_process_does_without_accelerate(tmp_path, monkeypatch):
    """The loop, its checkpoint and a FLYP are fitted where it cannot be imported."""
    code = (
        "import sys; sys.modules['accelerate'] = None; import clipadapt;"
        "images = clipadapt.digits('train').subset(range(8));"
        "clip = clipadapt.load_clip(device='cpu');"
        "clipadapt.FLYP(clip, images.classnames, epochs=1, batch_size=4).fit(images)"
    )
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    program(tmp_path, code).finish()


def test_processes_without_accelerate_say_which_extra_they_need(
    launched, monkeypatch, tmp_path
):
    launched(0)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    out = tmp_path / "run"
    answer = CliRunner().invoke(main, ["adapt", "--out", str(out)])
    assert answer.exit_code == 1 and "clipadapt[accelerate]" in answer.output
    assert not out.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_other_commands_are_refused_once(launched, rank):
    launched(rank)
    answer = CliRunner().invoke(main, ["zero-shot"])
    assert answer.exit_code == 2
    assert ("only adapt shares" in answer.output) == (rank == 0)


def test_a_launcher_of_something_else_changes_nothing(monkeypatch):
    for count, rank in (("1", "0"), ("many", "0"), ("4", None)):
        monkeypatch.setenv("WORLD_SIZE", count)
        monkeypatch.delenv("RANK", raising=False)
        if rank:
            monkeypatch.setenv("RANK", rank)
        assert processes.launched() == 1


TOWER = {"epochs": 1, "batch_size": 10, "learning_rate": 1e-4, "crop": "cut"}
METHODS = {
    "flyp": (FLYP, TOWER, "image_weights_"),
    "latteclip": (LatteCLIP, TOWER, "image_weights_"),
    "reclip": (ReCLIP, {"epochs": 2, "k": 5, "learning_rate": 0.01}, "layer_norms_"),
    "textual": (FPL, {"k": 2, "epochs": 3, "learning_rate": 0.01}, "prompt_"),
    "multimodal": (FPL, {"k": 2, "epochs": 3, "prompt": "multimodal"}, "prompt_"),
    "candidates": (
        CPL,
        {"rounds": 2, "epochs": 2, "prompt": "multimodal", "learning_rate": 0.01},
        "prompt_",
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_in_parts_teaches_the_same(clip, pool, name):
    kind, numbers, fitted = METHODS[name]
    saving = {"accumulate": 4}
    if "checkpointing" in kind._get_param_names():
        saving["checkpointing"] = True
    whole, parts = (
        getattr(kind(clip, pool.classnames, **numbers, **less).fit(pool), fitted)
        for less in ({}, saving)
    )
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-4)
    assert not np.array_equal(parts, np.zeros_like(parts))


@pytest.mark.parametrize("name", METHODS)
def test_parts_are_counted_and_not_saved(clip, pool, name):
    kind = METHODS[name][0]
    with pytest.raises(ValueError, match="accumulate must be a positive whole"):
        kind(clip, pool.classnames, accumulate=0).fit(pool)
    assert "accumulate" in kind.unsaved


def test_parts_keep_nothing_but_what_goes_in():
    """Of four parts, the forward pass keeps the rows, and no hidden layer."""
    layers = [torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)]
    network, rows = torch.nn.Sequential(*layers), torch.rand(40, 8)

    def kept(parts: int) -> int:
        shapes = []
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda t: shapes.append(t.numel()) or t, lambda t: t):
            in_parts(network, rows, parts)
        return sum(shapes)

    assert kept(4) <= rows.numel() + 8 < kept(1)


def test_the_pixels_of_all_processes_are_the_batch(clip, pool):
    batches = torch.arange(len(pool)).flip(0).split(5)
    whole = list(pixel_parts(clip, pool, batches))
    parts = []
    for rank in range(4):
        token = processes._here.set(Processes(rank, 4))
        parts.append(list(pixel_parts(clip, pool, batches)))
        processes._here.reset(token)
    for batch, *found in zip(whole, *parts):
        if len(batch) < 4:  # then every process has all of them
            assert all(torch.equal(each, batch) for each in found)
        else:
            assert torch.equal(torch.cat(found), batch)


def test_only_the_first_process_writes(tmp_path, second, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "run.safetensors", {})
    checkpoint.save({"x": np.zeros(1)}, {"round": 1})
    assert not checkpoint.is_written and not list(tmp_path.iterdir())
    told = {"x": np.ones(1)}, {"round": 2}
    name = "clipadapt.learning.training.share"
    monkeypatch.setattr(name, lambda arrays, record, _: told)
    assert checkpoint.load() == told


def test_gradients_are_averaged_before_a_step(second, monkeypatch):
    """The other process is said to have none: half of the step is left."""
    monkeypatch.setattr(Processes, "_sum", lambda self, mine: mine)
    trained = torch.nn.Parameter(torch.zeros(2))
    recipe = Recipe(epochs=1, batch_size=3, learning_rate=1, momentum=0, warmup=0)
    minimise([trained], lambda batch: -trained.sum(), 3, recipe)
    assert trained.tolist() == [0.5, 0.5]


def test_who_loses_another_process_says_so():
    def broken(tensor):
        raise RuntimeError("Connection closed by peer\nand much more")

    with pytest.raises(ConnectionError) as error:
        Processes(0, 3)._ask(broken, torch.zeros(1))
    said = str(error.value)
    assert "one of the 3 processes" in said and "closed by peer" in said
    assert "--resume" in said and "much more" not in said


def test_who_is_told_to_stop_in_a_question_stops(monkeypatch, capsys):
    """Another signal first, and then the launcher's."""

    class Ended(Exception):
        pass

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(processes, "PATIENCE", 0.01)
    monkeypatch.setattr(processes, "_lost_before", processes.threading.Event())
    monkeypatch.setattr(os, "_exit", end)
    told, tell = socket.socketpair()
    tell.send(bytes([signal.SIGINT, signal.SIGTERM]))
    with pytest.raises(Ended):
        processes._watch(2, told, tell)
    assert "told to stop" in capsys.readouterr().err
    told.close()
    tell.close()
