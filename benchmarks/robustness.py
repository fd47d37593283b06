"""Ten corruptions of the handwriting at five severities, made and scored with the
built-in CLIP, zero-shot: who takes the time, measured in one run.

python benchmarks/robustness.py [--corruptions 10] [--images 899] [--precision float32]
"""

import argparse

import numpy as np
import pandas as pd
import torch
from measuring import Row, Spent, spent

from clipadapt import ImageSet, ZeroShot, digits, load_clip
from clipadapt.images.corruptions import CORRUPTIONS, SEVERITIES, Corrupted
from clipadapt.judge.robustness import evaluate


def corrupted(test, name):
    """The images of one corruption at all severities, as arrays."""
    return [
        np.stack([np.asarray(image) for image, _ in Corrupted(test, name, severity)])
        for severity in SEVERITIES
    ]


def measure_whole(clip, test, names):
    """What `evaluate` took, and its table."""
    method = ZeroShot(clip, test.classnames).fit(test)
    method.predict_proba(test)  # warm
    return spent(lambda: evaluate(method, test, corruptions=names))


def measure_parts(clip, test, names):
    """What each corruption took alone, what encoding took alone, and how many pictures
    that were."""
    making = {name: spent(lambda: corrupted(test, name)) for name in names}
    pixels = [ImageSet(array) for _, arrays in making.values() for array in arrays]
    encoding, _ = spent(lambda: [clip.encode_image(images) for images in pixels])
    alone = {name: took for name, (took, _) in making.items()}
    return alone, encoding, len(pixels) * len(test)


def rows(images=899, corruptions=10):
    """All that `evaluate` does, against the minute that it may take."""
    test, names = digits("test").subset(range(images)), list(CORRUPTIONS)[:corruptions]
    whole, _ = measure_whole(load_clip(), test, names)
    count, minute = len(names) * len(SEVERITIES) * len(test), Spent(60.0, 60.0)
    task = f"corrupt and score {count:,} pictures, built-in CLIP"
    given = "`evaluate`", "a minute, the limit", whole, minute, 1, "wall"
    return [Row("judge", task, *given)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=10)
    parser.add_argument("--images", type=int, default=899)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    test = digits("test").subset(range(options.images))
    clip = load_clip(precision=options.precision)
    names = list(CORRUPTIONS)[: options.corruptions]
    took, table = measure_whole(clip, test, names)
    alone, encoded, count = measure_parts(clip, test, names)
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
