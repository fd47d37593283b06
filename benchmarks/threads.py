"""Fits of small presets on the threads that a machine gives, against OMP_NUM_THREADS=1
and against all threads for everything, alone and beside busy processes.

python benchmarks/threads.py [--images 200] [--epochs 3] [--repeats 2] [--busy 0 1]
    [--before]

Every row is measured in one run: for each of `repeats`, the ways take turns, each in a
process of its own in which every method is fitted once to warm up. The least wall time
counts, and the CPU time of the same fit. Other work on the machine disturbs: see the
load that is printed.

"now": as `pip install` leaves it. "one": OMP_NUM_THREADS=1. "all", with --before: no
fit is small, as it was before fits chose their threads; beside a busy process it takes
minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
from measuring import Row, Spent, spent

from clipadapt import FPL, GRIP, LPCLIP, CoReg, Prototypes, digits, load_clip
from clipadapt.learning import threads
from clipadapt.methods import coreg, grip, lpclip

VARIABLE = "OMP_NUM_THREADS"
FITS = 4  # of each method in a process, after one to warm up


def methods(epochs):
    """Constructors by name: small presets of few epochs."""
    shorter = {"epochs": epochs, "warmup_epochs": 1, "ramp": 1, "delay": 0}
    return {
        "FPL": lambda *of: FPL(*of, **{**grip.SMALL, "epochs": epochs}),
        "GRIP": lambda *of: GRIP(*of, **{**grip.SMALL, "epochs": epochs, "rounds": 3}),
        "Prototypes": lambda *of: Prototypes(*of),
        "LPCLIP": lambda *of: LPCLIP(*of, **{**lpclip.SMALL, "epochs": epochs}),
        "CoReg": lambda *of: CoReg(*of, **{**coreg.SMALL, **shorter}),
    }


def measure(way, images, epochs):
    """The fit of every method that took the least wall time in this process, printed as
    JSON."""
    if way == "all":
        threads.LARGE = 0
    clip, train = load_clip(device="cpu"), digits("train").subset(range(images))
    seconds = {}
    for name, make in methods(epochs).items():
        times = []
        for _ in range(1 + (FITS if way != "all" else 1)):
            method = make(clip, train.classnames)
            times.append(spent(lambda: method.fit(train))[0])
        seconds[name] = min(times[1:], key=lambda took: took.wall)
    print(json.dumps(seconds))


def in_process(way, options):
    """What `measure` prints in a process of its own."""
    env = {**os.environ, "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    env.pop(VARIABLE, None)
    if way == "one":
        env[VARIABLE] = "1"
    given = [f"--images={options.images}", f"--epochs={options.epochs}"]
    command = [sys.executable, __file__, f"--measure={way}", *given]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def best_of(options, ways):
    """For each method and way the round that took the least wall time."""
    found = {}
    for _ in range(options.repeats):
        for way in ways:
            for name, seconds in in_process(way, options).items():
                found.setdefault((name, way), []).append(Spent(*seconds))
    return {key: min(times, key=lambda took: took.wall) for key, times in found.items()}


def compare(options):
    """Rows for the eye: for each method the least time of every way, and ratios."""
    ways = ["one", "now"] + ["all"] * options.before
    best, table = best_of(options, ways), []
    for name in methods(options.epochs):
        one = best[name, "one"]
        row = {"method": name, "one, s": one.wall, "one, CPU s": one.cpu}
        for way in ways[1:]:
            row[f"{way} / one, wall"] = best[name, way].wall / one.wall
            row[f"{way} / one, CPU"] = best[name, way].cpu / one.cpu
        table.append(row)
    return pd.DataFrame(table)


def rows(images=200, epochs=3, repeats=1):
    """Fits with the threads that a machine gives, against one thread, beside a busy
    process; at most 1.3 times as long was asked for."""
    options = argparse.Namespace(images=images, epochs=epochs, repeats=repeats)
    with busy_processes(1):
        best = best_of(options, ["one", "now"])
    task = "a fit of {} with a small preset, beside a busy process"
    contenders = "as installed", "`OMP_NUM_THREADS=1`"
    return [
        Row(
            "learning",
            task.format(name),
            *contenders,
            *(best[name, "now"], best[name, "one"]),
            *(1 / 1.3, "wall"),
        )
        for name in methods(epochs)
    ]


BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    pass
"""


def busy_process():
    """A process that keeps one core busy."""
    return subprocess.Popen([sys.executable, "-c", BUSY])


@contextmanager
def busy_processes(count):
    """That many, until the block ends."""
    others = [busy_process() for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.images, options.epochs)
        sys.exit()
    for count in options.busy:
        with busy_processes(count):
            table = compare(options)
        load = os.getloadavg()[0]
        print(
            f"{os.cpu_count()} cores, beside {count} busy processes, load average "
            f"{load:.1f}\n{table.to_string(index=False, float_format='%.2f')}\n",
            flush=True,
        )
