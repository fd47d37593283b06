"""Label propagation on a sparse graph against the dense solution: the same features,
one run; seconds, ratios, equal labels, and peak memory.

python benchmarks/propagation.py [--nodes 10000] [--large 50000] [--classes 50]
    [--dim 512] [--k 20] [--rounds 3]

Features are made up and projected as ReCLIP does, which all share and nobody is charged
for. Dense means what people write first: all affinities [M, M], a mask of the k
largest, and a direct solution of (I - alpha W) F = Y in float32. The second dense row
solves by conjugate gradients, one class after the other and 20 iterations, as ReCLIP's
code does. Degrees are row sums in both (the published code takes them from a product of
two [M, M] matrices, which would double the time). Every row has a process of its own;
memory is the peak of that process. Sparse rows are the median of the rounds, dense rows
run once.
"""

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from measuring import Row, Spent, median, spent

from clipadapt.methods.transduction import class_directions, propagate_labels


def made_up_features(nodes, classes, dim, seed=0):
    """Unit features [N, D] of images around C centres and of C texts near them, far
    from the images as a CLIP's texts are."""
    generator = torch.Generator().manual_seed(seed)
    centres, gap = (
        torch.randn(classes, dim, generator=generator),
        2 * torch.randn(dim, generator=generator),
    )
    images = centres[torch.randint(classes, (nodes - classes,), generator=generator)]
    images += 2 * torch.randn(images.shape, generator=generator)
    return F.normalize(images, dim=1), F.normalize(
        centres + gap + torch.randn(centres.shape, generator=generator), dim=1
    )


def dense_graph(nodes, k):
    """Normalised affinities [M, M] with k neighbours a row."""
    nodes = F.normalize(nodes, dim=1)
    affinity = (nodes @ nodes.T + 1) / 2
    affinity.fill_diagonal_(0)
    best, neighbours = affinity.topk(k, dim=1)
    kept = torch.zeros_like(affinity).scatter_(1, neighbours, best)
    kept = (kept + kept.T) / 2
    scale = kept.sum(1).rsqrt()
    return scale[:, None] * kept * scale


def dense_direct(images, classes, k, alpha=0.99):
    graph = dense_graph(torch.cat([classes, images]), k)
    seeds = torch.eye(len(graph), len(classes))
    return (
        torch.linalg.solve(torch.eye(len(graph)) - alpha * graph, seeds)[len(classes) :]
        .argmax(1)
        .numpy()
    )


def dense_class_by_class(images, classes, k, alpha=0.99):
    graph = dense_graph(torch.cat([classes, images]), k).numpy()
    matrix, seeds = (
        np.eye(len(graph), dtype=np.float32) - alpha * graph,
        np.eye(len(graph), len(classes), dtype=np.float32),
    )
    return np.stack(
        [
            scipy.sparse.linalg.cg(matrix, seed, rtol=1e-6, maxiter=20)[0]
            for seed in seeds.T
        ],
        1,
    )[len(classes) :].argmax(1)


def sparse(images, classes, k):
    return propagate_labels(images, classes, k)[0]


CONTENDERS = {
    "dense, direct": dense_direct,
    "dense, class by class": dense_class_by_class,
    "propagate_labels": sparse,
}


def alone(name, options, nodes, rounds):
    """What one contender took in a process of its own, the peak memory of that process
    in bytes, and the labels."""
    command = [
        sys.executable,
        __file__,
        "--only",
        name,
        "--nodes",
        nodes,
        "--rounds",
        rounds,
        *(f"--{key}={getattr(options, key)}" for key in ("classes", "dim", "k")),
    ]
    output = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    said = json.loads(output.splitlines()[-1])
    return Spent(*said["took"]), said["peak"], np.array(said["labels"])


def run_one(options):
    """What the process of one contender does: print times, peak memory and labels."""
    images, classes = made_up_features(options.nodes, options.classes, options.dim)
    directions, times = class_directions(classes), []
    images, classes = images @ directions, classes @ directions
    for _ in range(options.rounds):
        took, labels = spent(
            lambda: CONTENDERS[options.only](images, classes, options.k)
        )
        times.append(took)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    said = {"took": median(times), "peak": peak, "labels": labels.tolist()}
    print(json.dumps(said))


def rows(nodes=10_000, classes=50, dim=512, k=20):
    """The sparse graph against both dense ways; a process each."""
    options = argparse.Namespace(classes=classes, dim=dim, k=k)
    found = {
        name: alone(name, options, nodes, 1 if "dense" in name else 3)
        for name in CONTENDERS
    }
    took, peak, labels = found.pop("propagate_labels")
    task = f"label propagation, {nodes:,} images, {classes} classes"
    contenders = []
    for name, (against, memory, theirs) in found.items():
        same = 100 * (labels == theirs).mean()
        ours = f"`propagate_labels`, {same:.2f} % of labels equal"
        asked = 10 if name == "dense, direct" else None
        given = took, against, asked, "wall", peak, memory
        contenders.append(Row("methods", task, ours, name, *given))
    return contenders


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "nodes": 10_000,
        "large": 50_000,
        "classes": 50,
        "dim": 512,
        "k": 20,
        "rounds": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--only",
        choices=CONTENDERS,
        help="run one contender, print its seconds, its peak memory and its labels",
    )
    options = parser.parse_args()
    if options.only:
        run_one(options)
        sys.exit()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); C = "
        f"{options.classes}, D = {options.dim}, k = {options.k}; memory is that of "
        "the whole process"
    )
    found = {
        name: alone(
            name, options, options.nodes, 1 if "dense" in name else options.rounds
        )
        for name in CONTENDERS
    }
    direct, _, labels = found["dense, direct"]
    table = [
        {
            "": name,
            "nodes": options.nodes,
            "seconds": took.wall,
            "dense, direct / this": direct.wall / took.wall,
            "peak MB": peak / 1e6,
            "equal labels (%)": 100 * (ours == labels).mean(),
        }
        for name, (took, peak, ours) in found.items()
    ]
    if options.large:
        took, peak, _ = alone("propagate_labels", options, options.large, 1)
        table.append(
            {
                "": "propagate_labels",
                "nodes": options.large,
                "seconds": took.wall,
                "peak MB": peak / 1e6,
            }
        )
    print(
        pd.DataFrame(table).to_string(
            index=False, float_format="{:.4g}".format, na_rep=""
        )
    )
