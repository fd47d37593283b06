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
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from measuring import Row, median, spent, turns

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
    """What one pass without a cache took, and what was said."""
    captioner = ServerCaptioner(address, model, concurrency, **settings)
    return spent(
        lambda: caption(captioner, images, image_prompt("digits"), cache=False)
    )


def one_and_many(address, model, images, many, rounds, **settings):
    """The medians of one at a time and of many, and what each said last."""
    calls = {
        count: lambda count=count: measured(address, model, images, count, **settings)[
            1
        ]
        for count in (1, many)
    }
    times, said = turns(calls, rounds, warm=False)
    return {count: median(took) for count, took in times.items()}, said


def rows(images=64, many=32, rounds=2, seconds=0.1):
    """A server that takes a fixed time for a request, and any number at once."""
    pictures = digits("test").subset(range(images))
    with LoopbackServer(seconds=seconds) as server:
        times, _ = one_and_many(server.url, MODEL, pictures, many, rounds)
    task = f"{images} captions of a server, {seconds:g} s a request"
    ours = f"{many} requests at once"
    pair = times[many], times[1]
    return [Row("clip", task, ours, "one at a time", *pair, 3, "wall")]


def compared(name, address, model, images, options, **settings):
    """The row of a server for the eye: one at a time, many, and their ratio."""
    given = options.many, options.rounds
    times, said = one_and_many(address, model, images, *given, **settings)
    one, many = times[1].wall, times[options.many].wall
    same = said[1].texts == said[options.many].texts
    lost = max(each.missing.sum() for each in said.values())
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
    found = []
    with LoopbackServer(seconds=options.seconds) as server:
        found.append(compared(fixed, server.url, MODEL, images, options))
    with LoopbackServer(faulty, seconds=options.seconds) as server:
        took, said = measured(server.url, MODEL, images, options.many)
        wrong = sum(faulty(which, 0) != FINE for which in server.attempts)
    found.append(
        {
            "server": f"{fixed}, {wrong} pictures with a fault first",
            "images": len(images),
            f"{options.many} at a time, captions/s": len(images) / took.wall,
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
                found.append(
                    compared(name, address, str(model), few, options, **settings)
                )
    print(f"median of {options.rounds} rounds")
    table = pd.DataFrame(found).set_index("server").T
    print(table.to_string(na_rep="", float_format="{:.2f}".format))
