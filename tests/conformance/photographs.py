"""Photographs of mixed size, shape and mode, from what our packages bring."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from clipadapt.images.datasets import dataset_facts

TEXTURES = dataset_facts()["DTD"]["classnames"]  # 47 names
_TURNED = 0x0112  # the EXIF tag that says how a camera was held


class Shape(NamedTuple):
    """Size in pixels, mode of Pillow, file ending, and EXIF orientation if any."""

    size: tuple[int, int]
    mode: str = "RGB"
    ending: str = ".jpg"
    turned: int | None = None


SHAPES = [
    Shape((29, 30), ending=".png"),
    Shape((300, 200)),
    Shape((200, 300)),
    Shape((90, 270)),
    Shape((320, 80)),
    Shape((224, 224)),
    Shape((20, 30), ending=".png"),
    Shape((1200, 800)),
    Shape((180, 240), "L"),
    Shape((240, 160), "RGBA", ".png"),
    Shape((150, 200), "P", ".png"),
    Shape((300, 200), turned=6),
    Shape((160, 250), "CMYK"),
]


def sources() -> list[Image.Image]:
    """Three photographs: two of scikit-learn, one of Matplotlib."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    with get_sample_data("grace_hopper.jpg") as file:
        return [*pictures, Image.open(file).convert("RGB")]


def crop(image: Image.Image, size: tuple[int, int], rng: np.random.Generator):
    """A random part of `image` with the proportions of `size`, at that size, RGB."""
    image = image.rotate(rng.choice([0, 0, 7, -15]), Image.Resampling.BICUBIC)
    wide, high = size
    largest = min(image.width / wide, image.height / high)
    scale = largest * rng.uniform(0.4, 1)
    left = rng.uniform(0, image.width - scale * wide)
    top = rng.uniform(0, image.height - scale * high)
    box = (left, top, left + scale * wide, top + scale * high)
    return image.resize(size, Image.Resampling.BICUBIC, box)


def save(image: Image.Image, shape: Shape, path: Path) -> None:
    """Write `image` in the mode, the format and the orientation of `shape`."""
    exif = Image.Exif()
    if shape.turned:
        exif[_TURNED] = shape.turned
    if shape.mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(shape.mode) if image.mode != shape.mode else image
    image.save(path.with_suffix(shape.ending), exif=exif)


def write_photographs(folder: Path, per_class: int = 2, seed: int = 0) -> Path:
    """Photographs of every shape in a sub-folder for each of the 47 textures.

    The names say nothing about what is seen. Returns `folder`.
    """
    rng, pictures = np.random.default_rng(seed), sources()
    for number in range(per_class * len(TEXTURES)):
        shape = SHAPES[number % len(SHAPES)]
        place = folder / TEXTURES[number % len(TEXTURES)]
        place.mkdir(parents=True, exist_ok=True)
        part = crop(pictures[number % len(pictures)], shape.size, rng)
        save(part, shape, place / f"{number:03d}")
    return folder


def disc(width: int, height: int) -> Image.Image:
    """A light disc in the middle of a dark picture."""
    image = Image.new("RGB", (width, height), (30, 30, 30))
    radius = min(width, height) / 8
    centre = np.array([width, height]) / 2
    box = [*(centre - radius), *(centre + radius)]
    ImageDraw.Draw(image).ellipse(box, fill=(220, 220, 220))
    return image


def proportions(pixels: np.ndarray) -> float:
    """Width over height of the light disc in pixels [H, W]; NaN unless it is whole."""
    light = pixels > (pixels.min() + pixels.max()) / 2
    rows, columns = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
    edge = light[0].any() or light[-1].any() or light[:, 0].any() or light[:, -1].any()
    if edge or not len(rows):
        return math.nan
    return (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1)
