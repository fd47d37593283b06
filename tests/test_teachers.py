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
STUDENTS = {  # what lifts them visibly; where that is not the question, see QUICK
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
QUICK = {
    CoReg: {**STUDENTS[CoReg], "epochs": 2, "warmup_epochs": 1},
    **{student: {**STUDENTS[student], "epochs": 2} for student in (LPCLIP, LatteCLIP)},
    FLYP: {**STUDENTS[FLYP], "epochs": 2},
}
FEW = 50
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
def few(train):
    return train.subset(range(FEW))


@pytest.fixture(scope="module")
def truth(clip, train):
    return Told(clip, train.classnames, says=np.eye(10)[train.labels])


@pytest.fixture(scope="module")
def told_few(clip, few):
    return Told(clip, few.classnames, says=np.eye(10)[few.labels])


def taught(kind, clip, annotator, images, y=None, **params):
    """A student that learned from an annotator, for two epochs."""
    params = {**QUICK[kind], **params}
    method = kind(clip, digits("train").classnames, annotator=annotator, **params)
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
    params = STUDENTS[student]
    alone, told = (taught(student, clip, who, train, **params) for who in (None, truth))
    assert told.score(test) > alone.score(test) + 0.05
    assert (alone.annotator_, told.annotator_) == ("", "Told")


@each_student
def test_an_annotator_that_is_not_fitted_sees_the_images_and_labels(
    clip, student, few, told_few
):
    Told.fits.clear()
    known = np.where(np.arange(FEW) < 20, 3, -1)
    method = taught(student, clip, told_few, few, known)
    ((images, labels),) = Told.fits
    assert len(images) == FEW and (labels == known).all()
    assert (images.labels == -1).all() and not hasattr(told_few, "classnames_")
    assert (believed(method)[:20] == 3).all()


@each_student
def test_an_annotator_that_is_fitted_is_asked_and_stays_as_it_is(clip, student, few):
    annotator = Prototypes(clip, few.classnames)
    annotator.fit(digits("train").subset(range(500, 700)))
    before = bits(annotator)
    never = {"refresh": "never"} if student is FLYP else {}
    method = taught(student, clip, annotator, few, **never)
    assert (believed(method) == annotator.predict(few)).all()
    assert bits(annotator) == before


@each_student
@pytest.mark.parametrize("order", [slice(None, None, -1), slice(9)])
def test_an_annotator_of_other_classes_is_refused(clip, student, few, order):
    other = Prototypes(clip, few.classnames[order])
    with pytest.raises(ValueError, match="Prototypes, has other class names"):
        taught(student, clip, other, few)
    with pytest.raises(ValueError, match="annotator must be a method"):
        taught(student, clip, "prototypes", few)


@each_student
def test_a_saved_student_knows_who_taught_it(clip, student, few, told_few, tmp_path):
    method = taught(student, clip, told_few, few)
    method.save(tmp_path)
    loaded = student.load(tmp_path, clip)
    assert loaded.annotator_ == "Told" and loaded.annotator is None
    assert np.array_equal(loaded.predict_proba(few), method.predict_proba(few))


def pull_the_plug(method):
    if len(method.history_) == 1:
        return {}
    raise KeyboardInterrupt


@each_with_checkpoints
def test_a_killed_fit_goes_on_with_its_own_annotator_alone(
    clip, student, few, told_few, tmp_path
):
    params = {**QUICK[student], "checkpoint": str(tmp_path / "run.safetensors")}
    method = student(clip, few.classnames, annotator=told_few, **params)
    with pytest.raises(KeyboardInterrupt):
        method.fit(few, callbacks=pull_the_plug)
    other = Told(clip, few.classnames, says=np.roll(told_few.says, 1, 1))
    for annotator in (other, None):
        method.set_params(annotator=annotator)
        with pytest.raises(ValueError, match="another run: annotator changed"):
            method.fit(few)
    method.set_params(annotator=told_few).fit(few)
    assert bits(method) == bits(taught(student, clip, told_few, few))


def test_a_checkpoint_without_an_annotator_is_not_taken_up_with_one(
    clip, few, told_few, tmp_path
):
    params = {**QUICK[FLYP], "checkpoint": str(tmp_path / "run.safetensors")}
    method = FLYP(clip, few.classnames, **params)
    with pytest.raises(KeyboardInterrupt):
        method.fit(few, callbacks=pull_the_plug)
    with pytest.raises(ValueError, match="another run: annotator changed"):
        method.set_params(annotator=told_few).fit(few)


# What is particular to one of them.


@pytest.mark.parametrize(
    "annotation, candidates",
    [("union", 1), ("top-k", 2), ("ratio", 3), ("threshold", 1), ("mean", 3)],
)
def test_coreg_reads_an_annotator_as_it_reads_the_mean_of_templates(
    clip, few, annotation, candidates
):
    said = np.tile([0.5, 0.3, 0.2, *[0] * 7], (FEW, 1))
    annotator = Told(clip, few.classnames, says=said)
    reading = {"annotation": annotation, "k": 2, "epochs": 1, "warmup_epochs": 1}
    method = taught(CoReg, clip, annotator, few, **reading)
    assert (method.candidates_[:, :candidates]).all()
    assert (method.candidates_.sum(1) == candidates).all()


def test_coreg_estimates_its_prior_from_the_annotator(clip, few, monkeypatch):
    said = np.tile([0.46, *[0.06] * 9], (FEW, 1))
    annotator = Told(clip, few.classnames, says=said)
    priors = []
    check = CoReg._show
    monkeypatch.setattr(
        CoReg, "_show", lambda self, run: priors.append(run.prior) or check(self, run)
    )
    short = {"epochs": 1, "warmup_epochs": 1, "prior": "clip"}
    taught(CoReg, clip, annotator, few, **short)
    np.testing.assert_allclose(priors[-1], said[0], atol=1e-6)


def test_coreg_takes_one_annotation_only(clip, few, told_few):
    with pytest.raises(ValueError, match="both an annotator and candidates"):
        method = CoReg(clip, few.classnames, annotator=told_few, **QUICK[CoReg])
        method.fit(few, candidates=np.eye(10, dtype=bool)[few.labels])
    with pytest.raises(ValueError, match="annotation='prototypes'"):
        taught(CoReg, clip, told_few, few, annotation="prototypes")


@pytest.mark.filterwarnings("ignore:no image was assigned")
def test_lpclip_takes_the_confidence_of_its_annotator(clip, few):
    voting = NearestNeighbours(clip, few.classnames)
    method = taught(LPCLIP, clip, voting, few, epochs=1)
    said = voting.fit_predict_proba(few)
    assert np.array_equal(method.pseudolabels_, said.argmax(1))
    np.testing.assert_allclose(method.confidences_, said.max(1), atol=1e-6)
    softer = taught(LPCLIP, clip, voting, few, epochs=1, temperature=2.0)
    assert np.array_equal(softer.pseudolabels_, method.pseudolabels_)
    doubting = said.max(1) < 1
    assert (softer.confidences_[doubting] < method.confidences_[doubting]).all()


def test_lpclip_encodes_no_view_for_an_annotator(clip, told_few):
    alone, told = (
        LPCLIP(clip, told_few.classnames, annotator=who, views=2)
        for who in (None, told_few)
    )
    assert told.encoded_views() and len(told.encoded_views()) == 2
    assert len(alone.encoded_views()) == 3


@pytest.mark.parametrize("refresh", flyp.REFRESH)
def test_flyp_keeps_the_labels_of_an_annotator_for_an_epoch(
    clip, few, told_few, refresh
):
    method = taught(FLYP, clip, told_few, few, epochs=1, refresh=refresh)
    assert np.array_equal(method.pseudolabels_, few.labels)
    assert method.history_[0]["changed"] == 0
