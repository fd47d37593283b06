"""Fine-tuning of both towers: texts encoded once against texts encoded plainly, views,
batches, resumed runs, and half precision."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip import image_transform
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP
from PIL import Image
from tiny_models import TEXT, TINY, VISION, tiny

from clipadapt import CLIP, LatteCLIP, digits
from clipadapt.learning import towers as finetuning
from clipadapt.learning import training
from clipadapt.learning.towers import (
    CROPS,
    SMALL,
    TextTable,
    TowerTraining,
    contrastive_loss,
    finetuning_view,
    interpolate_weights,
    trainable_copy,
)
from clipadapt.learning.training import Recipe
from clipadapt.methods import latteclip

CAPTIONS = [
    "a cat.",
    "a very long name of an annual crop land, seen from above.",
    "a cat.",
    "x",
    "a cat with one closed loop.",
]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def few():
    return digits("train").subset(range(21)).unlabelled()


def text_gradients(clip, encode):
    """Gradients of the text tower after a loss that weighs every feature
    differently."""
    clip.model.zero_grad(set_to_none=True)
    features = encode()
    (
        features * torch.arange(features.numel()).view(features.shape).cos()
    ).sum().backward()
    return features.detach(), {
        name: parameter.grad.clone()
        for name, parameter in clip.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", ["built-in", *TINY])
def test_texts_encoded_once_have_the_features_and_the_gradients_of_plain_ones(
    clips, name
):
    clip = trainable_copy(clips(name))
    table, rows = TextTable(clip, CAPTIONS), torch.tensor([4, 0, 2, 2, 1])
    assert len(table.tokens) == 4 and table.ends is not None
    shared, ours = text_gradients(clip, lambda: table(clip, rows))
    plain, theirs = text_gradients(
        clip,
        lambda: F.normalize(
            clip.model.encode_text(clip.tokenizer([CAPTIONS[row] for row in rows])),
            dim=-1,
        ),
    )
    assert (shared - plain).abs().max() < 1e-5 and ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).abs().max() <= 1e-4 * max(
            1, gradient.abs().max()
        ), key


def test_a_text_encoder_that_is_not_causal_gets_its_texts_whole():
    clip = tiny(
        lambda: CustomTextCLIP(
            16, VISION, {**TEXT, "no_causal_mask": True, "pool_type": "last"}
        )
    )
    table = TextTable(clip, CAPTIONS)
    assert (
        table.ends is None
        and (table(clip, torch.arange(5)) - clip.encode_text(CAPTIONS)).abs().max()
        < 1e-5
    )


def test_texts_beyond_the_context_are_cut_with_a_warning(clip):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 30 tokens"):
        table = TextTable(clip, ["seven " * 50, "a seven.", "a seven."])
    assert torch.allclose(
        table(clip, torch.tensor([0])), clip.encode_text(["seven " * 30]), atol=1e-5
    )


@pytest.mark.parametrize(
    "count, batch_size, sizes",
    [
        (21, 64, [21]),
        (21, 8, [7, 7, 7]),
        (21, 20, [11, 10]),
        (1, 4, [1]),
        (10, 4, [4, 4, 2]),
    ],
)
def test_batches_have_one_size_but_for_the_last_and_hold_every_image_once(
    clip, few, count, batch_size, sizes
):
    run = TowerTraining(
        clip, few.subset(range(count)), Recipe(**{**SMALL, "batch_size": batch_size})
    )
    seen, features = [], clip.encode_image(few)

    def loss(batch, ours):
        seen.append(batch)
        if len(seen) == 1:  # before the first step the copy answers as the original
            assert torch.allclose(ours, features[batch], atol=1e-5)
        return ours.square().sum()

    run.epoch(0, loss)
    assert [len(batch) for batch in seen] == sizes and sorted(
        torch.cat(seen).tolist()
    ) == list(range(count))


def test_epochs_differ_and_seeds_differ_but_nothing_else_does(clip, few):
    def orders(seed):
        run, seen = (
            TowerTraining(
                clip, few, Recipe(**SMALL), view=finetuning_view(32), seed=seed
            ),
            [],
        )
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        for epoch in range(2):
            run.epoch(
                epoch,
                lambda batch, features: (
                    seen.append((batch.tolist(), features.sum().item())),
                    features.sum(),
                )[1],
            )
        assert torch.equal(state, torch.get_rng_state()) and np.array_equal(
            numpy_state, np.random.get_state()[1]
        )
        return seen

    first, again, other = orders(0), orders(0), orders(1)
    assert first == again and first[0] != first[1] and first != other


@pytest.mark.parametrize("name", ["built-in", "ResNet"])
def test_the_original_stays_frozen_and_batch_statistics_stay_as_they_are(
    clips, few, name
):
    clip = clips(name)
    before, run = clip.fingerprint, TowerTraining(clip, few, Recipe(**SMALL))
    buffers = {key: tensor.clone() for key, tensor in run.clip.model.named_buffers()}
    table = TextTable(clip, CAPTIONS)
    run.epoch(
        0,
        lambda batch, features: contrastive_loss(
            features, table(run.clip, batch % 5), run.logit_scale()
        ),
    )
    assert clip.fingerprint == before != run.clip.fingerprint and not any(
        p.requires_grad for p in clip.model.parameters()
    )
    assert all(
        torch.equal(buffers[key], tensor)
        for key, tensor in run.clip.model.named_buffers()
    )


def test_the_logit_scale_stays_below_a_hundred_and_can_come_back(clip, few):
    def scale(start, direction):
        run = TowerTraining(
            clip,
            few,
            Recipe(**{**SMALL, "learning_rate": 0.1, "warmup": 0, "batch_size": 3}),
            train_text=False,
        )
        run.clip.model.logit_scale.data.fill_(math.log(start))
        run.epoch(
            0,
            lambda batch, features: direction * run.logit_scale() + 0 * features.sum(),
        )
        return run.logit_scale().item()

    assert 90 < scale(90, -1) <= 100.001 and scale(100, 1) < 90


def siglip():
    """A SigLIP: sigmoid loss with a bias and a scale of 117, a text tower that is not
    causal."""
    text = {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    return CustomTextCLIP(
        16, VISION, text, init_logit_scale=math.log(117.3), init_logit_bias=-12.9
    )


def coca():
    """A CoCa: the text feature is read from a token of its own, behind the text."""
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    vision = {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    model = CoCa(16, {**TEXT, "attn_pooler_heads": 2}, text, vision)
    for parameter in model.text_decoder.parameters():  # some are left uninitialised
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def convolutional():
    """An image tower of timm, without tokens."""
    tower = {
        "image_size": 32,
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    return CustomTextCLIP(16, tower, TEXT)


def hugging_face_text():
    """A text tower of transformers, with its own end token and padding."""
    from transformers import RobertaConfig

    config = RobertaConfig(
        vocab_size=49408,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    model = CustomTextCLIP(16, VISION, TEXT)
    model.text = HFTextEncoder(
        "roberta",
        16,
        config=config,
        pooler_type="mean_pooler",
        proj_type="linear",
        pretrained=False,
    )
    return model


OTHERS = {
    "SigLIP": siglip,
    "CoCa": coca,
    "timm": convolutional,
    "transformers": hugging_face_text,
}


def other_clip(name):
    """One of `OTHERS`, which says how it wants its images."""
    clip = tiny(OTHERS[name])
    mode = "squash" if name == "SigLIP" else "shortest"
    clip.preprocess = image_transform(32, is_train=False, resize_mode=mode)
    assert clip.squashes == (name == "SigLIP")
    return clip


class OwnTokens:
    """A tokenizer of another kind: callable, with a context length, and nothing
    more."""

    context_length = 32

    def __call__(self, texts):
        tokens = torch.zeros(len(texts), 32, dtype=torch.int64)
        for row, text in zip(tokens, texts):
            codes = torch.tensor([1, *text.encode()[:30], 2])
            row[: len(codes)] = codes
        return tokens


@pytest.mark.parametrize(
    "name, own_tokens",
    [*((name, False) for name in OTHERS), ("SigLIP", True), ("transformers", True)],
)
def test_both_towers_of_other_models_learn_from_texts(few, name, own_tokens):
    clip = other_clip(name)
    if own_tokens:
        clip = CLIP(clip.model, clip.preprocess, OwnTokens())
    run = TowerTraining(clip, few, Recipe(**SMALL))
    table = TextTable(run.clip, CAPTIONS)
    assert (
        table(run.clip, torch.arange(5)) - clip.encode_text(CAPTIONS)
    ).abs().max() < 1e-5
    rows = lambda batch: table(run.clip, batch % 5)
    loss = lambda batch, features: contrastive_loss(
        features, rows(batch), run.logit_scale()
    )
    assert np.isfinite(run.epoch(0, loss))
    assert not torch.equal(run.clip.encode_text(CAPTIONS), clip.encode_text(CAPTIONS))
    assert not torch.equal(run.clip.encode_image(few), clip.encode_image(few))
    other = TowerTraining(clip, few, Recipe(**SMALL))
    other.restore(run.state())
    assert other.clip.fingerprint == run.clip.fingerprint


@pytest.mark.parametrize("name", OTHERS)
def test_latteclip_fits_and_loads_with_other_models(few, tmp_path, name):
    clip, told = other_clip(name), {"image": ["a long stroke.", ""] * 10 + ["x"]}
    names = digits("train").classnames
    options = {
        "epochs": 1,
        "batch_size": 11,
        "learning_rate": 1e-4,
        "weight_alpha": 0.5,
    }
    method = LatteCLIP(clip, names, **options).fit(few, captions=told)
    method.save(tmp_path / "method")
    again = LatteCLIP.load(tmp_path / "method", clip)
    assert np.array_equal(again.predict_proba(few), method.predict_proba(few))


def test_a_siglip_keeps_its_logit_scale_as_the_limit(few, tmp_path):
    """CLIP's limit is 100, but a first step must not change where a model began."""
    clip = other_clip("SigLIP")
    run = TowerTraining(clip, few, Recipe(**{**SMALL, "learning_rate": 1e-3}))
    assert run.logit_scale().item() == pytest.approx(117.3, rel=1e-6)
    run.epoch(0, lambda batch, features: 0 * features.sum() - run.logit_scale())
    assert run.logit_scale().item() == pytest.approx(117.3, rel=1e-6)
    run.epoch(1, lambda batch, features: 0 * features.sum() + run.logit_scale())
    assert run.logit_scale().item() < 117.3
    names = digits("train").classnames
    options = {"epochs": 1, "learning_rate": 1e-7}
    method = LatteCLIP(clip, names, **options).fit(few)
    assert method.logit_scale_ == pytest.approx(117.3, rel=1e-4)
    method.save(tmp_path / "method")
    assert LatteCLIP.load(tmp_path / "method", clip).logit_scale_ == method.logit_scale_
    method.logit_scale_ = 130.0
    with pytest.raises(ValueError, match="logit_scale_ is 130; .* between 0 and 117.3"):
        method.save(tmp_path / "method")


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 6),
    dim=st.integers(2, 5),
    scale=st.floats(1, 100),
)
def test_the_contrastive_loss_is_the_one_of_loops(seed, count, dim, scale):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64))
        for _ in range(2)
    )
    total = 0.0
    for i in range(count):
        across = [math.exp(scale * float(images[i] @ text) - scale) for text in texts]
        along = [math.exp(scale * float(image @ texts[i]) - scale) for image in images]
        total -= math.log(across[i] / sum(across)) + math.log(along[i] / sum(along))
    loss = contrastive_loss(images, texts, scale)
    assert float(loss) == pytest.approx(total / (2 * count), rel=1e-4, abs=1e-4)


