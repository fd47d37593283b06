"""What one core, and one GPU where there is one, does in a second: the rates from which
the page "From a laptop to a cluster" computes what millions of images cost.

python benchmarks/rates.py [--device cpu] [--models ViT-B-32 ViT-L-14] [--images 48]
    [--gpu-images 4096] [--out rates.json]

Each part is measured alone, on one thread, in CPU time; encoding on a GPU in wall time,
since what counts there is how long the GPU is taken: it gets bytes, as from decoded
files, in batches that fill it, and no picture is prepared meanwhile. Weights are
random, which changes nothing about the time. Decoding a photograph ends with the tensor
that the CLIP reads.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photos import LARGE, SMALL, write_photographs
from random_clips import random_clip

from clipadapt import (
    CLIP,
    AnchoredMixture,
    FeatureSet,
    ImageSet,
    Prototypes,
    ZeroShot,
)
from clipadapt.clip.model import choose_precision
from clipadapt.clip.tables import FeatureTable


def cpu_seconds(call: Callable, repeats: int = 3) -> float:
    """The least CPU time of a few calls, after one that does not count."""
    call()
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def gpu_seconds(call: Callable, repeats: int = 3) -> float:
    """The least wall time of a few calls, each until the GPU has finished."""

    def finished() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    finished()
    return min(finished() for _ in range(repeats))


def decoding(clip: CLIP, folder: Path, count: int) -> list[dict]:
    """Images a second that one core decodes, scales and normalises."""
    rows = []
    for size in (LARGE, SMALL):
        what = f"decode, {size[0]} x {size[1]}"
        files = write_photographs(folder / what, count, size)
        images = ImageSet(sorted(files.iterdir()))

        def prepare(images=images):
            for index in range(len(images)):
                clip.preprocess(images.read(index, side=clip.side))

        mean = np.mean([path.stat().st_size for path in files.iterdir()])
        rate = count / cpu_seconds(prepare)
        rows.append({"what": what, "unit": "images", "rate": rate, "bytes": mean})
    return rows


def encoding(name: str, device: str, count: int, batch_size: int = 256) -> dict:
    """Images a second of the image tower alone, in batches."""
    clip = random_clip(name, device)
    precision = choose_precision(clip.model, clip.device)
    side = clip.image_size
    if device == "cuda":
        pictures = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
        seconds = gpu_seconds(lambda: [*clip.encode_pixels(pictures, batch_size)])
    else:
        pixels = torch.rand(count, 3, side, side)
        seconds = cpu_seconds(lambda: clip.encode_image(pixels))
    return {
        "what": f"encode, {name}, {device}",
        "unit": "images",
        "rate": count / seconds,
        "precision": str(precision).removeprefix("torch."),
    }


def storing(folder: Path, dim: int = 512, count: int = 100_000) -> list[dict]:
    """Rows a second that are written, and found again by content."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, dim), np.float32)
    keys = [rng.bytes(16) for _ in range(count)]
    table = FeatureTable(folder / "table", dim, np.float32, {"model": "none"})
    start = time.process_time()
    for block in range(0, count, 8192):
        table.append(keys[block : block + 8192], rows[block : block + 8192])
    written = time.process_time() - start
    size = sum(path.stat().st_size for path in (folder / "table").rglob("*"))
    read = cpu_seconds(lambda: table.read(keys), 1)
    return [
        {"what": "store, write", "unit": "rows", "rate": count / written},
        {
            "what": "store, read",
            "unit": "rows",
            "rate": count / read,
            "bytes": size / count,
        },
    ]


def learning(count: int = 50_000, dim: int = 512, classes: int = 100) -> list[dict]:
    """Features a second that methods which need no pixels are fitted to."""
    rng = np.random.default_rng(0)
    clip = random_clip("ViT-B-32", "cpu")
    names = [f"object {number}" for number in range(classes)]
    features = rng.standard_normal((count, dim), np.float32)
    pool = FeatureSet(features / np.linalg.norm(features, axis=1, keepdims=True))
    rows = []
    for method in (ZeroShot, Prototypes, AnchoredMixture):
        fit = method(clip, names).fit
        rows.append(
            {
                "what": f"fit, {method.__name__}, {classes} classes",
                "unit": "features",
                "rate": count / cpu_seconds(lambda fit=fit: fit(pool), 1),
            }
        )
    return rows


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        clip = random_clip("ViT-B-32", "cpu")
        rows = decoding(clip, Path(folder), options.images)
        counts = {"cpu": options.images}
        if options.device == "cuda":
            counts["cuda"] = options.gpu_images
        for device, count in counts.items():
            rows += [encoding(name, device, count) for name in options.models]
        rows += storing(Path(folder)) + learning()
    about = {"torch": torch.__version__, "cores": os.cpu_count(), "device": "CPU"}
    if options.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
    options.out.write_text(json.dumps({"about": about, "rates": rows}, indent=1) + "\n")
    print(json.dumps(about))
    for row in rows:
        print(f"{row['what']:40} {row['rate']:12,.1f} {row['unit']} a second")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--gpu-images", type=int, default=4096)
    parser.add_argument("--out", type=Path, default=Path("rates.json"))
    main(parser.parse_args())
