"""FPL, IFPL and GRIP: all 27 settings, figures by hand, labels that must stay unread,
killed and resumed fits, and bad input."""

import math
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transformer import QuickGELU
from processes import program
from sklearn.base import clone

from clipadapt import (
    CLIP,
    FeatureSet,
    ImageSet,
    Prototypes,
    ZeroShot,
    digits,
    load_clip,
)
from clipadapt.app.runs import configure
from clipadapt.images.files import read_arrays
from clipadapt.learning import prompts
from clipadapt.learning.prompts import TextualPrompt
from clipadapt.learning.pseudolabels import top_k
from clipadapt.learning.testing import check_adapter
from clipadapt.learning.training import SavedRun
from clipadapt.methods import grip as module
from clipadapt.methods.grip import (
    FPL,
    GRIP,
    IFPL,
    PROMPTS,
    SETTINGS,
    learning_setting,
    loss_weights,
    two_part_loss,
)

METHODS, UNSEEN, COUNT = {"FPL": FPL, "IFPL": IFPL, "GRIP": GRIP}, [6, 7, 8, 9], 80
SHORT = {"k": 3, "rounds": 2, "epochs": 1, "options": {"length": 2}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


def some_labels(images, setting):
    """y of a setting: nothing, two of each class, or all of the six seen classes."""
    y = np.full(len(images), -1)
    if setting == "semi-supervised":
        for c in range(10):
            y[np.flatnonzero(images.labels == c)[:2]] = c
    elif setting == "transductive":
        y = np.where(np.isin(images.labels, UNSEEN), -1, images.labels)
    return y


def bits(method):
    """All that a fit leaves, bit for bit; a round's seconds do not count."""
    return method.prompt_.tobytes(), method.pseudolabels_.tobytes(), method.history_


CASES = [
    (method, prompt, setting, pool)
    for method in METHODS
    for prompt in PROMPTS
    for setting in SETTINGS
    for pool in (("mixed", "unseen") if setting == "transductive" else ("mixed",))
]


@pytest.mark.parametrize("method, prompt, setting, pool", CASES)
def test_all_settings(clip, images, test_images, method, prompt, setting, pool):
    y = some_labels(images, setting)
    fitted = METHODS[method](
        clip, images.classnames, prompt=prompt, setting=setting, pool=pool, **SHORT
    ).fit(images, y)
    probabilities = fitted.predict_proba(test_images)
    assert probabilities.shape == (20, 10) and probabilities.dtype == np.float32
    assert (
        np.isfinite(probabilities).all()
        and (probabilities >= 0).all()
        and np.allclose(probabilities.sum(1), 1, atol=1e-4)
    )
    assert (
        fitted.prompt_.dtype == np.float32
        and fitted.prompt_.ndim == 1
        and np.isfinite(fitted.prompt_).all()
    )
    chosen, classes = fitted.pseudolabels_.T
    assert fitted.pseudolabels_.dtype == np.int64 and (y[chosen] == -1).all(), (
        "only unlabelled images get pseudolabels"
    )
    allowed = UNSEEN if pool == "unseen" else range(10)
    assert set(classes) == set(allowed) and len(
        {*map(tuple, fitted.pseudolabels_)}
    ) == len(chosen)
    rounds = 1 if method == "FPL" else 2
    assert [entry["k"] for entry in fitted.history_] == fitted.sizes(
        (y < 0).sum(), len(allowed)
    ) and len(fitted.history_) == rounds
    assert all(
        entry["pseudolabels"] == entry["k"] * len(allowed)
        and math.isfinite(entry["loss"])
        for entry in fitted.history_
    )
    assert len(chosen) == fitted.history_[-1]["pseudolabels"]


@pytest.mark.parametrize(
    "labels, setting",
    [
        ([-1, -1, -1], "unsupervised"),
        ([0, -1, 1], "semi-supervised"),
        ([0, -1, -1], "transductive"),
        ([0, 1, 0], "semi-supervised"),
    ],
)
def test_learning_setting(labels, setting):
    assert (
        learning_setting(np.array(labels), 2)
        == learning_setting(np.array(labels), 2, setting)
        == setting
    )
    for other in set(SETTINGS) - {setting}:
        with pytest.raises(
            ValueError,
            match=f"{other} learning was asked for, .* of 2 classes .* {setting}",
        ):
            learning_setting(np.array(labels), 2, other)


@pytest.mark.parametrize("setting", SETTINGS[1:])
def test_shares_by_hand(setting):
    assert loss_weights(setting, 20, 180, "shares") == (0.1, 0.9)
    assert loss_weights(setting, 300, 100, "shares") == (0.75, 0.25)
    assert loss_weights(setting, 20, 0, "shares") == (1, 0)


@pytest.mark.parametrize(
    "setting, labelled, pseudolabelled, iterated, prompt, weights",
    [
        ("semi-supervised", 20, 160, True, "textual", (1 / 8, 1)),
        ("semi-supervised", 20, 160, True, "multimodal", (1 / 8, 1)),
        ("semi-supervised", 20, 160, False, "textual", (8, 1)),
        ("semi-supervised", 20, 160, False, "visual", (8, 1)),
        ("semi-supervised", 20, 180, False, "multimodal", (3, 1)),
        ("transductive", 600, 60, True, "multimodal", (1, 10)),
        ("transductive", 600, 60, False, "textual", (1, 10)),
        ("transductive", 540, 60, False, "multimodal", (1, 3)),
        ("unsupervised", 0, 60, False, "multimodal", (0, 1)),
    ],
)
def test_published_weights_by_hand(
    setting, labelled, pseudolabelled, iterated, prompt, weights
):
    """Source: balance_param in the released code: textual_fpl.py, visual_fpl.py and
    multimodal_fpl.py for FPL, update_training_set of training_strategies.py for the
    others."""
    sizes = labelled, pseudolabelled
    found = loss_weights(setting, *sizes, "published", iterated=iterated, prompt=prompt)
    assert found == weights


@pytest.mark.parametrize(
    "setting, labelled, pseudolabelled, weights",
    [
        ("semi-supervised", 20, 160, (8, 1)),
        ("semi-supervised", 20, 5, (0.25, 1)),
        ("transductive", 600, 60, (1, 10)),
        ("transductive", 10, 40, (1, 0.25)),
        ("unsupervised", 0, 160, (0, 1)),
        ("semi-supervised", 20, 0, (1, 0)),
        ("transductive", 20, 0, (1, 0)),
        ("transductive", 0, 20, (0, 1)),
        ("unsupervised", 0, 0, (0, 0)),
    ],
)
def test_loss_weights_by_hand(setting, labelled, pseudolabelled, weights):
    assert loss_weights(setting, labelled, pseudolabelled) == weights


@pytest.mark.parametrize(
    "pseudo, expected",
    [
        (
            [False, True, True],
            2 * math.log(4 / 3) + 5 * (math.log(4) + math.log(2)) / 2,
        ),
        ([False] * 3, 2 * math.log(32 / 3) / 3),
        ([True] * 3, 5 * math.log(32 / 3) / 3),
        ([True, False, False], 5 * math.log(4 / 3) + 2 * math.log(8) / 2),
    ],
)
def test_two_part_loss_by_hand(pseudo, expected):
    """Logits ln 3 and 0 are probabilities 3/4 and 1/4: the three losses are ln 4/3, ln
    4 and ln 2."""
    logits = torch.tensor([[math.log(3), 0], [math.log(3), 0], [0, 0]]).requires_grad_()
    loss = two_part_loss(
        logits, torch.tensor([0, 1, 0]), torch.tensor(pseudo), (2.0, 5.0)
    )
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "pool, classes, first, last",
    [
        (3760, 47, [8, 16, 24], 80),
        (2040, 102, [2, 4, 6], 20),
        (6300, 45, [14, 28, 42], 140),
        (6667, 100, [6, 13, 19], 66),
        (60000, 10, [600, 1200, 1800], 6000),
        (27000, 10, [270, 540, 810], 2700),
        (898, 10, [8, 17, 26], 89),
        (25, 10, [1, 1, 1], 2),
        (7, 10, [1, 1, 1], 1),
    ],
)
def test_growth_of_grip_by_hand(clip, pool, classes, first, last):
    """floor(t floor(N / I) / C), at most floor(N / C): the data sets of the paper
    (grip.md, section 5), then pools that are too small."""
    sizes = GRIP(clip, ["a", "b"]).sizes(pool, classes)
    assert len(sizes) == 10 and sizes[:3] == first and sizes[-1] == last


