"""Workers of Ray: the bits of one process, whoever dies. `make cluster` runs this."""

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from pyarrow import parquet

import clipadapt
from clipadapt import (
    AttributeCaptioner,
    FeatureStore,
    ImageSet,
    StoredCLIP,
    caption,
    digits,
    encode,
    load_clip,
)
from clipadapt.app.cli import main
from clipadapt.clip import cluster as cluster_module
from clipadapt.clip.cluster import RayEngine
from clipadapt.clip.workers import EncodingWorker, _rows_of
from clipadapt.images.views import strong_view, weak_view

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

BLOCK = 16


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """What is kept between runs is kept for these tests alone, workers included."""
    os.environ["CLIPADAPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip(cache):
    return load_clip(device="cpu")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """100 photographs in two classes, two of them the same, and one damaged."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(100):
        image = digits("train")[number % 99][0].resize((300, 280 + number % 99))
        folder = root / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number:03d}.jpg")
    (root / "even" / "damaged.jpg").write_bytes(b"no image at all")
    return root


def patiently(start, attempts=4):
    """What `start` gives; Ray gives a node 30 s, which is little on a busy machine."""
    for left in reversed(range(attempts)):
        try:
            return start()
        except Exception as error:  # of no special kind
            if not left or "timed out during startup" not in str(error):
                raise


@pytest.fixture(scope="session")
def cluster(cache):
    """Two nodes on this machine, of two processors each."""
    head = {"num_cpus": 2}
    made = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    patiently(lambda: made.add_node(num_cpus=2))
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="session")
def engine(cluster):
    """Two workers on it, for most tests."""
    with RayEngine(cluster.address, workers=2) as made:
        yield made


@pytest.fixture(autouse=True)
def crews(monkeypatch):
    """A crew is hired however little there is to do, but for nothing."""
    monkeypatch.setattr(cluster_module, "_is_little", lambda images, blocks: not blocks)


def store_at(folder, **options):
    return FeatureStore(folder, block_size=BLOCK, batch_size=8, **options)


def rows(store, clip):
    """All that a table holds: keys in order, and their features."""
    blocks = [*store.table(clip).rows()]
    keys = np.concatenate([keys for keys, _ in blocks])
    features = np.concatenate([values for _, values in blocks])
    order = np.argsort(keys)
    assert len(set(keys.tolist())) == len(keys), "no image was encoded twice"
    return keys[order].tolist(), features[order]


def same(one, other):
    return one[0] == other[0] and np.array_equal(one[1], other[1])


@pytest.fixture(scope="session")
def plain(clip, photos, tmp_path_factory):
    """The undisturbed run of one process: its answer, and its rows."""
    store = store_at(tmp_path_factory.mktemp("plain"))
    with pytest.warns(UserWarning, match=r"damaged\.jpg"):
        encoded = encode(clip, photos, store=store)
    assert len(encoded) == 100
    return encoded, rows(store, clip)


def test_a_folder_has_the_bits_of_one_process(clip, photos, plain, engine, tmp_path):
    store = store_at(tmp_path)
    with pytest.warns(UserWarning, match=r"damaged\.jpg"):
        found = encode(clip, photos, engine=engine, store=store)
    assert np.array_equal(found.features, plain[0].features)
    assert found.skipped == plain[0].skipped
    assert found.classnames == ["even", "odd"]
    assert (found.labels == plain[0].labels).all()
    assert same(rows(store, clip), plain[1])


def test_arrays_and_views_have_the_bits_of_one_process(clip, engine, tmp_path):
    images = digits("test").subset(range(5, 60))
    views = [
        (None, 0),
        (weak_view(clip.image_size), 0),
        (strong_view(clip.image_size), 1),
    ]
    alone = store_at(tmp_path / "alone").encode_views(clip, images, views)
    store = store_at(tmp_path / "ray", engine=engine)
    assert np.array_equal(store.encode_views(clip, images, views), alone)
    assert same(rows(store, clip), rows(store_at(tmp_path / "alone"), clip))


def sources(photos, place):
    """The photographs in a folder by address, in tar files, and in Parquet."""
    files = sorted(photos.rglob("*.jpg"))
    with tarfile.open(place / "all.tar", "w") as archive:
        for number, file in enumerate(files):
            archive.add(file, f"{number:04d}.jpg")
            text = tarfile.TarInfo(f"{number:04d}.txt")
            text.size = 3
            archive.addfile(text, io.BytesIO(b"cat"))
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "caption": ["a cat"] * len(files),
    }
    parquet.write_table(pa.table(columns), place / "all.parquet", row_group_size=20)
    return {
        "address": f"file://{photos}",
        **{kind: str(place / f"all.{kind}") for kind in ("tar", "parquet")},
    }


@pytest.mark.parametrize("kind", ["address", "parquet", "hub"])
def test_what_ray_data_reads(kind, clip, photos, plain, engine, tmp_path):
    if kind == "hub":
        import datasets

        files = [str(file) for file in sorted(photos.rglob("*.jpg"))]
        source = datasets.Dataset.from_dict({"image": files}).cast_column(
            "image", datasets.Image()
        )
    else:
        source = sources(photos, tmp_path)[kind]
    store = store_at(tmp_path / "store")
    with pytest.warns(UserWarning, match="cannot be read as an image"):
        found = encode(clip, source, engine=engine, store=store)
    assert np.array_equal(found.features, plain[0].features)
    assert same(rows(store, clip), plain[1])
    ((name, reason),) = found.skipped
    assert "damaged.jpg" in name and "holds none of" in reason


class Accident:
    """Something that happens once a store has its first rows."""

    def __init__(self, folder, act):
        self.folder, self.act, self.done = Path(folder), act, False
        self.thread = threading.Thread(target=self.wait, daemon=True)

    def wait(self):
        while not [*self.folder.glob("*.lance/_versions/*")]:
            time.sleep(0.01)
        self.act()
        self.done = True

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.thread.join(60)
        assert self.done


def test_a_node_dies(clip, photos, plain, cluster, tmp_path):
    third = {"num_cpus": 2, "resources": {"third": 1}}
    node = patiently(lambda: cluster.add_node(**third))
    cluster.wait_for_nodes()
    store = store_at(tmp_path)
    with RayEngine(cluster.address, workers=3) as engine:
        kill = lambda: cluster.remove_node(node, allow_graceful=False)  # noqa: E731
        with Accident(tmp_path, kill), pytest.warns(UserWarning, match="damaged"):
            found = encode(clip, photos, engine=engine, store=store)
    assert np.array_equal(found.features, plain[0].features)
    assert same(rows(store, clip), plain[1])


def kill_worker(kind):
    """End one process that works for these tests; say whether there was one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::") and kind in "".join(
                process.cmdline()
            ):
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def test_a_worker_dies_while_it_describes(engine, tmp_path, capsys):
    images = digits("test").subset(range(300))
    ruler = AttributeCaptioner("digit", batch_size=4)
    alone = caption(ruler, images, "What is this?", tmp_path / "alone.sqlite")
    place, killed = tmp_path / "ray.sqlite", []

    class Deadly(RayEngine):
        def describe_blocks(self, *given):
            for number, done in enumerate(super().describe_blocks(*given)):
                if number == 2:
                    killed.append(kill_worker("CaptionWorker"))
                yield done

    other = Deadly(engine.address, workers=2)
    found = caption(ruler, images, "What is this?", place, engine=other)
    assert killed == [True]
    assert "a worker died; another gets its block" in capsys.readouterr().err
    assert found == alone and not found.missing.any()
    assert caption(ruler, images, "What is this?", place) == alone  # all are kept


