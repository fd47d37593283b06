"""Run folders: killed at every operation on files, a run goes on, and an old one is
never lost."""

import logging
import os
import sys

import pytest
from click.testing import CliRunner
from processes import program

from clipadapt import digits
from clipadapt.app.cli import main
from clipadapt.learning.adapter import read_saved

CLASSES = ",".join(digits("test").classnames)
CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}


class Killed(BaseException):
    """The process is gone: no handler of errors sees it."""


class Death:
    """Kills before the operation number `after` that changes `folder`; a dead process
    changes nothing more."""

    def __init__(self):
        self.folder, self.after, self.count = None, None, 0
        sys.addaudithook(self.watch)

    def arm(self, folder, after):
        self.folder, self.after, self.count = str(folder), after, 0

    def watch(self, event, arguments):
        if self.folder and self.touches(event, arguments):
            self.count += 1
            if self.after is not None and self.count > self.after:
                raise Killed

    def touches(self, event, arguments):
        if event == "ctypes.dlsym":
            return arguments[1] == "renameat2"
        here = str(arguments[0]).startswith(self.folder) if arguments else False
        if event == "open":
            return here and bool(
                (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
        return here and event in CHANGES


DEATH = Death()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, (image, _) in enumerate(digits("train").subset(range(12))):
        image.save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def alone(clip, monkeypatch):
    """Every draft that is there when a command begins was left by a dead process."""
    monkeypatch.setattr("clipadapt.clip.model.load_clip", lambda *named, **more: clip)
    monkeypatch.setattr("clipadapt.images.files._is_abandoned", lambda draft: True)


ADAPT = ("adapt", "--method", "zero-shot")


def run(images, out, *options, command=ADAPT):
    arguments = [
        *command,
        "--images",
        images,
        "--classes",
        CLASSES,
        "--out",
        out,
        *options,
    ]
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )


def killed(after, images, out, *options, command=ADAPT):
    """Whether the command died; False when it was done before."""
    DEATH.arm(out.parent, after)
    try:
        done = run(images, out, *options, command=command)
        assert done.exit_code == 0, done.output
        return False
    except Killed:
        return True
    finally:
        DEATH.folder = None
        for handler in logging.getLogger("clipadapt").handlers:
            handler.close()


def content(run):
    """What has to be the same in two runs, bit for bit; nothing when there is no
    run."""
    found = {
        name: (run / name).read_bytes()
        for name in ("config.json", "predictions.csv")
        if (run / name).is_file()
    }
    if (run / "model").is_dir():
        record, arrays = read_saved(run / "model")
        found["model"] = (
            record,
            {name: array.tobytes() for name, array in arrays.items()},
        )
    return found


def clean(folder, *names):
    """No draft and no run that was begun lies about."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert not list(folder.rglob(".*"))


@pytest.fixture
def whole(images, alone, tmp_path):
    """Two undisturbed runs, by seed."""
    for seed in (0, 1):
        templates = ["single", "a {}"][seed]
        assert (
            run(
                images,
                tmp_path / f"whole-{seed}",
                "--seed",
                seed,
                "--set",
                f"templates={templates}",
            ).exit_code
            == 0
        )
    return [content(tmp_path / f"whole-{seed}") for seed in (0, 1)]


FIRST = ("--seed", 0, "--set", "templates=single")
SECOND = ("--seed", 1, "--set", "templates=a {}")


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_first_run_that_is_killed_goes_on_or_is_replaced(
    option, images, whole, tmp_path
):
    points = 0
    while killed(points, images, tmp_path / f"at-{points}" / "run", *FIRST):
        out = tmp_path / f"at-{points}" / "run"
        assert not killed(None, images, out, *FIRST, option), points
        assert content(out) == whole[0]
        clean(out.parent, "run")
        points += 1
    assert points > 12


@pytest.mark.parametrize("exchange", [True, False])
def test_a_run_that_is_killed_while_it_replaces_another_one(
    exchange, images, whole, tmp_path, monkeypatch
):
    """Old or new is there at every point, whole; with or without an exchange in one
    step."""
    if not exchange:
        monkeypatch.setattr(
            "clipadapt.images.files._exchange", lambda first, second: False
        )
    (tmp_path / "at").mkdir()
    out, points = tmp_path / "at" / "run", 0
    assert not killed(None, images, out, *FIRST)
    while killed(
        points, images, out, *(new := (SECOND, FIRST)[points % 2]), "--overwrite"
    ):
        aside = out.with_name(".run.replaced")
        assert content(out if out.exists() or exchange else aside) in whole
        options = [("--overwrite", "--resume"), ("--overwrite",)][points // 2 % 2]
        assert not killed(None, images, out, *new, *options), points
        assert content(out) == whole[1 - points % 2]
        clean(out.parent, "run")
        points += 1
    assert points > 15 and content(out) == whole[1 - points % 2]


def test_a_run_that_is_killed_again_and_again(images, whole, tmp_path):
    out, times = tmp_path / "at" / "run", 0
    out.parent.mkdir()
    for after in (2, 3, 5, 7, 9):
        times += killed(after, images, out, *FIRST, "--resume")
    assert times == 5 and not killed(None, images, out, *FIRST, "--resume")
    assert content(out) == whole[0]
    clean(out.parent, "run")


def test_a_comparison_that_is_killed_goes_on(images, alone, tmp_path):
    """At some of the points; both methods are quick, and without labels there is no
    report."""

    def compare(after, out, *options):
        return killed(
            after,
            images,
            out,
            *options,
            command=("compare", "--methods", "zero-shot,prototypes"),
        )

    def table(out):
        return (out / "table.csv").read_bytes()

    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    assert not compare(None, whole)
    for after in (1, 3, 6, 9, 14, 20):
        out = tmp_path / f"at-{after}" / "run"
        out.parent.mkdir()
        assert compare(after, out) and not compare(None, out, "--resume")
        assert table(out) == table(whole)
        clean(out.parent, "run")
        assert compare(after, out, "--overwrite", "--seeds", 2) and table(out) == table(
            whole
        )
        assert not compare(None, out, "--overwrite", "--resume", "--seeds", 2)
        clean(out.parent, "run")


HOLDER = """
import sys, time
from pathlib import Path
from clipadapt.app.runs import run_folder
with run_folder(sys.argv[1], {"command": "adapt"}) as folder:
    (folder / "checkpoint.safetensors").touch()
    time.sleep(120)
"""


def test_a_folder_in_which_another_process_writes_is_refused(images, alone, tmp_path):
    """Whatever the option and the way to it; no more when that process is killed."""
    out = tmp_path / "at" / "run"
    out.parent.mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "at")
    holder = program(tmp_path, HOLDER, tmp_path / "link" / "run")
    holder.wait_for(out / "checkpoint.safetensors")
    before = {path: path.read_bytes() for path in out.iterdir()}
    for option in ([], ["--resume"], ["--overwrite"], ["--overwrite", "--resume"]):
        refused = run(images, out, *option)
        assert refused.exit_code == 1
        assert f"{out} is in use: another process" in refused.output
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    holder.kill()
    assert not killed(None, images, out, "--overwrite")
    clean(out.parent, "run")


def test_a_run_goes_on_where_no_lock_can_be_kept(images, alone, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "file"))
    out = tmp_path / "at" / "run"
    assert not killed(None, images, out, "--no-store")
    clean(out.parent, "run")
