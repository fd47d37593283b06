"""Fits of small models run on one thread, and leave the numbers of threads as they
were. `make threads` runs this file as a machine comes, with one thread for each core;
`make unit` leaves it out."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest
import torch
from sklearn.mixture import GaussianMixture
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from clipadapt import CLIP, FLYP, FPL, GRIP, LPCLIP, CoReg, Prototypes, digits
from clipadapt.learning import threads, training
from clipadapt.learning.pseudolabels import clean_posterior
from clipadapt.learning.threads import LARGE, Products, threads_for
from clipadapt.methods import coreg, flyp, grip, lpclip, prototypes
from clipadapt.methods.transduction import propagate_labels

SHORT = {"epochs": 2, "warmup_epochs": 1, "ramp": 1, "delay": 0}
FITS = {
    "FPL": lambda *of: FPL(*of, **{**grip.SMALL, "epochs": 2}),
    "FPL, visual": lambda *of: FPL(
        *of, prompt="visual", **{**grip.SMALL, "epochs": 1, "batch_size": 16}
    ),
    "GRIP": lambda *of: GRIP(*of, **{**grip.SMALL, "epochs": 2, "rounds": 2}),
    "Prototypes": lambda *of: Prototypes(*of, per_class=2),
    "LPCLIP": lambda *of: LPCLIP(*of, **{**lpclip.SMALL, "epochs": 2, "views": 1}),
    "CoReg": lambda *of: CoReg(*of, **{**coreg.SMALL, **SHORT}),
    "FLYP": lambda *of: FLYP(*of, **{**flyp.SMALL, "epochs": 1}),
}


def numbers():
    """How many threads everything that has a pool would use in this Python thread."""
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    asked = re.findall(r"(\w+get_max_threads)\(\) : (\d+)", report())
    return {
        **pools,
        "torch": torch.get_num_threads(),
        **{name: int(number) for name, number in asked},
    }


def report():
    return torch.__config__.parallel_info()


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    with threadpool_limits(2):
        for library in ThreadpoolController().lib_controllers:
            getattr(library, "clear_controlling_thread", int)()  # others may set it
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(40))


@pytest.fixture
def spied(monkeypatch):
    """The numbers of threads at every step and every encoding, and in the loops of
    scikit-learn and FAISS."""
    seen = {}

    def spy(owner, name):
        true = getattr(owner, name)

        def watching(*given, **named):
            seen.setdefault(name, []).append(numbers())
            return true(*given, **named)

        monkeypatch.setattr(owner, name, watching)

    spy(training, "_step")
    spy(CLIP, "_model")  # what encodes asks for it
    spy(prototypes, "iterate_prototypes")
    spy(faiss.Kmeans, "train")
    spy(GaussianMixture, "fit")
    return seen


def counts(seen):
    """All numbers of threads that occur, by place."""
    return {
        name: {number for found in every for number in found.values()}
        for name, every in seen.items()
    }


@pytest.mark.parametrize("name", FITS)
def test_a_small_fit_has_one_thread_and_gives_the_others_back(
    clip, images, two_threads, spied, name
):
    before = numbers()
    method = FITS[name](clip, images.classnames).fit(images)
    assert numbers() == before
    method.predict(images)
    assert numbers() == before and in_new_thread(torch.get_num_threads) == 2
    assert set(before.values()) == {2}
    assert spied and set.union(*counts(spied).values()) == {1}


@pytest.mark.parametrize("name", FITS)
def test_two_threads_give_the_bits_of_one(clip, images, two_threads, name):
    def fitted():
        method = FITS[name](clip, images.classnames).fit(images)
        return method.predict_proba(images).tobytes(), method.history_

    found = fitted()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        assert fitted() == found


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_errors_give_threads_back(clip, images, two_threads, monkeypatch, error):
    before = numbers()

    def broken(*given):
        assert torch.get_num_threads() == 1
        raise error("here")

    monkeypatch.setattr(training, "_step", broken)
    with pytest.raises(error, match="here"):
        FITS["LPCLIP"](clip, images.classnames).fit(images)
    assert numbers() == before and in_new_thread(torch.get_num_threads) == 2


def test_a_large_clip_encodes_on_all_threads_and_trains_a_layer_on_one(
    clip, images, two_threads, spied, monkeypatch
):
    monkeypatch.setattr(threads, "LARGE", 2**22)
    FITS["LPCLIP"](clip, images.classnames).fit(images)
    first, *rest = spied.pop("_step")
    assert set(first.values()) == {2}  # it is counted
    found = counts({"step": rest, **spied})
    assert found == {"step": {1}, "_model": {2}}


def test_a_large_clip_trains_on_all_threads(
    clip, images, two_threads, spied, monkeypatch
):
    monkeypatch.setattr(threads, "LARGE", 1)
    FITS["FLYP"](clip, images.classnames).fit(images.subset(range(8)))
    assert set.union(*counts(spied).values()) == {2}


def test_a_large_clip_leaves_small_loops_one_thread(
    clip, images, two_threads, spied, monkeypatch
):
    """The loops of scikit-learn and FAISS included."""
    monkeypatch.setattr(threads, "LARGE", 2**22)
    FITS["Prototypes"](clip, images.classnames).fit(images)
    clean_posterior(torch.arange(30.0) ** 2)
    found = counts(spied)
    assert found["_model"] == {2}
    for name in ("iterate_prototypes", "train", "fit"):
        assert found[name] == {1}, name


def test_large_products_have_all_threads_within_a_small_fit(
    clip, two_threads, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        torch.Tensor,
        "topk",
        lambda *given, true=torch.Tensor.topk, **named: (
            seen.append(numbers()),
            true(*given, **named),
        )[1],
    )
    many = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    with threads_for(0):
        propagate_labels(many, many[:3])
        propagate_labels(many[:100], many[:3])
        assert set(numbers().values()) == {1}
    large, small = seen[0], seen[-1]
    assert set(large.values()) == {2} and set(small.values()) == {1}


def test_shared_pools_come_back_with_the_last_who_needs_them_small(two_threads):
    """Those of NumPy and SciPy belong to the whole process, all others to a thread."""
    before, inside, leave = numbers(), threading.Event(), threading.Event()

    def small():
        with threads_for(0):
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=small)
    other.start()
    inside.wait(60)
    meanwhile = numbers()
    with threads_for(0):
        assert set(numbers().values()) == {1}
    again = numbers()
    leave.set()
    other.join()
    shared = {
        pool["filepath"]
        for pool in threadpool_info()
        if pool["user_api"] == "blas" and pool.get("threading_layer") != "openmp"
    }
    changed = {name for name in before if meanwhile[name] != before[name]}
    assert changed == shared and meanwhile == again and numbers() == before


def test_a_thread_born_during_a_small_fit_has_all_threads(two_threads):
    with threads_for(0):
        assert in_new_thread(torch.get_num_threads) == 2
        assert torch.get_num_threads() == 1
    assert in_new_thread(torch.get_num_threads) == 2


def test_fits_in_threads_have_one_thread_each_and_their_own_bits(
    clip, images, two_threads
):
    def one(name):
        method = FITS[name](clip, images.classnames).fit(images)
        return method.predict_proba(images).tobytes(), torch.get_num_threads()

    before = numbers()
    alone = {name: one(name) for name in FITS}
    with ThreadPoolExecutor(len(FITS)) as pool:
        assert dict(zip(FITS, pool.map(one, FITS), strict=True)) == alone
    assert numbers() == before and not threads._small and not threads._shared


def test_nobody_sees_a_count(clip):
    """Counting products changes no result and sees no other thread."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = clip.model.encode_image(pixels)
        with Products() as products:
            found = clip.model.encode_image(pixels)
            count = products.count
            in_new_thread(lambda: torch.ones(9, 9) @ torch.ones(9, 9))
    assert torch.equal(found, expected) and products.count == count > 4
    assert 0 < products.work < LARGE


def test_odd_batches_train_on_all_threads():
    """OneDNN crashed in the gradient of a strided 1x1 convolution (channels last, odd
    batches), and no test saw it, because all tests ran on one thread. Here everything
    counts as large, and a crash is an exit code."""
    program = """
import torch
from torch import nn
from clipadapt import CoReg, digits, load_clip
from clipadapt.learning import threads
from clipadapt.methods import coreg

threads.LARGE = 0
torch.set_num_threads(max(2, torch.get_num_threads()))
train, clip = digits("train").subset(range(33)), load_clip(device="cpu")
run = {"epochs": 2, "warmup_epochs": 1, "ramp": 1, "delay": 0, "batch_size": 33}

def strided(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.Conv2d(8, 16, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )

for student, options in (("resnet", coreg.SMALL["options"]), (strided, None)):
    network = {"student": student, "options": options}
    CoReg(clip, train.classnames, **{**coreg.SMALL, **network, **run}).fit(train)
assert torch.get_num_threads() >= 2
"""
    env = {name: of for name, of in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=env)
    assert done.returncode == 0