@given(
    pool=st.integers(1, 5000), classes=st.integers(1, 120), rounds=st.integers(1, 20)
)
def test_growth_never_falls_and_stays_within_the_pool(pool, classes, rounds):
    sizes = GRIP(None, ["a", "b"], rounds=rounds).sizes(pool, classes)
    assert (
        len(sizes) == rounds
        and sizes == sorted(sizes)
        and sizes[-1] <= max(1, pool // classes)
    )


def test_growth_by_shares(clip):
    assert GRIP(clip, ["a", "b"], growth=(0.1, 0.5, 1)).sizes(100, 2) == [
        5,
        25,
        50,
    ] and GRIP(clip, ["a"], growth=[1e-9]).sizes(100, 1) == [1]
    for growth in ((), (0,), (0.5, 1.5), (-0.1, 1)):
        with pytest.raises(ValueError, match="shares of the pool above 0"):
            GRIP(clip, ["a"], growth=growth).sizes(100, 1)


def test_sizes_of_fpl_and_ifpl(clip):
    assert FPL(clip, ["a"], k=16, rounds=7).sizes(898, 10) == [16] and FPL(
        clip, ["a"], k=16
    ).sizes(9, 10) == [9]
    assert (
        IFPL(clip, ["a"], k=16, rounds=3).sizes(898, 10) == [16] * 3
        and IFPL(clip, ["a"], k=16, rounds=2).sizes(9, 10) == [9] * 2
    )


@pytest.mark.parametrize("policy", ["per-class", "argmax", "one-class"])
def test_first_labels_are_zero_shots_and_later_ones_the_last_prompts(
    clip, images, policy
):
    """Round 1 chooses by the zero-shot classifier, round 2 by the prompt of round 1,
    out of the whole pool."""
    seen = []

    def keep(method, pseudolabels):
        seen.append((method.predict_proba(images), pseudolabels))
        return {}

    templates = ["a photo of a {}.", "a drawing of a {}."]
    method = GRIP(
        clip, images.classnames, policy=policy, templates=templates, **SHORT
    ).fit(images, callbacks=keep)
    before = (
        ZeroShot(clip, images.classnames, templates=templates)
        .fit(images)
        .predict_proba(images)
    )
    for probabilities, k, (_, chosen) in zip((before, seen[0][0]), (4, 8), seen):
        expected = top_k(probabilities, k, policy)
        assert {*zip(chosen.images, chosen.classes)} == {
            *zip(expected.images, expected.classes)
        }
    assert np.array_equal(
        method.pseudolabels_, np.stack([chosen.images, chosen.classes], 1)
    )


def test_allowed_classes_only_when_the_pool_is_known(clip, images):
    """The oracle pool: scores are renormalised over the unseen classes, and all unseen
    ones get their share."""
    y = some_labels(images, "transductive")
    unseen, mixed = (
        FPL(clip, images.classnames, pool=pool, **SHORT).fit(images, y)
        for pool in ("unseen", "mixed")
    )
    assert set(unseen.pseudolabels_[:, 1]) == set(UNSEEN) and set(
        mixed.pseudolabels_[:, 1]
    ) == set(range(10))
    pool = np.flatnonzero(y < 0)
    scores = (
        ZeroShot(clip, images.classnames)
        .fit(images)
        .predict_proba(images.subset(pool))[:, UNSEEN]
    )
    expected = top_k(scores / scores.sum(1, keepdims=True), 3)
    assert {*map(tuple, unseen.pseudolabels_)} == {
        (pool[i], UNSEEN[c]) for i, c in zip(expected.images, expected.classes)
    }


def test_unseen_classes_whose_probability_vanishes(clip, images, monkeypatch):
    """Trained on seen classes, a prompt may give the unseen ones probability 0 in
    float32; they still have an order, or all are equal."""
    certain = lambda prompt, inputs, batch_size=256: torch.eye(10)[
        torch.zeros(len(inputs), dtype=torch.long)
    ]  # noqa: E731
    monkeypatch.setattr(TextualPrompt, "predict", certain)
    method = IFPL(clip, images.classnames, pool="unseen", **SHORT).fit(
        images, some_labels(images, "transductive")
    )
    assert set(method.pseudolabels_[:, 1]) == set(UNSEEN)


@pytest.mark.parametrize(
    "method, params",
    [
        ("FPL", {"prompt": "visual"}),
        ("IFPL", {"prompt": "textual", "reinit": False, "policy": "one-class"}),
        (
            "GRIP",
            {"prompt": "multimodal", "options": {"length": 2, "attention": "pairs"}},
        ),
    ],
)
def test_contract(clip, method, params):
    """Among its checks: labels of X are never read, the same seed gives the same, save
    and load give back 1e-6."""
    assert len(check_adapter(METHODS[method], clip, **{**SHORT, **params})) > 10


@pytest.mark.parametrize(
    "prompt, options",
    [
        ("textual", {"words": "a photo of a"}),
        ("visual", {"length": 3, "deep": True, "templates": ["a {}.", "the {}."]}),
        ("multimodal", {"length": 2, "width": 16, "attention": "pairs"}),
    ],
)
def test_clone_save_and_load_with_options(
    clip, images, test_images, tmp_path, prompt, options
):
    method = GRIP(
        clip, images.classnames, prompt=prompt, **{**SHORT, "options": options}
    ).fit(images)
    method.save(tmp_path / "saved")
    loaded = GRIP.load(tmp_path / "saved", clip)
    assert (
        loaded.options == options
        and loaded.history_ == method.history_
        and np.array_equal(loaded.pseudolabels_, method.pseudolabels_)
    )
    for _ in range(2):
        assert (
            np.abs(
                loaded.predict_proba(test_images) - method.predict_proba(test_images)
            ).max()
            <= 1e-6
        )
    twin = clone(method)
    assert (
        twin.get_params(deep=False) == method.get_params(deep=False)
        and twin.clip is clip
        and not hasattr(twin, "prompt_")
    )
    assert bits(twin.fit(images)) == bits(method) == bits(loaded.fit(images))


def test_a_loaded_method_keeps_its_own_numbers(clip, images, test_images, tmp_path):
    """The prompt is made from a copy: changing one does not change the other (pitfalls,
    A8)."""
    method = FPL(clip, images.classnames, **SHORT).fit(images)
    method.save(tmp_path / "saved")
    loaded = FPL.load(tmp_path / "saved", clip)
    before = loaded.predict_proba(test_images)
    loaded.prompt_[:] = 0
    assert np.array_equal(loaded.predict_proba(test_images), before)


def test_refused_by_another_clip(clip, images, tmp_path):
    FPL(clip, images.classnames, **SHORT).fit(images).save(tmp_path / "saved")
    other = load_clip(device="cpu")
    other.model.visual.proj.data.mul_(1.01)
    with pytest.raises(ValueError, match="another CLIP"):
        FPL.load(tmp_path / "saved", other)
    with pytest.raises(ValueError, match="holds a 'FPL', not a GRIP"):
        GRIP.load(tmp_path / "saved", clip)


@pytest.fixture(scope="module")
def unchanged(clip, images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fitted = bits(IFPL(clip, images.classnames, **SHORT).fit(images))
    torch.set_num_threads(threads)
    return fitted


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"epochs": 3},
        {"batch_size": 7},
        {"batch_size": None},
        {"learning_rate": 0.03},
        {"momentum": 0.5},
        {"weight_decay": 0.0},
        {"warmup": 0},
        {"rounds": 3},
        {"k": 4},
        {"policy": "argmax"},
        {"templates": "a drawing of a {}."},
        {"reinit": False},
        {"options": {"length": 3}},
        {"prompt": "visual"},
    ],
)
def test_every_parameter_has_an_effect(clip, images, unchanged, change):
    assert (
        bits(IFPL(clip, images.classnames, **{**SHORT, **change}).fit(images))
        != unchanged
    )


