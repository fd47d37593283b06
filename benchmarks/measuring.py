"""What all benchmarks share: how time is taken, and what a row of the table is.

CPU time is that of this process, of all its threads, and of the processes that it
waited for. Wall time depends on what else the machine does, CPU time much less.
"""

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOMS = {
    "images": "Pictures",
    "clip": "CLIP, and what is kept of it",
    "learning": "What every method shares",
    "methods": "Methods",
    "judge": "Judging",
}


class Spent(NamedTuple):
    """Seconds."""

    cpu: float
    wall: float

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(*(a - b for a, b in zip(self, other)))

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(self, other)))

    def __mul__(self, times: float) -> "Spent":
        return Spent(self.cpu * times, self.wall * times)


def now() -> Spent:
    """CPU seconds so far, and the clock; the difference of two says what was spent."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return Spent(cpu, time.perf_counter())


def family() -> Spent:
    """As `now`, with the CPU time of all processes that live below this one. It takes
    milliseconds."""
    import psutil

    cpu = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            cpu += sum(process.cpu_times()[:4])
    return now() + Spent(cpu, 0.0)


def spent(call: Callable[[], Any]) -> tuple[Spent, Any]:
    """What a call takes, and what it returns."""
    start = now()
    result = call()
    return now() - start, result


def median(times: list[Spent]) -> Spent:
    """The median of CPU time and that of wall time."""
    return Spent(*map(statistics.median, zip(*times)))


def least(times: list[Spent]) -> Spent:
    """The least of each: whatever else a machine does only adds to it."""
    return Spent(*map(min, zip(*times)))


def turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm: bool = True
) -> tuple[dict[str, list[Spent]], dict[str, Any]]:
    """What each of some calls took, round after round, and what it returned last.

    Every second round goes through them backwards: none is always the one that comes
    after the same other one.

    rounds: that count.
    warm: a first round does not count.
    """
    times: dict[str, list[Spent]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    names = list(calls)
    for number in range(rounds + warm):
        for name in names if number % 2 == 0 else reversed(names):
            took, results[name] = spent(calls[name])
            if number >= warm:
                times[name].append(took)
    return times, results


def medians(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm: bool = True
) -> dict[str, Spent]:
    """The medians of `turns`."""
    times, _ = turns(calls, rounds, warm)
    return {name: median(took) for name, took in times.items()}


@dataclass
class Row:
    """One comparison: ours against something else that does the same.

    room: where the code lives, one of `ROOMS`.
    task: what both do, with its size.
    ours, other: the two contenders, in words.
    took, against: what they took, ours first.
    at_least: how many times as fast ours should be, None where nothing was asked for.
    by: whether that is of "cpu" or of "wall" time.
    memory, memory_against: the most that each took, in bytes, where that was measured.
    """

    room: str
    task: str
    ours: str
    other: str
    took: Spent
    against: Spent
    at_least: float | None = None
    by: str = "cpu"
    memory: float | None = None
    memory_against: float | None = None

    def record(self) -> dict:
        """As JSON. Ratios are those of the digits that are kept."""
        row: dict = {
            name: value for name, value in asdict(self).items() if value is not None
        }
        row["took"], row["against"] = rounded(self.took), rounded(self.against)
        for name in ("cpu", "wall"):
            row[f"{name}_ratio"] = ratio(row["against"][name], row["took"][name])
        if self.at_least is None:
            del row["by"]
        for name in {"memory", "memory_against"} & row.keys():
            row[name] = int(row[name])
        return row


def has_bfloat16_units() -> bool:
    """Whether this CPU has matrix units for bfloat16 (AMX), as far as it says so."""
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "amx_bf16" in facts.read_text().split()


def rounded(times: Spent) -> dict[str, float]:
    """Four digits of each."""
    return {name: float(f"{value:.4g}") for name, value in times._asdict().items()}


def ratio(other: float, ours: float) -> float:
    """How many times as fast: four digits."""
    return float(f"{other / ours:.4g}")


def show(rows: list[Row]) -> None:
    """Print rows, as a benchmark does that is run alone."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "task": row.task,
            "ours": row.ours,
            "against": row.other,
            "CPU (s)": row.took.cpu,
            "its CPU (s)": row.against.cpu,
            "times as fast, CPU": row.against.cpu / row.took.cpu,
            "wall": row.against.wall / row.took.wall,
            "asked": f"{row.at_least:.3g} ({row.by})" if row.at_least else "",
        }
        for row in rows
    )
    print(table.to_string(index=False, float_format="{:.3g}".format), flush=True)
