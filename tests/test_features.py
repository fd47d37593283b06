"""The feature store under accidents: killed and competing processes, damaged and full
disks, and keys that must or must not change."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from inspect import isfunction
from pathlib import Path

import lance
import numpy as np
import pytest
import torch
from filelock import FileLock
from open_clip import image_transform
from open_clip.transformer import QuickGELU
from PIL import Image
from processes import Process
from torchvision.transforms import CenterCrop, Compose, Resize

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
from clipadapt.clip.features import clip_facts, hash_each, readable
from clipadapt.clip.tables import KEY, FeatureTable
from clipadapt.images.files import _host
from clipadapt.images.views import strong_view, weak_view
from clipadapt.learning.testing import check_adapter

COUNT, BLOCK = 300, 32


class Slow(CLIP):
    """A CLIP that takes its time, so that there is time to kill it."""

    count, pause = 0, 0.0

    def encode_batches(self, images, batch_size=64, **options):
        for batch in super().encode_batches(images, batch_size, **options):
            time.sleep(self.pause)
            self.count += len(batch)
            yield batch


def encode_slowly(location, pause, ready, go):
    """What a process of its own does: it encodes the first 300 images."""
    torch.set_num_threads(1)
    clip = load_clip(device="cpu")
    clip = Slow(clip.model, clip.preprocess, clip.tokenizer)
    clip.pause = pause
    images = digits("train").subset(range(COUNT))
    ready.touch()
    wait(go.exists)
    features = FeatureStore(location, block_size=BLOCK).encode(clip, images)
    print(clip.count, sha256(features))


def sha256(features):
    return hashlib.sha256(features.tobytes()).hexdigest()


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def rows(location):
    """How many rows a store has."""
    return sum(entry["rows"] for entry in FeatureStore(location).entries())


def files(location):
    """The files that the tables of a store consist of."""
    return sorted(path for path in Path(location).glob("*.lance/*/*") if path.is_file())


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


@pytest.fixture(scope="module")
def whole(clip, images):
    """The features of a store that nothing happened to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = [
        clip.encode_image(images.subset(range(start, min(start + BLOCK, COUNT))))
        for start in range(0, COUNT, BLOCK)
    ]
    torch.set_num_threads(threads)
    return torch.cat(batches).numpy()


class Counting(CLIP):
    """A CLIP that counts the images it encodes, views of an image as one."""

    def __init__(self, clip):
        super().__init__(clip.model, clip.preprocess, clip.tokenizer)
        self.count = 0

    def encode_batches(self, images, batch_size=64, **options):
        for batch in super().encode_batches(images, batch_size, **options):
            self.count += len(batch)
            yield batch


class Interrupted(Counting):
    """A CLIP whose user loses patience at once."""

    def encode_batches(self, images, batch_size=64, **options):
        raise KeyboardInterrupt


def encoded(clip, location, images, verify=False, **options):
    """The features of images, and how many of them had to be encoded."""
    counting = Counting(clip)
    store = FeatureStore(location, block_size=BLOCK, verify=verify)
    features = store.encode(counting, images, **options)
    return features, counting.count


def count_of(*arguments, **options):
    """How many images were encoded."""
    return encoded(*arguments, **options)[1]


