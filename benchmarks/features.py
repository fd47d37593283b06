"""Features from the store against encoding again, and the memory that encoding a large
set takes; ratios taken in one run.

python benchmarks/features.py [--images 2000] [--many 100000]
"""

import argparse
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import Row, least, spent, turns
from PIL import Image
from random_clips import random_clip

from clipadapt import CLIP, FeatureStore, ImageSet, digits, load_clip
from clipadapt.clip.tables import KEY, FeatureTable


def photos(count, folder):
    """JPEG files of 320 x 240 pixels, each different."""
    scans, paths = digits("train"), []
    for i in range(count):
        paths.append(folder / f"{i:05}.jpg")
        Image.fromarray(
            np.roll(
                scans[i % len(scans)][0].resize((320, 240)), i // len(scans), axis=1
            )
        ).save(paths[-1], quality=90)
    return ImageSet(paths)


def one_more(images):
    """The images and, before them, one that is not among them."""
    new = Image.fromarray(255 - np.asarray(images[0][0]))
    return ImageSet([new, *images.images])


def reuse(label, clip, images, folder):
    """What encoding takes, and each use of a store."""
    store = FeatureStore(folder / label.replace("/", "-"))
    # the weights are hashed once a process; that is measured on its own
    _ = clip.fingerprint
    fresh = CLIP(clip.model, clip.preprocess, clip.tokenizer, device=clip.device)
    checking = FeatureStore(store.location, verify=True)
    calls = {
        "encode_image": lambda: clip.encode_image(images),
        "store, first use": lambda: store.encode(clip, images),
        "store, second use": lambda: store.encode(clip, images),
        "store, second use, weights hashed too": lambda: store.encode(fresh, images),
        "store, second use, all files read": lambda: checking.encode(clip, images),
        "store, one image more": lambda: store.encode(clip, one_more(images)),
    }
    return {what: spent(call)[0] for what, call in calls.items()}


def shown(label, images, times):
    """Rows for the eye."""
    return [
        {
            "model": label,
            "images": len(images),
            "what": what,
            "seconds": took.wall,
            "times as fast as encoding": times["encode_image"].wall / took.wall,
        }
        for what, took in times.items()
    ]


def rows(images=1000, many=100_000):
    """The second use of a store, and reading it beside a plain file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        read = against_a_memory_map(many, folder)
        given = random_clip(), photos(images, folder), folder
        uses = reuse("ViT-B/32, random", *given)
    task = f"features of {images:,} photographs, ViT-B/32"
    reading = f"read {many:,} features of 512 numbers"
    encoding, mapped = uses.pop("encode_image"), read.pop("memory map")
    asked = {"store, second use": 100}  # of 2,000 photographs, wall time
    found = [
        Row(
            "clip", task, what, "encoding them", took, encoding, asked.get(what), "wall"
        )
        for what, took in uses.items()
    ]
    asked = {"table": 1 / 3}
    return found + [
        Row("clip", reading, what, "a memory map", took, mapped, asked.get(what))
        for what, took in read.items()
    ]


class Drawn(Sequence):
    """Images that exist only while somebody looks at them."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)


class Wide(torch.nn.Module):
    """An image encoder that costs nothing and gives 2,048 numbers."""

    def __init__(self, visual, dim=2048):
        super().__init__()
        self.visual, self.weight = visual, torch.nn.Parameter(torch.randn(dim, 1))

    def encode_image(self, pixels):
        return pixels.mean((1, 2, 3))[:, None] * self.weight.T

    def encode_text(self, tokens):
        return torch.ones(len(tokens), len(self.weight))


def memory(count, folder):
    """How much the process grows, beyond the features it returns, while `count` images
    are encoded into a store; and the size of these features, in MiB (ru_maxrss, Linux).
    """
    small = load_clip(device="cpu")
    clip, store = (
        CLIP(Wide(small.model.visual), small.preprocess, small.tokenizer),
        FeatureStore(folder / "many"),
    )
    store.encode(clip, ImageSet(Drawn(2000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    features = store.encode(clip, ImageSet(Drawn(count)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return grown - features.nbytes / 2**20, features.nbytes / 2**20


def against_a_memory_map(count, folder, dim=512):
    """What it takes to read stored features and add them up, beside a mapped array."""
    rng = np.random.default_rng(0)
    content = rng.bytes(KEY * count)
    keys = [content[start : start + KEY] for start in range(0, len(content), KEY)]
    features = rng.standard_normal((count, dim), np.float32)
    table, path = FeatureTable(folder / "table.lance", dim), folder / "array.npy"
    for start in range(0, count, 1024):
        part = slice(start, start + 1024)
        table.append(keys[part], features[part])
    table.compact()
    np.save(path, features)
    order = rng.permutation(count).tolist()
    mixed = [keys[i] for i in order]
    assert (table.read(mixed)[0] == features[order]).all()
    del features
    calls = {
        "memory map": lambda: np.array(np.load(path, mmap_mode="r")).sum(),
        "table": lambda: table.read(keys)[0].sum(),
        "table, in another order": lambda: table.read(mixed)[0].sum(),
    }
    times, _ = turns(calls, 7, warm=False)
    return {what: least(took) for what, took in times.items()}


def beside_the_map(times):
    """A table for the eye."""
    best = pd.DataFrame(times, index=["CPU (s)", "wall (s)"]).T
    for name in ("CPU", "wall"):
        taken = best[f"{name} (s)"]
        best[f"times a memory map, {name}"] = taken / taken["memory map"]
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--many", type=int, default=100_000)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'GPU' if torch.cuda.is_available() else 'CPU'}"
    )
    with tempfile.TemporaryDirectory() as folder:
        grown, size = memory(options.many, Path(folder))
        print(
            f"{options.many} images through the store: {size:.0f} MiB of features; "
            f"beyond them the process grew by {grown:.0f} MiB"
        )
        print(f"{options.many} features of 512 numbers, read and added up:")
        read = beside_the_map(against_a_memory_map(options.many, Path(folder)))
        print(read.to_string(float_format="{:.3g}".format))
        photographs = photos(options.images, Path(folder))
        table = []
        for label, clip, images in (
            ("built-in", load_clip(), digits("train")),
            ("ViT-B/32, random", random_clip(), photographs),
        ):
            table += shown(label, images, reuse(label, clip, images, Path(folder)))
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.4g}".format))
