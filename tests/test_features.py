"""The feature store under accidents: killed and competing processes, damaged and full
disks, and keys that must or must not change."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip import image_transform
from open_clip.transformer import QuickGELU
from PIL import Image
from torchvision.transforms import CenterCrop, Compose

from clipadapt import (
    CLIP,
    FeatureStore,
    ImageSet,
    StoredCLIP,
    ZeroShot,
    digits,
    load_clip,
)
from clipadapt.clip import features as module
from clipadapt.clip.features import hash_each
from clipadapt.images.files import _host
from clipadapt.images.views import strong_view, weak_view
from clipadapt.learning.testing import check_adapter

COUNT, SHARD = 300, 32

# A process of its own that encodes the first 300 images, slowly, so that there is time
# to kill it.
WORKER = f"""
import sys, time, hashlib
from pathlib import Path
from clipadapt import CLIP, FeatureStore, digits, load_clip
class Slow(CLIP):
    count = 0
    def encode_batches(self, images, batch_size=64):
        for batch in super().encode_batches(images, batch_size):
            time.sleep(float(sys.argv[2])); Slow.count += len(batch); yield batch
clip = load_clip(device="cpu")
clip = Slow(clip.model, clip.preprocess, clip.tokenizer)
images = digits("train").subset(range({COUNT}))
Path(sys.argv[3]).touch()
while not Path(sys.argv[4]).exists(): time.sleep(0.01)
features = FeatureStore(sys.argv[1], shard_size={SHARD}).encode(clip, images)
print(Slow.count, hashlib.sha256(features.tobytes()).hexdigest())
"""


def start(location, pause, ready, go):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(location), str(pause), str(ready), str(go)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def finished_shards(location):
    found = list(Path(location).glob("*/manifest.json"))
    return (
        sum(shard is not None for shard in json.loads(found[0].read_text())["shards"])
        if found
        else -1
    )


def files(location):
    """What a store consists of, by name: the bytes of every feature file and
    manifest."""
    return {
        str(path.relative_to(location)): path.read_bytes()
        for path in Path(location).glob("*/*")
    }


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


@pytest.fixture(scope="module")
def whole(clip, images, tmp_path_factory):
    """The files of a store that nothing happened to."""
    location = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    FeatureStore(location, shard_size=SHARD).encode(clip, images)
    torch.set_num_threads(threads)
    return files(location)


class Counting(CLIP):
    """A CLIP that counts the images it encodes."""

    def __init__(self, clip):
        super().__init__(clip.model, clip.preprocess, clip.tokenizer)
        self.count = 0

    def encode_batches(self, images, batch_size=64):
        for batch in super().encode_batches(images, batch_size):
            self.count += len(batch)
            yield batch


class Interrupted(Counting):
    """A CLIP whose user loses patience at once."""

    def encode_batches(self, images, batch_size=64):
        raise KeyboardInterrupt


def encoded(clip, location, images, **options):
    counting = Counting(clip)
    features = FeatureStore(location, shard_size=SHARD).encode(
        counting, images, **options
    )
    return counting.count, np.array(features)


def test_a_killed_process_is_resumed_bit_for_bit(clip, images, whole, tmp_path):
    """Killed three times on the same store, each time a little later; the last process
    finishes the rest."""
    go = tmp_path / "go"
    go.touch()
    for after in (-1, 1, 4):
        process = start(tmp_path / "store", 0.05, tmp_path / f"ready{after}", go)
        wait((tmp_path / f"ready{after}").exists)
        wait(lambda: finished_shards(tmp_path / "store") > after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert after < finished_shards(tmp_path / "store") < 10
    done = finished_shards(tmp_path / "store") * SHARD
    process = start(tmp_path / "store", 0, tmp_path / "ready", go)
    count, _ = process.communicate()[0].split()
    assert int(count) == COUNT - done
    assert files(tmp_path / "store") == whole


def test_two_processes_share_the_work_of_one(whole, tmp_path):
    processes = [
        start(tmp_path / "store", 0.25, tmp_path / f"ready{i}", tmp_path / "go")
        for i in range(2)
    ]
    wait(lambda: all((tmp_path / f"ready{i}").exists() for i in range(2)))
    (tmp_path / "go").touch()
    outputs = [process.communicate() for process in processes]
    answers = [output.split() for output, _ in outputs]
    assert sum("waiting for it" in errors for _, errors in outputs) == 1, outputs
    assert sorted(int(count) for count, _ in answers) == [0, COUNT], (
        "one encodes, the other waits"
    )
    assert answers[0][1] == answers[1][1]
    assert files(tmp_path / "store") == whole


@pytest.mark.parametrize("position", [0.01, 0.5, 0.999])
def test_a_flipped_bit_is_found_and_its_shard_made_again(
    clip, images, whole, tmp_path, position
):
    encoded(clip, tmp_path, images)
    expected = files(tmp_path)
    [path] = tmp_path.glob("*/features.npy")
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)
    count, _ = encoded(clip, tmp_path, images)
    assert 0 < count <= SHARD
    assert files(tmp_path) == expected


@pytest.mark.parametrize(
    "name, content",
    [
        ("manifest.json", b""),
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"facts": {"count": 3}}'),
        ("manifest.json", None),
        ("features.npy", b""),
        ("features.npy", None),
        ("features.npy", b"\x93NUMPY"),
    ],
)
def test_damaged_files_are_made_again(clip, images, tmp_path, name, content):
    encoded(clip, tmp_path, images)
    expected = files(tmp_path)
    [path] = tmp_path.glob(f"*/{name}")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    FeatureStore(tmp_path).entries()
    count, _ = encoded(clip, tmp_path, images)
    assert count == COUNT and files(tmp_path) == expected


def change(record, path, value):
    *places, last = path
    for place in places:
        record = record[place]
    record[last] = value


@pytest.mark.parametrize(
    "path, value",
    [
        (["shard_size"], 0),
        (["shard_size"], -1),
        (["shard_size"], 10**30),
        (["shard_size"], "32"),
        (["dim"], 10**18),
        (["dim"], None),
        (["facts", "count"], 10**18),
        (["facts", "count"], -1),
        (["facts", "dtype"], "object"),
        (["facts"], []),
        (["shards"], {}),
        (["shards"], [1] * 10),
        (["shards"], [None] * 11),
        (["more"], 1),
    ],
)
def test_absurd_manifests_are_made_again(clip, images, tmp_path, path, value):
    few = images.subset(range(40))
    encoded(clip, tmp_path, few)
    expected = files(tmp_path)
    [manifest] = tmp_path.glob("*/manifest.json")
    record = json.loads(manifest.read_text())
    change(record, path, value)
    manifest.write_text(json.dumps(record))
    assert FeatureStore(tmp_path).entries() == []
    assert encoded(clip, tmp_path, few)[0] == 40 and files(tmp_path) == expected


def with_header(header):
    """A file that begins as a NumPy array and says of itself what you like."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


