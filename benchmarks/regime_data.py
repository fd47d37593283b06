"""The data of `regimes.py`: three kinds, and pools such as real folders are.

A `Source` has a CLIP, the images that pools are drawn from, and new ones. `draw` makes
a `Task` of it: a pool of one regime, with names, and new images.

handwriting: scikit-learn's digits, half to draw from and half new.
fonts: ten digits, 26 capital and 26 small letters of six fonts, which the built-in CLIP
    did not see in training (`HELD_OUT`), drawn as in its examination. Its seed was
    chosen by the digits of these fonts.
C100-20, C1000-55, ...: made-up features of 100 or 1,000 classes whose cosines, logit
    scale and confidence are like those of large CLIPs; the last number is roughly the
    zero-shot accuracy in per cent (`LEVELS`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clipadapt import CLIP, FeatureSet, ImageSet, digits, load_clip
from clipadapt.clip.glyphs import (
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    GlyphBank,
    Style,
    draw_ink,
    font_files,
    low_resolution,
    make_bank,
    paint,
)

HELD_OUT = ("cmss", "cmtt", "DejaVuSerif")
EXAMINATION = (
    Style(  # nbs/engine/tiny_clip.ipynb, "An examination that is not too easy"
        half_width=(0.5, 2.6),
        offset=(-1.0, 1.6),
        aspect=0.5,
        shear=0.5,
        turn=0.3,
        perspective=0.3,
        warp=2.0,
        wobble=0.8,
        lowest=(8,),
    )
)
UNLIKE_DIGITS = "aefhkmnrwx"  # letters, foreign among the handwriting
LEVELS = {  # zero-shot: noise within a class, and of a name, both in class offsets
    100: {20: (1.85, 1.7), 50: (1.6, 0.8), 70: (1.2, 0.5), 90: (0.9, 0.2)},
    1000: {20: (1.2, 1.2), 55: (1.0, 0.55), 75: (0.8, 0.35), 90: (0.6, 0.2)},
}


class Source(NamedTuple):
    """What pools are drawn from.

    clip: encodes the names.
    names: of the C classes.
    absent: C other names, of which there are no images.
    images: to draw pools from; labels 0 ... C - 1, and -1 for foreign images.
    features: the same as a `FeatureSet`.
    new: other images of the C classes, as a `FeatureSet`; no foreign ones.
    pixels: of the new images, or the same set where there are none.
    """

    clip: CLIP
    names: list[str]
    absent: list[str]
    images: ImageSet
    features: FeatureSet
    new: FeatureSet
    pixels: ImageSet


class Task(NamedTuple):
    """A pool, the names that are given for it, and new images.

    clip, new, pixels: as in `Source`.
    names: C or more; a class keeps its place whatever it is called.
    images, features: the pool, unlabelled.
    labels: int64 [N], -1 for foreign images.
    """

    clip: CLIP
    names: list[str]
    images: ImageSet
    features: FeatureSet
    labels: np.ndarray
    new: FeatureSet
    pixels: ImageSet


# --- the handwriting, and fonts -----------------------------------------------------


def pictures(bank: GlyphBank, per_class: dict[str, int], seed: int, style: Style):
    """Rendered glyphs: Pillow images, and the name of each."""
    rng, names = (
        np.random.default_rng(seed),
        np.array(list(map(glyph_name, bank.glyphs))),
    )
    index = np.concatenate(
        [
            rng.choice(np.flatnonzero(names == name), count)
            for name, count in per_class.items()
        ]
    )
    drawn = []
    for part in np.array_split(index, max(1, len(index) // 1000)):
        ink, _ = draw_ink(bank, part, rng, style)
        sizes = rng.choice(style.lowest, len(part))
        blur = np.stack([low_resolution(int(size)) for size in sizes])
        images, _ = paint(blur @ ink @ blur.transpose(0, 2, 1), rng, style.noise)
        drawn.extend(Image.fromarray(image) for image in images)
    return drawn, names[index]


def glyph_name(glyph) -> str:
    """What the classes of the fonts are called: "two", "uppercase b", "star"."""
    return f"{glyph.case} {glyph.name}".strip()


@lru_cache(1)
def held_out_bank() -> GlyphBank:
    """The glyphs of the held-out fonts, and the shapes."""
    files = font_files()
    return make_bank({name: files[name] for name in files if name.startswith(HELD_OUT)})


def labelled(pictures: Sequence, found, names: Sequence[str]) -> ImageSet:
    """Images with labels counted by `names`, -1 for all others."""
    places = {name: place for place, name in enumerate(names)}
    labels = np.array([places.get(name, -1) for name in found])
    return ImageSet(pictures, list(names), labels)


def encoded(clip: CLIP, images: ImageSet) -> FeatureSet:
    """The features of a set, with its labels."""
    features = clip.encode_image(images).numpy()
    return FeatureSet(features, images.classnames, images.labels)


@lru_cache(1)
def handwriting() -> Source:
    """The handwritten digits; foreign: printed letters in the training style."""
    clip, train, test = load_clip(device="cpu"), digits("train"), digits("test")
    letters = {f"lowercase {letter}": 10 for letter in UNLIKE_DIGITS}
    foreign, _ = pictures(held_out_bank(), letters, 0, Style())
    names = list(train.classnames)
    images = labelled(
        [*(train[i][0] for i in range(len(train))), *foreign],
        [*(names[label] for label in train.labels), *[""] * len(foreign)],
        names,
    )
    absent = [f"letter {letter}" for letter in UNLIKE_DIGITS]
    features = encoded(clip, images)
    return Source(clip, names, absent, images, features, encoded(clip, test), test)


@lru_cache(1)
def fonts() -> Source:
    """Digits and letters of the held-out fonts; foreign: shapes."""
    cases = [
        f"{case} {letter}" for letter in LETTERS for case in ("uppercase", "lowercase")
    ]
    names = [*DIGITS, *cases]
    coloured = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    clip, bank = load_clip(device="cpu"), held_out_bank()
    wanted = {**dict.fromkeys(names, 60), **dict.fromkeys(SHAPES, 60)}
    images = labelled(*pictures(bank, wanted, 0, EXAMINATION), names)
    new = labelled(*pictures(bank, dict.fromkeys(names, 30), 1, EXAMINATION), names)
    absent = coloured[: len(names)]
    features = encoded(clip, images)
    return Source(clip, names, absent, images, features, encoded(clip, new), new)


# --- made-up features ---------------------------------------------------------------


class NamedVectors(CLIP):
    """In the place of a CLIP: a vector for each name, and a logit scale.

    names: as many as there are vectors.
    vectors: unit rows, float32 [M, D].
    scale: of the logits.

    A text is encoded as the longest name in it.
    """

    def __init__(self, names: Sequence[str], vectors: torch.Tensor, scale: float):
        small = load_clip(device="cpu")
        super().__init__(small.model, small.preprocess, small.tokenizer)
        self.places = {name: place for place, name in enumerate(names)}
        self.vectors, self.scale = vectors, scale

    @property
    def embed_dim(self) -> int:
        return self.vectors.shape[1]

    @property
    def logit_scale(self) -> float:
        return self.scale

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        words = [text.rstrip(".").split()[-1] for text in texts]
        return self.vectors[[self.places[word] for word in words]]


def family(
    seed: int,
    classes: int,
    per_class: int,
    new: int,
    inside: float,
    text_noise: float,
    dim: int = 512,
    flat: int = 40,
):
    """Image features, labels, new features, labels, and a text vector for each class.

    seed: of everything.
    classes, per_class, new: how many there are, the last two for each class.
    inside: the noise of images in the `flat` dimensions in which classes differ.
    text_noise: the noise of names, in these and outside.
    dim: the length of features.

    Images and texts lie in two cones. A class is its superclass plus its own offset,
    has two modes, and its images are not equally hard. `amount` sets the cosines.
    """
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    basis = torch.linalg.qr(random(dim, dim))[0]
    image_cone, text_cone = F.normalize(random(2, dim), dim=1)
    inner, outer = torch.zeros(dim), torch.zeros(dim)
    inner[:flat] = flat**-0.5
    outer[flat:] = torch.arange(1, dim - flat + 1).float() ** -0.5
    outer /= outer.norm()
    parents = max(2, int(classes**0.5))
    own, shared = random(classes, dim), random(parents, dim)
    offsets = (own + shared[torch.arange(classes) % parents]) * inner / 2**0.5
    modes = 0.35 * random(classes, 2, dim) * inner
    amount_image, amount_text = 0.4, 0.45

    def draw(count):
        labels = torch.arange(classes).repeat_interleave(count)
        mode = torch.randint(2, (len(labels),), generator=generator)
        hard = inside * (1 + 0.3 * random(len(labels), 1)).clamp(0.4, 2)
        noise = (
            hard * random(len(labels), dim) * inner + random(len(labels), dim) * outer
        )
        rows = (offsets[labels] + modes[labels, mode] + noise) @ basis.T
        return F.normalize(image_cone + amount_image * rows, dim=1), labels

    noise = 0.8 * random(classes, dim) * inner + 0.6 * random(classes, dim) * outer
    text = (offsets + text_noise * noise) @ basis.T
    text = 1.6 * text_cone + 0.32 * image_cone + amount_text * text
    return *draw(per_class), *draw(new), F.normalize(text, dim=1)


def made_up(seed: int, classes: int, level: int) -> Source:
    """Made-up features; foreign images and absent names are of C other classes."""
    inside, text_noise = LEVELS[classes][level]
    per_class, new = (60, 15) if classes <= 100 else (30, 5)
    drawn = family(seed, 2 * classes, per_class, new, inside, text_noise)
    features, labels, new_features, new_labels, text = drawn
    every = [f"class{c}" for c in range(2 * classes)]
    names = every[:classes]
    labels[labels >= classes] = -1
    own = new_labels < classes
    pool = FeatureSet(features.numpy(), names, labels.numpy())
    new = FeatureSet(new_features[own].numpy(), names, new_labels[own].numpy())
    clip = NamedVectors(every, text, 100.0)
    return Source(clip, names, every[classes:], pool, pool, new, new)


SOURCES: dict[str, Callable[[int], Source]] = {
    "handwriting": lambda seed: handwriting(),  # pools differ by seed, images do not
    "fonts": lambda seed: fonts(),
    **{
        f"C{classes}-{level}": lambda seed, c=classes, at=level: made_up(seed, c, at)
        for classes, levels in LEVELS.items()
        for level in levels
    },
}


# --- pools --------------------------------------------------------------------------


def shares_of(weights: np.ndarray, supply: np.ndarray, total: float) -> np.ndarray:
    """How many images of each class: `total` by weight, one at least, none twice."""
    wanted = np.ceil(total * weights / weights.sum()).astype(int)
    return np.clip(wanted, 1, supply)


def tail(ratio: float, supply: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Counts that fall exponentially from the largest class to one with 1/ratio."""
    steps = np.empty(len(order))
    steps[order] = np.arange(len(order)) / max(1, len(order) - 1)
    counts = supply.min() * ratio**-steps + 1e-9  # 4.0, where rounding makes it 3.99...
    return np.maximum(1, counts.astype(int))


