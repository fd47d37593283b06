"""`python -m tests.soak`: see the package."""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(TQDM_DISABLE="1", OMP_NUM_THREADS="1")


def main() -> None:
    """Soak the jobs that are asked for; exit code 1 when one ended otherwise."""
    import torch

    from .harness import HEAD, report, soak
    from .jobs import make_jobs

    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=90, help="for all jobs together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as photos:
        jobs = make_jobs(Path(photos))
        chosen = given.only or list(jobs)
        print(HEAD)
        good = True
        for position, name in enumerate(chosen):
            kills = given.kills // len(chosen) + (position < given.kills % len(chosen))
            result = soak(name, jobs[name], kills, given.seed)
            print(report(result), flush=True)
            good = good and result.is_good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
