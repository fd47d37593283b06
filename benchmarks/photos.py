"""A folder of photographs: what each command costs, the first time and again; ratios
taken in one run.

python benchmarks/photos.py [--images 60] [--small 300] [--many 2000] [--repeats 3]
    [--base FOLDER]

FOLDER has another clipadapt to compare with, for example an earlier one:
pip install --no-deps --target FOLDER clipadapt-0.1.0-py3-none-any.whl

CPU time is that of the command and all its threads. What a command costs before it has
seen an image (imports, the model) is measured with two images and taken off.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import Row, Spent, least, median, spent, turns
from PIL import Image

from clipadapt import FeatureStore, ImageSet, load_clip

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests"))
from conformance.models import write_model  # noqa: E402
from conformance.photographs import crop, sources  # noqa: E402

LARGE, SMALL = (4000, 3000), (500, 375)
OURS = str(PROJECT)


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files of a size, cut from three photographs, with some noise of a camera."""
    rng, pictures = np.random.default_rng(0), sources()
    folder.mkdir()
    grain = rng.integers(-6, 7, (size[1], size[0], 1), np.int16)
    for number in range(count):
        image = crop(pictures[number % len(pictures)], size, rng)
        pixels = np.asarray(image, np.int16) + np.roll(grain, number, 0)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def few_of(images: Path, count: int = 2) -> Path:
    """A folder with the first files of another one; made when first asked for."""
    place = images.with_name(f"{images.name}-few")
    if not place.exists():
        place.mkdir()
        for path in sorted(images.iterdir())[:count]:
            os.link(path, place / path.name)
    return place


def commanded(package: str, cache: Path, *arguments) -> Spent:
    """What it takes to run a command of the clipadapt in the folder `package`."""
    code = "from clipadapt.cli import main; main()"
    if package == OURS:
        code = "from clipadapt.app.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": package, "CLIPADAPT_CACHE": str(cache)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    given = {"env": environment, "cwd": cache, "capture_output": True, "text": True}
    took, done = spent(lambda: subprocess.run(command, **given))
    assert done.returncode == 0, done.stdout + done.stderr
    return took


class Bench:
    """Commands on one model, each with a fresh cache and a fresh folder for results."""

    def __init__(self, folder: Path, base: str | None, repeats: int = 1):
        self.folder, self.base, self.repeats = folder, base, repeats
        self.model = write_model("ViT", folder / "model")
        self.rows: list[dict] = []

    def adapt(self, package: str, images: Path, method: str, cache: Path) -> Spent:
        out = self.folder / f"run{len(list(self.folder.iterdir()))}"
        fast = [] if method == "prototypes" else ["--set", "epochs=1"]
        model = [
            "--model",
            self.model,
            "--images",
            images,
            "--classes",
            "a dog,a house",
        ]
        given = [*model, "--method", method, *fast, "--out", out]
        return commanded(package, cache, "adapt", *given)

    def beyond_the_start(
        self, name: str, package: str, images: Path, method: str, runs: Sequence[str]
    ) -> list[Spent]:
        """What runs one after another take beyond what two images take.

        The least of several rounds each: whatever else happens only adds to it.
        """
        starts, seconds = [], []
        for _ in range(self.repeats):
            start, cache = (
                Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))
                for kind in ("start", "cache")
            )
            few = self.adapt(package, few_of(images), method, start)
            starts.append(few)
            self.keep(name, method, "start", few)
            seconds.append([])
            for run in runs:
                seconds[-1].append(self.adapt(package, images, method, cache))
                self.keep(name, method, run, seconds[-1][-1])
        return [least([*times]) - least(starts) for times in zip(*seconds)]

    def keep(self, name: str, method: str, run: str, took: Spent) -> None:
        """A row for the eye."""
        row = {"what": name, "method": method, "run": run}
        self.rows.append(row | {"CPU (s)": took.cpu, "wall (s)": took.wall})

    def compare(self, name: str, images: Path, method: str) -> None:
        """Our first and second run, beside the first of the other package."""
        given = images, method
        first, again = self.beyond_the_start(name, OURS, *given, ["first", "again"])
        print(f"{name}, {method}: again / first = {max(again.cpu, 0) / first.cpu:.3f}")
        if self.base:
            told = f"{name}, base"
            [base] = self.beyond_the_start(told, self.base, *given, ["first"])
            print(f"{name}, {method}: base / ours = {base.cpu / first.cpu:.1f}")


def decoded(folder: Path, model: str, images: int) -> Row:
    """Photographs decoded no larger than needed, against decoded in full."""
    place = write_photographs(folder / "large", images, LARGE)
    photographs = ImageSet.from_folder(place, check="names")
    clips = {
        exact: load_clip(model, device="cpu", exact=exact) for exact in (False, True)
    }
    calls = {
        exact: lambda clip=clip: clip.encode_image(photographs)
        for exact, clip in clips.items()
    }
    times, _ = turns(calls, 2)
    task = f"encode {images} photographs of 12 megapixels, a narrow ViT"
    contenders = "decoded as large as needed", "decoded in full (`exact`)"
    return Row("images", task, *contenders, *(median(times[e]) for e in (False, True)))


