"""Run the benchmarks that compare our code with other code, each in a process of its
own, and make the page of performance from what they found.

python benchmarks/performance.py [--only encode --only search ...] [--again] [--page]

What was measured with the same code on the same machine is kept, so a run that was cut
off goes on. A benchmark that fails is named at the end, and the others are measured all
the same. --again: measure all of them anew. --page: make the page only.
"""

import argparse
import ast
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from measuring import ROOMS, now

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent
sys.path.insert(0, str(PROJECT / "tools"))
from reach import canonical, digest  # noqa: E402

RESULTS = PROJECT / "nbs" / "engine" / "performance.jsonl"
PAGE = PROJECT / "nbs" / "pages" / "performance.md"
BEGIN, END = "<!-- made by `make bench` -->", "<!-- until here -->"
BENCHMARKS = (
    "photos",
    "encode",
    "features",
    "search",
    "captions",
    "captions_server",
    "cluster",
    "select_top_k",
    "prompts",
    "prompts_memory",
    "threads",
    "propagation",
    "coreg",
    "lpclip",
    "finetuning",
    "million",
    "robustness",
)


def machine() -> dict:
    """What the figures depend on besides the code; nothing that names a machine."""
    import psutil
    import torch

    import clipadapt

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "GiB": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "clipadapt": clipadapt.__version__,
    }


def processor() -> str:
    """The name that the processor gives itself, or its kind."""
    told = Path("/proc/cpuinfo")
    names = re.findall(
        r"model name\s*: (.+)", told.read_text() if told.exists() else ""
    )
    return names[0] if names else platform.processor() or platform.machine()


def code_of(name: str, folder: Path = FOLDER) -> str:
    """A hash of the package and of the code of a benchmark, without docstrings and
    layout."""
    paths = {path.stem: path for path in sorted(folder.glob("*.py"))}
    trees = {stem: ast.parse(path.read_text("utf-8")) for stem, path in paths.items()}
    wanted, found = [name], {}
    while wanted:
        stem = wanted.pop()
        found[stem] = canonical(trees[stem])
        imports = [n for n in ast.walk(trees[stem]) if isinstance(n, ast.ImportFrom)]
        wanted += [n.module for n in imports if n.module in trees.keys() - found]
    return digest([package_code(), *(found[stem] for stem in sorted(found))])


@cache
def package_code() -> str:
    """A hash of the package."""
    paths = sorted((PROJECT / "clipadapt").rglob("*.py"))
    return digest(canonical(ast.parse(path.read_text("utf-8"))) for path in paths)


def with_earlier(name: str, folder: Path = FOLDER) -> bool:
    """Whether a benchmark compares with an earlier clipadapt, which EARLIER names."""
    uses = "EARLIER" in (folder / f"{name}.py").read_text(encoding="utf-8")
    return uses and bool(os.environ.get("EARLIER"))


def read(path: Path) -> dict[str, dict]:
    """The kept lines, by benchmark."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line["benchmark"]: line for line in map(json.loads, lines)}


def write(path: Path, kept: dict[str, dict], names: Sequence[str]) -> None:
    """One line a benchmark, in the order of `names`; whole or not at all."""
    lines = [json.dumps(kept[name]) for name in names if name in kept]
    beside = path.with_suffix(".part")
    beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    beside.replace(path)


def run(name: str, folder: Path = FOLDER) -> dict:
    """Measure one benchmark in a process of its own; its rows, and what it took.

    OMP_NUM_THREADS is left out: people do not set it.
    """
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(PROJECT)])
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "rows.json"
        command = [sys.executable, str(Path(__file__)), "--one", name, str(out)]
        load, start = os.getloadavg()[0], now()
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, capture_output=True, text=True
        )
        took = now() - start
        if done.returncode or not out.exists():
            raise RuntimeError(done.stderr.strip()[-1500:] or "it printed no error")
        rows = json.loads(out.read_text(encoding="utf-8"))
    return {"load": round(load, 1), "seconds": round(took.wall), "rows": rows}


def one(name: str, out: Path) -> None:
    """What the process of a benchmark does. One that cannot run here has no rows."""
    rows = [row.record() for row in import_module(name).rows()]
    out.write_text(json.dumps(rows), encoding="utf-8")


def measure(
    names: Iterable[str],
    results: Path = RESULTS,
    folder: Path = FOLDER,
    again: bool = False,
    order: Sequence[str] = BENCHMARKS,
) -> list[str]:
    """Measure what is not kept of this code and machine; the names of those that
    failed."""
    here, failed = machine(), []
    for name in names:
        kept, state = read(results), {"code": code_of(name, folder), "machine": here}
        state["earlier"] = with_earlier(name, folder)
        old = kept.get(name, {})
        if not again and old.get("rows") and state.items() <= old.items():
            print(f"{name}: kept, of the same code and machine", flush=True)
            continue
        print(f"{name} ...", end=" ", flush=True)
        try:
            line = {"benchmark": name, **state, **run(name, folder)}
        except RuntimeError as error:
            failed.append(name)
            print(f"FAILED\n{error}", file=sys.stderr, flush=True)
            continue
        write(results, {**kept, name: line}, order)
        print(f"{len(line['rows'])} rows, {line['seconds']} s", flush=True)
    return failed


def short(seconds: float) -> str:
    """Seconds with two digits, milliseconds where they are few."""
    value, unit = (seconds, "s") if seconds >= 0.1 else (1000 * seconds, "ms")
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def times(value: float) -> str:
    """A ratio with two or three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def is_reached(row: dict) -> bool | None:
    """Whether a row is as fast as was asked for; None where nothing was."""
    if "at_least" not in row:
        return None
    return row[f"{row['by']}_ratio"] >= row["at_least"]


