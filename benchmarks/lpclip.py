"""Training LP-CLIP's linear layer on cached features, against encoding one view of the
same images: two parts of one fit, measured in one run.

python benchmarks/lpclip.py [--images 50000] [--classes 100] [--views 4] [--dim 512]
    [--epochs 50] [--encoded 500] [--model ViT-B-32]
"""

import argparse

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from measuring import Row, spent
from random_clips import random_clip

from clipadapt import ImageSet
from clipadapt.learning.training import Recipe
from clipadapt.methods.lpclip import image_weights, linear_layer, teach, train_linear


def encoding(clip, count, images):
    """What it takes to encode `images` images, of `count` images of noise; the first
    batch warms up and does not count."""
    side = clip.image_size
    pictures = ImageSet(
        np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    )
    clip.encode_image(pictures.subset(range(min(32, count))))
    return spent(lambda: clip.encode_image(pictures))[0] * (images / count)


def training(options):
    """What it takes to teach and to train on random unit features [views, images, dim],
    and the losses of the epochs."""
    generator = torch.Generator().manual_seed(0)
    class_features = F.normalize(
        torch.randn(options.classes, options.dim, generator=generator), dim=1
    )
    features = torch.empty(options.views, options.images, options.dim)
    centres = class_features[
        torch.randint(options.classes, (options.images,), generator=generator)
    ]
    for view in features:
        view.copy_(
            F.normalize(
                centres + 0.3 * torch.randn(centres.shape, generator=generator), dim=1
            )
        )

    def fit():
        targets, confidences = teach(features[0], class_features, 100.0)
        layer = linear_layer(class_features, 100.0)
        recipe = Recipe(options.epochs, 512, 1.0, warmup=0)
        return train_linear(
            features, targets, image_weights(confidences), layer, recipe
        )

    return spent(fit)


def rows(images=20_000, classes=100, views=4, dim=512, epochs=50, encoded=200):
    """The training of a layer against one view of its images, which is extrapolated."""
    sizes = {"images": images, "classes": classes, "views": views, "dim": dim}
    took, _ = training(argparse.Namespace(**sizes, epochs=epochs))
    against = encoding(random_clip("ViT-B-32", "cpu", "float32"), encoded, images)
    task = f"LP-CLIP on {images:,} x {views} x {dim} features, {classes} classes"
    other = f"encoding one view of them with ViT-B/32 (from {encoded})"
    given = took, against, 20, "wall"
    return [Row("methods", task, f"{epochs} epochs of its layer", other, *given)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "images": 50_000,
        "classes": 100,
        "views": 4,
        "dim": 512,
        "epochs": 50,
        "encoded": 500,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="ViT-B-32")
    options = parser.parse_args()
    took, losses = training(options)
    seconds, clip = took.wall, random_clip(options.model, "cpu", "float32")
    one_view = encoding(clip, options.encoded, options.images).wall
    rate = options.images / one_view
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"{options.images} images, {options.classes} classes, {options.views} views, "
        f"{options.dim} dimensions; "
        f"{options.model} with random weights, {rate:.3g} images/s measured on "
        f"{options.encoded}"
    )
    table = [
        {
            "part": f"encode one view ({options.model})",
            "seconds": one_view,
            "ratio": 1.0,
        },
        {
            "part": f"train the layer, {options.epochs} epochs",
            "seconds": seconds,
            "ratio": one_view / seconds,
        },
    ]
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.3g}".format))
    print(
        f"loss {losses[0]:.3g} -> {losses[-1]:.3g}; required: at least 20 times "
        "faster and under 60 s: "
        f"{'met' if one_view >= 20 * seconds and seconds < 60 else 'NOT met'}"
    )
