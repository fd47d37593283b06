"""Ten corruptions of the handwriting at five severities, made and scored with the
built-in CLIP, zero-shot: who takes the time, measured in one run.

python benchmarks/robustness.py [--corruptions 10] [--images 899] [--precision float32]
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch

from clipadapt import ImageSet, ZeroShot, digits, load_clip
from clipadapt.images.corruptions import CORRUPTIONS, SEVERITIES, Corrupted
from clipadapt.judge.robustness import evaluate


def seconds(work, *arguments):
    """The seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def corrupted(test, name):
    """The images of one corruption at all severities, as arrays."""
    return [
        np.stack([np.asarray(image) for image, _ in Corrupted(test, name, severity)])
        for severity in SEVERITIES
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=10)
    parser.add_argument("--images", type=int, default=899)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    test, clip, names = (
        digits("test").subset(range(options.images)),
        load_clip(precision=options.precision),
        list(CORRUPTIONS)[: options.corruptions],
    )
    method = ZeroShot(clip, test.classnames).fit(test)
    method.predict_proba(test)  # warm
    whole, table = seconds(lambda: evaluate(method, test, corruptions=names))
    making = {name: seconds(corrupted, test, name) for name in names}
    pixels = [ImageSet(array) for _, arrays in making.values() for array in arrays]
    encoding, _ = seconds(lambda: [clip.encode_image(images) for images in pixels])
    corrupting, count = (
        sum(taken for taken, _ in making.values()),
        len(pixels) * len(test),
    )
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; {len(names)} "
        f"corruptions x {len(SEVERITIES)} severities of {len(test)} images, {clip}"
    )
    rows = [
        ("evaluate, all of it", whole),
        ("corrupting alone", corrupting),
        ("encoding alone", encoding),
        ("the rest: scores, waiting", whole - corrupting - encoding),
    ]
    times = pd.DataFrame(rows, columns=["part", "seconds"]).assign(
        ratio=lambda rows: rows.seconds / whole,
        **{"images/s": lambda rows: count / rows.seconds},
    )
    print(times.to_string(index=False, float_format="{:.3g}".format))
    slowest = max(making, key=lambda name: making[name][0])
    print(
        f"slowest corruption: {slowest}, "
        f"{1e6 * making[slowest][0] / (len(SEVERITIES) * len(test)):.0f} microseconds "
        f"an image; the mean is {1e6 * corrupting / count:.0f}"
    )
    corrupted = (table.kind == "corruption") & (table.metric == "accuracy")
    print(
        f"accuracy under corruption {table[corrupted].value.mean():.3f}; "
        f"required: under 60 s: {'met' if whole < 60 else 'NOT met'}"
    )
