"""encode_image against a plain OpenCLIP loop: the same images, the same models, one
run; ratios of wall and CPU time.

python benchmarks/encode.py [--images 899] [--large-images 192] [--rounds 5]

Other processes slow bfloat16 and float32 alike, so the contenders take turns, and the
load of the machine is printed. For "auto" see `clipadapt.clip.model.choose_precision`.
"""

import argparse
import os
import statistics
import time

import pandas as pd
import torch
import torch.nn.functional as F
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


def measure(label, clip, images, rounds):
    """Median wall and CPU seconds of each contender over interleaved rounds, and how
    far their features agree."""
    exact, half = (with_precision(clip, each) for each in ("float32", "bf16"))
    contenders = {
        "plain OpenCLIP loop": lambda: plain_loop(clip, images),
        "encode_image, float32": lambda: exact.encode_image(images),
        "encode_image, bf16": lambda: half.encode_image(images),
    }
    features = {name: encode() for name, encode in contenders.items()}
    spent = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, encode in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            encode()
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    seconds = {
        name: tuple(map(statistics.median, zip(*both))) for name, both in spent.items()
    }
    plain, exact = (
        seconds[name] for name in ("plain OpenCLIP loop", "encode_image, float32")
    )
    reference = features["plain OpenCLIP loop"]
    return [
        {
            "model": label,
            "contender": name,
            "images/s": len(images) / wall,
            "plain / this (wall)": plain[0] / wall,
            "float32 / this (wall)": exact[0] / wall,
            "float32 / this (CPU)": exact[1] / cpu,
            "lowest cosine": (features[name] * reference).sum(1).min().item(),
        }
        for name, (wall, cpu) in seconds.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=899)
    parser.add_argument("--large-images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    test = digits("test")
    small = [test[i % len(test)][0] for i in range(options.images)]
    large = [
        test[i % len(test)][0].resize((320, 240)) for i in range(options.large_images)
    ]
    large_model = random_clip(precision="float32")
    rows = measure(
        "built-in", load_clip(precision="float32"), small, options.rounds
    ) + measure("ViT-B/32, random", large_model, large, options.rounds)
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
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
