"""Students that learn from an annotator: CoReg, LPCLIP, LatteCLIP and FLYP."""

import numpy as np
import pytest

from clipadapt import (
    FLYP,
    LPCLIP,
    CoReg,
    LatteCLIP,
    NearestNeighbours,
    Prototypes,
    digits,
)
from clipadapt.learning.adapter import Adapter
from clipadapt.methods import flyp, latteclip, lpclip

COUNT = 200
TOWERS = {"epochs": 3, "batch_size": 50}
STUDENTS = {  # each learns for a second or two
    CoReg: {
        "student": "head",
        "templates": "single",
        "flip": False,
        "views": 2,
        "epochs": 8,
        "warmup_epochs": 4,
        "batch_size": 50,
        "learning_rate": 0.05,
        "ramp": 1,
        "delay": 0,
        "queue": 100,
    },
    LPCLIP: {**lpclip.SMALL, "views": 2, "epochs": 20},
    LatteCLIP: {**latteclip.SMALL, **TOWERS},
    FLYP: {**flyp.SMALL, **TOWERS},
}
each_student = pytest.mark.parametrize("student", STUDENTS)
each_with_checkpoints = pytest.mark.parametrize("student", [CoReg, LatteCLIP, FLYP])

pytestmark = pytest.mark.usefixtures("one_thread")


class Told(Adapter):
    """Says what it was told of the images, float32 [N, C], whatever they are."""

    fits = []  # the images and labels of every fit

    def __init__(self, clip, classnames, *, says=None, seed=0):
        super().__init__(clip, classnames, seed=seed)
        self.says = says

    def _fit(self, images, labels):
        self.fits.append((images, labels))

    def _predict_proba(self, images):
        return np.array(self.says, np.float32)


@pytest.fixture(scope="module")
def train():
    return digits("train").subset(range(COUNT))


@pytest.fixture(scope="module")
def test():
    return digits("test").subset(range(COUNT))


@pytest.fixture(scope="module")
def truth(clip, train):
    return Told(clip, train.classnames, says=np.eye(10)[train.labels])


def taught(student, clip, annotator, images, y=None, **params):
    """A student on the handwriting that learned from an annotator."""
    params = {**STUDENTS[student], **params}
    method = student(clip, digits("train").classnames, annotator=annotator, **params)
    return method.fit(images, y)


def believed(method):
    """The classes that a student was told, int64 [N]."""
    if isinstance(method, CoReg):
        return method.candidates_.argmax(1)
    return method.guesses_ if isinstance(method, LatteCLIP) else method.pseudolabels_


def bits(method):
    return {
        name: value.tobytes()
        for name, value in vars(method).items()
        if isinstance(value, np.ndarray)
    }


@each_student
def test_a_student_of_the_truth_is_better_than_one_of_clip(
    clip, student, train, test, truth
):
    alone, told = (taught(student, clip, who, train) for who in (None, truth))
    assert told.score(test) > alone.score(test) + 0.05
    assert (alone.annotator_, told.annotator_) == ("", "Told")


@each_student
def test_an_annotator_that_is_not_fitted_sees_the_images_and_labels(
    clip, student, train, truth
):
    Told.fits.clear()
    known = np.where(np.arange(COUNT) < 20, 3, -1)
    method = taught(student, clip, truth, train, known, epochs=5)
    ((images, labels),) = Told.fits
    assert len(images) == COUNT and (labels == known).all()
    assert (images.labels == -1).all() and not hasattr(truth, "classnames_")
    assert (believed(method)[:20] == 3).all()


@each_student
def test_an_annotator_that_is_fitted_is_asked_and_stays_as_it_is(clip, student, train):
    annotator = Prototypes(clip, train.classnames)
    annotator.fit(digits("train").subset(range(500, 700)))
    before = bits(annotator)
    never = {"refresh": "never"} if student is FLYP else {}
    method = taught(student, clip, annotator, train, **never, epochs=5)
    assert (believed(method) == annotator.predict(train)).all()
    assert bits(annotator) == before


@each_student
@pytest.mark.parametrize("order", [slice(None, None, -1), slice(9)])
def test_an_annotator_of_other_classes_is_refused(clip, student, train, order):
    other = Prototypes(clip, train.classnames[order])
    with pytest.raises(ValueError, match="Prototypes, has other class names"):
        taught(student, clip, other, train)
    with pytest.raises(ValueError, match="annotator must be a method"):
        taught(student, clip, "prototypes", train)


@each_student
def test_a_saved_student_knows_who_taught_it(clip, student, train, truth, tmp_path):
    method = taught(student, clip, truth, train, epochs=5)
    method.save(tmp_path)
    loaded = student.load(tmp_path, clip)
    assert loaded.annotator_ == "Told" and loaded.annotator is None
    assert np.array_equal(loaded.predict_proba(train), method.predict_proba(train))


