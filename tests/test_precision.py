"""bfloat16 where it pays: what "auto" takes, what is kept of the measurement, and how
near features and gradients stay. Nothing here depends on how fast this machine is."""

import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP as OpenCLIP
from tiny_models import TEXT, TINY, VISION, tiny
from torch.optim.optimizer import register_optimizer_step_pre_hook

from clipadapt import CLIP, FLYP, GRIP, CoReg, digits, load_clip
from clipadapt.clip import model as module
from clipadapt.clip.features import clip_facts
from clipadapt.clip.model import bfloat16_gain, cache_directory, choose_precision
from clipadapt.learning.prompts import TextTower, TextualPrompt
from clipadapt.methods.grip import LARGE_ON_CPU

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    """No record, no answer kept by this process, no wish in the environment."""
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLIPADAPT_PRECISION", raising=False)
    module._kept_gain.cache_clear()
    yield
    module._kept_gain.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """Counts the measurements; each answers with the number in `gain`."""
    calls = {"count": 0, "gain": 2.5}

    def measure():
        calls["count"] += 1
        return calls["gain"]

    monkeypatch.setattr(module, "_measure_gain", measure)
    return calls


@pytest.fixture(scope="module")
def large():
    """A model whose image encoder is large, and cheap to make."""
    model = torch.nn.Module()
    model.visual = torch.nn.Linear(5000, 5000, bias=False)
    return model


def another_process():
    module._kept_gain.cache_clear()


def record():
    [path] = cache_directory().glob("bfloat16-*.json")
    return path


@pytest.mark.parametrize("gain, expected", [(2.5, "bf16"), (1.49, "float32")])
def test_auto_takes_what_pays(large, measured, gain, expected):
    measured["gain"] = gain
    assert choose_precision(large, CPU) == expected
    assert CLIP(large, None, None).precision == expected
    assert measured["count"] == 1


def test_the_builtin_clip_is_not_even_asked_about(measured):
    assert load_clip(device="cpu").precision == "float32"
    assert measured["count"] == 0 and not list(cache_directory().glob("bfloat16-*"))


def test_other_devices_are_not_measured(large, measured):
    assert choose_precision(large, CUDA) == "bf16"
    assert choose_precision(large, torch.device("mps")) == "float32"
    assert measured["count"] == 0


@pytest.mark.parametrize("asked", ["float32", "bf16"])
def test_what_is_asked_for_is_obeyed_without_measuring(
    large, measured, monkeypatch, asked
):
    assert CLIP(large, None, None, precision=asked).precision == asked
    other = {"float32": "bf16", "bf16": "float32"}[asked]
    monkeypatch.setenv("CLIPADAPT_PRECISION", asked)
    assert choose_precision(large, CPU) == choose_precision(large, CUDA) == asked
    assert load_clip(device="cpu").precision == asked
    assert CLIP(large, None, None, precision=other).precision == other
    assert measured["count"] == 0


def test_the_environment_is_checked(large, measured, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_PRECISION", "half")
    with pytest.raises(ValueError, match="CLIPADAPT_PRECISION must be .* not 'half'"):
        choose_precision(large, CPU)
    monkeypatch.setenv("CLIPADAPT_PRECISION", "")
    assert choose_precision(large, CPU) == "bf16"


def test_a_machine_is_measured_once(measured, monkeypatch):
    assert bfloat16_gain() == bfloat16_gain() == 2.5
    another_process()
    measured["gain"] = 1.0
    assert bfloat16_gain() == 2.5 and measured["count"] == 1
    kept = json.loads(record().read_text())
    assert set(kept) == {"processor", "torch", "threads", "gain"}


@pytest.mark.parametrize("what", ["processor", "PyTorch", "threads"])
def test_another_machine_is_measured_anew(measured, monkeypatch, what):
    bfloat16_gain()
    if what == "processor":
        monkeypatch.setattr(module, "_processor", lambda: "another")
    if what == "PyTorch":
        monkeypatch.setattr(module.torch, "__version__", "99.0")
    if what == "threads":
        monkeypatch.setattr(module.torch, "get_num_threads", lambda: 77)
    measured["gain"] = 1.0
    assert bfloat16_gain() == 1.0 and measured["count"] == 2
    assert len(list(cache_directory().glob("bfloat16-*.json"))) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "",
        lambda kept: "{}",
        lambda kept: kept[: len(kept) // 2],
        lambda kept: kept.replace("2.5", "-2.5"),
        lambda kept: kept.replace("2.5", "0.0"),
        lambda kept: kept.replace("2.5", "Infinity"),
        lambda kept: kept.replace("2.5", "NaN"),
        lambda kept: kept.replace('"threads": ', '"threads": 9'),
        lambda kept: kept.replace('"processor": "', '"processor": "a stranger, '),
    ],
)
def test_a_damaged_record_is_measured_and_written_again(measured, damage):
    bfloat16_gain()
    whole = record().read_text()
    record().write_text(damage(whole))
    another_process()
    assert bfloat16_gain() == 2.5 and measured["count"] == 2
    assert record().read_text() == whole


