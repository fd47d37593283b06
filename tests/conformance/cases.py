"""Every method with its own defaults, for two short epochs; and what cannot be done."""

import gc
import json
import re
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipadapt import (
    CLIP,
    CPL,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    OTTER,
    AnchoredMixture,
    CoReg,
    EMDirichlet,
    GaussianEM,
    ImageSet,
    InMaP,
    LatteCLIP,
    NearestNeighbours,
    Prototypes,
    ReCLIP,
    StatA,
    TransCLIP,
    ZeroShot,
    ZLaP,
)
from clipadapt.learning.adapter import Adapter, read_saved
from clipadapt.learning.training import return_memory
from clipadapt.methods.coreg import PUBLISHED

HANDWRITING = re.compile(r"\b(digits?|handwrit\w*|glyphs?|scans?)\b", re.IGNORECASE)


class Case(NamedTuple):
    """A method, what is not left as it is, which images have labels, and captions."""

    method: type[Adapter]
    params: dict = {}
    labelled: str = "none"  # or "every class", "some classes"
    captions: bool = False


def _prompts() -> dict[str, Case]:
    """FPL, IFPL, GRIP and CPL, each with every prompt and with every setting.

    `k` is 1, since 16 pseudolabels a class would be more than there are images.
    """
    settings = ("none", "every class", "some classes")
    cases = {}
    for row, method in enumerate((FPL, IFPL, GRIP, CPL)):
        for column, prompt in enumerate(("textual", "visual", "multimodal")):
            labelled = settings[(row + column) % 3]
            params = {"prompt": prompt, "epochs": 2, "rounds": 2}
            params |= {} if method is CPL else {"k": 1}
            name = f"{method.__name__}, {prompt}, labels: {labelled}"
            if labelled == "some classes":
                params["pool"] = "unseen"
            cases[name] = Case(method, params, labelled)
    return cases


_COREG = {"epochs": 2, "warmup_epochs": 1, "delay": 0}
CASES = {
    "ZeroShot": Case(ZeroShot),
    "ZeroShot, DTD's templates": Case(
        ZeroShot, {"templates": "DTD", "ensemble": "probability"}
    ),
    "NearestNeighbours": Case(NearestNeighbours),
    "Prototypes": Case(Prototypes),
    "AnchoredMixture": Case(AnchoredMixture),
    "TransCLIP": Case(TransCLIP),
    "StatA": Case(StatA),
    "ZLaP": Case(ZLaP),
    "GaussianEM": Case(GaussianEM),
    "EMDirichlet": Case(EMDirichlet, {"iterations": 3, "steps": 50}),
    "OTTER": Case(OTTER),
    "InMaP": Case(InMaP, {"steps": 100}),
    **_prompts(),
    "CoReg, resnet": Case(CoReg, _COREG),
    "CoReg, as for EuroSAT": Case(CoReg, {**PUBLISHED["EuroSAT"], **_COREG}),
    "CoReg, head": Case(CoReg, {**_COREG, "student": "head"}),
    "CoReg, clip": Case(CoReg, {**_COREG, "student": "clip"}),
    "LatteCLIP": Case(LatteCLIP, {"epochs": 2}),
    "LatteCLIP, captions": Case(LatteCLIP, {"epochs": 2}, captions=True),
    "LPCLIP": Case(LPCLIP, {"epochs": 2}),
    "LPCLIP, new views": Case(LPCLIP, {"epochs": 2, "views": None}),
    "FLYP": Case(FLYP, {"epochs": 2}),
    "FLYP, half": Case(FLYP, {"epochs": 2, "alpha": 0.5}),
    "ReCLIP": Case(ReCLIP, {"epochs": 2}),
}
_NO_PREFIX = "not causal up to an end token, so textual prompts do not fit"
_NO_PATCHES = "visual prompts need OpenCLIP's vision transformer with a class token"


