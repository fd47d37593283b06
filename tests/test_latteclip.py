"""LatteCLIP: captions of all kinds and none, labels, every option, killed and resumed
fits, and bad input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from processes import program
from sklearn.base import clone

from clipadapt import CLIP, ImageSet, LatteCLIP, ZeroShot, digits, load_clip
from clipadapt.clip.captions import DOMAINS, AttributeCaptioner, CallableCaptioner
from clipadapt.learning.testing import check_adapter
from clipadapt.learning.training import module_numbers
from clipadapt.methods.latteclip import (
    CHOICES,
    LOSSES,
    PUBLISHED,
    SMALL,
    TEMPLATES,
    TEXTS,
    Descriptions,
    find_templates,
    mix_texts,
    mixing_weights,
    update_prototypes,
)

COUNT = 40
TINY = {**SMALL, "epochs": 2, "batch_size": 16}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


@pytest.fixture(scope="module")
def captions(images):
    return {
        "image": [f"a digit with {i % 3} closed loops." for i in range(COUNT)],
        "group": ["a thick digit." if i % 2 else "" for i in range(COUNT)],
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Captions of a test are its own."""
    builtin = load_clip(device="cpu")
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    return builtin


def bits(method):
    return (
        [
            array.tobytes()
            for array in (
                method.class_features_,
                method.image_weights_,
                method.mixer_weights_,
            )
        ],
        method.logit_scale_,
        method.history_,
    )


def unit(generator, *shape):
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 5),
    classes=st.integers(2, 6),
    kinds=st.integers(1, 3),
    dim=st.integers(2, 9),
)
def test_the_mix_is_the_one_of_loops(seed, batch, classes, kinds, dim):
    generator = torch.Generator().manual_seed(seed)
    texts, prototypes = (
        unit(generator, batch, kinds, dim),
        unit(generator, classes, dim),
    )
    present = torch.rand(batch, kinds, generator=generator) < 0.7
    present[:, 0] |= ~present.any(1)
    weights = mixing_weights(texts, prototypes, present)
    mixed = mix_texts(texts, weights)
    for i in range(batch):
        total, norm = torch.zeros(dim), 0.0
        for k in range(kinds):
            first, second = sorted(
                (float(texts[i, k] @ p) for p in prototypes), reverse=True
            )[:2]
            weight = (first - second + 1e-6) * bool(present[i, k])
            assert abs(weight - weights[i, k]) < 1e-5
            total, norm = (
                total + weights[i, k] * texts[i, k],
                norm + float(weights[i, k]),
            )
        assert (mixed[i] - total / norm).abs().max() < 1e-4


@given(seed=st.integers(0, 1000), count=st.integers(0, 12), momentum=st.floats(0, 1))
def test_prototypes_stay_unit_vectors_and_untouched_classes_do_not_move(
    seed, count, momentum
):
    generator = torch.Generator().manual_seed(seed)
    prototypes, vectors, classes = (
        unit(generator, 5, 7),
        unit(generator, count, 7),
        torch.randint(4, (count,), generator=generator),
    )
    moved = update_prototypes(prototypes, vectors, classes, momentum)
    assert (moved.norm(dim=1) - 1).abs().max() < 1e-5
    for c in range(5):
        if (classes == c).any():
            expected = F.normalize(
                momentum * prototypes[c]
                + (1 - momentum) * vectors[classes == c].mean(0),
                dim=0,
            )
            assert (moved[c] - expected).abs().max() < 1e-4
        else:
            assert torch.equal(moved[c], prototypes[c])


