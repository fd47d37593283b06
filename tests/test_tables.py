"""Tables of features under accidents: damaged and foreign files, kills, full disks."""

import errno
import os
import random
import shutil
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from processes import Process

from clipadapt.clip import tables as module
from clipadapt.clip.tables import KEY, FeatureTable

DIM = 8


def some_rows(count, seed=0, dtype=np.float32):
    """Keys and features, the same for the same seed."""
    rng = np.random.default_rng(seed)
    keys = [rng.bytes(KEY) for _ in range(count)]
    return keys, rng.standard_normal((count, DIM)).astype(dtype)


def make(path, count=60, appends=4, dtype="float32"):
    """A table with some rows, made in several appends, and those rows."""
    table = FeatureTable(path, DIM, dtype, {"facts": "a toy"})
    keys, features = some_rows(count, dtype=dtype)
    for part in np.array_split(np.arange(count), appends):
        table.append([keys[i] for i in part], features[part])
    return table, keys, features


def check_right(table, keys, features):
    """Whether each row was found; those that were are bit for bit what they were."""
    read, found = table.read(keys)
    assert np.array_equal(read[found], features[found]) and not read[~found].any()
    return found


def check_mended(table, keys, features):
    """Whatever happened to it, the table is whole after what the store does."""
    table.damaged = False
    found = check_right(table, keys, features)
    if table.damaged:
        table.repair()
    missing = np.flatnonzero(~found)
    if len(missing):
        table.append([keys[i] for i in missing], features[missing])
    assert check_right(table, keys, features).all()
    table.verify()
    assert table.verify() == (len(keys), 0) and not table.damaged
    assert check_right(table, keys, features).all()


# ---- what a table does ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_keys_in_any_order_against_a_dict(tmp_path, dtype):
    table, known = FeatureTable(tmp_path / "table.lance", DIM, dtype), {}
    dice = random.Random(0)
    for step in range(12):
        keys, features = some_rows(dice.choice([1, 7, 40]), step % 5, dtype)
        table.append(keys, features + dtype_step(dtype, step))
        known.update(zip(keys, features + dtype_step(dtype, step)))
        if step == 5:
            table.repair()
        if step == 8:
            table.compact(keep=timedelta(0))
        asked = dice.choices([*known, b"?" * KEY, b"\0" * KEY], k=dice.choice([3, 200]))
        read, found = table.read(asked)
        assert found.tolist() == [key in known for key in asked]
        nothing = np.zeros(DIM, dtype)
        assert np.array_equal(read, [known.get(key, nothing) for key in asked])
    assert read.dtype == dtype and not table.damaged


def dtype_step(dtype, step):
    return np.asarray(step, dtype)


def test_keys_that_end_in_zeros_are_keys(tmp_path):
    """NumPy drops zeros at the end of bytes."""
    table, keys = FeatureTable(tmp_path / "table.lance", DIM), [b"a" + b"\0" * 15]
    table.append(keys, np.ones((1, DIM)))
    table.repair()
    read, found = table.read([*keys, b"\0" * KEY])
    assert found.tolist() == [True, False] and read.sum() == DIM


def test_what_is_wanted_whole_is_scanned_and_little_is_taken(tmp_path, monkeypatch):
    table, keys, features = make(tmp_path / "table.lance", appends=1)
    taken, original = [], lance.fragment.LanceFragment.take

    def take(fragment, rows, **options):
        taken.extend(rows)
        return original(fragment, rows, **options)

    monkeypatch.setattr(lance.fragment.LanceFragment, "take", take)
    for asked in (keys, keys[::-1], keys[:40], [*keys, b"?" * KEY]):
        found = table.read(asked)[1]
        assert found.sum() == len({*asked} & {*keys}) and not taken
    assert np.array_equal(table.read(keys[7:9])[0], features[7:9]) and taken == [7, 8]


def test_rows_with_sums_of_another_kind_are_no_rows(tmp_path, monkeypatch):
    """For example of a version that reckoned otherwise."""
    monkeypatch.setattr(module, "_checksums", lambda keys, _: np.zeros(len(keys), "u8"))
    table, keys, features = make(tmp_path / "table.lance")
    monkeypatch.undo()
    assert not table.read(keys)[1].any()
    table.append(keys[:5], features[:5])
    assert check_right(table, keys, features).sum() == 5


def test_many_rows_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3 * DIM * 4)
    table, keys, features = make(tmp_path / "table.lance")
    for asked in (keys, keys[::-1], keys[::7], keys[3:4]):
        expected = [features[keys.index(key)] for key in asked]
        assert np.array_equal(table.read(asked)[0], expected)
    assert table.repair() == 60 and check_right(table, keys, features).all()