def line_of(row: dict, memory: bool) -> str:
    """A row of the page's table; `memory`: whether this table has a column for it."""
    took, against = row["took"], row["against"]
    asked = ""
    if "at_least" in row:
        by = "CPU" if row["by"] == "cpu" else "wall"
        asked = f"{times(row['at_least'])} ({by})" + (
            "" if is_reached(row) else ", **missed**"
        )
    gib = [row.get(name, 0) / 2**30 for name in ("memory", "memory_against")]
    cells = [
        row["task"],
        f"{row['ours']} *against* {row['other']}",
        f"{short(took['cpu'])} / {short(against['cpu'])}".replace(" ", "\N{NBSP}"),
        times(row["cpu_ratio"]),
        times(row["wall_ratio"]),
        asked,
    ]
    if memory:
        cells.append(f"{gib[0]:.2f} / {gib[1]:.2f}" if gib[0] else "")
    return "| " + " | ".join(cells) + " |"


HEADS = (
    "what is done",
    "how, against what",
    "CPU time",
    "times as fast, CPU",
    "wall",
    "asked for",
)


def facts(kept: dict[str, dict]) -> list[str]:
    """A sentence for every machine and version that measured something."""
    groups: dict[str, list[str]] = {}
    for name, line in kept.items():
        groups.setdefault(json.dumps(line["machine"]), []).append(name)
    sentences = []
    for told, names in groups.items():
        m = json.loads(told)
        minutes = sum(kept[name]["seconds"] for name in names) / 60
        load = max(kept[name]["load"] for name in names)
        which = "" if len(groups) == 1 else f" ({', '.join(names)})"
        sentences.append(
            f"Measured{which} on {m['processor']}, {m['cores']} cores, "
            f"{m['threads']} threads, {m['GiB']} GiB, {m['system']}; clipadapt "
            f"{m['clipadapt']}, Python {m['Python']}, torch {m['torch']}. It took "
            f"{minutes:.0f} minutes; the load before a benchmark was at most {load}."
        )
    return sentences


def render(kept: dict[str, dict]) -> str:
    """What stands between the marks of the page."""
    if not kept:
        return "Nothing has been measured yet: `make bench` fills this table."
    rows = [row for line in kept.values() for row in line["rows"]]
    parts = facts(kept)
    for room, title in ROOMS.items():
        some = [row for row in rows if row["room"] == room]
        if some:
            parts.append(f"### {title}\n\n{table_of(some)}")
    return "\n\n".join(parts)


def table_of(rows: Sequence[dict]) -> str:
    """Rows as a table, with their memory where one of them has it."""
    memory = any("memory" in row for row in rows)
    heads = [*HEADS, "GiB"] if memory else [*HEADS]
    lines = [" | ".join(heads).join(("| ", " |")), f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(line_of(row, memory) for row in rows)])


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = f"{BEGIN}\n\n{render(read(results))}\n\n{END}"
    page.write_text(before + table + after, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]))
        return 0
    start, failed = time.perf_counter(), []
    if not options.page:
        failed = measure(options.only or BENCHMARKS, again=options.again)
        print(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    write_page()
    if failed:
        print(f"not measured, since they failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
