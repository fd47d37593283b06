"""Ten corruptions of the handwriting at five severities, made and scored with the
built-in CLIP, zero-shot: who takes the time, measured in one run.

python benchmarks/robustness.py [--corruptions 10] [--images 899] [--precision float32]
"""

import argparse

import numpy as np
import pandas as pd
import torch
from measuring import Row, spent

from clipadapt import ImageSet, ZeroShot, digits, load_clip
from clipadapt.images.corruptions import CORRUPTIONS, SEVERITIES, Corrupted
from clipadapt.judge.robustness import evaluate


def corrupted(test, name):
    """The images of one corruption at all severities, as arrays."""
    return [
        np.stack([np.asarray(image) for image, _ in Corrupted(test, name, severity)])
        for severity in SEVERITIES
    ]


def measure(images, corruptions, precision="auto"):
    """What `evaluate` took, each corruption alone, and encoding alone; its table, the
    CLIP and how many pictures were encoded."""
    test = digits("test").subset(range(images))
    clip, names = load_clip(precision=precision), list(CORRUPTIONS)[:corruptions]
    method = ZeroShot(clip, test.classnames).fit(test)
    method.predict_proba(test)  # warm
    whole, table = spent(lambda: evaluate(method, test, corruptions=names))
    making = {name: spent(lambda: corrupted(test, name)) for name in names}
    pixels = [ImageSet(array) for _, arrays in making.values() for array in arrays]
    encoding, _ = spent(lambda: [clip.encode_image(images) for images in pixels])
    alone = {name: took for name, (took, _) in making.items()}
    return whole, alone, encoding, table, clip, len(pixels) * len(test)


def rows(images=899, corruptions=4):
    """All that `evaluate` does, against its two parts one after the other."""
    whole, making, encoding, _, _, count = measure(images, corruptions)
    parts = sum(making.values(), encoding)
    task = f"corrupt and score {count:,} pictures, built-in CLIP"
    return [Row("judge", task, "`evaluate`", "one after the other", whole, parts)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=10)
    parser.add_argument("--images", type=int, default=899)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    took, alone, encoded, table, clip, count = measure(
        options.images, options.corruptions, options.precision
    )
    whole, encoding = took.wall, encoded.wall
    making = {name: each.wall for name, each in alone.items()}
    corrupting, each = sum(making.values()), count // len(making)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {len(making)} "
        f"corruptions x {len(SEVERITIES)} severities of {each // len(SEVERITIES)} "
        f"images, {clip}"
    )
    parts = [
        ("evaluate, all of it", whole),
        ("corrupting alone", corrupting),
        ("encoding alone", encoding),
        ("the rest: scores, waiting", whole - corrupting - encoding),
    ]
    times = pd.DataFrame(parts, columns=["part", "seconds"]).assign(
        ratio=lambda parts: parts.seconds / whole,
        **{"images/s": lambda parts: count / parts.seconds},
    )
    print(times.to_string(index=False, float_format="{:.3g}".format))
    slowest = max(making, key=making.get)
    print(
        f"slowest corruption: {slowest}, "
        f"{1e6 * making[slowest] / each:.0f} microseconds "
        f"an image; the mean is {1e6 * corrupting / count:.0f}"
    )
    corrupted = (table.kind == "corruption") & (table.metric == "accuracy")
    print(
        f"accuracy under corruption {table[corrupted].value.mean():.3f}; "
        f"required: under 60 s: {'met' if whole < 60 else 'NOT met'}"
    )
