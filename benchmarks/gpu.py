"""Peak GPU memory, steps and images a second of every method with ViT-B/32 at the
papers' batch sizes.

python benchmarks/gpu.py [--device cuda] [--batch published] [--images 2048]
    [--case GRIP ...] [--out runs/gpu.json]

Weights are random and images are noise at 224 pixels: what is measured does not depend
on them. Each method trains for a few epochs; a step is one step of an optimiser, from
one to the next (the median), with all that it needs: images are prepared on the CPU
meanwhile, as in a real run. The peak counts PyTorch's tensors from `fit` to `predict`,
the CLIP (151 M weights, 605 MB) included. Methods that train nothing have no steps, and
the images a second of `fit`.

On one GPU this takes less than eight minutes, downloads nothing, and writes a table and
JSON. With `--images 1024` it took 142 seconds on an NVIDIA H200 (PyTorch 2.11, bf16),
and every case ended without an error; the most memory was 17,560 MiB (CoReg, clip).
Without a GPU, `--device cpu --batch 4 --images 8 --narrow` runs the same code.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from clipadapt import (
    CLIP,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    CoReg,
    ImageSet,
    LatteCLIP,
    NearestNeighbours,
    Prototypes,
    ReCLIP,
    ZeroShot,
)
from clipadapt.images.datasets import dataset_facts
from clipadapt.methods.coreg import PUBLISHED

CLASSES = dataset_facts()["DTD"]["classnames"]
COREG = {"epochs": 3, "warmup_epochs": 1, "delay": 0}
OWN = {**COREG, "views": 2, "templates": "single"}
CASES = {  # name: (method, parameters; batch_size is the published one)
    "ZeroShot": (ZeroShot, {}),
    "NearestNeighbours": (NearestNeighbours, {}),
    "Prototypes": (Prototypes, {}),
    **{
        f"GRIP, {prompt}, {size}": (
            GRIP,
            {"prompt": prompt, "batch_size": size, "epochs": 1, "rounds": 2},
        )
        for prompt in ("textual", "visual", "multimodal")
        for size in (16, 64)
    },
    "FPL, textual, 16": (FPL, {"batch_size": 16, "epochs": 2, "k": 1}),
    "IFPL, visual, 16": (
        IFPL,
        {"prompt": "visual", "batch_size": 16, "epochs": 2, "rounds": 2, "k": 1},
    ),
    "CoReg, CIFAR10's settings, warm-up, 512": (
        CoReg,
        {**PUBLISHED["CIFAR10"], "epochs": 2, "warmup_epochs": 2, "batch_size": 512},
    ),
    "CoReg, CIFAR10's settings, 256": (
        CoReg,
        {**PUBLISHED["CIFAR10"], **COREG, "batch_size": 256},
    ),
    "CoReg, EuroSAT's settings, 256": (
        CoReg,
        {**PUBLISHED["EuroSAT"], **COREG, "batch_size": 256},
    ),
    "CoReg, head, 256": (CoReg, {**OWN, "student": "head", "batch_size": 256}),
    "CoReg, clip, 256": (CoReg, {**OWN, "student": "clip", "batch_size": 256}),
    "LatteCLIP, class texts, 512": (LatteCLIP, {"epochs": 2, "batch_size": 512}),
    "LatteCLIP, captions, 512": (LatteCLIP, {"epochs": 2, "batch_size": 512}),
    "LPCLIP, 512": (LPCLIP, {"epochs": 20, "batch_size": 512}),
    "FLYP, 512": (FLYP, {"epochs": 2, "batch_size": 512}),
    "ReCLIP, 64": (ReCLIP, {"epochs": 1, "batch_size": 64}),
}


def random_clip(device, narrow):
    """ViT-B/32 with random weights and a logit scale of 100; `narrow`: a small one of
    the same patches."""
    torch.manual_seed(0)
    settings = open_clip.get_model_config("ViT-B-32")
    if narrow:
        settings = {
            "embed_dim": 64,
            "vision_cfg": {
                "image_size": 224,
                "patch_size": 32,
                "width": 64,
                "layers": 2,
                "head_width": 32,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 64,
                "heads": 2,
                "layers": 2,
            },
        }
    model = open_clip.CLIP(**{**settings, "init_logit_scale": np.log(100)})
    preprocess = {
        **open_clip.get_model_preprocess_cfg(model),
        "size": 224,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
    }
    open_clip.set_model_preprocess_cfg(model, preprocess)
    transform = open_clip.image_transform(
        224, is_train=False, mean=preprocess["mean"], std=preprocess["std"]
    )
    return CLIP(model, transform, open_clip.SimpleTokenizer(), device=device)


def noise(count):
    """Smooth coloured noise at 224 pixels, an ImageSet of `count`."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
    return ImageSet.from_arrays(coarse.repeat(8, axis=1).repeat(8, axis=2))


