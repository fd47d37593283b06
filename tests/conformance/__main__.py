"""`python -m tests.conformance`: some cases with one model, in this process.

Prints a line of JSON for each case. Its peak of memory is that of this process, so a
process for each case gives the memory that each needs. What the libraries take before
there is a model stands beside it: the CUDA build of torch alone takes 0.7 GB.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"


def peak_megabytes() -> float:
    """The most memory that this process ever held.

    Linux's own figure for the program; `ru_maxrss` would count the parent's, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Run the cases that are asked for."""
    import torch

    from clipadapt import load_clip

    from .cases import choose, try_case

    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    for name in ("model", "photographs", "cases", "changed"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--unlabelled", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    libraries = round(peak_megabytes())
    torch.set_flush_denormal(True)  # random models have gradients of 1e-40: slow
    clip = load_clip(given.model, device=given.device)
    photographs = choose(Path(given.photographs), given.unlabelled)
    changed = json.loads(given.changed)
    for name in json.loads(given.cases):
        with tempfile.TemporaryDirectory() as folder:
            result = try_case(
                clip,
                name,
                photographs,
                Path(folder),
                given.unlabelled,
                **changed.get(name, {}),
            )
        peak = {"peak_mb": round(peak_megabytes()), "libraries_mb": libraries}
        row = {"case": name, **result._asdict(), **peak}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
