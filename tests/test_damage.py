"""Saved methods, checkpoints and indexes that were damaged, forged, or cut off by a
kill: one clear error, or what was saved."""

import os
import random
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from processes import program
from safetensors import SafetensorError

from clipadapt import (
    Adapter,
    ImageSet,
    NearestNeighbours,
    Prototypes,
    ZeroShot,
    digits,
    load_clip,
)
from clipadapt.clip.index import PrototypeIndex
from clipadapt.images import files
from clipadapt.images.files import write_arrays
from clipadapt.learning import adapter
from clipadapt.learning.adapter import SavedClip, read_saved, translate_labels
from clipadapt.learning.training import (
    Checkpoint,
    Recipe,
    SavedRun,
    restore_training,
    train_epochs,
    training_state,
)
from clipadapt.learning.watching import Watched

FILE = "adapter.safetensors"


@pytest.fixture(scope="module")
def clip():
    return load_clip(precision="float32")


@pytest.fixture(scope="module")
def train():
    return digits("train").subset(range(60))


@pytest.fixture(scope="module", params=[ZeroShot, Prototypes])
def method(request, clip, train):
    return request.param(clip, train.classnames).fit(train)


def mutated(content, generator):
    """A copy of `content` with a few bits, bytes or pieces changed, in one of five
    ways."""
    content, place = bytearray(content), generator.randrange(len(content))
    if generator.random() < 0.5:
        place %= 2000  # half of them where the header is
    way = generator.randrange(5)
    if way == 0:
        content[place] ^= 1 << generator.randrange(8)
    elif way == 1:
        content[place] = generator.randrange(256)
    elif way == 2:
        del content[place:]
    elif way == 3:
        del content[place : place + generator.randrange(1, 9)]
    else:
        end = place + generator.randrange(1, 40)
        content[place:place] = content[place:end] or b"\0"
    return bytes(content)


def test_no_mutation_of_a_saved_method_is_believed(tmp_path, method, clip, train):
    method.save(tmp_path / "model")
    path, generator = tmp_path / "model" / FILE, random.Random(0)
    whole, expected = path.read_bytes(), method.predict_proba(train)
    refused = 0
    for _ in range(1500):
        path.write_bytes(mutated(whole, generator))
        try:
            loaded = type(method).load(tmp_path / "model", clip)
        except ValueError as error:
            refused += 1
            assert FILE in str(error)
        else:
            assert np.array_equal(loaded.predict_proba(train), expected)
    assert refused > 1400


def forge(folder, arrays=None, params=None, fitted=None, **facts):
    """Change what a saved method says, and seal it as if it had been saved so."""
    record, before = read_saved(folder)
    record = record.model_copy(update=facts)
    record = record.model_copy(
        update={
            "params": {**record.params, **(params or {})},
            "fitted": {**record.fitted, **(fitted or {})},
        }
    )
    changed = {**before, **(arrays or {})}
    kept = {name: array for name, array in changed.items() if array is not None}
    write_arrays(folder / FILE, kept, record)


