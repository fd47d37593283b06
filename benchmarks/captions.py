"""Captions in batches against one at a time: a tiny LLaVA-NeXT with random weights, on
the CPU; ratios taken in one run.

python benchmarks/captions.py [--images 64] [--tokens 24] [--rounds 3]

Every row describes the same images with the same question; the texts are compared with
those of one at a time.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from measuring import Row, median, turns

from clipadapt import digits
from clipadapt.clip.captions import TransformersCaptioner, caption, image_prompt

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from tiny_llava import save_tiny_llava  # noqa: E402


def described(captioner, images):
    """The texts of one pass without a cache."""
    return caption(captioner, images, image_prompt("digits"), cache=False).texts


def measure(images, tokens, rounds, sizes):
    """What each size of a batch took, and its texts."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_llava(folder)
        captioners = {
            size: TransformersCaptioner(
                folder, batch_size=size, max_new_tokens=tokens, device="cpu"
            )
            for size in sizes
        }
        for captioner in captioners.values():
            captioner.prepare()
            described(captioner, images.subset(range(min(8, len(images)))))
        calls = {
            size: lambda captioner=captioner: described(captioner, images)
            for size, captioner in captioners.items()
        }
        times, texts = turns(calls, rounds, warm=False)
    return {size: median(took) for size, took in times.items()}, texts


def rows(images=64, tokens=24, rounds=3, batch=16):
    """Captions in batches; one thread."""
    pictures = digits("test").subset(range(images))
    times, _ = measure(pictures, tokens, rounds, (1, batch))
    task = f"{images} captions, a tiny LLaVA-NeXT"
    ours = f"{batch} at a time"
    pair = times[batch], times[1]
    return [Row("clip", task, ours, "one at a time", *pair, 2, "wall")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 64, "tokens": 24, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    images = digits("test").subset(range(options.images))
    times, texts = measure(images, options.tokens, options.rounds, (1, 2, 4, 8, 16, 32))
    print(
        f"torch {torch.__version__}, one thread; {options.images} images, "
        f"{options.tokens} tokens each, median of {options.rounds} rounds"
    )
    table = [
        {
            "batch": size,
            "seconds": took.wall,
            "captions/s": options.images / took.wall,
            "one at a time / this": times[1].wall / took.wall,
            "same texts": (
                f"{sum(a == b for a, b in zip(texts[size], texts[1]))} of "
                f"{options.images}"
            ),
        }
        for size, took in times.items()
    ]
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.3g}".format))
