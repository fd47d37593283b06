"""What `scale.py` still has to do, and tables of what it wrote: seconds, memory, and
exponents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

SERIES = ["method", "D", "C"]  # what names a row of the tables
MEASURED, EXPECTED = "measured", "expected over"
LINEAR = 1.05  # an exponent above it needs a reason


class Run(NamedTuple):
    """One row of the table: a method on N features of length D, C classes."""

    method: str
    D: int
    C: int
    N: int


def is_left(line: dict | None, limit_s: float, limit_gib: float) -> bool:
    """Whether a run is to be done; again only if the limit that ended it is higher.

    line: the last line of the run, None where there is none.
    limit_s, limit_gib: seconds of CPU time, and memory.
    """
    if line is None:
        return True
    higher = limit_s > line["limit_s"] or limit_gib > line["limit_gib"]
    return "over" in line["status"] and higher


def too_large(run: Run, known: dict[tuple, dict], limit: float) -> str | None:
    """Why a run need not be tried, from smaller N of the same method.

    known: the last line of each run.
    limit: seconds of CPU time.
    """
    others = sorted(other for other in known if other[:3] == run[:3])
    smaller = [known[other] for other in others if other[3] < run.N]
    for line in smaller:
        if line["status"] != MEASURED:
            return f"{EXPECTED}: {line['status']} at N = {line['N']}"
    seconds = expected_seconds(smaller, run.N)
    if seconds is not None and seconds > limit:
        return f"{EXPECTED} {limit:g} s: at least {seconds:.0f} s"
    return None


def last_lines(path: Path) -> dict[tuple, dict]:
    """The last line of each run in a file of results, by (method, D, C, N)."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {tuple(line[key] for key in [*SERIES, "N"]): line for line in lines}


def read_growth(path: str | Path) -> pd.DataFrame:
    """The last line of each run, small N first.

    path: of JSON lines.
    """
    return pd.DataFrame([*last_lines(Path(path)).values()]).sort_values([*SERIES, "N"])


def expected_seconds(smaller: Sequence[dict], count: int) -> float | None:
    """What a run takes if time grows linearly from the last two sizes on.

    smaller: lines of the same method with smaller N, rising.
    count: its N.

    None where there are fewer than two.
    """
    if len(smaller) < 2:
        return None
    before, last = smaller[-2:]
    slope = (last["cpu_s"] - before["cpu_s"]) / (last["N"] - before["N"])
    return last["cpu_s"] + max(slope, 0) * (count - last["N"])


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The exponent of growth, NaN for fewer than two sizes."""
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def exponents(growth: pd.DataFrame, column: str = "cpu_s") -> pd.DataFrame:
    """Of each method, D and C: the exponent over all N, and that of the last two.

    growth: as `read_growth` gives it.
    column: "cpu_s", of fit and predict, or "fit_cpu_s".
    """
    rows = {}
    for key, group in growth[growth["status"] == MEASURED].groupby(SERIES, sort=False):
        sizes, seconds = group["N"].tolist(), group[column].tolist()
        rows[key] = {
            "all N": slope(sizes, seconds),
            "last": slope(sizes[-2:], seconds[-2:]),
            "up to": sizes[-1],
        }
    index = pd.MultiIndex.from_tuples(rows, names=SERIES)
    return pd.DataFrame([*rows.values()], index)


def steep(growth: pd.DataFrame, least: float = 10.0) -> pd.DataFrame:
    """Where the last exponent is above `LINEAR`, in runs of more than `least` seconds.

    growth: as `read_growth` gives it.
    least: CPU seconds of the largest run; what is quicker is noise.
    """
    found = exponents(growth)
    measured = growth[growth["status"] == MEASURED].groupby(SERIES)
    found["fit, last"] = exponents(growth, "fit_cpu_s")["last"]
    found["CPU s"] = measured["cpu_s"].max()
    if "rounds" in growth:
        found["rounds"] = measured["rounds"].agg(_last_rounds)
    return found[(found["last"] > LINEAR) & (found["CPU s"] > least)]


def _last_rounds(rounds: pd.Series) -> str:
    """Rounds of the fits of the two largest sizes; nothing where one is not known."""
    last = rounds.tolist()[-2:]
    return "" if pd.isna(last).any() else " → ".join(f"{number:.0f}" for number in last)


def _cell(line: pd.Series, column: str) -> str:
    if line["status"] == MEASURED:
        return f"{line[column]:.3g}"
    return "over" if "over" in line["status"] else "failed"


def seconds_and_memory(growth: pd.DataFrame, column: str = "cpu_s") -> pd.DataFrame:
    """One column for each N, and both exponents; "over" stands for over the limit.

    growth: as `read_growth` gives it.
    column: "cpu_s", "wall_s", "fit_cpu_s", "peak_gib" or "anonymous_gib".
    """
    shown = growth.assign(shown=growth.apply(_cell, axis=1, column=column))
    wide = shown.pivot(index=SERIES, columns="N", values="shown").fillna("")
    wide.columns = [f"N = {count:,}" for count in wide.columns]
    if column.endswith("cpu_s"):
        found = exponents(growth, column)[["all N", "last"]]
        wide = wide.join(found.map("{:.2f}".format).replace("nan", ""))
    return wide


def show(path: str | Path) -> None:
    """Print the tables of a file, those of each D and C together.

    path: of JSON lines.
    """
    growth = read_growth(path)
    for (dim, classes), group in growth.groupby(["D", "C"]):
        for column, name in {"cpu_s": "CPU s", "peak_gib": "peak GiB"}.items():
            print(f"\nD = {dim}, C = {classes}: {name}")
            table = seconds_and_memory(group, column).droplevel(["D", "C"])
            print(table.to_string(na_rep=""))
    print(f"\nabove N^{LINEAR}, and more than ten seconds")
    print(steep(growth).round(2).to_string())
