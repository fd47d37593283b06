"""`check_adapter` catches each broken promise: one faulty method for every check, and
the fault is named."""

import numpy as np
import pytest
import torch

from clipadapt import Adapter, ZeroShot, digits, load_clip
from clipadapt.images.files import Array
from clipadapt.images.sets import as_imageset
from clipadapt.learning.testing import CHECKS, check_adapter


class NotAProbability(ZeroShot):
    def _predict_proba(self, images):
        return 2 * super()._predict_proba(images)


class GivesItsOwnLogitsAway(ZeroShot):
    """`_predict_logits` owes a new tensor: its caller makes probabilities of it."""

    _predict_proba = Adapter._predict_proba

    def predict_logits(self, X):
        self.asked = True
        return super().predict_logits(X)

    def _predict_logits(self, images):
        if not hasattr(self, "asked"):
            return super()._predict_logits(images)
        if not hasattr(self, "kept"):
            self.kept = super()._predict_logits(images)
        return self.kept


class PositionDependent(ZeroShot):
    def _predict_proba(self, images):
        return super()._predict_proba(images).roll(1, 0)


class BatchNormalised(ZeroShot):
    def _predict_proba(self, images):
        probabilities = super()._predict_proba(images)
        return probabilities if len(probabilities) > 1 else probabilities.roll(1, 1)


class OnlyImageSets(ZeroShot):
    def predict_proba(self, X):
        probabilities = super().predict_proba(X)
        return (
            probabilities[:, ::-1].copy()
            if isinstance(X, list) and len(X)
            else probabilities
        )


class ShapelessWhenEmpty(ZeroShot):
    def predict_proba(self, X):
        return super().predict_proba(X) if len(X) else np.empty(0, np.float32)


class FittedFromTheStart(ZeroShot):
    def _check_fitted(self):
        self.classnames_ = self.classnames


class IgnoresLabelErrors(ZeroShot):
    def fit(self, X, y=None):
        return super().fit(X)


class Unseeded(ZeroShot):
    calls = 0

    def _fit(self, images, labels):
        super()._fit(images, labels)
        Unseeded.calls += 1
        self.prompt_features_ = self.prompt_features_ + np.float32(0.1 * Unseeded.calls)


class ChangesParameter(ZeroShot):
    def __init__(
        self,
        clip,
        classnames,
        *,
        templates="a photo of a {}.",
        ensemble="embedding",
        seed=0,
    ):
        super().__init__(
            clip,
            classnames,
            templates=[templates, "a drawing of a {}."],
            ensemble=ensemble,
            seed=seed,
        )


class ForgetsState(ZeroShot):
    def _record(self):
        arrays, record = super()._record()
        return {name: array * 0 for name, array in arrays.items()}, record


class DisturbsRandomNumbers(ZeroShot):
    def fit(self, X, y=None):
        torch.rand(1)
        return super().fit(X, y)


class DrawsFromTheGlobalState(ZeroShot):
    def _fit(self, images, labels):
        super()._fit(images, labels)
        self.prompt_features_ = self.prompt_features_ + 0.1 * torch.randn(1).numpy()


class SeedsTheGlobalState(ZeroShot):
    def _fit(self, images, labels):
        torch.manual_seed(self.seed)
        super()._fit(images, labels)
        self.prompt_features_ = self.prompt_features_ + 0.1 * torch.randn(1).numpy()


class LeavesAnotherType(ZeroShot):
    fitted = {**ZeroShot.fitted, "norms_": Array("float32", "C")}

    def _fit(self, images, labels):
        super()._fit(images, labels)
        self.norms_ = np.linalg.norm(self.prompt_features_[0], axis=1).astype(
            np.float64
        )


class LeavesMoreThanItDeclares(ZeroShot):
    fitted = ZeroShot.fitted

    def _fit(self, images, labels):
        super()._fit(images, labels)
        self.count_ = len(images)


class ChangesTheModel(ZeroShot):
    def _fit(self, images, labels):
        self.clip.model.token_embedding.weight.data[0] += (
            1  # the row of a token that no prompt has
        )
        super()._fit(images, labels)