def test_one_step_is_the_one_by_hand(clip, images):
    """One batch: the loss and the prototypes after the first step, from features
    computed apart."""
    some, told = images.subset(range(8)), [f"a digit with {i} loops." for i in range(8)]
    method = LatteCLIP(
        clip,
        images.classnames,
        **{**TINY, "epochs": 1, "batch_size": 8, "augment": False},
        texts=["class", "image"],
    ).fit(some, captions={"image": told})
    text, image, said = (
        clip.encode_text([f"a photo of a {name}." for name in images.classnames]),
        clip.encode_image(some),
        clip.encode_text(told),
    )
    guess = (image @ text.T).argmax(1)
    gaps = [(rows @ text.T).topk(2).values for rows in (text[guess], said)]
    weights = torch.stack([gap[:, 0] - gap[:, 1] + 1e-6 for gap in gaps], 1)
    mixed = (weights[:, :1] * text[guess] + weights[:, 1:] * said) / weights.sum(
        1, keepdim=True
    )
    order = torch.from_numpy(np.random.default_rng((0, 0)).permutation(8))
    logits = (
        clip.logit_scale
        * (image @ (0.99 * text[guess] + 0.01 * mixed).T)[order][:, order]
    )
    loss = (
        F.cross_entropy(logits, torch.arange(8))
        + F.cross_entropy(logits.T, torch.arange(8))
    ) / 2
    assert abs(method.history_[0]["loss"] - 2 * loss) < 1e-4, (
        "before training both pseudolabels are the same, so the loss counts twice"
    )
    expected = text.clone()
    for c in guess.unique():
        expected[c] = F.normalize(
            0.99 * text[c] + 0.01 * mixed[guess == c].mean(0), dim=0
        )
    assert np.abs(method.class_features_ - expected.numpy()).max() < 1e-5
    assert np.abs(
        method.mixer_weights_ - weights.numpy()
    ).max() < 1e-5 and method.kinds_ == ["class", "image"]


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name, known in CHOICES.items() for value in known]
    + [
        ("train_text", False),
        ("augment", False),
        ("colour", False),
        ("alpha", 0.0),
        ("prototype_momentum", 0.0),
        ("templates", "imagenet7"),
        ("templates", "LatteCLIP/UCF101"),
        ("group_size", 1),
        ("weight_alpha", 0.5),
        ("iterations", 2),
        ("iterations", None),
        *[("losses", [name]) for name in LOSSES],
        *[("texts", [name]) for name in TEXTS],
        ("texts", ["image", "group"]),
    ],
)
def test_every_option_gives_a_method_that_saves_and_loads(
    clip, images, test_images, captions, tmp_path, name, value
):
    method = LatteCLIP(
        clip, images.classnames, **{**TINY, "epochs": 1, name: value}
    ).fit(images, captions=captions)
    assert (
        np.isfinite(method.history_[0]["loss"])
        and abs(sum(method.history_[0]["weights"].values()) - 1) < 1e-5
    )
    method.save(tmp_path / "method")
    again = LatteCLIP.load(tmp_path / "method", clip)
    assert (
        np.array_equal(
            again.predict_proba(test_images), method.predict_proba(test_images)
        )
        and again.get_params()[name] == value
    )


def test_no_option_goes_unread(clip, images, captions):
    """Every choice that is not the default trains another model."""

    def trained(**params):
        method = LatteCLIP(
            clip,
            images.classnames,
            **{**TINY, "alpha": 0.9, "prototype_momentum": 0.5, **params},
        ).fit(images, captions=captions)
        return method.class_features_.tobytes() + method.image_weights_.tobytes()

    others = [
        {name: value}
        for name, known in CHOICES.items()
        for value in known
        if name != "question" and value != TINY.get(name, known[0])
    ]
    others += [
        {"iterations": 4},
        {"iterations": 3},
        {"weight_alpha": 0.5},
        {"templates": "LatteCLIP/DTD"},
    ]
    others += [
        {"train_text": False},
        {"augment": False},
        {"colour": False},
        {"losses": ["zero-shot"]},
        {"losses": ["fine-tuned"]},
        {"texts": ["class"]},
        {"texts": ["image"]},
        {"seed": 1},
    ]
    models = [trained(**params) for params in ({}, *others)]
    assert (
        len(set(models)) == len(models)
        and trained(losses=["zero-shot", "fine-tuned"]) == models[0]
    )


def test_nothing_is_asked_of_a_captioner_before_all_else_is_right(
    clip, images, tmp_path
):
    captioner = CallableCaptioner(
        lambda pictures, prompts: pytest.fail("asked too early"), "early"
    )
    for classnames, params in (
        (images.classnames, {"learning_rate": -1}),
        (["seven"], {}),
        (images.classnames, {"checkpoint": str(tmp_path)}),
        (images.classnames, {"templates": ["no gap"]}),
    ):
        with pytest.raises(ValueError):
            LatteCLIP(clip, classnames, captioner=captioner, **{**TINY, **params}).fit(
                ImageSet(images.images)
            )