def pull_the_plug(method):
    if len(method.history_) == 1:
        return {}
    raise KeyboardInterrupt


@each_with_checkpoints
def test_a_killed_fit_goes_on_with_its_own_annotator_alone(
    clip, student, train, truth, tmp_path
):
    params = {**STUDENTS[student], "checkpoint": str(tmp_path / "run.safetensors")}
    method = student(clip, train.classnames, annotator=truth, **params)
    with pytest.raises(KeyboardInterrupt):
        method.fit(train, on_epoch=pull_the_plug)
    other = Told(clip, train.classnames, says=np.roll(truth.says, 1, 1))
    for annotator in (other, None):
        method.set_params(annotator=annotator)
        with pytest.raises(ValueError, match="another run: annotations changed"):
            method.fit(train)
    method.set_params(annotator=truth).fit(train)
    assert bits(method) == bits(taught(student, clip, truth, train))


def test_a_checkpoint_without_an_annotator_is_not_taken_up_with_one(
    clip, train, truth, tmp_path
):
    params = {**STUDENTS[FLYP], "checkpoint": str(tmp_path / "run.safetensors")}
    method = FLYP(clip, train.classnames, **params)
    with pytest.raises(KeyboardInterrupt):
        method.fit(train, on_epoch=pull_the_plug)
    with pytest.raises(ValueError, match="another run: annotations changed"):
        method.set_params(annotator=truth).fit(train)


# What is particular to one of them.


@pytest.mark.parametrize(
    "annotation, candidates",
    [("union", 1), ("top-k", 2), ("ratio", 3), ("threshold", 1), ("mean", 3)],
)
def test_coreg_reads_an_annotator_as_it_reads_the_mean_of_templates(
    clip, train, annotation, candidates
):
    said = np.tile([0.5, 0.3, 0.2, *[0] * 7], (COUNT, 1))
    annotator = Told(clip, train.classnames, says=said)
    reading = {"annotation": annotation, "k": 2, "epochs": 1, "warmup_epochs": 1}
    method = taught(CoReg, clip, annotator, train, **reading)
    assert (method.candidates_[:, :candidates]).all()
    assert (method.candidates_.sum(1) == candidates).all()


def test_coreg_estimates_its_prior_from_the_annotator(clip, train, monkeypatch):
    said = np.tile([0.46, *[0.06] * 9], (COUNT, 1))
    annotator = Told(clip, train.classnames, says=said)
    priors = []
    check = CoReg._show
    monkeypatch.setattr(
        CoReg, "_show", lambda self, run: priors.append(run.prior) or check(self, run)
    )
    short = {"epochs": 1, "warmup_epochs": 1, "prior": "clip"}
    taught(CoReg, clip, annotator, train, **short)
    np.testing.assert_allclose(priors[-1], said[0], atol=1e-6)


def test_coreg_takes_one_annotation_only(clip, train, truth):
    with pytest.raises(ValueError, match="both an annotator and candidates"):
        method = CoReg(clip, train.classnames, annotator=truth, **STUDENTS[CoReg])
        method.fit(train, candidates=np.eye(10, dtype=bool)[train.labels])
    with pytest.raises(ValueError, match="annotation='prototypes'"):
        taught(CoReg, clip, truth, train, annotation="prototypes")


def test_lpclip_takes_the_confidence_of_its_annotator(clip, train):
    voting = NearestNeighbours(clip, train.classnames)
    method = taught(LPCLIP, clip, voting, train, epochs=1)
    said = voting.fit_predict_proba(train)
    assert np.array_equal(method.pseudolabels_, said.argmax(1))
    np.testing.assert_allclose(method.confidences_, said.max(1), atol=1e-6)
    softer = taught(LPCLIP, clip, voting, train, epochs=1, temperature=2.0)
    assert np.array_equal(softer.pseudolabels_, method.pseudolabels_)
    doubting = said.max(1) < 1
    assert (softer.confidences_[doubting] < method.confidences_[doubting]).all()


def test_lpclip_encodes_no_view_for_an_annotator(clip, truth):
    alone, told = (
        LPCLIP(clip, truth.classnames, annotator=who, views=2) for who in (None, truth)
    )
    assert told.encoded_views() and len(told.encoded_views()) == 2
    assert len(alone.encoded_views()) == 3


@pytest.mark.parametrize("refresh", flyp.REFRESH)
def test_flyp_keeps_the_labels_of_an_annotator_for_an_epoch(
    clip, train, truth, refresh
):
    method = taught(FLYP, clip, truth, train, epochs=1, refresh=refresh)
    assert np.array_equal(method.pseudolabels_, train.labels)
    assert method.history_[0]["changed"] == 0