def added(folder: Path, model: str, count: int) -> Row:
    """One photograph more in a folder whose features are kept, against twenty."""
    place = write_photographs(folder / "many", count, SMALL)
    clip, store = load_clip(model, device="cpu"), FeatureStore(folder / "store")

    def encode() -> None:
        store.encode(clip, ImageSet.from_folder(place, check="names"))

    first, _ = spent(encode)
    with Image.open(min(place.iterdir())) as image:
        image.rotate(180).save(place / "one more.jpg")
    took, _ = spent(encode)
    task = f"one photograph more in a folder of {count:,}, a narrow ViT"
    contenders = "with the store", "encoding twenty"
    return Row("images", task, *contenders, took, first * (20 / count), 1)


def against_earlier(folder: Path, bench: Bench, images: int, small: int) -> list[Row]:
    """The first run of commands against those of an earlier version."""
    large = f"{images} photographs of 12 megapixels"
    sets = {
        large: (images, LARGE, "prototypes", 10),
        f"{large}, 5 views": (images, LARGE, "lpclip", 20),
        f"{small} photographs of 500 x 375": (small, SMALL, "prototypes", 3),
    }
    found = []
    for name, (count, size, method, asked) in sets.items():
        place = folder / f"{count} of {size[0]}"
        place = place if place.exists() else write_photographs(place, count, size)
        given = place, method, ["first"]
        (ours,) = bench.beyond_the_start(name, OURS, *given)
        (other,) = bench.beyond_the_start(name, bench.base, *given)
        task = f"`adapt --method {method}`, {name}"
        found.append(Row("images", task, "now", "earlier version", ours, other, asked))
    return found


def rows(images: int = 24, many: int = 600, small: int = 300) -> list[Row]:
    """Decoding, one photograph more, and, if EARLIER names a folder with another
    clipadapt, whole commands against it."""
    with tempfile.TemporaryDirectory() as place:
        folder, base = Path(place), os.environ.get("EARLIER")
        bench = Bench(folder, base)
        found = [decoded(folder, bench.model, images), added(folder, bench.model, many)]
        if base:
            found += against_earlier(folder, bench, images, small)
    return found


def one_more(folder: Path, model: str, images: Path) -> None:
    """What a photograph costs that is added to a folder, in photographs."""
    script = """
import sys, time
from pathlib import Path
from PIL import Image
from clipadapt import FeatureStore, ImageSet, load_clip
clip, store = load_clip(sys.argv[1], device="cpu"), FeatureStore(sys.argv[3])
folder = Path(sys.argv[2])
def spent():
    start = time.process_time()
    images = ImageSet.from_folder(folder, check="names")
    listed = time.process_time()
    store.encode(clip, images)
    return listed - start, time.process_time() - listed
count = len(list(folder.iterdir()))
photograph = sum(spent()) / count
again = spent()
with Image.open(min(folder.iterdir())) as image:
    image.rotate(180).save(folder / "one more.jpg")
for what, times in ("none", again), ("one", spent()):
    listing, rest = (each / photograph for each in times)
    print(f"{what} added to {count} photographs costs as much as {listing + rest:.1f}"
          f" of them: {listing:.1f} to look at each file, {rest:.1f} in the store")
"""
    environment = {**os.environ, "PYTHONPATH": OURS}
    command = [sys.executable, "-c", script, model, images, folder / "store"]
    subprocess.run([*map(str, command)], env=environment, check=True)


def compare_features(folder: Path, count: int = 9) -> None:
    """Cosines of features of shrunk files to those of whole ones, of a ViT-B/32.

    Of photographs of such a size that nothing is to spare: an eighth of the shorter
    side is just what the model asks for.
    """
    script = """
import sys
from pathlib import Path
from clipadapt import load_clip
paths = sorted(Path(sys.argv[2]).iterdir())
given = {"device": "cpu", "precision": "float32"}
small, whole = (
    load_clip(sys.argv[1], exact=exact, **given).encode_image(paths)
    for exact in (False, True)
)
same, others = (small * whole).sum(1).min(), (whole @ whole.T).fill_diagonal_(-1).max()
print("ViT-B/32, random weights: cosine of features of shrunk photographs to those of"
      f" whole ones at least {same:.5f}; of different photographs at most {others:.3f}")
"""
    model = write_model("ViT-B/32", folder / "ViT-B-32")
    images = write_photographs(folder / "least", count, (3584, 2688))
    command = [sys.executable, "-c", script, model, images]
    environment = {**os.environ, "PYTHONPATH": OURS}
    subprocess.run([*map(str, command)], env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=60, help="of 12 megapixels")
    parser.add_argument("--small", type=int, default=300, help="of 500 x 375 pixels")
    parser.add_argument("--many", type=int, default=2000, help="to which one is added")
    parser.add_argument("--repeats", type=int, default=3, help="the least counts")
    parser.add_argument("--base", help="folder with another clipadapt")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bench = Bench(folder, given.base, given.repeats)
        large = write_photographs(folder / "large", given.images, LARGE)
        small = write_photographs(folder / "small", given.small, SMALL)
        bench.compare("12 megapixels", large, "prototypes")
        bench.compare("12 megapixels", large, "lpclip")
        bench.compare("500 x 375", small, "prototypes")
        print(pd.DataFrame(bench.rows).round(2).to_string(index=False))
        many = write_photographs(folder / "many", given.many, SMALL)
        one_more(folder, bench.model, many)
        compare_features(folder)


if __name__ == "__main__":
    main()