def test_a_caption_that_succeeds_the_second_time_does_not_lose_the_run(
    clip, images, tmp_path
):
    failing, asked = [True], []

    def describe(pictures, prompts):
        if failing[0] and asked:
            raise RuntimeError("busy")
        asked.extend(pictures)
        return ["a digit."] * len(pictures)

    params = {
        **TINY,
        "texts": ["class", "image"],
        "checkpoint": str(tmp_path / "run"),
        "captioner": CallableCaptioner(describe, "moody"),
    }
    with pytest.warns(UserWarning, match="busy"):
        first = LatteCLIP(clip, images.classnames, **params).fit(images)
    failing[0] = False
    again = LatteCLIP(clip, images.classnames, **params).fit(images)
    assert (
        first.missing_ == {"image": COUNT - 8}
        and again.missing_ == {"image": 0}
        and np.array_equal(again.image_weights_, first.image_weights_)
    )


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("texts", [], "texts must be a list"),
        ("texts", ["title"], "texts must be a list"),
        ("losses", "zero-shot", "losses must be a list"),
        ("mixer", "learned", "mixer must be one of 'dynamic', 'equal'"),
        ("alpha", 1.5, "alpha must be a number in 0 ... 1"),
        ("alpha", "a", "alpha must be a number"),
        ("captioner", print, "CallableCaptioner"),
        ("group_size", 0, "group_size"),
        ("prototype_momentum", -1, "prototype_momentum"),
        ("weight_alpha", 2, "weight_alpha"),
        ("iterations", 0, "iterations"),
        ("question", "vague", "question must be one of 'named', 'generic'"),
        ("crop", "padded", "crop must be one of"),
        ("templates", "LatteCLIP/digits", "no template of its own for 'digits'"),
        ("epochs", 0, "epochs"),
        ("templates", ["no gap"], "needs one gap"),
        ("learning_rate", -1, "learning_rate"),
    ],
)
def test_parameters_out_of_range_are_named(clip, images, name, value, message):
    with pytest.raises(ValueError, match=message):
        LatteCLIP(clip, images.classnames, **{**TINY, name: value}).fit(images)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"image": ["a."]}, "must be 40 strings"),
        ({"image": [None] * COUNT}, "must be 40 strings"),
        ({"image": "a."}, "must be 40 strings"),
        ({"picture": ["a."] * COUNT}, "'image', 'group' or both"),
        (["a."] * COUNT, "'image', 'group' or both"),
    ],
)
def test_captions_that_do_not_fit_are_refused(clip, images, given, message):
    with pytest.raises(ValueError, match=message):
        LatteCLIP(clip, images.classnames, **TINY).fit(images, captions=given)


def test_without_any_caption_it_learns_from_class_descriptions_alone(clip, images):
    plain, empty = (
        LatteCLIP(clip, images.classnames, **TINY).fit(images),
        LatteCLIP(clip, images.classnames, **TINY, texts=["class", "image"]),
    )
    empty.fit(images, captions={"image": [""] * COUNT})
    assert (
        plain.missing_ == {}
        and plain.kinds_ == ["class"]
        and empty.missing_ == {"image": COUNT}
    )
    assert np.allclose(
        plain.class_features_, empty.class_features_, atol=1e-5
    ) and np.allclose(plain.image_weights_, empty.image_weights_, atol=1e-5)


def test_one_class_is_refused_by_the_mixer_only(clip, images, test_images):
    with pytest.raises(ValueError, match="only one class"):
        LatteCLIP(clip, ["seven"], **TINY).fit(
            images, captions={"image": ["a digit."] * COUNT}
        )
    for options in ({"mixer": "equal"}, {"texts": ["class"]}):
        method = LatteCLIP(clip, ["seven"], **{**TINY, **options}).fit(
            images, captions={"image": ["a digit."] * COUNT}
        )
        assert (method.predict(test_images) == 0).all()


