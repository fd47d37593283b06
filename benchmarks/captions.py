"""Captions in batches against one at a time: a tiny LLaVA-NeXT with random weights, on
the CPU; ratios taken in one run.

python benchmarks/captions.py [--images 64] [--tokens 24] [--rounds 3]

Every row describes the same images with the same question; the texts are compared with
those of one at a time.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch

from clipadapt import digits
from clipadapt.clip.captions import TransformersCaptioner, caption, image_prompt

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from tiny_llava import save_tiny_llava  # noqa: E402


def measured(captioner, images):
    """Seconds of one pass without a cache, and the texts."""
    start = time.perf_counter()
    texts = caption(captioner, images, image_prompt("digits"), cache=False).texts
    return time.perf_counter() - start, texts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 64, "tokens": 24, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images = digits("test").subset(range(options.images))
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_llava(folder)
        captioners = {
            size: TransformersCaptioner(
                folder, batch_size=size, max_new_tokens=options.tokens, device="cpu"
            )
            for size in (1, 2, 4, 8, 16, 32)
        }
        for captioner in captioners.values():
            captioner.prepare()
            measured(captioner, images.subset(range(min(8, len(images)))))
        runs = [
            {
                size: measured(captioner, images)
                for size, captioner in captioners.items()
            }
            for _ in range(options.rounds)
        ]
    print(
        f"torch {torch.__version__}, one thread; {options.images} images, "
        f"{options.tokens} tokens each, median of {options.rounds} rounds"
    )
    seconds = {
        size: statistics.median(run[size][0] for run in runs) for size in captioners
    }
    rows = [
        {
            "batch": size,
            "seconds": seconds[size],
            "captions/s": options.images / seconds[size],
            "one at a time / this": seconds[1] / seconds[size],
            "same texts": (
                f"{sum(a == b for a, b in zip(runs[0][size][1], runs[0][1][1]))} of "
                f"{options.images}"
            ),
        }
        for size in captioners
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
