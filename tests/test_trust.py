"""Models from strangers: nothing that a model folder says is run, and what is wrong
with it is said in one sentence."""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from conformance.models import write_model
from PIL import Image
from tiny_llava import make_tokenizer
from transformers import PreTrainedTokenizerFast

from clipadapt import Prototypes, ZeroShot, load_clip
from clipadapt.clip import model
from clipadapt.clip.model import builtin_directory
from clipadapt.clip.modelfiles import read_settings
from clipadapt.clip.templates import templates
from clipadapt.images.pictures import short_reason

STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.posix_spawn",
    "os.exec",
    "os.fork",
    "os.startfile",
)
watched = []


def watch(event, arguments):
    """An audit hook: Python calls it before it starts a process or imports a module."""
    if watched and event in STARTS:
        watched[0].append((event, str(arguments)))


sys.addaudithook(watch)


@pytest.fixture
def started(monkeypatch):
    """The processes that were started since the test began; a question at the terminal
    counts, too."""
    events = []
    monkeypatch.setattr(
        "builtins.input", lambda question="": events.append(("input", question)) or "y"
    )
    watched.append(events)
    yield events
    watched.clear()


ATTACK = """
import subprocess
subprocess.Popen(["touch", {harmed!r}]).wait()
from transformers import PreTrainedTokenizerFast

class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


class Stranger:
    """A copy of the built-in model whose configuration and files a test changes;
    `harmed` exists once its code has run."""

    def __init__(self, folder):
        self.folder, self.harmed = folder / "model", folder / "harmed"
        shutil.copytree(builtin_directory(), self.folder)
        (self.folder / "tokenizer_attack.py").write_text(
            ATTACK.format(harmed=str(self.harmed))
        )

    def configure(self, part, **options):
        """Set options of `part` ("text_cfg") of the model's configuration."""
        path = self.folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"].setdefault(part, {}).update(options)
        path.write_text(json.dumps(config))

    def write(self, name, content):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(
            content if isinstance(content, str) else json.dumps(content)
        )

    def load(self):
        return load_clip(f"local-dir:{self.folder}", device="cpu")


@pytest.fixture
def stranger(tmp_path):
    return Stranger(tmp_path)


OWN_TOKENIZER = {
    "tokenizer_class": "Tokenizer",
    "auto_map": {"AutoTokenizer": [None, "tokenizer_attack.Tokenizer"]},
}


def load_and_watch(stranger, started):
    """Load a stranger's model; return the error. Fails when anything was run or asked
    on the way."""
    error = None
    try:
        stranger.load()
    except Exception as caught:
        error = caught
    assert not stranger.harmed.exists() and started == [], "code of the folder was run"
    return error


@pytest.mark.parametrize(
    "options",
    [{"tokenizer_kwargs": {"trust_remote_code": True}}, {}],
    ids=["told to", "asked"],
)
def test_a_model_folder_cannot_run_its_tokenizer(stranger, started, options):
    stranger.configure("text_cfg", hf_tokenizer_name="tokenizer", **options)
    stranger.write("tokenizer_config.json", OWN_TOKENIZER)
    error = load_and_watch(stranger, started)
    assert isinstance(error, ValueError) and (
        "trust_remote_code" if options else "auto_map"
    ) in str(error)


def test_code_is_refused_wherever_it_is_named(stranger, started):
    """transformers also looks for it in config.json, and in a list, as in old files."""
    stranger.configure("text_cfg", hf_tokenizer_name="tokenizer")
    for content in [
        {"model_type": "bert", "auto_map": OWN_TOKENIZER["auto_map"]},
        {"auto_map": ["tokenizer_attack.Tokenizer", None]},
        {"auto_map": "tokenizer_attack.Tokenizer"},
    ]:
        stranger.write("config.json", content)
        stranger.write("tokenizer_config.json", {})
        assert "auto_map" in str(load_and_watch(stranger, started))
        stranger.write("config.json", {"model_type": "bert"})
        stranger.write("tokenizer_config.json", content)
        assert "auto_map" in str(load_and_watch(stranger, started))