@pytest.mark.parametrize(
    "prompt, rate", [("textual", 0.1), ("visual", 0.1), ("multimodal", 0.01)]
)
def test_default_learning_rates_are_the_papers(clip, images, prompt, rate):
    default, stated = (
        FPL(clip, images.classnames, prompt=prompt, learning_rate=value, **SHORT).fit(
            images
        )
        for value in (None, rate)
    )
    assert bits(default) == bits(stated)


def test_a_learning_rate_of_zero_trains_nothing(clip, images):
    method = FPL(clip, images.classnames, learning_rate=0.0, **SHORT).fit(images)
    start = (
        TextualPrompt(clip, images.classnames, length=2).prefix.detach().numpy().ravel()
    )
    assert np.array_equal(method.prompt_, start)


def test_labels_given_as_y_count_and_others_do_not(clip, images):
    y = some_labels(images, "semi-supervised")
    method = GRIP(clip, images.classnames, **SHORT)
    expected = bits(method.fit(images, y))
    wrong = ImageSet(
        images.images,
        images.classnames,
        np.random.default_rng(0).permutation(images.labels),
    )
    assert (
        bits(method.fit(wrong, y))
        == expected
        == bits(method.fit(images.unlabelled(), y))
    )
    assert bits(method.fit(images, np.where(y >= 0, (y + 1) % 10, -1))) != expected


def test_the_callback_changes_nothing(clip, images):
    """It may know labels, predict, draw random numbers: what is learned is the same,
    bit for bit."""
    calls = []

    def meddle(method, pseudolabels):
        np.random.seed(0), torch.manual_seed(0), random.seed(0)
        pseudolabels.classes[:] = images.labels[pseudolabels.images]
        calls.append(method)
        return {
            "accuracy": method.score(images),
            "purity": float(
                np.mean(pseudolabels.classes == images.labels[pseudolabels.images])
            ),
        }

    for prompt in ("textual", "multimodal"):
        method = GRIP(clip, images.classnames, prompt=prompt, reinit=False, **SHORT)
        plain = bits(method.fit(images))
        watched = bits(method.fit(images, callbacks=meddle))
        assert (
            watched[:2] == plain[:2]
            and [
                {"k": e["k"], "pseudolabels": e["pseudolabels"], "loss": e["loss"]}
                for e in watched[2]
            ]
            == plain[2]
        )
        assert all(0 <= entry["accuracy"] <= 1 for entry in watched[2])
    assert len(calls) == 4
    assert bits(method.fit(images)) == plain, "the callback of the last fit is gone"


def test_callbacks_that_return_nothing_or_no_plain_values(clip, images, tmp_path):
    method = FPL(clip, images.classnames, **SHORT)
    assert (
        len(method.fit(images, callbacks=lambda method, pseudolabels: None).history_)
        == 1
    )
    for checkpoint in (None, str(tmp_path / "run")):
        try:  # either a clear word at once, or a history that can be saved
            method.set_params(checkpoint=checkpoint).fit(
                images,
                callbacks=lambda method, pseudolabels: {"accuracy": np.float32(0.5)},
            ).save(tmp_path / "saved")
        except ValueError as error:
            assert "accuracy" in str(error) and "history_" not in str(error)


