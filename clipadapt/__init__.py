"""Adapt CLIP to your own images without labels."""

__version__ = "0.2.0"

from importlib import import_module

_MODULES = {
    "clip.captions": (
        "AttributeCaptioner",
        "CallableCaptioner",
        "Captioner",
        "TransformersCaptioner",
        "caption",
        "caption_groups",
    ),
    "clip.cluster": ("RayEngine", "encode"),
    "clip.features": ("FeatureStore", "StoredCLIP", "readable"),
    "clip.featuresets": ("FeatureSet",),
    "clip.index": ("PrototypeIndex",),
    "clip.model": ("CLIP", "load_clip"),
    "clip.server": ("ServerCaptioner",),
    "images.sets": ("ImageSet", "digits"),
    "learning.adapter": ("Adapter",),
    "methods.coreg": ("CoReg",),
    "methods.cpl": ("CPL",),
    "methods.dirichlet": ("EMDirichlet",),
    "methods.discriminant": ("GaussianEM",),
    "methods.flyp": ("FLYP",),
    "methods.grip": ("FPL", "GRIP", "IFPL"),
    "methods.latteclip": ("LatteCLIP",),
    "methods.lpclip": ("LPCLIP",),
    "methods.mixture": ("AnchoredMixture",),
    "methods.prototypes": ("NearestNeighbours", "Prototypes"),
    "methods.reclip": ("ReCLIP",),
    "methods.transclip": ("StatA", "TransCLIP"),
    "methods.transduction": ("ZLaP",),
    "methods.transport": ("InMaP", "OTTER", "sinkhorn"),
    "methods.zeroshot": ("ZeroShot",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a name when it is asked for: PyTorch takes seconds, --help may not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clipadapt' has no attribute {name!r}")
    # it explains a torchvision that does not fit
    import_module("clipadapt.images.pictures")
    return getattr(import_module(f"clipadapt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