def deadly():
    """An encoding worker that a certain image ends, as one does for want of memory."""

    class Fragile(EncodingWorker):
        def work(self, given):
            if any("deadly" in row.name and not row.reason for row in _rows_of(given)):
                os._exit(1)
            return super().work(given)

    return Fragile  # Ray sends the code of a class that is made in a function


def test_an_image_that_kills_workers(clip, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "EncodingWorker", deadly())
    monkeypatch.setattr("clipadapt.clip.workers._TRIES", 2)
    for number in range(12):
        name = "deadly" if number == 6 else f"{number:02d}"
        digits("train")[number][0].resize((300, 300)).save(tmp_path / f"{name}.png")
    store = FeatureStore(tmp_path / "store", block_size=4, engine=engine)
    said = r"1 of 12 images skipped:\s+\S*deadly\.png: 2 workers died of it"
    with pytest.warns(UserWarning, match=said):
        found = encode(clip, tmp_path, engine=engine, store=store)
    assert [Path(name).name for name, _ in found.skipped] == ["deadly.png"]
    sound = ImageSet(
        [f for f in sorted(tmp_path.glob("*.png")) if "deadly" not in f.name]
    )
    assert np.allclose(found.features, clip.encode_image(sound).numpy(), atol=1e-6)
    assert len(store.table(clip)) == 11


