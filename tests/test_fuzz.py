"""A short run of every fuzzer, and proof that they notice what they are there for."""

import os
import sys
import time

import numpy as np
import pytest
from fuzz import runner
from fuzz.runner import Target, Wrong, prepared, run
from fuzz.targets import TARGETS
from processes import Process

from clipadapt.clip import model

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs fork and limits of memory"
)
INPUTS = 250


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    """No bars, and no network: a model that must be fetched is an error at once."""
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def try_many(name):
    """What a process of its own does: it forks, and Lance's threads do not."""
    with prepared(TARGETS[name]) as target:
        result = run(target, range(INPUTS))
    assert result.inputs == INPUTS and not result.escaped, runner.report(result, 0)
    assert result.accepted and (result.refused or not target.errors), (
        "one of the two never happened"
    )


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name, tmp_path):
    Process(tmp_path, try_many, name).finish(seconds=1200)


class Naughty(Target):
    """Does by its number what a fuzzer must notice."""

    name = "naughty"

    def attempt(self, dice, folder):
        self.numbers = getattr(self, "numbers", -1) + 1
        [
            bytes,
            self.refuse,
            self.wrong,
            self.strange,
            self.mute,
            self.derived,
            self.hang,
            self.eat,
            os.abort,
        ][self.numbers % 9]()

    def refuse(self):
        raise ValueError("this is no number; give one")

    def wrong(self):
        raise Wrong("another answer")

    def strange(self):
        raise KeyError("name")

    def mute(self):
        raise ValueError("")

    def derived(self):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")

    def hang(self):
        time.sleep(600)

    def eat(self):
        self.eaten = bytearray(4 * 2**30)


def test_what_must_be_noticed_is_noticed(monkeypatch):
    monkeypatch.setattr(runner, "SECONDS", 2)
    with prepared(Naughty) as target:
        first = run(target, range(7))
        target.numbers = 6
        second = run(target, range(2))
    assert (first.inputs, first.accepted, dict(first.refused)) == (
        7,
        1,
        {"ValueError": 1},
    )
    kinds = [ending["kind"].split(" ")[0] for ending in first.escaped]
    assert kinds == ["Wrong", "KeyError", "ValueError", "UnicodeDecodeError", "hang"]
    assert [ending["kind"] for ending in second.escaped] == ["MemoryError", "crash"]
    assert "--only naughty --seed 3 --number 3" in runner.report(first, 3)


def test_commands_use_what_was_prepared(tmp_path, monkeypatch):
    """A patch of a name that nobody looks up would change nothing, and say nothing."""
    loads, real = [], model.builtin_directory
    monkeypatch.setattr(
        model, "builtin_directory", lambda: loads.append("built-in") or real()
    )
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    with prepared(TARGETS["command-line"]) as target:
        for command, *options in (
            ["zero-shot"],
            ["caption"],
            ["predict", "--saved", target.root / "run"],
            ["encode", "--device", "cpu", "--out", target.root / "features.npy"],
            ["adapt", "--out", target.root / "adapted"],
        ):
            result = target.invoke(command, *options)
            assert result.exit_code == 0, result.output
            shown = [line for line in result.stdout.splitlines() if "image " in line]
            assert len(shown) in (0, 6), result.stdout
        assert len(np.load(target.root / "features.npy")) == 6
        table = (target.root / "adapted" / "predictions.csv").read_text()
        assert len(table.splitlines()) == 1 + 6
        cached = sorted(path.name for path in (target.root / "cache").iterdir())
        assert cached == ["captions.sqlite"]
    assert loads == ["built-in"]
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert left <= {"builtin", "locks"}


def test_inputs_are_the_same_every_time():
    with prepared(TARGETS["images"]) as target:
        once, again = (run(target, range(40, 90)) for _ in range(2))
    assert (once.accepted, once.refused) == (again.accepted, again.refused)
