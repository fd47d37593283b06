"""Workers of a cluster as far as they go without Ray; the rest is in tests/cluster."""

import io
import json
import logging
import subprocess
import sys
import traceback
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

import clipadapt
from clipadapt import (
    AttributeCaptioner,
    CallableCaptioner,
    FeatureStore,
    ImageSet,
    caption,
    digits,
    encode,
)
from clipadapt.app.cli import main
from clipadapt.app.runs import image_set
from clipadapt.clip.cluster import (
    RayEngine,
    _connect,
    _hash_paths,
    check_address,
    engine_images,
)
from clipadapt.clip.features import Encoded, Here
from clipadapt.clip.raydata import (
    _BY,
    ClusterImages,
    _called,
    _cannot_read,
    _cause,
    _check_secret,
    _chosen,
    _file_system,
    _files_of,
    _hashed,
    _of_samples,
    _of_table,
)
from clipadapt.clip.workers import (
    CaptionWorker,
    Crew,
    EncodingWorker,
    Job,
    Row,
    _as_row,
    _check_identity,
    _of,
    _rows_of,
    _told,
    clip_identity,
)
from clipadapt.images.pictures import MAX_PIXELS
from clipadapt.images.views import strong_view


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ray.data", raising=False)


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="clipadapt")


def test_without_ray_the_extra_is_named(without_ray, clip, tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'clipadapt\[ray\]'"):
        encode(clip, digits("test"), engine="ray", store=FeatureStore(tmp_path))
    told = run("encode", "--engine", "ray", "--out", tmp_path / "features.npy")
    assert told.exit_code == 1
    assert "Error: the engine 'ray' needs Ray: pip install" in told.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--workers", 2], "go with --engine ray"),
        (["--address", "10.0.0.1:6379"], "go with --engine ray"),
        (["--engine", "ray", "--no-store"], "leave --no-store out"),
        (["--engine", "spark"], "'spark' is not 'ray'"),
        (["--engine", "ray", "--workers", 0], "0 is not in the range"),
    ],
)
def test_options_that_do_not_fit(options, words, tmp_path):
    told = run("encode", *options, "--out", tmp_path / "features.npy")
    assert told.exit_code == 2 and words in told.output


