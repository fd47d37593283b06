"""Captions under accidents: killed and competing processes, damaged caches, captioners
that fail in every way, and a tiny LLaVA."""

import json
import resource
import shutil
import sqlite3
import time
import warnings
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import program
from tiny_llava import save_tiny_llava

from clipadapt import ImageSet, digits
from clipadapt.clip import captions as module
from clipadapt.clip import features
from clipadapt.clip.captions import (
    AttributeCaptioner,
    CallableCaptioner,
    Captioner,
    TransformersCaptioner,
    caption,
    caption_groups,
    draw_groups,
    image_prompt,
    is_drawing,
    measure_attributes,
    tile,
)

COUNT, BATCH = 300, 10

# A process of its own that describes the first 300 images, slowly, and appends a line
# to a file for every batch it was asked about.
WORKER = f"""
import os, sys, time
from pathlib import Path
from clipadapt import digits
from clipadapt.clip.captions import CallableCaptioner, caption
def describe(images, prompts):
    time.sleep(float(sys.argv[2]))
    with open(sys.argv[3], "a") as log: log.write(f"{{len(images)}}\\n")
    return [f"{{os.getpid()}} {{hash(image.tobytes())}}" for image in images]
images = digits("train").subset(range({COUNT}))
Path(sys.argv[4]).touch()
while not Path(sys.argv[5]).exists(): time.sleep(0.01)
worker = CallableCaptioner(describe, "worker", batch_size={BATCH})
print("\\n".join(caption(worker, images, "?", sys.argv[1]).texts))
"""


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def asked(log):
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def kept(cache):
    with sqlite3.connect(cache) as connection:
        return connection.execute("SELECT count(*) FROM captions").fetchone()[0]


def plain(images, prompts):
    return [f"{image.width} pixels" for image in images]


@pytest.fixture
def some():
    return digits("train").subset(range(20))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "captions.sqlite"


