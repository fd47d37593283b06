"""Small random models of every kind of encoder that OpenCLIP builds."""

import torch
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP

from clipadapt import CLIP, load_clip

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 24}
TINY = {
    "plain": lambda: OpenCLIP(16, VISION, TEXT),
    "quick-GELU": lambda: OpenCLIP(16, VISION, TEXT, quick_gelu=True),
    "layer scale": lambda: OpenCLIP(
        16, {**VISION, "ls_init_value": 0.5}, {**TEXT, "ls_init_value": 0.5}
    ),
    "no ln_pre, late ln_post": lambda: OpenCLIP(
        16, {**VISION, "no_ln_pre": True, "final_ln_after_pool": True}, TEXT
    ),
    "custom text": lambda: CustomTextCLIP(16, VISION, TEXT),
    "custom text, biased projection": lambda: CustomTextCLIP(
        16, VISION, {**TEXT, "proj_bias": True}
    ),
    "custom text, end by number": lambda: CustomTextCLIP(
        16, VISION, {**TEXT, "pool_type": "eos", "eos_id": 49407}
    ),
    "custom text, no projection": lambda: CustomTextCLIP(
        32, VISION, {**TEXT, "proj_type": "none"}
    ),
    "custom blocks": lambda: CustomTextCLIP(
        16, {**VISION, "qk_norm": True}, {**TEXT, "qk_norm": True, "scale_attn": True}
    ),
    "ResNet": lambda: OpenCLIP(
        16,
        {
            "image_size": 32,
            "layers": (1, 1, 1, 1),
            "width": 8,
            "patch_size": None,
            "head_width": 8,
        },
        TEXT,
    ),
}


def tiny(make, seed=0):
    """A small random model with the preprocessing and the context of the built-in one;
    larger weights than OpenCLIP's, so that every detail shows."""
    builtin = load_clip(device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for name, parameter in model.named_parameters():
            if "embedding" in name:
                parameter.data = torch.randn_like(parameter)
            elif name.endswith("bias"):
                parameter.data = 0.3 * torch.randn_like(parameter)
    return CLIP(model, builtin.preprocess, builtin.tokenizer)
