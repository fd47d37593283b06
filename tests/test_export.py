"""Every method as a file: what it answers, where it runs, what is in it, and what is
refused."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from click.testing import CliRunner
from conformance.cases import CASES
from open_clip.model import CLIP as OpenCLIP
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tiny_models import TEXT, TINY, VISION, tiny
from torch import nn
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Resize,
    ToTensor,
)

from clipadapt import (
    CLIP,
    Adapter,
    CoReg,
    ImageSet,
    NearestNeighbours,
    Prototypes,
    ZeroShot,
    ZLaP,
    digits,
    load_clip,
)
from clipadapt.app.cli import main
from clipadapt.learning import export
from clipadapt.learning.export import (
    Answer,
    Picture,
    Session,
    beside_of,
    picture_of,
    prepared,
)

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["a heron", "a kite", "a lark", "an owl"]
STUDENT = {"options": {"width": 4, "depth": [1]}, "views": 2, "image_size": 8}
QUICK = {
    "CoReg, resnet": STUDENT,
    "CoReg, as for EuroSAT": {
        "options": {"width": 4, "depth": [1], "preactivation": True, "stride": 2},
        "templates": "single",
        "image_size": 16,
    },
    "CoReg, head": {"templates": "single", "views": 2},
    "CoReg, clip": {"templates": "single", "views": 1},
    "LPCLIP": {"templates": "single"},
    "LPCLIP, new views": {"templates": "single"},
    "LatteCLIP": {"templates": "single"},
    "LatteCLIP, captions": {"templates": "single"},
    "InMaP": {"steps": 20},
    "EMDirichlet": {
        "iterations": 2,
        "steps": 20,
        "complexity_weight": 0.0,
        "scale": 60,
    },
}
# Whose network is that of another case, with other numbers: PyTorch alone is asked.
SAME = re.compile(r"((IFPL|GRIP|CPL), (visual|multi)|.*(captions|new views|half)).*")


class _Patches(nn.Module):
    """An image tower as small as can be, so that its graph is made in no time."""

    def __init__(self):
        super().__init__()
        self.image_size = 32
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.last = nn.Linear(128, 16)

    def forward(self, pixels):
        return self.last(self.patches(pixels).relu().flatten(1))


def _one_block():
    model = OpenCLIP(16, {**VISION, "layers": 1}, {**TEXT, "layers": 1})
    open_clip.set_model_preprocess_cfg(
        model, {"mean": (0.3, 0.3, 0.3), "std": (0.33, 0.33, 0.33)}
    )
    return model


@pytest.fixture(scope="module")
def whole():
    """A vision transformer of one block."""
    clip = tiny(_one_block, seed=1)
    clip.model.visual.conv1.weight.data *= 20  # else all images look alike to it
    return clip


@pytest.fixture(scope="module")
def small(whole):
    """The same with a smaller tower, for methods that leave it as it is."""
    model = _one_block()
    model.load_state_dict(whole.model.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.visual = _Patches()
    return CLIP(model, whole.preprocess, whole.tokenizer)


def noise(width, height, seed=0):
    """Smooth noise in a colour of its own, which even a random tower sees."""
    rng, small = (
        np.random.default_rng(seed),
        (max(1, height // 3), max(1, width // 3), 3),
    )
    pixels = rng.integers(0, 256, small) * rng.uniform(0, 1, 3)
    pixels = pixels.astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pool():
    labels = np.arange(24) % len(NAMES)
    images = [noise(32 + seed % 5, 32 + seed % 3, seed) for seed in range(24)]
    return ImageSet(images, NAMES, labels)


@pytest.fixture(scope="module")
def asked():
    """Photographs of every proportion, one of them of the model's size."""
    sizes = (32, 32), (70, 45), (45, 61), (20, 25)
    return [noise(*size, seed=50 + k) for k, size in enumerate(sizes)]


def arrays(images):
    return [np.array(image)[None] for image in images]