def quietly(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return caption(*arguments)


def test_a_killed_run_goes_on_where_it_was_and_two_processes_share_one_cache(
    tmp_path, cache
):
    (tmp_path / "go").touch()
    first, other = (
        program(
            tmp_path,
            WORKER,
            cache,
            seconds,
            tmp_path / name,
            tmp_path / f"ready {name}",
            tmp_path / go,
        )
        for name, seconds, go in (("first", 0.02, "go"), ("other", 0.01, "together"))
    )
    wait(lambda: asked(tmp_path / "first") >= 80)
    first.kill()
    before, done = asked(tmp_path / "first"), kept(cache)
    assert before - BATCH <= done <= before < COUNT and done % BATCH == 0

    count = 0

    def describe(images, prompts):
        nonlocal count
        count += len(images)
        time.sleep(0.01)
        return ["here"] * len(images)

    images = digits("train").subset(range(COUNT))
    captioner = CallableCaptioner(describe, "worker", batch_size=BATCH)
    wait((tmp_path / "ready other").exists)
    (tmp_path / "together").touch()
    texts = caption(captioner, images, "?", cache).texts
    output, _ = other.finish()
    assert (
        texts == output.split("\n")[:-1] and "" not in texts and kept(cache) == COUNT
    )  # one answer each, whoever was first
    assert 0 < count <= COUNT - done and 0 < asked(tmp_path / "other") <= COUNT - done
    count = 0
    assert caption(captioner, images, "?", cache).texts == texts and count == 0


def test_an_interrupt_keeps_what_was_finished(some, cache):
    count = 0

    def describe(images, prompts):
        nonlocal count
        count += len(images)
        if count == 15:
            raise KeyboardInterrupt
        return plain(images, prompts)

    captioner = CallableCaptioner(describe, "plain", batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        caption(captioner, some, "?", cache)
    assert kept(cache) == 10
    assert caption(captioner, some, "?", cache).failures == [] and count == 25


def test_two_answers_for_one_image_become_one(some, cache):
    """While this process describes, another one, faster, has described the same
    image."""

    def slow(images, prompts):
        caption(
            CallableCaptioner(
                lambda images, prompts: ["first"] * len(images), "same name"
            ),
            some,
            "?",
            cache,
        )
        return ["second"] * len(images)

    assert set(
        caption(CallableCaptioner(slow, "same name"), some, "?", cache).texts
    ) == {"first"}


@pytest.mark.parametrize(
    "content",
    [
        b"this is not a database, though it is long enough to be one" * 100,
        b"SQLite format 3\0" + b"\xff" * 5000,
    ],
)
def test_a_file_that_is_no_cache_is_named(some, cache, content):
    cache.write_bytes(content)
    with pytest.raises(
        ValueError,
        match="damaged or no caption cache.*delete it, or choose another file",
    ):
        caption(AttributeCaptioner(), some, "?", cache)
    assert cache.read_bytes() == content


def test_a_damaged_cache_is_named(cache):
    images = digits("train").subset(range(300))
    texts = caption(
        CallableCaptioner(lambda images, prompts: ["word " * 70] * len(images), "long"),
        images,
        "?" * 200,
        cache,
    ).texts
    content = bytearray(cache.read_bytes())
    content[4096:] = np.random.default_rng(0).bytes(len(content) - 4096)
    cache.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no caption cache"):
        caption(CallableCaptioner(plain, "long"), images, "?" * 200, cache)
    cache.unlink()
    assert (
        len(texts) == 300
        and caption(CallableCaptioner(plain, "long"), images, "?", cache).failures == []
    )


def test_an_empty_file_is_a_fresh_cache(some, cache):
    cache.touch()
    assert (
        caption(CallableCaptioner(plain, "plain"), some, "?", cache).failures == []
        and kept(cache) > 0
    )


def test_other_places_that_cannot_be_a_cache(some, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "captions.sqlite"):
        with pytest.raises(
            OSError, match="cannot be used.*choose another file with cache="
        ):
            caption(AttributeCaptioner(), some, "?", place)
    with pytest.raises(ValueError, match="not True"):
        caption(AttributeCaptioner(), some, "?", True)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE captions (id INTEGER)",
        "CREATE TABLE customers (name TEXT)",
        "CREATE VIEW captions AS SELECT 1",
        module._TABLE.replace("text TEXT", "text INTEGER"),
        module._TABLE + "; CREATE TABLE customers (name TEXT)",
        module._TABLE
        + "; CREATE TRIGGER t AFTER INSERT ON captions BEGIN DELETE FROM captions; END",
    ],
)
def test_a_database_of_something_else_is_left_alone(some, cache, statement):
    with closing(sqlite3.connect(cache)) as connection:
        connection.executescript(statement)
    content = cache.read_bytes()
    with pytest.raises(ValueError, match="no caption cache.*choose another file"):
        caption(AttributeCaptioner(), some, "?", cache)
    assert cache.read_bytes() == content


def change(cache, statement, *values):
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.create_function("hash_of", 4, module._hash_caption)
        connection.execute(statement, values)


def test_a_damaged_caption_is_made_again(some, cache):
    captioner = CallableCaptioner(plain, "plain")
    texts = caption(captioner, some, "?", cache).texts
    for damaged in ("33 pixels", b"\xff\xfe", 7, "", "two\nlines"):
        change(cache, "UPDATE captions SET text = ?", damaged)
        assert (
            caption(captioner, some, "?", cache).texts == texts
            and caption(AttributeCaptioner(), some, "?", cache).failures == []
        )


@pytest.mark.parametrize(
    "text", ["", "two\nlines", "\x1b[31mred", "a" * 10**6, b"bytes", b"\xff"]
)
def test_a_forged_caption_is_no_caption(some, cache, text):
    """Whoever forges a file can compute its hashes."""
    caption(CallableCaptioner(plain, "plain"), some, "?", cache)
    change(cache, "UPDATE captions SET text = ?", text)
    change(cache, "UPDATE captions SET hash = hash_of(image, prompt, captioner, text)")
    with pytest.raises(ValueError, match="no caption cache"):
        caption(CallableCaptioner(plain, "plain"), some, "?", cache)


