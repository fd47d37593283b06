"""Fine-tuning of both towers: texts encoded once against texts encoded plainly, views, batches, resumed runs, and half precision."""
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from PIL import Image
from tiny_models import TEXT, TINY, VISION, tiny

from clipadapt import CLIP, digits
from clipadapt.finetuning import SMALL, TextTable, TowerTraining, contrastive_loss, finetuning_view, trainable_copy
from clipadapt.training import Recipe

CAPTIONS = ["a cat.", "a very long name of an annual crop land, seen from above.", "a cat.", "x", "a cat with one closed loop."]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def few():
    return digits("train").subset(range(21)).unlabelled()


def text_gradients(clip, encode):
    """Gradients of the text tower after a loss that weighs every feature differently."""
    clip.model.zero_grad(set_to_none=True)
    features = encode()
    (features * torch.arange(features.numel()).view(features.shape).cos()).sum().backward()
    return features.detach(), {name: parameter.grad.clone() for name, parameter in clip.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["built-in", *TINY])
def test_texts_encoded_once_have_the_features_and_the_gradients_of_plain_ones(clips, name):
    clip = trainable_copy(clips(name))
    table, rows = TextTable(clip, CAPTIONS), torch.tensor([4, 0, 2, 2, 1])
    assert len(table.tokens) == 4 and table.ends is not None
    shared, ours = text_gradients(clip, lambda: table(clip, rows))
    plain, theirs = text_gradients(clip, lambda: F.normalize(clip.model.encode_text(clip.tokenizer([CAPTIONS[row] for row in rows])), dim=-1))
    assert (shared - plain).abs().max() < 1e-5 and ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).abs().max() <= 1e-4 * max(1, gradient.abs().max()), key


def test_a_text_encoder_that_is_not_causal_gets_its_texts_whole():
    clip = tiny(lambda: CustomTextCLIP(16, VISION, {**TEXT, "no_causal_mask": True, "pool_type": "last"}))
    table = TextTable(clip, CAPTIONS)
    assert table.ends is None and (table(clip, torch.arange(5)) - clip.encode_text(CAPTIONS)).abs().max() < 1e-5


def test_texts_beyond_the_context_are_cut_with_a_warning(clip):
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 30 tokens"):
        table = TextTable(clip, ["seven " * 50, "a seven.", "a seven."])
    assert torch.allclose(table(clip, torch.tensor([0])), clip.encode_text(["seven " * 30]), atol=1e-5)


@pytest.mark.parametrize("count, batch_size, sizes", [(21, 64, [21]), (21, 8, [7, 7, 7]), (21, 20, [11, 10]), (1, 4, [1]), (10, 4, [4, 4, 2])])
def test_batches_have_one_size_but_for_the_last_and_hold_every_image_once(clip, few, count, batch_size, sizes):
    run = TowerTraining(clip, few.subset(range(count)), Recipe(**{**SMALL, "batch_size": batch_size}))
    seen, features = [], clip.encode_image(few)

    def loss(batch, ours):
        seen.append(batch)
        if len(seen) == 1:      # before the first step the copy answers as the original
            assert torch.allclose(ours, features[batch], atol=1e-5)
        return ours.square().sum()

    run.epoch(0, loss)
    assert [len(batch) for batch in seen] == sizes and sorted(torch.cat(seen).tolist()) == list(range(count))


def test_epochs_differ_and_seeds_differ_but_nothing_else_does(clip, few):
    def orders(seed):
        run, seen = TowerTraining(clip, few, Recipe(**SMALL), view=finetuning_view(32), seed=seed), []
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        for epoch in range(2):
            run.epoch(epoch, lambda batch, features: (seen.append((batch.tolist(), features.sum().item())), features.sum())[1])
        assert torch.equal(state, torch.get_rng_state()) and np.array_equal(numpy_state, np.random.get_state()[1])
        return seen

    first, again, other = orders(0), orders(0), orders(1)
    assert first == again and first[0] != first[1] and first != other


@pytest.mark.parametrize("name", ["built-in", "ResNet"])
def test_the_original_stays_frozen_and_batch_statistics_stay_as_they_are(clips, few, name):
    clip = clips(name)
    before, run = clip.fingerprint, TowerTraining(clip, few, Recipe(**SMALL))
    buffers = {key: tensor.clone() for key, tensor in run.clip.model.named_buffers()}
    table = TextTable(clip, CAPTIONS)
    run.epoch(0, lambda batch, features: contrastive_loss(features, table(run.clip, batch % 5), run.logit_scale()))
    assert clip.fingerprint == before != run.clip.fingerprint and not any(p.requires_grad for p in clip.model.parameters())
    assert all(torch.equal(buffers[key], tensor) for key, tensor in run.clip.model.named_buffers())


def test_the_logit_scale_stays_below_a_hundred_and_can_come_back(clip, few):
    def scale(start, direction):
        run = TowerTraining(clip, few, Recipe(**{**SMALL, "learning_rate": 0.1, "warmup": 0, "batch_size": 3}), train_text=False)
        run.clip.model.logit_scale.data.fill_(math.log(start))
        run.epoch(0, lambda batch, features: direction * run.logit_scale() + 0 * features.sum())
        return run.logit_scale().item()

    assert 90 < scale(90, -1) <= 100.001 and scale(100, 1) < 90


@pytest.mark.parametrize("name", ["built-in", "custom text"])
def test_a_frozen_text_tower_answers_as_before_whatever_the_model_calls_it(clips, few, name):
    run = TowerTraining(clips(name), few, Recipe(**SMALL), train_text=False)
    table = TextTable(run.clip, CAPTIONS)
    run.epoch(0, lambda batch, features: contrastive_loss(features, table(run.clip, batch % 5), run.logit_scale()))
    assert torch.equal(run.clip.encode_text(CAPTIONS), clips(name).encode_text(CAPTIONS))
    assert not torch.equal(run.clip.encode_image(few), clips(name).encode_image(few))


def test_a_model_of_half_precision_is_trained_in_float32(clip, few):
    half = CLIP(copy.deepcopy(clip.model).half(), clip.preprocess, clip.tokenizer)
    run = TowerTraining(half, few, Recipe(**SMALL))
    table = TextTable(run.clip, CAPTIONS)
    loss = run.epoch(0, lambda batch, features: contrastive_loss(features, table(run.clip, batch % 5), run.logit_scale()))
    assert np.isfinite(loss) and all(p.dtype == torch.float32 for p in run.clip.model.parameters()) and run.clip.encode_image(few).isfinite().all()


@pytest.mark.parametrize("size", [(32, 32), (50, 20), (7, 90), (1, 1)])
@pytest.mark.parametrize("colour", [True, False])
def test_views_of_any_image(size, colour):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    views = [finetuning_view(32, colour)(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(view.size == (32, 32) and view.mode == "RGB" for view in views)
    grey = sum(np.ptp(np.asarray(view).astype(int), axis=2).max() == 0 for view in views)
    assert (0 < grey < 12) if colour and size != (1, 1) else grey == 0 or size == (1, 1)


def test_a_learning_rate_too_high_is_named(clip, few):
    run, table = TowerTraining(clip, few, Recipe(**{**SMALL, "learning_rate": 1e30, "warmup": 0})), TextTable(clip, CAPTIONS)
    with pytest.raises(ValueError, match="lower the learning rate"):
        for epoch in range(3):
            run.epoch(epoch, lambda batch, features: contrastive_loss(features, table(run.clip, batch % 5), run.logit_scale()))
