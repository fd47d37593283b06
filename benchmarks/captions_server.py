"""Captions from a server, many requests at a time against one at a time; ratios taken
in one run, each against the same server.

python benchmarks/captions_server.py [--images 128] [--concurrency 32] [--rounds 3]

Two servers, both on this machine. The one of the tests takes a fixed time for every
request, as a large model on a GPU of its own does, and any number at once; in a last
row it fails on every second picture the first time it sees it. `transformers serve`
works on a tiny LLaVA-NeXT with random weights, one answer at a time, on the cores
that ask; it shows what asking costs, and gains only what was waiting.
"""

import argparse
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from clipadapt import digits
from clipadapt.clip.captions import caption, image_prompt
from clipadapt.clip.server import ServerCaptioner

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from loopback_server import FINE, MODEL, LoopbackServer  # noqa: E402
from served_model import transformers_serve  # noqa: E402
from tiny_llava import save_tiny_llava  # noqa: E402

FAULTS = ["429 soon", "500", "half", "not json", "empty choices", *[FINE] * 5]


def faulty(which: str, attempt: int) -> str:
    """Half of the pictures get something wrong first."""
    return FINE if attempt else FAULTS[int(which, 16) % len(FAULTS)]


def measured(address, model, images, concurrency, **settings):
    """Seconds of one pass without a cache, and what was said."""
    captioner = ServerCaptioner(address, model, concurrency, **settings)
    start = time.perf_counter()
    said = caption(captioner, images, image_prompt("digits"), cache=False)
    return time.perf_counter() - start, said


def compared(name, address, model, images, options, **settings):
    """The rows of a server: one at a time, many, and the ratio of the medians."""
    runs = [
        [measured(address, model, images, c, **settings) for c in (1, options.many)]
        for _ in range(options.rounds)
    ]
    one, many = (statistics.median(run[k][0] for run in runs) for k in (0, 1))
    same = runs[0][0][1].texts == runs[0][1][1].texts
    lost = max(said.missing.sum() for run in runs for _, said in run)
    return {
        "server": name,
        "images": len(images),
        "one at a time, captions/s": len(images) / one,
        f"{options.many} at a time, captions/s": len(images) / many,
        "ratio": one / many,
        "same texts": same,
        "lost": lost,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 128, "concurrency": 32, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a request")
    options = parser.parse_args()
    options.many = options.concurrency
    images = digits("test").subset(range(options.images))
    fixed = f"{options.seconds:g} s a request"
    rows = []
    with LoopbackServer(seconds=options.seconds) as server:
        rows.append(compared(fixed, server.url, MODEL, images, options))
    with LoopbackServer(faulty, seconds=options.seconds) as server:
        seconds, said = measured(server.url, MODEL, images, options.many)
        wrong = sum(faulty(which, 0) != FINE for which in server.attempts)
    rows.append(
        {
            "server": f"{fixed}, {wrong} pictures with a fault first",
            "images": len(images),
            f"{options.many} at a time, captions/s": len(images) / seconds,
            "lost": said.missing.sum(),
        }
    )
    if find_spec("fastapi") and find_spec("uvicorn"):
        with tempfile.TemporaryDirectory() as folder:
            model = save_tiny_llava(Path(folder) / "tiny")
            with transformers_serve(model, "--dtype", "float32") as address:
                few, settings = images.subset(range(32)), {"max_new_tokens": 12}
                measured(address, str(model), few.subset(range(4)), 1, **settings)
                name = "transformers serve"
                rows.append(
                    compared(name, address, str(model), few, options, **settings)
                )
    print(f"median of {options.rounds} rounds")
    table = pd.DataFrame(rows).set_index("server").T
    print(table.to_string(na_rep="", float_format="{:.2f}".format))
