"""Prompts against the encoders they stand in: no prompt is plain CLIP, embedded words
are the sentence, and shortcuts change nothing."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock
from tiny_models import TEXT, TINY, VISION, tiny

from clipadapt import CLIP, digits
from clipadapt.clip.model import hash_weights
from clipadapt.learning import prompts as module
from clipadapt.learning.prompts import (
    ImageTower,
    MultimodalPrompt,
    TextTower,
    TextualPrompt,
    VisualPrompt,
)
from clipadapt.learning.training import Recipe, minimise

NAMES = [
    "cat",
    "a very long name of an annual crop land",
    "Boeing 707-320",
    "x",
]  # 1 to 9 tokens
KINDS = {
    "textual": TextualPrompt,
    "visual": VisualPrompt,
    "multimodal": MultimodalPrompt,
}
RESNET, ENCODERS = "ResNet", [name for name in TINY if name != "ResNet"]


@pytest.fixture(scope="module")
def large():
    """A whole CLIP; the tiny ones have each kind of activation."""
    name = "ViT-B-32-quickgelu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms(name)
    return CLIP(model, preprocess, open_clip.get_tokenizer(name), precision="float32")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(12))


def same(first, second, tolerance=1e-5):
    assert first.shape == second.shape and (first - second).abs().max() <= tolerance, (
        (first - second).abs().max()
    )


def check_parity(clip, images, names=NAMES):
    """Zero-length prompts are plain CLIP, and the embedded words "a photo of a" are the
    sentences."""
    textual = TextualPrompt(clip, names, words="a photo of a")
    same(
        textual.embed_classes().detach(),
        clip.encode_text([f"a photo of a {name}" for name in names]),
    )
    same(
        TextualPrompt(clip, names, length=0).embed_classes().detach(),
        clip.encode_text(names),
    )
    if isinstance(clip.model.visual, open_clip.transformer.VisionTransformer):
        plain = clip.encode_image(images)
        visual = VisualPrompt(clip, names, length=0)
        inputs = visual.prepare(images)
        same(visual.embed_images(inputs).detach(), plain)
        same(
            visual.embed_classes(),
            clip.encode_text([f"a photo of a {name}." for name in names]),
        )
        both = MultimodalPrompt(clip, names, length=0)
        same(both.embed_images(inputs).detach(), plain)
        same(both.embed_classes().detach(), clip.encode_text(names))
    same(textual.prepare(images), clip.encode_image(images), 0)


@pytest.mark.parametrize("name", ["built-in", *TINY])
def test_without_prompts_and_with_embedded_words_it_is_plain_clip(clips, images, name):
    check_parity(clips(name), images)


def test_a_large_model_without_prompts_and_with_embedded_words(large, images):
    check_parity(large, images.subset(range(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_without_a_prompt_are_zero_shots(clips, images, kind):
    """From what `prepare` keeps, without encoding an image again; the order of batches
    does not matter."""
    clip = clips("built-in")
    prompt, classes = KINDS[kind](clip, NAMES, length=2), clip.encode_text(NAMES)
    inputs = prompt.prepare(images)
    assert torch.allclose(
        prompt.score_without(classes, inputs, batch_size=3),
        clip.logit_scale * clip.encode_image(images) @ classes.T,
        atol=1e-3,
    )
    assert prompt.score_without(classes, inputs[:0]).shape == (0, len(NAMES))


def plain_path(monkeypatch):
    monkeypatch.setattr(module, "ResidualAttentionBlock", type("Other", (), {}))


@pytest.mark.parametrize(
    "name",
    ["built-in", "plain", "quick-GELU", "layer scale", "custom text", "custom blocks"],
)
@pytest.mark.parametrize("length", [0, 1, 7])
def test_shared_prefix_computed_once_is_the_whole_text_encoder(
    clips, monkeypatch, name, length
):
    """Values and gradients of the shortcut, of the plain path behind it, and of the
    untruncated encoder itself."""
    clip, generator = clips(name), torch.Generator().manual_seed(length)
    tower = TextTower(clip, NAMES, length)
    start = torch.randn(length, tower.names.shape[2], generator=generator)
    weights = torch.randn(len(NAMES), clip.embed_dim, generator=generator)

    def untruncated(prefix):
        text = getattr(clip.model, "text", clip.model)
        tokens = clip.tokenizer(NAMES)
        embedded = text.token_embedding(tokens)
        whole = torch.cat(
            [embedded[:, :1], prefix.expand(len(NAMES), -1, -1), embedded[:, 1:]], 1
        )[:, : tokens.shape[1]]
        hidden = text.ln_final(
            text.transformer(
                whole + text.positional_embedding, attn_mask=text.attn_mask
            )
        )
        hidden = hidden[torch.arange(len(NAMES)), tokens.argmax(1) + length]
        return torch.nn.functional.normalize(hidden @ text.text_projection, dim=-1)

    def value_and_gradient(function):
        prefix = start.clone().requires_grad_()
        value = function(prefix)
        (value * weights).sum().backward()
        return value.detach(), prefix.grad

    fast = value_and_gradient(tower)
    plain_path(monkeypatch)
    for other in (value_and_gradient(tower), value_and_gradient(untruncated)):
        same(fast[0], other[0])
        if length:
            scale = other[1].abs().max()
            assert scale > 0
            same(fast[1] / scale, other[1] / scale)


def test_shortcut_is_taken_where_it_fits_only(clips, monkeypatch):
    calls = []
    monkeypatch.setattr(
        module,
        "_causal_block",
        lambda block, shared, own: calls.append(1) or (shared, own),
    )
    TextualPrompt(clips("plain"), NAMES, length=3).embed_classes()
    TextualPrompt(clips("custom blocks"), NAMES, length=3).embed_classes()
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["built-in", "custom text"])
def test_prompts_have_an_effect_and_a_seed_of_their_own(clips, images, kind, name):
    state = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    first, again, other = (
        KINDS[kind](clips(name), NAMES, length=3, seed=seed) for seed in (0, 0, 1)
    )
    assert (
        torch.equal(torch.get_rng_state(), state[0])
        and np.random.get_state()[1].tobytes() == state[1]
    )
    assert list(first.state_dict()) == list(dict(first.named_parameters())), (
        "nothing of CLIP is a part of the prompt"
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters())
    )
    weights = [
        (a, b)
        for (n, a), b in zip(first.named_parameters(), other.parameters())
        if not n.startswith("block.")
    ]
    assert all(
        parameter.dtype == torch.float32 and parameter.requires_grad
        for parameter in first.parameters()
    )
    assert all(not torch.equal(a, b) for a, b in weights)
    inputs = first.prepare(images)
    probabilities = [prompt.predict(inputs) for prompt in (first, again, other)]
    assert torch.equal(probabilities[0], probabilities[1]) and not torch.allclose(
        probabilities[0], probabilities[2]
    )
    same(probabilities[0], first(inputs).softmax(-1).detach())
    same(probabilities[0], first.predict(inputs, batch_size=5))
    same(probabilities[0].sum(1), torch.ones(len(images)))
    assert first.predict(inputs[:0]).shape == (0, len(NAMES))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "textual"},
        {"kind": "visual"},
        {"kind": "visual", "deep": True},
        {"kind": "multimodal"},
        {"kind": "multimodal", "attention": "pairs"},
    ],
)
@pytest.mark.parametrize("name", ["built-in", "custom blocks"])
def test_training_moves_the_prompt_and_nothing_else(clips, images, name, options):
    clip, options = clips(name), dict(options)
    prompt = KINDS[options.pop("kind")](clip, images.classnames, length=2, **options)
    before, weights, start = (
        hash_weights(clip.model),
        clip.logit_scale,
        {key: value.clone() for key, value in prompt.state_dict().items()},
    )
    inputs, classes = prompt.prepare(images), torch.from_numpy(images.labels)
    history = minimise(
        prompt.parameters(),
        lambda batch: torch.nn.functional.cross_entropy(
            prompt(inputs[batch]), classes[batch]
        ),
        len(inputs),
        Recipe(epochs=4, batch_size=None, learning_rate=0.01, warmup=0),
    )
    assert hash_weights(clip.model) == before and clip.logit_scale == weights
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in clip.model.parameters()
    )
    assert not any(module.training for module in clip.model.modules())
    still = [
        key
        for key, value in prompt.state_dict().items()
        if torch.equal(value, start[key])
    ]
    assert not still and history[-1] < history[0]


def test_deep_prompts_differ_from_shallow_ones_and_reach_every_layer(clips, images):
    clip = clips("built-in")
    shallow, deep = (
        VisualPrompt(clip, NAMES, length=2, deep=value) for value in (False, True)
    )
    inputs = shallow.prepare(images)
    assert deep.vectors.shape == (4, *shallow.vectors.shape)
    with torch.no_grad():
        deep.vectors[0] = shallow.vectors
    assert not torch.allclose(
        deep.embed_images(inputs), shallow.embed_images(inputs), atol=1e-4
    )
    deep(inputs).square().sum().backward()
    assert (deep.vectors.grad.flatten(1).abs().amax(1) > 0).all()
    same(
        VisualPrompt(clip, NAMES, length=0, deep=True).embed_images(inputs).detach(),
        clip.encode_image(images),
    )


def test_deep_prompts_by_hand(clips, images):
    """The sequence before every block is the class token, this block's vectors and the
    patches, as VPT-deep has it."""
    clip = clips("plain")
    prompt, visual = VisualPrompt(clip, NAMES, length=2, deep=True), clip.model.visual
    inputs = prompt.prepare(images)
    with torch.no_grad():
        x = torch.cat(
            [
                inputs[:, :1],
                prompt.vectors[0].expand(len(inputs), -1, -1),
                inputs[:, 1:],
            ],
            1,
        )
        x = visual.transformer.resblocks[0](visual.ln_pre(x))
        x[:, 1:3] = prompt.vectors[1]
        x = visual.ln_post(visual.transformer.resblocks[1](x)[:, 0]) @ visual.proj
        same(prompt.embed_images(inputs), torch.nn.functional.normalize(x, dim=-1))


@pytest.mark.parametrize("attention", ["sequence", "pairs"])
def test_who_sees_whom_in_the_joiner(clips, attention):
    """Text vector 0 is changed: in pairs only prompts 0 may follow, in a sequence all
    do."""
    prompt = MultimodalPrompt(clips("built-in"), NAMES, length=4, attention=attention)
    with torch.no_grad():
        before = prompt.join()
        prompt.text_vectors[0] += 1
        moved = [
            (after - old).abs().amax(1) > 1e-7
            for after, old in zip(prompt.join(), before)
        ]
    assert all(
        part.tolist() == [True] + [attention == "sequence"] * 3 for part in moved
    )


def test_pairs_and_sequence_differ_from_the_same_start(clips):
    first, second = (
        MultimodalPrompt(clips("built-in"), NAMES, attention=attention)
        for attention in ("sequence", "pairs")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters())
    )
    assert all(
        not torch.allclose(a, b, atol=1e-5) for a, b in zip(first.join(), second.join())
    )
    one = [
        MultimodalPrompt(clips("built-in"), NAMES, length=1, attention=attention).join()
        for attention in ("sequence", "pairs")
    ]
    same(one[0][0], one[1][0], 1e-6)
    same(one[0][1], one[1][1], 1e-6)


def test_the_joiner_is_a_clip_block_over_text_then_image(clips):
    """Source: grip.md, section 3: Linear to 128 each, one QuickGELU block of one head,
    Linear back, text first."""
    prompt = MultimodalPrompt(clips("built-in"), NAMES, length=4)
    sizes = [parameter.numel() for parameter in prompt.block.parameters()]
    assert (
        sum(sizes) == 198_272
        and prompt.block.attn.num_heads == 1
        and isinstance(prompt.block, ResidualAttentionBlock)
    )
    sequence = torch.cat(
        [prompt.enter[0](prompt.text_vectors), prompt.enter[1](prompt.image_vectors)]
    )[None]
    joined = prompt.block(sequence)[0]
    same(prompt.join()[0], prompt.leave[0](joined[:4]))
    same(prompt.join()[1], prompt.leave[1](joined[4:]))


def test_starts(clips, large):
    clip = clips("built-in")
    textual, visual, both = (
        KINDS[kind](clip, NAMES, length=200 if kind == "visual" else 16)
        for kind in KINDS
    )
    assert textual.prefix.shape == (16, 64) and abs(textual.prefix.std() - 0.02) < 0.003
    assert (
        visual.vectors.shape == (200, 128)
        and abs(visual.vectors.std() - 128**-0.5) < 0.003
    )
    bound = (6 / (3 * 8 * 8 + 128)) ** 0.5
    assert (
        0.95 * bound < both.image_vectors.abs().max() <= bound
        and abs(both.text_vectors.std() - 0.02) < 0.003
    )
    big = MultimodalPrompt(large, NAMES)
    assert (
        big.text_vectors.numel() + big.image_vectors.numel(),
        sum(p.numel() for part in (big.enter, big.leave) for p in part.parameters()),
    ) == (5_120, 329_216)


def test_words_are_copied_not_shared(clips):
    """A training step must not move CLIP's own embeddings, nor the start of the next
    prompt (pitfalls, A8)."""
    clip = clips("built-in")
    prompt = TextualPrompt(clip, NAMES, words="a photo of a")
    start = prompt.prefix.detach().clone()
    with torch.no_grad():
        prompt.prefix += 1
    assert (
        torch.equal(TextualPrompt(clip, NAMES, words="a photo of a").prefix, start)
        and len(start) == 4
    )


@pytest.mark.parametrize("kind", ["visual", "multimodal"])
def test_a_resnet_takes_textual_prompts_only(clips, images, kind):
    with pytest.raises(ValueError, match="ModifiedResNet; textual prompts work"):
        KINDS[kind](clips(RESNET), NAMES)
    probabilities = TextualPrompt(clips(RESNET), NAMES).predict(
        clips(RESNET).encode_image(images)
    )
    assert torch.isfinite(probabilities).all()


@pytest.mark.parametrize(
    "vision", [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_heads": 2}]
)
def test_vision_transformers_without_a_class_token_are_refused(vision):
    clip = tiny(lambda: CustomTextCLIP(16, {**VISION, **vision}, TEXT))
    with pytest.raises(ValueError, match="class token"):
        ImageTower(clip)
    sentences = (
        TextualPrompt(clip, NAMES, words="a photo of a").embed_classes().detach()
    )
    same(sentences, clip.encode_text([f"a photo of a {name}" for name in NAMES]))


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        pytest.param({"embed_cls": True}, id="CoCa's class token at the end"),
    ],
)
def test_text_encoders_that_do_not_end_causally_are_refused(text):
    with pytest.raises(ValueError, match="not causal up to an end token"):
        TextTower(tiny(lambda: CustomTextCLIP(16, VISION, {**TEXT, **text})), NAMES, 4)


def test_end_tokens_by_number_in_a_plain_model():
    """Pooling at the end token's number, where that is not the highest number of
    all."""
    clip = tiny(
        lambda: OpenCLIP(16, VISION, {**TEXT, "pool_type": "eos", "eos_id": 320})
    )  # 320 is the word "a"
    tower = TextTower(clip, ["cat a dog", "a"], 0)
    same(tower(torch.empty(0, 32)), clip.encode_text(["cat a dog", "a"]))


@pytest.mark.parametrize(
    "words, room, more",
    [(14, 16, 0), (15, 16, 1), (30, 0, 0), (30, 3, 3), (40, 0, 10), (45, 4, 19)],
)
def test_a_class_name_that_is_too_long_is_named_with_by_how_much(
    clips, words, room, more
):
    long = " ".join(["cat"] * words)
    if not more:
        assert (
            TextualPrompt(clips("built-in"), ["dog", long], length=room)
            .embed_classes()
            .shape[0]
            == 2
        )
        return
    with pytest.raises(
        ValueError, match=f"class name '{long}'.* {more} more than the 32"
    ) as error:
        TextualPrompt(clips("built-in"), ["dog", long, "cat"], length=room)
    assert "dog'" not in str(error.value)


def test_longest_names_that_fit_are_exact(clips):
    names = [" ".join(["cat"] * 26), "dog"]
    prompt = TextualPrompt(clips("built-in"), names, words="a photo of a")
    same(
        prompt.embed_classes().detach(),
        clips("built-in").encode_text([f"a photo of a {name}" for name in names]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_class_names_are_checked(clips, kind):
    for names, message in (([], "at least one class name"), (["same", "same"], "same")):
        with pytest.raises(ValueError, match=message):
            KINDS[kind](clips("built-in"), names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [-1, 2.5])
def test_lengths_are_checked(clips, kind, length):
    with pytest.raises(ValueError, match="length"):
        KINDS[kind](clips("built-in"), NAMES, length=length)


def test_attention_is_checked(clips):
    with pytest.raises(ValueError, match="'sequence' or 'pairs'"):
        MultimodalPrompt(clips("built-in"), NAMES, attention="pair")


@pytest.mark.parametrize("kind", ["textual", "visual", "multimodal"])
def test_bfloat16_keeps_float32_prompts_and_stays_near(clips, images, kind):
    """On a CPU a bf16 CLIP encodes in bfloat16, prompts and steps stay float32 and
    finite."""
    clip = clips("built-in")
    half = CLIP(clip.model, clip.preprocess, clip.tokenizer, precision="bf16")
    first, second = (KINDS[kind](model, NAMES, length=2) for model in (clip, half))
    inputs = second.prepare(images)
    same(first.predict(first.prepare(images)), second.predict(inputs), 0.1)
    second(inputs).sum().backward()
    assert all(
        parameter.dtype == torch.float32
        and parameter.grad.dtype == torch.float32
        and parameter.grad.isfinite().all()
        for parameter in second.parameters()
    )


GB = 10**9


@pytest.mark.parametrize(
    "device, free, place",
    [
        ("cuda", 80 * GB, "cuda"),
        ("cuda", 19 * GB, "cuda"),
        ("cuda", 18 * GB, "cpu"),
        ("cpu", 80 * GB, "cpu"),
        ("cpu", 1 * GB, "cpu"),
        ("mps", 10 * GB, "mps"),
        ("mps", 9 * GB, "cpu"),
    ],
)
def test_where_the_patches_of_60_000_images_go(device, free, place):
    """9.2 GB for ViT-B/32; half of a GPU's free memory is theirs."""
    given = 60_000, 50 * 768 * 4, torch.device(device)
    assert module.place_of_patches(*given, lambda _: free).type == place


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_rows_are_taken_where_the_inputs_lie(
    clips, images, monkeypatch, kind, elsewhere
):
    """Logits, gradients and scores of rows, from the device and from main memory."""
    prompt = KINDS[kind](clips("built-in"), NAMES, length=2)
    inputs, rows = prompt.prepare(images), torch.tensor([7, 0, 7, 3])
    expected, score = prompt(inputs[rows]), prompt.score(inputs)[rows]
    gradients = torch.autograd.grad(expected.sum(), list(prompt.parameters()))
    monkeypatch.setattr(module, "_is_elsewhere", lambda inputs, device: elsewhere)
    logits = prompt(inputs, rows)
    assert torch.equal(logits, expected)
    for found, gradient in zip(
        torch.autograd.grad(logits.sum(), list(prompt.parameters())), gradients
    ):
        assert torch.equal(found, gradient)
    same(prompt.score(inputs, rows), score, 1e-4)
    same(prompt.score(inputs, rows, batch_size=3), score, 1e-4)
    assert prompt.score(inputs, rows[:0]).shape == (0, len(NAMES))