def test_a_cache_without_hashes_gets_them(some, cache):
    texts = caption(CallableCaptioner(plain, "plain"), some, "?", cache).texts
    with closing(sqlite3.connect(cache)) as connection, connection:
        rows = connection.execute(
            "SELECT image, prompt, captioner, text FROM captions"
        ).fetchall()
        connection.execute("DROP TABLE captions")
        connection.execute(module._UNHASHED)
        connection.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
    captioner = CallableCaptioner(
        lambda images, prompts: pytest.fail("asked again"), "plain"
    )
    assert caption(captioner, some, "?", cache).texts == texts and kept(cache) == len(
        rows
    )


def test_a_full_disk_keeps_what_was_written(some, cache):
    """A limit on the size of files stands for a full disk."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    long = CallableCaptioner(
        lambda images, prompts: ["word " * 70] * len(images), "long", batch_size=2
    )
    caption(long, some.subset(range(4)), "?", cache)
    before = kept(cache)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (cache.stat().st_size, unlimited[1]))
        with pytest.raises(
            OSError, match="cannot be used .*what was written before is kept"
        ):
            caption(long, digits("train").subset(range(200)), "?", cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert kept(cache) >= before and caption(long, some, "?", cache).failures == []


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("deep"), OSError("gone"), StopIteration()],
    ids=repr,
)
def test_whatever_a_captioner_or_a_decoder_raises_costs_one_caption(some, cache, error):
    def describe(images, prompts):
        if len(images) > 1 or images[0] == some[7][0]:
            raise error
        return ["fine"]

    captions = quietly(CallableCaptioner(describe, "breaks"), some, "?", cache)
    assert [position for position, _ in captions.failures] == [7]


def test_the_default_cache_is_in_the_cache_directory(some, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "deep" / "down"))
    caption(CallableCaptioner(plain, "plain"), some, "?")
    assert kept(tmp_path / "deep" / "down" / "captions.sqlite") == len(
        set(features.hash_each(some))
    )


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("", "empty"),
        (" \n\t", "empty"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (["text"], "list"),
    ],
)
def test_an_unusable_answer_is_asked_again_once_and_then_recorded(
    some, cache, answer, reason
):
    calls = []

    def describe(images, prompts):
        calls.append(len(images))
        return ["good" if prompt == "?" else answer for prompt in prompts]

    with pytest.warns(
        UserWarning, match=r"2 of 20 captions are missing; the first, of image 3:"
    ):
        result = caption(
            CallableCaptioner(describe, "moody", batch_size=4),
            some,
            ["!" if i in (3, 11) else "?" for i in range(20)],
            cache,
        )
    assert [i for i, _ in result.failures] == [3, 11] and all(
        reason in why for _, why in result.failures
    )
    assert (
        result.missing.nonzero()[0].tolist() == [3, 11]
        and sorted(calls) == [1, 1, 4, 4, 4, 4, 4]
        and kept(cache) == 18
    )
    quietly(
        CallableCaptioner(describe, "moody", batch_size=4),
        some,
        ["!" if i in (3, 11) else "?" for i in range(20)],
        cache,
    )
    assert calls[7:] == [
        2,
        1,
        1,
    ]  # failures are not kept, and nothing else is asked again


@pytest.mark.parametrize("grouped", [False, True])
def test_a_captioner_without_one_usable_answer_ends_the_run(cache, grouped):
    """Soon, and with its reason; one caption, also from before, and it goes on."""
    images, calls, good = digits("train").subset(range(60)), [], set()

    def describe(pictures, prompts):
        calls.append(len(pictures))
        return ["good" if prompt in good else "" for prompt in prompts]

    def ask():
        prompts = [str(i) for i in range(60)]
        captioner = CallableCaptioner(describe, "useless", batch_size=8)
        if grouped:
            groups = np.arange(60)[:, None]
            return caption_groups(captioner, images, groups, prompts, cache)
        return caption(captioner, images, prompts, cache)

    message = "first 32 questions got a usable caption; .*: answered with an empty text"
    with pytest.raises(ValueError, match=message):
        ask()
    assert sum(calls) == 2 * 32
    good.add("3")
    for _ in range(2):  # made in this run, and found
        with pytest.warns(UserWarning, match="59 of 60 captions are missing"):
            assert [i for i, text in enumerate(ask().texts) if text] == [3]


def test_a_captioner_of_glyphs_refuses_a_folder_of_photographs(photographs, cache):
    few = [piece for piece in photographs if not is_drawing(piece)][:40]
    with pytest.raises(ValueError, match="attribute captioner knows glyphs"):
        caption(AttributeCaptioner(), ImageSet(few), "?", cache)


@pytest.mark.parametrize(
    "answers",
    [
        lambda n: ["one"] * (n + 1),
        lambda n: ["one"] * (n - 1),
        lambda n: None,
        lambda n: "text" if n > 1 else ["text"],
        lambda n: 1 / (n - 2),
    ],
)
def test_a_batch_that_goes_wrong_is_asked_image_by_image(some, answers):
    """The wrong number of answers, no list, or an exception: whatever one image alone
    is answered with is taken."""
    result = quietly(
        CallableCaptioner(
            lambda images, prompts: (
                answers(len(images)) if len(images) > 1 else ["alone"]
            ),
            "odd",
            batch_size=2,
        ),
        some,
        "?",
        False,
    )
    assert set(result.texts) == {"alone"} and result.failures == []


def test_an_exception_costs_one_caption_and_keeps_its_reason(some, cache):
    bad = some[6][0].tobytes()

    def describe(images, prompts):
        if bad in [image.tobytes() for image in images]:
            raise RuntimeError("out of luck")
        return plain(images, prompts)

    with pytest.warns(
        UserWarning,
        match="1 of 20 captions are missing; the first, of image 6: RuntimeError: out "
        "of luck",
    ):
        result = caption(CallableCaptioner(describe, "picky"), some, "?", cache)
    assert (
        result.failures == [(6, "RuntimeError: out of luck")]
        and sum(result.missing) == 1
    )
    with pytest.warns(UserWarning, match="of group 1: RuntimeError"):
        groups = caption_groups(
            Members(describe), some, [[0, 1], [6, 2], [3, 4]], "?", cache
        )
    assert groups.missing.tolist() == [False, True, False]


class Members(Captioner):
    """Describes a group by its first image."""

    name, batch_size = "members", 2

    def __init__(self, function):
        self.function = function

    def describe_groups(self, groups, prompts):
        return [self.function(group, prompts)[0] for group in groups]


def test_damaged_and_missing_files_among_many(tmp_path, cache):
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (i + 1, 9), (i, 0, 0)).save(paths[-1])
    paths[5].write_bytes(paths[5].read_bytes()[:40])
    paths[20].write_bytes(b"")
    paths[33].unlink()
    with pytest.warns(
        UserWarning,
        match=r"3 of 40 captions are missing; the first, of image 5 \(.*5.png\)",
    ) as caught:
        result = caption(CallableCaptioner(plain, "plain"), ImageSet(paths), "?", cache)
    assert len(caught) == 1 and [i for i, _ in result.failures] == [5, 20, 33]
    assert (
        all(str(paths[i]) in reason for i, reason in result.failures)
        and result.texts[39] == "40 pixels"
    )
    damaged = {}  # whoever takes them in hand is not warned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captioner = CallableCaptioner(plain, "plain")
        result = caption(captioner, ImageSet(paths), "?", cache, damaged)
    assert sorted(damaged) == [5, 20, 33] and not result.failures
    assert all(str(paths[i]) in reason for i, reason in damaged.items())
    with pytest.warns(UserWarning):
        groups = caption_groups(
            CallableCaptioner(plain, "plain"),
            ImageSet(paths),
            [[0, 1], [2, 33], [5, 5], [-1, -1], [3, 20]],
            "?",
            cache,
        )
    assert (
        [i for i, _ in groups.failures] == [1, 2, 4]
        and groups.texts[0] == "672 pixels"
        and groups.texts[3] == ""
    )
    Image.new("RGB", (99, 9)).save(paths[33])  # repaired: the next call finds it
    with pytest.warns(UserWarning, match="2 of 40"):
        assert (
            caption(
                CallableCaptioner(plain, "plain"), ImageSet(paths), "?", cache
            ).texts[33]
            == "99 pixels"
        )


def test_the_model_is_prepared_only_when_there_is_work(some, cache):
    class Large(Captioner):
        name, prepared = "large", 0

        def prepare(self):
            self.prepared += 1

        def describe(self, images, prompts):
            assert self.prepared == 1
            return plain(images, prompts)

    first, second = Large(), Large()
    caption(first, some, "?", cache)
    caption(second, some, "?", cache)
    assert first.prepared == 1 and second.prepared == 0
    second.prepare = lambda: (_ for _ in ()).throw(FileNotFoundError("no weights"))
    with pytest.raises(FileNotFoundError, match="no weights"):
        caption(second, some, "another question", cache)
    with pytest.raises(ValueError, match="needs a name"):
        caption(Captioner(), some, "?", cache)
    nameless = quietly(
        CallableCaptioner(Captioner().describe, "abstract"), some, "?", False
    )
    assert "has to define describe" in nameless.failures[0][1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 4), max_size=40), st.integers(1, 7), st.integers(0, 3))
def test_groups_are_drawn_from_the_same_pseudolabel(labels, size, seed):
    groups = draw_groups(labels, size, seed)
    assert groups.shape == (len(labels), size) and groups.dtype == np.int64
    for label, row in zip(labels, groups.tolist()):
        if label < 0:
            assert row == [-1] * size
        else:
            assert {labels[i] for i in row} == {label}
            assert len(set(row)) == size or labels.count(label) < size


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 50),
    st.sampled_from(["RGB", "L", "RGBA", "1", "P"]),
    st.integers(0, 2**31),
)
def test_the_ruler_survives_any_image(width, height, mode, seed):
    """It says a sentence, always the same, or that this is no drawing."""
    rng = np.random.default_rng(seed)
    ground, ink = rng.integers(0, 256, (2, 3), np.uint8)
    drawn = np.where(rng.random((height, width, 1)) < 0.1, ink, ground)
    for pixels in (rng.integers(0, 256, (height, width, 3), np.uint8), drawn):
        image = Image.fromarray(pixels).convert(mode)
        assert measure_attributes(image) == measure_attributes(image)
        if not is_drawing(image):
            with pytest.raises(ValueError, match="no drawing in one colour"):
                AttributeCaptioner().describe([image], [""])
            continue
        (text,) = AttributeCaptioner().describe([image], [""])
        assert text.startswith("a photo of a ") and text.endswith(" background.")
    assert tile([image] * 2, side=80, gap=4).size == (80, 80)


@pytest.fixture(scope="module")
def photographs():
    """400 pieces of scikit-learn's two photographs, of all shapes."""
    from sklearn.datasets import load_sample_images

    rng, pieces = np.random.default_rng(0), []
    for pixels in load_sample_images().images:
        for _ in range(200):
            height, width = rng.integers(100, pixels.shape[0]), rng.integers(100, 640)
            top = rng.integers(0, pixels.shape[0] - height)
            left = rng.integers(0, pixels.shape[1] - width + 1)
            pieces.append(
                Image.fromarray(pixels[top : top + height, left : left + width])
            )
    return pieces


