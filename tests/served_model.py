"""`transformers serve` on this machine, for tests and benchmarks: a process that is
stopped at the end."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def transformers_serve(model: Path, *options: str) -> Iterator[str]:
    """The address of a server with a model, once it answers.

    Raises RuntimeError, with what it said last, when it ends before that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                if process.poll() is not None or is_healthy(address):
                    break
                time.sleep(0.5)
            if not is_healthy(address):
                log.seek(0)
                raise RuntimeError(log.read().decode(errors="replace")[-2000:])
            yield address
        finally:
            process.kill()
            process.wait()


def is_healthy(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=2).status == 200
    except OSError:
        return False
