"""encode_image against a plain OpenCLIP loop: the same images, the same models, one
run; ratios of wall and CPU time.

python benchmarks/encode.py [--images 899] [--large-images 192] [--rounds 5]

Other processes slow bfloat16 and float32 alike, so the contenders take turns, and the
load of the machine is printed. For "auto" see `clipadapt.clip.model.choose_precision`.
"""

import argparse
import os

import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, has_bfloat16_units, median, turns
from random_clips import random_clip

from clipadapt import CLIP, digits, load_clip
from clipadapt.clip.model import bfloat16_gain, choose_precision


def plain_loop(clip, images, batch_size=64):
    """What people write: preprocess a batch, encode it, normalise, go on."""
    features = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = torch.stack(
                [clip.preprocess(image) for image in images[start : start + batch_size]]
            )
            features.append(
                F.normalize(
                    clip.model.encode_image(batch.to(clip.device)), dim=-1
                ).cpu()
            )
    return torch.cat(features)


def with_precision(clip, precision):
    return CLIP(
        clip.model,
        clip.preprocess,
        clip.tokenizer,
        device=clip.device,
        precision=precision,
    )


def measure(clip, images, rounds):
    """Median seconds of each contender over interleaved rounds, and how far their
    features agree."""
    exact, half = (with_precision(clip, each) for each in ("float32", "bf16"))
    contenders = {
        "plain OpenCLIP loop": lambda: plain_loop(clip, images),
        "encode_image, float32": lambda: exact.encode_image(images),
        "encode_image, bf16": lambda: half.encode_image(images),
    }
    spent, features = turns(contenders, rounds)
    reference = features["plain OpenCLIP loop"]
    cosines = {
        name: (found * reference).sum(1).min().item()
        for name, found in features.items()
    }
    return {name: median(took) for name, took in spent.items()}, cosines


def inputs(images, large_images):
    """Handwriting for the small model, and larger pictures for the large one."""
    test = digits("test")
    small = [test[i % len(test)][0] for i in range(images)]
    large = [test[i % len(test)][0].resize((320, 240)) for i in range(large_images)]
    return {
        "built-in": (load_clip(precision="float32"), small),
        "ViT-B/32, random": (random_clip(precision="float32"), large),
    }


def rows(images=899, large_images=96, rounds=3):
    """Float32 against the plain loop, and bfloat16 against float32.

    Twice as fast with bfloat16 was asked for where the CPU has units for it.
    """
    found = []
    for label, (clip, pictures) in inputs(images, large_images).items():
        seconds, _ = measure(clip, pictures, rounds)
        plain, exact, half = seconds.values()
        task = f"encode {len(pictures)} pictures, {label}"
        found.append(
            Row(
                "clip",
                task,
                "`encode_image`",
                "OpenCLIP in a loop",
                exact,
                plain,
                1,
                "wall",
            )
        )
        if "ViT" in label:
            asked = 2 if has_bfloat16_units() else None
            found.append(
                Row("clip", task, "bfloat16", "float32", half, exact, asked, "wall")
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=899)
    parser.add_argument("--large-images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    given = inputs(options.images, options.large_images)
    table = []
    for label, (clip, images) in given.items():
        seconds, cosines = measure(clip, images, options.rounds)
        plain, exact, _ = seconds.values()
        table += [
            {
                "model": label,
                "contender": name,
                "images/s": len(images) / took.wall,
                "plain / this (wall)": plain.wall / took.wall,
                "float32 / this (wall)": exact.wall / took.wall,
                "float32 / this (CPU)": exact.cpu / took.cpu,
                "lowest cosine": cosines[name],
            }
            for name, took in seconds.items()
        ]
    large_model = given["ViT-B/32, random"][0]
    where = "GPU" if torch.cuda.is_available() else "CPU"
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where},"
        f" load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    )
    print(
        f"a transformer block computes {bfloat16_gain():.2f} times as fast in bfloat16"
        " on this CPU; 'auto' takes"
        f" {choose_precision(large_model.model, large_model.device)} for ViT-B/32"
    )
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.4g}".format))
