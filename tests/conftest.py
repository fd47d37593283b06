"""What several test files need."""
import pytest

from clipadapt import load_clip


@pytest.fixture(scope="session")
def clip():
    """The built-in CLIP on the CPU. Whoever changes it makes one of their own."""
    return load_clip(device="cpu")
