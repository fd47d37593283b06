"""Fits that run at once in threads: each gives the bits that it gives alone, and
nobody's random numbers change."""

import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from clipadapt import FLYP, FPL, GRIP, IFPL, LPCLIP, CoReg, LatteCLIP, ReCLIP, digits
from clipadapt.learning import students
from clipadapt.learning.prompts import own_draws
from clipadapt.methods import coreg, flyp, latteclip, reclip

TINY_COREG = {
    **coreg.SMALL,
    "epochs": 4,
    "warmup_epochs": 2,
    "ramp": 1,
    "delay": 0,
    "views": 2,
    "batch_size": 20,
}
CAPTIONS = {
    "image": [f"a drawing of number {i % 7}" for i in range(40)],
    "group": [f"numbers like {i % 3}" for i in range(40)],
}


class Dropping(nn.Module):
    """A student that draws random numbers at every step, from all three sources that
    there are."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        hidden = self.body(images)
        if self.training:
            hidden = hidden * (1 + random.random() + np.random.random())
        return self.head(hidden)


FITS = {
    "CoReg": lambda *of: CoReg(*of, **TINY_COREG, seed=3),
    "CoReg, another seed": lambda *of: CoReg(*of, **TINY_COREG, seed=4),
    "CoReg, head": lambda *of: CoReg(
        *of, **{**TINY_COREG, "student": "head", "options": None}, seed=3
    ),
    "FPL, visual": lambda *of: FPL(*of, prompt="visual", k=2, epochs=2, seed=5),
    "FPL, multimodal": lambda *of: FPL(*of, prompt="multimodal", k=2, epochs=2, seed=5),
    "IFPL, multimodal pairs": lambda *of: IFPL(
        *of,
        prompt="multimodal",
        options={"attention": "pairs"},
        rounds=2,
        k=2,
        epochs=1,
    ),
    "GRIP, textual": lambda *of: GRIP(*of, rounds=2, epochs=2, seed=5),
    "LP-CLIP": lambda *of: LPCLIP(*of, epochs=3, views=2, batch_size=20, seed=4),
    "LP-CLIP, random start": lambda *of: LPCLIP(
        *of, epochs=3, views=2, init="random", batch_size=20, seed=4
    ),
    "LatteCLIP": lambda *of: LatteCLIP(
        *of, **{**latteclip.SMALL, "epochs": 2, "batch_size": 20}, seed=4
    ),
    "FLYP": lambda *of: FLYP(
        *of, **{**flyp.SMALL, "epochs": 2, "batch_size": 20}, seed=4
    ),
    "ReCLIP": lambda *of: ReCLIP(*of, **{**reclip.SMALL, "epochs": 2}, seed=4),
}


def fit(make, clip, images):
    method = make(clip, images.classnames)
    given = {"captions": CAPTIONS} if isinstance(method, LatteCLIP) else {}
    return bits(method.fit(images, **given))


def bits(method):
    """All that a fitted method knows, by name."""
    fitted = {name: value for name, value in vars(method).items() if name.endswith("_")}
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else repr(value)
        for name, value in fitted.items()
    }


def draw():
    """A number from each of the three global sources."""
    return random.random(), np.random.random(), torch.rand(1).item()


def set_global_state(seed=11):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(40))


@pytest.fixture(scope="module")
def alone(clip, images):
    """What every fit gives when nothing else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fitted = {name: fit(make, clip, images) for name, make in FITS.items()}
    torch.set_num_threads(threads)
    return fitted


def test_twelve_fits_at_once_are_those_of_one_after_the_other(
    clip, images, alone, one_thread
):
    """Meanwhile another thread draws from the global state, and must get the numbers
    that it would get without them."""
    filters, weights = list(warnings.filters), clip.fingerprint
    set_global_state()
    expected = [draw() for _ in range(20_000)]
    set_global_state()
    drawn, done = [], threading.Event()

    def keep_drawing():
        while not done.wait(0.0005) and len(drawn) < len(expected):
            drawn.append(draw())

    noise = threading.Thread(target=keep_drawing)
    noise.start()
    with ThreadPoolExecutor(len(FITS)) as pool:
        fits = {
            name: pool.submit(fit, make, clip, images) for name, make in FITS.items()
        }
    done.set()
    noise.join()
    different = [
        name for name, future in fits.items() if future.result() != alone[name]
    ]
    assert not different
    assert drawn and drawn == expected[: len(drawn)]
    assert clip.fingerprint == weights and warnings.filters == filters
    assert not any(part.training for part in clip.model.modules())
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


@pytest.mark.parametrize("student", ["clip", Dropping])
def test_a_student_that_draws_is_the_same_in_threads(clip, images, one_thread, student):
    """Dropout takes no generator, so those who might have it take turns; the global
    state is left as it was."""
    options = {
        **TINY_COREG,
        "student": student,
        "options": None,
        "epochs": 3,
        "warmup_epochs": 1,
    }

    def one(seed):
        return fit(
            lambda *of: CoReg(*of, **options, seed=seed), clip, images.subset(range(12))
        )

    set_global_state()
    before = draw()
    set_global_state()
    expected = [one(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == expected
    assert draw() == before
    assert len({fitted["weights_"] for fitted in expected}) == 3


def test_own_draws_end_with_their_block_even_with_an_error():
    set_global_state()
    before = draw()
    set_global_state()
    with pytest.raises(ZeroDivisionError), own_draws(0):
        nn.Linear(3, 3)
        1 / 0
    assert draw() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: students.SmallResNet(3, 4, [1, 1]),
        lambda: nn.LSTM(3, 4),
        lambda: nn.Embedding(3, 4),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2),
    ],
)
def test_own_draws_start_layers_as_torch_does(make):
    set_global_state(5)
    expected = make().state_dict()
    with own_draws(5):
        found = make().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_fits_from_several_threads_may_each_watch(clip, images):
    """Callbacks, too, belong to one fit."""

    def watched(seed):
        seen = []
        method = FLYP(
            clip,
            images.classnames,
            **{**flyp.SMALL, "epochs": 2, "batch_size": 20},
            seed=seed,
        )
        method.fit(images, callbacks=lambda method: seen.append(method.seed))
        return seen

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(watched, range(3))) == [[seed] * 2 for seed in range(3)]