def test_photographs_are_no_drawings_and_handwriting_is(photographs):
    assert np.mean([is_drawing(piece) for piece in photographs]) < 0.02
    grey = [is_drawing(piece.convert("L")) for piece in photographs]
    assert np.mean(grey) < 0.4, (
        "grey pieces of sky and ground can be taken for drawings"
    )
    for part in ("train", "test"):
        assert all(is_drawing(image) for image, _ in digits(part))


def test_photographs_are_not_told_to_be_digits(photographs, some, cache):
    """One warning that says what to take instead, and no caption of strokes."""
    few = [photographs[k] for k in (0, 50, 250, 399)]
    mixed = ImageSet([*few, *(some[i][0] for i in range(2))])
    with pytest.warns(UserWarning, match="4 of 6 .*no drawing.*TransformersCaptioner"):
        found = caption(AttributeCaptioner(), mixed, "?", cache)
    assert [bool(text) for text in found.texts] == [False] * 4 + [True] * 2
    groups = np.array([[0, 4], [4, 5]])
    with pytest.warns(UserWarning, match="1 of 2 .*no drawing"):
        found = caption_groups(AttributeCaptioner(), mixed, groups, "?", cache)
    assert not found.texts[0] and found.texts[1].startswith("a photo of a ")


def test_captions_of_handwriting_are_the_measured_ones(some):
    written = caption(AttributeCaptioner(), some, "?", cache=False).texts
    writer = AttributeCaptioner()
    assert written == [
        writer.write(measure_attributes(some[i][0])) for i in range(len(some))
    ]


