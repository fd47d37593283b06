"""Time and cost of every chapter, measured and computed, never typed.

`python tools/costs.py --measure [NOTEBOOK ...]` runs notebooks (without their slow and
cuda cells) and keeps seconds and peak memory in tools/costs.json. `--write` puts the
line "> **Time and cost**: ..." into each chapter. Without an option nothing is changed:
what is out of date is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tools.course_stats import Notebook, all_notebooks  # noqa: E402

COSTS = PROJECT / "tools" / "costs.json"
WORDS, LINES = 180, 15  # that a student reads in a minute: of prose, of code
MARK = "> **Time and cost**: "


def run(notebook: Notebook) -> dict[str, int]:
    """Seconds and megabytes of a notebook, run from the first cell to the last."""
    test = str(Path(sys.executable).with_name("nbdev_test"))
    command = [test, "--path", str(notebook.path), "--n_workers", "0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    peaks = [0.0]
    watch = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watch.start()
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{notebook.name} does not run: {said[-500:]}")
    return {
        "seconds": round(time.perf_counter() - start),
        "megabytes": round(peaks[0] / 2**20),
    }


def _watch(pid: int, peaks: list[float]) -> None:
    """Keep the most memory that a process and its children ever held together."""
    try:
        process = psutil.Process(pid)
        while process.is_running():
            family = [process, *process.children(recursive=True)]
            peaks[0] = max(peaks[0], sum(one.memory_info().rss for one in family))
            time.sleep(0.2)
    except psutil.NoSuchProcess:
        pass


def _fives(minutes: float) -> int:
    """Minutes as people say them."""
    return max(5, 5 * round(minutes / 5))


def in_words(notebook: Notebook, measured: dict[str, int]) -> str:
    """The line that stands at the head of a chapter."""
    folded = sum(
        len(cell.code.splitlines()) for cell in notebook.code if cell.is_folded
    )
    visible = len(notebook.lines) - folded
    minutes = _fives(notebook.words / WORDS + visible / LINES)
    more_minutes = (
        f", {_fives(folded / LINES)} more with the folded code" if folded else ""
    )
    seconds = max(10, 10 * round(measured["seconds"] / 10))
    needs = f"{seconds} seconds" if seconds < 100 else f"{round(seconds / 60)} minutes"
    gigabytes = f"{max(measured['megabytes'], 100) / 1000:.1f} GB"
    slow = sum(cell.source.startswith("#| slow") for cell in notebook.code)
    cells = "cell" if slow == 1 else "cells"
    more = f" ({slow} slow {cells} more, whose results are shown)" if slow else ""
    return (
        f"{MARK}{minutes} minutes to read{more_minutes}, {needs} to run on one core"
        f"{more}, {gigabytes} of memory, no download, no GPU."
    )


def written(notebook: Notebook) -> str | None:
    """The line that the chapter has now."""
    found = re.search(rf"(?m)^{re.escape(MARK)}.*$", notebook.prose)
    return found.group(0) if found else None


def write(notebook: Notebook, line: str) -> None:
    """Put the line into the chapter."""
    content = json.loads(notebook.path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and MARK in source:
            changed = re.sub(rf"(?m)^{re.escape(MARK)}.*$", line, source)
            cell["source"] = changed.splitlines(keepends=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    notebook.path.write_text(text, encoding="utf-8")


def main() -> int:
    """Measure, write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--write", action="store_true")
    given, stale = parser.parse_args(), []
    known = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    paths = given.notebooks or all_notebooks()
    for notebook in filter(written, map(Notebook, paths)):
        if given.measure:
            known[notebook.name] = run(notebook)
            print(notebook.name, known[notebook.name], flush=True)
            COSTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        if notebook.name not in known:
            stale.append(f"{notebook.name} was not measured")
            continue
        line = in_words(notebook, known[notebook.name])
        if given.write:
            write(notebook, line)
        elif written(notebook) != line:
            stale.append(f"{notebook.name} says another time or cost than it has")
    if stale:
        print(*stale, sep="\n")
    return int(bool(stale) and not given.measure)


if __name__ == "__main__":
    sys.exit(main())
