"""Choosing without labels: every label-free score of every quick method on many pools.

python benchmarks/selection.py [--data handwriting fonts C100-50] [--regimes ...]
    [--methods ...] [--seeds 0 1 2] [--out selection.jsonl] [--table]

The pools are those of `regimes.py`. On each of them every quick method is fitted
without labels, and answers for the pool itself; all scores of
`clipadapt.judge.selection` are computed from these answers, and the accuracy from the
labels that no method and no score has seen. One JSON line is written for each pool
(data, regime, seed), and what is in the file is not done again. `--table` fits nothing,
and prints for each score the rank correlation with accuracy within a pool, mean and
worst, and the regret of its choice, beside those of always taking the default, and of
always taking zero-shot.

The default is a short run: handwriting, one seed.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from regime_data import REGIMES, SOURCES, Task, draw
from regimes import ENTRIES, maker
from selection_tables import by_data, read_pools

from clipadapt.judge.compare import Run
from clipadapt.judge.selection import label_free, pool_scores

QUICK = (
    "ZeroShot",
    "Prototypes",
    "NearestNeighbours",
    "AnchoredMixture",
    "AnchoredMixture, SMALL",
    "TransCLIP",
    "StatA",
    "ZLaP",
    "GaussianEM",
    "OTTER",
    "InMaP",
)


def fitted(task: Task, methods: Sequence[str], seed: int) -> list[Run]:
    """A run for each method that can be fitted on a pool."""
    runs = []
    for name in methods:
        entry = ENTRIES[name]
        make = maker(entry)
        if make is None:
            continue
        method = make(task.clip, task.names, seed=seed, **entry.options)
        try:
            answered = method.fit_predict_proba(task.features)
        except (ValueError, RuntimeError) as error:
            print(f"    {name} failed: {error}", file=sys.stderr)
            continue
        runs.append(Run(name, method, answered, 0.0, seed))
    return runs


def measure(task: Task, methods: Sequence[str], seed: int) -> dict[str, dict]:
    """By method: all scores, and the accuracy on the pool, 0-1."""
    runs = fitted(task, methods, seed)
    new = pool_scores(runs, task.features, refit=True)
    scores = label_free(runs, task.features).merge(new)
    found, own = {}, task.labels >= 0  # foreign images are left out
    for run, row in zip(runs, scores.to_dict("records"), strict=True):
        name = row.pop("method")
        values = {score: round(float(value), 5) for score, value in row.items()}
        known = {score: value for score, value in values.items() if value == value}
        right = (run.answers() == task.labels)[own].mean()
        found[name] = {"accuracy": round(float(right), 5), **known}
    return found


def done(path: Path) -> set[tuple]:
    """The pools that a file of results has already."""
    if not path.exists():
        return set()
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["data"], line["regime"], line["seed"]) for line in lines}


def run(options: argparse.Namespace) -> None:
    """Write a line for each pool that is wanted and not done."""
    warnings.simplefilter("ignore")
    before = done(options.out)
    for data in options.data:
        for seed in options.seeds:
            left = [x for x in options.regimes if (data, x, seed) not in before]
            source = SOURCES[data](seed) if left else None
            for regime in left:
                print(data, seed, regime, sep=", ", file=sys.stderr)
                task = draw(source, regime, seed)
                line = {"data": data, "regime": regime, "seed": seed}
                line["methods"] = measure(task, options.methods, seed)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=SOURCES, default=["handwriting"])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument("--methods", nargs="+", choices=QUICK, default=QUICK)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("selection.jsonl"))
    parser.add_argument("--table", action="store_true", help="print, and fit nothing")
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed()
    if not options.table:
        run(options)
    table = read_pools(options.out)
    for column in ("spearman", "worst", "regret"):
        print(f"\n{column}\n{by_data(table, column).round(2).to_string()}")
