"""How methods grow: time and memory over the number of images N and of classes C.

python benchmarks/scale.py [--sizes 1000 10000 100000 1000000]
    [--classes 10 100 1000] [--dims 64 512] [--methods ...] [--limit 120]
    [--memory 12] [--out growth.jsonl] [--table]

Every method that works on features is fitted on N made-up features of C classes, which
are drawn by seed around the prompts of a small random CLIP (as in `million.py`), and
answers for all of them. Methods that train do so for one epoch (a round). A run is one
(method, D, C, N) in a process of its own with one thread. CPU time does not grow when
other programs take their turns; the wall time does. Imports are not counted as time,
but the memory is that of the whole process: `peak GiB` with pages of files, which the
system may drop at any time, `anonymous GiB` without them.

One JSON line is written for each run; what is in the file is not done again, so it may
be stopped at any time. Small runs come first. A run that takes more than `--limit`
seconds of CPU time, or more than `--memory` GiB, is ended and recorded as over the
limit; so are larger N of the same method without a try, and those that would take more
than the limit if time only grew linearly from the last two sizes. With larger limits
these are tried again.

`--table` prints the tables and runs nothing. Two exponents of CPU time: `all N` is the
slope of log(time) over log(N), which what does not depend on N flattens; `last` is the
slope between the two largest sizes alone. 1 is linear. `rounds` of a fit that ends when
nothing moves any more may grow as well: the table of what is steep names them.

The default is a short run: 1,000 and 10,000 features of 64 numbers, ten classes.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before any library is loaded

import torch  # noqa: E402
from million import Propagation, Watch, small_clip, write_features  # noqa: E402
from regimes import ENTRIES, Entry, maker, write  # noqa: E402
from scale_tables import MEASURED, Run, is_left, last_lines, show, too_large  # noqa: E402

from clipadapt import FeatureSet  # noqa: E402

ONE_EPOCH = {"epochs": 1, "batch_size": 256}
TRAINED = {
    "LPCLIP": Entry("LPCLIP", "lpclip", {"templates": "single", "epochs": 1}),
    **{name: ENTRIES[name]._replace(options=ONE_EPOCH) for name in ("FPL", "GRIP")},
    "CPL": ENTRIES["CPL"]._replace(options=ONE_EPOCH),
    "CoReg, head": Entry(
        "CoReg", "coreg", {"student": "head", "epochs": 2, "warmup_epochs": 1}
    ),
}
METHODS = {
    **{name: entry for name, entry in ENTRIES.items() if not entry.trains},
    **TRAINED,
}
METHODS.pop("AnchoredMixture, SMALL")  # takes the time of the other
QUICK = [name for name in METHODS if name not in TRAINED]
SPARE = 20  # times the limit of wall time: then a process hangs


def made(run: Run, clip, names: list[str]):
    """The method of a run, not fitted."""
    entry = METHODS[run.method]
    make = maker(entry)
    if make is None:  # no class of its own
        return Propagation(clip, names)
    return make(clip, names, seed=0, **entry.options)


def rounds_of(method) -> dict[str, int]:
    """How many rounds a fit went, {"rounds": ...}; nothing for one without rounds."""
    history = getattr(method, "history_", None)
    if not isinstance(history, list) or not history:
        return {}
    return {"rounds": 1 + history[-1].get("step", len(history) - 1)}


class Guard(Watch):
    """A `Watch` that ends the process which needs too much memory.

    pipe: is told so before.
    most: GiB, pages of files not counted.
    """

    def __init__(self, pipe, most: float):
        super().__init__()
        self.pipe, self.most = pipe, most
        threading.Thread(target=self.guard, daemon=True).start()

    def guard(self) -> None:
        while self.anonymous < self.most * 2**30:
            time.sleep(0.05)
        self.pipe.send({"status": f"over {self.most:g} GiB"})
        os._exit(0)


def work(run: Run, path: Path, limit: float, memory: float, pipe) -> None:
    """Fit and predict, in a process that ends here; `pipe` gets what it took."""
    torch.set_num_threads(1)
    spent = int(time.process_time())
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + limit + 1), hard))
    names = [f"number {c}" for c in range(run.C)]
    clip, watch = small_clip(run.D), Guard(pipe, memory)
    watch.start()
    start, begun = time.process_time(), time.perf_counter()
    try:
        images = FeatureSet.from_npy(path, names)
        method = made(run, clip, names).fit(images)
        fitted = time.process_time()
        answers = method.predict(images)
    except (ValueError, RuntimeError, MemoryError) as error:
        pipe.send({"status": f"failed: {type(error).__name__}: {error}"[:300]})
        return
    spent = time.process_time() - start
    assert len(answers) == run.N and 0 <= answers.min() <= answers.max() < run.C
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    pipe.send(
        {
            "status": MEASURED,
            "fit_cpu_s": round(fitted - start, 3),
            "cpu_s": round(spent, 3),
            "wall_s": round(time.perf_counter() - begun, 3),
            "peak_gib": round(peak / 2**30, 3),
            "anonymous_gib": round(watch.anonymous / 2**30, 3),
            **rounds_of(method),
        }
    )


def outcome(context, run: Run, path: Path, options: argparse.Namespace) -> dict:
    """What became of one run in a process of its own."""
    receive, send = context.Pipe(duplex=False)
    given = run, path, options.limit, options.memory, send
    process = context.Process(target=work, args=given)
    process.start()
    send.close()
    process.join(SPARE * options.limit)
    if process.is_alive():
        process.kill()
        process.join()
    if receive.poll():
        try:
            return receive.recv()
        except EOFError:
            pass
    if process.exitcode == -24 or process.exitcode is None:  # SIGXCPU
        return {"status": f"over {options.limit:g} s"}
    return {"status": f"ended with code {process.exitcode}"}


def runs(options: argparse.Namespace) -> Iterator[list[Run]]:
    """All runs that are wanted, those on the same features together, small first."""
    for count in sorted(options.sizes):
        for classes in sorted(options.classes):
            for dim in sorted(options.dims):
                yield [Run(name, dim, classes, count) for name in options.methods]


def measure(options: argparse.Namespace) -> None:
    """Write a line for each run that is left."""
    context = multiprocessing.get_context("fork")  # imports once, for all
    limits = {"limit_s": options.limit, "limit_gib": options.memory}
    for group in runs(options):
        known = {Run(*key): line for key, line in last_lines(options.out).items()}
        left = [run for run in group if is_left(known.get(run), **limits)]
        reasons = {run: too_large(run, known, options.limit) for run in left}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.npy"
            if not all(reasons.values()):
                write_features(path, group[0].N, group[0].C, group[0].D)
            for run in left:
                found = {"status": reasons[run]}
                if not reasons[run]:
                    found = outcome(context, run, path, options)
                write(options.out, {**run._asdict(), **limits, **found})
                print(*run, found, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10])
    parser.add_argument("--dims", type=int, nargs="+", default=[64])
    choices = [*METHODS, "all"]
    parser.add_argument("--methods", nargs="+", default=QUICK, choices=choices)
    parser.add_argument("--limit", type=float, default=120, help="seconds of CPU time")
    parser.add_argument("--memory", type=float, default=12, help="GiB")
    parser.add_argument("--out", type=Path, default=Path("growth.jsonl"))
    parser.add_argument("--table", action="store_true", help="print, and run nothing")
    options = parser.parse_args()
    if "all" in options.methods:
        options.methods = [*METHODS]
    if not options.table:
        measure(options)
    show(options.out)


if __name__ == "__main__":
    main()