HOSTILE_ARRAYS = {
    "a huge shape": with_header(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000, "
        b"64)}\n"
    ),
    "a shape beyond numbers": with_header(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 400 + b",)}\n"
    ),
    "objects": with_header(
        b"{'descr': '|O', 'fortran_order': False, 'shape': (40, 64)}\n"
    )
    + b"cos\nsystem\n(S'exit'\ntR.",
    "no Python": with_header(b"(((((((((((((\n"),
    "deep Python": with_header(b"[" * 9000 + b"]" * 9000),
    "a zip archive": b"PK\x03\x04" + b"\0" * 100,
    "another version": b"\x93NUMPY\x09\x09" + b"\0" * 100,
}


@pytest.mark.parametrize("content", HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_hostile_arrays_are_made_again(clip, images, tmp_path, content):
    few = images.subset(range(40))
    encoded(clip, tmp_path, few)
    expected = files(tmp_path)
    [path] = tmp_path.glob("*/features.npy")
    path.write_bytes(content)
    assert FeatureStore(tmp_path).entries() == []
    assert encoded(clip, tmp_path, few)[0] == 40 and files(tmp_path) == expected


def test_drafts_of_killed_processes_are_counted_and_removed(clip, images, tmp_path):
    few = images.subset(range(10))
    store = FeatureStore(tmp_path)
    encoded(clip, tmp_path, few)
    before = store.size()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    [folder] = [path for path in tmp_path.iterdir() if path.is_dir()]
    (folder / f".features.npy.{_host()}-{dead.pid}-00000000.draft").write_bytes(
        bytes(1000)
    )
    assert store.size() == before + 1000
    encoded(clip, tmp_path, images.subset(range(11)))  # another entry
    assert not list(tmp_path.glob("*/.*.draft"))
    store.clear()
    assert store.size() == 0


CLEARING = """
import sys
from pathlib import Path
from clipadapt import FeatureStore
store = FeatureStore(sys.argv[1])
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    store.clear(), store.size(), store.entries()
"""


def test_encoding_beside_processes_that_clear(clip, images, tmp_path):
    """The features are there and right, also after somebody has removed their file."""
    few, done = images.subset(range(8)), tmp_path / "done"
    expected = clip.encode_image(few).numpy()
    ready = [tmp_path / f"ready {number}" for number in range(2)]
    command = [sys.executable, "-c", CLEARING, str(tmp_path / "store")]
    processes = [
        subprocess.Popen(
            [*command, str(mine), str(done)], stderr=subprocess.PIPE, text=True
        )
        for mine in ready
    ]
    wait(lambda: all(map(Path.exists, ready)))
    kept = [
        FeatureStore(tmp_path / "store", shard_size=3).encode(clip, few)
        for _ in range(20)
    ]
    done.touch()
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert all(np.allclose(features, expected, atol=1e-5) for features in kept)


def with_weights_changed():
    other = load_clip(device="cpu")
    other.model.visual.proj.data.mul_(1.001)
    return other


def with_another_activation():
    other = load_clip(device="cpu")
    for block in other.model.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    return other


OTHERS = {
    "other weights": lambda clip, images: (with_weights_changed(), images, {}),
    "another activation": lambda clip, images: (with_another_activation(), images, {}),
    "another crop": lambda clip, images: (
        CLIP(clip.model, Compose([CenterCrop(28), clip.preprocess]), clip.tokenizer),
        images,
        {},
    ),
    "another precision": lambda clip, images: (
        CLIP(clip.model, clip.preprocess, clip.tokenizer, precision="bf16"),
        images,
        {},
    ),
    "another order": lambda clip, images: (
        clip,
        images.subset(range(COUNT - 1, -1, -1)),
        {},
    ),
    "one image less": lambda clip, images: (clip, images.subset(range(COUNT - 1)), {}),
    "a weak view": lambda clip, images: (clip, images, {"view": "weak 0"}),
    "a weak view that does not mirror": lambda clip, images: (
        clip,
        images,
        {"view": "weak 0", "flip": False},
    ),
    "another weak view": lambda clip, images: (clip, images, {"view": "weak 1"}),
    "a strong view": lambda clip, images: (clip, images, {"view": "strong 0"}),
}


def test_whatever_features_depend_on_changes_the_key(clip, images, tmp_path):
    images = images.subset(range(COUNT))
    encoded(clip, tmp_path, images)
    for number, (what, make) in enumerate(OTHERS.items()):
        other, others, options = make(clip, images)
        features = FeatureStore(tmp_path).encode(other, others, **options)
        assert len(FeatureStore(tmp_path).entries()) == number + 2, what
        size = other.image_size
        views = {
            "weak 0": weak_view(size, options.get("flip", True)),
            "weak 1": weak_view(size),
            "strong 0": strong_view(size),
        }
        if options:
            others = others.view(views[options["view"]], seed=int(options["view"][-1]))
        assert np.allclose(features, other.encode_image(others), atol=1e-5), what
    FeatureStore(tmp_path, dtype="float16").encode(clip, images)
    assert len(FeatureStore(tmp_path).entries()) == len(OTHERS) + 2


def test_whatever_features_do_not_depend_on_keeps_the_key(clip, images, tmp_path):
    for i in range(40):
        Image.fromarray(np.asarray(images[i][0])).save(tmp_path / f"{i:02}.png")
    store = tmp_path / "store"
    before = ImageSet([tmp_path / f"{i:02}.png" for i in range(40)])
    assert encoded(clip, store, before)[0] == 40
    for i in range(40):
        (tmp_path / f"{i:02}.png").rename(tmp_path / f"renamed {i:02}.png")
    after = ImageSet(
        [str(tmp_path / f"renamed {i:02}.png") for i in range(40)],
        ["a", "b"],
        [0, 1] * 20,
    )
    assert encoded(clip, store, after)[0] == 0, (
        "names of files and labels do not matter"
    )
    again = load_clip(device="cpu")
    again.name = "another name"
    assert encoded(again, store, after)[0] == 0, "the name of a model does not matter"
    assert encoded(clip, store, after.subset(range(40)))[0] == 0
    views = after.view(weak_view(32), 5)
    assert (
        encoded(clip, store, views)[0] == 40
        and encoded(clip, store, after, view="weak 5")[0] == 0
    )


def test_views_are_drawn_in_the_proportions_of_the_clip(clip, tmp_path):
    """Of images that are not square, for a CLIP that reads their middle and one that
    squashes."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 20, 50, 3), np.uint8)
    pages = ImageSet([Image.fromarray(page) for page in colours])
    squash = image_transform(32, is_train=False, resize_mode="squash")
    store = FeatureStore(tmp_path)
    for of in (clip, CLIP(clip.model, squash, clip.tokenizer)):
        for name, make in (("weak", weak_view), ("strong", strong_view)):
            seen = pages.view(make(32, squash=of.squashes), seed=2)
            expected = of.encode_image(seen)
            assert np.allclose(
                store.encode(of, pages, f"{name} 2"), expected, atol=1e-5
            )
            entries = len(store.entries())
            StoredCLIP(of, store).encode_image(seen)
            assert len(store.entries()) == entries, "a view is found by its name"
    assert len(store.entries()) == 4


def test_a_view_without_a_name_is_known_by_its_pixels(clip, images, tmp_path):
    images = images.subset(range(20))
    assert (
        encoded(clip, tmp_path, images.view(lambda image, rng: image.rotate(90)))[0]
        == 20
    )
    assert (
        encoded(clip, tmp_path, images.view(lambda image, rng: image.rotate(180)))[0]
        == 20
    )
    assert (
        encoded(clip, tmp_path, images.view(lambda image, rng: image.rotate(45 + 45)))[
            0
        ]
        == 0
    )


FULL = """
import resource, sys
from clipadapt import FeatureStore, digits, load_clip
clip = load_clip(device="cpu")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    FeatureStore(sys.argv[1]).encode(clip, digits("train"))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="needs a limit on the size of files"
)
def test_a_disk_without_room_is_noticed_before_anything_is_encoded(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "store")],
        capture_output=True,
        text=True,
    )
    sentence = (
        f"the feature store {tmp_path / 'store'} cannot be written: it would be "
        "larger than files may be here. "
    )
    assert (
        found.stdout.startswith(sentence) and "choose another place" in found.stdout
    ), found
    assert found.stdout.count("\n") == 1
    assert files(tmp_path / "store") == {}


