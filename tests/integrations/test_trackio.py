"""Trackio takes the curves of a fit, and sends them nowhere.

`make integrations` runs this.
"""

import socket

import pytest
from huggingface_hub import is_offline_mode

from clipadapt import GRIP, GaussianEM, ZeroShot, digits, load_clip
from clipadapt.learning.watching import Trackio

pytest.importorskip("trackio", reason="make integrations installs it")
SHORT = {"rounds": 2, "epochs": 1, "batch_size": None, "warmup": 0}


@pytest.fixture(scope="module")
def clip():
    return load_clip(device="cpu")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(20))


@pytest.fixture
def nothing_sent(tmp_path, monkeypatch):
    """A token that Trackio could use, no variable that would, and no way out."""
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("nothing may leave this machine")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    offline = is_offline_mode()
    yield
    assert not asked and is_offline_mode() == offline


def logged(project, name):
    """The records of the newest run of a name, and its parameters."""
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_logs(project, name), SQLiteStorage.get_run_config(
        project, name
    )


@pytest.mark.usefixtures("nothing_sent")
def test_a_local_run_has_what_the_history_has(clip, images):
    watch = Trackio("ours", group="first")
    method = GRIP(clip, images.classnames, **SHORT)
    method.fit(images, callbacks=[lambda method: {"mine": 7}, watch])
    ZeroShot(clip, images.classnames).fit(images, callbacks=watch)
    rows, config = logged("ours", "GRIP")
    assert [row["step"] for row in rows] == [1, 2] and not watch._runs
    for row, record in zip(rows, method.history_):
        assert row["loss"] == pytest.approx(record["loss"]) and row["mine"] == 7
    assert config["rounds"] == 2 and config["_Group"] == "first"
    assert config["_Username"] is None


@pytest.mark.usefixtures("nothing_sent")
def test_a_fit_that_goes_on_continues_its_run(clip, images, tmp_path):
    def stop(method):
        raise ZeroDivisionError

    path = str(tmp_path / "run.safetensors")
    method = GRIP(clip, images.classnames, checkpoint=path, **SHORT)
    with pytest.raises(ZeroDivisionError):
        method.fit(images, callbacks=[Trackio("ours", "mine"), stop])
    method.fit(images, callbacks=Trackio("ours", "mine"))
    rows, _ = logged("ours", "mine")
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("variable", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_a_variable_alone_sends_nothing(clip, images, variable, monkeypatch):
    monkeypatch.setenv(variable, "https://example.org")
    method = GaussianEM(clip, images.classnames)
    with pytest.raises(ValueError, match=f"{variable} is set"):
        method.fit(images, callbacks=Trackio("ours"))
