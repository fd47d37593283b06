"""What several test files need."""
import pytest
import torch

from clipadapt import digits, load_clip


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
