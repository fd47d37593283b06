"""Adapt CLIP to your own images without labels."""

__version__ = "0.1.0"

from importlib import import_module

_MODULES = {
    "adapter": ("Adapter", "ZeroShot"),
    "baselines": ("FLYP", "ReCLIP"),
    "captions": ("AttributeCaptioner", "CallableCaptioner", "Captioner", "TransformersCaptioner", "caption", "caption_groups"),
    "coreg": ("CoReg",),
    "data": ("ImageSet", "digits"),
    "features": ("FeatureStore", "StoredCLIP"),
    "grip": ("FPL", "GRIP", "IFPL"),
    "latteclip": ("LatteCLIP",),
    "lpclip": ("LPCLIP",),
    "retrieval": ("NearestNeighbours", "PrototypeIndex", "Prototypes"),
    "zeroshot": ("CLIP", "load_clip"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import what is asked for when it is asked for: PyTorch takes seconds, `clipadapt --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clipadapt' has no attribute {name!r}")
    import_module("clipadapt.data")         # first, since it explains a torchvision that does not fit torch
    return getattr(import_module(f"clipadapt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