def save_images(images, folder, ending="png", age=60):
    """Files of some images, last changed a while ago."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(len(images)):
        paths.append(folder / f"{i:02}.{ending}")
        images[i][0].save(paths[-1])
        let_rest(paths[-1], age)
    return paths


def let_rest(path, age=60):
    """As if a file had been changed a while ago."""
    moment = time.time() - age
    os.utime(path, (moment, moment))


# ---- kills and competition -----------------------------------------------------------


def test_a_killed_process_is_resumed_bit_for_bit(whole, tmp_path):
    """Killed three times on the same store, each time a little later; the last process
    finishes the rest."""
    go, store = tmp_path / "go", tmp_path / "store"
    go.touch()
    for after in (-1, BLOCK, 4 * BLOCK):
        given = store, 0.05, tmp_path / f"ready {after}", go
        process = Process(tmp_path, encode_slowly, *given)
        wait(given[2].exists)
        wait(lambda: rows(store) > after)
        process.kill()
        assert after < rows(store) < COUNT and rows(store) % BLOCK == 0
    done = rows(store)
    process = Process(tmp_path, encode_slowly, store, 0, tmp_path / "ready", go)
    count, digest = process.finish()[0].split()
    assert int(count) == COUNT - done and rows(store) == COUNT
    assert digest == sha256(whole)
    assert [*FeatureStore(store).verify().values()] == [(COUNT, 0)]


def test_two_processes_share_the_work_of_one(whole, tmp_path):
    ready = [tmp_path / f"ready {i}" for i in range(2)]
    store, go = tmp_path / "store", tmp_path / "go"
    processes = [
        Process(tmp_path, encode_slowly, store, 0.25, mine, go) for mine in ready
    ]
    wait(lambda: all(map(Path.exists, ready)))
    go.touch()
    outputs = [process.finish() for process in processes]
    answers = [output.split() for output, _ in outputs]
    assert sum("waiting for it" in errors for _, errors in outputs) == 1, outputs
    assert sorted(int(count) for count, _ in answers) == [0, COUNT], (
        "one encodes, the other waits"
    )
    assert {digest for _, digest in answers} == {sha256(whole)}
    assert rows(tmp_path / "store") == COUNT


def clear_again_and_again(location, ready, done):
    """What a process of its own does, until it is told to end."""
    store = FeatureStore(location)
    ready.touch()
    while not done.exists():
        store.clear(), store.size(), store.entries()


def test_what_another_finishes_before_we_have_the_lock_is_not_made_again(
    clip, images, tmp_path, monkeypatch
):
    few, original, done = images.subset(range(20)), module._locked, []

    def late(path):
        if not done:
            done.append(path)
            assert count_of(clip, tmp_path, few) == 20
        return original(path)

    monkeypatch.setattr(module, "_locked", late)
    assert count_of(clip, tmp_path, few) == 0 and len(done) == 1


def test_encoding_beside_a_process_that_clears(clip, images, tmp_path):
    """The features are there and right, also after somebody has removed their file."""
    ready, done = tmp_path / "ready", tmp_path / "done"
    few = save_images(images.subset(range(8)), tmp_path / "photos")
    expected = clip.encode_image(few).numpy()
    given = tmp_path / "store", ready, done
    process = Process(tmp_path, clear_again_and_again, *given)
    wait(ready.exists)
    store = FeatureStore(tmp_path / "store", block_size=3)
    kept = [store.encode(clip, few) for _ in range(20)]
    done.touch()
    assert process.finish() == ("", "")
    assert all(np.allclose(features, expected, atol=1e-5) for features in kept)


def test_a_lock_that_another_holds_costs_only_the_memory_of_files(
    clip, images, tmp_path
):
    """Nobody waits to remember which files were read."""
    paths = save_images(images.subset(range(5)), tmp_path / "photos")
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store" / "files.lance.lock"):
        assert count_of(clip, tmp_path / "store", paths) == 5
    assert not (tmp_path / "store" / "files.lance").exists()


# ---- damage --------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0.01, 0.5, 0.999])
def test_a_flipped_bit_is_found_and_costs_a_block_at_most(
    clip, images, whole, tmp_path, position
):
    count_of(clip, tmp_path, images)
    path = max(files(tmp_path), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)
    features, count = encoded(clip, tmp_path, images)
    assert count <= BLOCK and np.allclose(features, whole, atol=1e-6)
    if position == 0.5:
        assert count == 1, "of a row in the middle, that row"
    FeatureStore(tmp_path).verify()
    assert count_of(clip, tmp_path, images) == 0


@pytest.mark.parametrize("content", [b"", None, b"\x93NUMPY", b"[]", b"\xff" * 4000])
def test_files_that_are_damaged_or_gone_are_made_again(clip, images, tmp_path, content):
    """Each file of the table in turn."""
    few = images.subset(range(40))
    first = encoded(clip, tmp_path, few)[0]
    for number in range(len(files(tmp_path))):
        path = files(tmp_path)[number % len(files(tmp_path))]
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        FeatureStore(tmp_path).entries(), FeatureStore(tmp_path).size()
        features = encoded(clip, tmp_path, few)[0]
        assert np.allclose(features, first, atol=1e-6)
        assert count_of(clip, tmp_path, few) == 0


def write_facts(path, facts):
    """A table that says of itself what you like."""
    FeatureTable(path, 4, facts=facts).append([b"k" * KEY], np.ones((1, 4)))


IN_ITS_PLACE = {
    "a file": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "a folder": Path.mkdir,
    "a dead link": lambda path: path.symlink_to("nowhere"),
    "no facts": lambda path: write_facts(path, {}),
    "facts of nothing": lambda path: write_facts(path, {"facts": "[" * 9000}),
    "facts of a list": lambda path: write_facts(path, {"facts": "[1]"}),
    "facts of other things": lambda path: write_facts(path, {"facts": '{"name": 1}'}),
}


@pytest.mark.parametrize("put", IN_ITS_PLACE.values(), ids=IN_ITS_PLACE)
@pytest.mark.parametrize("whose", ["the model's", "the files'"])
def test_whatever_lies_in_the_place_of_a_table_is_replaced(
    clip, images, tmp_path, put, whose
):
    paths = save_images(images.subset(range(5)), tmp_path / "photos")
    store = FeatureStore(tmp_path / "store", block_size=BLOCK)
    store.location.mkdir()
    table = store.table(clip) if whose == "the model's" else store.files
    put(table.path)
    assert store.entries() == []
    features = store.encode(clip, paths)
    assert np.allclose(features, clip.encode_image(paths), atol=1e-6)
    assert len(store.entries()) == 1 and len(store.files) == 5
    put_again = FeatureStore(tmp_path / "store")
    assert list(put_again.verify().values()) == [(5, 0)]


def test_a_foreign_table_is_no_entry_and_clears_away(tmp_path):
    path = tmp_path / f"{'a' * 32}.lance"
    for put in IN_ITS_PLACE.values():
        put(path)
        store = FeatureStore(tmp_path)
        assert store.entries() == []
        store.compact()
        store.verify()
        store.clear()
        assert not os.path.lexists(path) and store.size() == 0


def test_drafts_of_killed_processes_are_counted_and_removed(clip, images, tmp_path):
    """They are left by a repair; every repair, and `clear`, sweeps them out."""
    few = images.subset(range(10))
    store = FeatureStore(tmp_path)
    count_of(clip, tmp_path, few)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    table = store.table(clip)
    draft = tmp_path / f".{table.path.name}.{_host()}-{dead.pid}-00000000.draft"
    for sweep in (table.repair, store.clear):
        before = store.size()
        draft.mkdir()
        (draft / "rows").write_bytes(bytes(1000))
        assert store.size() >= before + 1000
        sweep()
        assert not draft.exists()
    assert store.size() == 0


# ---- keys ----------------------------------------------------------------------------


def with_weights_changed():
    other = load_clip(device="cpu")
    other.model.visual.proj.data.mul_(1.001)
    return other


def with_another_activation():
    other = load_clip(device="cpu")
    for block in other.model.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    return other


MODELS = {
    "other weights": lambda clip: with_weights_changed(),
    "another activation": lambda clip: with_another_activation(),
    "another crop": lambda clip: CLIP(
        clip.model, Compose([CenterCrop(28), clip.preprocess]), clip.tokenizer
    ),
    "another precision": lambda clip: CLIP(
        clip.model, clip.preprocess, clip.tokenizer, precision="bf16"
    ),
    "files read in full": lambda clip: CLIP(
        clip.model, clip.preprocess, clip.tokenizer, exact=True
    ),
}
VIEWS = {
    "a weak view": {"view": "weak 0"},
    "a weak view that does not mirror": {"view": "weak 0", "flip": False},
    "another weak view": {"view": "weak 1"},
    "a strong view": {"view": "strong 0"},
}


def test_whatever_features_depend_on_changes_the_key(clip, images, tmp_path):
    images, store = images.subset(range(40)), FeatureStore(tmp_path)
    store.encode(clip, images)
    for number, (what, make) in enumerate(MODELS.items()):
        other = make(clip)
        features = store.encode(other, images)
        assert [entry["rows"] for entry in store.entries()] == [40] * (number + 2), what
        assert np.allclose(features, other.encode_image(images), atol=1e-5), what
    FeatureStore(tmp_path, dtype="float16").encode(clip, images)
    assert len(store.entries()) == len(MODELS) + 2
    for number, (what, options) in enumerate(VIEWS.items()):
        features = store.encode(clip, images, **options)
        views = {
            "weak 0": weak_view(32, options.get("flip", True)),
            "weak 1": weak_view(32),
            "strong 0": strong_view(32),
        }
        name = options["view"]
        seen = images.view(views[name], seed=int(name[-1]))
        assert np.allclose(features, clip.encode_image(seen), atol=1e-5), what
        assert rows(tmp_path) == 40 * (len(MODELS) + 2 + number + 1), what


class OurResize(Resize):
    """A kind of step of which nothing is known."""


def test_only_known_preprocessing_is_not_tried_many_times(clip, monkeypatch):
    seen, original = [], Resize.forward

    def forward(step, image):
        seen.append(image.size)
        return original(step, image)

    monkeypatch.setattr(Resize, "forward", forward)
    steps = clip.preprocess.transforms  # older OpenCLIPs turn to RGB by a function
    first, *others = [one for one in steps if not isfunction(one)]
    known = CLIP(clip.model, Compose([first, *others]), clip.tokenizer)
    ours = Compose([OurResize(first.size, first.interpolation), *others])
    own = CLIP(clip.model, ours, clip.tokenizer)
    assert module.hash_preprocessing(known) == module.hash_preprocessing(own)
    assert len(seen) == 3 + 26


def test_preprocessing_that_is_changed_in_place(images, tmp_path):
    clip, few = load_clip(device="cpu"), images.subset(range(20))
    before = encoded(clip, tmp_path, few)[0]
    clip.preprocess.transforms[0] = Resize(48)
    after, count = encoded(clip, tmp_path, few)
    assert count == 20 and not np.allclose(before, after, atol=1e-4)


def test_whatever_features_do_not_depend_on_keeps_the_key(clip, images, tmp_path):
    store, before = tmp_path / "store", tmp_path / "photos"
    paths = save_images(images.subset(range(40)), before)
    assert count_of(clip, store, ImageSet(paths)) == 40
    for i in range(40):
        paths[i].rename(before / f"renamed {i:02}.png")
    renamed = [str(before / f"renamed {i:02}.png") for i in range(40)]
    after = ImageSet(renamed, ["a", "b"], [0, 1] * 20)
    assert count_of(clip, store, after) == 0, "names of files and labels do not matter"
    again = load_clip(device="cpu")
    again.name = "another name"
    assert count_of(again, store, after) == 0, "the name of a model does not matter"
    features = encoded(clip, store, after)[0]
    for chosen in (range(39, -1, -1), range(7), [3, 3, 5]):
        some, count = encoded(clip, store, after.subset(chosen))
        assert count == 0, "the order and the others do not matter"
        assert np.array_equal(some, features[list(chosen)])
    views = after.view(weak_view(32), 5)
    assert count_of(clip, store, views) == 40
    assert count_of(clip, store, after, view="weak 5") == 0
    assert count_of(clip, store, views.subset(range(9, 20))) == 0


def test_a_folder_that_grows_costs_what_is_new(clip, images, tmp_path):
    """In the views, too: those of a file draw by its name, not by its position."""
    store, folder = tmp_path / "store", tmp_path / "photos"
    save_images(images.subset(range(20)), folder)
    for view in ("eval", "weak 0"):
        assert count_of(clip, store, ImageSet.from_folder(folder), view=view) == 20
    images[20][0].save(folder / "00 before all others.png")
    for view in ("eval", "weak 0"):
        grown = ImageSet.from_folder(folder)
        features, count = encoded(clip, store, grown, view=view)
        assert count == 1
        seen = grown if view == "eval" else grown.view(weak_view(32), 0)
        assert np.allclose(features, clip.encode_image(seen), atol=1e-6)


def test_the_same_image_is_encoded_once(clip, images, tmp_path):
    """In one set, and in another folder under another name."""
    paths = save_images(images.subset(range(10)), tmp_path / "photos")
    shutil.copytree(tmp_path / "photos", tmp_path / "copies")
    copies = [tmp_path / "copies" / path.name for path in paths]
    features, count = encoded(clip, tmp_path / "store", [*paths, *copies])
    assert count == 10 == rows(tmp_path / "store")
    assert np.array_equal(features[:10], features[10:])
    assert count_of(clip, tmp_path / "store", copies) == 0


def test_views_of_an_image_are_made_of_the_same_pixels(clip, images, tmp_path):
    """Each image is decoded once, and the views are those that are encoded alone."""
    images = images.subset(range(40))
    views = [(None, 0), (weak_view(32), 0), (strong_view(32), 3)]
    store = FeatureStore(tmp_path, block_size=BLOCK)
    features = store.encode_views(clip, images, views)
    assert features.shape == (3, 40, clip.embed_dim) and rows(tmp_path) == 120
    for view, (transform, seed) in zip(features, views):
        seen = images if transform is None else images.view(transform, seed)
        assert np.allclose(view, clip.encode_image(seen), atol=1e-6)
        assert count_of(clip, tmp_path, seen) == 0
    again = store.encode_views(Interrupted(clip), images, views[::-1])
    assert np.array_equal(again[::-1], features)


# ---- files that are known ------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read to be hashed."""
    seen, original = [], Path.read_bytes

    def read_bytes(path):
        seen.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return seen