def test_callbacks_cannot_rewrite_history(clip, images):
    """A callback that calls its own figure "loss" or "k" must not replace what training
    wrote: refused, or kept apart."""
    plain = FPL(clip, images.classnames, **SHORT).fit(images).history_
    try:
        history = (
            FPL(clip, images.classnames, **SHORT)
            .fit(images, callbacks=lambda method, pseudolabels: {"loss": -1.0, "k": 0})
            .history_
        )
    except ValueError as error:
        assert "loss" in str(error)
    else:
        assert (
            history[0]["loss"] == plain[0]["loss"] and history[0]["k"] == plain[0]["k"]
        )


def test_random_state_is_left_alone(clip, images):
    before = (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )
    for prompt in PROMPTS:
        FPL(clip, images.classnames, prompt=prompt, **SHORT).fit(images)
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


class Counting(CLIP):
    def encode_batches(self, images, batch_size=64):
        for batch in super().encode_batches(images, batch_size):
            self.count = vars(self).get("count", 0) + len(batch)
            yield batch


def test_textual_prompts_encode_an_image_once(clip, images):
    counting = Counting(clip.model, clip.preprocess, clip.tokenizer)
    GRIP(counting, images.classnames, **SHORT).fit(images)
    assert counting.count == len(images)


@pytest.mark.parametrize("prompt", ["visual", "multimodal"])
def test_the_other_prompts_encode_no_image_and_cut_it_into_patches_once(
    clip, images, prompt
):
    counting, rows = Counting(clip.model, clip.preprocess, clip.tokenizer), []
    hook = clip.model.visual.conv1.register_forward_hook(
        lambda module, inputs, output: rows.append(len(output))
    )
    GRIP(counting, images.classnames, prompt=prompt, **SHORT).fit(images)
    hook.remove()
    assert not hasattr(counting, "count") and sum(rows) == len(images)


@pytest.mark.parametrize(
    "setting, method, prompt, published",
    [
        ("semi-supervised", "FPL", "textual", (1.5, 1)),
        ("semi-supervised", "FPL", "multimodal", (1.5**0.5, 1)),
        ("semi-supervised", "IFPL", "textual", (2 / 3, 1)),
        ("transductive", "FPL", "textual", (1, 48 / 12)),
        ("transductive", "FPL", "multimodal", (1, 2)),
        ("transductive", "IFPL", "textual", (1, 48 / 12)),
    ],
)
def test_readings_of_the_weights(clip, images, setting, method, prompt, published):
    """20 labels and 30 pseudolabels, or 48 and 12; the default is by shares."""
    y = some_labels(images, setting)
    if setting == "transductive":
        y[np.flatnonzero(y >= 0)[48:]] = -1

    def fit(**weights):
        params = {**SHORT, "prompt": prompt, "pool": "unseen", **weights}
        return bits(METHODS[method](clip, images.classnames, **params).fit(images, y))

    ratio = (1.5, 1) if setting == "semi-supervised" else (1, 4)
    assert fit(weights="published") == fit(weights=published)
    recommended = fit(weights="recommended")
    assert recommended == fit(weights=np.array(ratio))
    shares = (0.4, 0.6) if setting == "semi-supervised" else (0.8, 0.2)
    default = fit()
    assert default == fit(weights="shares") == fit(weights=shares)
    assert default not in (fit(weights=(1, 1)), recommended)


@pytest.mark.parametrize("setting", ["unsupervised", "semi-supervised"])
def test_no_label_or_no_unlabelled_image_leaves_nothing_to_weight(
    clip, images, setting
):
    y = None if setting == "unsupervised" else images.labels
    fits = [
        bits(IFPL(clip, images.classnames, weights=weights, **SHORT).fit(images, y))
        for weights in ("shares", (1, 1), "recommended")
    ]
    assert fits[0] == fits[1] == fits[2]


def test_two_labels_a_class_do_no_harm(clip):
    """Weights of (1, 1) end 24 points lower with these labels."""
    train, test, rng = digits("train"), digits("test"), np.random.default_rng(2)
    y = np.full(len(train), -1)
    for c in range(10):
        y[rng.choice(np.flatnonzero(train.labels == c), 2, replace=False)] = c
    fits = [FPL(clip, train.classnames, seed=2, **module.SMALL) for _ in range(2)]
    assert fits[0].fit(train, y).score(test) > fits[1].fit(train).score(test) - 0.05


def test_few_labels_do_not_ruin_a_large_pool(clip, monkeypatch):
    """One label a class beside 8,000 pseudolabels. With the unbounded ratio, 800 here,
    this fit ends 15 points lower."""
    train, encode = digits("train"), CLIP.encode_image
    features = encode(clip, train).repeat(12, 1)

    def noisy(self, asked):
        if len(asked) < len(features):
            return encode(self, asked)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(features + 0.02 * noise, dim=1)

    monkeypatch.setattr(CLIP, "encode_image", noisy)
    pool = train.subset(np.tile(np.arange(len(train)), 12))
    y = np.full(len(pool), -1)
    y[[np.flatnonzero(train.labels == c)[0] for c in range(10)]] = range(10)
    params = {"k": 800, "epochs": 2, "batch_size": 32, "weight_decay": 0.0}
    few, none = (
        FPL(clip, train.classnames, **params).fit(pool, labels).score(digits("test"))
        for labels in (y, None)
    )
    assert few > none - 0.01


def test_class_prompts_are_embedded_once_for_all_rounds(clip, images, monkeypatch):
    calls, encode = [], CLIP.encode_text
    monkeypatch.setattr(
        CLIP,
        "encode_text",
        lambda self, texts, **options: (
            calls.append(len(texts)) or encode(self, texts, **options)
        ),
    )
    IFPL(clip, images.classnames, prompt="visual", **{**SHORT, "rounds": 4}).fit(images)
    assert calls == [10, 10], (
        "for the first pseudolabels, and for the prompt to be compared with"
    )


def test_templates_are_those_of_visual_prompts_too(clip, images):
    both, labels_only = (
        FPL(
            clip,
            images.classnames,
            prompt="visual",
            templates="a drawing of a {}.",
            **{**SHORT, "options": {"length": 2, **extra}},
        ).fit(images)
        for extra in ({}, {"templates": "single"})
    )
    assert (
        np.array_equal(both.pseudolabels_, labels_only.pseudolabels_)
        and both.history_ != labels_only.history_
    )


def test_blocks_of_images_are_scored_one_after_the_other(
    clip, images, test_images, monkeypatch
):
    method = FPL(clip, images.classnames, prompt="visual", **SHORT).fit(images)
    whole = method.predict_proba(test_images)
    monkeypatch.setattr(module, "BLOCK", 7)
    assert np.allclose(method.predict_proba(test_images), whole, atol=1e-5)


class Lost(BaseException):
    pass