def fitted(name, clip, pool, **changed):
    case = CASES[name]
    params = {**case.params, **QUICK.get(name, {}), **changed}
    labels = None
    if case.labelled != "none":
        labels = np.where(np.arange(len(pool)) < 8, pool.labels, -1)
        if case.labelled == "some classes":
            labels[labels == 3] = -1
    said = {}
    if case.captions:
        texts = [f"a bird with {number % 5} spots" for number in range(len(pool))]
        said = {"captions": {"image": texts, "group": texts[::-1]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return case.method(clip, pool.classnames, **params).fit(pool, labels, **said)


def keeps_the_tower(name):
    method, params = CASES[name].method, CASES[name].params
    if params.get("prompt", "textual") != "textual" or params.get("student") == "clip":
        return False
    return method.__name__ not in ("LatteCLIP", "FLYP", "ReCLIP")


def by_torch(method, images):
    """What the network of a method answers, and the pixels that it reads."""
    answer = Answer(method._picture(), method._network()).eval()
    with torch.no_grad():
        return np.concatenate([answer(torch.from_numpy(one)) for one in images])


@pytest.mark.parametrize("name", CASES)
def test_every_method_answers_the_same_as_a_file(
    whole, small, pool, asked, tmp_path, name
):
    """Pixels of the model's size in a file of onnxruntime; photographs of any size in
    the network that the file is made from (how it resizes has tests of its own)."""
    few = pool.subset(range(12 if "prompt" in CASES[name].params else 24))
    method = fitted(name, small if keeps_the_tower(name) else whole, few)
    expected = method.predict_proba(asked)
    assert np.ptp(expected, 0).max() > 1e-3, "all images get the same answer"
    assert np.abs(by_torch(method, arrays(asked)) - expected).max() < 1e-4
    if SAME.fullmatch(name):
        return
    path = method.export(tmp_path / "method.onnx", resize=False)
    picture = method._picture()
    pixels = np.stack([prepared(image, picture) for image in asked])
    session = onnxruntime.InferenceSession(path.read_bytes())
    for count in (len(asked), 1):
        (answers,) = session.run(None, {"images": pixels[:count]})
        assert answers.dtype == np.float32
        assert np.abs(answers - expected[:count]).max() < 1e-4


def test_what_is_said_to_be_the_same_network_is():
    """A case is left out of onnxruntime only beside one of the same classes."""
    left_out = [name for name in CASES if SAME.fullmatch(name)]
    assert len(left_out) >= 9
    for name in left_out:
        method, prompt = CASES[name].method, CASES[name].params.get("prompt")
        assert any(
            CASES[other].method._network is method._network
            and CASES[other].method._head is method._head
            and CASES[other].params.get("prompt") == prompt
            for other in set(CASES) - set(left_out)
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda clip: ZLaP(clip, NAMES, sparse=True, k=50),
        lambda clip: NearestNeighbours(clip, NAMES, k=100, per_class=2),
        lambda clip: Prototypes(clip, NAMES, per_class=3),
    ],
    ids=["ZLaP, sparse", "neighbours", "prototypes"],
)
def test_other_forms_of_a_head(small, pool, asked, tmp_path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = make(small).fit(pool)
    path = method.export(tmp_path / "method.onnx", resize=False)
    pixels = np.stack([prepared(image, picture_of(small)) for image in asked])
    answers = Session(path.read_bytes())(pixels)
    assert np.abs(answers - method.predict_proba(asked)).max() < 1e-4


def test_images_to_which_nothing_arrives_get_zero_shot_probabilities(small, pool):
    """All that ZLaP keeps lies on the other side of the sphere."""
    method = ZLaP(small, NAMES).fit(pool)
    features = small.encode_image(pool)
    head = method._head()
    head.text, head.features = -head.text, -features.mean(0, keepdim=True)
    head.scores = head.scores[: len(NAMES) + 1]
    cosines = small.logit_scale * features @ head.text.T
    lost = (features @ torch.cat([head.text, head.features]).T).amax(1) <= 0
    assert lost.any()
    expected = cosines[lost].softmax(1).clamp(min=1e-12)
    assert torch.allclose(head(features[lost]), expected, atol=1e-5)


# Resizing, and other preprocessings


SIZES = [(32, 32), (33, 32), (100, 60), (61, 100), (20, 11), (5, 7), (640, 333)]


@pytest.mark.parametrize("way", [InterpolationMode.BICUBIC, InterpolationMode.BILINEAR])
@pytest.mark.parametrize("squash", [False, True])
def test_photographs_are_resized_as_pillow_does_it(way, squash):
    """Rows first, and then columns; Pillow 13 begins with either."""
    size, pil = 32, getattr(Image.Resampling, way.name)
    picture = Picture((size, size), "squash" if squash else "crop", way.value)
    for width, height in SIZES:
        image = noise(width, height)
        scaled = [size * side // min(image.size) for side in image.size]
        scaled = [size, size] if squash else scaled
        in_turn = image.resize((scaled[0], height), pil).resize(scaled, pil)
        steps = [Resize((size, size) if squash else size, way), CenterCrop(size)]
        found = prepared(image, picture).astype(int)
        apart = np.abs(found - np.asarray(CenterCrop(size)(in_turn)))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.02, (width, height)
        assert np.abs(found - np.asarray(Compose(steps)(image))).max() <= 3


def test_a_resize_in_onnxruntime_for_batches_of_any_size(files, zero_shot):
    session = Session(files["onnx"].read_bytes())
    for (width, height), count in zip(SIZES, (1, 2, 3, 1, 2, 1, 2)):
        images = [noise(width, height, seed) for seed in range(count)]
        answers = session(np.concatenate(arrays(images)))
        assert np.abs(answers - zero_shot.predict_proba(images)).max() < 1e-4


def test_a_wide_picture_is_not_rounded_to_other_pixels():
    """A line of one bright pixel, eight thousand pixels wide."""
    pixels = np.zeros((4, 8000, 3), np.uint8)
    pixels[:, 4003] = 255
    image = Image.fromarray(pixels)
    picture = Picture((16, 16), "squash", "bilinear")
    expected = image.resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(prepared(image, picture) - np.asarray(expected, int)).max() <= 1


def test_a_preprocessing_of_another_kind_is_left_to_who_asks(small, pool, tmp_path):
    """A picture inside a frame: no graph resizes that, but the file says so."""
    normalise = small.preprocess.transforms[-1]
    lanczos = Resize((32, 32), InterpolationMode.LANCZOS)
    odd = CLIP(
        small.model,
        Compose([lanczos, ToTensor(), normalise]),
        small.tokenizer,
    )
    method = ZeroShot(odd, NAMES).fit(pool)
    path = method.export(tmp_path / "odd.onnx")
    described = json.loads(beside_of(path).read_text())["input"]
    assert described["resize"] == "before" and described["shape"][1:] == [32, 32, 3]
    image = noise(60, 40)
    answers = Session(path.read_bytes())(prepared(image, picture_of(odd))[None])
    assert np.abs(answers - method.predict_proba([image])).max() < 1e-4
    unknown = CLIP(small.model, lambda image: ToTensor()(image), small.tokenizer)
    method.clip = unknown
    with pytest.raises(ValueError, match="cannot be described"):
        method.export(tmp_path / "unknown.onnx")


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_image_tower(name, pool, asked):
    """As a network of PyTorch; benchmarks/export.py writes the files."""
    clip = tiny(TINY[name])
    method = ZeroShot(clip, NAMES).fit(pool)
    expected = method.predict_proba(asked)
    assert np.abs(by_torch(method, arrays(asked)) - expected).max() < 1e-4


def test_a_clip_in_bfloat16_is_exported_in_float32(whole, pool, tmp_path):
    """And stays what it was: nothing that is exported changes the model."""
    half = CLIP(whole.model, whole.preprocess, whole.tokenizer, precision="bf16")
    method = ZeroShot(half, NAMES).fit(pool)
    before = half.fingerprint
    head = Answer(method._picture(), method._network()).eval()
    assert {tensor.dtype for tensor in head.parameters()} == {torch.float32}
    assert half.fingerprint == before and half.model.training is False


# The files


@pytest.fixture(scope="module")
def zero_shot(small, pool):
    return ZeroShot(small, NAMES).fit(pool)


@pytest.fixture(scope="module")
def files(zero_shot, tmp_path_factory):
    """The same method as ONNX and as a program of PyTorch."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "onnx": zero_shot.export(folder / "birds.onnx"),
        "torch": zero_shot.export(folder / "birds.pt2"),
    }


def test_a_program_of_pytorch_answers_alone(files, zero_shot, asked):
    program = torch.export.load(files["torch"]).module()
    for image in asked:
        for count in (1, 3):
            pixels = np.repeat(np.asarray(image)[None], count, 0)
            answers = program(torch.from_numpy(pixels)).detach().numpy()
            expected = zero_shot.predict_proba([image] * count)
            assert np.abs(answers - expected).max() < 1e-4


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
    reason="an older torch.export.load reads whatever it is given with pickle",
)
def test_a_program_of_pytorch_needs_no_pickle(files, monkeypatch):
    """Whatever torch.load is asked for, it gets weights only."""
    load = torch.load

    def weights_only(*arguments, **options):
        assert options.get("weights_only") is not False
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", weights_only)
    torch.export.load(files["torch"])


def test_sizes_have_names(files):
    session = onnxruntime.InferenceSession(files["onnx"].read_bytes())
    (read,), (answer,) = session.get_inputs(), session.get_outputs()
    assert read.shape == ["batch", "height", "width", 3]
    assert answer.shape == ["batch", len(NAMES)]


def test_a_file_holds_nothing_of_this_machine(files):
    with zipfile.ZipFile(files["torch"]) as archive:
        program = b"".join(archive.read(name) for name in archive.namelist())
    for content in (files["onnx"].read_bytes(), program):
        for trace in (str(Path(export.__file__).parent), "site-packages", "export.py"):
            assert trace.encode() not in content


def test_a_program_of_pytorch_is_described_inside(files):
    extra = {"description.json": ""}
    torch.export.load(files["torch"], extra_files=extra)
    beside = json.loads(beside_of(files["torch"]).read_text())
    del beside["sha256"]
    assert json.loads(extra["description.json"]) == beside


def test_descriptions_inside_and_beside_are_the_same(files, zero_shot):
    path = files["onnx"]
    beside = json.loads(beside_of(path).read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert beside.pop("sha256") == digest
    meta = onnxruntime.InferenceSession(path.read_bytes()).get_modelmeta()
    inside = {
        name: value if name in ("format", "method", "license") else json.loads(value)
        for name, value in meta.custom_metadata_map.items()
    }
    assert inside == beside
    assert beside["classnames"] == NAMES and beside["method"] == "ZeroShot"
    assert beside["clip"]["fingerprint"] == zero_shot.clip.fingerprint


def test_a_path_to_a_model_does_not_leave_the_house(whole, pool, tmp_path):
    named = CLIP(
        whole.model, whole.preprocess, whole.tokenizer, name="local-dir:/home/me/secret"
    )
    method = ZeroShot(named, NAMES).fit(pool)
    facts = export.described(method, "onnx", Answer(method._picture(), nn.Identity()))
    assert "secret" not in json.dumps(facts)
    assert "your own CLIP" in facts["license"]


@pytest.fixture
def full_disk():
    """No file may be larger than 10,000 bytes."""
    resource = pytest.importorskip("resource", reason="needs a limit on files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    answers = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, answers)


def test_a_full_disk_is_one_sentence_and_the_earlier_file_stays(
    zero_shot, tmp_path, full_disk
):
    path = tmp_path / "birds.pt2"
    path.write_text("an earlier file")
    with pytest.raises(OSError) as caught:
        zero_shot.export(path, resize=False)
    assert str(caught.value).startswith(f"{path} cannot be written: it would be larger")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "an earlier file"
    assert list(tmp_path.iterdir()) == [path]


# What is refused


def test_what_cannot_be_exported_says_why(zero_shot, small, tmp_path, monkeypatch):
    for name, options, reason in (
        ("birds.tflite", {}, r'"onnx" \(.onnx\), "torch" \(.pt2\)'),
        ("birds.onnx", {"format": "torchscript"}, "torchscript"),
        ("birds.pt2", {"int8": True}, 'format="onnx" only'),
        ("birds.onnx", {"images": []}, "images are for int8"),
    ):
        with pytest.raises(ValueError, match=reason):
            zero_shot.export(tmp_path / name, **options)
    with pytest.raises(NotFittedError):
        clone(zero_shot).export(tmp_path / "birds.onnx")
    monkeypatch.setattr(export, "_LARGEST", 1000)
    with pytest.raises(ValueError, match='use format="torch"'):
        zero_shot.export(tmp_path / "birds.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'clipadapt[export]'")):
        zero_shot.export(tmp_path / "birds.onnx")
    assert not list(tmp_path.iterdir())


class Silent(Adapter):
    """A method that does not say how it answers as a network."""

    def _fit(self, images, labels):
        pass


def test_a_method_without_a_hook_says_which(small, pool, tmp_path):
    method = Silent(small, NAMES).fit(pool)
    with pytest.raises(ValueError, match="Silent does not say.*_head.*_network"):
        method.export(tmp_path / "silent.onnx")


def test_a_file_that_answers_otherwise_is_not_written(
    zero_shot, small, tmp_path, monkeypatch
):
    answer = export.Session.__call__
    wrong = lambda self, images: answer(self, images) + 2e-4
    monkeypatch.setattr(export.Session, "__call__", wrong)
    with pytest.raises(ValueError, match="off by 0.0002"):
        zero_shot.export(tmp_path / "birds.onnx", resize=False)
    broken = lambda self, content: 1 / 0
    monkeypatch.setattr(export.Session, "__init__", broken)
    with pytest.raises(ValueError, match="cannot run this method: division by zero"):
        zero_shot.export(tmp_path / "birds.onnx", resize=False)
    assert not list(tmp_path.iterdir())


class Unsure(torch.nn.Module):
    """Another answer for an image alone than for the same image in a batch."""

    def forward(self, pixels):
        return torch.full((len(pixels), 2), 0.5 + 0.1 * (len(pixels) == 1))


def test_a_method_that_depends_on_last_digits_is_told_so(zero_shot, monkeypatch):
    class Deaf:
        def __init__(self, content):
            pass

        def __call__(self, images):
            return np.full((len(images), 2), 0.5)

    monkeypatch.setattr(export, "Session", Deaf)
    answer = export.Answer(zero_shot._picture(), Unsure())
    with pytest.raises(ValueError, match="differ by 0.1 .*: fit it to more images"):
        export.check_file(b"", answer)


# Eight bits


@pytest.fixture(scope="module")
def student(clip):
    """Two convolutional networks of Co-Reg, and the handwriting."""
    images = digits("train").subset(range(96))
    params = {**STUDENT, "flip": False, "epochs": 3, "warmup_epochs": 2, "views": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CoReg(clip, images.classnames, **params).fit(images)


def test_students_together_and_one_alone(student, test_images, tmp_path):
    expected = student.predict_proba(test_images)
    path = student.export(tmp_path / "both.onnx", resize=False)
    pixels = np.concatenate(
        arrays([prepared(image, student._picture()) for image, _ in test_images])
    )
    both = Session(path.read_bytes())
    assert np.abs(both(pixels) - expected).max() < 1e-4
    logs = []
    for network in (0, 1):
        path = student.export(
            tmp_path / f"{network}.pt2", resize=False, network=network
        )
        one = torch.export.load(path).module()(torch.from_numpy(pixels))
        logs.append(one.detach().log())
    mean = (sum(logs) / 2).softmax(1).numpy()
    assert np.abs(mean - expected).max() < 1e-4
    with pytest.raises(ValueError, match=r"network must be 0, 1 or None"):
        student.export(tmp_path / "2.onnx", network=2)


class Counted(Sequence):
    """Photographs that say how many were asked for."""

    def __init__(self, images):
        self.images, self.count = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.count += 1
        return self.images[index]


def test_photographs_are_decoded_one_by_one_and_once(zero_shot, tmp_path, monkeypatch):
    """A list of a thousand photographs would fill the memory."""
    photographs, before = Counted([noise(40, 32, seed) for seed in range(3)]), []
    original = export.quantised

    def watched(*given):
        before.append(photographs.count)
        return original(*given)

    monkeypatch.setattr(export, "quantised", watched)
    monkeypatch.setattr(export, "_is_convolutional", lambda model: False)
    path = tmp_path / "int8.onnx"
    zero_shot.export(path, int8=True, images=ImageSet(photographs))
    assert before == [0] and photographs.count == 3


def test_int8_without_images_says_that_the_cost_is_unknown(zero_shot, tmp_path, capsys):
    def linear(model):
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_is_convolutional", linear)
        zero_shot.export(tmp_path / "int8.onnx", resize=False, int8=True)
    assert "not known without images=" in capsys.readouterr().out


def test_int8_of_a_convolutional_network(student, test_images, tmp_path, capsys):
    with pytest.raises(ValueError, match="pass images="):
        student.export(tmp_path / "int8.onnx", int8=True, resize=False, network=0)
    unlabelled = [image for image, _ in test_images]
    path = student.export(
        tmp_path / "int8.onnx", int8=True, images=unlabelled, resize=False, network=0
    )
    assert "accuracy" not in capsys.readouterr().out
    found = json.loads(beside_of(path).read_text())["int8"]
    assert found["kind"] == "static" and found["agreement"] >= 0.8
    assert "accuracy" not in found


def test_what_a_head_holds_is_not_rounded(small, pool, tmp_path, monkeypatch):
    """With a head of huge weights, eight bits would show in every answer."""
    method = ZeroShot(small, NAMES).fit(pool)
    monkeypatch.setattr(export, "_is_convolutional", lambda model: False)
    seen = []
    original = export.quantised

    def watched(model, heads, images):
        seen.extend(heads)
        return original(model, heads, images)

    monkeypatch.setattr(export, "quantised", watched)
    path = method.export(tmp_path / "int8.onnx", resize=False, int8=True)
    import onnx

    model = onnx.load(path)
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {tuple(tensor.dims) for tensor in kept.values() if tensor.data_type == 1}
    assert seen and (shapes & {(len(NAMES), 16), (16, len(NAMES))})


# Where nothing but onnxruntime is


def snippet(language):
    page = Path(__file__).parent.parent / "nbs" / "pages" / "export.md"
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return next(code for code in found if "InferenceSession" in code)


ALONE = """
import sys

ALLOWED = ("numpy", "PIL", "onnxruntime", "coloredlogs", "flatbuffers", "google")

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "clipadapt",
                                  "onnx", "onnxscript", "sklearn", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Only())
"""


def test_the_snippet_of_the_page_runs_with_onnxruntime_alone(
    files, zero_shot, tmp_path
):
    """In a process that can import numpy, Pillow and onnxruntime, and none of what made
    the file; the photograph lies on its side, as a phone writes it."""
    for file in (files["onnx"], beside_of(files["onnx"])):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    image, exif = noise(70, 45, seed=9), Image.Exif()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif[0x0112] = 6  # turn it by 90 degrees
    image.save(tmp_path / "photo.png", exif=exif)
    code = ALONE + snippet("python") + "\nassert 'torch' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = zero_shot.predict_proba([upright])[0]
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == [
        NAMES[place] for place in np.argsort(-expected)[: len(lines)]
    ]
    for name, share in lines:
        assert float(share) == pytest.approx(expected[NAMES.index(name)], abs=1e-3)


# The command


def run(*arguments):
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, given, prog_name="clipadapt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved method, and a folder of labelled images."""
    folder, images = tmp_path_factory.mktemp("saved"), digits("test").subset(range(20))
    for number, (image, label) in enumerate(images):
        place = folder / "new" / images.classnames[label]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    method = ZeroShot(load_clip(device="cpu"), images.classnames).fit(images)
    method.save(folder / "model")
    return folder, method, images


def test_a_file_at_home(zero_shot, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written = zero_shot.export("~/birds.pt2")
    assert written == tmp_path / "birds.pt2" and written.is_file()


def test_the_command_with_eight_bits_says_what_they_cost(saved, tmp_path):
    """Of the built-in transformer."""
    folder, method, images = saved
    given = ["export", "--saved", folder / "model", "--device", "cpu"]
    path = tmp_path / "int8.onnx"
    small = ["--no-resize", "--int8", "--images", folder / "new", "--out", path]
    done = run(*given, *small)
    assert done.exit_code == 0, done.output
    assert "int8.onnx.json" in done.output
    found = json.loads(beside_of(path).read_text())["int8"]
    assert found["kind"] == "dynamic" and found["labelled"] == found["images"] == 20
    assert found["accuracy"] == pytest.approx(method.score(images))
    assert found["agreement"] >= 0.9 and 0 < found["largest_difference"] < 0.3
    assert re.search(
        r"int8: 3(\.\d+)? MB -> 1(\.\d+)? MB; accuracy [\d.]+% -> [\d.]+% on 20"
        r" labelled images; the same class for [\d.]+% of 20 images\n",
        done.output,
    )
    assert path.stat().st_size < 1.7e6
    session = Session(path.read_bytes())  # rounds by what is in a batch: one at a time
    answers = [session(image) for image in arrays([one for one, _ in images])]
    apart = np.abs(np.concatenate(answers) - method.predict_proba(images)).max()
    assert apart == pytest.approx(found["largest_difference"], abs=1e-4)
    again = run(*given, "--out", path)
    assert again.exit_code == 1 and "is there already" in again.output


def test_the_command_and_what_it_refuses(saved, tmp_path):
    folder, method, images = saved
    given = ["export", "--saved", folder / "model", "--device", "cpu", "--out"]
    done = run(*given, tmp_path / "b.pt2", "--no-resize")
    assert done.exit_code == 0, done.output
    program = torch.export.load(tmp_path / "b.pt2").module()
    pixels = np.concatenate(arrays([image for image, _ in images]))
    answers = program(torch.from_numpy(pixels)).detach().numpy()
    assert np.abs(answers - method.predict_proba(images)).max() < 1e-4
    for wrong, reason in (
        (["c.txt"], "ends in .onnx or .pt2"),
        (["c.onnx", "--images", tmp_path], "goes with --int8"),
        (["c.pt2", "--int8"], 'format="onnx" only'),
    ):
        done = run(*given, tmp_path / wrong[0], *wrong[1:])
        assert done.exit_code in (1, 2) and reason in done.output