def test_launched_processes_do_not_start_workers_each(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    told = run("adapt", "--engine", "ray", "--out", tmp_path / "run")
    assert told.exit_code == 2 and "encode with it first" in told.output


def test_compare_asks_the_engine(unstarted, monkeypatch, tmp_path):
    """What is encoded goes to the engine, and the table is that of this process."""
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    images, asked = tmp_path / "photos", []
    for number, (image, label) in enumerate(
        map(digits("train").__getitem__, range(20))
    ):
        folder = images / ("even" if label % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")

    def encode_blocks(self, clip, images, blocks, batch_size):
        asked.extend(row for _, _, rows in blocks for row in rows)
        return Here().encode_blocks(clip, images, blocks, batch_size)

    monkeypatch.setattr(RayEngine, "encode_blocks", encode_blocks)
    tables = []
    for name, more in (("alone", []), ("ray", ["--engine", "ray", "--workers", 2])):
        FeatureStore().clear()
        out = tmp_path / name
        given = ["--images", images, "--methods", "zero-shot", "--out", out]
        told = run("compare", *given, *more)
        assert told.exit_code == 0, told.output
        assert len(asked) == (0 if name == "alone" else 20)
        assert "engine" not in json.loads((out / "config.json").read_text())
        tables.append(pd.read_csv(out / "table.csv").filter(regex="method|accuracy"))
    assert tables[0].equals(tables[1]) and tables[0].shape[1] >= 2
    assert run("compare", "--workers", 2, "--out", tmp_path / "x").exit_code == 2


def test_an_address_needs_the_engine(tmp_path):
    given = ["--images", "s3://bucket/photos", "--out", tmp_path / "features.npy"]
    told = run("encode", *given)
    assert told.exit_code == 1 and "--engine ray reads from there" in told.output


@pytest.mark.parametrize("address", ["head", "head:port", ":6379", "6379"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="is not host:port"):
        check_address(address)


def test_nothing_listens():
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        check_address("127.0.0.1:1")


def test_nothing_listens_where_ray_looks_by_itself(monkeypatch):
    """Ray would wait there for two minutes, and end the process."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 "):
        check_address("auto")
    for unset in ("", "auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", unset)
        check_address("auto")


def as_if_asked(monkeypatch, stderr):
    """Something listens, and Ray's health check of it fails with these words."""

    def failing(command, **how):
        assert how["stderr"] == subprocess.PIPE and how["check"]
        raise subprocess.CalledProcessError(1, command, stderr=stderr)

    monkeypatch.setattr("socket.create_connection", lambda *_: io.BytesIO())
    monkeypatch.setattr(subprocess, "run", failing)


TRACE = 'Traceback (most recent call last):\n  File "check.py", line 1, in check\n'
WRONG = "ray.exceptions.AuthenticationError: Authentication token is missing. Ensure"
NONE = (
    "[C 1 1] loader.cc:115:  A bug? Check failed: has_token Token authentication is"
    " enabled but Ray couldn't find an authentication token.\n"
    "*** StackTrace Information ***\npython(_start+0x21) [0x56] _start\n"
)


@pytest.mark.parametrize(
    "stderr, reason",
    [
        (f"{TRACE}{WRONG}\n", r"\(Authentication token is missing\. Ensure\)"),
        (NONE, r"\(has_token Token authentication is enabled but Ray couldn't find"),
    ],
)
def test_a_cluster_that_wants_a_token(stderr, reason, monkeypatch):
    as_if_asked(monkeypatch, stderr)
    said = rf"at 10\.0\.0\.1:6379 refuses this process {reason}.*RAY_AUTH_MODE=token"
    with pytest.raises(ValueError, match=said):
        check_address("10.0.0.1:6379")


@pytest.mark.parametrize(
    "stderr, reason",
    [
        (
            f"{TRACE}RuntimeError: Version mismatch: it has\n    Ray: 1.0\n\nhere\n",
            r"\(Version mismatch: it has Ray: 1\.0 here\)",
        ),
        ("a warning\nthe port is another's\n\n", r"\(the port is another's\)"),
        ("", r"\(Ray's health check ended with 1\)"),
    ],
)
def test_an_address_that_is_not_healthy_says_why(stderr, reason, monkeypatch):
    as_if_asked(monkeypatch, stderr)
    with pytest.raises(ValueError, match=f"no Ray cluster answers at .*{reason}") as no:
        check_address("10.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in str(no.value)


def test_a_health_check_that_takes_too_long(monkeypatch):
    def slow(command, timeout, **how):
        raise subprocess.TimeoutExpired(command, timeout)

    as_if_asked(monkeypatch, "")
    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(ValueError, match=r"\(Ray's .* no answer in 6 seconds\)"):
        check_address("10.0.0.1:6379", patience=3)


def test_a_cluster_on_this_machine_may_want_a_token_too():
    def init(**where):
        raise RuntimeError("Token authentication is enabled but no token was found")

    rays = SimpleNamespace(init=init, shutdown=lambda: None)
    with pytest.raises(
        ValueError, match=r"no token was found\); set RAY_AUTH_MODE=tok"
    ):
        _connect(rays, {"address": "auto"}, attempts=1)


def test_who_differs_is_refused(clip):
    here = clip_identity(clip)
    _check_identity(dict(here), here)
    with pytest.raises(ValueError, match="differs from this process in precision"):
        _check_identity({**here, "precision": "bf16"}, here)
    with pytest.raises(ValueError, match=r"in clipadapt and weights \(0\.0 there"):
        _check_identity({**here, "clipadapt": "0.0", "weights": "other"}, here)
    with pytest.raises(ValueError, match="could not load the model: no network"):
        _check_identity({"error": "no network"}, here)


class InThisProcess:
    """An engine whose worker is a plain object: the store cannot tell."""

    def __init__(self, backwards=False):
        self.backwards = backwards

    def hash_files(self, files):
        return {}

    def encode_blocks(self, clip, images, blocks, batch_size):
        for views, numbers, rows in blocks[:: -1 if self.backwards else 1]:
            job = Job(_of(clip, "cpu"), views, batch_size, images.max_pixels)
            given = [_as_row(images, row, clip.side) for row in rows]
            done = EncodingWorker(job).work(given)
            if isinstance(done, str):
                raise ValueError(done)
            yield Encoded(numbers, *done)


@pytest.fixture
def photos(tmp_path):
    """Six photographs, one of them twice, and two files that are damaged alike."""
    for number in range(6):
        image = digits("train")[min(number, 4)][0].resize((300, 290))
        image.save(tmp_path / f"{number}.png")
    for name in ("bad.png", "worse.png"):
        (tmp_path / name).write_bytes(b"no image")
    return ImageSet.from_folder(tmp_path, check="names")


@pytest.mark.usefixtures("one_thread")
def test_the_store_of_another_engine_is_the_same(clip, photos, tmp_path):
    views = [(None, 0), (strong_view(clip.image_size), 3)]
    found = []
    for name, engine in (("alone", None), ("other", InThisProcess(backwards=True))):
        store = FeatureStore(tmp_path / name, block_size=2, engine=engine)
        damaged: dict[int, str] = {}
        found.append((store.encode_views(clip, photos, views, damaged), damaged))
    assert np.array_equal(found[0][0], found[1][0], equal_nan=True)
    assert found[0][1] == found[1][1] and len(found[0][1]) == 2
    assert "worse.png: cannot be read" in found[0][1][7]
    with pytest.raises(ValueError, match=r"bad\.png: cannot be read.*leaves out"):
        store.encode_views(clip, photos, views)


@pytest.mark.usefixtures("one_thread")
def test_arrays_draw_from_their_place_in_the_set(clip, tmp_path):
    images = digits("test").subset([9, 4, 7, 1, 3])
    views = [(strong_view(clip.image_size), 3)]
    alone = FeatureStore(tmp_path / "alone").encode_views(clip, images, views)
    engine = InThisProcess()
    other = FeatureStore(tmp_path / "other", block_size=2, batch_size=2, engine=engine)
    assert np.allclose(other.encode_views(clip, images, views), alone, atol=1e-6)


def test_a_file_that_changes_is_not_kept(clip, photos, tmp_path):
    class Late(InThisProcess):
        def encode_blocks(self, clip, images, blocks, batch_size):
            digits("train")[9][0].save(images.images[2])
            return super().encode_blocks(clip, images, blocks, batch_size)

    store = FeatureStore(tmp_path / "store", block_size=2, engine=Late())
    with pytest.raises(ValueError, match=r"image 2 \(.*2\.png\) changed while it was"):
        store.encode(clip, photos.subset(range(6)))
    assert len(store.table(clip)) == 2  # the block before


def test_features_that_are_not_finite_name_the_image(clip, photos):
    job = Job(_of(clip, "cpu"), [(None, 0)], 8, MAX_PIXELS)
    worker = EncodingWorker(job)
    worker.clip.model.visual.proj.data.fill_(float("nan"))
    said = worker.work([_as_row(photos, row, clip.side) for row in (3, 4)])
    assert isinstance(said, str)
    assert said.startswith("image 3 (") and "not finite" in said


def test_a_model_that_cannot_be_loaded_is_said():
    job = Job({"name": "local-dir:/nowhere"}, [(None, 0)], 8, MAX_PIXELS)
    assert "nowhere" in EncodingWorker(job).introduce()["error"]


def test_captioners_that_can_be_made_again():
    ruler = AttributeCaptioner("shape", say=["colour"], batch_size=3)
    again = CaptionWorker(*_told(ruler), MAX_PIXELS).captioner
    assert again.name == ruler.name and again.batch_size == 3
    mine = CallableCaptioner(lambda images, prompts: ["?"] * len(images), "mine")
    with pytest.raises(ValueError, match="CallableCaptioner cannot be built again"):
        _told(mine)


def test_captions_of_another_engine(photos, tmp_path):
    ruler = AttributeCaptioner("digit", batch_size=2)

    class Engine:
        def describe_blocks(self, captioner, images, blocks):
            worker = CaptionWorker(*_told(captioner), images.max_pixels)
            for rows, prompts in blocks[::-1]:
                given = [_as_row(images, row, None) for row in rows]
                yield worker.work(given, dict(zip(rows, prompts)))

    both = []
    for name, engine in (("alone", None), ("other", Engine())):
        bad: dict[int, str] = {}
        place = tmp_path / f"{name}.sqlite"
        said = caption(ruler, photos, "What?", place, damaged=bad, engine=engine)
        both.append((said, bad))
    assert both[0] == both[1]
    assert [*both[0][1]] == [6, 7] and all(both[0][0].texts[:6])


def test_the_names_of_what_was_encoded(clip, photos, tmp_path):
    with pytest.warns(UserWarning, match="2 of 8 images skipped"):
        found = encode(clip, photos, store=FeatureStore(tmp_path / "store"))
    names = [found.images.file_of(number) for number in range(len(found))]
    assert [name[-5:] for name in names] == [f"{n}.png" for n in range(6)]
    assert len(found.skipped) == 2
    with pytest.raises(ValueError, match="'ray' or None, not 'spark'"):
        encode(clip, photos, engine="spark")


def test_public_names():
    assert clipadapt.encode is encode and clipadapt.RayEngine is RayEngine


def test_many_files_are_hashed_by_the_engine(clip, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("clipadapt.clip.features._WORTH_ASKING", 1)
    asked = []

    class Hashing(InThisProcess):
        def hash_files(self, files):
            asked.extend(files)
            hashes = _hash_paths([str(file) for file in files])
            return {file: digest for file, digest in zip(files, hashes) if digest}

    store = FeatureStore(tmp_path / "store", engine=Hashing())
    sound = photos.subset(range(6))
    features = store.encode(clip, sound)
    assert asked == sound.images.items[:6]
    plain = FeatureStore(tmp_path / "plain")
    assert np.allclose(features, plain.encode(clip, sound), atol=1e-6)
    assert len(store.table(clip)) == 5
    assert _hash_paths([str(tmp_path / "nowhere.png")]) == [None]


def test_two_readings_find_the_same_images():
    contents = [b"one", b"two", None, b"two"]
    names = ["a.png", "", "", "d.png"]
    column = pa.array(contents, pa.large_binary())
    table = pa.table({"name": names, "bytes": column})
    first = _hashed(table)
    digests, keys = first["digest"].to_pylist(), first["key"].to_pylist()
    assert digests[1] == digests[3] != digests[2] and len(set(keys)) == 4
    order = np.argsort(np.array(keys, "S16"))
    wanted = [place for place in order if place != 3]
    found = _chosen(table, np.array(keys, "S16")[wanted], np.array(wanted), "there")
    rows = {row.number: row for row in _rows_of(found)}
    assert sorted(rows) == [0, 1, 2]
    assert (rows[0].name, rows[0].content) == ("a.png", b"one")
    assert (rows[1].name, rows[2].content) == ("row 1 of there", None)
    none = _chosen(table, np.empty(0, "S16"), np.empty(0, np.int64), "there")
    assert len(none) == 0


def test_a_row_without_bytes_is_damaged(clip):
    worker = EncodingWorker(Job(_of(clip, "cpu"), [(None, 0)], 8, MAX_PIXELS))
    numbers, features, reasons, _ = worker.work([Row(4, None, "row 4 of there")])
    assert reasons == {4: "row 4 of there: there are no bytes"}
    assert numbers == [4] and np.isnan(features).all()


def test_samples_with_images_of_several_endings():
    """What a sample lacks and another has comes as None, or as not a number."""
    part = {"__url__": "a.tar", "__key__": "1", "jpg": b"one", "png": float("nan")}
    other = {"__url__": "a.tar", "__key__": "2", "jpg": float("nan"), "png": b"two"}
    neither = {"__url__": "a.tar", "__key__": "3", "jpg": None, "png": float("nan")}
    read = SimpleNamespace(to_pylist=lambda: [part, other, neither])
    assert _of_samples(read).to_pylist() == [
        {"name": "a.tar/1.jpg", "bytes": b"one"},
        {"name": "a.tar/2.png", "bytes": b"two"},
    ]


class TaskError(RuntimeError):
    """An error of Ray: a trace as text, and the error that a task has met."""

    def __init__(self, trace, cause=None):
        super().__init__(trace)
        self.cause = cause


ADVICE = "\nFailed to apply UDF transform after 1/1 attempts (no backoff).\nTo change"


def as_ray_tells(function, *given) -> Exception:
    """The error of a function that Ray Data maps, as it arrives here."""
    try:
        try:
            function(*given)
        except Exception as error:
            raise RuntimeError(
                f"UDF failed to process a data block.{ADVICE}"
            ) from error
    except RuntimeError as error:
        error.__cause__, trace = None, traceback.format_exc()  # it does not travel
        return TaskError(trace, error)
    raise AssertionError("no error")


@pytest.mark.parametrize(
    "columns, said",
    [
        (["pixels"], "a table without a column of images; it has pixels"),
        (["image", "image"], "a table with several columns that are called image"),
    ],
)
def test_what_a_function_says_survives_ray(columns, said):
    table = pa.Table.from_arrays([pa.array([b"one"])] * len(columns), columns)
    error = as_ray_tells(_of_table, table)
    assert _BY in str(error)
    made = _cannot_read("a.parquet", _cause(error))
    assert str(made) == f"a.parquet cannot be read ({said})"


def test_what_errors_of_ray_are_about():
    empty = RuntimeError()
    read = pa.ArrowInvalid(f"invalid header{ADVICE}")
    read.__cause__ = empty
    assert (
        str(_cause(read)) == str(_cause(TaskError("trace", read))) == "invalid header"
    )
    gone = FileNotFoundError("s3://gone")
    assert _cause(TaskError("trace", gone)) is gone
    plain = ValueError("no images")
    assert _cause(plain) is plain
    died = RuntimeError(f"The actor died, ray::a()\n{TRACE}KeyError: 'weights'")
    assert str(_cause(died)) == "'weights'"


AWS = "When getting information for key 'a' in bucket 'b': AWS Error {} during {}: {}"


@pytest.mark.parametrize(
    "said, reason, hint",
    [
        (
            AWS.format("ACCESS_DENIED", "HeadObject operation", "No response body."),
            "(ACCESS_DENIED during HeadObject)",
            "wants credentials",
        ),
        (
            AWS.format(
                "SIGNATURE_DOES_NOT_MATCH",
                "ListObjectsV2 operation",
                "Check your key. (Request ID: abc)",
            ),
            "(SIGNATURE_DOES_NOT_MATCH during ListObjectsV2: Check your key.)",
            "wants credentials",
        ),
        (
            'Failing to read AWS S3 file(s): "b/a". Please check that file exists and',
            '(Failing to read AWS S3 file(s): "b/a")',
            "wants credentials",
        ),
        (
            AWS.format("NETWORK_CONNECTION", "HeadObject operation", "curlCode: 7"),
            "(NETWORK_CONNECTION during HeadObject: curlCode: 7)",
            "AWS_ENDPOINT_URL",
        ),
        ("a table without a column of images", "(a table without a column of", ""),
    ],
)
def test_what_an_object_store_says(said, reason, hint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    made = str(_cannot_read("s3://b/a?region=x", OSError(said)))
    assert made.startswith(f"s3://b/a cannot be read {reason}")
    assert hint in made and ("; " in made) == bool(hint)
    assert "not set" not in made
    assert "; " not in str(_cannot_read("a.tar", OSError(said)))


@pytest.mark.parametrize(
    "address, called",
    [
        ("s3://AKIA:secret@b/a?region=x", "s3://b/a"),
        ("s3://AKIA:se/cr@et@b/a", "s3://b/a"),
        ("s3://AKIA:/erySecret@b/a", "s3://b/a"),
        ("s3://AKIA:12/Secret@b/a", "s3://b/a"),
        ("s3://AKIA:se?cret@b/a", "s3://b/a"),
        ("abfs://:secret@account.example/b", "abfs://account.example/b"),
        ("ftp://anna:8080@host/a", "ftp://host/a"),
    ],
)
def test_a_password_in_an_address_is_refused(address, called, unstarted):
    with pytest.raises(ValueError, match="leave the password out") as caught:
        unstarted.images(address)
    assert str(caught.value).startswith(f"{called}: leave")
    for engine in (None, unstarted):
        with pytest.raises(ValueError, match="leave the password out"):
            encode(None, address, engine=engine)
    with pytest.raises(ValueError, match=f"^{called} is no folder; --engine ray"):
        image_set(address, MAX_PIXELS, "train")


@pytest.mark.parametrize(
    "address",
    [
        "s3://anonymous@b/a",
        "s3://b/a:b@c.tar",
        "http://host:8080/a@b.tar",
        "hdfs://host:8020/me@home/p",
        "hf://datasets/org/name@main/a.parquet",
        "zip://a.jpg::s3://b/a@b.zip",
        "file:///a:b/c@d",
    ],
)
def test_other_addresses_are_called_what_they_are(address):
    _check_secret(address)
    assert _called(address) == address


def test_addresses_as_people_write_them():
    """A space, an umlaut, a #; and what is spelled out already stays so."""
    for written in ("my photos/süß #1", "my%20photos/s%C3%BC%C3%9F%20%231"):
        found = _file_system(f"s3://b/{written}?region=us-east-1")[1]
        assert found == "b/my photos/süß #1"
    for address in ("s3://b/100% real?region=us-east-1", "hf://datasets/a/b/c d.tar"):
        found = _file_system(address)[1]
        assert found == address.partition("://")[2].partition("?")[0]


def test_a_home_directory_from_python(tmp_path, monkeypatch, unstarted):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    digits("train")[0][0].save(tmp_path / "photos" / "a.png")
    assert len(engine_images(unstarted, "~/photos")) == 1
    paths = []
    task = SimpleNamespace(remote=paths.append, options=lambda **given: task)
    rays = SimpleNamespace(
        remote=lambda function: task, get=lambda given: [_hash_paths(paths[0])]
    )
    monkeypatch.setattr(RayEngine, "start", lambda self: rays)
    assert [*unstarted.hash_files(["~/photos/a.png"])] == ["~/photos/a.png"]


def test_where_a_source_lies(tmp_path):
    system, path = _file_system(str(tmp_path))
    assert system.type_name == "local" and path == str(tmp_path)
    assert _file_system("memory://a/b")[0].type_name.startswith("py::fsspec")
    for name in ("part-1.tar", "part-0.TAR", "other.tar"):
        (tmp_path / name).touch()
    _, paths, ending = _files_of(f"file://{tmp_path}/part-*.tar")
    assert paths == [str(tmp_path / "part-1.tar")] and ending == "tar"
    assert _files_of("file:///x/y.tar?a=b.c")[1:] == (["/x/y.tar"], "tar")
    with pytest.raises(FileNotFoundError):
        _files_of(f"{tmp_path}/*.parquet")


def test_files_are_named_as_they_were_and_opened_from_anywhere(
    photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    both = ImageSet(["0.png", "nowhere.png"])
    row, said = (_as_row(both.subset([0, 1]), number, None) for number in (0, 1))
    assert row.name == "0.png" and row.content == str(tmp_path / "0.png")
    worker = CaptionWorker(*_told(AttributeCaptioner("digit")), MAX_PIXELS)
    (_, (found, lost)) = worker.work([row, said], {0: "What?", 1: "What?"})
    assert found.text and lost.unread == "nowhere.png: no such image file"


@pytest.fixture
def unstarted(monkeypatch):
    """An engine that must not start Ray."""
    monkeypatch.setattr("clipadapt.clip.cluster._ray", lambda: None)

    def start(self):
        raise AssertionError("Ray is started")

    monkeypatch.setattr(RayEngine, "start", start)
    return RayEngine()


@pytest.mark.usefixtures("one_thread")
def test_a_few_images_start_nobody(clip, photos, tmp_path, unstarted):
    """One block, or several with few images: this process, its bits and its words."""
    views = [(None, 0), (strong_view(clip.image_size), 3)]
    found = []
    for name, engine in (("alone", None), ("ray", unstarted)):
        store = FeatureStore(tmp_path / name, block_size=4, engine=engine)
        some, all_of_them = {}, {}
        store.encode_views(clip, photos.subset([0, 6]), views[:1], some)
        features = store.encode_views(clip, photos, views, all_of_them)
        rows = [row.tobytes() for _, few in store.table(clip).rows() for row in few]
        found.append((features, some, all_of_them, sorted(rows)))
    assert np.array_equal(found[0][0], found[1][0], equal_nan=True)
    assert found[0][1:] == found[1][1:] and [*found[0][2]] == [6, 7] and found[0][3]


def test_damaged_files_alone_start_nobody(clip, tmp_path, unstarted):
    for number in range(70):
        (tmp_path / f"{number}.png").write_bytes(b"no image %d" % number)
    digits("train")[0][0].save(tmp_path / "sound.png")
    photos = ImageSet.from_folder(tmp_path, check="names")
    store = FeatureStore(tmp_path / "store", engine=unstarted)
    for _ in range(2):
        with pytest.warns(UserWarning, match="70 of 71 images skipped"):
            assert len(encode(clip, photos, engine=unstarted, store=store)) == 1


@pytest.mark.parametrize("kept", [0, 5, 1935])
def test_a_second_run_says_where_it_goes_on(kept, unstarted, monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("clipadapt"), "info", said.append)
    images = ImageSet([np.zeros((8, 8), np.uint8)] * 2000)
    captioner, left = AttributeCaptioner("digit"), [*range(kept, 2000)]
    blocks = [(rows, ["What?"] * len(rows)) for rows in (left[:40], left[40:])]
    with pytest.raises(AssertionError, match="Ray is started"):
        next(unstarted.describe_blocks(captioner, images, blocks))
    assert kept == 0 or said[0].startswith(
        f"{2000 - kept:,} of 2,000 images are described"
    )
    assert len(said) == bool(kept)


def test_many_images_start_workers(clip, tmp_path, unstarted):
    images, ruler = digits("test").subset(range(65)), AttributeCaptioner("digit")
    store = FeatureStore(tmp_path, block_size=33, engine=unstarted)
    with pytest.raises(AssertionError, match="Ray is started"):
        store.encode(clip, images)
    with pytest.raises(AssertionError, match="Ray is started"):
        caption(ruler, images, "What?", tmp_path / "c.sqlite", engine=unstarted)


def test_what_only_ray_reads_starts_workers(clip, tmp_path, unstarted):
    elsewhere = ClusterImages.__new__(ClusterImages)
    elsewhere.names, elsewhere.digests = ["there.png"], [b"0" * 16]
    store = FeatureStore(tmp_path, engine=unstarted)
    for images in (ImageSet(elsewhere), ImageSet(elsewhere).subset([0])):
        with pytest.raises(AssertionError, match="Ray is started"):
            store.encode(clip, images)


def test_a_few_captions_start_nobody(photos, tmp_path, unstarted, monkeypatch):
    ruler = AttributeCaptioner("digit", batch_size=2)
    both = []
    for name, engine in (("alone", None), ("ray", unstarted)):
        bad: dict[int, str] = {}
        place = tmp_path / f"{name}.sqlite"
        said = caption(ruler, photos, "What?", place, damaged=bad, engine=engine)
        both.append((said, bad))
    assert both[0] == both[1] and [*both[1][1]] == [6, 7]
    assert [*unstarted.describe_blocks(ruler, ImageSet([]), [])] == []
    # what is left are damaged files: not even the captioner is made ready for them
    monkeypatch.setattr(AttributeCaptioner, "prepare", None)
    place = tmp_path / "ray.sqlite"
    assert caption(ruler, photos, "What?", place, damaged={}, engine=unstarted)


def test_a_captioner_that_cannot_be_made_ready_ends_the_run(
    photos, tmp_path, unstarted, monkeypatch
):
    def prepare(self):
        raise ValueError("no weights")

    monkeypatch.setattr(AttributeCaptioner, "prepare", prepare)
    ruler, place = AttributeCaptioner("digit"), tmp_path / "c.sqlite"
    for engine in (None, unstarted):
        with pytest.raises(ValueError, match="no weights"):
            caption(ruler, photos, "What?", place, engine=engine)


class Died(Exception):
    """What ends a worker of `FakeRay`."""


class Ref:
    """What Ray will have computed, or has been given."""

    def __init__(self, value):
        self.value = value


class FakeRay:
    """As much of Ray as a crew asks for. A worker is an object here, and may die."""

    class exceptions:  # noqa: N801 (as in Ray)
        class RayError(Exception):
            pass

        class ObjectLostError(RayError):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self):
        self.made = 0

    def remote(self, kind):
        def make(*told):
            self.made += 1
            worker = kind(*told)
            return SimpleNamespace(
                introduce=self.method(worker.introduce), work=self.method(worker.work)
            )

        made = SimpleNamespace(remote=make)
        return SimpleNamespace(options=lambda **needs: made)

    def method(self, function):
        def call(*given):
            try:
                known = [one.value if isinstance(one, Ref) else one for one in given]
                return Ref(function(*known))
            except Died as error:
                return Ref(self.exceptions.RayError(str(error)))

        return SimpleNamespace(remote=call)

    def wait(self, refs, num_returns, timeout):
        return refs[-num_returns:], refs[:-num_returns]

    def get(self, ref):
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def kill(self, worker):
        pass

    def is_initialized(self):
        return True


class Fragile:
    """A worker that says what it got; images that are called deadly kill it."""

    def __init__(self, threads):
        assert threads == 1

    def introduce(self):
        return {"error": ""}

    def work(self, given, *more):
        rows = _rows_of(given)
        if any("deadly" in row.name and not row.reason for row in rows):
            raise Died("no memory")
        return [(row.number, row.reason, *more) for row in rows]


@pytest.fixture
def crew():
    """Two workers of `FakeRay`."""
    engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (2, 1))
    with Crew(engine, Fragile, (), {}) as made:
        yield made


def blocks_of(names, size, as_table=False):
    """Rows in blocks, as lists, or as tables that Ray holds."""
    rows = [Row(number, b"", name) for number, name in enumerate(names)]
    for start in range(0, len(rows), size):
        few = rows[start : start + size]
        if as_table:
            numbers, contents, called, _ = zip(*few)
            columns = {"number": numbers, "bytes": contents, "name": called}
            few = Ref(pa.table({key: [*values] for key, values in columns.items()}))
        yield few, "more"


@pytest.mark.parametrize("as_table", [False, True])
def test_an_image_that_kills_workers_is_found_and_named(crew, as_table, capsys):
    names = [f"{number}.png" for number in range(40)]
    names[13] = names[37] = "deadly.png"
    found = [
        one for done in crew.results(blocks_of(names, 16, as_table)) for one in done
    ]
    assert sorted(number for number, *_ in found) == [*range(40)]
    assert {more for *_, more in found} == {"more"}
    reasons = {number: reason for number, reason, _ in found if reason}
    assert [*sorted(reasons)] == [13, 37]
    said = "deadly.png: 3 workers died of it (no memory); take it out of the set"
    assert {*reasons.values()} == {said}
    # three of the block, one of each half of more than one image, three of the image
    deaths = capsys.readouterr().err.count("a worker died")
    assert deaths == (3 + 3 + 3) + (3 + 2 + 3)
    assert crew.ray.made == 2 + deaths


def test_images_without_names_are_numbered(crew):
    class Nameless(Fragile):
        def work(self, given):
            if given[0].number == 1 and not given[0].reason:
                raise Died("no memory")
            return given

    blocks = [([Row(number, b"", None)],) for number in range(2)]
    engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (1, 1))
    with Crew(engine, Nameless, (), {}) as made:
        found = [row for rows in made.results(blocks) for row in rows]
    assert found[1].reason.startswith("image 1: 3 workers died of it")


def test_a_death_or_two_cost_a_block_nothing(crew, capsys):
    """Machines die, too: a block is halved after several deaths only."""
    alive = Fragile.work
    seen = []

    def work(self, given, *more):
        seen.append(len(given))
        if len(seen) < 3:
            raise Died("its machine is gone")
        return alive(self, given, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fragile, "work", work)
        engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (1, 1))
        with Crew(engine, Fragile, (), {}) as made:
            found = [*made.results(blocks_of(["a.png"] * 8, 8))]
    assert seen == [8, 8, 8] and len(found[0]) == 8
    assert capsys.readouterr().err.count("a worker died") == 2


def test_workers_that_die_of_everything_end_the_run(crew):
    names = [f"deadly {number}.png" for number in range(20)]
    with pytest.raises(ValueError, match=r"die of one image after another") as caught:
        [*crew.results(blocks_of(names, 5))]
    named = [name for name in names if f"{name}," in f"{caught.value},"]
    assert len(named) >= 3 and "no memory; give them more memory" in str(caught.value)


def test_a_table_that_went_with_its_machine_is_read_again(crew):
    """A deadly block that nobody has any more is left to the next reading."""
    (block,) = blocks_of(["deadly.png", "1.png"], 2, as_table=True)
    get = crew.ray.get

    def lost(ref):
        if ref is block[0]:
            raise crew.ray.exceptions.ObjectLostError
        return get(ref)

    crew.ray.get = lost
    assert [*crew.results([block])] == []


def test_an_image_that_was_given_up_is_damaged(clip):
    row = Row(4, None, "deadly.png", "deadly.png: 3 workers died of it")
    encoding = EncodingWorker(Job(_of(clip, "cpu"), [(None, 0)], 8, MAX_PIXELS))
    assert encoding.work([row])[2] == {4: row.reason}
    describing = CaptionWorker(*_told(AttributeCaptioner("digit")), MAX_PIXELS)
    assert describing.work([row], {4: "?"})[1][0].unread == row.reason


def test_an_empty_table_that_workers_die_of_is_forgotten(crew):
    empty = pa.table({"number": [], "bytes": [], "name": []})

    class Hasty(Fragile):
        def work(self, given):
            raise Died("its machine is gone")

    engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (1, 1))
    with Crew(engine, Hasty, (), {}) as made:
        assert [*made.results([(Ref(empty),)])] == []


def test_errors_of_workers_are_said_as_they_were(monkeypatch):
    class Strict(Fragile):
        def work(self, given):
            return None

    engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (1, 1))
    met = MemoryError("no room for the batch")

    def get(self, ref, first=[True]):  # noqa: B006 (the first answer is a greeting)
        if first.pop() if first else False:
            return ref.value
        error = FakeRay.exceptions.RayTaskError(f"ray::work()\n{TRACE}{met!r}")
        error.cause = met
        raise error

    monkeypatch.setattr(FakeRay, "get", get)
    with Crew(engine, Strict, (), {}) as made, pytest.raises(MemoryError) as caught:
        [*made.results([([Row(0, b"", "a.png")],)])]
    assert caught.value is met


def test_workers_that_cannot_start_say_why(monkeypatch):
    def get(self, ref):
        text = f"The actor died, ray::init()\n{TRACE}ImportError: no module named torch"
        raise FakeRay.exceptions.RayError(text)

    monkeypatch.setattr(FakeRay, "get", get)
    engine = SimpleNamespace(start=FakeRay, crew_size=lambda gpu: (1, 1))
    said = "no worker can be started on the cluster: no module named torch"
    with Crew(engine, Fragile, (), {}) as made, pytest.raises(ValueError, match=said):
        made.wait()