# The tiny LLaVA


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return ImageSet(
        [
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            for height, width in ((56, 56), (40, 90), (112, 56), (30, 30), (300, 20))
        ]
    )


def open_llava(folder, **options):
    return TransformersCaptioner(
        folder, device="cpu", **{"max_new_tokens": 16, **options}
    )


def test_batches_of_one_and_of_four_say_the_same(llava, noise, one_thread, cache):
    prompts = [
        image_prompt("Food101"),
        "Describe the car.",
        "?",
        "Describe the common visual attributes, please",
        "a digit",
    ]
    at_once, one_by_one = (
        caption(open_llava(llava, batch_size=size), noise, prompts, False)
        for size in (4, 1)
    )
    assert (
        at_once == one_by_one
        and at_once.failures == []
        and len(set(at_once.texts)) == 5
    )
    assert not any(
        "\n" in text or "user" in text.split(":")[0] for text in at_once.texts
    )
    groups = [[0, 1, 2, 3], [4, 0, 1, 2], [3, 3, 3, 3]]
    assert caption_groups(
        open_llava(llava, batch_size=4), noise, groups, "?", cache
    ) == caption_groups(open_llava(llava, batch_size=1), noise, groups, "?", False)


def test_captions_are_those_of_the_model_by_hand(llava, noise):
    """The same chat without our class: one image, no padding, only the new tokens."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = (
        AutoProcessor.from_pretrained(llava),
        AutoModelForImageTextToText.from_pretrained(llava),
    )
    inputs = processor(
        images=noise[1][0],
        text="<s>user: <image>Describe the car. assistant: ",
        return_tensors="pt",
        add_special_tokens=False,
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=16)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert open_llava(llava).describe([noise[1][0]], ["Describe the car."]) == [
        " ".join(processor.decode(tokens, skip_special_tokens=True).split())
    ]


def test_the_name_tells_models_and_settings_apart(llava, tmp_path):
    other = save_tiny_llava(tmp_path / "tiny", seed=1)
    names = {
        open_llava(llava).name,
        open_llava(other).name,
        open_llava(llava, max_new_tokens=17).name,
    }
    assert (
        len(names) == 3
        and open_llava(llava, batch_size=3).name == open_llava(llava).name
    )
    moved = shutil.copytree(llava, tmp_path / "elsewhere")
    assert open_llava(moved).name == open_llava(llava).name
    (moved / "chat_template.jinja").write_text(
        "{{ messages[0]['content'][1]['text'] }}<image>"
    )
    assert open_llava(moved).name != open_llava(llava).name


def test_models_that_are_not_there(tmp_path, llava, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        TransformersCaptioner(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match="empty"):
        TransformersCaptioner(tmp_path / "empty")
    save_tiny_llava(tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no complete model.*safetensors"):
        open_llava(tmp_path / "weightless").prepare()
    with pytest.raises(ValueError, match="no chat template"):
        TransformersCaptioner(save_tiny_llava(tmp_path / "mute", chat_template=None))


def test_pickled_weights_are_not_read(tmp_path):
    folder = save_tiny_llava(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        open_llava(folder).prepare()


@pytest.mark.parametrize(
    "name, content, key",
    [
        (
            "processor_config.json",
            {"auto_map": {"AutoProcessor": "theirs.Processor"}},
            "auto_map",
        ),
        (
            "preprocessor_config.json",
            {"image_processor": {"auto_map": {"AutoImageProcessor": "theirs.Images"}}},
            "auto_map",
        ),
        ("tokenizer_config.json", {"auto_map": ["theirs.Tokenizer", None]}, "auto_map"),
        (
            "config.json",
            {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}},
            "auto_map",
        ),
        (
            "config.json",
            {"text_config": {"attn_implementation": "somebody/kernel"}},
            "attn_implementation",
        ),
        (
            "generation_config.json",
            {"custom_generate": "somebody/code"},
            "custom_generate",
        ),
        (
            "adapter_config.json",
            {"base_model_name_or_path": "somebody/model"},
            "base_model_name_or_path",
        ),
    ],
)
def test_a_model_that_names_code_is_refused(tmp_path, monkeypatch, name, content, key):
    monkeypatch.setattr(
        "builtins.input", lambda question="": pytest.fail("nobody is asked")
    )
    folder = save_tiny_llava(tmp_path / "model")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')")
    before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**before, **content}))
    with pytest.raises(
        ValueError,
        match=f"wants to run code of its own, or to load another model .{key} in "
        f"{name}., which is never done",
    ):
        open_llava(folder)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "name",
    ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"],
)
@pytest.mark.parametrize("content", ["", "[]", "[" * 10**5, "\xff"])
def test_a_model_with_damaged_files_is_named(tmp_path, name, content):
    folder = save_tiny_llava(tmp_path / "model")
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises((ValueError, OSError), match="model") as caught:
        open_llava(folder).prepare()
    assert "\n" not in str(caught.value)


def test_a_chat_template_runs_in_a_sandbox(llava, tmp_path, noise):
    """Jinja's sandbox: a template puts texts together, and reaches neither Python nor
    files."""
    for template in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
    ]:
        captioner = open_llava(llava)
        captioner.processor.chat_template = template
        captions = quietly(captioner, noise.subset([0]), "?", False)
        assert len(captions.failures) == 1 and any(
            word in captions.failures[0][1]
            for word in (
                "unsafe",
                "undefined",
                "Immutable",
                "sandbox",
                "loader",
                "not safely",
            )
        )


def test_without_a_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="To work offline, give a folder"):
        TransformersCaptioner("nobody/no-such-model")


def test_quantization_says_what_is_missing(llava, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes accelerate"):
        open_llava(llava, quantization="4bit")


def test_a_row_too_damaged_to_be_found_costs_no_caption(tmp_path, monkeypatch):
    """What was just described is returned even where the file cannot give it back."""
    images, cache = digits("test").subset(range(3)), tmp_path / "captions.sqlite"
    expected = caption(AttributeCaptioner(), images, "", cache).texts
    monkeypatch.setattr("clipadapt.clip.captions._Cache.find", lambda self, keys: {})
    assert caption(AttributeCaptioner(), images, "", cache).texts == expected


def test_flipped_bytes_give_the_same_captions_or_name_the_damage(tmp_path):
    images, cache = digits("test").subset(range(6)), tmp_path / "captions.sqlite"
    expected = caption(AttributeCaptioner(), images, "", cache).texts
    content, rng = cache.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=rng.choice([1, 3, 40])):
            damaged[place] = rng.integers(256)
        for file in tmp_path.iterdir():
            file.unlink()
        cache.write_bytes(damaged)
        try:
            assert caption(AttributeCaptioner(), images, "", cache).texts == expected
        except ValueError as error:
            assert "is damaged or no caption cache" in str(error)
