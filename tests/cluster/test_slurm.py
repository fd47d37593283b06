"""The job script of the page "From a laptop to a cluster", as SLURM runs it.

It takes a SLURM of two nodes (two slurmd on one machine will do) whose names resolve,
with the folder of temporary files on a file system that both see.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from clipadapt import digits

pytest.importorskip("accelerate", reason="make cluster installs it")

PAGE = Path(__file__).parents[2] / "nbs" / "pages" / "cluster.md"
SMALL = "--preset small --set epochs=12 --set batch_size=33"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


def nodes() -> int:
    """How many nodes SLURM has for us; 0 where it does not answer."""
    try:
        words = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return 0 if done.returncode else len(set(done.stdout.split()))


pytestmark = pytest.mark.skipif(nodes() < 2, reason="sinfo shows no two idle nodes")


def adapted(folder: Path, out: Path) -> str:
    """The page's script with other sizes and folders."""
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.S)
    for old, new in (
        ("#SBATCH --gpus-per-node=8\n", ""),
        ("--cpus-per-task=64", "--cpus-per-task=1"),
        ("--num_processes 16", "--num_processes 2"),
        ("/shared/photos", str(folder / "photos")),
        ("/shared/run", f"{out} {SMALL}"),
    ):
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    return script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images and a file of names."""
    folder = tmp_path_factory.mktemp("slurm")
    images = digits("train")
    (folder / "photos").mkdir()
    for number in range(150):
        images[number][0].save(folder / "photos" / f"{number:03}.png")
    (folder / "names.txt").write_text("\n".join(images.classnames))
    return folder


def submit(folder: Path, out: Path) -> subprocess.Popen:
    (folder / "job.sh").write_text(adapted(folder, out))
    words = ["sbatch", "--wait", f"--output={out}.txt", "job.sh"]
    return subprocess.Popen(words, cwd=folder, env=ENVIRONMENT)


def model(out: Path) -> dict:
    return load_file(out / "model" / "adapter.safetensors")


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The folder of a job that nobody disturbs."""
    out = folder / "two"
    assert submit(folder, out).wait(600) == 0, Path(f"{out}.txt").read_text()
    return out


def test_two_nodes_learn_what_one_process_learns(folder, undisturbed):
    words = f"--images photos --classes names.txt --method flyp --out one {SMALL}"
    command = [sys.executable, "-m", "clipadapt", "adapt", *words.split()]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, timeout=600)
    one, two = model(folder / "one"), model(undisturbed)
    assert one.keys() == two.keys()
    for key, numbers in one.items():
        np.testing.assert_allclose(two[key], numbers, rtol=0, atol=1e-4)
    assert Path(f"{undisturbed}.txt").read_text().count("wrote ") == 1


def worker(out: Path, rank: int) -> psutil.Process:
    """The process of this rank that writes into `out`."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"there is no process of rank {rank} here")


def test_a_killed_task_ends_the_job_and_the_same_job_goes_on(folder, undisturbed):
    out = folder / "killed"
    job = submit(folder, out)
    until = time.monotonic() + 300
    while not (out / "checkpoint.previous.safetensors").exists():
        assert job.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    worker(out, 1).kill()
    assert job.wait(300) != 0
    said = Path(f"{out}.txt").read_text()
    assert "of the 2 processes of this run has ended or does not answer" in said
    assert not (out / "model").exists()
    assert submit(folder, out).wait(600) == 0, Path(f"{out}.txt").read_text()
    for key, numbers in model(undisturbed).items():
        np.testing.assert_array_equal(model(out)[key], numbers)