@pytest.mark.parametrize("refusal", ["file", "folder"])
def test_a_disk_that_refuses_costs_the_measuring_only(
    measured, monkeypatch, tmp_path, refusal
):
    if refusal == "file":  # a part of the path is no folder
        (tmp_path / "cache").write_text("no folder")
    else:
        error = OSError("not a private folder")
        monkeypatch.setattr(
            module, "cache_directory", lambda: (_ for _ in ()).throw(error)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bfloat16_gain() == bfloat16_gain() == 2.5
    assert measured["count"] == 1
    another_process()
    assert bfloat16_gain() == 2.5 and measured["count"] == 2


def test_the_measurement_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    gain = module._measure_gain(seconds=0)
    assert 0 < gain < math.inf and torch.equal(torch.get_rng_state(), before)


def test_the_processor_has_a_name():
    assert module._processor() == module._processor() != ""
    assert "\n" not in module._processor()


@pytest.mark.parametrize("kind", TINY)
def test_the_copy_is_that_of_pytorch_and_shares_nothing(kind):
    clip = tiny(TINY[kind])
    ours, theirs = module._in_bfloat16(clip.model), tiny(TINY[kind]).model.bfloat16()
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items())
    for (name, tensor), (other, expected) in pairs:
        assert name == other and tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    for tensor, expected in zip(ours.buffers(), theirs.buffers()):
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    assert all(weight.dtype == torch.float32 for weight in clip.model.parameters())
    assert not any(weight.requires_grad for weight in ours.parameters())


def test_the_copy_is_kept_until_a_weight_changes(test_images):
    half = load_clip(device="cpu", precision="bf16")
    first, model = half.encode_image(test_images), half._model()
    assert half._model() is model is not half.model
    half.model.visual.proj.data += 0.1  # as an optimiser changes it
    assert half._model() is not model
    assert not torch.equal(half.encode_image(test_images), first)
    exact = load_clip(device="cpu", precision="float32")
    assert exact._model() is exact.model


def test_features_of_two_precisions_are_never_mixed(clip, test_images):
    half = load_clip(device="cpu", precision="bf16")
    assert clip_facts(clip) != clip_facts(half)
    both = [each.encode_image(test_images) for each in (clip, half)]
    assert (both[0] * both[1]).sum(1).min() > 0.999


# The text encoder of a textual prompt.

NAMES = ["cat", "a very small dog", "seven"]
WIDER = {  # a text tower of many blocks, where roundings could pile up
    "vision": {**VISION, "width": 48},
    "text": {**TEXT, "width": 128, "heads": 2, "layers": 12},
}


@pytest.fixture(scope="module")
def wider():
    return tiny(lambda: OpenCLIP(64, WIDER["vision"], WIDER["text"]))


def gradient(clip, precision):
    """Of a loss on sixteen random features, and the class embeddings."""
    prompt = TextualPrompt(clip, NAMES, precision=precision)
    classes = prompt.embed_classes()
    draws = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(16, 64, generator=draws), dim=-1)
    logits = clip.logit_scale * features @ classes.T
    F.cross_entropy(logits, torch.arange(16) % 3).backward()
    return prompt.prefix.grad, classes.detach()


