"""A training step of LatteCLIP with ViT-B/32: every text of the batch once and cut,
against all of them whole; the same loss, ratios taken in one run.

python benchmarks/finetuning.py [--batch 64] [--classes 10] [--rounds 2]
    [--model ViT-B-32]
"""

import argparse

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, median, now
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
    """Forward and backward passes of a step; return the loss, and what the images took
    and the whole."""
    clip.model.zero_grad(set_to_none=True)
    start = now()
    features = F.normalize(clip.model.encode_image(pixels), dim=-1)
    synchronise()
    seen = now()
    texts, counts = embed()
    loss = 0
    for these, classes in zip(texts, pseudolabels):
        mixed = mix_texts(these, mixing_weights(these, prototypes, counts))
        loss = loss + contrastive_loss(
            features, 0.99 * prototypes[classes] + 0.01 * mixed, clip.logit_scale
        )
    loss.backward()
    synchronise()
    return loss.item(), seen - start, now() - start


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


class Comparison:
    """A copy of a large CLIP that trains, and a batch of images with their texts."""

    def __init__(self, model, batch, classes):
        random = random_clip(model, precision="float32")
        self.clip, rng = trainable_copy(random), np.random.default_rng(0)
        names = [f"annual crop land number {c}" for c in range(classes)]
        told = {kind: captions(batch, rng) for kind in ("image", "group")}
        given = names, ["a photo of a {}."], ["class", "image", "group"]
        self.words = Descriptions(self.clip, *given, told, batch)
        images = digits("train").subset(range(batch))
        self.pixels = torch.cat(list(self.clip.pixel_batches(images)))
        self.pseudolabels = [
            torch.from_numpy(rng.integers(0, classes, batch)) for _ in range(2)
        ]
        self.everyone = torch.arange(batch)
        prompts = [f"a photo of a {name}." for name in names]
        self.prototypes = self.clip.encode_text(prompts).to(self.clip.device)

    def step(self, encode):
        """`step`, with texts encoded so."""
        people = [self.everyone, self.everyone]
        given = self.clip, self.pixels, self.pseudolabels, self.prototypes
        return step(*given, lambda: self.words.embed(encode, self.pseudolabels, people))

    def measure(self, rounds):
        """For each way the loss, what the images took and the whole step."""
        ways = {
            "all texts, whole": plain_encoder(self.clip, self.words),
            "distinct texts, cut": lambda rows: self.words.table(self.clip, rows),
        }
        runs = {way: [] for way in ways}
        for _ in range(rounds + 1):  # in turn; the first round warms up
            for way, encode in ways.items():
                runs[way].append(self.step(encode))
        return {
            way: (found[0][0], *(median([each[k] for each in found]) for k in (1, 2)))
            for way, (_, *found) in runs.items()
        }


def rows(batch=64, classes=10, rounds=2):
    """Distinct texts, cut, against all of them whole."""
    found = Comparison("ViT-B-32", batch, classes).measure(rounds)
    (_, _, plain), (_, _, ours) = found.values()
    task = f"a step of LatteCLIP, ViT-B/32, batch {batch}, {classes} classes"
    return [Row("methods", task, *reversed(found), ours, plain, 1.5, "wall")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"batch": 64, "classes": 10, "rounds": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="ViT-B-32")
    options = parser.parse_args()
    comparison = Comparison(options.model, options.batch, options.classes)
    found = comparison.measure(options.rounds)
    plain = found["all texts, whole"][2].wall
    table = [
        {
            "way": way,
            "loss": loss,
            "images, forward (s)": images.wall,
            "step (s)": whole.wall,
            "ratio": plain / whole.wall,
        }
        for way, (loss, images, whole) in found.items()
    ]
    texts, clip = comparison.words.table, comparison.clip
    print(
        f"torch {torch.__version__}, {clip.device}, {torch.get_num_threads()} "
        f"threads; {options.model} with random weights, batch {options.batch}, "
        f"{options.classes} classes, "
        f"{4 * options.batch} texts, {len(texts.tokens)} distinct, at most "
        f"{int(texts.ends.max()) + 1} of {clip.tokenizer.context_length} tokens"
    )
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.6g}".format))
    print(f"difference of the losses: {abs(table[0]['loss'] - table[1]['loss']):.1g}")


if __name__ == "__main__":
    main()
