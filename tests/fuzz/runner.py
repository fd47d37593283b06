"""Runs inputs in processes with limits, and counts how each of them ended."""

import faulthandler
import json
import os
import random
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 250  # inputs that one process takes; a new one starts without what they left
SECONDS = 60  # for one input, also on a busy machine; longer counts as a hang
MEMORY = 1536 * 2**20  # bytes that a process may take beyond what it began with
LONGEST_MESSAGE = 2000  # characters


class Wrong(Exception):
    """An input was accepted and gave an answer that it must not give."""


class Target:
    """Something that takes inputs from outside.

    name: how it is called on the command line and in the table.
    errors: the errors that its documentation allows, exactly these types.
    """

    name: str
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)

    def __init__(self) -> None:
        self.changes = ExitStack()  # of the package, undone at the end

    def prepare(self, folder: Path) -> None:
        """Make once what all inputs share, in `folder`."""

    def attempt(self, dice: random.Random, folder: Path) -> None:
        """Draw one input from `dice`, hand it over, and check what is accepted.

        folder: an empty one, for files. Raises what the input raises, and Wrong for
        an answer that must not be given.
        """
        raise NotImplementedError


@contextmanager
def prepared(kind: type[Target]) -> Iterator[Target]:
    """A target that is ready for inputs, as long as the block runs."""
    target = kind()
    with tempfile.TemporaryDirectory() as folder, target.changes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.prepare(Path(folder))
        yield target


@dataclass
class Result:
    """How the inputs of a target ended."""

    name: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter = field(default_factory=Counter)  # by the name of the error
    escaped: list[dict] = field(default_factory=list)  # number, kind, message, place
    seconds: float = 0.0

    def count(self, ending: dict) -> None:
        """Take in how one input ended."""
        self.inputs += 1
        if ending["ending"] == "accepted":
            self.accepted += 1
        elif ending["ending"] == "refused":
            self.refused[ending["kind"]] += 1
        else:
            self.escaped.append(ending)


def dice_of(target: Target, seed: int, number: int) -> random.Random:
    """The random numbers of one input, the same on every machine."""
    return random.Random(f"{target.name} {seed} {number}")


def judge(target: Target, seed: int, number: int, folder: Path) -> dict:
    """Try one input, and say how it ended, plainly."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.attempt(dice_of(target, seed, number), folder)
    except target.errors as error:
        fault = _fault_of(target, error)
        if fault is None:
            kind = type(error).__name__
            return {"number": number, "ending": "refused", "kind": kind}
        return _escaped(number, error, fault)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _escaped(number, error, "")
    return {"number": number, "ending": "accepted"}


def _fault_of(target: Target, error: Exception) -> str | None:
    """What is wrong with an error although its kind is allowed; None for nothing."""
    if type(error) not in target.errors:
        return "another kind, though derived from an allowed one"
    message = str(error)
    if not message.strip():
        return "no message"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters"
    return None


def _escaped(number: int, error: BaseException, fault: str) -> dict:
    """An error that must not come out, with the place of ours that it left last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/clipadapt/" in frame.filename]
    last = (ours or frames)[-1]
    return {
        "number": number,
        "ending": "escaped",
        "kind": type(error).__name__ + (f" ({fault})" if fault else ""),
        "message": str(error)[:200],
        "place": f"{Path(last.filename).name}:{last.name}",
    }


def _limit_memory() -> None:
    """Let this process take MEMORY bytes more than it has now; Linux only."""
    if sys.platform != "linux":
        return
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmData:")]
    limit = int(line.split()[1]) * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class _Child:
    """A process that takes a block of inputs and reports each of them as a line."""

    def __init__(self, target: Target, seed: int, numbers: range):
        self.waiting = deque(numbers)
        self.pipe, writer = os.pipe()
        self.rest, self.since = b"", time.monotonic()
        self.process = os.fork()
        if not self.process:
            os.close(self.pipe)
            _work(target, seed, numbers, writer)
        os.close(writer)

    def read(self) -> list[dict] | None:
        """What it has reported since the last call; None when it has ended."""
        content = os.read(self.pipe, 65536)
        if not content:
            return None
        *lines, self.rest = (self.rest + content).split(b"\n")
        for _ in lines:
            self.waiting.popleft()
            self.since = time.monotonic()
        return [json.loads(line) for line in lines]

    def end(self) -> int:
        """Wait for the process; its signal, or 0."""
        os.close(self.pipe)
        _, status = os.waitpid(self.process, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _work(target: Target, seed: int, numbers: range, writer: int) -> None:
    """The life of a child: it never returns."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        faulthandler.disable()  # a crash is counted; where it happened is for --number
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory()
        for number in numbers:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                ending = judge(target, seed, number, Path(folder))
            os.write(writer, json.dumps(ending).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def run(target: Target, numbers: range, seed: int = 0, workers: int = 1) -> Result:
    """Try the inputs `numbers` of a prepared target in `workers` processes at once."""
    result, start = Result(target.name), time.monotonic()
    blocks = deque(numbers[i : i + BLOCK] for i in range(0, len(numbers), BLOCK))
    with selectors.DefaultSelector() as selector:
        while blocks or selector.get_map():
            while blocks and len(selector.get_map()) < workers:
                child = _Child(target, seed, blocks.popleft())
                selector.register(child.pipe, selectors.EVENT_READ, child)
            ready = {key.data for key, _ in selector.select(timeout=1)}
            for child in [key.data for key in selector.get_map().values()]:
                ended = child in ready and not _take(child, result)
                late = time.monotonic() - child.since > SECONDS
                if ended or late:
                    selector.unregister(child.pipe)
                    blocks.extendleft(_finish(child, result, late and not ended))
    result.seconds = time.monotonic() - start
    return result


def _take(child: _Child, result: Result) -> bool:
    """Count what a child has reported; False when it has ended."""
    endings = child.read()
    for ending in endings or []:
        result.count(ending)
    return endings is not None


def _finish(child: _Child, result: Result, late: bool) -> list[range]:
    """Count the input that a child died of or hangs at, if any; return what is left."""
    if late:
        os.kill(child.process, signal.SIGKILL)
    number = child.end()
    if not child.waiting:
        return []
    reason = f"no end after {SECONDS} seconds" if late else f"died of signal {number}"
    lost = child.waiting.popleft()
    ending = {"number": lost, "ending": "escaped", "kind": "hang" if late else "crash"}
    result.count({**ending, "message": reason, "place": ""})
    return [range(child.waiting[0], child.waiting[-1] + 1)] if child.waiting else []


def report(result: Result, seed: int) -> str:
    """A row about one target, and a line for each kind of what escaped."""
    refused = ", ".join(
        f"{count} {kind}" for kind, count in result.refused.most_common()
    )
    row = (
        f"{result.name:<13} {result.inputs:>7} {result.accepted:>9} "
        f"{len(result.escaped):>8} {result.seconds:>8.1f}  {refused}"
    )
    kinds = {}
    for ending in result.escaped:
        kinds.setdefault((ending["kind"], ending["place"]), []).append(ending)
    lines = [
        f"    {len(some)} x {kind} in {place or '?'}: {some[0]['message'][:150]!r}\n"
        f"        again: python -m tests.fuzz --only {result.name} --seed {seed} "
        f"--number {some[0]['number']}"
        for (kind, place), some in sorted(kinds.items(), key=lambda pair: -len(pair[1]))
    ]
    return "\n".join([row, *lines])


HEAD = "target         inputs  accepted  escaped  seconds  refused"