TEN = [f"class {number}" for number in range(10)]
FORGED = {
    "another shape": (
        {"arrays": {"prototypes_": np.zeros((10, 3), np.float32)}},
        "shape",
    ),
    "another type": (
        {"arrays": {"owners_": np.arange(10, dtype=np.int32)}},
        "type int32",
    ),
    "NaN": (
        {"arrays": {"prototypes_": np.full((10, 64), np.nan, np.float32)}},
        "finite",
    ),
    "no unit": (
        {"arrays": {"prototypes_": np.ones((10, 64), np.float32)}},
        "unit length",
    ),
    "no owner": ({"arrays": {"owners_": np.arange(10) + 1}}, "values of 10 or more"),
    "below zero": ({"arrays": {"owners_": np.arange(10) - 1}}, "values below 0"),
    "not rising": ({"arrays": {"owners_": np.arange(10)[::-1]}}, "owners_ must rise"),
    "a class left out": (
        {"arrays": {"owners_": np.arange(10) // 2}},
        "name every class",
    ),
    "missing": ({"arrays": {"owners_": None}}, "owners_ is missing"),
    "too many": ({"arrays": {"fit": np.zeros(3)}}, "fit does not belong"),
    "a method": ({"fitted": {"predict": 3}}, "'predict' does not belong"),
    "history": (
        {"fitted": {"history_": [3]}},
        "history_: 0: Input should be an object",
    ),
    "classnames": ({"fitted": {"classnames_": "cat"}}, "no class names"),
    "no classes": ({"fitted": {"classnames_": []}}, "no class names"),
    "numbers": ({"fitted": {"classnames_": list(range(10))}}, "class 0 must be text"),
    "twins": ({"fitted": {"classnames_": ["a", "a"]}}, "must be distinct"),
    "fewer": ({"fitted": {"classnames_": TEN[:9]}}, "values of 9 or more"),
    "unknown parameter": ({"params": {"device": "x"}}, "'device' does not belong"),
    "parameter": (
        {"params": {"momentum": "much"}},
        "momentum: Input should be a valid n",
    ),
    "another class": ({"method": "GRIP"}, "holds a 'GRIP', not a Prototypes"),
}


@pytest.mark.parametrize("change, message", FORGED.values(), ids=FORGED)
def test_a_forged_method_with_a_valid_hash_is_refused(
    tmp_path, clip, train, change, message
):
    Prototypes(clip, train.classnames).fit(train).save(tmp_path / "model")
    forge(tmp_path / "model", **change)
    with pytest.raises(ValueError, match=f"{FILE}.*{message}"):
        Prototypes.load(tmp_path / "model", clip)


def test_a_record_that_is_nested_deeply_is_refused(tmp_path, clip, train):
    ZeroShot(clip, train.classnames).fit(train).save(tmp_path / "model")
    for depth in (300, 100_000):
        record, arrays = read_saved(tmp_path / "model")
        text = record.model_dump_json().replace('"single"', "[" * depth + "]" * depth)
        header = files._Header(format=2, clipadapt="9", record=text)
        header.hash = files._seal(arrays, header)
        forged = tmp_path / "forged"
        forged.mkdir(exist_ok=True)
        metadata = {"clipadapt": header.model_dump_json()}
        files.save_file(arrays, forged / FILE, metadata=metadata)
        with pytest.raises(ValueError, match="recursion limit"):
            ZeroShot.load(forged, clip)


class Free(ZeroShot):
    """A method from elsewhere, which declares nothing."""

    def _fit(self, images, labels):
        super()._fit(images, labels)
        self.prior_, self.notes_ = np.ones(3), {"any": ["thing", None]}


def test_a_method_that_declares_nothing_is_saved_and_loaded(tmp_path, clip, train):
    Free(clip, train.classnames).fit(train).save(tmp_path / "model")
    loaded = Free.load(tmp_path / "model", clip)
    assert (
        loaded.notes_ == {"any": ["thing", None]} and loaded.prior_.tolist() == [1] * 3
    )
    record, arrays = read_saved(tmp_path / "model")
    for name in ("clip", "predict", "__class__", "no name_"):
        write_arrays(tmp_path / "model" / FILE, {**arrays, name: np.ones(3)}, record)
        with pytest.raises(ValueError, match=f"{name} does not belong there"):
            Free.load(tmp_path / "model", clip)
    write_arrays(
        tmp_path / "model" / FILE, {**arrays, "prior_": np.array([1, np.inf])}, record
    )
    with pytest.raises(ValueError, match="prior_ has values that are not finite"):
        Free.load(tmp_path / "model", clip)


class Optional(ZeroShot):
    fitted = {**ZeroShot.fitted, "prior_": adapter.Array("float32", "C")}
    optional = ("prior_",)


def test_an_attribute_can_be_declared_as_optional(tmp_path, clip, train):
    model = Optional(clip, train.classnames).fit(train)
    model.save(tmp_path / "model")
    assert not hasattr(Optional.load(tmp_path / "model", clip), "prior_")
    model.prior_ = np.ones(10, np.float32)
    model.save(tmp_path / "model")
    assert Optional.load(tmp_path / "model", clip).prior_.sum() == 10
    model.prior_ = np.ones(11, np.float32)
    with pytest.raises(ValueError, match=r"cannot be saved.*prior_ has shape \(11,\)"):
        model.save(tmp_path / "model")


def test_what_load_would_refuse_is_not_saved(tmp_path, clip, train):
    model = ZeroShot(clip, train.classnames, seed=2.5).fit(train)
    with pytest.raises(ValueError, match="this ZeroShot cannot be saved.*seed"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "name, pretrained",
    [
        ("local-dir:gift", None),
        ("hf-hub:some/body", None),
        ("ViT-B-32", "weights.pt"),
        (None, "weights.pt"),
        ("no such model", None),
        ("ViT-B-32", None),
    ],
)
def test_no_model_is_loaded_on_the_word_of_a_file(
    tmp_path, clip, train, monkeypatch, name, pretrained
):
    ZeroShot(clip, train.classnames).fit(train).save(tmp_path / "model")
    named = SavedClip(name=name, pretrained=pretrained, fingerprint=clip.fingerprint)
    forge(tmp_path / "model", clip=named)
    monkeypatch.setattr(adapter, "load_clip", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="load the model yourself") as caught:
        ZeroShot.load(tmp_path / "model")
    assert repr(name) in str(caught.value) and repr(pretrained) in str(caught.value)
    assert ZeroShot.load(tmp_path / "model", clip).clip is clip


def test_a_model_of_openclips_own_list_is_loaded_by_its_name(
    tmp_path, clip, train, monkeypatch
):
    ZeroShot(clip, train.classnames).fit(train).save(tmp_path / "model")
    named = SavedClip(
        name="ViT-B-32", pretrained="openai", fingerprint=clip.fingerprint
    )
    forge(tmp_path / "model", clip=named)
    asked = []
    monkeypatch.setattr(
        adapter, "load_clip", lambda *names: asked.append(names) or clip
    )
    ZeroShot.load(tmp_path / "model")
    assert asked == [("ViT-B-32", "openai")]


def test_a_method_of_an_earlier_version_is_named_and_replaced(tmp_path, clip, train):
    (tmp_path / "adapter.json").write_text('{"format": 1}')
    (tmp_path / FILE).write_bytes(b"arrays of that time")
    with pytest.raises(ValueError, match="earlier clipadapt.*save it again"):
        ZeroShot.load(tmp_path, clip)
    ZeroShot(clip, train.classnames).fit(train).save(tmp_path)
    assert os.listdir(tmp_path) == [FILE] and ZeroShot.load(tmp_path, clip)


def test_drafts_of_killed_processes_do_not_stop_a_save(tmp_path, clip, train):
    (tmp_path / f".{FILE}.00000000-1-00000000.draft").write_text("half")
    ZeroShot(clip, train.classnames).fit(train).save(tmp_path)
    assert ZeroShot.load(tmp_path, clip)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(
    tmp_path, clip, train, monkeypatch
):
    model, index = (
        ZeroShot(clip, train.classnames).fit(train),
        PrototypeIndex(np.eye(3)),
    )
    checkpoint = Checkpoint(tmp_path / "run", {})
    savers = [
        lambda: model.save(tmp_path / "model"),
        lambda: index.save(tmp_path / "index"),
        lambda: checkpoint.save({}, {"round": 1}),
    ]
    for save in savers:
        save()

    def full(*_, **__):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(files, "save_file", full)
    for save in savers:
        with pytest.raises(OSError, match="cannot be written: the disk is full"):
            save()
    assert (
        ZeroShot.load(tmp_path / "model", clip)
        and len(PrototypeIndex.load(tmp_path / "index")) == 3
    )
    assert checkpoint.load()[1] == {"round": 1}


class BrokenAnswers(Adapter):
    """Answers with a number that is none for one of the classes."""

    wrong = np.nan

    def _fit(self, images, labels):
        pass

    def _predict_logits(self, images):
        logits = torch.zeros(len(images), len(self.classnames_))
        logits[-1, 0] = self.wrong
        return logits


def test_answers_that_are_no_numbers_are_an_error(clip, train):
    model = BrokenAnswers(clip, train.classnames).fit(train)
    for ask in (model.predict, model.predict_proba, model.predict_logits, model.score):
        with pytest.raises(
            ValueError,
            match="this BrokenAnswers answers with numbers that are not finite",
        ):
            ask(train)
    model.wrong = -np.inf  # a class that is ruled out
    assert (
        model.predict_proba(train)[-1, 0] == 0
        and model.predict_logits(train)[-1, 0] == -np.inf
    )


def test_labels_of_very_many_classes_are_translated():
    names = [f"synset {number}" for number in range(21_841)]
    images = ImageSet(np.zeros((3, 4, 4), np.uint8), names, [0, 21_840, -1])
    assert translate_labels(images, None, names[::-1]).tolist() == [21_840, 0, -1]


def test_labels_are_translated_whichever_way_an_accent_is_written():
    composed, combined = "caf\u00e9", "cafe\u0301"
    images = ImageSet(np.zeros((2, 4, 4), np.uint8), ["tea", combined], [0, 1])
    assert translate_labels(images, None, [composed, "tea"]).tolist() == [1, 0]
    assert translate_labels(images, [0, 1], ["tea", composed]).tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore:no image was assigned")
def test_fits_in_threads_are_those_one_after_the_other(clip, train):
    makers = [
        lambda seed: Prototypes(clip, train.classnames, per_class=2, seed=seed),
        lambda seed: NearestNeighbours(clip, train.classnames, kind="ivf", seed=seed),
    ]
    jobs = [(make, seed) for make in makers for seed in range(4)]

    def answers(job):
        return job[0](job[1]).fit(train).predict_proba(train)

    state = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    alone = [answers(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answers, jobs))
    assert all(np.array_equal(first, second) for first, second in zip(alone, together))
    assert state == (
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


# --- kills: a child process that ends at its nth operation on a file

OPERATIONS = (
    "open",
    "os.rename",
    "os.remove",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.utime",
)
_watch = {"left": None}


def _count(event, _):
    if _watch["left"] is not None and event in OPERATIONS:
        _watch["left"] -= 1
        if _watch["left"] < 0:
            os._exit(9)


sys.addaudithook(_count)


def killed_at(operation, action):
    """Run `action` in a child that is gone at this operation; whether it was."""
    child = os.fork()
    if not child:
        _watch["left"] = operation
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert end in (0, 9), "the child ended in an error"
    return end == 9


def prepared(model):
    """A method whose record is made already, so that a forked child needs no
    threads."""
    record = model._record()
    model._record = lambda: record
    return model


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_kill_at_any_operation_leaves_the_old_method_or_the_new(
    tmp_path, clip, train
):
    old, new = (
        ZeroShot(clip, train.classnames, templates=templates).fit(train)
        for templates in ("single", "imagenet7")
    )
    folder, seen, operation = tmp_path / "model", set(), 0
    prepared(new)
    while True:
        old.save(folder)
        was_killed = killed_at(operation, lambda: new.save(folder))
        seen.add(ZeroShot.load(folder, clip).templates)
        if not was_killed:
            break
        operation += 1
    assert operation >= 5 and seen == {"single", "imagenet7"}
    old.save(folder)
    assert os.listdir(folder) == [FILE], "the drafts of the killed are gone"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_kill_at_any_operation_leaves_the_old_index_or_the_new(tmp_path):
    old, new = PrototypeIndex(np.eye(3)), PrototypeIndex(np.eye(4))
    folder, seen, operation, was_killed = tmp_path / "index", set(), 0, True
    while was_killed:
        old.save(folder)
        was_killed = killed_at(operation, lambda: new.save(folder))
        seen.add(len(PrototypeIndex.load(folder)))
        operation += 1
    assert operation >= 5 and seen == {3, 4}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_kill_at_any_operation_leaves_a_round_to_go_on_from(tmp_path):
    path, operation, was_killed, seen = tmp_path / "run", 0, True, set()
    while was_killed:
        checkpoint = Checkpoint(path, {})
        for number in (1, 2):
            checkpoint.save({"weights": np.full(3, number)}, {"round": number})
        was_killed = killed_at(
            operation, lambda: checkpoint.save({"weights": np.full(3, 3)}, {"round": 3})
        )
        arrays, record = Checkpoint(path, {}).load()
        assert arrays["weights"].tolist() == [record["round"]] * 3
        seen.add(record["round"])
        previous = Checkpoint(path.with_name("run.previous"), {}).load()
        assert previous[1]["round"] in (1, 2)
        operation += 1
    assert operation >= 6 and seen == {2, 3}


def write_for_ever(model, folder):
    """What a forked child does until it is killed; an error ends it."""
    try:
        while True:
            model.save(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two forked children")
def test_a_reader_beside_two_writers_never_gets_a_mixture(tmp_path, clip, train):
    models = {
        seed: prepared(ZeroShot(clip, train.classnames, seed=seed).fit(train))
        for seed in (1, 2)
    }
    for seed, model in models.items():
        model.prompt_features_ = np.full_like(model.prompt_features_, seed)
        del model._record
        prepared(model)
    models[1].save(tmp_path)
    children = []
    for model in models.values():
        child = os.fork()
        if not child:
            write_for_ever(model, tmp_path)
        children.append(child)
    end, reads = time.monotonic() + 2, 0
    try:
        while time.monotonic() < end:
            record, arrays = read_saved(tmp_path)
            assert (arrays["prompt_features_"] == record.params["seed"]).all()
            reads += 1
    finally:
        for child in children:
            os.kill(child, 9)
        ends = [
            os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children
        ]
    assert reads > 50 and ends == [-9, -9], "both wrote to the end"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_nothing_of_a_killed_writer_stays(tmp_path):
    checkpoint, large = Checkpoint(tmp_path / "run", {}), np.zeros(30_000_000, np.uint8)
    for pause in (0.02, 0.05, 0.1, 0.2):
        child = os.fork()
        if not child:
            while True:
                checkpoint.save({"large": large}, {"round": 1})
        time.sleep(pause)
        os.kill(child, 9)
        os.waitpid(child, 0)
    checkpoint.save({}, {"round": 2})
    assert set(os.listdir(tmp_path)) <= {"run", "run.previous"}


# --- checkpoints


def test_every_flipped_byte_of_a_checkpoint_is_found(tmp_path):
    checkpoint, generator = Checkpoint(tmp_path / "run", {"seed": 0}), random.Random(0)
    weights = np.arange(4, dtype=np.float32)
    checkpoint.save({"weights": weights}, {"round": 1, "history": [{"loss": 0.5}]})
    whole, found = checkpoint.path.read_bytes(), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.randrange(8)
        checkpoint.path.write_bytes(damaged)
        try:
            arrays, record = Checkpoint(checkpoint.path, {"seed": 0}).load()
        except ValueError:
            found += 1
        else:  # blanks at the end of a header say nothing
            assert np.array_equal(arrays["weights"], weights) and record["round"] == 1
    assert found > len(whole) - 16


def test_a_damaged_round_never_takes_the_place_of_a_good_one(tmp_path):
    path = tmp_path / "run"
    checkpoint = Checkpoint(path, {})
    for number in (1, 2):
        checkpoint.save({}, {"round": number})
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    resumed = Checkpoint(path, {})
    with pytest.warns(UserWarning, match="run is damaged"):
        assert resumed.load()[1]["round"] == 1
    resumed.save({}, {"round": 2})
    assert resumed.load()[1]["round"] == 2
    path.write_bytes(b"")
    with pytest.warns(UserWarning):
        assert Checkpoint(path, {}).load()[1]["round"] == 1
    (tmp_path / "run.previous").write_bytes(b"")
    with pytest.raises(ValueError, match="run is damaged.*delete it to start anew"):
        Checkpoint(path, {}).load()


def test_facts_that_are_arrays_or_no_numbers_can_be_compared(tmp_path):
    facts = {"candidates": np.arange(3), "alpha": float("nan"), "pair": (1, 2.0)}
    Checkpoint(tmp_path / "run", facts).save({}, {"loss": float("inf")})
    assert Checkpoint(tmp_path / "run", facts).load()[1] == {"loss": float("inf")}
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for bad in ({"deep": deep}, {"thing": object()}):
        with pytest.raises(ValueError, match="must be plain values"):
            Checkpoint(tmp_path / "run", bad)


class Counter:
    """A run that keeps one number."""

    def __init__(self):
        self.module = torch.nn.Linear(2, 1)
        self.optimiser = Recipe().optimiser(self.module.parameters())

    def epoch(self, number):
        self.optimiser.zero_grad()
        self.module(torch.ones(1, 2)).sum().backward()
        self.optimiser.step()
        return {"epoch": number}

    def state(self):
        return training_state(self.module, self.optimiser)

    def restore(self, arrays):
        restore_training(self.module, self.optimiser, arrays)

    def finish(self):
        del self.optimiser


class Method(Watched):
    def _show(self, run):
        pass


HISTORY = {"history": [{"epoch": 0}]}
FORGED_RUNS = {
    "no history": ({}, {"round": 1}),
    "a history of numbers": ({}, {"history": [1]}),
    "a history that is none": ({}, {"history": {"epoch": 0}}),
    "no arrays": (None, HISTORY),
    "another shape": ({"module.weight": np.zeros((3, 1), np.float32)}, HISTORY),
    "another type": ({"module.bias": np.zeros(1)}, HISTORY),
    "NaN": ({"module.bias": np.full(1, np.nan, np.float32)}, HISTORY),
    "momentum of nothing": (
        {"optimiser.7.momentum_buffer": np.zeros(1, np.float32)},
        HISTORY,
    ),
    "another slot": ({"optimiser.0.exp_avg": np.zeros((1, 2), np.float32)}, HISTORY),
    "no number": ({"optimiser.x.momentum_buffer": np.zeros(1, np.float32)}, HISTORY),
    "no slot": ({"optimiser.0": np.zeros(1, np.float32)}, HISTORY),
    "no name": ({"optimiser.": np.zeros(1)}, HISTORY),
    "a module too many": ({"module.gain": np.zeros(1, np.float32)}, HISTORY),
}


@pytest.mark.parametrize("arrays, record", FORGED_RUNS.values(), ids=FORGED_RUNS)
def test_a_forged_checkpoint_with_a_valid_hash_is_refused(tmp_path, arrays, record):
    run = Counter()
    run.epoch(0)
    arrays = {} if arrays is None else {**run.state(), **arrays}
    write_arrays(tmp_path / "run", arrays, SavedRun(facts={}, record=record))
    with pytest.raises(ValueError, match=f"{tmp_path / 'run'}"):
        train_epochs(Method(), Counter(), 3, Checkpoint(tmp_path / "run", {}))
    write_arrays(tmp_path / "run", run.state(), SavedRun(facts={}, record=HISTORY))
    method = Method()
    train_epochs(method, Counter(), 3, Checkpoint(tmp_path / "run", {}))
    assert len(method.history_) == 3


def test_a_checkpoint_can_be_asked_for_its_content(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", {})
    checkpoint.save({"prompt": np.zeros(3, np.float32)}, {"round": 1})
    prompt = {"prompt": adapter.Array("float32", "P")}
    assert checkpoint.load({"round": int}, prompt, {"P": 3})[1] == {"round": 1}
    for record, arrays, sizes, message in [
        ({"round": str}, prompt, {}, "round"),
        ({}, prompt, {}, "'round' does not belong"),
        ({"round": int}, prompt, {"P": 4}, "prompt has shape"),
        (None, {}, {}, "prompt does not belong"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoint.load(record, arrays, sizes)


# Indexes whose arrays were changed and sealed again: nothing but a ValueError, and no
# crash of the process.
FORGER = """
import sys
from pathlib import Path
import numpy as np
from clipadapt.images.files import read_arrays, write_arrays
from clipadapt.clip.index import KINDS, PrototypeIndex, SavedIndex
generator, folder = np.random.default_rng(0), Path(sys.argv[1])
vectors = generator.standard_normal((400, 8)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
refused = 0
for kind in KINDS:
    PrototypeIndex(vectors, kind).save(folder / kind)
    arrays, record = read_arrays(folder / kind / "index.safetensors", SavedIndex)
    numbers = [name for name in ("dim", "count", "effort", "nlist", "links", "entry")]
    for _ in range(60):
        forged, facts = {name: array.copy() for name, array in arrays.items()}, {}
        name = generator.choice(sorted(forged))
        flat = forged[name].reshape(-1)
        if generator.random() < 0.7:
            places = generator.integers(flat.size, size=3)
            if generator.random() < 0.5:
                values = np.frombuffer(generator.bytes(3 * flat.itemsize), flat.dtype)
            else:
                values = generator.integers(0, 30, 3)
            flat[places] = values
        elif generator.random() < 0.5:
            forged[name] = forged[name][:generator.integers(len(forged[name]))]
        else:
            name = generator.choice(numbers)
            odd = [-1, 0, 1, 3, 17, 401, 10**9, 10**15]
            facts = {name: int(generator.choice(odd))}
        changed = record.model_copy(update=facts)
        write_arrays(folder / kind / "index.safetensors", forged, changed)
        try:
            index = PrototypeIndex.load(folder / kind)
            found, positions = index.search(vectors[:20], 5)
            assert positions.min() >= 0 and positions.max() < 400
            assert np.isfinite(found).all()
            index.add(vectors[:3])
        except ValueError:
            refused += 1
print(refused)
"""


def test_a_forged_index_cannot_end_the_process(tmp_path):
    (tmp_path / "indexes").mkdir()
    printed, _ = program(tmp_path, FORGER, tmp_path / "indexes").finish()
    assert int(printed) > 100
