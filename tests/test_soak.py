"""The kill soak's harness: it notices a job that does not go on where it was."""

import sys
import time

import pytest
from soak.harness import drafts_in, soak

from clipadapt.images.files import whole_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def steps(folder):
    """Writes ten numbers, one after the other; a later process goes on."""
    for step in range(10):
        if not (folder / str(step)).exists():
            time.sleep(0.02)
            with whole_file(folder / str(step)) as draft:
                draft.write_text(str(step * step))
    return " ".join((folder / str(step)).read_text() for step in range(10)).encode()


def forgetful(folder):
    """Counts how often it was started, in its answer."""
    log = folder / "starts"
    log.write_text((log.read_text() if log.exists() else "") + "x")
    time.sleep(0.1)
    return log.read_bytes()


def failing(folder):
    """Fails when something is there already."""
    (folder / "there").touch(exist_ok=False)
    time.sleep(0.1)
    return b""


def test_a_job_that_goes_on_is_good():
    result = soak("steps", steps, kills=5, seed=0)
    assert result.kills == 5 and result.is_good and result.runs >= 1


def test_a_job_that_begins_anew_is_not():
    assert soak("forgetful", forgetful, kills=4, seed=0).different > 0
    result = soak("failing", failing, kills=4, seed=0)
    assert "FileExistsError" in result.failed and not result.is_good


def test_drafts_are_seen(tmp_path):
    assert drafts_in(tmp_path) == []
    (tmp_path / ".a.00000000-1-00000000.draft").touch()
    assert len(drafts_in(tmp_path)) == 1