def names_read(read, clip, location, paths, **options):
    read.clear()
    count = count_of(clip, location, paths, **options)
    return sorted(read), count


def test_a_file_is_read_once_in_its_life(clip, images, tmp_path, read):
    store = tmp_path / "store"
    paths = save_images(images.subset(range(5)), tmp_path / "photos")
    names = [path.name for path in paths]
    assert names_read(read, clip, store, paths) == (names, 5)
    assert names_read(read, clip, store, paths) == ([], 0)
    assert names_read(read, clip, store, [str(path) for path in paths]) == ([], 0)
    assert names_read(read, clip, store, paths, verify=True) == (names, 0)
    let_rest(paths[1], age=30)
    assert names_read(read, clip, store, paths) == (["01.png"], 0), "another time"
    images[7][0].save(paths[2])
    let_rest(paths[2], age=30)
    assert names_read(read, clip, store, paths)[0] == ["02.png"], "another content"
    assert names_read(read, clip, store, paths) == ([], 0)


def test_a_file_that_was_just_changed_is_not_remembered(clip, images, tmp_path, read):
    """It may change again within a tick of the clock; one from the future, too."""
    paths = save_images(images.subset(range(3)), tmp_path / "photos")
    let_rest(paths[0], age=0)
    let_rest(paths[1], age=-1000)
    for _ in range(2):
        names_read(read, clip, tmp_path / "store", paths)
    assert set(read) == {"00.png", "01.png"}