class ReadsLabels(ZeroShot):
    def fit(self, X, y=None):
        super().fit(X, y)
        self.prompt_features_ = self.prompt_features_ * np.float32(
            1 + as_imageset(X).labels[:1].sum()
        )
        return self


TRUTH = {
    np.asarray(image).tobytes(): label
    for image, label in digits("test").subset(range(20))
}


class ReadsLabelsWhenPredicting(ZeroShot):
    def predict_proba(self, X):
        probabilities = super().predict_proba(X)
        for row, (image, label) in zip(probabilities, as_imageset(X)):
            if label >= 0 and label != TRUTH[np.asarray(image).tobytes()]:
                row[:] = row[::-1].copy()
        return probabilities


class ForgetsParameters(ZeroShot):
    @classmethod
    def load(cls, directory, clip=None):
        return super().load(directory, clip).set_params(ensemble="probability")


class LeavesTrainMode(ZeroShot):
    def _fit(self, images, labels):
        super()._fit(images, labels)
        self.clip.model.ln_final.train()


class CrashesOnOneImage(ZeroShot):
    def _fit(self, images, labels):
        super()._fit(images, labels)
        [images[i] for i in range(2)]


class ForgetsTheScale(ZeroShot):
    def _predict_logits(self, images):
        return super()._predict_logits(images) / self.clip.logit_scale


class CannotSayWhereItPutThem(ZeroShot):
    def _pool_proba(self, images):
        return self._predict_proba(images).sqrt()


class ForgetsTheFit(ZeroShot):
    def _pool_proba(self, images):
        self.prompt_features_ = -self.prompt_features_
        return self._predict_proba(images)


FAULTS = [
    (CannotSayWhereItPutThem, "check_pool", "fit_predict_proba does not sum to one"),
    (ForgetsTheFit, "check_pool", "fits otherwise than fit"),
    (NotAProbability, "check_outputs", "do not sum to one"),
    (GivesItsOwnLogitsAway, "check_logits", "predict_proba"),
    (PositionDependent, "check_order_and_subset", "order of the images"),
    (BatchNormalised, "check_batch_size", "batch size"),
    (OnlyImageSets, "check_input_kinds", "list of Pillow images"),
    (ShapelessWhenEmpty, "check_empty_input", "empty input"),
    (FittedFromTheStart, "check_unfitted", "predict before fit"),
    (IgnoresLabelErrors, "check_bad_labels", "one label for many images"),
    (Unseeded, "check_same_seed", "same seed"),
    (ChangesParameter, "check_parameters", "constructor"),
    (ForgetsState, "check_save_and_load", "other probabilities"),
    (DrawsFromTheGlobalState, "check_same_seed", "same seed"),
    (SeedsTheGlobalState, "check_nothing_touched", "PyTorch's random state"),
    (LeavesAnotherType, "check_declaration", "norms_ has type float64"),
    (LeavesMoreThanItDeclares, "check_declaration", "count_"),
    (DisturbsRandomNumbers, "check_nothing_touched", "PyTorch's random state"),
    (ChangesTheModel, "check_nothing_touched", "weights"),
    (ReadsLabels, "check_labels_unread", "fit.X. reads X.labels"),
    (ReadsLabelsWhenPredicting, "check_labels_unread", "predict.X. reads X.labels"),
    (ForgetsParameters, "check_save_and_load", "other parameters: ensemble"),
    (LeavesTrainMode, "check_nothing_touched", "training mode"),
    (CrashesOnOneImage, "check_empty_input", "image 1 of 1"),
    (ForgetsTheScale, "check_logits", "softmax of predict_logits"),
]


@pytest.mark.parametrize(
    "method, check, message", FAULTS, ids=[method.__name__ for method, _, _ in FAULTS]
)
def test_fault_is_named(method, check, message):
    with pytest.raises(
        AssertionError, match=f"(?s){method.__name__} fails {check}: .*{message}"
    ):
        check_adapter(method, load_clip())


def test_every_check_has_a_fault():
    assert {check for _, check, _ in FAULTS} == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"templates": "imagenet7"},
        {"templates": "imagenet7", "ensemble": "probability"},
    ],
)
def test_zero_shot_keeps_every_promise(params):
    assert len(check_adapter(ZeroShot, **params)) == len(CHECKS)
