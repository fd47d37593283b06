"""Peak memory of a training step of a textual prompt with many classes.

python benchmarks/prompts_memory.py [--classes 1000] [--batch 256] [--length 16]
    [--at-once ...]

ViT-B/32 with random weights and the names of ImageNet, as OpenCLIP has them; the images
are made-up features, as in training, where each is encoded once. Each row is a process
of its own with one thread: loss and gradient once in float32. `step GiB` is the most
that was resident during the step beyond what there was before it (libraries, weights),
`peak GiB` the most of the whole process. `at once` is how many classes are encoded
at a time (`TextTower.at_once`): None is what clipadapt chooses, 0 all of them.
`gradient` is the relative difference to the first row's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, Spent, spent
from million import Watch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from random_clips import random_clip

from clipadapt.learning.prompts import TextualPrompt


def distinct(names: list[str]) -> list[str]:
    """The same names, with a number where one comes twice."""
    return [f"{name} 2" if name in names[:i] else name for i, name in enumerate(names)]


def one(options: argparse.Namespace) -> dict:
    """What a step took; its gradient is written to `options.one`."""
    torch.set_num_threads(1)
    clip, names = (
        random_clip(precision="float32"),
        distinct(IMAGENET_CLASSNAMES[: options.classes]),
    )
    prompt = TextualPrompt(clip, names, length=options.length)
    given = options.at_once[0]
    if given is not None:
        prompt.tower.at_once = given or len(names)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, clip.embed_dim, generator=generator)
    labels = torch.randint(len(names), (options.batch,), generator=generator)
    watch = Watch()
    before = watch.process.memory_info().rss
    watch.start()

    def step():
        loss = F.cross_entropy(prompt(F.normalize(images, dim=1)), labels)
        loss.backward()
        return loss

    took, loss = spent(step)
    np.save(options.one, prompt.prefix.grad.numpy())
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "classes": len(names),
        "positions": prompt.tower.names.shape[1],
        "at once": prompt.tower.at_once,
        "CPU s": round(took.cpu, 1),
        "took": took,
        "step GiB": round((peak - before) / 2**30, 2),
        "peak GiB": round(peak / 2**30, 2),
        "loss": loss.item(),
    }


def measured(at_once: int | None, path: Path, options: argparse.Namespace) -> dict:
    """`one` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(path), "--at-once", str(at_once)]
    for name in ("classes", "batch", "length"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def number(text: str) -> int | None:
    """A whole number, or None."""
    return None if text == "None" else int(text)


def rows(classes: int = 400, batch: int = 64) -> list[Row]:
    """A step in parts against a whole one: its memory, and what that costs in time."""
    options = argparse.Namespace(classes=classes, batch=batch, length=16)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = (
            measured(at_once, Path(folder) / "gradient.npy", options)
            for at_once in (0, classes // 8)
        )
    task = f"a step of a textual prompt, ViT-B/32, {classes} classes, batch {batch}"
    given = f"{classes // 8} classes at a time", "all classes at once"
    times = Spent(*parts["took"]), Spent(*whole["took"])
    memory = (row["step GiB"] * 2**30 for row in (parts, whole))
    return [Row("learning", task, *given, *times, None, "cpu", *memory)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--at-once", type=number, nargs="+", default=[0, None])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    found, gradients = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradient.npy"
        for at_once in options.at_once:
            found.append(measured(at_once, path, options))
            gradients.append(np.load(path))
    table, size = pd.DataFrame(found).drop(columns="took"), np.linalg.norm(gradients[0])
    table["gradient"] = [np.linalg.norm(g - gradients[0]) / size for g in gradients]
    print(f"torch {torch.__version__}, one thread, ViT-B/32 (random weights), float32")
    print(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