class Clock:
    """When each step of an optimiser was done."""

    def __init__(self, device):
        self.device, self.times = torch.device(device), []

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __enter__(self):
        self.hook = register_optimizer_step_post_hook(self.note)
        return self

    def note(self, optimiser, *_):
        """Large networks take a step in parts: it counts with its first parameter."""
        if optimiser.param_groups[0]["params"][0].grad is not None:
            self.times.append(self.now())

    def __exit__(self, *_):
        self.hook.remove()

    def step(self):
        """Seconds from one step to the next, the median, or None for less than two."""
        return statistics.median(np.diff(self.times)) if len(self.times) > 1 else None


def fit(name, method, images):
    """Fit a method; LatteCLIP with captions gets some that name nothing."""
    if name != "LatteCLIP, captions, 512":
        return method.fit(images)
    words = ["coarse", "fine", "even", "rough"]
    texts = [
        f"a {words[number % 4]} surface with {number % 97} spots of another colour"
        for number in range(len(images))
    ]
    return method.fit(images, captions={"image": texts, "group": texts[::-1]})


def measure(name, clip, images, batch):
    """The figures of one case, or the error that ended it."""
    kind, params = CASES[name]
    if batch and "batch_size" in params:
        params = {
            **params,
            "batch_size": batch,
            **({"warmup_batch_size": batch} if kind is CoReg else {}),
        }
    on_gpu = clip.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(clip.device)
    row = {
        "case": name,
        "batch": params.get("batch_size"),
        "images": len(images),
        "error": None,
    }
    try:
        with Clock(clip.device) as clock:
            start = clock.now()
            method = fit(name, kind(clip, CLASSES, **params), images)
            row["seconds"] = clock.now() - start
            finite = np.isfinite(
                method.predict_proba(images.subset(range(min(64, len(images)))))
            ).all()
        step, size = clock.step(), min(params.get("batch_size") or 0, len(images))
        row |= {
            "steps": len(clock.times),
            "steps a second": step and 1 / step,
            "images a second": size / step if step else len(images) / row["seconds"],
        }
        row["error"] = None if finite else "answers that are not finite"
    except Exception as error:  # the other methods go on
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    if on_gpu:
        row["peak GPU MB"] = torch.cuda.max_memory_allocated(clip.device) / 2**20
    return row


def describe(device):
    """What the figures belong to."""
    name = (
        torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else "CPU"
    )
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--batch", default="published", help="'published', or one number for all"
    )
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument(
        "--narrow",
        action="store_true",
        help="a small model, to try this file without a GPU",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    given = parser.parse_args()
    if torch.device(given.device).type == "cuda" and not torch.cuda.is_available():
        print(
            "there is no GPU here; try the code with --device cpu --batch 4 --images "
            "8 --narrow"
        )
        sys.exit()
    batch = None if given.batch == "published" else int(given.batch)
    clip, images, rows = (
        random_clip(given.device, given.narrow),
        noise(given.images),
        [],
    )
    facts = {
        **describe(given.device),
        "model": "narrow" if given.narrow else "ViT-B/32",
        "precision": clip.precision,
    }
    print(facts)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.case or CASES:
        rows.append(measure(name, clip, images, batch))
        gc.collect()
        print(
            f"{name}: {rows[-1].get('seconds', float('nan')):.1f} s, "
            f"{rows[-1]['error'] or 'ok'}",
            flush=True,
        )
        given.out.write_text(json.dumps({**facts, "rows": rows}, indent=1))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
    print(f"wrote {given.out}")
    sys.exit(any(row["error"] for row in rows))
