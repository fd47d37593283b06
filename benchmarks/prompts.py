"""A training step of a textual prompt, and a relabelling pass, against what people
write; the same step in float32 and in bfloat16. Ratios are taken in one run.

python benchmarks/prompts.py [--classes 47] [--batch 16] [--steps 5] [--pool 5000]
"""

import argparse
import os
import statistics
import time

import pandas as pd
import torch
import torch.nn.functional as F
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


def measure(call, rounds):
    """Median seconds of `rounds` calls, after one that warms up; and what the last call
    returned."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), result


def take_turns(calls, rounds):
    """Median wall and CPU seconds of each of some calls, round after round."""
    spent = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:  # the first round warms up
                spent[name].append((wall, cpu))
    return {
        name: tuple(map(statistics.median, zip(*both))) for name, both in spent.items()
    }


def compare_precisions(clip, names, inputs, classes, rounds):
    """Print a step in float32 beside one in bfloat16, and how their gradients agree."""
    prompts = {
        each: TextualPrompt(clip, names, precision=each) for each in ("float32", "bf16")
    }

    def one_step(prompt):
        return step(lambda: F.cross_entropy(prompt(inputs), classes), prompt.prefix)

    seconds = take_turns(
        {
            name: lambda prompt=prompt: one_step(prompt)
            for name, prompt in prompts.items()
        },
        rounds,
    )
    gradients = [prompt.prefix.grad.flatten() for prompt in prompts.values()]
    wall, cpu = (
        exact / half for exact, half in zip(seconds["float32"], seconds["bf16"])
    )
    print(
        f"a step in bfloat16 is {wall:.2f} times as fast as in float32 (wall),"
        f" {cpu:.2f} times (CPU): {seconds['float32'][0]:.3f} and"
        f" {seconds['bf16'][0]:.3f} s; cosine of the gradients"
        f" {F.cosine_similarity(*gradients, dim=0).item():.5f}"
    )


def step(loss, prefix):
    prefix.grad = None
    value = loss()
    value.backward()
    return value.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"classes": 47, "batch": 16, "steps": 5, "pool": 5000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    clip, scans = random_clip(precision="float32"), digits("train")
    names = [
        ("texture", "a rough texture", "a very fine texture")[i % 3] + f" {i}"
        for i in range(options.classes)
    ]
    images = ImageSet([scans[i][0].resize((320, 240)) for i in range(options.batch)])
    classes = torch.arange(options.batch, device=clip.device) % options.classes
    prompt = TextualPrompt(clip, names)
    inputs = prompt.prepare(images)
    plain, plain_value = measure(
        lambda: step(
            lambda: plain_loss(clip, names, prompt.prefix, images, classes),
            prompt.prefix,
        ),
        options.steps,
    )
    plain_gradient = prompt.prefix.grad.clone()
    ours, value = measure(
        lambda: step(lambda: F.cross_entropy(prompt(inputs), classes), prompt.prefix),
        options.steps,
    )
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'GPU' if torch.cuda.is_available() else 'CPU'}, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; "
        f"ViT-B/32 (random weights), {options.classes} classes, batch "
        f"{options.batch}, 16 prompt vectors"
    )
    apart = (prompt.prefix.grad - plain_gradient).norm() / plain_gradient.norm()
    print(
        f"loss {plain_value:.6f} and {value:.6f}: relative difference "
        f"{abs(value / plain_value - 1):.1e}; gradient: {apart.item():.1e}"
    )
    compare_precisions(clip, names, inputs, classes, 2 * options.steps)
    encoding = (
        measure(lambda: clip.encode_image(images), 2)[0] / options.batch * options.pool
    )
    pool = inputs[torch.arange(options.pool) % options.batch]
    relabelling = measure(lambda: prompt.predict(pool), 2)[0]
    rows = [
        {"what": "a training step", "plain (s)": plain, "ours (s)": ours},
        {
            "what": (
                f"relabelling {options.pool} images (encoding them extrapolated from "
                f"{options.batch})"
            ),
            "plain (s)": encoding + relabelling,
            "ours (s)": relabelling,
        },
    ]
    table = pd.DataFrame(rows)
    print(
        table.assign(ratio=table["plain (s)"] / table["ours (s)"]).to_string(
            index=False, float_format="{:.4g}".format
        )
    )
