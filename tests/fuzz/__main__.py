"""`python -m tests.fuzz`: see the package."""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TQDM_DISABLE="1", OMP_NUM_THREADS="1"
)


def main() -> None:
    """Run the targets that are asked for; exit code 1 when anything escaped."""
    from .runner import HEAD, dice_of, prepared, report, run
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--number", type=int, help="this input alone, with its traceback"
    )
    given = parser.parse_args()
    if given.number is not None and len(given.only or []) != 1:
        parser.error("--number needs one --only")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(HEAD)
    escaped = 0
    for name in given.only or TARGETS:
        with prepared(TARGETS[name]) as target:
            if given.number is not None:
                with tempfile.TemporaryDirectory() as place:
                    dice = dice_of(target, given.seed, given.number)
                    target.attempt(dice, Path(place))
                continue
            result = run(target, range(given.inputs), given.seed, given.workers)
            print(report(result, given.seed), flush=True)
            escaped += len(result.escaped)
    sys.exit(1 if escaped else 0)


if __name__ == "__main__":
    main()
