"""What is killed: the store, captions, fits with a checkpoint, two commands."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import clone

from clipadapt import FeatureStore, digits, load_clip
from clipadapt.app.cli import main
from clipadapt.app.demo import small_methods
from clipadapt.clip.captions import AttributeCaptioner, caption

from .harness import Job

SHORT = {
    "FPL": {"epochs": 60},
    "IFPL": {"epochs": 12, "rounds": 5},
    "GRIP": {"epochs": 12, "rounds": 5},
    "CoReg": {"epochs": 5},
    "LatteCLIP": {"epochs": 5},
    "FLYP": {"epochs": 5},
    "ReCLIP": {"epochs": 8},
}
COUNT = 200


def _hash(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype} {array.shape} {hashlib.sha256(content).hexdigest()}"


def store(clip, images, folder: Path) -> bytes:
    """Features in a store: the array that it gives, and what its table holds."""
    store = FeatureStore(folder / "store", block_size=16)
    features = store.encode(clip, images)
    sound = [store.verify(), sorted(path.name for path in store.location.iterdir())]
    return json.dumps([_hash(features), sound], sort_keys=True).encode()


def captions(images, folder: Path) -> bytes:
    """A sentence for each image."""
    found = caption(AttributeCaptioner(), images, "?", folder / "captions.sqlite")
    return "\n".join(found.texts).encode()


def fit(method, images, folder: Path) -> bytes:
    """A fit with a checkpoint: all that it learned, and its answers."""
    method = clone(method).set_params(checkpoint=str(folder / "checkpoint.safetensors"))
    method.fit(images)
    learned = {
        name: value for name, value in vars(method).items() if name.endswith("_")
    }
    learned["answers"] = method.predict_proba(images)
    plain = {
        name: _hash(value) if isinstance(value, np.ndarray) else value
        for name, value in learned.items()
    }
    return json.dumps(plain, sort_keys=True).encode()


def _command(*arguments) -> None:
    try:
        main([str(argument) for argument in arguments], standalone_mode=False)
    except SystemExit as ending:
        if ending.code:
            raise RuntimeError(f"exit code {ending.code}") from ending


def adapt(photos: Path, folder: Path) -> bytes:
    """`clipadapt adapt`: predictions and the classifier."""
    out = folder / "run"
    _command(
        "adapt",
        "--images",
        photos,
        "--classes",
        "zero,one,two",
        "--method",
        "reclip",
        "--set",
        "epochs=8",
        "--out",
        out,
        "--resume",
    )
    learned = [path.read_bytes() for path in sorted((out / "model").glob("*"))]
    return (out / "predictions.csv").read_bytes() + b"".join(learned)


def compare(photos: Path, folder: Path) -> bytes:
    """`clipadapt compare`: the table, all but the seconds."""
    out = folder / "compared"
    _command(
        "compare",
        "--images",
        photos,
        "--classes",
        "zero,one,two",
        "--methods",
        "zero-shot,grip,reclip,lpclip",
        "--out",
        out,
        "--resume",
    )
    table = pd.read_csv(out / "table.csv").drop(columns="seconds", errors="ignore")
    return table.to_csv(index=False).encode()


def make_jobs(folder: Path) -> dict[str, Job]:
    """Every job by name. `folder` takes the photographs that the commands read."""
    clip, images = load_clip(device="cpu"), digits("train").subset(range(COUNT))
    few = images.subset(np.flatnonzero(images.labels < 3))
    for i, (image, _) in enumerate(few):
        image.save(folder / f"{i:03d}.png")
    jobs = {"store": partial(store, clip, images), "caption": partial(captions, images)}
    for method in small_methods(clip, images.classnames):
        name = type(method).__name__
        if "checkpoint" in method.get_params():
            method.set_params(**SHORT.get(name, {}))
            jobs[name] = partial(fit, method, images.unlabelled())
    return {
        **jobs,
        "adapt": partial(adapt, folder),
        "compare": partial(compare, folder),
    }
