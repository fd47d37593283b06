"""Progress bars: for whoever is looking, and not for a log.

Each test starts a process: what a bar does depends on where its process writes. Bars
appear at once in these (`_DELAY`), since the work is too short for one.
"""

import os
import struct
import subprocess
import sys
import tempfile

import pytest
from processes import program

WORK = """
from clipadapt import LPCLIP, digits, load_clip
from clipadapt.images import sets

sets._DELAY = 0
clip, images = load_clip(device="cpu"), digits("train").subset(range(20))
clip.encode_image(images)
LPCLIP(clip, images.classnames, epochs=2).fit(images)
"""
COUNT = """
from clipadapt.images import sets

sets._DELAY = 0
list(sets.track("abc", "reading", "files"))
"""
BARS = "encoding images", "encoding texts", "LP-CLIP", "%|"


def work(code, stderr, **more):
    """Run code with this standard error; returns what was piped.

    `--quiet` of a command that another test called has set a variable for good.
    """
    calm = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=300,
        env={**calm, **more},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr


def in_terminal(code, **more):
    """What code writes to a terminal of 24 lines and 80 columns."""
    pty = pytest.importorskip("pty", reason="a terminal of a Unix system")
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with tempfile.TemporaryFile() as kept:
        # it ends with an error: so does reading from a terminal that is gone
        cat = {"stdin": ours, "stdout": kept, "stderr": subprocess.DEVNULL}
        reader = subprocess.Popen(["cat"], **cat)
        try:
            work(code, theirs, **more)
        finally:
            os.close(theirs)
            os.close(ours)
            reader.wait(timeout=60)
        kept.seek(0)
        return kept.read().decode()


def test_a_log_gets_no_bar(tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    _, written = program(tmp_path, WORK).finish()
    assert "\r" not in written and not any(bar in written for bar in BARS), written


def test_a_terminal_gets_bars():
    written = in_terminal(WORK)
    assert "\r" in written and all(bar in written for bar in BARS), written


def test_a_terminal_gets_none_where_they_are_switched_off():
    assert not in_terminal(COUNT, TQDM_DISABLE="1")


def test_a_notebook_gets_bars():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(COUNT)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    written = str(notebook.cells[0].outputs)
    # a widget or, without ipywidgets, text
    assert "reading" in written or "widget-view" in written, written
