"""Two workers of Ray against one, a thread each: the same files and model, in one run.

python benchmarks/cluster.py [--images 5000] [--rounds 2] [--block 250]

The time until the workers are ready is printed apart. Asked for are at most 0.65 of the
wall time, on two cores that nobody else uses: the load of the machine is printed, too.
"""

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import Row, family, median

from clipadapt import ImageSet, RayEngine, digits, load_clip
from clipadapt.clip.cluster import _all_of
from clipadapt.clip.workers import Crew, EncodingWorker, Job, _of, clip_identity


def write_photographs(folder, count):
    """Handwriting as JPEG files of 320 x 240 pixels."""
    train = digits("train")
    for number in range(count):
        image = train[number % len(train)][0].resize((320, 240 + number // len(train)))
        image.save(folder / f"{number:05d}.jpg")
    return ImageSet.from_folder(folder, check="names")


def encode_with(workers, clip, images, block):
    """Features, and what the start of the workers and their work took."""
    job = Job(_of(clip, "cpu"), [(None, 0)], 64, images.max_pixels)
    numbers = [*range(len(images))]
    blocks = [numbers[start : start + block] for start in range(0, len(images), block)]
    features = np.empty((len(images), clip.embed_dim), np.float32)
    with RayEngine(workers=workers) as engine:
        begin = family()
        engine.start()
        with Crew(engine, EncodingWorker, (job,), clip_identity(clip)) as crew:
            crew.wait()
            ready = family()
            for rows, done, _, _ in _all_of(crew, images, blocks, clip.side):
                features[rows] = done[0]
            return features, ready - begin, family() - ready


def measure(clip, images, rounds, block):
    """For each round what the starts of one worker and of two took, and their work."""
    for _ in range(rounds):
        alone, start, one = encode_with(1, clip, images, block)
        together, starts, two = encode_with(2, clip, images, block)
        assert np.array_equal(alone, together), "the same bits, however many workers"
        yield start, starts, one, two


def in_seconds(measured, count):
    """A row for each round, for the eye."""
    for start, starts, one, two in measured:
        row = {"start of 1 (s)": start.wall, "start of 2 (s)": starts.wall}
        row |= {"1 worker (s)": one.wall, "2 workers (s)": two.wall}
        yield row | {"2 / 1": two.wall / one.wall, "images/s of 2": count / two.wall}


def rows(images=3000, rounds=2, block=250):
    """Two workers against one, without their starts; none without Ray."""
    if find_spec("ray") is None:
        return []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        photographs = write_photographs(Path(place), images)
        clip = load_clip(device="cpu")
        found = [*measure(clip, photographs, rounds, block)]
    one, two = (median([each[number] for each in found]) for number in (2, 3))
    task = f"encode {images:,} photographs with Ray, a thread a worker"
    pair = two, one
    return [Row("clip", task, "2 workers", "1 worker", *pair, 1 / 0.65, "wall")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--block", type=int, default=250)
    options = parser.parse_args()
    if find_spec("ray") is None:
        print("Ray is not installed (pip install 'clipadapt[ray]'), so not measured")
        raise SystemExit
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        photographs = write_photographs(Path(place), options.images)
        given = load_clip(device="cpu"), photographs, options.rounds, options.block
        table = pd.DataFrame(in_seconds(measure(*given), options.images))
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"{options.images} images, load {load:.1f} on {cores} processors")
    print(table.to_string(index=False, float_format="{:.3g}".format))
