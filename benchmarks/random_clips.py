"""CLIPs with random weights: the cost of real ones, without the download."""

import open_clip
import torch

from clipadapt import CLIP


def random_clip(
    name: str = "ViT-B-32", device: str | None = None, precision: str = "auto"
) -> CLIP:
    """A CLIP of an architecture, its weights drawn by seed 0.

    name: of OpenCLIP.
    device: None for a GPU if there is one.
    precision: as for `CLIP`.
    """
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = open_clip.get_tokenizer(name)
    return CLIP(
        model.to(device), preprocess, tokenizer, device=device, precision=precision
    )
