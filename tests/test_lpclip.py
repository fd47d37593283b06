"""LP-CLIP: the loss by hand, every option saved and loaded, thresholds, labels, fresh
views, and seeds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip import image_transform
from PIL import Image, ImageDraw

from clipadapt import CLIP, ImageSet, ZeroShot, digits
from clipadapt.clip.features import FeatureStore, StoredCLIP, named_view
from clipadapt.learning.testing import check_adapter
from clipadapt.learning.training import Recipe
from clipadapt.methods.lpclip import (
    INITS,
    LPCLIP,
    SMALL,
    image_weights,
    linear_layer,
    teach,
    train_linear,
    weighted_cross_entropy,
)

COUNT = 40
TINY = {**SMALL, "epochs": 3, "views": 2, "batch_size": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


def bits(method):
    return [
        array.tobytes()
        for array in (
            method.weight_,
            method.bias_,
            method.pseudolabels_,
            method.confidences_,
        )
    ], method.history_


@given(seed=st.integers(0, 1000), batch=st.integers(1, 6), classes=st.integers(1, 7))
def test_the_loss_is_the_one_of_loops(seed, batch, classes):
    generator = torch.Generator().manual_seed(seed)
    logits, targets = (
        3 * torch.randn(batch, classes, generator=generator),
        torch.randint(classes, (batch,), generator=generator),
    )
    weights = torch.rand(batch, generator=generator)
    total = 0.0
    for i in range(batch):
        exponentials = [np.exp(float(value)) for value in logits[i]]
        total -= float(weights[i]) * np.log(
            exponentials[int(targets[i])] / sum(exponentials)
        )
    assert (
        abs(weighted_cross_entropy(logits, targets, weights).item() - total / batch)
        < 2e-6
    )


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 10),
    threshold=st.one_of(st.none(), st.floats(0, 1)),
    weighted=st.booleans(),
)
def test_teacher_and_weights_are_those_of_loops(seed, temperature, threshold, weighted):
    generator = torch.Generator().manual_seed(seed)
    features, classes = (
        F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (6, 4)
    )
    labels, confidences = teach(features, classes, 20.0, temperature)
    for feature, label, confidence in zip(features, labels, confidences):
        powers = np.exp(20.0 / temperature * (classes @ feature).double().numpy())
        assert (
            abs(float(confidence) - powers.max() / powers.sum()) < 1e-3
            and int(label) == powers.argmax()
        )
    if threshold is not None and not (confidences >= threshold).any():
        with pytest.raises(ValueError, match="none of the 6 images"):
            image_weights(confidences, weighted, threshold)
    else:
        expected = [
            (float(c) if weighted else 1.0)
            * (threshold is None or float(c) >= threshold)
            for c in confidences
        ]
        assert np.allclose(
            image_weights(confidences, weighted, threshold), expected, atol=1e-6
        )


def test_two_epochs_are_those_by_hand():
    """Plain gradient descent with momentum on the whole set, the gradient from the
    formula (p - y) f."""
    generator = torch.Generator().manual_seed(0)
    features, classes = (
        F.normalize(torch.randn(1, 9, 5, generator=generator), dim=2),
        F.normalize(torch.randn(3, 5, generator=generator), dim=1),
    )
    targets, weights = (
        torch.randint(3, (9,), generator=generator),
        torch.rand(9, generator=generator),
    )
    layer = linear_layer(classes, 10.0)
    recipe = Recipe(2, None, 0.5, momentum=0.9, warmup=0)
    losses = train_linear(features, targets, weights, layer, recipe)
    weight, bias, speed = 10 * classes.double(), torch.zeros(3).double(), None
    for epoch in range(2):
        logits = features[0].double() @ weight.T + bias
        assert (
            abs(
                losses[epoch]
                - float(
                    (weights * -logits.log_softmax(1)[torch.arange(9), targets]).mean()
                )
            )
            < 1e-5
        )
        error = weights[:, None] * (logits.softmax(1) - torch.eye(3)[targets]) / 9
        gradient = torch.cat([error.T @ features[0].double(), error.sum(0)[:, None]], 1)
        speed = gradient if speed is None else 0.9 * speed + gradient
        weight, bias = (
            weight - recipe.rate(epoch) * speed[:, :-1],
            bias - recipe.rate(epoch) * speed[:, -1],
        )
    assert (layer.weight - weight).abs().max() < 1e-5 and (
        layer.bias - bias
    ).abs().max() < 1e-6


def test_every_view_is_drawn_and_no_other():
    """Features name their image and their view; each epoch reads every image once, in
    one of its views."""
    views, count = 3, 50
    features = torch.stack(
        [
            torch.stack(
                [torch.full((count,), float(v)), torch.arange(count).float()], 1
            )
            for v in range(views)
        ]
    )
    seen = []

    class Watch(torch.nn.Linear):
        def forward(self, inputs):
            seen.extend(map(tuple, inputs.int().tolist()))
            return super().forward(inputs)

    train_linear(
        features,
        torch.zeros(count, dtype=torch.int64),
        torch.ones(count),
        Watch(2, 2),
        Recipe(20, 16, 0.0, warmup=0),
    )
    for epoch in range(20):
        assert sorted(
            image for _, image in seen[epoch * count : (epoch + 1) * count]
        ) == list(range(count))
    assert {view for view, _ in seen} == {0, 1, 2} and len(
        set(seen)
    ) > 0.95 * views * count


def test_the_untrained_student_is_zero_shot_with_any_templates(
    clip, images, test_images
):
    for templates in ("single", "neutral27"):
        zero_shot = ZeroShot(clip, images.classnames, templates=templates).fit(images)
        student = LPCLIP(
            clip, images.classnames, templates=templates, epochs=0, views=1
        ).fit(images)
        assert (
            np.abs(
                student.predict_proba(test_images)
                - zero_shot.predict_proba(test_images)
            ).max()
            < 1e-5
        )


@pytest.mark.parametrize(
    "name, value",
    [
        *[("init", name) for name in INITS],
        ("weighted", False),
        ("threshold", 0.6),
        ("threshold", 0.0),
        ("strong", False),
        ("temperature", 2.0),
        ("flip", True),
        ("views", 1),
        ("views", None),
        ("templates", "imagenet7"),
        ("batch_size", None),
        ("batch_size", 512),
        ("epochs", 0),
        ("weight_decay", 0.01),
        ("warmup", 1),
    ],
)
def test_every_option_gives_a_method_that_saves_and_loads(
    clip, images, test_images, tmp_path, name, value
):
    method = LPCLIP(clip, images.classnames, **{**TINY, name: value}).fit(images)
    assert (
        method.weight_.dtype
        == method.bias_.dtype
        == method.confidences_.dtype
        == np.float32
        and method.pseudolabels_.dtype == np.int64
    )
    method.save(tmp_path / "method")
    again = LPCLIP.load(tmp_path / "method", clip)
    assert (
        np.array_equal(
            again.predict_proba(test_images), method.predict_proba(test_images)
        )
        and again.get_params()[name] == value
    )


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("threshold", 1.0, "none of the 40 images: the highest confidence is"),
        ("threshold", 50, "threshold must lie in"),
        ("threshold", -0.1, "threshold"),
        ("init", "zeros", "init must be one of 'text', 'random'"),
        ("views", 0, "views"),
        ("views", 1.5, "views"),
        ("temperature", 0, "temperature"),
        ("temperature", float("inf"), "temperature"),
        ("epochs", -1, "epochs"),
        ("batch_size", 0, "batch_size"),
        ("learning_rate", -1, "learning_rate"),
        ("templates", ["no gap"], "needs one gap"),
    ],
)
def test_parameters_out_of_range_are_named(clip, images, name, value, message):
    method = LPCLIP(clip, images.classnames, **{**TINY, name: value})
    with pytest.raises(ValueError, match=message):
        method.fit(images)
    assert not hasattr(method, "classnames_")


def test_labels_replace_pseudolabels_and_pass_every_threshold(clip, images):
    plain, y = LPCLIP(clip, images.classnames, **TINY).fit(images), np.full(COUNT, -1)
    wrong = np.flatnonzero(plain.pseudolabels_ != images.labels)
    y[wrong] = images.labels[wrong]
    method = LPCLIP(clip, images.classnames, **TINY).fit(images.unlabelled(), y)
    assert (
        len(wrong)
        and np.array_equal(method.pseudolabels_, images.labels)
        and (method.confidences_[wrong] == 1).all()
    )
    rest = np.setdiff1d(np.arange(COUNT), wrong)
    assert np.array_equal(method.confidences_[rest], plain.confidences_[rest])
    alone = LPCLIP(clip, images.classnames, **TINY, threshold=1.0).fit(
        images.unlabelled(), y
    )  # labels are left, so this is no error
    assert alone.history_[0]["loss"] > 0


def test_same_seed_same_bits_and_the_store_changes_nothing(clip, images, tmp_path):
    stored = StoredCLIP(clip, FeatureStore(tmp_path))
    for options in ({}, {"init": "random"}, {"views": None}):
        params = {**TINY, **options}
        first, again, other = (
            LPCLIP(clip, images.classnames, **params, seed=seed).fit(images)
            for seed in (0, 0, 1)
        )
        assert (
            bits(first) == bits(again)
            and first.weight_.tobytes() != other.weight_.tobytes()
        )
        kept = LPCLIP(stored, images.classnames, **params).fit(images)
        assert np.allclose(kept.weight_, first.weight_, atol=1e-3)
    [entry] = stored.store.entries()
    assert entry["rows"] == 3 * len(images), (
        "the weak view and two strong ones; fresh views are not kept"
    )


def test_fresh_views_are_those_of_the_epoch(clip, images):
    method = LPCLIP(clip, images.classnames, **{**TINY, "views": None})
    method.classnames_ = images.classnames
    read, batch = method._views(images.unlabelled())[1], torch.tensor([7, 3])
    for epoch in range(2):
        expected = clip.encode_image(
            named_view(images, f"strong {epoch}", clip.image_size, False)
        )[batch]
        assert (read(epoch, batch) - expected).abs().max() < 1e-5


def test_training_lowers_the_loss_and_keeps_the_clip(clip, images):
    before = clip.fingerprint
    method = LPCLIP(clip, images.classnames, **{**TINY, "epochs": 30}).fit(images)
    assert (
        method.history_[-1]["loss"] < method.history_[0]["loss"]
        and clip.fingerprint == before
    )


def test_constant_images_one_class_and_one_image(clip, images, test_images):
    grey = torch.full((5, 3, 32, 32), 90, dtype=torch.uint8)
    assert np.isfinite(
        LPCLIP(clip, images.classnames, **TINY).fit(grey).predict_proba(test_images)
    ).all()
    assert np.isfinite(
        LPCLIP(clip, images.classnames, **TINY)
        .fit(images.subset([0]))
        .predict_proba(test_images)
    ).all()
    assert (LPCLIP(clip, ["seven"], **TINY).fit(images).predict(test_images) == 0).all()


def test_too_high_a_learning_rate_is_an_error_that_says_so(clip, images):
    with pytest.raises(ValueError, match="lower the learning rate"):
        LPCLIP(
            clip, images.classnames, **{**TINY, "learning_rate": 1e38, "epochs": 10}
        ).fit(images)


def test_a_clip_in_half_precision(clip, images, test_images):
    half = CLIP(clip.model, clip.preprocess, clip.tokenizer, precision="bf16")
    method = LPCLIP(half, images.classnames, **TINY).fit(images)
    assert (
        method.weight_.dtype == np.float32
        and np.isfinite(method.predict_proba(test_images)).all()
    )


def test_the_contract(clip):
    check_adapter(LPCLIP, clip, **{**TINY, "epochs": 2})


def test_paths_and_lists_are_read_as_well(clip, images, tmp_path):
    for i in range(3):
        images[i][0].save(tmp_path / f"{i}.png")
    method = LPCLIP(clip, images.classnames, **TINY)
    expected = method.fit(images.subset(range(3))).weight_.copy()
    pictures = [images[i][0] for i in range(3)]
    assert np.allclose(method.fit(pictures).weight_, expected, atol=1e-4)
    by_name = method.fit(ImageSet.from_folder(tmp_path)).weight_.copy()
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    assert np.allclose(method.fit(paths).weight_, by_name, atol=1e-4)
    alike = np.corrcoef(by_name.ravel(), expected.ravel())[0, 1]
    assert 0.99 < alike < 1, "the names of files draw other views"


def test_the_preset_is_for_the_handwriting_and_the_defaults_are_not():
    """The paper averages prompts and mirrors; one template and no mirroring suit
    digits."""
    given = LPCLIP(None, ["one", "two"]).get_params()
    assert given["templates"] == "imagenet80" and given["flip"] and given["weighted"]
    assert given["threshold"] is None and given["temperature"] == 1 and given["strong"]
    assert SMALL == {"templates": "single", "flip": False, "batch_size": 64}


class Watching(CLIP):
    """A CLIP that notes how wide the disc is that it sees, divided by how high."""

    def _input(self, pixels, room=None):
        batch = super()._input(pixels, room)
        bright = batch.mean(1) > 0
        wide, high = bright.any(1).sum(1), bright.any(2).sum(1)
        self.seen = [*getattr(self, "seen", []), *(wide / high).tolist()]
        return batch


@pytest.mark.parametrize("views", [2, None])
@pytest.mark.parametrize("mode, aspect", [("shortest", 1), ("squash", 2 / 3)])
def test_training_and_prediction_see_the_same_proportions(clip, mode, aspect, views):
    """A disc on a page of 3:2; without distortions, which move it."""
    plain = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    preprocess = image_transform(32, is_train=False, resize_mode=mode, **plain)
    watching = Watching(clip.model, preprocess, clip.tokenizer)
    assert watching.squashes == (mode == "squash")
    page = Image.new("RGB", (240, 160))
    ImageDraw.Draw(page).ellipse((70, 30, 170, 130), fill="white")
    pages = ImageSet([page] * 12, ["zero", "one"], np.zeros(12, int))
    options = {**SMALL, "strong": False, "views": views, "epochs": 2}
    method = LPCLIP(watching, pages.classnames, **options).fit(pages)
    trained, watching.seen = watching.seen, []
    method.predict(pages)
    assert len(trained) == 36 and np.allclose(watching.seen, aspect, atol=0.06)
    relative = np.array(trained) / aspect
    assert 0.82 < relative.min() and relative.max() < 1.2
    assert abs(relative.mean() - 1) < 0.04, "what the crop draws is undone in the mean"
