"""Which method, on which folder: every method on pools such as real folders are.

python benchmarks/regimes.py [--data handwriting fonts C100-20 ...] [--regimes ...]
    [--methods ...] [--seeds 0 1 2] [--out regimes.jsonl] [--table]

A pool is drawn by seed (see `regime_data.py`), every method is fitted on it without
labels, and answers for the pool itself, for new images weighted to the pool's class
distribution, and for all new images, where each class counts the same. Every accuracy
is given beside that of zero-shot with the same names on the same images. One JSON line
is written for each (data, regime, method, seed); what is in the file is not done
again, so a run may be stopped at any time, and several may follow each other. Methods
that train for long are left out on made-up features. `--table` prints mean gains, and
whether the default method is what it promises, and fits nothing.

The default is a short run: the methods of seconds, on the handwriting, one seed.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from regime_data import REGIMES, SOURCES, Task, draw
from regime_tables import promises, read_results, table

from clipadapt import ZeroShot
from clipadapt.methods import coreg, grip, lpclip, mixture


class Entry(NamedTuple):
    """How a method is made.

    name: of the class.
    module: in `clipadapt.methods`; a method that is not there is left out.
    options: of the method.
    trains: whether it trains for long.
    pixels: whether it is given images in the place of features.
    """

    name: str
    module: str
    options: dict = {}
    trains: bool = False
    pixels: bool = False


ENTRIES = {
    "ZeroShot": Entry("ZeroShot", "zeroshot"),
    "AnchoredMixture": Entry("AnchoredMixture", "mixture"),
    "AnchoredMixture, SMALL": Entry("AnchoredMixture", "mixture", mixture.SMALL),
    "Prototypes": Entry("Prototypes", "prototypes"),
    "NearestNeighbours": Entry("NearestNeighbours", "prototypes"),
    "LabelPropagation": Entry("LabelPropagation", "transduction"),
    "ZLaP": Entry("ZLaP", "transduction"),
    "TransCLIP": Entry("TransCLIP", "transclip"),
    "StatA": Entry("StatA", "transclip"),
    "GaussianEM": Entry("GaussianEM", "discriminant"),
    "EMDirichlet": Entry("EMDirichlet", "dirichlet"),
    "OTTER": Entry("OTTER", "transport"),
    "InMaP": Entry("InMaP", "transport"),
    "LPCLIP": Entry("LPCLIP", "lpclip", lpclip.SMALL, trains=True, pixels=True),
    "FPL": Entry("FPL", "grip", grip.SMALL, trains=True),
    "GRIP": Entry("GRIP", "grip", grip.SMALL, trains=True),
    "CPL": Entry("CPL", "cpl", grip.SMALL, trains=True),
    "CoReg": Entry("CoReg", "coreg", coreg.SMALL, trains=True, pixels=True),
}
QUICK = [name for name, entry in ENTRIES.items() if not entry.trains]
POOL = ("data", "regime", "seed")  # what names a pool


def maker(entry: Entry) -> Callable | None:
    """The class of a method; None where this clipadapt does not have it."""
    try:
        module = import_module(f"clipadapt.methods.{entry.module}")
    except ModuleNotFoundError:
        return None
    return getattr(module, entry.name, None)


def accuracies(answers: np.ndarray, labels: np.ndarray, new, new_labels) -> dict:
    """Per cent: of the pool (foreign images left out), matched, and balanced new."""
    own = labels >= 0
    classes = np.arange(new_labels.max() + 1)
    right = np.array([(new[new_labels == c] == c).mean() for c in classes])
    counts = np.bincount(labels[own], minlength=len(classes))
    found = {
        "pool": (answers[own] == labels[own]).mean(),
        "new": right @ counts / counts.sum(),
        "balanced": right.mean(),
    }
    return {name: round(100 * float(value), 3) for name, value in found.items()}


def zero_shot(task: Task) -> dict:
    """Accuracies of zero-shot with the names of a task."""
    method = ZeroShot(task.clip, task.names).fit(task.features)
    answers = [method.predict(images) for images in (task.features, task.new)]
    return accuracies(answers[0], task.labels, answers[1], task.new.labels)


def measure(task: Task, entry: Entry, seed: int) -> dict:
    """Accuracies and seconds of one method on one task."""
    make = maker(entry)
    method = make(task.clip, task.names, seed=seed, **entry.options)
    pool, new = (
        (task.images, task.pixels) if entry.pixels else (task.features, task.new)
    )
    wall, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = method.fit_predict_proba(pool).argmax(1)
        fitted = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found = accuracies(answers, task.labels, method.predict(new), task.new.labels)
    seconds = {f"{clock}_s": round(value, 3) for clock, value in fitted.items()}
    said = {
        name: getattr(method, name)
        for name in ("coverage_", "stage_")
        if hasattr(method, name)
    }
    return {**found, **seconds, **said}


def done(path: Path, keys: Sequence[str]) -> set[tuple]:
    """What a file of results has already: of each line the values of `keys`."""
    if not path.exists():
        return set()
    lines = map(json.loads, path.read_text().splitlines())
    return {tuple(line[key] for key in keys) for line in lines}


def write(path: Path, line: dict) -> None:
    """One line more in a file of results."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def pools(
    options: argparse.Namespace, left: Callable[[dict], list[str]]
) -> Iterator[tuple[dict, Task, list[str]]]:
    """What names a pool, the pool, and the methods that are left to be run on it.

    options: as `parsed` gives them.
    left: the methods, by what names a pool; nothing is drawn where there are none.
    """
    for data in options.data:
        for seed in options.seeds:
            named = [dict(zip(POOL, (data, r, seed))) for r in options.regimes]
            wanted = [(pool, left(pool)) for pool in named]
            wanted = [(pool, methods) for pool, methods in wanted if methods]
            source = SOURCES[data](seed) if wanted else None
            for pool, methods in wanted:
                print(*pool.values(), sep=", ", file=sys.stderr)
                yield pool, draw(source, pool["regime"], seed), methods