def present(share: float, supply: np.ndarray, order: np.ndarray) -> np.ndarray:
    """All images of the first classes of a random order, and none of the others."""
    kept = order[: max(1, round(share * len(order)))]
    return np.where(np.isin(np.arange(len(order)), kept), supply, 0)


def dirichlet(supply: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shares drawn from a Dirichlet(1), thirty images for each class on average."""
    weights = rng.dirichlet(np.ones(len(supply)))
    return shares_of(weights, supply, 30 * len(supply))


COUNTS: dict[str, Callable] = {  # supply [C], a random order of classes, random numbers
    "balanced, 10 a class": lambda supply, order, rng: np.minimum(10, supply),
    "balanced, 30 a class": lambda supply, order, rng: np.minimum(30, supply),
    "all": lambda supply, order, rng: supply,
    "tail 10:1": lambda supply, order, rng: tail(10, supply, order),
    "tail 50:1": lambda supply, order, rng: tail(50, supply, order),
    "Dirichlet": lambda supply, order, rng: dirichlet(supply, rng),
    "7 of 10 classes": lambda supply, order, rng: present(0.7, supply, order),
    "4 of 10 classes": lambda supply, order, rng: present(0.4, supply, order),
    "2 of 10 classes": lambda supply, order, rng: present(0.2, supply, order),
    "1 of 10 classes": lambda supply, order, rng: present(0.1, supply, order),
}
REGIMES = (*COUNTS, "a tenth foreign", "twice the names", "a misleading name")


def draw(source: Source, regime: str, seed: int) -> Task:
    """A pool of one regime, drawn by seed."""
    rng = np.random.default_rng([seed, REGIMES.index(regime)])
    labels, classes = source.features.labels, len(source.names)
    places = [rng.permutation(np.flatnonzero(labels == c)) for c in range(classes)]
    supply, order = np.array([len(place) for place in places]), rng.permutation(classes)
    counts = COUNTS.get(regime, COUNTS["all"])(supply, order, rng)
    rows = np.concatenate([place[:n] for place, n in zip(places, counts)])
    names = list(source.names)
    if regime == "a tenth foreign":
        foreign = rng.permutation(np.flatnonzero(labels < 0))
        rows = np.concatenate([rows, foreign[: round(len(rows) / 9)]])
    if regime == "twice the names":
        names += source.absent
    if regime == "a misleading name":
        names[order[0]] = source.absent[rng.integers(classes)]
    rows = rng.permutation(rows)
    return Task(
        source.clip,
        names,
        source.images.subset(rows).unlabelled(),
        source.features.subset(rows).unlabelled(),
        labels[rows],
        source.new,
        source.pixels,
    )
