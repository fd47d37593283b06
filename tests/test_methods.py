"""A method is in every list that has to know it. CONTRIBUTING.md has them in order."""

import pytest
import test_watching
from conformance.cases import CASES

import clipadapt
from clipadapt.app.demo import small_methods
from clipadapt.app.runs import METHODS
from clipadapt.learning.adapter import Adapter

PUBLIC = [getattr(clipadapt, name) for name in clipadapt.__all__]
EVERY = {
    one.__name__ for one in PUBLIC if isinstance(one, type) and issubclass(one, Adapter)
} - {"Adapter"}


def shared(clip) -> list[str]:
    return [type(method).__name__ for method in small_methods(clip, ["a", "b"])]


LISTS = {
    "small_methods of nbs/engine/demo.ipynb": shared,
    "METHODS of nbs/engine/runs.ipynb": lambda clip: METHODS.values(),
    "CASES of tests/conformance/cases.py": lambda clip: [
        case.method.__name__ for case in CASES.values()
    ],
    "METHODS of tests/test_watching.py": lambda clip: [
        kind.__name__ for kind in test_watching.METHODS
    ],
}


@pytest.mark.parametrize("place", LISTS)
def test_every_method_is_there(place, clip):
    there = set(LISTS[place](clip))
    assert not EVERY - there, f"{EVERY - there} missing in {place}"
    assert not there - EVERY, f"{there - EVERY} in {place}, and not in __init__.py"


def test_names_in_commands_come_in_the_order_of_the_tables(clip):
    assert [*METHODS.values()] == shared(clip)