def test_a_tokenizer_without_code_is_used(stranger, started):
    make_tokenizer().save_pretrained(stranger.folder)
    stranger.configure(
        "text_cfg",
        hf_tokenizer_name="tokenizer",
        tokenizer_kwargs={"clean": "canonicalize"},
    )
    clip = stranger.load()
    assert isinstance(
        clip.tokenizer.tokenizer, PreTrainedTokenizerFast
    ) and clip.tokenizer(["a photo"]).shape == (1, 32)
    assert clip.encode_text(["a photo"]).shape == (1, 64) and started == []


@pytest.mark.parametrize(
    "part, option, value",
    [
        ("text_cfg", "hf_model_config", {"auto_map": {"AutoModel": "x.Y"}}),
        ("text_cfg", "trust_remote_code", True),
        ("text_cfg", "tokenizer_kwargs", {"config": {}}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "tokenizer_kwargs", {"reduction_mask": "syntax"}),
        ("text_cfg", "hf_tokenizer_name", "../elsewhere"),
        ("text_cfg", "hf_tokenizer_name", "/tmp/elsewhere"),
        ("text_cfg", "hf_model_name", "./here"),
        ("text_cfg", "hf_model_name", "a/b/c"),
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_name", "local-dir:/tmp/x"),
        ("vision_cfg", "timm_model_name", "no_such_network"),
        ("vision_cfg", "act_kwargs", {"inplace": True}),
    ],
)
def test_options_that_lead_elsewhere_are_refused(
    stranger, started, part, option, value
):
    stranger.configure(part, **{option: value})
    error = load_and_watch(stranger, started)
    named = (
        f"{part}.{option}.{next(iter(value))}"
        if isinstance(value, dict) and option != "hf_model_config"
        else f"{part}.{option}"
    )
    assert (
        isinstance(error, ValueError) and named in str(error) and "\n" not in str(error)
    )


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "stranger",
            "auto_map": {
                "AutoConfig": "tokenizer_attack.Config",
                "AutoModel": "tokenizer_attack.Model",
            },
        },
        {"model_type": "roberta", "hidden_size": 10**9},
        {"model_type": "roberta", "num_hidden_layers": 10**6},
        {"model_type": "roberta", "attn_implementation": "somebody/kernel"},
        {"model_type": "gpt2"},
        {"model_type": "roberta"},
    ],
    ids=["code", "wide", "deep", "kernel", "unknown", "larger than its weights"],
)
def test_a_text_network_of_transformers_is_checked_before_it_is_built(
    stranger, started, monkeypatch, tmp_path, config
):
    """Its settings lie on the hub; here, in a folder whose name looks like one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    stranger.folder.joinpath("tokenizer_attack.py").rename(
        tmp_path / "somebody" / "tokenizer_attack.py"
    )
    (tmp_path / "somebody" / "config.json").write_text(json.dumps(config))
    stranger.configure("text_cfg", hf_model_name="somebody")
    assert isinstance(load_and_watch(stranger, started), ValueError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"a"',
        "\x00",
        "[" * 10**5,
        '{"a":' * 10**5,
        '{"model_cfg": null}',
        '{"model_cfg": {}}',
        "{}" + " " * 2**21,
    ],
    ids=[
        "empty",
        "cut",
        "null",
        "list",
        "text",
        "zero",
        "deep list",
        "deep object",
        "no model",
        "empty model",
        "long",
    ],
)
def test_settings_that_are_none(stranger, text):
    stranger.write("open_clip_config.json", text)
    with pytest.raises(ValueError, match="open_clip_config.json is (damaged|refused)"):
        stranger.load()


@pytest.mark.parametrize(
    "part, options",
    [
        ("vision_cfg", {"width": 10**9}),
        ("vision_cfg", {"width": -1}),
        ("vision_cfg", {"width": "128"}),
        ("vision_cfg", {"width": 1.5}),
        ("vision_cfg", {"width": 2**14, "layers": 256}),
        ("vision_cfg", {"image_size": 4096}),
        ("vision_cfg", {"image_size": 1024, "patch_size": 1}),
        (
            "vision_cfg",
            {
                "patch_size": 1024,
                "image_size": 1024,
                "width": 2**14,
                "head_width": 2**14,
            },
        ),
        ("vision_cfg", {"layers": [256] * 4, "width": 4096}),
        ("vision_cfg", {"head_width": 0}),
        ("vision_cfg", {"head_width": 1024}),
        ("vision_cfg", {"patch_size": None}),
        ("text_cfg", {"layers": 10**9}),
        ("text_cfg", {"vocab_size": 2_000_000, "width": 2**14}),
        ("text_cfg", {"context_length": 10**6}),
        ("text_cfg", {"heads": 0}),
        ("text_cfg", {"heads": 7}),
        ("vision_cfg", {"timm_model_name": "vit_huge_patch14_224"}),
        ("text_cfg", {"width": 10**400}),
        ("vision_cfg", {"mlp_ratio": -1}),
    ],
    ids=str,
)
def test_settings_of_impossible_sizes(stranger, part, options):
    stranger.configure(part, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="open_clip_config.json") as caught:
        stranger.load()
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, (
        "kilobytes"
    )


def test_weights_are_read_as_numbers(stranger):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (stranger.harmed,))

    (stranger.folder / "open_clip_model.safetensors").unlink()
    torch.save(
        {"state_dict": Harmful(), "room": torch.zeros(2_000_000)},
        stranger.folder / "open_clip_pytorch_model.bin",
    )
    with pytest.raises(
        ValueError, match="open_clip_pytorch_model.bin is damaged, or holds"
    ):
        stranger.load()
    assert not stranger.harmed.exists()


def test_missing_damaged_and_refused_are_told_apart(stranger):
    weights = stranger.folder / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[:8] = b"\xff" * 8
    weights.write_bytes(content)
    with pytest.raises(
        ValueError, match="is damaged, or holds the weights of another model"
    ):
        stranger.load()
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has no open_clip_model.safetensors"):
        stranger.load()
    (stranger.folder / "open_clip_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no open_clip_config.json"):
        stranger.load()
    os.mkfifo(
        stranger.folder / "open_clip_config.json"
    )  # reading it would wait for ever
    with pytest.raises(FileNotFoundError, match="has no open_clip_config.json"):
        stranger.load()


def test_a_tokenizer_whose_files_are_missing(stranger):
    stranger.configure("text_cfg", hf_tokenizer_name="tokenizer")
    with pytest.raises((FileNotFoundError, ValueError), match="tokenizer"):
        stranger.load()


@pytest.fixture
def hub(stranger, monkeypatch):
    """The hub, as far as it is asked for: two files of the stranger's folder."""

    def download(name, filename=None, **options):
        assert name == "somebody/model"
        return str(stranger.folder / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return stranger


def test_a_model_of_the_hub_is_checked_too(hub, started):
    clip = load_clip("hf-hub:somebody/model", device="cpu")
    assert (
        clip.fingerprint == load_clip(device="cpu").fingerprint
        and clip.name == "hf-hub:somebody/model"
    )
    hub.configure(
        "text_cfg",
        hf_tokenizer_name="tokenizer",
        tokenizer_kwargs={"trust_remote_code": True},
    )
    with pytest.raises(
        ValueError,
        match="text_cfg.tokenizer_kwargs.trust_remote_code, which is refused",
    ):
        load_clip("hf-hub:somebody/model", device="cpu")
    assert started == []


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:../x", "hf-hub:/etc", "hf-hub:a/b/c", "hf-hub:a b"]
)
def test_names_that_no_model_of_the_hub_has(name):
    with pytest.raises(ValueError, match="names no model"):
        load_clip(name)


