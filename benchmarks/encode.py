"""encode_image against a plain OpenCLIP loop: the same images, the same models, one
run; ratios of images per second.

python benchmarks/encode.py [--images 899] [--large-images 192] [--rounds 5]
"""

import argparse
import statistics
import time

import open_clip
import pandas as pd
import torch
import torch.nn.functional as F

from clipadapt import CLIP, digits, load_clip


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


def large_clip():
    """ViT-B/32 with random weights: the cost of the real one, without the download."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    return CLIP(
        model,
        preprocess,
        open_clip.get_tokenizer("ViT-B-32"),
        device="cuda" if torch.cuda.is_available() else "cpu",
        precision="float32",
    )


def with_precision(clip, precision):
    return CLIP(
        clip.model,
        clip.preprocess,
        clip.tokenizer,
        device=clip.device,
        precision=precision,
    )


def measure(label, clip, images, rounds):
    """Median seconds of each contender over interleaved rounds, and how far their
    features agree."""
    contenders = {
        "plain OpenCLIP loop": lambda: plain_loop(clip, images),
        "encode_image, float32": lambda: with_precision(clip, "float32").encode_image(
            images
        ),
        "encode_image, bf16": lambda: with_precision(clip, "bf16").encode_image(images),
    }
    features = {name: encode() for name, encode in contenders.items()}
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, encode in contenders.items():
            start = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - start)
    plain = statistics.median(seconds["plain OpenCLIP loop"])
    return [
        {
            "model": label,
            "contender": name,
            "images/s": len(images) / statistics.median(times),
            "ratio": plain / statistics.median(times),
            "lowest cosine": (features[name] * features["plain OpenCLIP loop"])
            .sum(1)
            .min()
            .item(),
        }
        for name, times in seconds.items()
    ]


def matrix_product_gain():
    """How much faster this machine multiplies matrices in bfloat16 than in float32: the
    most that bf16 can gain."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weights = (
            torch.randn(3200, 768, device=device, dtype=dtype),
            torch.randn(768, 3072, device=device, dtype=dtype),
        )
        times = []
        for _ in range(10):
            start = time.perf_counter()
            (tokens @ weights).sum().item()
            times.append(time.perf_counter() - start)
        seconds[dtype] = statistics.median(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


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
    rows = measure(
        "built-in", load_clip(precision="float32"), small, options.rounds
    ) + measure("ViT-B/32, random", large_clip(), large, options.rounds)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'GPU' if torch.cuda.is_available() else 'CPU'}"
    )
    print(
        f"matrix products in bfloat16 run {matrix_product_gain():.2f} times as fast "
        "here as in float32: more than that bf16 cannot gain"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))
