"""A training step of LatteCLIP with ViT-B/32: every text of the batch once and cut,
against all of them whole; the same loss, ratios taken in one run.

python benchmarks/finetuning.py [--batch 64] [--classes 10] [--rounds 2]
    [--model ViT-B-32]
"""

import argparse
import statistics
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from random_clips import random_clip

from clipadapt import digits
from clipadapt.learning.towers import contrastive_loss, trainable_copy
from clipadapt.methods.latteclip import Descriptions, mix_texts, mixing_weights

WORDS = (
    "aerial view of green fields with a narrow road, some houses, a river and trees "
    "along its banks in bright light"
).split()


def captions(count, rng):
    """Sentences of 10 to 20 words, as a language model is asked for."""
    return [
        " ".join(rng.choice(WORDS, rng.integers(10, 21))) + "." for _ in range(count)
    ]


def step(clip, pixels, pseudolabels, prototypes, embed):
    """Forward and backward passes of a step; return the loss and the seconds of texts
    and of all."""
    clip.model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    features = F.normalize(clip.model.encode_image(pixels), dim=-1)
    synchronise()
    seen = time.perf_counter()
    texts, counts = embed()
    loss = 0
    for these, classes in zip(texts, pseudolabels):
        mixed = mix_texts(these, mixing_weights(these, prototypes, counts))
        loss = loss + contrastive_loss(
            features, 0.99 * prototypes[classes] + 0.01 * mixed, clip.logit_scale
        )
    loss.backward()
    synchronise()
    return loss.item(), seen - start, time.perf_counter() - start


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain_encoder(clip, words):
    """Every row of the table as if it were new: tokens of the whole context, no text
    shared."""
    return lambda rows: F.normalize(
        clip.model.encode_text(
            words.table.tokens[words.table.rows[rows].to(clip.device)]
        ).float(),
        dim=-1,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"batch": 64, "classes": 10, "rounds": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="ViT-B-32")
    options = parser.parse_args()
    clip, rng, scans = (
        trainable_copy(random_clip(options.model, precision="float32")),
        np.random.default_rng(0),
        digits("train"),
    )
    names = [f"annual crop land number {c}" for c in range(options.classes)]
    told = captions(options.batch, rng)
    words = Descriptions(
        clip,
        names,
        ["a photo of a {}."],
        ["class", "image", "group"],
        {"image": told, "group": captions(options.batch, rng)},
        options.batch,
    )
    pixels = torch.cat(list(clip.pixel_batches(scans.subset(range(options.batch)))))
    pseudolabels = [
        torch.from_numpy(rng.integers(0, options.classes, options.batch))
        for _ in range(2)
    ]
    everyone, prototypes = (
        torch.arange(options.batch),
        clip.encode_text([f"a photo of a {name}." for name in names]).to(clip.device),
    )
    ways = {
        "all texts, whole": plain_encoder(clip, words),
        "distinct texts, cut": lambda rows: words.table(clip, rows),
    }
    rows, runs = [], {way: [] for way in ways}
    for _ in range(options.rounds + 1):  # in turn; the first round warms up
        for way, encode in ways.items():
            runs[way].append(
                step(
                    clip,
                    pixels,
                    pseudolabels,
                    prototypes,
                    lambda: words.embed(encode, pseudolabels, [everyone, everyone]),
                )
            )
    for way in ways:
        loss, images, whole = (
            statistics.median(column) for column in zip(*runs[way][1:])
        )
        rows.append(
            {
                "way": way,
                "loss": loss,
                "images, forward (s)": images,
                "step (s)": whole,
                "ratio": rows[0]["step (s)"] / whole if rows else 1.0,
            }
        )
    print(
        f"torch {torch.__version__}, {clip.device}, {torch.get_num_threads()} "
        f"threads; {options.model} with random weights, batch {options.batch}, "
        f"{options.classes} classes, "
        f"{4 * options.batch} texts, {len(words.table.tokens)} distinct, at most "
        f"{int(words.table.ends.max()) + 1} of {clip.tokenizer.context_length} tokens"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.6g}".format))
    print(f"difference of the losses: {abs(rows[0]['loss'] - rows[1]['loss']):.1g}")
