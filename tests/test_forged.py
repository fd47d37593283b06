"""Saved methods and checkpoints with a right hash and a wrong content: refused when
they are read, in one sentence."""

import numpy as np
import pytest

from clipadapt import (
    CPL,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    CoReg,
    LatteCLIP,
    ReCLIP,
    digits,
)
from clipadapt.images.files import read_arrays, write_arrays
from clipadapt.learning.adapter import SavedMethod
from clipadapt.learning.training import SavedRun
from clipadapt.methods import flyp, latteclip, reclip

TINY_COREG = {
    "image_size": 8,
    "flip": False,
    "options": {"width": 4, "depth": [1, 1]},
    "views": 1,
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 16,
    "ramp": 1,
    "delay": 0,
    "queue": 40,
}
CAPTIONS = {"image": [f"a drawing of number {i % 7}" for i in range(20)]}
METHODS = {
    "CoReg": (CoReg, TINY_COREG),
    "CoReg, head": (
        CoReg,
        {**TINY_COREG, "student": "head", "options": None, "image_size": None},
    ),
    "FPL": (FPL, {"k": 1, "epochs": 1}),
    "IFPL": (
        IFPL,
        {
            "prompt": "visual",
            "k": 1,
            "rounds": 2,
            "epochs": 1,
            "options": {"length": 2, "deep": True},
        },
    ),
    "GRIP": (
        GRIP,
        {
            "prompt": "multimodal",
            "rounds": 2,
            "epochs": 1,
            "options": {"length": 2, "width": 8},
        },
    ),
    "CPL": (CPL, {"rounds": 2, "epochs": 1, "options": {"length": 2}}),
    "LP-CLIP": (LPCLIP, {"epochs": 2, "views": 1}),
    "LatteCLIP": (LatteCLIP, {**latteclip.SMALL, "epochs": 2, "batch_size": 20}),
    "FLYP": (FLYP, {**flyp.SMALL, "epochs": 2, "batch_size": 20}),
    "ReCLIP": (ReCLIP, {**reclip.SMALL, "epochs": 1}),
}


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(20))


@pytest.fixture(scope="module")
def fitted(clip, images, tmp_path_factory):
    """Every method, fitted with a checkpoint and saved, when first asked for: class,
    parameters, folder."""
    made = {}

    def get(name):
        if name not in made:
            kind, params = METHODS[name]
            folder = tmp_path_factory.mktemp("method")
            if kind is not LPCLIP:
                params = {**params, "checkpoint": str(folder / "run.safetensors")}
            method = kind(clip, images.classnames, **params)
            fit(method, images).save(folder / "saved")
            made[name] = kind, params, folder
        return made[name]

    return get


def fit(method, images):
    return (
        method.fit(images, captions=CAPTIONS)
        if isinstance(method, LatteCLIP)
        else method.fit(images)
    )


def array_forgeries(arrays):
    """Wrong contents for every array, each as (what, all arrays). A longer one fits
    where nothing says how many images there were."""
    for name, array in arrays.items():
        changes = {
            "gone": None,
            "longer": np.concatenate([array.ravel(), array.ravel()[:1]]),
            "another shape": array[None],
            "doubles": array.astype(np.float64),
            "texts of numbers": array.astype(np.int8),
        }
        if array.dtype.kind == "f" and array.size:
            changes["not finite"] = np.full_like(array, np.nan)
        if array.dtype.kind == "i" and array.size:
            changes |= {"too large": array + 10**6, "negative": array - 10**6}
        for what, changed in changes.items():
            yield (
                f"{name} {what}",
                {
                    other: value
                    for other, value in {**arrays, name: changed}.items()
                    if value is not None
                },
            )
    yield "one more", {**arrays, "more_": np.zeros(3, np.float32)}


def value_forgeries(values):
    for name in values:
        for value in (None, -1, 10**12, "x", {}, [[[]]], float("nan")):
            yield f"{name}={value!r}", {**values, name: value}
        yield (
            f"{name} gone",
            {other: value for other, value in values.items() if other != name},
        )
    yield "one more", {**values, "_predict_logits": 3}


def load_and_predict(kind, folder, clip, images):
    """None, or the ValueError of `load`; predictions must then be probabilities."""
    try:
        method = kind.load(folder, clip)
    except ValueError as error:
        assert str(folder) in str(error), "the message must name the file"
        return error
    probabilities = method.predict_proba(images)
    assert (
        probabilities.shape == (len(images), len(method.classnames_))
        and np.isfinite(probabilities).all()
    )
    return None


ANNOTATORS = ("annotator_='x'", "annotator_ gone")  # a name that is only shown


def cases(names):
    """LatteCLIP is slow to forge, and keeps what FLYP keeps and little more."""
    large = [pytest.mark.large]
    return [pytest.param(n, marks=large if n == "LatteCLIP" else ()) for n in names]