def test_interpolated_weights_are_those_of_both_towers(clip, few):
    run = TowerTraining(clip, few, Recipe(**SMALL))
    table = TextTable(run.clip, CAPTIONS)
    run.epoch(
        0,
        lambda batch, features: contrastive_loss(
            features, table(run.clip, batch % 5), run.logit_scale()
        ),
    )
    between = interpolate_weights(clip, run.clip, 0.3)
    tuned = dict(run.clip.model.named_parameters())
    now = dict(between.model.named_parameters())
    for name, before in clip.model.named_parameters():
        expected = 0.7 * before + 0.3 * tuned[name]
        assert torch.allclose(now[name], expected, atol=1e-6), name


@pytest.mark.parametrize("name", ["built-in", "custom text"])
def test_a_frozen_text_tower_answers_as_before_whatever_the_model_calls_it(
    clips, few, name
):
    run = TowerTraining(clips(name), few, Recipe(**SMALL), train_text=False)
    table = TextTable(run.clip, CAPTIONS)
    run.epoch(
        0,
        lambda batch, features: contrastive_loss(
            features, table(run.clip, batch % 5), run.logit_scale()
        ),
    )
    assert torch.equal(
        run.clip.encode_text(CAPTIONS), clips(name).encode_text(CAPTIONS)
    )
    assert not torch.equal(run.clip.encode_image(few), clips(name).encode_image(few))