@pytest.mark.parametrize("name", ["built-in", "plain", "quick-GELU", "layer scale"])
def test_a_visual_prompt_by_hand(clips, images, name):
    """From the pixels: class token and patches get positions, prompts get none."""
    clip = clips(name)
    visual, prompt = clip.model.visual, VisualPrompt(clip, NAMES, length=3)

    def by_hand(vectors):
        pixels = torch.stack([clip.preprocess(image) for image, _ in images])
        patches = visual.conv1(pixels).flatten(2).mT
        tokens = torch.cat(
            [visual.class_embedding.expand(len(pixels), 1, -1), patches], 1
        )
        first, *rest = (tokens + visual.positional_embedding).unbind(1)
        whole = torch.stack(
            [first, *vectors.expand(len(pixels), -1, -1).unbind(1), *rest], 1
        )
        hidden = visual.transformer(visual.ln_pre(whole))[:, 0]
        features = visual.ln_post(hidden) @ visual.proj
        features = features / features.norm(dim=1, keepdim=True)
        classes = clip.encode_text([f"a photo of a {name}." for name in NAMES])
        return clip.logit_scale * features @ classes.T

    found, expected = prompt(prompt.prepare(images)), by_hand(prompt.vectors)
    same(found.detach(), expected.detach(), 1e-4)
    gradients = [
        torch.autograd.grad(logits.softmax(1)[:, 0].sum(), prompt.vectors)[0]
        for logits in (found, expected)
    ]
    scale = gradients[1].abs().max()
    assert scale > 0
    same(gradients[0] / scale, gradients[1] / scale, 1e-4)


