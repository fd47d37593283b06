"""Do two labels a class help or harm? FPL, IFPL and GRIP with and without them, on a small and on a large pool of handwriting.

python benchmarks/semi_supervised.py [--views 12] [--seeds 3] [--weights recommended,published]

The small pool is the training half, 898 scans; the large one has `views` weak views of
each. Prompts are textual and trained by the preset `SMALL`, with fewer epochs and rounds
on the large pool. K = 1000 gives FPL and IFPL as many pseudolabels there as GRIP has.
"""
import argparse
import time

import numpy as np
import pandas as pd
import torch

from clipadapt import CLIP, FPL, GRIP, IFPL, ImageSet, digits, load_clip
from clipadapt.features import named_view
from clipadapt.grip import SMALL

SMALL_POOL = {"FPL": (FPL, {}), "IFPL": (IFPL, {}), "GRIP": (GRIP, {})}
SHORT = {"epochs": 3, "rounds": 4}
LARGE_POOL = {
    "FPL": (FPL, {"epochs": 20}),
    "FPL, K = 1000": (FPL, {"epochs": 6, "k": 1000}),
    "IFPL": (IFPL, {"epochs": 20}),
    "IFPL, K = 1000": (IFPL, {**SHORT, "k": 1000}),
    "GRIP": (GRIP, SHORT),
}


class EncodedOnce(CLIP):
    """A CLIP that keeps the features of every set of images, by its length."""

    def encode_image(self, images, batch_size: int = 64) -> torch.Tensor:
        kept = vars(self).setdefault("kept", {})
        if len(images) not in kept:
            kept[len(images)] = super().encode_image(images, batch_size)
        return kept[len(images)]


def views_of(scans: ImageSet, size: int, count: int) -> tuple[list, np.ndarray]:
    """`count` weak views of every scan, and their labels."""
    views = [named_view(scans, f"weak {seed}", size, flip=False) for seed in range(count)]
    images = [views[seed][i][0] for seed in range(count) for i in range(len(scans))]
    return images, np.tile(scans.labels, count)


def two_labels(truth: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Labels of two images of every class, -1 for all others."""
    rng, labels = np.random.default_rng(seed), np.full(len(truth), -1)
    for c in range(classes):
        labels[rng.choice(np.flatnonzero(truth == c), 2, replace=False)] = c
    return labels


def accuracy(clip, pool, test, method, params, labels, seed) -> float:
    """Accuracy on the test half (%) of one fit."""
    fitted = method(clip, test.classnames, seed=seed, **{**SMALL, **params})
    return 100 * fitted.fit(pool, labels).score(test)


def compare(clip, pool, truth, test, methods, seeds, readings) -> pd.DataFrame:
    """A row for each method and seed: without labels, with them by default, by each
    reading of the weights."""
    rows = []
    for name, (method, params) in methods.items():
        for seed in range(seeds):
            labels = two_labels(truth, len(test.classnames), seed)
            row = {"pool": len(truth), "method": name}
            row["no label"] = accuracy(clip, pool, test, method, params, None, seed)
            for reading in ("default", *readings):
                more = {} if reading == "default" else {"weights": reading}
                chosen = {**params, **more}
                row[reading] = accuracy(clip, pool, test, method, chosen, labels, seed)
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", default="recommended,published")
    options = parser.parse_args()
    start = time.process_time()
    plain = load_clip(precision="float32")
    clip = EncodedOnce(plain.model, plain.preprocess, plain.tokenizer)
    train, test = digits("train"), digits("test")
    images, truth = views_of(train, clip.image_size, options.views)
    readings = [word for word in options.weights.split(",") if word]
    asked = test, SMALL_POOL, options.seeds, readings
    found = [compare(clip, train, train.labels, *asked)]
    asked = test, LARGE_POOL, options.seeds, readings
    found.append(compare(clip, ImageSet(images, train.classnames), truth, *asked))
    table = pd.concat(found)
    table["gain"] = table["default"] - table["no label"]
    groups = table.groupby(["pool", "method"], sort=False)
    means = groups.mean().assign(**{"least gain": groups.gain.min()})
    print(f"accuracy on the test half (%), means of {options.seeds} seeds")
    print(means.round(1).to_string())
    print(f"{torch.get_num_threads()} threads, {time.process_time() - start:.0f} s of CPU")
