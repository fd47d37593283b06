"""Everything that only a GPU can show, one after the other; what fails stops nothing.

python tools/check_gpu.py [--only tests cells ...] [--out runs/gpu] [--limit 600]
    [--device cuda]

Tests, every method on other kinds of CLIP, the cells marked `cuda` that need no
download, and the benchmarks. Each writes a log of its own; a summary comes last, and
the exit code is 1 when something failed. Nothing is downloaded, and nothing that is
kept in the repository is changed. Without a GPU, `--device cpu` tries all that runs
there, with a narrow model and few images.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
NOTEBOOKS = ("06_prompts", "engine/index", "engine/pictures")


def cells(device: str) -> list[str]:
    """A command that runs some notebooks, their cuda cells included."""
    called = {"flags": "cuda"} if device == "cuda" else {}
    code = "; ".join(
        ["from nbdev.test import nbdev_test"]
        + [f"nbdev_test(path='nbs/{name}.ipynb', **{called})" for name in NOTEBOOKS]
    )
    return [PYTHON, "-c", code]


def steps(device: str, out: Path) -> dict[str, list[str]]:
    """The command of each step, by name; those that matter most come first."""
    on_gpu = device == "cuda"
    small = [] if on_gpu else ["--batch", "4", "--images", "8", "--narrow"]
    tests = "devices", "test_precision.py", "test_pseudolabels.py"
    script = lambda name, *given: [PYTHON, f"benchmarks/{name}.py", *given]
    few = lambda *given: () if on_gpu else given
    save = lambda name: ("--out", str(out / name))
    return {
        "tests": [PYTHON, "-m", "pytest", "-q", *(f"tests/{name}" for name in tests)],
        "kinds of CLIP": script(
            "conformance",
            *("--device", device, "--kind", "ViT"),
            *few("--case", "ZeroShot", "--case", "FLYP"),
        ),
        "cells": cells(device),
        "methods": script("gpu", "--device", device, *small, *save("methods.json")),
        "rates": script(
            "rates",
            *("--device", device),
            *few("--images", "2", "--models", "ViT-B-32"),
            *save("rates.json"),
        ),
        "encode": script("encode", *few("--images", "8", "--large-images", "4")),
        "fine-tuning": script("finetuning", *few("--batch", "4", "--rounds", "1")),
        "features": script("features", *few("--images", "8", "--many", "2000")),
        "one process": [
            *(PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "1"),
            *([] if on_gpu else ["--cpu"]),
            *("-m", "clipadapt", "adapt", "--images", str(out / "images")),
            *("--classes", str(out / "classes.txt"), "--method", "flyp"),
            *("--set", "epochs=2", "--device", device, "--overwrite"),
            *("--out", str(out / "adapted")),
        ],
    }


def write_images(out: Path) -> None:
    """Forty of the digits as files, for the command line."""
    from clipadapt import digits

    train = digits("train").subset(range(40))
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number in range(len(train)):
        train[number][0].save(out / "images" / f"{number:02}.png")
    (out / "classes.txt").write_text("\n".join(train.classnames))


def run(name: str, command: Sequence[str], out: Path, limit: float) -> dict:
    """Run one step; its output goes into a file."""
    log, start = out / f"{name.replace(' ', '-')}.log", time.perf_counter()
    place = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **place},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
            status = "ok" if done.returncode == 0 else f"failed ({done.returncode})"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:g} s"
        except OSError as error:
            status = f"failed ({error})"
    said = log.read_text(errors="replace").strip().splitlines()
    return {
        "step": name,
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
        "last line": said[-1][:200] if said else "",
    }


def run_all(commands: Mapping[str, Sequence[str]], out: Path, limit: float) -> int:
    """Run all steps, and tell how each went; return the exit code."""
    rows = []
    for name, command in commands.items():
        rows.append(run(name, command, out, limit))
        print(f"{name}: {rows[-1]['status']}, {rows[-1]['seconds']} s", flush=True)
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['status']:12} {row['step']:14} {row['last line']}")
    return int(any(row["status"] != "ok" for row in rows))


def main() -> None:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = list(steps("cuda", Path()))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--limit", type=float, default=600, help="seconds a step")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU; --device cpu tries what runs without one")
    out = given.out.resolve()
    write_images(out)
    if given.device == "cuda":
        print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    chosen = {name: steps(given.device, out)[name] for name in given.only}
    sys.exit(run_all(chosen, out, given.limit))


if __name__ == "__main__":
    main()
