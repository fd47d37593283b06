"""Small fits of every method that trains on several processes.

`python -m tests.cluster.fits FOLDER` fits them and saves each in FOLDER; launched
several times, all processes fit them together.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clipadapt import (
    FLYP,
    FPL,
    GRIP,
    CoReg,
    LatteCLIP,
    ReCLIP,
    digits,
    load_clip,
)
from clipadapt.learning.processes import together

TOWER = {"epochs": 2, "batch_size": 15, "learning_rate": 1e-4, "crop": "cut"}
CENTRES = {
    "epochs": 2,
    "k": 5,
    "batch_size": 9,
    "image_loss": "mean",
    "learning_rate": 0.03,
}
STUDENT = {
    "views": 2,
    "epochs": 3,
    "warmup_epochs": 1,
    "batch_size": 15,
    "learning_rate": 0.01,  # with 0.02 rounding grows: losses of this seed are 7e-4 off
    "delay": 0,
    "queue": 32,
}
RESNET = {"image_size": 12, "flip": False, "options": {"width": 4, "depth": [1, 1]}}
PROMPT = {
    "k": 3,
    "rounds": 2,
    "epochs": 3,
    "batch_size": 7,
    "weight_decay": 0.0,
    "learning_rate": 0.01,  # with 0.1, one process in parts is 1e-4 from itself, too
}


NAMES = (
    "flyp",
    "flyp in parts",
    "latteclip",
    "reclip",
    "coreg",
    "coreg drawn",
    "coreg head",
    "coreg own",
    "fpl textual",
    "fpl visual",
    "fpl multimodal",
    "grip",
)


def plain_student(num_classes: int) -> nn.Module:
    """A student of the user's own, with the batch normalisation of a linear network."""
    hidden = nn.Linear(3 * 12 * 12, 8)
    return nn.Sequential(
        nn.Flatten(), hidden, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes)
    )


def images():
    """43 images: no batch can be shared out evenly in every epoch."""
    return digits("train").subset(range(43))


def captions() -> dict[str, list[str]]:
    """Texts for each image, some of them missing."""
    return {
        "image": [f"a drawing with {n % 4} lines" if n % 5 else "" for n in range(43)],
        "group": [f"several drawings, the {n % 3}rd kind" for n in range(43)],
    }


def methods(clip, names) -> dict:
    """The methods by name, unfitted."""
    prompts = {
        f"fpl {kind}": FPL(clip, names, prompt=kind, **PROMPT)
        for kind in ("textual", "visual", "multimodal")
    }
    return {
        "flyp": FLYP(clip, names, view="crop", **TOWER),
        "flyp in parts": FLYP(
            clip, names, refresh="epoch", accumulate=3, checkpointing=True, **TOWER
        ),
        "latteclip": LatteCLIP(clip, names, **TOWER),
        "reclip": ReCLIP(clip, names, **CENTRES),
        "coreg": CoReg(clip, names, **STUDENT, **RESNET),
        "coreg drawn": CoReg(clip, names, **{**STUDENT, "views": None}, **RESNET),
        "coreg head": CoReg(clip, names, student="head", **STUDENT),
        "coreg own": CoReg(
            clip, names, student=plain_student, image_size=12, flip=False, **STUDENT
        ),
        **prompts,
        "grip": GRIP(clip, names, prompt="multimodal", accumulate=2, **PROMPT),
    }


def fit_all() -> dict:
    """All methods, fitted; together with the others, where there are others."""
    clip, pool = load_clip(device="cpu", precision="float32"), images()
    made = methods(clip, pool.classnames)
    with together():
        for name, method in made.items():
            given = {"captions": captions()} if name == "latteclip" else {}
            method.fit(pool, **given)
    return made


def learned(method) -> dict:
    """The numbers that a fitted method keeps, and its history."""
    return {name: getattr(method, name) for name in method.fitted}


def save_all(folder: Path) -> None:
    """Fit all methods, and keep what the first process learned."""
    made = fit_all()
    with together() as processes:
        if not processes.first:
            return
    for name, method in made.items():
        arrays = {
            key: value
            for key, value in learned(method).items()
            if isinstance(value, np.ndarray)
        }
        losses = [record.get("loss") for record in method.history_]
        arrays["losses"] = np.array([x for x in losses if x is not None])
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    torch.manual_seed(0)
    save_all(Path(sys.argv[1]))