def test_a_model_of_half_precision_is_trained_in_float32(clip, few):
    half = CLIP(copy.deepcopy(clip.model).half(), clip.preprocess, clip.tokenizer)
    run = TowerTraining(half, few, Recipe(**SMALL))
    table = TextTable(run.clip, CAPTIONS)
    loss = run.epoch(
        0,
        lambda batch, features: contrastive_loss(
            features, table(run.clip, batch % 5), run.logit_scale()
        ),
    )
    assert (
        np.isfinite(loss)
        and all(p.dtype == torch.float32 for p in run.clip.model.parameters())
        and run.clip.encode_image(few).isfinite().all()
    )


@pytest.mark.parametrize("size", [(32, 32), (50, 20), (7, 90), (1, 1)])
@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("squash", [True, False])
def test_views_of_any_image(size, colour, crop, squash):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    )
    view = finetuning_view(32, colour, squash, crop)
    views = [view(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(view.size == (32, 32) and view.mode == "RGB" for view in views)
    grey = sum(
        np.ptp(np.asarray(view).astype(int), axis=2).max() == 0 for view in views
    )
    assert (0 < grey < 12) if colour and size != (1, 1) else grey == 0 or size == (1, 1)


def seen_part(size, seed, **options):
    """Which part of an image a view shows: left, top, right and bottom in pixels."""
    width, height = size
    across = np.linspace(0, 1, width)[None].repeat(height, 0)
    down = np.linspace(0, 1, height)[:, None].repeat(width, 1)
    pixels = np.stack([across, down, 0 * down], -1)
    image = Image.fromarray(np.uint8(255 * pixels))
    view = finetuning_view(64, colour=False, **options)
    seen = np.asarray(view(image, np.random.default_rng(seed)), np.float64) / 255
    steps = [np.polyfit(np.arange(64) + 0.5, seen[..., k].mean(k), 1) for k in (0, 1)]
    first, last = (
        [step[1] for step in steps],
        [step[1] + 64 * step[0] for step in steps],
    )
    return np.array([*first, *last]) * [width, height, width, height]


@pytest.mark.parametrize(
    "size", [(300, 300), (360, 300), (300, 200), (100, 300), (220, 200)]
)
def test_crops_are_distributed_as_torchvision_s(size):
    """Mean area, and range and mean of the proportions, over 300 draws of each."""
    transforms = pytest.importorskip("torchvision.transforms")
    blank = Image.new("RGB", size)

    def theirs():
        top, left, height, width = transforms.RandomResizedCrop.get_params(
            blank, (0.9, 1.0), (3 / 4, 4 / 3)
        )
        return width * height, width / height

    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = np.array([theirs() for _ in range(300)])
    parts = np.array(
        [
            finetuning._redrawn_box(*size, np.random.default_rng(seed))
            for seed in range(300)
        ]
    )
    sides = parts[:, 2:] - parts[:, :2]
    found = np.stack([sides.prod(1), sides[:, 0] / sides[:, 1]], 1)
    whole = size[0] * size[1]
    assert abs(found[:, 0].mean() - expected[:, 0].mean()) < 0.01 * whole
    assert abs(found[:, 1].mean() - expected[:, 1].mean()) < 0.015
    for pick in (np.min, np.max):
        assert abs(pick(found[:, 1]) - pick(expected[:, 1])) < 0.03
    assert 3 / 4 - 1e-6 < found[:, 1].min() and found[:, 1].max() < 4 / 3 + 1e-6


@pytest.mark.parametrize("size", [(300, 300), (300, 200), (100, 300)])
def test_crops_that_are_cut_keep_proportions_too(size):
    parts = np.array([seen_part(size, seed, crop="cut") for seed in range(100)])
    sides = parts[:, 2:] - parts[:, :2]
    proportions = sides[:, 0] / sides[:, 1]
    assert 3 / 4 - 0.02 < proportions.min() and proportions.max() < 4 / 3 + 0.02
    assert parts.std(0).max() > 3, "another part in every epoch"


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(300, 200), (100, 300)])
def test_a_clip_that_squashes_is_trained_on_squashed_views(crop, size):
    """In shares of the image, crops of a long one are those of a square."""
    for seed in range(20):
        square = seen_part((300, 300), seed, crop=crop) / 300
        long = seen_part(size, seed, crop=crop, squash=True) / [*size, *size]
        assert np.abs(long - square).max() < 0.02


