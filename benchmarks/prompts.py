"""A training step of a textual prompt, and a relabelling pass, against what people
write; the same step in float32 and in bfloat16. Ratios are taken in one run.

python benchmarks/prompts.py [--classes 47] [--batch 16] [--steps 5] [--pool 5000]
"""

import argparse
import os

import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, has_bfloat16_units, median, medians, turns
from random_clips import random_clip

from clipadapt import ImageSet, digits
from clipadapt.learning.prompts import TextualPrompt


def plain_loss(clip, names, prefix, images, classes):
    """Encode the images of the batch, and every prompt with all positions of the
    context."""
    model = clip.model
    tokens = clip.tokenizer(
        [" ".join(["x"] * len(prefix)) + " " + name for name in names]
    ).to(clip.device)
    embedded = model.token_embedding(tokens)
    embedded = torch.cat(
        [
            embedded[:, :1],
            prefix.expand(len(names), -1, -1),
            embedded[:, 1 + len(prefix) :],
        ],
        1,
    )
    hidden = model.ln_final(
        model.transformer(
            embedded + model.positional_embedding, attn_mask=model.attn_mask
        )
    )
    texts = F.normalize(
        hidden[torch.arange(len(names)), tokens.argmax(1)] @ model.text_projection,
        dim=-1,
    )
    return F.cross_entropy(
        clip.logit_scale * clip.encode_image(images).to(clip.device) @ texts.T, classes
    )


def compare_precisions(clip, names, inputs, classes, rounds):
    """What a step takes in float32 and in bfloat16, and the cosine of the gradients."""
    prompts = {
        each: TextualPrompt(clip, names, precision=each) for each in ("float32", "bf16")
    }

    def one_step(prompt):
        return step(lambda: F.cross_entropy(prompt(inputs), classes), prompt.prefix)

    times = medians(
        {
            name: lambda prompt=prompt: one_step(prompt)
            for name, prompt in prompts.items()
        },
        rounds,
    )
    gradients = [prompt.prefix.grad.flatten() for prompt in prompts.values()]
    cosine = F.cosine_similarity(*gradients, dim=0).item()
    return times["float32"], times["bf16"], cosine


def step(loss, prefix):
    prefix.grad = None
    value = loss()
    value.backward()
    return value.item()


class Comparison:
    """A large CLIP with a textual prompt, and a batch for it."""

    def __init__(self, classes, batch):
        self.clip, scans = random_clip(precision="float32"), digits("train")
        kinds = "texture", "a rough texture", "a very fine texture"
        self.names = [f"{kinds[i % 3]} {i}" for i in range(classes)]
        self.images = ImageSet([scans[i][0].resize((320, 240)) for i in range(batch)])
        self.classes = torch.arange(batch, device=self.clip.device) % classes
        self.prompt = TextualPrompt(self.clip, self.names)
        self.inputs = self.prompt.prepare(self.images)
        self.gradients = {}

    def plain(self):
        """A step as people write it; its loss."""
        prefix, images = self.prompt.prefix, self.images
        loss = step(
            lambda: plain_loss(self.clip, self.names, prefix, images, self.classes),
            prefix,
        )
        self.gradients["plain"] = prefix.grad.clone()
        return loss

    def ours(self):
        """Our step; its loss."""
        loss = step(
            lambda: F.cross_entropy(self.prompt(self.inputs), self.classes),
            self.prompt.prefix,
        )
        self.gradients["ours"] = self.prompt.prefix.grad.clone()
        return loss

    def steps(self, rounds):
        """What a plain step and ours take, and their losses."""
        times, losses = turns({"plain": self.plain, "ours": self.ours}, rounds)
        return {name: median(took) for name, took in times.items()}, losses

    def passes(self, pool):
        """What it takes to encode a pool of images, extrapolated, and to relabel it."""
        rows = self.inputs[torch.arange(pool) % len(self.images)]
        calls = {
            "encoding": lambda: self.clip.encode_image(self.images),
            "relabelling": lambda: self.prompt.predict(rows),
        }
        times = medians(calls, 2)
        return times["encoding"] * (pool / len(self.images)), times["relabelling"]

    def precisions(self, rounds):
        """See `compare_precisions`."""
        given = self.clip, self.names, self.inputs, self.classes
        return compare_precisions(*given, rounds)


def rows(classes=47, batch=16, steps=3, pool=5000):
    """A step against a plain one, bfloat16 against float32, a pass over the pool."""
    comparison = Comparison(classes, batch)
    times, _ = comparison.steps(steps)
    exact, half, _ = comparison.precisions(2 * steps)
    encoding, relabelling = comparison.passes(pool)
    task = f"a step of a textual prompt, ViT-B/32, {classes} classes, batch {batch}"
    labels = f"relabel {pool:,} images in {classes} classes, ViT-B/32"
    again, kept = f"encoding them again (from {batch})", "features that are kept"
    asked = 2 if has_bfloat16_units() else None
    return [
        Row(
            "learning", task, "ours", "the plain step", times["ours"], times["plain"], 4
        ),
        Row("learning", task, "bfloat16", "float32", half, exact, asked),
        Row("learning", labels, kept, again, relabelling, encoding + relabelling, 50),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"classes": 47, "batch": 16, "steps": 5, "pool": 5000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    comparison = Comparison(options.classes, options.batch)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'GPU' if torch.cuda.is_available() else 'CPU'}, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; "
        f"ViT-B/32 (random weights), {options.classes} classes, batch "
        f"{options.batch}, 16 prompt vectors"
    )
    times, losses = comparison.steps(options.steps)
    plain, ours = comparison.gradients.values()
    print(
        f"loss {losses['plain']:.6f} and {losses['ours']:.6f}: relative difference "
        f"{abs(losses['ours'] / losses['plain'] - 1):.1e}; gradient: "
        f"{((ours - plain).norm() / plain.norm()).item():.1e}"
    )
    exact, half, cosine = comparison.precisions(2 * options.steps)
    print(
        f"a step in bfloat16 is {exact.wall / half.wall:.2f} times as fast as in"
        f" float32 (wall), {exact.cpu / half.cpu:.2f} times (CPU): {exact.wall:.3f} and"
        f" {half.wall:.3f} s; cosine of the gradients {cosine:.5f}"
    )
    encoding, relabelling = comparison.passes(options.pool)
    passes = f"relabelling {options.pool} images (encoding them extrapolated from "
    table = pd.DataFrame(
        [
            ("a training step", times["plain"].wall, times["ours"].wall),
            (
                f"{passes}{options.batch})",
                (encoding + relabelling).wall,
                relabelling.wall,
            ),
        ],
        columns=["what", "plain (s)", "ours (s)"],
    )
    print(
        table.assign(ratio=table["plain (s)"] / table["ours (s)"]).to_string(
            index=False, float_format="{:.4g}".format
        )
    )


if __name__ == "__main__":
    main()