def test_what_was_checked_is_what_is_used(stranger):
    """Keys given twice: one reader may take the first, another the last."""
    path = stranger.folder / "open_clip_config.json"
    text = path.read_text().replace(
        '"text_cfg": {',
        '"text_cfg": {"hf_tokenizer_name": "x", "tokenizer_kwargs": '
        '{"trust_remote_code": true}}, "text_cfg": {',
    )
    path.write_text(text)
    try:
        clip = stranger.load()
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        assert isinstance(clip.tokenizer, open_clip.SimpleTokenizer)


def test_every_architecture_of_openclip_passes(tmp_path):
    for name in open_clip.list_models():
        (tmp_path / "config.json").write_text(
            json.dumps(
                {"model_cfg": open_clip.get_model_config(name), "license": "mit"}
            )
        )
        read_settings(tmp_path / "config.json")


@pytest.fixture
def broken(stranger):
    """A model of a stranger with weights that a test damages."""
    return stranger.load()


def test_features_that_are_not_finite_are_an_error(broken, test_images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        test_images[i][0].save(path)
    broken.model.visual.proj.data[0, 0] = torch.nan
    for encode in (
        broken.encode_image,
        lambda images: list(broken.encode_batches(images, 2)),
    ):
        with pytest.raises(
            ValueError, match=r"image 0 \(.*0.png\) has features that are not finite"
        ):
            encode(paths)
    with pytest.raises(
        ValueError, match="image 0 has features that are not finite, and 19 more"
    ):
        ZeroShot(broken, test_images.classnames).fit(test_images).predict(test_images)
    with pytest.raises(ValueError, match="not finite"):
        Prototypes(broken, test_images.classnames).fit(test_images)
    broken.model.text_projection.data[0, 0] = torch.inf
    with pytest.raises(
        ValueError, match=r"text 0 \('a'\) has features that are not finite"
    ):
        broken.encode_text(["a", "b"])


def test_the_first_bad_image_is_named_across_batches(broken, test_images):
    encode = broken.model.encode_image
    broken.model.encode_image = lambda pixels: torch.where(
        pixels.flatten(1).std(1, keepdim=True) < 0.01, torch.nan, encode(pixels)
    )
    images = [test_images[i][0] for i in range(5)]
    images[3] = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="image 3 has features"):
        broken.encode_image(images, batch_size=2)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf, 1000.0])