DRIVER = """
import os, signal, sys, warnings
import torch
torch.set_num_threads(1)
from clipadapt import FeatureStore, encode, load_clip
from clipadapt.clip.cluster import RayEngine
from clipadapt.clip.tables import FeatureTable
append, count = FeatureTable.append, [0]
def dying(self, *given):
    append(self, *given)
    if "files" not in self.path.name:
        count[0] += 1
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
FeatureTable.append = dying
photos, place, address = sys.argv[1:]
with RayEngine(address, workers=2) as engine:
    store = FeatureStore(place, block_size=16, batch_size=8)
    encode(load_clip(device="cpu"), photos, engine=engine, store=store)
"""


def test_a_killed_driver_is_gone_on_with(clip, photos, plain, cluster, tmp_path):
    given = [sys.executable, "-c", DRIVER, photos, tmp_path, cluster.address]
    ended = subprocess.run([*map(str, given)], capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    store = store_at(tmp_path)
    before = len(store.table(clip))
    assert 0 < before < 100
    asked = []

    class Watched(RayEngine):
        def encode_blocks(self, clip, images, blocks, batch_size):
            asked.extend(row for _, _, numbers in blocks for row in numbers)
            return super().encode_blocks(clip, images, blocks, batch_size)

    with (
        Watched(cluster.address, workers=2) as engine,
        pytest.warns(UserWarning, match="damaged"),
    ):
        found = encode(clip, photos, engine=engine, store=store)
    assert len(asked) == 100 - before  # 99 different images, and the damaged one
    assert np.array_equal(found.features, plain[0].features)
    assert same(rows(store, clip), plain[1])


def test_two_runs_on_one_store(clip, photos, plain, cluster, tmp_path):
    command = DRIVER.replace("if count[0] == 2:", "if False:")
    given = [sys.executable, "-c", command, photos, tmp_path, cluster.address]
    others = [
        subprocess.Popen([*map(str, given)], stderr=subprocess.PIPE) for _ in range(2)
    ]
    for other in others:
        said = other.communicate(timeout=300)[1].decode()
        assert other.returncode == 0, said[-2000:]
    assert same(rows(store_at(tmp_path), clip), plain[1])


def test_a_worker_with_other_weights_is_refused(engine, tmp_path):
    changed = load_clip(device="cpu")
    with torch.no_grad():
        changed.model.visual.proj.mul_(1.1)
    with pytest.raises(ValueError, match="differs from this process in weights"):
        encode(
            changed,
            digits("test").subset(range(4)),
            engine=engine,
            store=store_at(tmp_path),
        )
    assert len(store_at(tmp_path).table(changed)) == 0


def test_a_worker_with_another_version_is_refused(clip, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(clipadapt, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"clipadapt \(0\.1\.0 there, 9\.9 here\)"):
        encode(
            clip,
            digits("test").subset(range(4)),
            engine=engine,
            store=store_at(tmp_path),
        )


def test_a_file_changes_while_it_is_encoded(clip, cluster, tmp_path):
    for number in range(12):
        digits("train")[number][0].resize((300, 300)).save(
            tmp_path / f"{number:02d}.png"
        )
    changed = tmp_path / "11.png"

    class Late(RayEngine):
        def encode_blocks(self, *given):
            digits("train")[50][0].save(changed)
            return super().encode_blocks(*given)

    with Late(cluster.address, workers=1) as engine:
        store = FeatureStore(tmp_path / "store", block_size=4, engine=engine)
        with pytest.raises(ValueError, match=r"11\.png\) changed while it was"):
            store.encode(clip, ImageSet.from_folder(tmp_path))
    assert len(store.table(clip)) == 8  # blocks that were finished before


def test_a_source_changes_between_its_readings(clip, engine, tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(6):
        digits("train")[number][0].save(place / f"{number}.png")
    images = engine.images(f"file://{place}")
    digits("train")[50][0].save(place / "3.png")
    with pytest.raises(ValueError, match=r"1 images changed or vanished.*3\.png"):
        encode(clip, images, engine=engine, store=store_at(tmp_path / "store"))
    assert len(store_at(tmp_path / "store").table(clip)) == 5
    with pytest.raises(ValueError, match="by the workers of a cluster only"):
        images[0]


class Refusing(http.server.BaseHTTPRequestHandler):
    """An object store that knows nobody."""

    def refuse(self):
        body = (
            b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        )
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = refuse

    def log_message(self, *words):
        pass


def test_an_object_store_without_credentials(engine, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"endpoint_override=127.0.0.1:{server.server_port}"
        source = f"s3://bucket/photos?region=us-east-1&scheme=http&{where}"
        with pytest.raises(ValueError, match="wants credentials") as caught:
            engine.images(source)
        server.shutdown()
    assert "s3://bucket/photos" in str(caught.value)


@pytest.mark.parametrize("source", ["file:///nowhere/at/all", "/nowhere/x.tar"])
def test_a_source_that_is_not_there(engine, source):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        engine.images(source)


def test_an_address_where_something_else_listens():
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match="no Ray cluster answers"):
            clipadapt.clip.cluster.check_address(address, patience=5)


def command(*given):
    return CliRunner().invoke(main, [*map(str, given)], prog_name="clipadapt")


def test_commands_say_the_same_with_and_without(photos, cluster, tmp_path):
    many = ["--engine", "ray", "--address", cluster.address, "--workers", 2]
    captioner = ["--captioner", "attributes"]
    for words in (["zero-shot"], ["caption", *captioner]):
        given = [*words, "--images", photos]
        alone = command(*given, "--out", tmp_path / "alone.json", "--overwrite")
        assert alone.exit_code == 0, alone.output
        for part in Path(os.environ["CLIPADAPT_CACHE"]).glob("captions.sqlite"):
            part.unlink()
        FeatureStore().clear()
        with_ray = command(*given, *many, "--out", tmp_path / "ray.json", "--overwrite")
        assert with_ray.exit_code == 0, with_ray.output
        both = [
            json.loads((tmp_path / f"{n}.json").read_text()) for n in ("alone", "ray")
        ]
        assert both[0] == both[1] and len(both[0]) == 100


def test_lpclip_learns_from_views_of_workers(photos, cluster, tmp_path):
    many = ["--engine", "ray", "--address", cluster.address, "--workers", 2]
    given = ["adapt", "--images", photos, "--method", "lpclip", "--set", "epochs=2"]
    fitted = []
    for name, more in (("alone", []), ("ray", many)):
        FeatureStore().clear()
        out = tmp_path / name
        done = command(*given, *more, "--out", out)
        assert done.exit_code == 0, done.output
        fitted.append((out / "model" / "adapter.safetensors").read_bytes())
        assert "engine" not in json.loads((out / "config.json").read_text())
    assert fitted[0] == fitted[1]
    asked = ["predict", "--saved", tmp_path / "ray", "--images", photos]
    answers = []
    for more in ([], many):
        FeatureStore().clear()
        done = command(*asked, *more, "--out", tmp_path / "a.csv", "--overwrite")
        assert done.exit_code == 0, done.output
        answers.append((tmp_path / "a.csv").read_text())
    assert answers[0] == answers[1]


def test_the_encode_command_reads_tar_files(photos, plain, cluster, tmp_path):
    source = Path(sources(photos, tmp_path)["tar"]).with_name("a*.tar")
    FeatureStore().clear()
    many = ["--engine", "ray", "--address", cluster.address, "--workers", 2]
    out = tmp_path / "features.npy"
    done = command("encode", "--images", source, *many, "--out", out)
    assert done.exit_code == 0, done.output
    assert "all.tar/" in done.output and "holds none of" in done.output
    names = json.loads(out.with_suffix(".json").read_text())["names"]
    assert len(names) == 100 and names[0].endswith("all.tar/0000.jpg")
    assert np.allclose(np.load(out), plain[0].features, atol=1e-6)  # other batches


def test_a_cluster_of_our_own_is_started_and_stopped(clip, cluster, tmp_path):
    ray.shutdown()
    images = digits("test").subset(range(40))
    with RayEngine(workers=2) as engine:
        found = encode(clip, images, engine=engine, store=store_at(tmp_path))
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert np.array_equal(found.features, encode(clip, images).features)
    with RayEngine(workers=2) as engine:  # nothing is missing, and nothing starts
        clip_with_store = StoredCLIP(clip, store_at(tmp_path, engine=engine))
        clip_with_store.encode_image(images)
        assert not ray.is_initialized()
