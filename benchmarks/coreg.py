"""Co-Reg's losses and its prototype update against loops over the images, the same
values; where an epoch on the handwriting spends its time; and what views cost that are
not kept.

python benchmarks/coreg.py [--batch 256] [--classes 100] [--queue 512] [--rounds 7]
    [--epochs 6] [--images 300]
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, Spent, median, spent, turns

from clipadapt import CoReg, digits, load_clip
from clipadapt.learning import students
from clipadapt.methods import coreg


def mean_of(values):
    return sum(values) / len(values) if values else torch.zeros(())


def loop_partial_cross_entropy(probabilities, candidates):
    return mean_of(
        [
            -torch.log(row[mask].sum() + 1e-5)
            for row, mask in zip(probabilities, candidates)
            if not mask.all()
        ]
    )


def loop_confidence_penalty(probabilities):
    return mean_of([(row * row.clamp(min=1e-7).log()).sum() for row in probabilities])


def loop_best_candidate_loss(probabilities, candidates):
    return torch.stack(
        [
            -row[mask].max().clamp(min=1e-7).log()
            for row, mask in zip(probabilities, candidates)
        ]
    )


def loop_self_training_losses(logits, targets, clean):
    supervised = mean_of(
        [
            -(target * row.log_softmax(0)).sum()
            for row, target, is_clean in zip(logits, targets, clean)
            if is_clean
        ]
    )
    return supervised, mean_of(
        [
            (row.softmax(0) - target).square().mean()
            for row, target, is_clean in zip(logits, targets, clean)
            if not is_clean
        ]
    )


def loop_update_prototype_bank(bank, embeddings, classes, momentum):
    moved = bank.clone()
    for embedding, c in zip(embeddings, classes):
        moved[c] = momentum * moved[c] + (1 - momentum) * embedding
    for c in range(len(bank)):
        moved[c] = F.normalize(moved[c], dim=0) if (classes == c).any() else bank[c]
    return moved


def loop_prototype_alignment(embeddings, prototypes, targets, clean):
    divergences, errors = [], []
    for embedding, target, is_clean in zip(embeddings, targets, clean):
        logits = prototypes @ embedding / 0.3
        if is_clean:
            divergences.append(
                (torch.xlogy(target, target) - target * logits.log_softmax(0)).sum()
            )
        else:
            errors.append((logits.softmax(0) - target).square().mean())
    return mean_of(divergences) + mean_of(errors)


def loop_noisy_contrastive(queries, keys, queue):
    """Anchor by anchor, each against everything at once: a loop over pairs would take
    minutes."""
    losses, count = [], len(queries)
    embeddings = torch.cat([queries, keys.embeddings, queue.embeddings])
    classes, clean = (
        torch.cat([keys.classes, keys.classes, queue.classes]),
        torch.cat([keys.clean, keys.clean, queue.clean]),
    )
    for i, query in enumerate(queries):
        positive = (classes == keys.classes[i]) & clean & keys.clean[i]
        kept = (classes != keys.classes[i]) | positive
        kept[i] = positive[i] = False
        kept[count + i] = positive[count + i] = True
        logits = embeddings @ query / 0.07
        losses.append(torch.logsumexp(logits[kept], 0) - logits[positive].mean())
    return mean_of(losses)


def total(value):
    return (
        sum(part.sum() for part in value)
        if isinstance(value, (tuple, list))
        else value.sum()
    )


def with_gradient(call):
    """A call and, where its result has a gradient, the backward pass; the result."""
    value = call()
    if total(value).requires_grad:
        total(value).backward()
    return value


def compare_losses(batch, classes, queue, rounds):
    """For each loss what a loop and our code took, and the largest difference."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(batch, classes, generator=generator)).requires_grad_()
    targets = torch.randn(batch, classes, generator=generator).softmax(1)
    candidates, clean, labels = (
        torch.rand(batch, classes, generator=generator) < 0.1,
        torch.rand(batch, generator=generator) < 0.7,
        torch.randint(classes, (batch,), generator=generator),
    )
    candidates[torch.arange(batch), labels] = True
    bank, keys, old = (
        F.normalize(torch.randn(count, 128, generator=generator), dim=1)
        for count in (classes, batch, queue)
    )
    queries = F.normalize(
        torch.randn(batch, 128, generator=generator), dim=1
    ).requires_grad_()
    newer = coreg.Queue(keys, labels, clean)
    older = coreg.Queue(
        old,
        torch.randint(classes, (queue,), generator=generator),
        torch.rand(queue, generator=generator) < 0.7,
    )
    cases = [
        (
            "partial_cross_entropy",
            lambda call: lambda: call(logits.softmax(1), candidates),
        ),
        ("confidence_penalty", lambda call: lambda: call(logits.softmax(1))),
        (
            "best_candidate_loss",
            lambda call: lambda: call(logits.softmax(1), candidates),
        ),
        ("self_training_losses", lambda call: lambda: call(logits, targets, clean)),
        ("update_prototype_bank", lambda call: lambda: call(bank, keys, labels, 0.999)),
        (
            "prototype_alignment",
            lambda call: lambda: call(queries, bank, targets, clean),
        ),
        ("noisy_contrastive", lambda call: lambda: call(queries, newer, older)),
    ]
    found = {}
    for name, bind in cases:
        calls = {"ours": getattr(coreg, name), "loop": globals()[f"loop_{name}"]}
        times, values = turns(
            {
                way: lambda call=call: with_gradient(bind(call))
                for way, call in calls.items()
            },
            rounds,
        )
        pairs = zip(
            *(
                result if isinstance(result, tuple) else (result,)
                for result in values.values()
            )
        )
        apart = max((a - b).abs().max().item() for a, b in pairs)
        found[name] = median(times["loop"]), median(times["ours"]), apart
    loops, ours, apart = zip(*found.values())
    start = Spent(0.0, 0.0)
    found["all together"] = sum(loops, start), sum(ours, start), max(apart)
    return found


