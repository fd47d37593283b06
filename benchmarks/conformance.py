"""Every method, with its own defaults and for two epochs, on other kinds of CLIP:
whether it runs, the time it takes and the memory it needs.

python benchmarks/conformance.py [--kind "ViT-B/32" --kind SigLIP ...] [--case FLYP ...]
    [--unlabelled 12] [--threads 2] [--device cpu]

The models are random: a whole ViT-B/32, and narrow ones of other kinds
(`tests/conformance`). They are shown photographs of every size and shape in 47 classes.
Each case of the whole model runs in a process of its own, so that its peak of memory is
its own. The exit code is 1 when a case fails, is refused without being listed as
impossible, or needs more memory than its limit. What a method needs on a GPU:
benchmarks/gpu.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conformance.cases import CASES, REFUSED  # noqa: E402
from tests.conformance.models import KINDS, WHOLE, write_model  # noqa: E402
from tests.conformance.photographs import write_photographs  # noqa: E402

LIMIT = 3000  # megabytes beside Python and its libraries, which take 1.1 GB with a
# PyTorch for CUDA. The largest cases: FLYP and LatteCLIP train a copy of both towers
# with AdamW's two means, 2.4 GB beside the activations; Co-Reg's CLIP students are two
# image towers with a momentum copy and two momenta, 2.4 GB in all.
# 27 or 80 templates in 47 classes take minutes; the ResNet student has its 27
CHANGED = {
    name: {"templates": "single"}
    for name in (
        "CoReg, as for EuroSAT",
        "CoReg, head",
        "CoReg, clip",
        "LPCLIP",
        "LPCLIP, new views",
    )
}


def needed(row):
    """The megabytes that a case needs, beside what was there before the model."""
    return row["peak_mb"] - row["libraries_mb"]


def verdict(kind, row, device="cpu"):
    """The status of a case, or what is wrong with it.

    The limit is for a CPU: the libraries of a GPU take memory when it is first used.
    """
    expected = REFUSED.get((kind, row["case"]))
    right = (
        row["status"] == "ok"
        if expected is None
        else row["status"] == "refused" and expected in row["reason"]
    )
    if not right:
        return f"WRONG: {row['status']}: {row['reason']}"
    if device == "cpu" and needed(row) > LIMIT:
        return f"WRONG: more than {LIMIT} MB beside the libraries"
    return f"refused: {expected}" if expected else "ok"


def run(cases, model, photographs, given):
    """The rows of some cases with one model, from a process of their own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "tests.conformance",
        "--model",
        model,
        "--photographs",
        str(photographs),
        "--cases",
        json.dumps(cases),
        "--changed",
        json.dumps(CHANGED),
        "--unlabelled",
        str(given.unlabelled),
        "--device",
        given.device,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    rows = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    lost = cases[len(rows) :] if done.returncode else []
    ended = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
    return [
        *rows,
        *(
            {
                "case": case,
                "status": "failed",
                "reason": ended,
                "seconds": 0,
                "processor_seconds": 0,
                "peak_mb": 0,
                "libraries_mb": 0,
            }
            for case in lost
        ),
    ]


def measure(given, folder):
    """A row for every kind of model and every case."""
    photographs = write_photographs(folder / "photographs")
    for number, kind in enumerate(given.kind or reversed(KINDS)):
        model, cases = (
            write_model(kind, folder / f"model {number}"),
            given.case or list(CASES),
        )
        for some in [[case] for case in cases] if kind == WHOLE else [cases]:
            for row in run(some, model, photographs, given):
                said = verdict(kind, row, given.device)
                yield {"model": kind, **row, "verdict": said}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument(
        "--unlabelled",
        type=int,
        default=12,
        help="images of a method without labels; the others have 47 more",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="for example cuda")
    given, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(given, Path(folder)):
            rows.append(row)
            print(
                f"{row['model']:16} {row['case']:38} {row['seconds']:7.1f} s "
                f"{row['processor_seconds']:7.1f} CPU s {row['peak_mb']:6d} MB "
                f"({row['libraries_mb']} before the model)  {row['verdict'][:90]}",
                flush=True,
            )
    wrong = [row for row in rows if row["verdict"].startswith("WRONG")]
    print(f"\n{len(rows)} cases, {len(wrong)} wrong")
    print(
        pd.DataFrame(wrong, columns=["model", "case", "verdict"]).to_string(index=False)
        if wrong
        else ""
    )
    sys.exit(bool(wrong))
