"""Two processes train as one does, and a run that loses one of them goes on."""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from clipadapt import digits

from . import fits

accelerate = pytest.importorskip("accelerate", reason="make cluster installs it")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    " --mixed_precision no --dynamo_backend no --main_process_port 0"
).split()
EPOCHS = 12
TOLERANCES = {
    "image_weights_": 2e-5,  # in so few steps of AdamW they do not move far
    "losses_": 2e-4,  # the last forward pass of a student whose weights are 1e-4 away
}


def command(*words, launched: bool = False) -> list[str]:
    """A module with arguments, alone or on two processes."""
    return [sys.executable, *(LAUNCH if launched else ()), "-m", *map(str, words)]


def run(*words, launched: bool = False) -> str:
    """Run it to a good end; what it said on the standard error."""
    done = subprocess.run(
        command(*words, launched=launched),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folders of all fits, by one process and by two."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder, launched in zip(folders, (False, True)):
        run("tests.cluster.fits", folder, launched=launched)
    return folders


@pytest.mark.parametrize("name", fits.NAMES)
def test_two_processes_learn_what_one_learns(fitted, name):
    one, two = (dict(np.load(folder / f"{name}.npz")) for folder in fitted)
    assert one.keys() == two.keys() and len(one) > 1
    for key, numbers in one.items():
        exact = numbers.dtype.kind in "ib"
        tolerance = 0 if exact else TOLERANCES.get(key, 1e-4)
        np.testing.assert_allclose(two[key], numbers, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 150 images."""
    folder = tmp_path_factory.mktemp("images")
    images = digits("train")
    for number in range(150):
        images[number][0].save(folder / f"{number:03}.png")
    return folder


def adapt(photographs, out, *more) -> tuple:
    classes = ",".join(digits("train").classnames)
    return (
        *("clipadapt", "adapt", "--images", photographs, "--classes", classes),
        *("--preset", "small", "--method", "flyp", "--set", f"epochs={EPOCHS}"),
        *("--set", "batch_size=33", "--out", out, *more),
    )


def written(out) -> list[bytes]:
    names = ("predictions.csv", "model/adapter.safetensors")
    return [(out / name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory):
    """What two processes write that nobody disturbs, and what they say."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    said = run(*adapt(photographs, out), launched=True)
    return written(out), said


def test_only_the_first_process_talks(undisturbed):
    said = undisturbed[1]
    assert said.count("fitting FLYP") == said.count("wrote ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_resume_goes_on(
    undisturbed, photographs, tmp_path, rank
):
    out = tmp_path / "run"
    words = adapt(photographs, out)
    process = subprocess.Popen(
        command(*words, launched=True),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(out / "checkpoint.previous.safetensors", process)
    worker(process.pid, rank).kill()
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "of the 2 processes of this run has ended or does not answer" in said
    assert "start the same command again with --resume" in said
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "model").exists()
    run(*words, "--resume", launched=True)
    assert written(out) == undisturbed[0]


def test_a_process_that_waits_for_a_silent_one_can_be_stopped(photographs, tmp_path):
    """On GPUs a process may wait for a dead one for ever; it still hears signals."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(*adapt(photographs, out), launched=True),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(out / "checkpoint.safetensors", process)
    first, second = (worker(process.pid, rank) for rank in (0, 1))
    second.suspend()
    time.sleep(2)  # the first has come to a question by now
    first.terminate()
    said = process.communicate(timeout=180)[1]
    assert process.returncode != 0 and "this one was told to stop" in said
    assert not second.is_running() and (out / "checkpoint.safetensors").exists()


def wait_for(path, process) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def worker(launcher: int, rank: int) -> psutil.Process:
    """The process of this rank."""
    for child in psutil.Process(launcher).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"there is no process of rank {rank}")


def test_a_run_of_two_goes_on_with_one(undisturbed, photographs, tmp_path):
    """A checkpoint does not care how many processes wrote it."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(*adapt(photographs, out), launched=True),
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_for(out / "checkpoint.previous.safetensors", process)
    worker(process.pid, 1).kill()
    process.wait(120)
    run(*adapt(photographs, out), "--resume")
    assert (out / "model" / "adapter.safetensors").exists()


def test_other_commands_say_that_they_are_to_be_started_alone():
    done = subprocess.run(
        command("clipadapt", "zero-shot", launched=True),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and "only adapt shares its work" in done.stderr
