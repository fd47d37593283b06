"""A million features from a memory map: peak memory and CPU time of methods that need
no pixels, and the exponent with which time grows.

python benchmarks/million.py [--count 1000000] [--sizes 100000 200000 400000]
    [--classes 100] [--dim 512] [--methods Prototypes LPCLIP FPL (propagation)]

The features are made up, around the prompts of a small random CLIP, and written to a
temporary file, which every method opens with `FeatureSet.from_npy`. Each row is a
process of its own, which fits and predicts with one thread; `peak` is the most that was
resident in it, pages of files included (which the system may drop at any time),
`anonymous` the most without them. The exponent is the slope of log(CPU time) over
log(N): 1 is linear. Label propagation takes much more time than the others, so it runs
only if it is named.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import psutil
import torch
from measuring import Row, Spent, now
from open_clip.model import CLIP as OpenCLIP

from clipadapt import (
    CLIP,
    FPL,
    LPCLIP,
    AnchoredMixture,
    FeatureSet,
    Prototypes,
    load_clip,
)
from clipadapt.clip.templates import average_prompts, encode_prompts
from clipadapt.methods.transduction import propagate_labels

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 24}
BLOCK = 50_000
UNSEEN = "CPU s", "took"  # columns that are not printed


class Propagation:
    """Label propagation in the form of a method, for this comparison."""

    def __init__(self, clip, classnames):
        self.clip, self.classnames = clip, classnames

    def fit(self, images):
        text = average_prompts(encode_prompts(self.clip, self.classnames))
        features = self.clip.encode_image(images)
        self.labels, _ = propagate_labels(features, text, tolerance=1e-3)
        return self

    def predict(self, images):
        return self.labels


METHODS = {
    "AnchoredMixture": lambda *given: AnchoredMixture(*given),
    "Prototypes": lambda *given: Prototypes(*given, iterations=10),
    "LPCLIP": lambda *given: LPCLIP(*given, templates="single", epochs=1),
    "FPL": lambda *given: FPL(*given, epochs=1, batch_size=64),
    "propagation": lambda *given: Propagation(*given),
}


def small_clip(dim):
    """A small random CLIP with features of length `dim`, whose prompts differ."""
    builtin = load_clip(device="cpu")
    torch.manual_seed(0)
    model = OpenCLIP(dim, VISION, TEXT)
    for name, parameter in model.named_parameters():
        if "embedding" in name:
            parameter.data = torch.randn_like(parameter)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    return CLIP(model, builtin.preprocess, tokenizer, device="cpu")


def write_features(path, count, classes, dim):
    """Unit features around the prompts, block by block."""
    clip, names = small_clip(dim), [f"number {c}" for c in range(classes)]
    text = average_prompts(encode_prompts(clip, names)).numpy()
    text -= text.mean(0)  # a random CLIP's prompts have most in common
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=count)
    shape = (count, dim)
    table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, count, BLOCK):
        chosen = text[labels[start : start + BLOCK]]
        noise = rng.standard_normal(chosen.shape, np.float32) / dim**0.5
        rows = chosen + 0.5 * noise
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        table[start : start + BLOCK] = rows
    table.flush()


class Watch(threading.Thread):
    """Looks at the process's memory twenty times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.process, self.peak, self.anonymous = psutil.Process(), 0, 0

    def run(self):
        while True:
            found = self.process.memory_info()
            self.peak = max(self.peak, found.rss)
            self.anonymous = max(self.anonymous, found.rss - found.shared)
            time.sleep(0.05)


def one(name, path, count, classes, dim):
    """Fit and predict; what it took."""
    torch.set_num_threads(1)
    clip, names = small_clip(dim), [f"number {c}" for c in range(classes)]
    watch = Watch()
    watch.start()
    start = now()
    images = FeatureSet.from_npy(path, names)
    images = images if count == len(images) else images.subset(range(count))
    method = METHODS[name](clip, names).fit(images)
    fitted = now()
    answers = method.predict(images)
    took = now() - start
    assert len(answers) == count and 0 <= answers.min() <= answers.max() < classes
    return {
        "method": name,
        "N": count,
        "fit CPU s": round((fitted - start).cpu, 1),
        "predict CPU s": round((took - (fitted - start)).cpu, 1),
        "wall s": round(took.wall, 1),
        "peak GiB": round(watch.peak / 2**30, 2),
        "anonymous GiB": round(watch.anonymous / 2**30, 2),
        "CPU s": took.cpu,
        "took": took,
    }


def measured(name, path, count, options):
    """`one` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(path), str(count)]
    command += ["--classes", str(options.classes), "--dim", str(options.dim)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    row = json.loads(done.stdout.splitlines()[-1])
    shown = {name: value for name, value in row.items() if name not in UNSEEN}
    print(shown, file=sys.stderr, flush=True)
    return row


def rows(count=40_000, times=4, classes=100, dim=512):
    """More features against as many times what the fewer took: above N to the power of
    1.05, which was asked for, this is under `times` to the power of -0.05."""
    options, found = argparse.Namespace(classes=classes, dim=dim), []
    with tempfile.TemporaryDirectory() as folder:
        path, many = Path(folder) / "features.npy", times * count
        write_features(path, many, classes, dim)
        for name in [*METHODS][:3]:
            few, all_of_them = (
                Spent(*measured(name, path, number, options)["took"])
                for number in (count, many)
            )
            task = f"{name} on features of {dim} numbers, {classes} classes"
            contenders = f"{many:,} of them", f"{times} times what {count:,} take"
            given = all_of_them, few * times, times**-0.05
            found.append(Row("methods", task, *contenders, *given))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[100_000 * 2**i for i in range(3)]
    )
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--methods", nargs="+", default=[*METHODS][:3], choices=METHODS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, path, count = options.one
        row = one(name, Path(path), int(count), options.classes, options.dim)
        print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory() as folder:
        path, most = Path(folder) / "features.npy", max([options.count, *options.sizes])
        write_features(path, most, options.classes, options.dim)
        rows = [
            measured(name, path, count, options)
            for name in options.methods
            for count in [*options.sizes, options.count]
            if count
        ]
    table = pd.DataFrame(rows)
    print(table.drop(columns=[*UNSEEN]).to_string(index=False))
    for name, group in table.groupby("method", sort=False):
        if len(group) > 1:
            slope = np.polyfit(np.log(group["N"]), np.log(group["CPU s"]), 1)[0]
            print(f"{name}: CPU time grows with N to the power of {slope:.2f}")
        most = group["peak GiB"].max()
        target = "" if name == "propagation" else " (target: under 6)"
        print(f"{name}: at most {most:.2f} GiB{target}")


if __name__ == "__main__":
    main()
