"""Who teaches whom: every method that learns from guesses, taught by zero-shot answers
(its default), by the prototypes and by the anchored mixture (with its defaults, and
with its preset for the handwriting), on the handwriting.

python benchmarks/teachers.py [--seeds 3] [--students CoReg,LPCLIP]
    [--teachers ZeroShot,AnchoredMixture] [--rows runs/teachers.jsonl]

Students have their preset `SMALL`. Each fit is a line of JSON in the file of rows, and
one whose line is there is not made again. At the end a table of means over the seeds:
accuracy on the pool and on the test half (%), gain on the test half over the default
with the same seed (points); and of the pool, which share of its teacher's errors a
student repeats ("inherited"), and what share of its right answers it loses ("lost").
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from clipadapt import (
    CPL,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    AnchoredMixture,
    CoReg,
    LatteCLIP,
    Prototypes,
    ZeroShot,
    digits,
    load_clip,
)
from clipadapt.methods import coreg, flyp, grip, latteclip, lpclip, mixture

DEFAULT = "ZeroShot"
TEACHERS = {
    DEFAULT: (ZeroShot, {}),
    "Prototypes": (Prototypes, {}),
    "AnchoredMixture": (AnchoredMixture, {}),
    "AnchoredMixture/SMALL": (AnchoredMixture, mixture.SMALL),
}
STUDENTS = {
    "FPL": (FPL, grip.SMALL),
    "IFPL": (IFPL, grip.SMALL),
    "GRIP": (GRIP, grip.SMALL),
    "CPL": (CPL, grip.SMALL),
    "CoReg": (CoReg, coreg.SMALL),
    "LPCLIP": (LPCLIP, lpclip.SMALL),
    "LatteCLIP": (LatteCLIP, latteclip.SMALL),
    "FLYP": (FLYP, flyp.SMALL),
}
KEY = ["student", "teacher", "seed"]


def percent(values: np.ndarray) -> float:
    """The share that is true of a boolean array, in percent; NaN for an empty one."""
    return round(100 * float(values.mean()), 3) if len(values) else float("nan")


class Handwriting:
    """The pool, the test half, and who teaches and learns there."""

    def __init__(self):
        self.clip = load_clip(device="cpu")
        self.pool, self.test = digits("train"), digits("test")
        self.said = {}

    def teacher(self, name: str):
        """A teacher that is not fitted yet."""
        kind, params = TEACHERS[name]
        return kind(self.clip, self.pool.classnames, **params)

    def answers(self, name: str) -> tuple[np.ndarray, float]:
        """A teacher's classes of the pool, int64 [N], and its accuracy on new ones."""
        if name not in self.said:
            teacher = self.teacher(name)
            classes = teacher.fit_predict_proba(self.pool).argmax(1)
            self.said[name] = classes, round(100 * teacher.score(self.test), 3)
        return self.said[name]

    def fit(self, student: str, teacher: str, seed: int) -> dict:
        """One fit, as a row; the default has no annotator, which is zero-shot CLIP."""
        kind, preset = STUDENTS[student]
        annotator = None if teacher == DEFAULT else self.teacher(teacher)
        names, start = self.pool.classnames, time.perf_counter()
        method = kind(self.clip, names, **preset, annotator=annotator, seed=seed)
        learned = method.fit(self.pool).predict(self.pool)
        seconds = time.perf_counter() - start
        told, teacher_test = self.answers(teacher)
        right = told == self.pool.labels
        return {
            **dict(zip(KEY, (student, teacher, seed))),
            "pool": percent(learned == self.pool.labels),
            "test": round(100 * method.score(self.test), 3),
            "teacher, pool": percent(right),
            "teacher, test": teacher_test,
            "inherited": percent(learned[~right] == told[~right]),
            "lost": percent(learned[right] != told[right]),
            "seconds": round(seconds, 1),
        }


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; a line that was cut off, as by a kill, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out of {path}: {line:.60}", file=sys.stderr)
    return rows


def make_rows(path: Path, wanted: list[tuple[str, str, int]]) -> list[dict]:
    """The rows of all fits that are wanted; those not in the file are made."""
    there = {tuple(row[name] for name in KEY): row for row in read_rows(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handwriting = Handwriting()
    for key in wanted:
        if key in there:
            continue
        there[key] = handwriting.fit(*key)
        line = json.dumps(there[key])
        print(line, file=sys.stderr, flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return [there[key] for key in wanted]


def report(rows: list[dict]) -> str:
    """The table: means over the seeds, and the deviation on the test half."""
    table = pd.DataFrame(rows)
    default = table[table.teacher == DEFAULT].set_index(["student", "seed"]).test
    before = pd.MultiIndex.from_frame(table[["student", "seed"]])
    table["gain"] = table.test.to_numpy() - default.reindex(before).to_numpy()
    groups = table.groupby(KEY[:2], sort=False)
    means = groups.mean().drop(columns="seed")
    means.insert(2, "std", groups.test.std())
    means.insert(3, "gain", means.pop("gain"))
    return means.round(1).to_string()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--teachers", default=",".join(TEACHERS))
    parser.add_argument("--rows", type=Path, default=Path("runs/teachers.jsonl"))
    options = parser.parse_args()
    found = make_rows(
        options.rows,
        [
            (student, teacher, seed)
            for seed in range(options.seeds)
            for student in options.students.split(",")
            for teacher in options.teachers.split(",")
        ],
    )
    print(f"handwriting, SMALL presets, {options.seeds} seeds; % and points")
    print(report(found))