@pytest.mark.parametrize(
    "prompt, reinit",
    [("textual", True), ("textual", False), ("visual", True), ("multimodal", False)],
)
def test_an_interrupted_fit_goes_on_bit_for_bit(
    clip, images, test_images, tmp_path, prompt, reinit
):
    """Interrupted after round 1 and again after round 2: what goes on has the same
    prompt, pseudolabels, history and answers."""
    params = {**SHORT, "rounds": 3, "prompt": prompt, "reinit": reinit}
    y, whole = (
        some_labels(images, "semi-supervised"),
        GRIP(clip, images.classnames, **params),
    )
    whole.fit(images, y)
    for stop in (1, 2):

        def interrupt(method, pseudolabels):
            if len(method.history_) == stop:
                raise Lost
            return {}

        method = GRIP(
            clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
        )
        with pytest.raises(Lost):
            method.fit(images, y, callbacks=interrupt)
        assert not hasattr(method, "classnames_"), "an interrupted fit is not fitted"
        assert rounds_kept(tmp_path / "run") == stop
    method = GRIP(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images, y)
    assert bits(method) == bits(whole)
    assert np.array_equal(
        method.predict_proba(test_images), whole.predict_proba(test_images)
    )


def rounds_kept(path):
    return read_arrays(path, SavedRun, "")[1].record["round"]


def test_a_finished_fit_is_not_trained_again(
    clip, images, test_images, tmp_path, monkeypatch
):
    params = {**SHORT, "checkpoint": str(tmp_path / "run")}
    first = GRIP(clip, images.classnames, **params).fit(images)
    monkeypatch.setattr(
        module, "minimise", lambda *args: pytest.fail("there is nothing left to train")
    )
    again = GRIP(clip, images.classnames, **params).fit(images)
    assert bits(again) == bits(first) and np.array_equal(
        again.predict_proba(test_images), first.predict_proba(test_images)
    )


# A fit in a process of its own; every round but the first takes its time.
WORKER = f"""
import sys, time, torch
torch.set_num_threads(1)
from clipadapt import digits, load_clip
from clipadapt.methods.grip import GRIP
images = digits("train").subset(range({COUNT}))
parameters = {{**{SHORT}, "rounds": 3, "prompt": "multimodal", "reinit": False}}
def wait(method, pseudolabels):
    time.sleep(60 if len(method.history_) > 1 else 0)
    return {{}}
clip = load_clip(device="cpu")
method = GRIP(clip, images.classnames, checkpoint=sys.argv[1], **parameters)
method.fit(images, callbacks=wait)
"""


def test_a_killed_fit_goes_on_bit_for_bit(clip, images, test_images, tmp_path):
    process = program(tmp_path, WORKER, tmp_path / "run")
    process.wait_for(tmp_path / "run")
    time.sleep(0.2)
    process.kill()
    params = {**SHORT, "rounds": 3, "prompt": "multimodal", "reinit": False}
    trained = []
    method = GRIP(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images, callbacks=lambda method, _: trained.append(1) or {})
    whole = GRIP(clip, images.classnames, **params).fit(images)
    assert len(trained) == 2 and bits(method) == bits(whole)
    assert np.array_equal(
        method.predict_proba(test_images), whole.predict_proba(test_images)
    )


@pytest.mark.parametrize(
    "name, change",
    [
        (
            "images",
            lambda m, X, y: (m, X.subset(range(COUNT - 1, -1, -1)), y[::-1].copy()),
        ),
        (
            "images",
            lambda m, X, y: (m, ImageSet([image.rotate(9) for image, _ in X]), y),
        ),
        (
            "labels",
            lambda m, X, y: (
                m,
                X,
                np.where(np.arange(COUNT) == np.argmax(y >= 0), -1, y),
            ),
        ),
        ("k", lambda m, X, y: (m.set_params(k=4), X, y)),
        ("seed", lambda m, X, y: (m.set_params(seed=1), X, y)),
        ("options", lambda m, X, y: (m.set_params(options={"length": 3}), X, y)),
        ("prompt", lambda m, X, y: (m.set_params(prompt="visual"), X, y)),
        ("epochs", lambda m, X, y: (m.set_params(epochs=3), X, y)),
        ("method", lambda m, X, y: (IFPL(**m.get_params(deep=False)), X, y)),
        (
            "classnames",
            lambda m, X, y: (
                m.set_params(classnames=m.classnames[::-1]),
                X.unlabelled(),
                y,
            ),
        ),
        ("weights", lambda m, X, y: (m.set_params(weights=np.array([1.0, 1.0])), X, y)),
        ("growth", lambda m, X, y: (m.set_params(growth=(0.5,)), X, y)),
        ("clip weights", lambda m, X, y: (m.set_params(clip=other_weights()), X, y)),
        ("clip model", lambda m, X, y: (m.set_params(clip=other_activation()), X, y)),
        (
            "clip precision",
            lambda m, X, y: (
                m.set_params(
                    clip=CLIP(
                        m.clip.model,
                        m.clip.preprocess,
                        m.clip.tokenizer,
                        precision="bf16",
                    )
                ),
                X,
                y,
            ),
        ),
    ],
)
def test_resuming_another_run_is_refused_by_name(clip, images, tmp_path, name, change):
    y = some_labels(images, "semi-supervised")
    plain = ImageSet(images.images)
    method = GRIP(
        clip,
        images.classnames,
        checkpoint=str(tmp_path / "run"),
        **{**SHORT, "rounds": 1},
    ).fit(plain, y)
    other, X, labels = change(clone(method), plain, y)
    with pytest.raises(
        ValueError, match=rf"another run: ([\w ]+, )*{name}(, [\w ]+)* changed"
    ):
        other.fit(X, labels)


def other_weights():
    other = load_clip(device="cpu")
    other.model.visual.proj.data.mul_(1.01)
    return other


def other_activation():
    """The same weights behind another activation: a hash of the weights does not see
    it."""
    other = load_clip(device="cpu")
    for block in other.model.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    return other


def test_damaged_checkpoints_are_refused(clip, images, tmp_path):
    (tmp_path / "run").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="run is damaged .*delete it to start anew"):
        FPL(clip, images.classnames, checkpoint=str(tmp_path / "run"), **SHORT).fit(
            images
        )


def test_checkpoints_take_numpy_numbers(clip, images, tmp_path):
    method = FPL(
        clip,
        images.classnames,
        checkpoint=str(tmp_path / "run"),
        **{**SHORT, "k": np.int64(3)},
    ).fit(images)
    assert bits(method) == bits(FPL(clip, images.classnames, **SHORT).fit(images))


