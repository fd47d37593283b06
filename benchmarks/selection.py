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
import sys
import warnings
from collections.abc import Sequence

from regime_data import Task
from regimes import ENTRIES, POOL, done, maker, parsed, pools, write
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


def run(options: argparse.Namespace) -> None:
    """Write a line for each pool that is wanted and not done."""
    warnings.simplefilter("ignore")
    before = done(options.out, POOL)

    def left(pool: dict) -> list[str]:
        return [] if tuple(pool.values()) in before else options.methods

    for pool, task, methods in pools(options, left):
        found = measure(task, methods, pool["seed"])
        write(options.out, {**pool, "methods": found})


if __name__ == "__main__":
    options = parsed(__doc__, QUICK, QUICK, "selection.jsonl")
    if not options.table:
        run(options)
    table = read_pools(options.out)
    for column in ("spearman", "worst", "regret"):
        print(f"\n{column}\n{by_data(table, column).round(2).to_string()}")
