"""What goes wrong on other people's machines: no network, missing or damaged weights,
builds of PyTorch that do not fit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from processes import Process, program, run_code
from safetensors.torch import save_file

from clipadapt import ImageSet, ZeroShot, digits, load_clip
from clipadapt.clip.model import builtin_directory, cache_directory
from clipadapt.images import files
from clipadapt.images.files import whole_directory, whole_file
from clipadapt.images.pictures import read_image


def run_python(code: str, folder: Path, **environment) -> subprocess.CompletedProcess:
    """Run `code` in a new interpreter whose working folder is `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


LOAD = """
import time
import clipadapt
time.sleep = lambda seconds: None  # between attempts
for model in {models}:
    try:
        clipadapt.load_clip(*model)
    except ConnectionError as error:
        print("could not fetch" in str(error) and "To work offline" in str(error))
"""


@pytest.mark.parametrize(
    "no_network",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "nobody answers"],
)
def test_no_network(tmp_path, no_network):
    models = [
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",),
    ]
    code = LOAD.format(models=models)
    answer = run_python(code, tmp_path, HF_HOME=str(tmp_path), **no_network)
    assert answer.stdout.split() == ["True", "True"], answer.stderr


def test_torchvision_that_does_not_fit(tmp_path):
    fake = tmp_path / "torchvision"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    answer = run_python(
        "from clipadapt import load_clip", tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert (
        "ImportError: torchvision" in answer.stderr
        and "does not fit torch" in answer.stderr
    )


def test_local_directory_without_weights(tmp_path):
    shutil.copy(builtin_directory() / "open_clip_config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="open_clip_model.safetensors"):
        load_clip(f"local-dir:{tmp_path}")


def test_local_directory_with_damaged_weights(tmp_path):
    shutil.copytree(builtin_directory(), tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="weights are damaged, get them again"):
        load_clip(f"local-dir:{tmp_path / 'model'}")


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.zeros(2)}, [1, 2], None],
    ids=["other names", "a list", "an empty file"],
)
def test_checkpoint_of_something_else(tmp_path, content):
    (tmp_path / "other.pt").touch()
    if content is not None:
        torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not hold weights for ViT-B-32"):
        load_clip("ViT-B-32", pretrained=str(tmp_path / "other.pt"))


def test_checkpoint_that_runs_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="harmful.pt does not hold weights"):
        load_clip("ViT-B-32", pretrained=str(tmp_path / "harmful.pt"))
    assert not (tmp_path / "harmed").exists()


def test_builtin_is_expanded_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    expected = load_clip().fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [
        builtin_directory().name
    ]
    assert sorted(path.name for path in builtin_directory().iterdir()) == [
        "hashes.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    written = os.stat(builtin_directory() / "open_clip_model.safetensors").st_mtime_ns
    assert load_clip().fingerprint == expected
    assert (
        os.stat(builtin_directory() / "open_clip_model.safetensors").st_mtime_ns
        == written
    )


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_config.json", "hashes.json"]
)
def test_damaged_cache_is_made_again(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    expected, path = load_clip().fingerprint, builtin_directory() / name
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(whole), size=7):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        assert load_clip().fingerprint == expected and path.read_bytes() == whole
    path.write_bytes(whole[:100])
    assert load_clip().fingerprint == expected and path.read_bytes() == whole
    path.unlink()
    assert load_clip().fingerprint == expected and len(list(tmp_path.iterdir())) == 1


NO_ENTRY = """
import pwd

def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = getpwuid
"""


WITHOUT_HOME = (
    NO_ENTRY
    + """
import os, tempfile, clipadapt
from clipadapt.clip.model import _temporary_cache, cache_directory

tempfile.tempdir = None  # it is looked for once
clipadapt.load_clip(), clipadapt.load_clip()
print(cache_directory())
os.environ["CLIPADAPT_CACHE"] = "~/cache"
print(cache_directory())
os.chmod(cache_directory(), 0o777)
_temporary_cache.cache_clear()
cache_directory()
"""
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such list")
def test_without_a_home_folder_and_without_an_entry_in_the_list_of_users(
    tmp_path, monkeypatch
):
    """As in many containers: the cache goes to a private folder, with one warning; one
    that others can write is refused."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "CLIPADAPT_CACHE") and not name.startswith("XDG")
    }
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    kept |= {"TMPDIR": str(tmp_path)}
    process = Process(tmp_path, run_code, WITHOUT_HOME, (), environment=kept)
    _, printed, errors = process.end()
    private = tmp_path / f"clipadapt-{os.getuid()}"
    assert (
        printed.split() == [str(private)] * 2
        and any(private.iterdir())
        and not (tmp_path / "here" / "~").exists()
    ), errors
    assert errors.count("there is no home folder") == 1
    assert "OSError" in errors and "is not a private folder" in errors.splitlines()[-1]


def test_the_cache_folder_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPADAPT_CACHE", "here")
    assert cache_directory() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLIPADAPT_CACHE", "~/there")
    assert cache_directory() == tmp_path / "home" / "there"


def test_a_local_model_is_remembered_by_its_absolute_path(tmp_path, monkeypatch):
    shutil.copytree(builtin_directory(), tmp_path / "home" / "model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    for name in ("model", "./model", "~/model", f"{tmp_path}/home/model"):
        clip = load_clip(f"local-dir:{name}")
        assert (
            clip.name == f"local-dir:{tmp_path / 'home' / 'model'}"
            and clip.pretrained is None
        )


def test_weights_of_a_file_are_remembered_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "clipadapt.clip.model._open_architecture",
        lambda *model: (load_clip().model, None, None),
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").touch()
    assert load_clip("ViT-B-32", "weights.pt").pretrained == str(
        tmp_path / "weights.pt"
    )
    assert load_clip("ViT-B-32", "openai").pretrained == "openai"


def test_another_process_was_faster(tmp_path):
    with whole_directory(tmp_path / "model") as draft:
        (draft / "mine").touch()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed twice"])
def test_nothing_is_lost_when_a_folder_cannot_be_renamed(
    tmp_path, monkeypatch, exchange
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    rename = Path.rename

    def locked(path, target):
        if (path / "new").exists():
            raise PermissionError("locked")
        return rename(path, target)

    def refuse(first, second):
        if exchange:
            raise PermissionError("locked")
        return False

    monkeypatch.setattr(Path, "rename", locked)
    monkeypatch.setattr(files, "_exchange", refuse)
    with (
        pytest.raises(PermissionError, match="locked"),
        whole_directory(tmp_path / "model", replace=True) as draft,
    ):
        (draft / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    """An administrator could: `--out /dev/null` would end /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused = pytest.raises(OSError, match="is a device or a pipe, not a file")
    with refused, whole_file(pipe) as draft:
        draft.write_text("a,b")
    assert pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]


def test_files_have_the_permissions_of_new_files(saved, tmp_path):
    (tmp_path / "ordinary").touch()
    with whole_file(tmp_path / "weights.safetensors") as draft:
        save_file({"weight": torch.zeros(1)}, draft)
    expected = (tmp_path / "ordinary").stat().st_mode
    assert {
        path.stat().st_mode
        for path in [tmp_path / "weights.safetensors", *saved[1].iterdir()]
    } == {expected}


def test_two_processes_expand_at_once(tmp_path):
    code = "import clipadapt; print(clipadapt.load_clip().fingerprint)"
    cache = tmp_path / "cache"
    both = [program(tmp_path, code, CLIPADAPT_CACHE=str(cache)) for _ in range(2)]
    prints = {process.finish()[0] for process in both}
    assert len(prints) == 1 and prints != {""} and len(list(cache.iterdir())) == 1


@pytest.fixture
def saved(tmp_path):
    model = ZeroShot(load_clip(), digits("test").classnames).fit(
        digits("test").subset(range(3))
    )
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.mark.parametrize("name", ["model/notes.txt", "photos/cat.jpg", "photos"])
def test_save_refuses_a_place_with_other_things(saved, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        saved[0].save(tmp_path / name.split("/")[0])
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"12345", b"{}"])
def test_load_refuses_a_damaged_method(saved, content):
    (saved[1] / "adapter.safetensors").write_bytes(content)
    with pytest.raises(
        ValueError, match="adapter.safetensors is damaged.*save it again"
    ):
        ZeroShot.load(saved[1])
    (saved[1] / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no saved method"):
        ZeroShot.load(saved[1])


class Keeping(ZeroShot):
    """A method that may keep anything: it declares nothing."""


def test_arrays_come_back_as_they_were(saved):
    model = Keeping(load_clip(), digits("test").classnames).fit(
        digits("test").subset(range(3))
    )
    model.scalar_, model.list_ = np.array(0.5, np.float32), [1, "two", None]
    model.save(saved[1])
    loaded = Keeping.load(saved[1])
    assert (
        loaded.scalar_.shape == ()
        and loaded.scalar_ == 0.5
        and loaded.list_ == [1, "two", None]
    )
    model.tensor_ = torch.zeros(2)
    with pytest.raises(ValueError, match="tensor_.*cannot be saved"):
        model.save(saved[1])


def test_save_refuses_a_parameter_that_json_cannot_hold(saved, tmp_path):
    saved[0].set_params(templates=object())
    with pytest.raises(ValueError, match="templates=.*cannot be saved"):
        saved[0].save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_load_refuses_a_newer_format_and_another_method(saved):
    with pytest.raises(ValueError, match="holds a 'ZeroShot', not a Keeping"):
        Keeping.load(saved[1])
    header = {"clipadapt": '{"format": 99, "clipadapt": "9.0", "more": []}'}
    safetensors.numpy.save_file({}, saved[1] / "adapter.safetensors", metadata=header)
    with pytest.raises(ValueError, match=r"newer clipadapt \(.9.0.\).*please upgrade"):
        ZeroShot.load(saved[1])


def test_a_damaged_image_is_named_when_predicting(saved, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(ValueError, match="broken.jpg"):
        saved[0].predict([path])


def test_one_damaged_image_among_many_is_skipped_and_counted(tmp_path):
    test = digits("test")
    for i in range(12):
        (tmp_path / test.classnames[test.labels[i]]).mkdir(exist_ok=True)
        test[i][0].save(tmp_path / test.classnames[test.labels[i]] / f"{i}.png")
    (tmp_path / "seven" / "bad.png").parent.mkdir(exist_ok=True)
    (tmp_path / "seven" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.warns(UserWarning, match="1 of 13 images skipped:\n.*bad.png"):
        images = ImageSet.from_folder(tmp_path, test.classnames)
    assert len(images) == 12 and images.skipped[0][0].endswith("bad.png")
    model = ZeroShot(load_clip(), test.classnames).fit(images)
    assert model.score(images) == model.score(test.subset(range(12)))


RAMP = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))
GREY = Image.fromarray(RAMP)
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.mark.parametrize(
    "name, image, options",
    [
        ("grey.png", GREY, {}),
        ("palette.png", GREY.convert("P"), {}),
        ("palette.gif", GREY.convert("P"), {}),
        ("alpha.png", GREY.convert("RGBA"), {}),
        ("grey and alpha.png", GREY.convert("LA"), {}),
        ("four inks.jpg", GREY.convert("CMYK"), {"quality": 95}),
        ("deep.png", Image.fromarray(RAMP.astype(np.uint16) * 257), {}),
        ("deep.tif", Image.fromarray(RAMP.astype(np.uint16) * 257), {}),
        ("float.tif", Image.fromarray(RAMP.astype(np.float32) / 255), {}),
        (
            "lying.jpg",
            GREY.transpose(Image.Transpose.ROTATE_90),
            {"exif": EXIF, "quality": 95},
        ),
        ("colour.webp", GREY.convert("RGB"), {"lossless": True}),
    ],
)
def test_files_of_every_kind_become_the_same_picture(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    read = read_image(tmp_path / name)
    assert read.mode == "RGB" and read.size == (32, 24)
    assert np.abs(np.asarray(read, int).mean(2) - RAMP).mean() < 4


def test_one_bit_files_stay_black_and_white(tmp_path):
    Image.fromarray(RAMP > 127).save(tmp_path / "bits.png")
    assert np.array_equal(
        np.asarray(read_image(tmp_path / "bits.png"))[..., 0],
        np.where(RAMP > 127, 255, 0),
    )
