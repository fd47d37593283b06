"""Processes of their own for tests: forked from one that has imported what they need,
so that they start in a moment (a fresh Python needs seconds for its imports) and own no
thread of the test's."""

import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

METHOD = (
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(
    ["clipadapt.clip.features", "clipadapt.judge.compare", "pytest"]
)


class Process:
    """A call in a process of its own.

    folder: where what it prints is kept.
    call, arguments: a function of a module, and what it is given.
    environment: its variables; those of the test, unless given.
    """

    def __init__(
        self,
        folder: Path,
        call,
        *arguments,
        environment: Mapping[str, str] | None = None,
    ):
        name = f"{call.__name__} {uuid4().hex[:8]}"
        self.files = [folder / f"{name} {kind}.txt" for kind in ("printed", "errors")]
        variables = dict(os.environ if environment is None else environment)
        self.process = CONTEXT.Process(
            target=_call, args=(self.files, variables, call, arguments), daemon=True
        )
        self.process.start()

    def wait_for(self, file: Path, seconds: float = 120) -> None:
        """Until it has written a file."""
        end = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < end and self.process.is_alive(), self.end(0)
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with a signal that it cannot catch, where the system has one."""
        self.process.kill()
        self.process.join()

    def end(self, seconds: float = 120) -> tuple[int, str, str]:
        """Wait for its end; its exit code, what it printed, and said of errors."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it does not end"
        printed, errors = (file.read_text() for file in self.files)
        return self.process.exitcode, printed, errors

    def finish(self, seconds: float = 120) -> tuple[str, str]:
        """Wait for an end without errors; what it printed, and said of errors."""
        code, printed, errors = self.end(seconds)
        assert code == 0, errors
        return printed, errors


def program(folder: Path, code: str, *arguments, **environment: str) -> Process:
    """What `python -c code arguments` does, without a Python that starts anew.

    environment: variables beside, or in place of, those of the test.
    """
    variables = {**os.environ, **environment}
    return Process(folder, run_code, code, arguments, environment=variables)


def run_code(code: str, arguments: tuple) -> None:
    """What a process of a program does."""
    sys.argv = ["-c", *map(str, arguments)]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})


def _call(files: list[Path], variables: dict, call, arguments: tuple) -> None:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    call(*arguments)