def in_milliseconds(found):
    """Rows for the eye."""
    return [
        {
            "what": name,
            "loop (ms)": 1000 * plain.wall,
            "ours (ms)": 1000 * ours.wall,
            "ratio": plain.wall / ours.wall,
            "largest difference": apart,
        }
        for name, (plain, ours, apart) in found.items()
    ]


def rows(batch=256, classes=100, queue=512, rounds=7):
    """All losses together against loops over the images."""
    plain, ours, _ = compare_losses(batch, classes, queue, rounds)["all together"]
    task = f"the losses of Co-Reg and their gradients, batch {batch}, {classes} classes"
    given = "ours", "loops over the images", ours, plain, 20, "wall"
    return [Row("methods", task, *given)]


def profile_epoch(epochs):
    """Seconds of the median epoch of self-training with everything switched on: in the
    students' forward passes, in backward, elsewhere."""
    spent, marks, backward, forward = (
        {"forward": 0.0, "backward": 0.0},
        [],
        torch.Tensor.backward,
        students.Student.forward,
    )

    def stopwatch(name, call):
        def wrapped(*args, **options):
            start = time.perf_counter()
            result = call(*args, **options)
            spent[name] += time.perf_counter() - start
            return result

        return wrapped

    def mark(method):
        marks.append((time.perf_counter(), spent["forward"], spent["backward"]))

    torch.Tensor.backward, students.Student.forward = (
        stopwatch("backward", backward),
        stopwatch("forward", forward),
    )
    try:
        train = digits("train")
        method = CoReg(
            load_clip(precision="float32"),
            train.classnames,
            **{**coreg.SMALL, "epochs": epochs, "warmup_epochs": 1, "delay": 0},
        )
        method.fit(train, callbacks=mark)
    finally:
        torch.Tensor.backward, students.Student.forward = backward, forward
    parts = [
        [later - earlier for earlier, later in zip(*pair)]
        for pair in zip(marks, marks[1:])
    ]
    whole, ahead, back = (statistics.median(column) for column in zip(*parts))
    seconds = {
        "students, forward": ahead,
        "backward (students and losses)": back,
        "everything else": whole - ahead - back,
    }
    return [
        {"what": name, "seconds": value, "share (%)": 100 * value / whole}
        for name, value in seconds.items()
    ]


def compare_views(count, sizes=(16, 64, 224)):
    """Views that are kept and views that are made for each batch: memory, and seconds
    for two weak and two strong ones of every image."""
    train, rows = digits("train").subset(range(count)), []
    for size in sizes:
        method = CoReg(load_clip(), train.classnames, image_size=size)
        method.image_size_ = size
        seconds, batches = {}, torch.arange(count).split(256)
        drawn = students.draw_views(8, count, np.random.default_rng(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind, method.view_memory in (("kept", 1e12), ("made anew", 0)):
                views = method._kept_views(train)[0]
                took, found = spent(
                    lambda: [views.take(drawn[:, batch], batch) for batch in batches]
                )
                seconds[kind] = took.wall
                assert torch.equal(
                    found[0], views.take(drawn[:, batches[0]], batches[0])
                )
        each = method._bytes(train, 8) / count
        rows.append(
            {
                "pixels": size,
                "kB an image": each / 1000,
                "GB for 30,000": 30_000 * each / 1e9,
                "kept (s)": seconds["kept"],
                "made anew (s)": seconds["made anew"],
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "batch": 256,
        "classes": 100,
        "queue": 512,
        "rounds": 7,
        "epochs": 6,
        "images": 300,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; batch "
        f"{options.batch}, {options.classes} classes, queue {options.queue}; losses "
        "forward and backward"
    )
    print(
        pd.DataFrame(
            in_milliseconds(
                compare_losses(
                    options.batch, options.classes, options.queue, options.rounds
                )
            )
        ).to_string(index=False, float_format="{:.3g}".format)
    )
    print("\nan epoch of self-training on the handwriting, preset SMALL:")
    print(
        pd.DataFrame(profile_epoch(options.epochs)).to_string(
            index=False, float_format="{:.3g}".format
        )
    )
    print(f"\nfour views of each of {options.images} scans, of eight of each kind:")
    print(
        pd.DataFrame(compare_views(options.images)).to_string(
            index=False, float_format="{:.3g}".format
        )
    )