@pytest.mark.parametrize("name", cases(METHODS))
def test_forged_methods_are_refused_or_harmless(clip, images, fitted, tmp_path, name):
    kind, _, folder = fitted(name)
    arrays, record = read_arrays(
        folder / "saved" / "adapter.safetensors", SavedMethod, ""
    )
    place, few, path = (
        tmp_path / "forged",
        images.subset(range(2)),
        tmp_path / "forged" / "adapter.safetensors",
    )
    write_arrays(path, arrays, record)
    assert load_and_predict(kind, place, clip, few) is None
    for what, forged in array_forgeries(arrays):
        write_arrays(path, forged, record)
        error = load_and_predict(kind, place, clip, few)
        assert error is not None or what == "pseudolabels_ longer", what
    for what, forged in value_forgeries(record.fitted):
        write_arrays(path, arrays, record.model_copy(update={"fitted": forged}))
        error = load_and_predict(kind, place, clip, few)
        harmless = what.startswith(("history_", "missing_")) or what in ANNOTATORS
        assert error is not None or harmless, what
    for _, forged in value_forgeries(record.params):
        write_arrays(path, arrays, record.model_copy(update={"params": forged}))
        load_and_predict(kind, place, clip, few)


OPTIONS = [
    {"width": 10**9},
    {"width": 10**5},
    {"depth": [10**9]},
    {"depth": [1] * 40},
    {"depth": "x"},
    {"stride": 0},
    {"stride": 10**6},
    {"embedding": 10**9},
    {"embedding": -1},
    {"length": 10**9},
    {"length": 10**9, "deep": True},
    {"length": "x"},
    {"length": 2.5},
    {"words": 5},
    {"words": "a b c"},
    {"attention": 3},
    {"templates": "no gap"},
    {"templates": 3},
    {"nothing": 1},
]


@pytest.mark.parametrize("name", ["CoReg", "CoReg, head", "FPL", "IFPL", "GRIP", "CPL"])
def test_forged_options_are_refused_before_they_take_memory(
    clip, images, fitted, tmp_path, name
):
    kind, _, folder = fitted(name)
    arrays, record = read_arrays(
        folder / "saved" / "adapter.safetensors", SavedMethod, ""
    )
    for options in OPTIONS:
        params = {**record.params, "options": options}
        write_arrays(
            tmp_path / "adapter.safetensors",
            arrays,
            record.model_copy(update={"params": params}),
        )
        assert (
            load_and_predict(kind, tmp_path, clip, images.subset(range(3))) is not None
        ), options


OWN = ("bank", "prompt", "pseudo", "used", "weights", "classifiers", "0.said")
HARMLESS = (
    "one more",
    "momentum_buffer gone",
    "losses longer",
)  # nobody reads it; not trained yet; an epoch more


@pytest.mark.parametrize(
    "name", cases(name for name in METHODS if name not in ("LP-CLIP", "CoReg, head"))
)
def test_forged_checkpoints_are_refused(clip, images, fitted, name):
    kind, params, folder = fitted(name)
    path = folder / "run.safetensors"
    arrays, run = read_arrays(path, SavedRun, "")
    tried = [
        (what, forged)
        for what, forged in array_forgeries(arrays)
        if not what.endswith(HARMLESS)
    ]
    own = [pair for pair in tried if pair[0].startswith(OWN)]
    chosen = np.random.default_rng(0).permutation(len(tried))[:6]
    for what, forged in [*own, *(tried[i] for i in chosen)]:
        write_arrays(path, forged, run)
        with pytest.raises(ValueError, match="run.safetensors"):
            fit(kind(clip, images.classnames, **params), images)
            raise AssertionError(what)
    for wrong in (
        {"history": 3},
        {"history": [1]},
        {},
        {**run.record, "more": 1},
        {**run.record, "history": [{}] * 10, "round": -1},
    ):
        write_arrays(path, arrays, run.model_copy(update={"record": wrong}))
        with pytest.raises(ValueError, match="run.safetensors"):
            fit(kind(clip, images.classnames, **params), images)
    write_arrays(path, arrays, run)


def test_parameters_are_checked_before_anything_is_encoded(clip, images):
    """What a command line asks before it makes a folder: see the words of the error,
    and no image is read."""
    for kind, params in METHODS.values():
        kind(clip, images.classnames, **params)._check_parameters()
        for wrong in (
            {"epochs": -1},
            {"learning_rate": -1.0},
            {"batch_size": 0},
            {"templates": "no gap"},
        ):
            with pytest.raises(ValueError):
                kind(clip, images.classnames, **{**params, **wrong})._check_parameters()
    with pytest.raises(ValueError, match="only one class"):
        LatteCLIP(clip, ["one"], captioner=constant_captioner())._check_parameters()


def constant_captioner():
    from clipadapt.clip.captions import CallableCaptioner

    return CallableCaptioner(lambda pictures: ["a digit."] * len(pictures), "constant")