def test_a_captioner_that_fails_is_counted_and_the_class_description_stands_in(
    clip, images
):
    def sometimes(pictures, prompts):
        if any(np.asarray(picture).mean() > 90 for picture in pictures):
            raise RuntimeError("too bright for me")
        return ["a digit."] * len(pictures)

    method = LatteCLIP(
        clip,
        images.classnames,
        **{**TINY, "texts": ["class", "image"]},
        captioner=CallableCaptioner(sometimes, "sometimes"),
    )
    with pytest.warns(UserWarning, match="too bright for me"):
        method.fit(images)
    bright = np.array([np.asarray(images[i][0]).mean() > 90 for i in range(COUNT)])
    assert (
        0 < bright.sum() < COUNT
        and method.missing_ == {"image": bright.sum()}
        and np.array_equal(method.mixer_weights_[:, 1] == 0, bright)
    )


def test_with_a_captioner_it_keeps_the_contract_of_all_methods(clip):
    check_adapter(
        LatteCLIP, clip, captioner=AttributeCaptioner(), **{**TINY, "epochs": 1}
    )


def test_the_attribute_captioner_ends_to_end_and_its_captions_are_cached(
    clip, images, monkeypatch
):
    asked = []
    captioner = AttributeCaptioner()
    describe = captioner.describe
    monkeypatch.setattr(
        captioner,
        "describe",
        lambda *args: (asked.append(len(args[0])), describe(*args))[1],
    )
    first = LatteCLIP(clip, images.classnames, **TINY, captioner=captioner).fit(images)
    count = sum(asked)
    second = LatteCLIP(clip, images.classnames, **TINY, captioner=captioner).fit(images)
    assert (
        first.kinds_ == ["class", "image", "group"]
        and bits(first) == bits(second)
        and count == sum(asked) >= COUNT
    )


def test_labels_take_the_place_of_both_pseudolabels(clip, images):
    guesses, y = (
        ZeroShot(clip, images.classnames).fit(images).predict(images),
        np.full(COUNT, -1),
    )
    wrong = np.flatnonzero(guesses != images.labels)
    y[wrong] = images.labels[wrong]
    method = LatteCLIP(clip, images.classnames, **TINY).fit(images.unlabelled(), y)
    assert len(wrong) and np.array_equal(method.guesses_, images.labels)
    everything = LatteCLIP(clip, images.classnames, **TINY).fit(
        images.unlabelled(), images.labels
    )
    assert all(record["agreement"] == 1 for record in everything.history_)


def test_what_the_callback_returns_is_kept_and_what_is_not_plain_is_refused(
    clip, images
):
    method = LatteCLIP(clip, images.classnames, **TINY).fit(
        images, callbacks=lambda method: {"accuracy": method.score(images)}
    )
    assert [set(record) for record in method.history_] == [
        {"loss", "agreement", "weights", "accuracy"}
    ] * 2
    with pytest.raises(ValueError, match="must return a dict without"):
        LatteCLIP(clip, images.classnames, **TINY).fit(
            images, callbacks=lambda method: {"loss": 1}
        )


class Lost(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_text": False},
        {"group_text": "class"},
        {"iterations": 7},
        {"weight_alpha": 0.5},
    ],
)
def test_an_interrupted_fit_goes_on_bit_for_bit(
    clip, images, captions, tmp_path, options
):
    params = {**TINY, "epochs": 3, **options}
    whole = LatteCLIP(clip, images.classnames, **params).fit(images, captions=captions)
    for stop in (2, 3):

        def interrupt(method):
            if len(method.history_) == stop:
                raise Lost

        method = LatteCLIP(
            clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
        )
        with pytest.raises(Lost):
            method.fit(images, captions=captions, callbacks=interrupt)
        assert not hasattr(method, "classnames_"), "an interrupted fit is not fitted"
    resumed = LatteCLIP(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images, captions=captions)
    assert bits(resumed) == bits(whole)