def test_a_checkpoint_may_be_a_path_and_the_method_still_be_saved(
    clip, images, tmp_path
):
    FPL(clip, images.classnames, checkpoint=tmp_path / "run", **SHORT).fit(images).save(
        tmp_path / "saved"
    )
    assert len(FPL.load(tmp_path / "saved", clip).pseudolabels_) == 30


@pytest.mark.parametrize(
    "y, message",
    [
        ([0] * 3, r"shape \(80,\)"),
        ([0.5] * COUNT, "integers"),
        ([10] * COUNT, "0 ... 9"),
        ([-2] * COUNT, "-1 for unlabelled"),
        (["0"] * COUNT, "name classes that there are not: 0"),
    ],
)
def test_wrong_labels(clip, images, y, message):
    with pytest.raises(ValueError, match=message):
        GRIP(clip, images.classnames, **SHORT).fit(images, y)


@pytest.mark.parametrize(
    "wanted, given, message",
    [
        ("transductive", "semi-supervised", "10 of 10 classes have labels"),
        ("semi-supervised", "transductive", "6 of 10 classes have labels"),
        ("unsupervised", "transductive", "6 of 10"),
        ("transductive", "unsupervised", "0 of 10"),
        ("supervised", "unsupervised", "setting must be one of"),
    ],
)
def test_settings_that_the_labels_are_not(clip, images, wanted, given, message):
    with pytest.raises(ValueError, match=message):
        GRIP(clip, images.classnames, setting=wanted, **SHORT).fit(
            images, some_labels(images, given)
        )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("method", METHODS)
def test_transductive_learning_asks_what_the_pool_shows(
    clip, images, method, prompt, monkeypatch
):
    """Before anything is computed; both answers are named."""
    monkeypatch.setattr(module, "_new_prompt", lambda method: pytest.fail("too late"))
    asked = METHODS[method](clip, images.classnames, prompt=prompt, **SHORT)
    with pytest.raises(ValueError, match="6 of 10 .*'unseen' if .*'mixed' if") as error:
        asked.fit(images, some_labels(images, "transductive"))
    assert "\n" not in str(error.value) and not hasattr(asked, "classnames_")


@pytest.mark.parametrize("setting", ["unsupervised", "semi-supervised"])
def test_elsewhere_the_pool_has_no_effect(clip, images, setting):
    y = some_labels(images, setting)
    fits = [
        bits(FPL(clip, images.classnames, pool=pool, **SHORT).fit(images, y))
        for pool in (None, "mixed", "unseen")
    ]
    assert fits[0] == fits[1] == fits[2]


def test_without_unlabelled_images_there_is_nothing_to_ask(clip, images):
    known = images.subset(~np.isin(images.labels, UNSEEN))
    FPL(clip, images.classnames, setting="transductive", **SHORT).fit(
        known, known.labels
    )


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("pool=unseen", {"pool": "unseen"}),
        ("pool=mixed", {"pool": "mixed"}),
        ("pool=null", {"pool": None}),
        ("weights=published", {"weights": "published"}),
        ("weights=[1, 0.5]", {"weights": [1, 0.5]}),
    ],
)
def test_the_command_line_can_choose(clip, setting, expected):
    params = configure(GRIP(clip, ["a", "b"]), [setting]).get_params(deep=False)
    assert {**params, **expected} == params


@pytest.mark.parametrize("prompt", ["visual", "multimodal"])
def test_patches_in_the_main_memory_change_nothing(clip, images, monkeypatch, prompt):
    y = some_labels(images, "semi-supervised")
    method = IFPL(clip, images.classnames, prompt=prompt, **SHORT)
    expected = bits(method.fit(images, y)), method.predict_proba(images)
    monkeypatch.setattr(prompts, "_is_elsewhere", lambda inputs, device: True)
    assert bits(method.fit(images, y)) == expected[0]
    assert np.array_equal(method.predict_proba(images), expected[1])


@pytest.mark.parametrize(
    "setting, weights",
    [
        ("unsupervised", (0, 1)),
        ("semi-supervised", (1, 1)),
        ("semi-supervised", (2, 0.5)),
    ],
)
def test_a_fit_against_a_plain_loop(clip, images, setting, weights):
    """Textual FPL written again: whole texts through the whole encoder, torch's SGD and
    a schedule of its own, the loss by lists of indices as in the released code."""
    y, names = some_labels(images, setting), images.classnames
    recipe = {"k": 3, "epochs": 8, "warmup": 2, "batch_size": 7, "weight_decay": 0.01}
    method = FPL(clip, names, weights=weights, options={"length": 2}, **recipe)
    method.fit(images, y)
    pool = np.flatnonzero(y < 0)
    zero_shot = ZeroShot(clip, names).fit(images).predict_proba(images.subset(pool))
    best = np.argsort(-zero_shot, axis=0, kind="stable")[:3]
    given = np.flatnonzero(y >= 0)
    pairs = {(int(pool[i]), c) for c in range(10) for i in best[:, c]}
    assert {*map(tuple, method.pseudolabels_)} == pairs
    rows = torch.tensor(np.concatenate([given, method.pseudolabels_[:, 0]]))
    classes = torch.tensor(np.concatenate([y[given], method.pseudolabels_[:, 1]]))
    prefix = torch.nn.Parameter(
        TextualPrompt(clip, names, length=2).prefix.detach().clone()
    )
    features, order = clip.encode_image(images), np.random.default_rng((0, 0))
    optimiser = torch.optim.SGD([prefix], 0.1, momentum=0.9, weight_decay=0.01)
    for epoch in range(8):
        rate = 0.1 * (
            (epoch + 1) / 3
            if epoch < 2
            else (1 + math.cos(math.pi * (epoch - 2) / 6)) / 2
        )
        optimiser.param_groups[0]["lr"] = rate
        for batch in torch.from_numpy(order.permutation(len(rows))).split(7):
            texts = whole_texts(clip, names, prefix)
            logits = clip.logit_scale * features[rows[batch]] @ texts.T
            loss = 0
            for weight, part in zip(weights, (batch < len(given), batch >= len(given))):
                chosen = [i for i in range(len(batch)) if part[i]]
                if chosen:
                    entropy = torch.nn.CrossEntropyLoss()
                    loss = loss + weight * entropy(
                        logits[chosen], classes[batch][chosen]
                    )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert np.abs(method.prompt_ - prefix.detach().numpy().ravel()).max() < 1e-5


