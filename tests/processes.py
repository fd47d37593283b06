"""Processes of their own for tests: forked from one that has imported what they need,
so that they start in a moment and own no thread of the test's."""

import multiprocessing
import os
from pathlib import Path
from uuid import uuid4

METHOD = (
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(
    ["clipadapt.clip.features", "clipadapt.images.datasets", "pytest"]
)


class Process:
    """A call in a process of its own.

    folder: where what it prints is kept.
    call, arguments: a function of a module, and what it is given.
    """

    def __init__(self, folder: Path, call, *arguments):
        name = f"{call.__name__} {uuid4().hex[:8]}"
        self.files = [folder / f"{name} {kind}.txt" for kind in ("printed", "errors")]
        self.process = CONTEXT.Process(
            target=_call, args=(self.files, call, arguments), daemon=True
        )
        self.process.start()

    def kill(self) -> None:
        """End it with a signal that it cannot catch, where the system has one."""
        self.process.kill()
        self.process.join()

    def finish(self, seconds: float = 120) -> tuple[str, str]:
        """Wait for its end: what it printed, and what it said of errors."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it does not end"
        printed, errors = (file.read_text() for file in self.files)
        assert self.process.exitcode == 0, errors
        return printed, errors


def _call(files: list[Path], call, arguments: tuple) -> None:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    call(*arguments)