@pytest.mark.parametrize("kind", ["built-in", "wider"])
def test_gradients_in_bfloat16_point_where_those_in_float32_do(clips, wider, kind):
    """Measured: 0.9998 for the built-in CLIP as for a random ViT-B/32 of 47 classes."""
    clip = clips("built-in") if kind == "built-in" else wider
    (exact, classes), (half, ours) = (gradient(clip, p) for p in ("float32", "bf16"))
    assert F.cosine_similarity(exact.flatten(), half.flatten(), dim=0) > 0.99
    assert 0.95 < half.norm() / exact.norm() < 1.05
    assert (classes * ours).sum(1).min() > 0.999 and not torch.equal(classes, ours)
    assert half.dtype == ours.dtype == torch.float32


def test_attention_stays_in_float32(clips, monkeypatch):
    seen, attend = set(), F.scaled_dot_product_attention

    def watch(query, key, value, **options):
        seen.update(each.dtype for each in (query, key, value))
        return attend(query, key, value, **options)

    prompt = TextualPrompt(clips("built-in"), NAMES, precision="bf16")
    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    prompt.embed_classes()
    assert seen == {torch.float32}
    [blocks] = prompt.tower._half
    assert {weight.dtype for weight in blocks.parameters()} == {torch.bfloat16}


def test_a_prompt_computes_as_its_clip_does_unless_told(clips):
    exact = clips("built-in")
    half = CLIP(exact.model, exact.preprocess, exact.tokenizer, precision="bf16")
    for clip in (exact, half):
        for asked in ("auto", "float32", "bf16"):
            expected = clip.precision if asked == "auto" else asked
            prompt = TextualPrompt(clip, NAMES, precision=asked)
            assert prompt.precision == expected
            ours, theirs = gradient(clip, asked), gradient(exact, expected)
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("kind", [kind for kind in TINY if kind != "custom blocks"])
def test_every_text_encoder_in_bfloat16(kind):
    clip = tiny(TINY[kind])
    exact, half = (TextTower(clip, NAMES, 4, half) for half in (False, True))
    prefix = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert (exact(prefix) * half(prefix)).sum(1).min() > 0.999


def test_blocks_of_another_kind_stay_in_float32():
    clip, prefix = tiny(TINY["custom blocks"]), torch.zeros(4, 32)
    exact, half = (TextTower(clip, NAMES, 4, half) for half in (False, True))
    assert torch.equal(exact(prefix), half(prefix))


def test_another_precision_is_refused(clips):
    for wrong in ("half", None, 16):
        with pytest.raises(ValueError, match="precision must be 'auto', 'float32'"):
            TextualPrompt(clips("built-in"), NAMES, precision=wrong)


def test_a_fit_in_bfloat16_is_saved_and_loaded(clips, tmp_path):
    clip, images = clips("built-in"), digits("train").subset(range(40))
    options = {"length": 2, "precision": "bf16"}
    short = {"rounds": 1, "epochs": 1, "options": options}
    method = GRIP(clip, images.classnames, **short).fit(images)
    method.save(tmp_path / "saved")
    again = GRIP.load(tmp_path / "saved", clip)
    assert again.options == options and again._ready_prompt().precision == "bf16"
    expected = torch.as_tensor(method.predict_proba(images))
    assert torch.equal(torch.as_tensor(again.predict_proba(images)), expected)


def test_the_recipe_for_a_cpu_is_one_that_grip_takes(clips):
    method = GRIP(clips("built-in"), NAMES, **LARGE_ON_CPU)
    method._check_parameters()
    assert method.batch_size > GRIP(clips("built-in"), NAMES).batch_size


@pytest.mark.parametrize("method", [FLYP, CoReg])
def test_a_bfloat16_copy_makes_room_for_what_is_trained(clips, method, monkeypatch):
    """It is a second model in memory, beside weights, gradients and their means."""
    exact = clips("built-in")
    half = CLIP(exact.model, exact.preprocess, exact.tokenizer, precision="bf16")
    images = digits("train").subset(range(12))
    half.encode_image(images)
    assert half._half is not None
    kept = []

    def watch(optimiser, *given):
        kept.append(half._half)

    student = {"student": "clip"} if method is CoReg else {}
    hook = register_optimizer_step_pre_hook(watch)
    try:
        method(half, NAMES, epochs=1, batch_size=6, **student).fit(images)
    finally:
        hook.remove()
    assert kept and not any(kept)