def test_latteclip_takes_the_view_of_its_clip(clip):
    class Squashing(CLIP):
        squashes = True

    other = Squashing(clip.model, clip.preprocess, clip.tokenizer)
    image = Image.effect_noise((90, 60), 90).convert("RGB")
    for model, squash in ((clip, False), (other, True)):
        view = latteclip._view(LatteCLIP(model, ["cat", "dog"]))
        expected = finetuning_view(model.image_size, True, squash, "redrawn")
        first, second = (
            np.asarray(each(image, np.random.default_rng(3)))
            for each in (view, expected)
        )
        assert np.array_equal(first, second)
    assert latteclip._view(LatteCLIP(clip, ["cat", "dog"], augment=False)) is None


def test_a_learning_rate_too_high_is_named(clip, few):
    run, table = (
        TowerTraining(
            clip, few, Recipe(**{**SMALL, "learning_rate": 1e30, "warmup": 0})
        ),
        TextTable(clip, CAPTIONS),
    )
    with pytest.raises(ValueError, match="lower the learning rate"):
        for epoch in range(3):
            run.epoch(
                epoch,
                lambda batch, features: contrastive_loss(
                    features, table(run.clip, batch % 5), run.logit_scale()
                ),
            )


@pytest.mark.parametrize("name", ["built-in", *TINY])
def test_a_run_in_little_memory_learns_the_same(clips, few, monkeypatch, name):
    """Activations computed twice and steps in parts, against neither."""
    clip, losses, numbers = clips(name), [], []
    table = TextTable(clip, CAPTIONS)
    for lean in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(training, "_fused", lambda parameters: None)
            if lean:
                patch.setattr(training, "ACTIVATIONS", 0)
                patch.setattr(training, "GRADIENTS", 1000)
            run = TowerTraining(clip, few, Recipe(**{**SMALL, "batch_size": 7}))
            loss = lambda batch, features: contrastive_loss(
                features, table(run.clip, batch % 5), run.logit_scale()
            )
            losses.append([run.epoch(epoch, loss) for epoch in range(2)])
            numbers.append(training.module_numbers(run.clip.model))
            assert run.recomputes == lean
    assert losses[0] == losses[1] and np.array_equal(*numbers)
