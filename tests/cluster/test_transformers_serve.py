"""A real `transformers serve` on this machine, with the tiny LLaVA: it says what the
same model says here."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent))
from served_model import transformers_serve  # noqa: E402
from tiny_llava import save_tiny_llava  # noqa: E402

from clipadapt import ImageSet  # noqa: E402
from clipadapt.clip.captions import (  # noqa: E402
    TransformersCaptioner,
    caption,
    caption_groups,
)
from clipadapt.clip.server import ServerCaptioner, served_models  # noqa: E402

TOKENS = 12
PROMPTS = ["Describe the food.", "What is it?", "a", "Describe the car."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def server(model):
    """Its address; it needs `pip install 'transformers[serving]'`."""
    with transformers_serve(model, "--dtype", "float32") as address:
        yield address


@pytest.fixture(scope="module")
def pictures():
    """Noise of several shapes; PNG keeps it as it is."""
    rng = np.random.default_rng(0)
    shapes = [(56, 56), (40, 90), (112, 56), (30, 30), (60, 61), (90, 40), (56, 57)]
    images = [
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes
    ]
    return ImageSet.from_arrays(images, classnames=["noise"])


@pytest.fixture(scope="module")
def both(server, model):
    """The captioner on the server, and the same model in this process."""
    settings = {"max_new_tokens": TOKENS, "image_format": "png"}
    there = ServerCaptioner(server, str(model), 4, side=1000, **settings)
    return there, TransformersCaptioner(model, max_new_tokens=TOKENS, device="cpu")


def test_a_server_says_what_the_model_says_here(both, pictures):
    there, here = both
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(pictures))]
    told, known = (caption(one, pictures, prompts, False) for one in both)
    assert told.failures == known.failures == []
    assert told.texts == known.texts and len(set(told.texts)) == len(pictures)


def test_and_so_it_does_of_groups(both, pictures):
    groups = np.array([[0, 1, 2, 3], [3, 4, 5, 6], [6, 6, 0, 0]])
    told, known = (caption_groups(one, pictures, groups, "?", False) for one in both)
    assert told.texts == known.texts and all(told.texts)


def test_it_lists_its_models(server):
    assert isinstance(served_models(server), list)