def run(options: argparse.Namespace) -> None:
    """Write a line for each run that is wanted."""
    before = done(options.out, [*POOL, "method"])

    def left(pool: dict) -> list[str]:
        on_images = pool["data"] in ("handwriting", "fonts")
        return [
            name
            for name in options.methods
            if (*pool.values(), name) not in before
            and maker(ENTRIES[name])
            and (on_images or not ENTRIES[name].trains)
        ]

    for pool, task, methods in pools(options, left):
        reference = {f"zero_shot_{k}": v for k, v in zero_shot(task).items()}
        sizes = {"images": len(task.labels), "names": len(task.names)}
        for name in methods:
            print(f"    {name}", file=sys.stderr)
            try:
                found = measure(task, ENTRIES[name], pool["seed"])
            except (ValueError, RuntimeError) as error:
                print(f"    failed: {error}", file=sys.stderr)
                continue
            write(options.out, {**pool, "method": name, **sizes, **reference, **found})


def parsed(
    document: str, methods: Sequence[str], quick: Sequence[str], out: str
) -> argparse.Namespace:
    """The options of a benchmark on these pools.

    document: its docstring.
    methods, quick: which there are, and which it takes when none are named.
    out: the name of its file of results.
    """
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=SOURCES, default=["handwriting"])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument("--methods", nargs="+", choices=methods, default=quick)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--table", action="store_true", help="print, and fit nothing")
    return parser.parse_args()


if __name__ == "__main__":
    options = parsed(__doc__, ENTRIES, QUICK, "regimes.jsonl")
    if not options.table:
        run(options)
    results = read_results(options.out)
    for data in results["data"].unique():
        print(f"\n{data}: mean gain over zero-shot, pool")
        print(table(results[results["data"] == data], "pool").round(1).to_string())
    print(f"\n{promises(results).to_string()}")