def test_a_run_ends_after_so_many_steps_and_its_learning_rate_with_it(clip, images):
    """40 images in batches of 16 are three steps an epoch."""

    def rates(**params):
        found, step = [], torch.optim.AdamW.step

        def watched(optimiser, *args, **kwargs):
            found.append(optimiser.param_groups[0]["lr"])
            return step(optimiser, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", watched)
            method = LatteCLIP(
                clip, images.classnames, **{**TINY, "epochs": 3, **params}
            )
            method.fit(images)
        return np.array(found) / SMALL["learning_rate"], method

    whole, method = rates(iterations=None)
    assert len(whole) == 9 and len(method.history_) == 3
    for limit in (9, 2000):
        same, other = rates(iterations=limit)
        assert np.array_equal(same, whole) and bits(other) == bits(method)
    short, method = rates(iterations=7)
    assert len(short) == 7 and len(method.history_) == 3
    assert np.array_equal(short[:4], whole[:4]), "the warm-up is counted in epochs"
    cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    assert np.allclose(short[3:], cosine), "four steps down, to 0 at the end"
    assert 0 < method.history_[-1]["agreement"] <= 1
    assert abs(sum(method.history_[-1]["weights"].values()) - 1) < 1e-5
    once, method = rates(iterations=1)
    assert len(once) == 1 and (method.mixer_weights_.sum(1) > 0).sum() == 14


def test_captions_of_food_and_flowers_are_asked_for_by_name(clip, images):
    """The released code's questions; "generic" are the paper's."""
    asked = []

    def describe(pictures, prompts):
        asked.extend(prompts)
        return ["food."] * len(pictures)

    def questions(**params):
        asked.clear()
        captioner = CallableCaptioner(describe, str(params))
        options = {**TINY, "epochs": 1, "texts": ["class", "image"], **params}
        method = LatteCLIP(clip, images.classnames, captioner=captioner, **options)
        return method.fit(images).guesses_

    guesses = questions(domain="Food101")
    names = {images.classnames[guess] for guess in guesses}
    end = "in the photo concisely, less than 20 words."
    assert set(asked) == {f"Describe the {name} food {end}" for name in names}
    questions(domain="Flowers102")
    assert set(asked) == {f"Describe the {name} flower {end}" for name in names}
    for params in ({"domain": "Food101", "question": "generic"}, {"domain": "food"}):
        questions(**params)
        assert set(asked) == {f"Describe the food {end}"}


def test_weights_between_the_original_and_the_tuned_ones(
    clip, images, test_images, tmp_path
):
    """Training and prototypes do not depend on `weight_alpha`; the image tower that
    classifies does."""
    tuned, half, none = (
        LatteCLIP(clip, images.classnames, **TINY, weight_alpha=share).fit(images)
        for share in (1.0, 0.5, 0.0)
    )
    before = module_numbers(clip.model.visual)
    middle = (before + tuned.image_weights_) / 2
    assert np.abs(half.image_weights_ - middle).max() < 1e-6
    assert np.array_equal(none.image_weights_, before)
    assert not np.array_equal(tuned.image_weights_, before)
    for method in (half, none):
        assert np.array_equal(method.class_features_, tuned.class_features_)
        assert method.history_ == tuned.history_
    half.save(tmp_path / "half")
    again = LatteCLIP.load(tmp_path / "half", clip)
    probabilities = half.predict_proba(test_images)
    assert np.array_equal(again.predict_proba(test_images), probabilities)
    assert not np.array_equal(tuned.predict_proba(test_images), probabilities)


def test_the_published_settings_are_known_to_all_they_are_for(clip):
    for name, options in PUBLISHED.items():
        method = LatteCLIP(clip, ["cat", "dog"], **options)
        method._check_parameters()
        assert name in DOMAINS and find_templates(method.templates) == [TEMPLATES[name]]
        # 2,000 iterations or 50 epochs, but for two sets whose script has 100 epochs
        assert method.iterations == 2000 and (
            method.epochs <= 50 or name in ("DTD", "OxfordIIITPet")
        )


def test_the_code_s_reading_of_the_prototypes_is_the_one_of_loops(clip, images):
    """update_with="blend" without momentum: the normalised mean of the blends of a
    step."""
    params = {
        **TINY,
        "epochs": 1,
        "batch_size": 8,
        "augment": False,
        "texts": ["class"],
    }
    some = images.subset(range(8))
    method = LatteCLIP(
        clip, images.classnames, **params, update_with="blend", prototype_momentum=0
    ).fit(some)
    text = clip.encode_text([f"a photo of a {name}." for name in images.classnames])
    for c, row in enumerate(torch.from_numpy(method.class_features_)):
        # text and prototype are one before the first step, and so is their blend
        assert (row - text[c]).abs().max() < 1e-6
    images_of = clip.encode_image(some)
    guess = (images_of @ text.T).argmax(1)
    order = torch.from_numpy(np.random.default_rng((0, 0)).permutation(8))
    logits = (clip.logit_scale * images_of @ text[guess].T)[order][:, order]
    loss = 0.0
    for i in range(8):
        rows, columns = logits[i].exp(), logits[:, i].exp()
        loss -= (rows[i] / rows.sum()).log() / 8 + (
            columns[i] / columns.sum()
        ).log() / 8
    assert abs(method.history_[0]["loss"] - float(loss)) < 1e-4  # two losses, halved


@pytest.mark.parametrize(
    "name, change",
    [
        ("alpha", {"alpha": 0.5}),
        ("domain", {"domain": "bird"}),
        ("seed", {"seed": 1}),
        ("iterations", {"iterations": 2}),
        ("texts", {"texts": ["class"]}),
    ],
)
def test_resuming_another_run_is_refused_by_name(
    clip, images, captions, tmp_path, name, change
):
    method = LatteCLIP(
        clip,
        images.classnames,
        checkpoint=str(tmp_path / "run"),
        **{**TINY, "epochs": 1},
    ).fit(images, captions=captions)
    with pytest.raises(ValueError, match=rf"another run: .*{name}"):
        clone(method).set_params(**change).fit(images, captions=captions)


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from clipadapt import LatteCLIP, digits, load_clip
from clipadapt.methods.latteclip import SMALL
images = digits("train").subset(range(40))
clip = load_clip(device="cpu")
parameters = {**SMALL, "epochs": 50, "batch_size": 16, "checkpoint": sys.argv[1]}
LatteCLIP(clip, images.classnames, **parameters).fit(images)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(clip, images, tmp_path, own_cache):
    process = program(tmp_path, PROGRAM, tmp_path / "run")
    process.wait_for(tmp_path / "run")
    process.kill()
    epochs = []

    def stop(method):
        epochs.append(len(method.history_))
        raise Lost

    with pytest.raises(Lost):
        LatteCLIP(
            clip,
            images.classnames,
            checkpoint=str(tmp_path / "run"),
            **{**SMALL, "epochs": 50, "batch_size": 16},
        ).fit(images, callbacks=stop)
    assert epochs[0] >= 2


def test_a_clip_in_half_precision(clip, images, test_images, captions):
    half = CLIP(clip.model, clip.preprocess, clip.tokenizer, precision="bf16")
    method = LatteCLIP(half, images.classnames, **TINY).fit(images, captions=captions)
    assert (
        np.isfinite(method.predict_proba(test_images)).all()
        and method.image_weights_.dtype == np.float32
    )


def test_fewer_images_than_a_batch_and_a_single_image(clip, images, captions):
    for count in (1, 3):
        method = LatteCLIP(clip, images.classnames, **{**TINY, "batch_size": 512}).fit(
            images.subset(range(count)),
            captions={kind: texts[:count] for kind, texts in captions.items()},
        )
        assert np.isfinite(method.history_[-1]["loss"])


def test_texts_of_a_batch_are_encoded_once(clip):
    words = Descriptions(
        clip,
        ["cat", "dog"],
        ["a {}.", "the {}."],
        TEXTS,
        {"image": ["fur.", "fur.", "tail."], "group": ["fur.", "", "a cat."]},
        3,
    )
    asked, everyone = [], torch.arange(3)

    def encode(rows):
        asked.append(len(words.table.rows[rows].unique()))
        return words.table(clip, rows)

    words.embed(
        encode, [torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0])], [everyone, everyone]
    )
    assert asked == [7], "a cat, the cat, a dog, the dog, fur, tail, and the empty text"
