"""Images in an object store, read by Ray through its S3 interface, as people do it.

moto is the store: a process on this machine that knows one user. `make cluster`
installs it; CLIPADAPT_MOTO names another python that has it.
"""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from click.testing import CliRunner
from pyarrow import fs, parquet

from clipadapt import FeatureStore, digits, encode, load_clip
from clipadapt.app.cli import main
from clipadapt.clip.cluster import RayEngine

PYTHON = os.environ.get("CLIPADAPT_MOTO", sys.executable)
if PYTHON == sys.executable and importlib.util.find_spec("moto") is None:
    pytest.skip(
        "moto is not installed: pip install 'moto[server]'", allow_module_level=True
    )
SERVER = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
FOLDER = "my photos/süß #1"  # as people call theirs


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an object store that knows nobody yet."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # the first requests make a user; all others have to be a known user's
    known = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "3"}
    with log.open("wb") as written:
        started = subprocess.Popen(
            [PYTHON, "-c", SERVER], stdout=written, stderr=written, env=known
        )
    try:
        found, ends = None, time.monotonic() + 60
        while found is None:
            said = log.read_text(errors="replace")
            assert started.poll() is None and time.monotonic() < ends, said
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", said)
            time.sleep(0.05)
        yield found[1]
    finally:
        started.kill()
        started.wait()


def ask(server, **words):
    """What the store answers to somebody who makes users."""
    who = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request"
    asked = urllib.request.Request(
        server,
        urllib.parse.urlencode({"Version": "2010-05-08", **words}).encode(),
        {"Authorization": f"{who}, SignedHeaders=host, Signature=0"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def user(server):
    """What a user sets in the environment."""
    may = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may]})
    ask(server, Action="CreateUser", UserName="anna")
    given = {"UserName": "anna", "PolicyName": "all", "PolicyDocument": policy}
    ask(server, Action="PutUserPolicy", **given)
    answer = ask(server, Action="CreateAccessKey", UserName="anna")
    key, secret = (
        re.search(f"<{name}>(.*?)</{name}>", answer)[1]
        for name in ("AccessKeyId", "SecretAccessKey")
    )
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",  # nobody else's credentials
    }