def _refusals() -> dict[tuple[str, str], str]:
    """What a kind of model cannot do, and the reason that is given."""
    of_prompt = {
        "SigLIP": {
            "textual": _NO_PREFIX,
            "visual": _NO_PATCHES,
            "multimodal": _NO_PATCHES,
        },
        "ResNet": {"visual": _NO_PATCHES, "multimodal": _NO_PATCHES},
        "ConvNeXt": {"visual": _NO_PATCHES, "multimodal": _NO_PATCHES},
    }
    refused = {}
    for kind, reasons in of_prompt.items():
        for name, case in CASES.items():
            reason = reasons.get(case.params.get("prompt"))
            if reason:
                refused[kind, name] = reason
    return refused


REFUSED = _refusals()


class Photographs(NamedTuple):
    """What a method learns from, and what it is asked about."""

    pool: ImageSet
    test: ImageSet


def choose(folder: Path, unlabelled: int, test: int = 13) -> Photographs:
    """From 47 classes of two photographs: one a class, and `unlabelled` others."""
    images = ImageSet.from_folder(folder)
    first = np.unique(images.labels, return_index=True)[1]
    others = np.setdiff1d(np.arange(len(images)), first)
    pool = images.subset(np.concatenate([first, others[:unlabelled]]))
    return Photographs(pool, images.subset(others[-test:]))


def _labels(case: Case, pool: ImageSet) -> np.ndarray | None:
    """Labels of the first 47 images, of those of 30 classes, or none."""
    if case.labelled == "none":
        return None
    labels = np.array(pool.labels)
    labels[len(pool.classnames) :] = -1
    if case.labelled == "some classes":
        labels[labels >= 30] = -1
    return labels


def _learn(method: Adapter, case: Case, photographs: Photographs, most: int | None):
    """Fit a method as its case says; without labels on the last `most` images."""
    pool, labels = photographs.pool, _labels(case, photographs.pool)
    if labels is None and most:
        pool = pool.subset(np.arange(len(pool))[-most:])
    if not case.captions:
        return method.fit(pool, labels)
    count = len(pool)
    images = [f"a coarse surface with {number % 5} shades" for number in range(count)]
    return method.fit(pool, labels, captions={"image": images, "group": images[::-1]})


def check_answers(method: Adapter, images: ImageSet) -> np.ndarray:
    """The probabilities of a fitted method, if they are probabilities."""
    probabilities = method.predict_proba(images)
    assert probabilities.shape == (len(images), len(images.classnames))
    assert np.isfinite(probabilities).all() and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    return probabilities


def check_words(text: str, where: str) -> None:
    """AssertionError for a text that takes photographs for handwriting."""
    found = HANDWRITING.search(text)
    assert not found, f"{where} says {found}: {text[:400]}"


class Result(NamedTuple):
    """How a case went: "ok", "refused" (and why), or "failed" (and how)."""

    status: str
    reason: str
    seconds: float
    processor_seconds: float


def try_case(
    clip: CLIP,
    name: str,
    photographs: Photographs,
    folder: Path,
    most: int | None = None,
    **changed,
) -> Result:
    """Fit, predict, save, load and predict again; never raises.

    most: how many images a method without labels learns from (None: all).
    changed: parameters that are not those of the case.
    """
    start, processor = time.perf_counter(), time.process_time()
    try:
        _try_case(clip, CASES[name], photographs, folder, most, changed)
        status, reason = "ok", ""
    except ValueError as error:
        status, reason = "refused", str(error)
    except Exception:
        status, reason = "failed", traceback.format_exc(limit=-4)
    spent = time.perf_counter() - start, time.process_time() - processor
    return Result(status, reason, *spent)


def _try_case(clip, case, photographs, folder, most, changed) -> None:
    classnames, test = photographs.pool.classnames, photographs.test
    method = case.method(clip, classnames, **{**case.params, **changed})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _learn(method, case, photographs, most)
        answers = check_answers(method, test)
    method.save(folder)
    texts = [repr(method)]
    del method  # its towers would count among what the next one needs
    gc.collect()
    return_memory()
    record = read_saved(folder)[0]
    texts.append(json.dumps(record.model_dump(), default=str))
    loaded = case.method.load(folder, clip)
    np.testing.assert_allclose(check_answers(loaded, test), answers, atol=1e-4)
    for text in texts + [str(warning.message) for warning in said]:
        check_words(text, case.method.__name__)