def test_a_disk_that_fills_up_keeps_what_was_finished(
    clip, images, tmp_path, monkeypatch
):
    # two for the new entry (array and manifest), then two for each shard (rows and
    # manifest)
    calls = []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > 2 + 2 * 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", fsync)
    with pytest.raises(
        OSError,
        match="the feature store .* cannot be written: the disk is full. What was "
        "finished before is kept",
    ):
        encoded(clip, tmp_path, images)
    monkeypatch.undo()
    assert encoded(clip, tmp_path, images)[0] == COUNT - 3 * SHARD


def test_a_place_that_cannot_be_written(clip, images, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(
            OSError,
            match="the feature store .* cannot be written: "
            "a part of this path is a file",
        ):
            FeatureStore(place).encode(clip, images)


def test_a_complete_store_is_read_without_writing(clip, images, tmp_path, monkeypatch):
    encoded(clip, tmp_path, images)

    def refuse(*args, **kwargs):
        raise AssertionError("nothing has to be written")

    for name in ("_locked", "_create", "_write_shard"):
        monkeypatch.setattr(module, name, refuse)
    assert encoded(clip, tmp_path, images)[0] == 0


def test_a_broken_image_costs_only_its_own_shard(clip, images, tmp_path):
    pictures = [image for image, _ in images]
    path = tmp_path / "broken.png"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.png: cannot be read"):
        encoded(
            clip,
            tmp_path / "store",
            ImageSet([*pictures[:100], path, *pictures[100:200]]),
        )
    assert finished_shards(tmp_path / "store") == 3


MEMORY = """
import re, sys, threading, time
from collections.abc import Sequence
import numpy as np, torch
from clipadapt import CLIP, FeatureStore, ImageSet, load_clip
from clipadapt.clip.features import hash_images
small, WIDTH = load_clip(device="cpu"), 8192
class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = small.model.visual
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, 1))
    def encode_image(self, pixels):
        return pixels.mean((1, 2, 3))[:, None] * self.weight.T
    def encode_text(self, tokens):
        return torch.ones(len(tokens), WIDTH)
class Drawn(Sequence):
    def __len__(self):
        return 8000
    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
def own():  # kilobytes; pages of mapped files go back when others need the room
    status = open("/proc/self/status").read()
    return int(re.search("RssAnon:[^0-9]*([0-9]+)", status)[1])
def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.005)
clip, images = CLIP(Wide(), small.preprocess, small.tokenizer), ImageSet(Drawn())
store = FeatureStore(sys.argv[1], shard_size=256)
store.encode(clip, images.subset(range(600)))
peak, before = 0, own()
threading.Thread(target=watch, daemon=True).start()
features = store.encode(clip, images)
print((max(peak, own()) - before) / 1024, features.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems say it elsewhere")
def test_memory_stays_flat(tmp_path):
    """250 MB of features pass through; the process may grow by what a few shards
    need."""
    found = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    grown, size = map(float, found.stdout.split())
    assert size == 250 and grown < 60, (
        f"{size} MB of features made the process grow by {grown:.0f} MB"
    )


def test_weights_that_an_optimiser_changes_in_place(images, tmp_path):
    clip, few = load_clip(device="cpu"), images.subset(range(20))
    before = encoded(clip, tmp_path, few)[1]
    parameter = clip.model.visual.proj.requires_grad_()
    optimiser = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    counting = Counting(clip)
    after = FeatureStore(tmp_path, shard_size=SHARD).encode(counting, few)
    assert counting.count == 20 and not np.allclose(before, after, atol=1e-4)


def test_an_image_that_changes_while_it_is_encoded(clip, images, tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(40)]
    for i, path in enumerate(paths):
        images[i][0].save(path)

    class Meddling(Counting):
        def encode_batches(self, pictures, batch_size=64):
            images[0][0].save(paths[35])
            return super().encode_batches(pictures, batch_size)

    with pytest.raises(ValueError, match="35.png.* changed while"):
        FeatureStore(tmp_path / "store", shard_size=SHARD).encode(Meddling(clip), paths)
    assert finished_shards(tmp_path / "store") in (0, 1)


def test_images_that_cannot_be_hashed(clip, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such image file"):
        FeatureStore(tmp_path / "store").encode(clip, [tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match="folder.png: cannot be read"):
        FeatureStore(tmp_path / "store").encode(clip, [tmp_path / "folder.png"])


def test_features_held_by_a_reader_survive_a_repair(clip, images, tmp_path):
    held = FeatureStore(tmp_path, shard_size=SHARD).encode(clip, images)
    expected = np.array(held)
    next(tmp_path.glob("*/manifest.json")).write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, shard_size=SHARD).encode(Interrupted(clip), images)
    assert np.array_equal(held, expected)


def test_a_relative_location_stays_where_it_was(clip, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("store")
    store.encode(clip, images.subset(range(5)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(store.entries()) == 1 and store.location == tmp_path / "store"


def test_clear_leaves_foreign_files_alone(clip, images, tmp_path):
    encoded(clip, tmp_path, images)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    store = FeatureStore(tmp_path)
    assert store.size() > 0 and len(store.entries()) == 1
    store.clear()
    assert (
        store.size() == 0
        and (tmp_path / "notes.txt").exists()
        and (tmp_path / "photos" / "manifest.json").exists()
    )


def test_methods_work_on_a_stored_clip(clip, tmp_path):
    check_adapter(
        ZeroShot,
        StoredCLIP(
            load_clip(device="cpu", precision="float32"), FeatureStore(tmp_path)
        ),
    )


def test_a_higher_limit_on_pixels_holds_for_hashing_too(clip, tmp_path):
    """An image above the usual limit is encoded where its set allows it."""

    class Large:
        """A sequence of one image that is not decoded yet."""

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Image.open(tmp_path / "large.png")

    Image.new("L", (12_000, 10_000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="max_pixels"):
        hash_each(ImageSet(Large()))
    assert len(hash_each(ImageSet(Large(), max_pixels=200_000_000))) == 1
