"""What several test files need."""

import os
import re
from collections import Counter

import pytest
import torch
from tiny_models import TINY, tiny

from clipadapt import digits, load_clip


def pytest_make_parametrize_id(config, val, argname):
    """Names without addresses in memory: two processes have to agree on them."""
    if isinstance(val, (dict, list)) and " at 0x" in repr(val):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(val))


def pytest_configure(config):
    """`make unit` leaves them out, `make large` runs them alone."""
    config.addinivalue_line(
        "markers", "large: `make test` has a smaller one of its kind"
    )


LONG = ("test_fuzz.py", "test_project.py", "test_soak.py")  # few tests, each long


def pytest_collection_modifyitems(items):
    """Long files first: with one of them last, all other workers would wait for it."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -sizes[item.path]))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """What is kept between runs is kept for these tests alone."""
    before = os.environ.get("CLIPADAPT_CACHE")
    os.environ["CLIPADAPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["CLIPADAPT_CACHE"]
    else:
        os.environ["CLIPADAPT_CACHE"] = before


@pytest.fixture(scope="session")
def clip():
    """The built-in CLIP on the CPU. Whoever changes it makes one of their own."""
    return load_clip(device="cpu")


@pytest.fixture(scope="session")
def test_images():
    return digits("test").subset(range(20))


@pytest.fixture
def one_thread():
    """For tests that compare bits: they depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def clips():
    """Small models by name, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = (
                load_clip(device="cpu") if name == "built-in" else tiny(TINY[name])
            )
        return made[name]

    return get
