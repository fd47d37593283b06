"""top_k against Python loops over the images: the same scores, one run; seconds,
ratios, and peak memory beyond the scores.

python benchmarks/select_top_k.py [--images 1000000] [--classes 100] [--k 16]
    [--slice 10000] [--rounds 3]

The loops run on a slice of the images and are extrapolated: seconds an image in the
second half of the slice, when the boards are full, times the number of images. Memory
is NumPy's, as tracemalloc sees it, in a run of its own.
"""

import argparse
import heapq
import tracemalloc

import numpy as np
import pandas as pd
from measuring import Row, median, spent

from clipadapt.learning.pseudolabels import POLICIES, conventional, top_k


def softmax_scores(count, width, seed=0):
    """Softmax scores of random logits with a bias, float32 [count, width], made a block
    at a time."""
    rng = np.random.default_rng(seed)
    bias, scores = (
        rng.standard_normal(width, np.float32),
        np.empty((count, width), np.float32),
    )
    for start in range(0, count, 50_000):
        block = np.exp(
            2
            * (
                rng.standard_normal(scores[start : start + 50_000].shape, np.float32)
                + bias
            )
        )
        scores[start : start + 50_000] = block / block.sum(axis=1, keepdims=True)
    return scores


def offer(board, entry, k):
    if len(board) < k:
        heapq.heappush(board, entry)
    elif board[0] < entry:
        heapq.heapreplace(board, entry)


def plain_loop(scores, k, boards, first):
    """What people write first: every score is fetched from the array and offered to a
    board."""
    for image in range(len(scores)):
        for c, board in enumerate(boards):
            offer(board, (scores[image, c], first + image), k)


def tuned_loop(scores, k, boards, first):
    """The same with what Python can do for it: rows as lists, no call for the many
    scores that are too low."""
    for image, row in enumerate(scores):
        for board, score in zip(boards, row.tolist()):
            if len(board) < k or board[0][0] < score:
                offer(board, (score, first + image), k)


def extrapolated(loop, scores, k, size, total):
    """What `total` images would take, from the second half of the first `size`, and the
    boards of those."""
    boards, half = [[] for _ in range(scores.shape[1])], size // 2
    loop(scores[:half], k, boards, 0)
    took, _ = spent(lambda: loop(scores[half:size], k, boards, half))
    return took * (total / (size - half)), boards


def measured(call, rounds):
    """What `rounds` runs took, the median, and the peak memory of one more."""
    took = median([spent(call)[0] for _ in range(rounds)])
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return took, peak


def rows(images=1_000_000, classes=100, k=16, size=6000, rounds=3):
    """The selections against a loop over the images, which is extrapolated."""
    scores = softmax_scores(images, classes)
    task = f"the {k} best of {images:,} images in each of {classes} classes"
    calls = {
        f"`top_k`, {policy}": lambda policy=policy: top_k(scores, k, policy)
        for policy in POLICIES
    }
    took = {name: measured(call, rounds)[0] for name, call in calls.items()}
    plain = extrapolated(plain_loop, scores, k, size, images)[0]
    tuned = extrapolated(tuned_loop, scores, k, size, images)[0]
    first = next(iter(took))
    return [
        *(
            Row("learning", task, name, f"a loop (over {size:,})", own, plain, 20)
            for name, own in took.items()
        ),
        Row(
            "learning", task, first, f"a tuned loop (over {size:,})", took[first], tuned
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "images": 1_000_000,
        "classes": 100,
        "k": 16,
        "slice": 10_000,
        "rounds": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    N, C, k, size = (
        options.images,
        options.classes,
        options.k,
        min(options.slice, options.images),
    )
    scores = softmax_scores(N, C)
    print(
        f"numpy {np.__version__}; N = {N:,}, C = {C}, K = {k}; the scores take "
        f"{scores.nbytes / 1e6:.0f} MB in float32; loops measured on {size:,} images "
        "and extrapolated"
    )

    loops = {}
    for name, loop in {
        "plain loop over images": plain_loop,
        "tuned loop over images": tuned_loop,
    }.items():
        loops[name], boards = extrapolated(loop, scores, k, size, N)
        chosen = top_k(scores[:size], k)
        same = all(
            {image for _, image in board}
            == {*chosen.images[chosen.classes == c].tolist()}
            for c, board in enumerate(boards)
        )
        print(
            f"{name}: {loops[name].wall:.1f} s (extrapolated); on the slice it chooses "
            f"{'the same images as' if same else 'OTHER images than'} top_k"
        )

    large, half, columns = (
        max(1, N // C),
        scores.astype(np.float16),
        np.asfortranarray(scores),
    )
    contenders = {
        f"{policy}, K = {k}": lambda policy=policy: top_k(scores, k, policy)
        for policy in POLICIES
    }
    contenders |= {
        f"{policy}, K = N/C = {large}": lambda policy=policy: top_k(
            scores, large, policy
        )
        for policy in POLICIES
    }
    contenders |= {
        f"per-class, K = {k}, float16": lambda: top_k(half, k),
        f"per-class, K = {k}, column order": lambda: top_k(columns, k),
        "conventional": lambda: conventional(scores),
    }
    table = []
    for name, call in contenders.items():
        took, peak = measured(call, options.rounds)
        table.append(
            {
                "selection": name,
                "seconds": took.wall,
                "plain loop / this": loops["plain loop over images"].wall / took.wall,
                "tuned loop / this": loops["tuned loop over images"].wall / took.wall,
                "peak MB": peak / 1e6,
                "of the scores": peak / scores.nbytes,
            }
        )
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.3g}".format))