def whole_texts(clip, names, prefix):
    """Unit features of placeholder words and class names, the words then replaced."""
    model, words = clip.model, " ".join(["x"] * len(prefix))
    tokens = clip.tokenizer([f"{words} {name}" for name in names])
    start, _, rest = model.token_embedding(tokens).split(
        [1, len(prefix), tokens.shape[1] - 1 - len(prefix)], 1
    )
    embedded = torch.cat([start, prefix.expand(len(names), -1, -1), rest], 1)
    hidden = model.transformer(
        embedded + model.positional_embedding, attn_mask=model.attn_mask
    )
    ends = model.ln_final(hidden)[torch.arange(len(names)), tokens.argmax(1)]
    return torch.nn.functional.normalize(ends @ model.text_projection, dim=-1)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"prompt": "text"}, "prompt must be one of 'textual', 'visual', 'multimodal'"),
        ({"pool": "seen"}, "pool must be 'mixed', 'unseen' or None, not 'seen'"),
        ({"policy": "best"}, "policy must be one of"),
        ({"templates": "a photo"}, "gap"),
        ({"templates": "singel"}, "unknown template set"),
        ({"k": 0}, "k must be"),
        ({"k": 2.5}, "k must be"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 1.5}, "rounds"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"momentum": 1}, "momentum"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"warmup": -1}, "warmup"),
        (
            {"weights": (1, -1)},
            "weights must be 'shares', 'recommended', 'published' or two numbers",
        ),
        (
            {"weights": 1},
            "weights must be 'shares', 'recommended', 'published' or two numbers",
        ),
        (
            {"weights": (1, float("nan"))},
            "weights must be 'shares', 'recommended', 'published' or two numbers",
        ),
        ({"weights": "12"}, "weights must be 'shares', 'recommended', 'published'"),
        ({"options": ["length"]}, "options must be a dict"),
        (
            {"weights": (1, 2, 3)},
            "weights must be 'shares', 'recommended', 'published' or two numbers",
        ),
        ({"options": {"lenght": 2}}, "lenght"),
        ({"options": {"length": 31}}, "more than the 32"),
    ],
)
@pytest.mark.parametrize("method", ["IFPL", "GRIP"])
def test_bad_parameters_are_named(clip, images, method, params, message):
    method = "IFPL" if "k" in params else method  # k has no effect on GRIP
    with pytest.raises(ValueError, match=message):
        METHODS[method](clip, images.classnames, **{**SHORT, **params}).fit(images)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_class_names_that_do_not_fit(clip, images, prompt):
    names = [*images.classnames[:9], " ".join(["nine"] * 40)]
    method = FPL(clip, names, prompt=prompt, **SHORT)
    if prompt != "visual":
        with pytest.raises(ValueError, match="nine nine.*12 more than the 32"):
            method.fit(ImageSet(images.images))


@pytest.mark.parametrize("method", METHODS)
def test_small_and_odd_pools(clip, images, test_images, method):
    """A pool smaller than K x C, one image, a class without any image, and every image
    labelled (an upper bound)."""
    make = lambda **more: METHODS[method](
        clip, images.classnames, **{**SHORT, "k": 16, **more}
    )  # noqa: E731
    without = images.subset(images.labels != 3)
    for X in (images.subset(range(7)), images.subset([0]), without):
        fitted = make().fit(X)
        assert np.isfinite(fitted.predict_proba(test_images)).all() and set(
            fitted.pseudolabels_[:, 0]
        ) <= set(range(len(X)))
    bound = make(epochs=20).fit(images, images.labels)
    assert bound.pseudolabels_.shape == (0, 2) and [
        entry["k"] for entry in bound.history_
    ] == [0]
    assert bound.score(images) > ZeroShot(clip, images.classnames).fit(images).score(
        images
    )


def test_the_upper_bound_can_be_saved_and_resumed(clip, images, test_images, tmp_path):
    params = {**SHORT, "checkpoint": str(tmp_path / "run")}
    bound = GRIP(clip, images.classnames, **params).fit(images, images.labels)
    assert bits(
        GRIP(clip, images.classnames, **params).fit(images, images.labels)
    ) == bits(bound)
    bound.save(tmp_path / "saved")
    loaded = GRIP.load(tmp_path / "saved", clip)
    assert loaded.pseudolabels_.shape == (0, 2) and np.allclose(
        loaded.predict_proba(test_images), bound.predict_proba(test_images), atol=1e-6
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_class(clip, images, prompt):
    """Nothing to learn and nothing to say but 1; never NaN."""
    probabilities = (
        GRIP(clip, ["zero"], prompt=prompt, **SHORT)
        .fit(ImageSet(images.images))
        .predict_proba(ImageSet(images.images))
    )
    assert probabilities.shape == (COUNT, 1) and (probabilities == 1).all()


def test_a_failed_second_fit_leaves_it_unfitted(clip, images):
    method = FPL(clip, images.classnames, **SHORT).fit(images)
    with pytest.raises(ValueError):
        method.set_params(policy="best").fit(images)
    with pytest.raises(Exception, match="not fitted"):
        method.predict(images)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fitted", [False, True])
def test_an_annotator_labels_first_and_the_prompt_later(clip, images, method, fitted):
    """Round 1 chooses by what the annotator says of the pool, round 2 by the prompt of
    round 1, with its own parameters and nobody else's."""
    names, seen = images.classnames, []
    teacher = Prototypes(clip, names)
    said = teacher.fit_predict_proba(images)
    teacher = teacher if fitted else clone(teacher)

    def keep(method, pseudolabels):
        seen.append((method.predict_proba(images), pseudolabels))

    student = METHODS[method](clip, names, annotator=teacher, **SHORT)
    student.fit(images, callbacks=keep)
    assert student.annotator_ == "Prototypes"
    assert hasattr(teacher, "classnames_") == fitted
    ks = [record["k"] for record in student.history_]
    for probabilities, k, (_, chosen) in zip((said, seen[0][0]), ks, seen):
        expected = top_k(probabilities, k)
        pairs = zip(expected.images, expected.classes)
        assert {*zip(chosen.images, chosen.classes)} == {*pairs}
    alone = METHODS[method](clip, names, **SHORT).fit(images)
    assert alone.annotator_ == "" and bits(alone) != bits(student)


def test_zero_shot_as_an_annotator_is_nearly_none(clip, images):
    """Its probabilities are those of the first round, but for their rounding."""
    names = images.classnames
    taught, alone = (
        FPL(clip, names, annotator=annotator, **SHORT).fit(images)
        for annotator in (ZeroShot(clip, names), None)
    )
    assert {*map(tuple, taught.pseudolabels_)} == {*map(tuple, alone.pseudolabels_)}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_annotator_of_any_kind_of_prompt(clip, images, test_images, prompt):
    """A chain: prototypes teach a textual prompt, which teaches another kind."""
    names = images.classnames
    first = FPL(clip, names, annotator=Prototypes(clip, names), **SHORT)
    chain = FPL(clip, names, annotator=first, prompt=prompt, **SHORT).fit(images)
    assert chain.annotator_ == "FPL" and not hasattr(first, "classnames_")
    assert np.isfinite(chain.predict_proba(test_images)).all()
    whole = first.fit(images).predict_proba(images)
    expected = top_k(whole, 3)
    pairs = {*zip(expected.images, expected.classes)}
    assert {*map(tuple, chain.pseudolabels_)} == pairs


def test_an_annotator_gets_the_labels_and_answers_for_the_pool(clip, images):
    y = some_labels(images, "transductive")
    pool = np.flatnonzero(y < 0)
    names = images.classnames
    said = Prototypes(clip, names).fit_predict_proba(images, y)
    for answer, allowed in (("mixed", range(10)), ("unseen", UNSEEN)):
        student = FPL(
            clip, names, pool=answer, annotator=Prototypes(clip, names), **SHORT
        ).fit(images, y)
        scores = said[pool][:, list(allowed)]
        expected = top_k(scores / scores.sum(1, keepdims=True), 3)
        assert {*map(tuple, student.pseudolabels_)} == {
            (pool[i], allowed[c]) for i, c in zip(expected.images, expected.classes)
        }


class OneHot(Prototypes):
    """Sure of everything, and of seen classes only: nothing is left for the others."""

    def _pool_proba(self, images):
        return torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]


