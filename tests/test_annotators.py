"""One method teaches another: what an annotator says, and what a clone makes of it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from clipadapt import Adapter, FeatureSet, ImageSet, Prototypes, ZeroShot, digits
from clipadapt.learning.adapter import annotations, annotator_name

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(80))


@pytest.fixture(scope="module")
def unlabelled(images):
    return np.full(len(images), -1)


class Remembers(ZeroShot):
    """Knows the images of `fit` by heart: the answers are where they stand."""

    unsaved = (*ZeroShot.unsaved, "annotator")

    def __init__(self, clip, classnames, *, annotator=None, seed=0):
        super().__init__(clip, classnames, seed=seed)
        self.annotator = annotator

    def _fit(self, images, labels):
        super()._fit(images, labels)
        places = np.where(labels >= 0, labels, np.arange(len(images)) % 10)
        self._assignments = torch.eye(10)[places]

    def _pool_proba(self, images):
        return self._assignments


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
    assert annotator_name(teacher) == "Remembers" and annotator_name(None) == ""


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