@pytest.fixture(scope="module", autouse=True)
def environment(user, tmp_path_factory):
    """It is set, for workers too; what is kept is kept for these tests alone."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in user.items():
            patch.setenv(name, value)
        patch.setenv("CLIPADAPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A dozen photographs here, and a damaged one."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        digits("train")[number][0].resize((60, 50 + number)).save(
            root / f"{number:02d}.jpg"
        )
    (root / "05-damaged.jpg").write_bytes(b"no image at all")
    return root


@pytest.fixture(scope="module")
def bucket(photos, environment):
    """The same in a bucket: as a folder, a tar file and a table."""
    made, _ = fs.FileSystem.from_uri("s3://photos?allow_bucket_creation=true")
    made.create_dir("photos")
    files = sorted(photos.glob("*.jpg"))
    samples = io.BytesIO()
    with tarfile.open(fileobj=samples, mode="w") as archive:
        for file in files:
            archive.add(file, file.name)
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = io.BytesIO()
    parquet.write_table(pa.table({"image": rows}), table, row_group_size=5)
    contents = {f"{FOLDER}/{file.name}": file.read_bytes() for file in files}
    contents |= {"all.tar": samples.getvalue(), "all.parquet": table.getvalue()}
    text = io.BytesIO()
    parquet.write_table(pa.table({"caption": ["a cat"]}), text)
    contents["captions.parquet"] = text.getvalue()
    for name, content in contents.items():
        with made.open_output_stream(f"photos/{name}") as stream:
            stream.write(content)
    return "s3://photos"


@pytest.fixture(scope="module")
def engine(environment):
    """A worker on this machine, which has the environment of these tests."""
    ray.shutdown()
    with RayEngine(workers=1) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def clip(environment):
    return load_clip(device="cpu")


def store_at(folder):
    return FeatureStore(folder, block_size=4, batch_size=4)


def rows(store, clip):
    """All that a table holds, in the order of the keys."""
    blocks = [*store.table(clip).rows()]
    keys = np.concatenate([keys for keys, _ in blocks])
    order = np.argsort(keys)
    features = np.concatenate([values for _, values in blocks])
    return keys[order].tolist(), features[order].tobytes()


@pytest.fixture(scope="module")
def plain(clip, photos, tmp_path_factory):
    """The plain run of this process: its answer, and what its store holds."""
    store = store_at(tmp_path_factory.mktemp("plain"))
    with pytest.warns(UserWarning, match=r"05-damaged\.jpg"):
        return encode(clip, photos, store=store), rows(store, clip)


@pytest.mark.parametrize("name", [FOLDER, "all.tar", "all.parquet", "a*.tar"])
def test_a_bucket_has_the_bits_of_a_folder(name, clip, bucket, plain, engine, tmp_path):
    store = store_at(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 13 images skipped"):
        found = encode(clip, f"{bucket}/{name}", engine=engine, store=store)
    assert np.array_equal(found.features, plain[0].features)
    assert rows(store, clip) == plain[1]
    ((damaged, reason),) = found.skipped
    assert "05-damaged.jpg" in damaged and "holds none of" in reason
    assert found.images.file_of(0).endswith("00.jpg")


def test_what_workers_cannot_read_is_one_sentence(bucket, engine, capfd):
    source = f"{bucket}/captions.parquet"
    with pytest.raises(ValueError, match="it has caption") as caught:
        engine.images(source)
    said = "a table without a column of images; it has caption"
    assert str(caught.value) == f"{source} cannot be read ({said})"
    assert "Traceback" not in "".join(capfd.readouterr())


def holding(secret, *folders):
    """The files that hold it, also as addresses write it."""
    forms = {secret.encode(), urllib.parse.quote(secret, "").encode()}
    files = [file for folder in folders for file in Path(folder).rglob("*")]
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    return [file for file in files if any(form in file.read_bytes() for form in forms)]


def test_the_secret_stays_in_the_environment(bucket, user, engine, tmp_path):
    out, cache = tmp_path / "features.npy", os.environ["CLIPADAPT_CACHE"]
    given = ["--images", f"{bucket}/{FOLDER}", "--engine", "ray", "--out", out]
    FeatureStore().clear()
    done = CliRunner().invoke(main, ["encode", *map(str, given)])
    assert done.exit_code == 0, done.output
    assert "05-damaged.jpg" in done.output
    assert len(json.loads(out.with_suffix(".json").read_text())["names"]) == 12
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    assert [*logs.glob("*.log")]
    assert user["AWS_SECRET_ACCESS_KEY"] not in done.output
    assert not holding(user["AWS_SECRET_ACCESS_KEY"], tmp_path, cache, logs)
    (tmp_path / "other.txt").write_text(user["AWS_SECRET_ACCESS_KEY"])
    assert holding(user["AWS_SECRET_ACCESS_KEY"], tmp_path)


class Unstarted(RayEngine):
    """An engine that is not asked, for it takes long to start."""

    def start(self):
        raise AssertionError("Ray is started")


@pytest.mark.parametrize(
    "source, kind, said",
    [
        ("s3://nobody/photos", FileNotFoundError, "has no such bucket"),
        ("s3://nobody/*.tar", FileNotFoundError, "has no such bucket"),
        ("s3://photos/nothing", FileNotFoundError, "no such source of images"),
        ("s3://photos/z*.tar", FileNotFoundError, "no such source of images"),
        ("s3://", ValueError, "names no bucket"),
        ("s3://photos/all.tar?color=red", ValueError, "Unexpected query.*color"),
    ],
)
def test_what_is_not_there_is_said_before_ray_starts(source, kind, said, bucket):
    with pytest.raises(kind, match=said) as caught:
        Unstarted().images(source)
    assert str(caught.value).startswith(source.partition("?")[0])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"AWS_SECRET_ACCESS_KEY": "other"}, r"ACCESS_DENIED.*wants credentials"),
        ({"AWS_ACCESS_KEY_ID": "AKIAOTHER"}, r"ACCESS_DENIED.*wants credentials"),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            r"wants credentials.*\(here they are not set\)",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
            r"NETWORK_CONNECTION.*127\.0\.0\.1.*AWS_ENDPOINT_URL",
        ),
    ],
)
def test_who_is_refused_hears_it_before_ray_starts(
    change, said, bucket, user, monkeypatch
):
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^s3://photos/all.tar .*{said}") as caught:
        Unstarted().images(f"{bucket}/all.tar")
    assert user["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("secret", ["verySecret", "very/secret+with/all"])
def test_an_address_with_a_password_is_refused_and_kept_nowhere(secret, tmp_path):
    source = f"s3://AKIAKEY:{secret}@photos/all.tar"
    given = ["--images", source, "--engine", "ray", "--out", tmp_path / "features.npy"]
    done = CliRunner().invoke(main, ["encode", *map(str, given)])
    assert done.exit_code == 1
    assert "s3://photos/all.tar: leave the password out of the address" in done.output
    assert secret not in done.output
    assert not holding(secret, tmp_path, os.environ["CLIPADAPT_CACHE"])