@pytest.mark.parametrize("method", METHODS)
def test_an_annotator_that_rules_the_allowed_classes_out(clip, images, method):
    y = some_labels(images, "transductive")
    teacher = OneHot(clip, images.classnames)
    student = METHODS[method](
        clip, images.classnames, pool="unseen", annotator=teacher, **SHORT
    ).fit(images, y)
    assert set(student.pseudolabels_[:, 1]) == set(UNSEEN)


def test_all_images_labelled_leave_an_annotator_nothing_to_say(clip, images):
    names = images.classnames
    taught, alone = (
        GRIP(clip, names, annotator=annotator, **SHORT).fit(images, images.labels)
        for annotator in (Prototypes(clip, names), None)
    )
    assert bits(taught) == bits(alone)


def test_features_are_enough_for_textual_prompts(clip, images, test_images):
    names = images.classnames
    features = FeatureSet(clip.encode_image(images), names)
    for annotator in (None, Prototypes(clip, names)):
        method = GRIP(clip, names, annotator=annotator, **SHORT)
        expected = bits(method.fit(images))
        assert bits(method.fit(features)) == expected
        held_out = FeatureSet(clip.encode_image(test_images), names)
        answers = method.predict_proba(test_images)
        assert np.allclose(method.predict_proba(held_out), answers, atol=1e-5)


def test_a_checkpoint_knows_its_annotator(clip, images, tmp_path):
    """Killed after its first round; who would go on must be taught the same."""
    names, path = images.classnames, tmp_path / "run"
    params = {**SHORT, "checkpoint": str(path)}

    def stop(method, pseudolabels):
        if len(method.history_) == 1:
            raise Lost

    def method(annotator, **more):
        return GRIP(clip, names, annotator=annotator, **{**params, **more})

    with pytest.raises(Lost):
        method(Prototypes(clip, names)).fit(images, callbacks=stop)
    assert rounds_kept(path) == 1
    for other in (
        None,
        ZeroShot(clip, names),
        Prototypes(clip, names, iterations=1),
        Prototypes(clip, names).fit(images.subset(range(40))),
    ):
        with pytest.raises(ValueError, match="another run: annotator changed"):
            method(other).fit(images)
    whole = method(Prototypes(clip, names), checkpoint=None).fit(images)
    assert bits(method(Prototypes(clip, names)).fit(images)) == bits(whole)
    path.unlink()
    with pytest.raises(Lost):
        method(None).fit(images, callbacks=stop)
    with pytest.raises(ValueError, match="another run: annotator changed"):
        method(Prototypes(clip, names)).fit(images)


class Counted(Prototypes):
    fits = 0

    def _fit(self, images, labels):
        type(self).fits += 1
        super()._fit(images, labels)


def test_an_annotator_is_asked_once_and_not_again_after_the_first_round(
    clip, images, tmp_path
):
    names = images.classnames
    params = {**SHORT, "checkpoint": str(tmp_path / "run")}
    method = GRIP(clip, names, annotator=Counted(clip, names), **params)

    def stop(method, pseudolabels):
        if len(method.history_) == 2:
            raise Lost

    Counted.fits = 0
    with pytest.raises(Lost):
        method.fit(images, callbacks=stop)
    assert Counted.fits == 1
    resumed = clone(method).fit(images)
    assert Counted.fits == 1 and resumed.annotator_ == "Counted"
    clone(method).set_params(checkpoint=None).fit(images, images.labels)
    assert Counted.fits == 1, "nothing is left to label"


def test_who_taught_is_saved_and_the_teacher_is_not(clip, images, tmp_path):
    names = images.classnames
    teacher = Prototypes(clip, names).fit(images)
    student = FPL(clip, names, annotator=teacher, **SHORT).fit(images)
    student.save(tmp_path / "saved")
    loaded = FPL.load(tmp_path / "saved", clip)
    assert loaded.annotator is None and loaded.annotator_ == "Prototypes"
    assert np.array_equal(loaded.pseudolabels_, student.pseudolabels_)
    twin = clone(student)
    assert twin.annotator is teacher and not hasattr(twin, "prompt_")
    assert bits(twin.fit(images)) == bits(student)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda clip, names: "GRIP", "annotator must be a method"),
        (lambda clip, names: Prototypes(clip, names[::-1]), "another order"),
        (lambda clip, names: Prototypes(clip, names[:9]), "other class names"),
    ],
)
def test_annotators_that_do_not_fit(clip, images, make, message):
    names = images.classnames
    method = GRIP(clip, names, annotator=make(clip, names), **SHORT)
    with pytest.raises(ValueError, match=message):
        method.fit(images)
    assert not hasattr(method, "classnames_")


def test_a_better_teacher_makes_a_better_student(clip):
    """Prototypes read the handwriting some 15 points better than zero-shot CLIP."""
    train, test = digits("train"), digits("test")
    names, short = train.classnames, {**module.SMALL, "epochs": 5}
    taught, alone = (
        FPL(clip, names, k=89, annotator=annotator, **short).fit(train)
        for annotator in (Prototypes(clip, names), None)
    )
    assert taught.score(test) > alone.score(test) + 0.03