def test_a_repaired_table_says_of_itself_what_it_did(tmp_path):
    table, keys, features = make(tmp_path / "table.lance")
    table.repair()
    same = FeatureTable.at(table.path)
    assert (same.dim, same.dtype, same.schema.metadata) == (
        DIM,
        np.float32,
        {b"facts": b"a toy"},
    )
    assert check_right(same, keys, features).all() and len(same) == 60


def test_what_killed_appends_leave_is_swept_by_compacting(tmp_path):
    table, keys, features = make(tmp_path / "table.lance")
    (table.path / "data" / "left over.lance").write_bytes(b"half a fil")
    assert check_right(table, keys, features).all() and not table.damaged
    table.compact(keep=timedelta(0))
    assert len(list(table.path.glob("data/*"))) == 1
    assert check_right(table, keys, features).all()


# ---- accidents -----------------------------------------------------------------------


def harm(path: Path, dice: random.Random) -> str:
    """Something that happens to a file on a disk."""
    data = bytearray(path.read_bytes())
    start, kind = dice.randrange(len(data)), dice.choice(KINDS)
    if kind == "flipped":
        for _ in range(dice.choice([1, 1, 5])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    elif kind == "noise":
        data = dice.randbytes(len(data))
    elif kind == "zeros":
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes({"cut off": data[:start], "emptied": b""}.get(kind, data))
    if kind == "removed":
        path.unlink()
    return kind


KINDS = ["flipped", "cut off", "emptied", "removed", "noise", "zeros"]


def test_accidents_never_give_a_wrong_row_and_all_are_mended(tmp_path):
    """100 of them, in any file of the table; every fourth in several files."""
    whole, keys, features = make(tmp_path / "whole.lance")
    lost, seen = 0, set()
    for seed in range(100):
        dice = random.Random(seed)
        table = FeatureTable(tmp_path / "table.lance", DIM)
        shutil.copytree(whole.path, table.path)
        files = sorted(path for path in table.path.rglob("*") if path.is_file())
        for path in dice.sample(files, 1 if seed % 4 else 3):
            seen.add((path.parent.name, harm(path, dice)))
        lost += not check_right(table, keys, features).all()
        check_mended(table, keys, features)
        shutil.rmtree(table.path)
    assert lost > 25 and len(seen) == 3 * len(KINDS)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.lance"]


def foreign_table(path):
    lance.write_dataset(pa.table({"word": ["not", "ours"]}), str(path))


def another_table(path):
    FeatureTable(path, DIM + 1).append([b"k" * KEY], np.ones((1, DIM + 1)))


def folder_of_notes(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def manifest_of_nonsense(path):
    (path / "_versions").mkdir(parents=True)
    (path / "_versions" / f"{2**64 - 2}.manifest").write_bytes(b"LANC" * 99)


def huge_footer(path):
    """A file that says of itself that it is larger than any memory."""
    make(path)
    for file in path.glob("data/*.lance"):
        data = file.read_bytes()
        file.write_bytes(data[:-40] + b"\xff" * 32 + data[-8:])


FOREIGN = {
    "a file": lambda path: path.write_text("a file"),
    "an empty file": lambda path: path.touch(),
    "an empty folder": Path.mkdir,
    "a folder of notes": folder_of_notes,
    "no table behind a link": lambda path: path.symlink_to("nowhere"),
    "a foreign table": foreign_table,
    "a table of wider rows": another_table,
    "a manifest of nonsense": manifest_of_nonsense,
    "huge sizes": huge_footer,
    "a NumPy array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + b"(" * 300),
}


@pytest.mark.parametrize("put", FOREIGN.values(), ids=FOREIGN)
def test_whatever_lies_in_its_place_is_no_row_and_goes(tmp_path, put):
    path, (keys, features) = tmp_path / "table.lance", some_rows(60)
    put(path)
    assert not FeatureTable(path, DIM).read(keys)[1].any()
    check_mended(FeatureTable(path, DIM), keys, features)
    assert [path.name for path in tmp_path.iterdir()] == ["table.lance"]


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder_of_notes(elsewhere)
    (tmp_path / "table.lance").symlink_to(elsewhere)
    check_mended(FeatureTable(tmp_path / "table.lance", DIM), *some_rows(60))
    assert (elsewhere / "notes.txt").read_text() == "mine"
    assert len(list(elsewhere.iterdir())) == 1


def test_damage_that_only_compacting_meets_is_repaired(tmp_path):
    table, keys, features = make(tmp_path / "table.lance")
    file = sorted(table.path.glob("data/*"))[0]
    file.write_bytes(file.read_bytes()[:100])
    table.compact()
    assert len(table) == 45 and table.verify() == (45, 0)
    check_mended(table, keys, features)


def test_a_panic_is_damage_and_an_interruption_is_not(tmp_path, monkeypatch):
    """A panic of Rust arrives as a PanicException, which is no Exception."""
    table, keys, _ = make(tmp_path / "table.lance")
    panic = type("PanicException", (BaseException,), {})

    def fail_with(error):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(lance, "dataset", fail)

    fail_with(panic("the offset + length of the sliced Buffer cannot exceed"))
    assert not table.read(keys)[1].any() and table.damaged
    assert FeatureTable.at(table.path).damaged
    handles = OSError("LanceError(IO): Too many open files (os error 24)")
    for error in (KeyboardInterrupt(), MemoryError(), handles):
        fail_with(error)
        with pytest.raises(type(error)):
            FeatureTable(table.path, DIM).read(keys)
        with pytest.raises(type(error)):
            FeatureTable.at(table.path)


# ---- processes and threads -----------------------------------------------------------


def write_for_ever(path, ready):
    """What a process of its own does: it appends, repairs and compacts."""
    table, (keys, features) = FeatureTable(path, DIM), some_rows(600)
    while True:
        for start in range(0, 600, 50):
            table.append(keys[start : start + 50], features[start : start + 50])
            table.repair() if start % 100 else table.compact(keep=timedelta(0))
            if start == 100:
                ready.touch()


def test_killed_at_any_moment_no_row_is_wrong(tmp_path):
    """What stood in the table before the kill stands there after it."""
    path, (keys, features) = tmp_path / "tables" / "t.lance", some_rows(600)
    for seed in range(5):
        ready = tmp_path / f"ready {seed}"
        process = Process(tmp_path, write_for_ever, path, ready)
        end = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < end
            time.sleep(0.002)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        process.kill()
        found = check_right(FeatureTable(path, DIM), keys, features)
        assert found[:100].all(), "an accident costs what is being appended"
    FeatureTable(path, DIM).repair()
    assert [path.name for path in path.parent.iterdir()] == ["t.lance"]


def test_a_reader_beside_repairs_finds_right_rows_or_none(tmp_path):
    table, keys, features = make(tmp_path / "table.lance")
    done = threading.Event()

    def repair():
        mine = FeatureTable(table.path, DIM)
        for _ in range(15):
            mine.repair()
        done.set()

    other = threading.Thread(target=repair)
    other.start()
    while not done.is_set():
        check_right(table, keys, features)
    other.join()
    assert check_right(FeatureTable(table.path, DIM), keys, features).all()


# ---- disks ---------------------------------------------------------------------------


def refuse(number, words):
    def write(*arguments, **options):
        raise OSError(f"LanceError(IO): {words} (os error {number}), src/writer.rs:254")

    return write


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.EFBIG, "it would be larger than files may be here"),
    ],
)
def test_a_disk_that_refuses_leaves_the_table_as_it_was(
    tmp_path, monkeypatch, number, words
):
    table, keys, features = make(tmp_path / "table.lance")
    monkeypatch.setattr(lance, "write_dataset", refuse(number, os.strerror(number)))
    for act in (lambda: table.append(*some_rows(5, seed=1)), table.repair):
        with pytest.raises(OSError, match=f"{tmp_path} cannot.*: {words}") as said:
            act()
        assert said.value.errno == number and "Lance" not in str(said.value)
    monkeypatch.undo()
    assert check_right(table, keys, features).all() and len(table) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["table.lance"]


def append_where_files_are_small(path):
    """What a process of its own does: no file may have more than 20,000 bytes."""
    import resource

    table, (keys, features) = FeatureTable(path, DIM), some_rows(5000)
    table.append(keys[:10], features[:10])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for _ in range(2):
        try:
            table.append(keys, features)
        except OSError as error:
            print(error)
    print(table.read(keys)[1].sum(), table.verify())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on files")
def test_an_append_for_which_there_is_no_room(tmp_path):
    place = tmp_path / "t.lance"
    said, _ = Process(tmp_path, append_where_files_are_small, place).finish()
    first, second, last = said.splitlines()
    assert first == second and "larger than files may be here" in first
    assert last == "10 (10, 0)"
