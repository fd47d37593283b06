"""Starts a job in a process, kills it at a random moment, and starts it again."""

import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KILLS_IN_A_ROW = 6

Job = Callable[[Path], bytes]
"""Does its work in a folder, from where it left off there, and returns all it made."""


@dataclass
class Result:
    """What became of a job."""

    name: str
    kills: int = 0
    runs: int = 0
    different: int = 0
    failed: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether every run ended as the one that was not disturbed."""
        return not self.different and not self.failed


def start(job: Job, folder: Path) -> int:
    """Do a job in a process of its own, which leaves its answer in `folder`.answer."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        _beside(folder, "answer").write_bytes(job(folder))
        code = 0
    except BaseException:
        _beside(folder, "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f"{folder.name}.{ending}")


def finish(process: int, folder: Path) -> bytes:
    """Wait for a process and return its answer. Raises RuntimeError when it failed."""
    _, status = os.waitpid(process, 0)
    if status:
        error = _beside(folder, "error")
        raise RuntimeError(error.read_text() if error.exists() else f"status {status}")
    return _beside(folder, "answer").read_bytes()


def kill_after(process: int, seconds: float) -> bool:
    """Kill a process after some time; False when it was done before."""
    time.sleep(seconds)
    ended, status = os.waitpid(process, os.WNOHANG)
    if ended:
        if status:
            raise RuntimeError("it failed before it was killed")
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def disturbed(
    job: Job, folder: Path, dice: random.Random, kills: int, length: float
) -> tuple[bytes, int]:
    """The answer of a job that is killed up to `kills` times, and how often it was.

    length: how long it takes undisturbed, in seconds.
    """
    done = 0
    for _ in range(kills):
        if not kill_after(start(job, folder), dice.uniform(0, length)):
            break
        done += 1
    return finish(start(job, folder), folder), done


def drafts_in(folder: Path) -> list[str]:
    """What killed processes left behind."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.draft"))


def soak(name: str, job: Job, kills: int, seed: int) -> Result:
    """Disturb a job until it was killed `kills` times in all."""
    result, dice, begin = (
        Result(name),
        random.Random(f"{name} {seed}"),
        time.monotonic(),
    )
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root) / "whole"
        whole.mkdir()
        began = time.monotonic()
        expected = finish(start(job, whole), whole)
        length = time.monotonic() - began
        while result.kills < kills and not result.failed:
            folder = Path(root) / f"run{result.runs}"
            folder.mkdir()
            planned = min(dice.randint(1, KILLS_IN_A_ROW), kills - result.kills)
            try:
                answer, done = disturbed(job, folder, dice, planned, length)
            except RuntimeError as error:
                reported = _beside(folder, "error")
                result.failed = (
                    reported.read_text() if reported.exists() else str(error)
                )
                break
            result.runs += 1
            result.kills += done
            result.different += answer != expected or bool(drafts_in(folder))
    result.seconds = time.monotonic() - begin
    return result


HEAD = f"{'job':<12} {'kills':>6} {'runs':>5} {'different':>10} {'seconds':>8}"


def report(result: Result) -> str:
    """A row about a job, and the error that ended it, if one did."""
    row = (
        f"{result.name:<12} {result.kills:>6} {result.runs:>5} "
        f"{result.different:>10} {result.seconds:>8.1f}"
    )
    return f"{row}  failed\n{result.failed}" if result.failed else row