def test_pairs_by_hand(clips):
    """As the released code stacks them: [2, length, width] in a block whose first axis
    is the sequence, so attention runs over the two modalities of each position."""
    prompt = MultimodalPrompt(clips("built-in"), NAMES, length=4, attention="pairs")
    block = prompt.block
    x = torch.stack(
        [prompt.enter[0](prompt.text_vectors), prompt.enter[1](prompt.image_vectors)]
    )
    attention = torch.nn.MultiheadAttention(128, 1)  # sequence first
    attention.load_state_dict(block.attn.state_dict())
    normal = block.ln_1(x)
    x = x + attention(normal, normal, normal, need_weights=False)[0]
    hidden = block.mlp.c_fc(block.ln_2(x))
    x = x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    same(prompt.join()[0].detach(), prompt.leave[0](x[0]).detach(), 1e-6)
    same(prompt.join()[1].detach(), prompt.leave[1](x[1]).detach(), 1e-6)


def kept_bytes(call):
    """What `call` returns, and the bytes of the tensors that its graph keeps."""
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer = call()
    return answer, sum(kept.values())


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("textual", {}, 1e-6),
        ("textual", {"precision": "bf16"}, 1e-2),  # adds up in bfloat16
        ("multimodal", {}, 1e-6),
    ],
)
def test_classes_in_parts_have_the_gradients_of_all(
    clips, images, kind, options, tolerance
):
    names = [f"{name} {i}" for i in range(10) for name in NAMES]
    prompt = KINDS[kind](clips("plain"), names, length=3, **options)
    tower = prompt.tower if kind == "textual" else prompt.text_tower
    assert tower.at_once > len(names), "few classes are encoded at once"
    parameters = [p for p in prompt.parameters() if p.requires_grad]
    inputs = prompt.prepare(images)
    target = torch.arange(len(images)) % len(names)

    def loss():
        return torch.nn.functional.cross_entropy(prompt(inputs), target)

    whole, all_bytes = kept_bytes(loss)
    gradients = torch.autograd.grad(whole, parameters)
    tower.at_once = 7
    parts, fewer_bytes = kept_bytes(loss)
    assert fewer_bytes < 0.8 * all_bytes  # images keep theirs
    again = torch.autograd.grad(parts, parameters)
    assert torch.allclose(whole, parts, atol=1e-6)
    largest = max(one.abs().max() for one in gradients)
    for one, other in zip(gradients, again):
        assert torch.allclose(one, other, atol=tolerance * largest)
    with torch.no_grad():
        _, nothing = kept_bytes(loss)
    assert nothing == 0


def test_parts_are_as_small_as_memory_asks(clips, monkeypatch):
    names = [f"name {i}" for i in range(1000)]
    fit = TextTower(clips("plain"), names, 4).at_once
    assert fit >= len(names), "all are encoded at once"
    monkeypatch.setattr(module, "CLASS_MEMORY", module.CLASS_MEMORY * 400 // fit)
    assert TextTower(clips("plain"), names, 4).at_once == pytest.approx(100, abs=1)
    assert TextTower(clips("plain"), names[:300], 4).at_once >= 300
    monkeypatch.setattr(module, "CLASS_MEMORY", 1)
    assert TextTower(clips("plain"), names, 4).at_once == 1
