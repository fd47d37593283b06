"""Random models of several kinds, in folders that `load_clip("local-dir:")` reads."""

import copy
import json
import math
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .photographs import TEXTURES

OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
VISION = {
    "image_size": 224,
    "patch_size": 32,
    "width": 64,
    "layers": 2,
    "head_width": 32,
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
PLAIN = {
    "embed_dim": 64,
    "init_logit_scale": math.log(100),
    "vision_cfg": VISION,
    "text_cfg": TEXT,
}
SIGLIP_TEXT = {
    "context_length": 64,
    "vocab_size": 600,
    "hf_tokenizer_name": "tokenizer",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "width": 64,
    "heads": 2,
    "layers": 2,
}
SIGLIP = {
    "custom_text": True,
    "init_logit_scale": math.log(117),
    "init_logit_bias": -10,
    "embed_dim": 96,
    "text_cfg": SIGLIP_TEXT,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit3",
        "timm_pool": "map",
        "timm_proj": "none",
    },
}
RESNET = {
    "image_size": 224,
    "layers": [1, 1, 1, 1],
    "width": 8,
    "patch_size": None,
    "head_width": 8,
}
CONVNEXT = {"image_size": 224, "timm_model_name": "test_convnext"}
SQUASHED = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
KINDS = {  # name: (model_cfg, preprocess_cfg)
    "ViT": (PLAIN, OPENAI),
    "ViT, quick-GELU": ({**PLAIN, "quick_gelu": True}, OPENAI),
    "SigLIP": (SIGLIP, SQUASHED),
    "ResNet": ({**PLAIN, "vision_cfg": RESNET}, OPENAI),
    "ConvNeXt": ({**PLAIN, "vision_cfg": CONVNEXT}, OPENAI),
    "ViT-B/32": (
        {**open_clip.get_model_config("ViT-B-32"), "init_logit_scale": math.log(100)},
        OPENAI,
    ),
}
WHOLE = "ViT-B/32"


def write_model(kind: str, folder: Path, seed: int = 0) -> str:
    """Write a random model of a kind; return the name that `load_clip` takes."""
    model_cfg, preprocess_cfg = copy.deepcopy(KINDS[kind])
    folder.mkdir(parents=True)
    settings = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    if "hf_tokenizer_name" in model_cfg["text_cfg"]:
        write_tokenizer(folder)
    weights = random_model(model_cfg, seed, enlarge=kind != WHOLE).state_dict()
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def random_model(model_cfg: dict, seed: int, enlarge: bool) -> torch.nn.Module:
    """OpenCLIP's network of these settings; with larger weights names differ more."""
    options = copy.deepcopy(model_cfg)
    custom = options.pop("custom_text", False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
        for name, parameter in model.named_parameters():
            if enlarge and "token_embedding" in name:
                parameter.data = torch.randn_like(parameter)
            elif enlarge and name.endswith("bias") and parameter.ndim:
                parameter.data = 0.3 * torch.randn_like(parameter)
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of transformers like SigLIP's: pieces of words, padded by the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIGLIP_TEXT["vocab_size"],
        special_tokens=["<unk>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [f"a photo of a {name}" for name in TEXTURES]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
