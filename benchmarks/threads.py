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
import time

import pandas as pd

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
    """Wall and CPU seconds of every fit in this process, printed as JSON."""
    if way == "all":
        threads.LARGE = 0
    clip, train = load_clip(device="cpu"), digits("train").subset(range(images))
    seconds = {}
    for name, make in methods(epochs).items():
        times = []
        for _ in range(1 + (FITS if way != "all" else 1)):
            wall, cpu = time.perf_counter(), time.process_time()
            make(clip, train.classnames).fit(train)
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        seconds[name] = min(times[1:])
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


def compare(options):
    """Rows of a table: for each method the least time of every way, and ratios."""
    ways = ["one", "now"] + ["all"] * options.before
    found = {}
    for _ in range(options.repeats):
        for way in ways:
            for name, seconds in in_process(way, options).items():
                found.setdefault((name, way), []).append(tuple(seconds))
    rows = []
    for name in methods(options.epochs):
        best = {way: min(found[name, way]) for way in ways}
        row = {"method": name, "one, s": best["one"][0], "one, CPU s": best["one"][1]}
        for way in ways[1:]:
            row[f"{way} / one, wall"] = best[way][0] / best["one"][0]
            row[f"{way} / one, CPU"] = best[way][1] / best["one"][1]
        rows.append(row)
    return pd.DataFrame(rows)


BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    pass
"""


def busy_process():
    """A process that keeps one core busy."""
    return subprocess.Popen([sys.executable, "-c", BUSY])


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
        others = [busy_process() for _ in range(count)]
        try:
            table = compare(options)
        finally:
            for other in others:
                other.kill()
        load = os.getloadavg()[0]
        print(
            f"{os.cpu_count()} cores, beside {count} busy processes, load average "
            f"{load:.1f}\n{table.to_string(index=False, float_format='%.2f')}\n",
            flush=True,
        )