def test_a_change_within_a_tick_of_the_clock_is_seen_after_a_long_pass(
    images, tmp_path, monkeypatch
):
    """What counts is how long a file had rested when it was hashed, not afterwards."""
    table, path = module.file_table(tmp_path), tmp_path / "photo.bmp"
    images[0][0].save(path)
    let_rest(path, age=0)
    state, now = path.stat(), time.time_ns()
    memory = module._Files(ImageSet([path]), table)
    module._hash_all(ImageSet([path]), memory, strict=True)
    images[1][0].save(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    monkeypatch.setattr(module.time, "time_ns", lambda: now + 60 * 10**9)
    memory.remember()
    assert path.stat().st_size == state.st_size
    assert not memory.is_unchanged(path) and len(table) == 0


def test_verify_finds_a_change_that_size_and_time_hide(clip, images, tmp_path):
    paths = [tmp_path / "photo.bmp"]
    images[0][0].save(paths[0])
    let_rest(paths[0])
    state = paths[0].stat()
    before = encoded(clip, tmp_path / "store", paths)[0]
    images[1][0].save(paths[0])
    os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert paths[0].stat().st_size == state.st_size
    assert np.array_equal(encoded(clip, tmp_path / "store", paths)[0], before)
    after, count = encoded(clip, tmp_path / "store", paths, verify=True)
    assert count == 1
    assert np.allclose(after, clip.encode_image(paths), atol=1e-6)


def test_what_is_remembered_of_files_stays_in_few_pieces(clip, images, tmp_path):
    """One photograph more, forty times."""
    paths = save_images(images.subset(range(40)), tmp_path / "photos")
    for count in range(1, 41):
        hash_each(ImageSet(paths[:count]), module.file_table(tmp_path))
    table = module.file_table(tmp_path)
    assert len(table) == 40 and len(table._fragments()) < 32


# ---- views ---------------------------------------------------------------------------


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
            before = rows(tmp_path)
            StoredCLIP(of, store).encode_image(seen)
            assert rows(tmp_path) == before, "a view is found by its name"
    assert [entry["rows"] for entry in store.entries()] == [12, 12]


def test_a_view_without_a_name_is_known_by_its_pixels(clip, images, tmp_path):
    images = images.subset(range(20))

    def turned(degrees):
        return images.view(lambda image, rng: image.rotate(degrees))

    assert count_of(clip, tmp_path, turned(90)) == 20
    assert count_of(clip, tmp_path, turned(180)) == 20
    assert count_of(clip, tmp_path, turned(45 + 45)) == 0


# ---- disks ---------------------------------------------------------------------------


def encode_where_files_are_small(location):
    """What a process of its own does: no file may have more than 20,000 bytes."""
    import resource

    clip = load_clip(device="cpu")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        FeatureStore(location).encode(clip, digits("train"))
    except OSError as error:
        print(error)


@pytest.mark.skipif(
    sys.platform == "win32", reason="needs a limit on the size of files"
)
def test_a_disk_without_room_is_one_sentence(tmp_path):
    place = tmp_path / "store"
    said, _ = Process(tmp_path, encode_where_files_are_small, place).finish()
    sentence = (
        f"the feature store {place} cannot be written: it would be larger than files "
        "may be here. "
    )
    assert said.startswith(sentence) and "choose another place" in said
    assert said.count("\n") == 1 and rows(place) == 0


def refuse_after(monkeypatch, writes, number):
    """A disk on which nothing can be written after some writes of Lance's."""
    original, calls = lance.write_dataset, []

    def write(*arguments, **options):
        calls.append(arguments)
        if len(calls) > writes:
            raise OSError(f"LanceError(IO): no (os error {number}), src/writer.rs:254")
        return original(*arguments, **options)

    monkeypatch.setattr(lance, "write_dataset", write)


def test_a_disk_that_fills_up_keeps_what_was_finished(
    clip, images, tmp_path, monkeypatch
):
    refuse_after(monkeypatch, 3, errno.ENOSPC)
    with pytest.raises(
        OSError,
        match="the feature store .* cannot be written: the disk is full. What was "
        "finished before is kept",
    ):
        encoded(clip, tmp_path, images)
    monkeypatch.undo()
    assert count_of(clip, tmp_path, images) == COUNT - 3 * BLOCK


def test_a_place_that_cannot_be_written(clip, images, tmp_path, monkeypatch):
    few = images.subset(range(3))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(
            OSError,
            match="the feature store .* cannot be written: "
            "a part of this path is a file",
        ):
            FeatureStore(place).encode(clip, few)
    with pytest.raises(OSError, match="cannot be written: the name is too long"):
        FeatureStore(tmp_path / ("n" * 300)).encode(clip, few)
    make_read_only(monkeypatch)
    with pytest.raises(OSError, match="cannot be written: the disk is read-only"):
        FeatureStore(tmp_path / "store").encode(clip, few)


def make_read_only(monkeypatch):
    """No folder can be made, no lock be taken, no table be written."""

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    refuse_after(monkeypatch, 0, errno.EROFS)


def test_a_complete_store_is_read_without_writing(clip, images, tmp_path, monkeypatch):
    """Even where the files that it is asked for are not remembered."""
    paths = save_images(images.subset(range(10)), tmp_path / "photos")
    store = tmp_path / "store"
    assert count_of(clip, store, images) == COUNT and count_of(clip, store, paths) == 10
    shutil.rmtree(store / "files.lance")
    before = {path: path.stat().st_mtime_ns for path in files(store)}
    make_read_only(monkeypatch)
    assert count_of(clip, store, images) == 0 == count_of(clip, store, paths)
    assert {path: path.stat().st_mtime_ns for path in files(store)} == before
    assert len(FeatureStore(store).entries()) == 1


class Wide(torch.nn.Module):
    """An image encoder that costs nothing and gives 8,192 numbers."""

    def __init__(self, visual):
        super().__init__()
        self.visual = visual
        self.weight = torch.nn.Parameter(torch.randn(8192, 1))

    def encode_image(self, pixels):
        return pixels.mean((1, 2, 3))[:, None] * self.weight.T

    def encode_text(self, tokens):
        return torch.ones(len(tokens), len(self.weight))


class Drawn(Sequence):
    """4,000 small images that exist only while somebody looks at them."""

    def __len__(self):
        return 4000

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)