def test_a_logit_scale_that_is_not_finite_is_an_error(broken, test_images, scale):
    broken.model.logit_scale.data.fill_(scale)
    model = ZeroShot(broken, test_images.classnames).fit(test_images)
    with pytest.raises(ValueError, match="logit scale"):
        model.predict_proba(test_images)


@pytest.mark.parametrize(
    "text", [None, 7, b"cat", ["cat"], "caf\udce9", "a\0b", float("nan")], ids=repr
)
def test_what_is_no_text_is_named(clip, text):
    with pytest.raises(ValueError, match="text 1 (is of type|holds)"):
        clip.encode_text(["a cat", text])


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "word " * 200_000,
        "\u20ac" * 10**6,
        " " * 10**6 + "cat",
        "&amp;" * 200_000,
        "1" * 10**6,
        "a\u0301" * 500_000,
    ],
    ids=[
        "one word",
        "many words",
        "symbols",
        "spaces",
        "entities",
        "digits",
        "accents",
    ],
)
def test_a_text_of_a_million_letters_is_cut_before_a_tokenizer(clip, text, monkeypatch):
    """A tokenizer may need minutes for it."""
    seen: list[str] = []
    monkeypatch.setattr(model, "_warn_when_cut", lambda texts, _: seen.extend(texts))
    features = clip.encode_text([text])
    assert max(map(len, seen)) <= model._LONG_TEXT and features.isfinite().all()
    if text.endswith("cat"):
        assert torch.equal(features, clip.encode_text(["cat"]))
    if text.startswith("word "):
        assert torch.equal(clip.tokenizer([text]), clip.tokenizer(["word " * 200]))


def test_reasons_of_libraries_hold_no_escape_codes():
    reason = short_reason(RuntimeError("\x1b[1mWeights only\x1b[0m\nload \x07failed"))
    assert reason == "Weights only load \\x07failed"


def test_messages_do_not_repeat_endless_names():
    for call in (
        lambda: load_clip("V" * 5000, "tag"),
        lambda: load_clip("local-dir:" + "a" * 5000),
        lambda: load_clip(None, "a" * 5000),
        lambda: load_clip("ViT-B-32", "a" * 200 + " " * 5000),
        lambda: templates("a" * 5000),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            call()
        assert len(str(caught.value)) < 1000


def test_features_without_a_direction_are_an_error(broken, test_images):
    """Every class would be equally likely, and nobody would know why."""
    broken.model.visual.proj.data.zero_()
    with pytest.raises(ValueError, match="image 0 has features that are all zero"):
        broken.encode_image(test_images)


def test_a_tower_of_timm_that_wants_another_size_is_refused_when_it_is_loaded(tmp_path):
    folder = write_model("SigLIP", tmp_path / "model").removeprefix("local-dir:")
    path = Path(folder) / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 224
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes no possible model"):
        load_clip(f"local-dir:{folder}")
