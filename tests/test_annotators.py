"""One method teaches another: what an annotator says, and what a clone makes of it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from clipadapt import (
    CPL,
    FLYP,
    FPL,
    LPCLIP,
    Adapter,
    CoReg,
    FeatureSet,
    ImageSet,
    LatteCLIP,
    Prototypes,
    ZeroShot,
    digits,
)
from clipadapt.app.runs import configure
from clipadapt.clip.features import fit_facts
from clipadapt.judge.compare import run_all
from clipadapt.learning.adapter import Taught, annotations
from clipadapt.learning.pseudolabels import top_k
from clipadapt.methods import flyp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(80))


@pytest.fixture(scope="module")
def unlabelled(images):
    return np.full(len(images), -1)


class Remembers(Taught, ZeroShot):
    """Knows the images of `fit` by heart: the answers are where they stand."""

    def __init__(self, clip, classnames, *, annotator=None, seed=0):
        super().__init__(clip, classnames, seed=seed)
        self.annotator = annotator

    def _fit(self, images, labels):
        super()._fit(images, labels)
        places = np.where(labels >= 0, labels, np.arange(len(images)) % 10)
        self._keep_assignments(torch.eye(10)[places])


@pytest.mark.parametrize("kind", [ZeroShot, Prototypes])
def test_without_a_hook_the_pool_is_predicted(clip, images, kind):
    found = kind(clip, images.classnames).fit_predict_proba(images)
    assert found.dtype == np.float32 and found.shape == (80, 10)
    fitted = kind(clip, images.classnames).fit(images)
    assert np.array_equal(found, fitted.predict_proba(images))


def test_the_hook_answers_for_the_pool_and_gets_labels(clip, images):
    method = Remembers(clip, images.classnames)
    found = method.fit_predict_proba(images)
    assert np.array_equal(found.argmax(1), np.arange(80) % 10)
    assert not np.array_equal(method.predict_proba(images), found)
    y = np.where(np.arange(80) < 20, images.labels, -1)
    known = method.fit_predict_proba(images, y).argmax(1)
    assert np.array_equal(known[:20], images.labels[:20])
    assert np.array_equal(known[20:], np.arange(20, 80) % 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pool_that_is_not_finite_is_refused(clip, images, bad):
    method = Remembers(clip, images.classnames)
    method._pool_proba = lambda some: torch.full((len(some), 10), bad)
    with pytest.raises(ValueError, match="not finite"):
        method.fit_predict_proba(images)


@pytest.mark.parametrize(
    "make", [lambda images: images, lambda images: [image for image, _ in images]]
)
def test_fit_predict_proba_takes_what_fit_takes(clip, images, make):
    method = Prototypes(clip, images.classnames)
    expected = method.fit_predict_proba(images)
    assert np.allclose(method.fit_predict_proba(make(images)), expected, atol=1e-5)
    features = FeatureSet(clip.encode_image(images), images.classnames)
    assert np.allclose(method.fit_predict_proba(features), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no images"):
        method.fit_predict_proba([])


def test_an_annotator_is_fitted_as_a_copy_or_asked(clip, images, unlabelled):
    names, teacher = images.classnames, Remembers(clip, images.classnames)
    said = annotations(teacher, images, unlabelled, names)
    assert said.dtype == torch.float32 and said.shape == (80, 10)
    assert np.array_equal(said.argmax(1), np.arange(80) % 10)
    assert not hasattr(teacher, "classnames_")
    assert (
        annotations(teacher, images, images.labels, names).argmax(1).numpy()
        == images.labels
    ).all()
    teacher.fit(images)
    said = annotations(teacher, images, images.labels, names)
    assert np.array_equal(said, teacher.predict_proba(images))
    assert annotations(None, images, unlabelled, names) is None


def test_labels_of_the_images_are_not_read_and_their_order_does_not_matter(
    clip, images
):
    """Images that count their classes backwards, as a student without labels gets."""
    names, turned = images.classnames, images.classnames[::-1]
    backwards = ImageSet(images.images, turned, 9 - images.labels)
    expected = Prototypes(clip, names).fit_predict_proba(images)
    for some in (backwards, backwards.unlabelled(), images.unlabelled()):
        y = np.full(len(some), -1)
        assert np.array_equal(
            annotations(Prototypes(clip, names), some, y, names), expected
        )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda clip, names: "Prototypes", "must be a method.*not 'Prototypes'"),
        (lambda clip, names: Prototypes, "must be a method"),
        (
            lambda clip, names: ZeroShot(clip, names[::-1]),
            "another order of them: nine",
        ),
        (lambda clip, names: ZeroShot(clip, names[:9]), "other class names"),
        (lambda clip, names: ZeroShot(clip, ["x", "x"]), "distinct"),
        (lambda clip, names: ZeroShot(clip, ["x" * 10**6]), "other class names"),
        (
            lambda clip, names: ZeroShot(clip, names[::-1]).fit(
                torch.zeros(1, 3, 8, 8)
            ),
            "another order",
        ),
    ],
)
def test_what_cannot_teach_is_named(clip, images, unlabelled, make, message):
    names = images.classnames
    with pytest.raises(ValueError, match=message) as error:
        annotations(make(clip, names), images, unlabelled, names)
    assert len(str(error.value)) < 500


def test_a_clone_keeps_what_a_fitted_annotator_has_learned(clip, images):
    names = images.classnames
    fitted = Prototypes(clip, names).fit(images)
    assert clone(Remembers(clip, names, annotator=fitted)).annotator is fitted
    student = Remembers(clip, names, annotator=Prototypes(clip, names, momentum=0.2))
    twin = clone(student.fit(images))
    assert twin.annotator is not student.annotator and twin.annotator.momentum == 0.2
    assert not hasattr(twin, "classnames_")
    assert clone(Remembers(clip, names)).annotator is None
    chain = Remembers(clip, names, annotator=Remembers(clip, names, annotator=fitted))
    assert clone(chain).annotator.annotator is fitted


def test_parameters_of_an_annotator_are_parameters(clip, images):
    names = images.classnames
    student = Remembers(clip, names, annotator=Prototypes(clip, names))
    assert student.get_params()["annotator__momentum"] == 0.7
    assert student.set_params(annotator__momentum=0.1).annotator.momentum == 0.1
    assert "Prototypes" in repr(student)
    assert "annotator__momentum" not in student.get_params(deep=False)


def test_an_adapter_of_ones_own_teaches(clip, images, unlabelled):
    """Whoever writes `_predict_proba` only is an annotator already."""

    class Always(Adapter):
        def _fit(self, images, labels):
            self.first_ = 3

        def _predict_proba(self, images):
            return np.tile(np.arange(10) == self.first_, (len(images), 1))

    names = images.classnames
    said = annotations(Always(clip, names), images, unlabelled, names)
    assert said.dtype == torch.float32 and (said.argmax(1) == 3).all()


def facts(student, images):
    return fit_facts(student, images)["annotator"]


def test_a_fit_depends_on_what_its_annotator_is_and_has_learned(clip, images):
    names, few = images.classnames, images.subset(range(40))
    plain = Remembers(clip, names)
    assert "annotator" not in fit_facts(plain, images)

    def student(annotator):
        return Remembers(clip, names, annotator=annotator)

    def prototypes(**params):
        return Prototypes(clip, names, **params)

    different = [
        prototypes(),
        prototypes(momentum=0.2),
        prototypes().fit(images),
        prototypes().fit(few),
        ZeroShot(clip, names),
        student(prototypes()),
        student(prototypes(momentum=0.2)),
    ]
    found = [facts(student(annotator), images) for annotator in different]
    assert len(set(found)) == len(different)
    again = prototypes().fit(few)
    again.predict(images)
    assert facts(student(again), images) == found[3]
    assert facts(clone(student(again)), images) == found[3]


def test_an_annotator_with_parameters_of_any_kind_counts(clip, images):
    class Odd(ZeroShot):
        def __init__(self, clip, classnames, *, says=None, seed=0):
            super().__init__(clip, classnames, seed=seed)
            self.says = says

    names = images.classnames

    def of(says):
        annotator = Odd(clip, names, says=says)
        return facts(Remembers(clip, names, annotator=annotator), images)

    first, second = np.arange(3), np.arange(1, 4)
    values = [first, second, torch.arange(4), np.argmax, ("a", 1), None]
    assert len({of(value) for value in values}) == len(values)
    assert of(first) == of(first.copy()) and of(object()) == of(object())


def test_a_kept_comparison_is_not_taken_for_one_with_another_annotator(
    clip, images, tmp_path
):
    names, few = images.classnames, images.subset(range(20))
    for annotator in (None, Prototypes(clip, names)):
        method = FLYP(clip, names, annotator=annotator, **{**flyp.SMALL, "epochs": 1})
        if annotator is None:
            (kept,) = run_all({"it": method}, few, few, folder=tmp_path)
            assert kept.error is None
            continue
        with pytest.raises(ValueError, match="another run: annotator changed"):
            run_all({"it": method}, few, few, folder=tmp_path)


@pytest.mark.parametrize("kind", [FPL, CPL, CoReg, LPCLIP, LatteCLIP, FLYP])
def test_an_annotator_that_does_not_fit_is_refused_before_anything_is_done(clip, kind):
    """Not even an empty set of images, or a parameter out of range, comes first."""
    names = digits("train").classnames
    for other, message in (
        (Prototypes(clip, names[::-1]), "another order"),
        ("mixture", "annotator must be a method"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(clip, names, annotator=other, epochs=-1).fit([])


@pytest.mark.parametrize("value", ["mixture", "null", '{"a": 1}'])
def test_the_command_line_says_where_an_annotator_is_given(clip, images, value):
    method = FPL(clip, images.classnames)
    for name in ("annotator", "annotator__iterations"):
        with pytest.raises(ValueError, match="is given in Python, as FPL") as error:
            configure(method, [f"{name}={value}"])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="it has .*batch_size") as error:
        configure(method, ["unknown=1"])
    assert "annotator" not in str(error.value)
    with pytest.raises(ValueError, match="Prototypes has no parameter"):
        configure(Prototypes(clip, images.classnames), [f"annotator={value}"])


def test_an_annotator_may_have_another_clip_but_reads_no_features_of_this_one(
    clip, clips, images
):
    names = images.classnames
    other = clips("plain")
    teacher = Prototypes(other, names)
    method = FPL(clip, names, annotator=teacher, epochs=1).fit(images)
    expected = top_k(teacher.fit_predict_proba(images), 16)
    found = {*map(tuple, method.pseudolabels_)}
    assert found == {*zip(expected.images, expected.classes)}
    features = FeatureSet(clip.encode_image(images), names)
    with pytest.raises(ValueError, match="features"):
        FPL(clip, names, annotator=teacher, epochs=1).fit(features)
    with pytest.raises(ValueError, match="this needs the images themselves"):
        pixels = FLYP(clip, names, **{**flyp.SMALL, "epochs": 1})
        FPL(clip, names, annotator=pixels, epochs=1).fit(features)