class Watch(threading.Thread):
    """The most memory that this process had for itself, in MB.

    Pages of mapped files do not count: they go back when others need the room.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.ended = self.now(), False
        self.start()

    def now(self):
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s*(\d+)", status)[1]) / 1024

    def run(self):
        while not self.ended:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def grow(call):
    """By how many MB the process grows in a call, more than by the result."""
    watch = Watch()
    before = watch.now()
    features = call()
    watch.ended = True
    return max(watch.peak, watch.now()) - before - features.nbytes / 2**20


def encode_and_read_much(location):
    """What a process of its own does."""
    torch.set_num_threads(1)
    clip, images = load_clip(device="cpu"), ImageSet(Drawn())
    clip = CLIP(Wide(clip.model.visual), clip.preprocess, clip.tokenizer)
    store = FeatureStore(location, block_size=256)
    store.encode(clip, images.subset(range(600)))
    print(*(grow(lambda: store.encode(clip, images)) for _ in range(2)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems say it elsewhere")
def test_memory_is_that_of_the_result(tmp_path):
    """125 MB of features are encoded, and read; beyond them, the process may grow by
    what a few blocks need, which is less than a second copy."""
    printed, _ = Process(tmp_path, encode_and_read_much, tmp_path / "store").finish()
    encoding, reading = map(float, printed.split())
    assert encoding < 100 and reading < 80, (encoding, reading)


# ---- images and models that change, or cannot be read --------------------------------


def test_a_broken_image_costs_only_its_own_block(clip, images, tmp_path):
    pictures = [image for image, _ in images]
    path = tmp_path / "broken.png"
    path.write_bytes(b"nothing")
    mixed = ImageSet([*pictures[:100], path, *pictures[100:200]])
    with pytest.raises(ValueError, match="broken.png: cannot be read"):
        encoded(clip, tmp_path / "store", mixed)
    assert rows(tmp_path / "store") == 3 * BLOCK


def test_images_that_cannot_be_read_are_named_once_each(clip, images, tmp_path):
    """Damaged, of the same content, a folder, nowhere: all others are kept."""
    paths = save_images(images.subset(range(6)), tmp_path / "photos")
    for number in (1, 3):
        paths[number].write_bytes(b"no image")
    paths[4].unlink()
    paths[5].unlink()
    paths[5].mkdir()
    store = FeatureStore(tmp_path / "store")
    for view in ((None, 0), (weak_view(32), 1), (lambda image, rng: image, 0)):
        damaged = {}
        [features] = store.encode_views(clip, paths, [view], damaged)
        assert sorted(damaged) == [1, 3, 4, 5]
        assert all(paths[i].name in damaged[i] for i in damaged)
        assert np.isnan(features[[*damaged]]).all()
        assert np.isfinite(features[[0, 2]]).all()
    damaged = {}
    views = [(None, 0), (weak_view(32), 2)]
    features = store.encode_views(clip, paths, views, damaged)
    assert sorted(damaged) == [1, 3, 4, 5] and features.shape[:2] == (2, 6)
    assert "03.png" in damaged[3] and np.isnan(features[:, 3]).all()
    assert rows(tmp_path / "store") == 2 * 4
    with pytest.warns(UserWarning, match="4 of 6 images skipped") as said:
        sound = readable(StoredCLIP(clip, store), paths)
    assert len(sound) == 2 and len(said) == 1 and len(sound.skipped) == 4
    assert count_of(clip, tmp_path / "store", sound) == 0


def test_an_error_counts_images_in_the_whole_set(clip, images, tmp_path):
    """Of 90 images, 80 are there already; the model fails on a black one."""
    pixels = digits("train").images[:90].copy()
    pixels[88] = 0
    count_of(clip, tmp_path, ImageSet(pixels[:80]))

    class Blinded(Counting):
        def encode_views(self, *arguments, **options):
            raise ValueError("image 8 has features that are not finite")

        encode_batches = encode_views

    views = [(None, 0), (weak_view(32), 0)]
    for some in (views[:1], views):
        with pytest.raises(ValueError, match="^image 88 has features"):
            FeatureStore(tmp_path).encode_views(Blinded(clip), ImageSet(pixels), some)
        count_of(clip, tmp_path, ImageSet(pixels[:80]), view="weak 0")


def test_weights_that_an_optimiser_changes_in_place(images, tmp_path):
    clip, few = load_clip(device="cpu"), images.subset(range(20))
    before = encoded(clip, tmp_path, few)[0]
    parameter = clip.model.visual.proj.requires_grad_()
    optimiser = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    after, count = encoded(clip, tmp_path, few)
    assert count == 20 and not np.allclose(before, after, atol=1e-4)


def test_an_image_that_changes_while_it_is_encoded(clip, images, tmp_path):
    """Its block is not kept, also where the file had been at rest for long."""
    paths = save_images(images.subset(range(40)), tmp_path / "photos")

    class Meddling(Counting):
        def encode_batches(self, pictures, batch_size=64, **options):
            images[0][0].save(paths[35])
            return super().encode_batches(pictures, batch_size, **options)

    store = FeatureStore(tmp_path / "store", block_size=BLOCK)
    with pytest.raises(ValueError, match="35.png.* changed while"):
        store.encode(Meddling(clip), paths)
    assert rows(tmp_path / "store") == BLOCK
    assert np.allclose(store.encode(clip, paths), clip.encode_image(paths), atol=1e-6)


def test_images_that_cannot_be_hashed(clip, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere.png: no such image file"):
        FeatureStore(tmp_path / "store").encode(clip, [tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match="folder.png: cannot be read"):
        FeatureStore(tmp_path / "store").encode(clip, [tmp_path / "folder.png"])


def test_features_held_by_a_reader_survive_a_repair(clip, images, tmp_path):
    store = FeatureStore(tmp_path, block_size=BLOCK)
    held = store.encode(clip, images)
    expected = np.array(held)
    files(tmp_path)[-1].write_bytes(b"{}")
    store.verify()
    assert np.array_equal(held, expected)
    store.clear()
    with pytest.raises(KeyboardInterrupt):
        store.encode(Interrupted(clip), images)
    held += 1  # it is the reader's own
    assert np.array_equal(held, expected + 1)


def test_a_relative_location_stays_where_it_was(clip, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("store")
    store.encode(clip, images.subset(range(5)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(store.entries()) == 1 and store.location == tmp_path / "store"


def test_looking_at_a_store_that_is_not_there_makes_nothing(tmp_path):
    store = FeatureStore(tmp_path / "store")
    assert store.entries() == store.earlier() == [] and store.size() == 0
    assert store.verify() == {}
    store.clear(), store.clear_earlier(), store.compact()
    assert not (tmp_path / "store").exists()


def test_clear_leaves_foreign_files_alone(clip, images, tmp_path):
    encoded(clip, tmp_path, images)
    (tmp_path / "notes.txt").write_text("mine")
    for folder in ("photos", "a" * 32, "photos.lance"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("mine")
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    store = FeatureStore(tmp_path)
    assert store.size() > 0 and len(store.entries()) == 1
    store.clear()
    store.clear_earlier()
    assert store.size() == 0 and store.entries() == []
    assert len(list(tmp_path.rglob("notes.txt"))) == 4
    assert (tmp_path / "photos" / "manifest.json").exists()


# ---- what clipadapt 0.1 left ---------------------------------------------------------


@pytest.fixture
def earlier(tmp_path):
    """A location with an entry as clipadapt 0.1 wrote it."""
    folder = tmp_path / "store" / ("0123456789abcdef" * 2)
    folder.mkdir(parents=True)
    np.save(folder / "features.npy", np.ones((500_000, 4), np.float32))
    (folder / "manifest.json").write_text(json.dumps({"shard_size": 32}))
    (folder.parent / f"{folder.name}.lock").touch()
    return tmp_path / "store"


def test_an_earlier_store_is_left_alone_and_said_so_once(clip, images, earlier):
    before = {path: path.read_bytes() for path in earlier.glob("*/*")}
    few = images.subset(range(10))
    with pytest.warns(UserWarning, match="clipadapt 0.1") as said:
        count_of(clip, earlier, few)
    [message] = [str(warning.message) for warning in said]
    assert str(earlier) in message and " 8 MB" in message
    assert "`clipadapt store clear --earlier`" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_of(clip, earlier, few) == 0
        assert count_of(clip, earlier, images.subset(range(20))) == 10
        FeatureStore(earlier).clear()
    store = FeatureStore(earlier)
    assert [folder.name for folder in store.earlier()] == ["0123456789abcdef" * 2]
    assert {path: path.read_bytes() for path in earlier.glob("*/*")} == before


def test_an_earlier_store_is_removed_when_asked(clip, images, earlier):
    store, few = FeatureStore(earlier), images.subset(range(10))
    (earlier / ("b" * 32)).mkdir()
    store.clear_earlier()
    assert store.earlier() == []
    assert [path.name for path in earlier.iterdir()] == ["b" * 32]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_of(clip, earlier, few) == 10
    store.clear_earlier()
    assert len(store.entries()) == 1


# ---- stored CLIPs --------------------------------------------------------------------


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


def test_a_file_has_the_hash_that_0_1_0_gave_it(tmp_path):
    """Captions are found by it, and a large captioner takes hours to make them."""
    path = tmp_path / "zero.png"
    digits("train")[0][0].save(path)
    digest = hashlib.blake2b(digest_size=16)
    for part in (b"file", path.read_bytes()):
        digest.update(len(part).to_bytes(8, "little") + part)
    assert hash_each(ImageSet([path])) == [digest.digest()]


def test_who_resizes_is_part_of_the_facts(clip, monkeypatch):
    """Two processors that differ in it do not take each other's features."""
    for capability, resizer in (("DEFAULT", "Pillow"), ("AVX2", "PyTorch")):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda: capability
        )
        assert clip.resizer == clip_facts(clip)["resizing"] == resizer
    exact = CLIP(clip.model, clip.preprocess, clip.tokenizer, exact=True)
    assert exact.resizer == "Pillow"


def test_two_images_that_are_damaged_alike_are_named_each(clip, tmp_path):
    """One of them is looked at, and both are named as messages name files."""
    files = [tmp_path / name for name in ("a\nb.png", "c\u200bd.png")]
    for file in files:
        file.write_bytes(b"no image")
    wrong = [np.full((8, 8), 7.0), np.zeros((8, 8)), np.full((8, 8), 7.0)]
    for number, (images, names) in enumerate(
        [
            (files, ["a\\nb.png: ", "c\\u200bd.png: "]),
            (wrong, ["image 0: ", "image 2: "]),
        ]
    ):
        store, damaged = FeatureStore(tmp_path / f"store {number}"), {}
        store.encode_views(clip, images, [(None, 0)], damaged)
        assert len(damaged) == 2
        for name, reason in zip(names, damaged.values()):
            assert name in reason, reason
