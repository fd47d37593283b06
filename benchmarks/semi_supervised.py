"""Do two labels a class help or harm? FPL, IFPL and GRIP with and without them, on a
small and on a large pool of handwriting.

python benchmarks/semi_supervised.py [--views 12] [--seeds 3]
    [--settings none,shares,equal]

The small pool is the training half, 898 scans; the large one has `views` weak views of
each. Prompts are textual and trained by the preset `SMALL`, on the large pool with
fewer epochs and rounds. K = 1000 gives FPL and IFPL as many pseudolabels there as GRIP
has. More settings: recommended, published; with "+decay" the default weight decay of
0.1.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch

from clipadapt import CLIP, FPL, GRIP, IFPL, ImageSet, digits, load_clip
from clipadapt.clip.features import named_view
from clipadapt.methods.grip import READINGS, SMALL

SMALL_POOL = {"FPL": (FPL, {}), "IFPL": (IFPL, {}), "GRIP": (GRIP, {})}
SHORT = {"epochs": 3, "rounds": 4}
LARGE_POOL = {
    "FPL": (FPL, {"epochs": 20}),
    "FPL, K = 1000": (FPL, {"epochs": 6, "k": 1000}),
    "IFPL": (IFPL, {"epochs": 20}),
    "IFPL, K = 1000": (IFPL, {**SHORT, "k": 1000}),
    "GRIP": (GRIP, SHORT),
}
WEIGHTS = {"none": "shares", "equal": (1, 1), **{name: name for name in READINGS}}


class EncodedOnce(CLIP):
    """A CLIP that keeps the features of every set of images, by its length."""

    def encode_image(self, images, batch_size: int = 64) -> torch.Tensor:
        kept = vars(self).setdefault("kept", {})
        if len(images) not in kept:
            kept[len(images)] = super().encode_image(images, batch_size)
        return kept[len(images)]


def views_of(scans: ImageSet, size: int, count: int) -> tuple[list, np.ndarray]:
    """`count` weak views of every scan, and their labels."""
    views = [
        named_view(scans, f"weak {seed}", size, flip=False) for seed in range(count)
    ]
    images = [views[seed][i][0] for seed in range(count) for i in range(len(scans))]
    return images, np.tile(scans.labels, count)


def two_labels(truth: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Labels of two images of every class, -1 for all others."""
    rng, labels = np.random.default_rng(seed), np.full(len(truth), -1)
    for c in range(classes):
        labels[rng.choice(np.flatnonzero(truth == c), 2, replace=False)] = c
    return labels


def params_of(setting: str) -> dict:
    """The parameters of a setting, such as "equal" or "equal+decay"."""
    name, plus, _ = setting.partition("+")
    return {
        **SMALL,
        "weights": WEIGHTS[name],
        **({"weight_decay": 0.1} if plus else {}),
    }


def measure(clip, pool, truth, test, methods, seeds, settings) -> pd.DataFrame:
    """A row for each method and seed: accuracy on the test half (%) by setting."""
    rows = []
    for name, (method, params) in methods.items():
        for seed in range(seeds):
            labels = two_labels(truth, len(test.classnames), seed)
            row = {"pool": len(truth), "method": name}
            for setting in settings:
                chosen = {**params_of(setting), **params, "seed": seed}
                given = None if setting.startswith("none") else labels
                fitted = method(clip, test.classnames, **chosen).fit(pool, given)
                row[setting] = 100 * fitted.score(test)
            rows.append(row)
            print(row, flush=True)
    return pd.DataFrame(rows)


def report(table: pd.DataFrame, settings: list[str]) -> None:
    """Print means over the seeds, and what labels gain."""
    for setting in settings:
        without = "none+decay" if setting.endswith("+decay") else "none"
        if without in settings and setting != without:
            table[f"gain, {setting}"] = table[setting] - table[without]
    means = table.groupby(["pool", "method"], sort=False).mean()
    print("accuracy on the test half (%), means over the seeds; two labels a class")
    print(means.round(1).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", default="none,shares,equal")
    options = parser.parse_args()
    start = time.process_time()
    plain = load_clip(precision="float32")
    clip = EncodedOnce(plain.model, plain.preprocess, plain.tokenizer)
    train, test = digits("train"), digits("test")
    images, truth = views_of(train, clip.image_size, options.views)
    many = ImageSet(images, train.classnames)
    settings = options.settings.split(",")
    found = [
        measure(clip, pool, labels, test, methods, options.seeds, settings)
        for pool, labels, methods in (
            (train, train.labels, SMALL_POOL),
            (many, truth, LARGE_POOL),
        )
    ]
    report(pd.concat(found), settings)
    print(
        f"{torch.get_num_threads()} threads, {time.process_time() - start:.0f} s of CPU"
    )
