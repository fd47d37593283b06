"""CoReg: losses against loops over hundreds of random batches, half precision, killed
and resumed fits, students, exports, and bad input."""

import json
import math
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import program
from sklearn.base import clone

from clipadapt import CoReg, ImageSet, Prototypes, digits
from clipadapt.clip import templates
from clipadapt.images import views
from clipadapt.learning import students, training
from clipadapt.learning.pseudolabels import top_k_candidates
from clipadapt.learning.testing import check_adapter
from clipadapt.methods import coreg as module
from clipadapt.methods.coreg import Queue

COUNT = 48
SHORT = {
    "image_size": 8,
    "flip": False,
    "options": {"width": 4, "depth": [1, 1]},
    "views": 2,
    "epochs": 4,
    "warmup_epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.05,
    "ramp": 1,
    "delay": 0,
    "queue": 40,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


def bits(method):
    return [
        array.tobytes()
        for array in (
            method.weights_,
            method.losses_,
            method.clean_,
            method.candidates_,
        )
    ], method.history_


def one_hot(classes, count=10):
    return np.eye(count, dtype=bool)[classes]


# The losses, one image and one pair at a time.


@st.composite
def batches(draw):
    """Probabilities [B, C] (some exactly 0 or 1), candidate sets (some empty, some
    full), flags and classes."""
    count, width = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    probabilities = (
        draw(st.sampled_from([0.1, 1.0, 30.0]))
        * torch.randn(count, width, generator=generator)
    ).softmax(1)
    candidates = torch.rand(count, width, generator=generator) < draw(
        st.sampled_from([0.0, 0.4, 1.0])
    )
    clean = torch.rand(count, generator=generator) < draw(
        st.sampled_from([0.0, 0.5, 1.0])
    )
    return (
        probabilities,
        candidates,
        clean,
        torch.randint(width, (count,), generator=generator),
        generator,
    )


@given(batches())
def test_losses_of_the_warm_up_and_of_the_split(batch):
    probabilities, candidates, _, _, _ = batch
    width = probabilities.shape[1]
    rows = [row for row, mask in zip(probabilities, candidates) if mask.sum() < width]
    masks = [mask for mask in candidates if mask.sum() < width]
    by_hand = sum(
        -math.log(row[mask].sum().item() + 1e-5) for row, mask in zip(rows, masks)
    ) / max(1, len(rows))
    assert module.partial_cross_entropy(
        probabilities, candidates
    ).item() == pytest.approx(by_hand, rel=1e-4, abs=1e-4)
    entropy = sum(
        p * math.log(max(p, 1e-7)) for row in probabilities.tolist() for p in row
    ) / len(probabilities)
    assert module.confidence_penalty(probabilities).item() == pytest.approx(
        entropy, rel=1e-4, abs=1e-5
    )
    best = [
        -math.log(
            max([p for p, is_candidate in zip(row, mask) if is_candidate] + [1e-7])
        )
        for row, mask in zip(probabilities.tolist(), candidates.tolist())
    ]
    assert module.best_candidate_loss(
        probabilities, candidates
    ).tolist() == pytest.approx(best, rel=1e-4, abs=1e-4)


@given(batches())
def test_losses_of_self_training(batch):
    probabilities, _, clean, _, generator = batch
    logits = 3 * torch.randn(probabilities.shape, generator=generator)
    own, width = logits.softmax(1), logits.shape[1]
    supervised = [
        -sum(t * math.log(p) for t, p in zip(*pair))
        for pair, c in zip(zip(probabilities.tolist(), own.tolist()), clean)
        if c
    ]
    errors = [
        sum((t - p) ** 2 for t, p in zip(*pair)) / width
        for pair, c in zip(zip(probabilities.tolist(), own.tolist()), clean)
        if not c
    ]
    found = [
        value.item()
        for value in module.self_training_losses(logits, probabilities, clean)
    ]
    assert found == pytest.approx(
        [sum(part) / max(1, len(part)) for part in (supervised, errors)],
        rel=1e-4,
        abs=1e-4,
    )


@given(batches(), st.floats(0, 1))
def test_prototypes_move_as_one_by_one(batch, momentum):
    probabilities, _, clean, classes, generator = batch
    bank, embeddings = (
        torch.randn(probabilities.shape[1], 5, generator=generator),
        F.normalize(torch.randn(len(classes), 5, generator=generator), dim=1),
    )
    moved = module.update_prototype_bank(
        bank, embeddings[clean], classes[clean], momentum
    )
    for c in range(len(bank)):
        expected = bank[c].clone()
        for embedding in embeddings[clean & (classes == c)]:
            expected = momentum * expected + (1 - momentum) * embedding
        here = bool((clean & (classes == c)).any())
        assert torch.allclose(
            moved[c], F.normalize(expected, dim=0) if here else bank[c], atol=1e-4
        )


@settings(max_examples=50)
@given(batches(), st.integers(0, 7))
def test_contrast_pair_by_pair(batch, queued):
    _, _, clean, classes, generator = batch
    count = len(classes)
    queries, embeddings, old = (
        F.normalize(torch.randn(n, 6, generator=generator), dim=1)
        for n in (count, count, queued)
    )
    queue = Queue(
        old,
        torch.randint(3, (queued,), generator=generator),
        torch.rand(queued, generator=generator) < 0.5,
    )
    keys = Queue(embeddings, classes, clean)
    everything, everyone, flags = (
        torch.cat([queries, embeddings, old]),
        torch.cat([classes, classes, queue.classes]),
        torch.cat([clean, clean, queue.clean]),
    )
    total = 0.0
    for i in range(count):
        inside, positive = [], []
        for j in range(len(everything)):
            same, trusted, own_key = (
                bool(classes[i] == everyone[j]),
                bool(clean[i] and flags[j]),
                j == count + i,
            )
            if j == i or (same and not trusted and not own_key):
                continue
            inside.append((queries[i] @ everything[j]).item() / 0.07)
            if same or own_key:
                positive.append(inside[-1])
        total += math.log(sum(math.exp(value) for value in inside)) - sum(
            positive
        ) / len(positive)
    assert module.noisy_contrastive(queries, keys, queue).item() == pytest.approx(
        total / count, rel=1e-3, abs=1e-3
    )


@given(batches())
@settings(max_examples=30)
def test_half_precision_is_always_finite(batch):
    probabilities, candidates, clean, classes, generator = batch
    for kind in (torch.float16, torch.bfloat16):
        p = probabilities.to(kind)
        embeddings = F.normalize(torch.randn(len(p), 8, generator=generator), dim=1).to(
            kind
        )
        bank = module.update_prototype_bank(
            torch.zeros(p.shape[1], 8), embeddings, classes
        )
        values = [
            module.partial_cross_entropy(p, candidates),
            module.confidence_penalty(p),
            module.best_candidate_loss(p, candidates),
            module.sharpen(p),
            module.align_distribution(p, p.float().mean(0)),
            *module.self_training_losses(100 * p, probabilities, clean),
            bank,
            module.prototype_alignment(embeddings, bank, probabilities, clean),
            module.noisy_contrastive(
                embeddings,
                Queue(embeddings.float(), classes, clean),
                Queue(embeddings[:0].float(), classes[:0], clean[:0]),
            ),
        ]
        assert all(
            value.isfinite().all() and value.dtype == torch.float32 for value in values
        )


# The contract, and every way to fit.


def test_contract(clip):
    check_adapter(CoReg, clip, **{**SHORT, "epochs": 2, "warmup_epochs": 1})


VARIANTS = [
    {"co_pseudolabels": False},
    {"alignment": False},
    {"mixup": 0},
    {"prototypes": 0},
    {"contrast": 0},
    {"prototypes": 0, "contrast": 0},
    {"confidence_penalty": 0},
    {"unlabelled_weight": 0},
    {"views": None},
    {"views": 1},
    {"annotation": "top-k", "k": 2},
    {"annotation": "ratio"},
    {"annotation": "mean"},
    {"annotation": "prototypes", "k": 2},
    {"prior": [1] * 9 + [2]},
    {"queue": 0},
    {"warmup_epochs": 9},
    {"batch_size": 1000},
    {"batch_size": 1},
    {"templates": "single"},
]


def without_address(params) -> str:
    """A test's name: two processes have to agree on it, but not on where functions
    lie."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(params))


@pytest.mark.parametrize("params", VARIANTS, ids=without_address)
def test_every_part_can_be_switched_off(clip, images, test_images, params):
    method = CoReg(
        clip, images.classnames, **{**SHORT, "epochs": 3, "warmup_epochs": 1, **params}
    ).fit(images.subset(range(24)))
    probabilities = method.predict_proba(test_images)
    assert np.isfinite(probabilities).all() and np.allclose(
        probabilities.sum(1), 1, atol=1e-4
    )
    assert len(method.history_) == 3 and all(
        math.isfinite(record["loss"]) for record in method.history_
    )
    assert 0 <= method.clean_.min() <= method.clean_.max() <= 1


def test_switched_off_parts_change_the_result(clip, images):
    results = {
        str(params): CoReg(
            clip,
            images.classnames,
            **{**SHORT, "epochs": 3, "warmup_epochs": 1, **params},
        )
        .fit(images)
        .weights_.tobytes()
        for params in [{}, *VARIANTS[:5]]
    }
    assert len(set(results.values())) == len(results)


def logits_only(num_classes):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes)
    )


@pytest.mark.parametrize(
    "params",
    [
        {"student": "head"},
        {"student": "clip", "warmup_epochs": 1},
        {"student": logits_only, "image_size": 8},
        {"image_size": None, "options": {"width": 16}},
    ],
    ids=without_address,
)
def test_students(clip, images, test_images, tmp_path, params):
    params = {
        **SHORT,
        "student": "resnet",
        "options": None,
        "image_size": None,
        "views": 1,
        "epochs": 2,
        "warmup_epochs": 1,
        **params,
    }
    is_large = params["student"] == "resnet"  # it takes the size of the images
    few = images.subset(range(3 if is_large else 12))
    method = CoReg(clip, images.classnames, **params).fit(few)
    some = test_images.subset(range(5))
    expected = method.predict_proba(some)
    if callable(method.student):
        with pytest.raises(ValueError, match="student=.* cannot be saved"):
            method.save(tmp_path / "model")
    else:
        method.save(tmp_path / "model")
        assert np.array_equal(
            CoReg.load(tmp_path / "model", clip).predict_proba(some), expected
        )
    if method.student != "resnet":
        assert method.score(images) > 0.1
    both = []
    for network in (0, 1):
        path = method.export(tmp_path / f"student{network}.pt2", network=network)
        both.append(run_program(path, some))
    logs = np.mean(
        [np.log(answer) for answer in both], 0
    )  # both together are predict_proba
    assert np.allclose(
        np.exp(logs) / np.exp(logs).sum(1, keepdims=True), expected, atol=1e-5
    )


def run_program(path, images):
    pixels = np.stack([np.asarray(image) for image, _ in images])
    program = torch.export.load(path).module()
    return program(torch.from_numpy(pixels)).detach().numpy()


def photographs(count, width, height, seed=0):
    """Noise, smooth enough to survive a resize."""
    noise = np.random.default_rng(seed).integers(
        0, 256, (count, height // 6, width // 6, 3), dtype=np.uint8
    )
    return ImageSet(
        [
            Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC)
            for each in noise
        ]
    )


def test_an_exported_student_works_alone_from_its_description(
    clip, images, test_images, tmp_path
):
    """Without the resize in the file: what the description says is done by Pillow."""
    method = CoReg(clip, images.classnames, **SHORT).fit(images)
    method.export(tmp_path / "small.pt2", resize=False)
    described = json.loads((tmp_path / "small.pt2.json").read_text())["input"]
    assert described["preprocessing"] == (
        "resize the shorter side to 8 pixels (bicubic, antialiased), then cut 8 x 8"
        " pixels out of the middle"
    )
    shown = ImageSet(
        [
            image
            for image, _ in [
                *test_images,
                *photographs(4, 60, 42),
                *photographs(4, 37, 60),
            ]
        ]
    )
    expected = method.predict_proba(shown)
    for i, (image, _) in enumerate(shown):
        image.save(tmp_path / f"{i:02}.png")
    code = """
import json, sys
import numpy as np, torch
from PIL import Image
facts = json.load(open("small.pt2.json"))
size, pixels = facts["input"]["shape"][2], []
for i in range(28):
    image = Image.open(f"{i:02}.png").convert("RGB")
    width, height = (size * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels.append(np.asarray(image.crop((left, top, left + size, top + size))))
answers = torch.export.load("small.pt2").module()(torch.from_numpy(np.stack(pixels)))
assert answers.shape == (28, len(facts["classnames"]))
assert "clipadapt" not in sys.modules
np.save("answers.npy", answers.detach().numpy())
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert np.allclose(np.load(tmp_path / "answers.npy"), expected, atol=1e-5)


# What students see: sizes, proportions, views, and the memory that they take.


def test_the_size_of_a_student_comes_from_headers(tmp_path):
    paths = []
    for number, size in enumerate([(29, 30), *[(80, 60)] * 4]):
        path = tmp_path / f"{number}.png"
        photographs(1, *size)[0][0].save(path)
        path.write_bytes(path.read_bytes()[:60])  # a header, and nothing to decode
        paths.append(path)
    images = ImageSet(paths)
    assert (
        students.student_size(images) == 64
        and students.student_size(images.subset([0])) == 29
    )
    assert students.student_size(ImageSet([np.zeros((20, 24, 3), np.uint8)])) == 20
    assert students.student_size(photographs(3, 60, 90).view(views.weak_view(12))) == 12
    with pytest.raises(FileNotFoundError, match="no such image file"):
        students.student_size(ImageSet([tmp_path / "missing.png"]))


def test_large_images_make_no_larger_network(clip, tmp_path):
    images = photographs(6, 96, 64)
    method = CoReg(
        clip, ["a", "b"], options={"width": 2}, views=1, epochs=1, warmup_epochs=1
    ).fit(images)
    assert method.image_size_ == 64
    network = method._students[0].network
    assert network.body(torch.rand(1, 3, 64, 64)).shape == (1, 16)
    method.save(tmp_path / "model")
    assert np.array_equal(
        CoReg.load(tmp_path / "model", clip).predict_proba(images),
        method.predict_proba(images),
    )
    method.image_size_ = 48
    with pytest.raises(ValueError, match="image_size_ is 48"):
        method._check_loaded()


def disc(width, height):
    """A white disc in the middle of a black picture."""
    down, across = np.mgrid[:height, :width]
    inside = np.hypot(across - (width - 1) / 2, down - (height - 1) / 2) < 0.3 * min(
        width, height
    )
    return Image.fromarray((255 * inside).astype(np.uint8)).convert("RGB")


def proportions(pixels):
    """Width by height of what is white, of pictures [..., S, S, 3]."""
    white = pixels[..., 0] > 127
    return white.any(-2).sum(-1) / white.any(-1).sum(-1)


@pytest.mark.parametrize(
    "student, squash",
    [("resnet", False), ("resnet", True), ("clip", False), ("clip", True)],
)
@pytest.mark.parametrize("augmentation", ["crops", "published"])
def test_students_train_and_predict_on_the_same_proportions(
    clip, monkeypatch, student, squash, augmentation
):
    monkeypatch.setattr(type(clip), "squashes", squash)
    images = ImageSet([disc(150, 100)] * 30)
    method = CoReg(
        clip, ["a", "b"], student=student, views=2, augmentation=augmentation
    )
    method.image_size_ = 64
    expected = 100 / 150 if squash and student == "clip" else 1
    weak = method._new_views(images, 2).take(
        torch.ones(30, dtype=torch.int64), torch.arange(30)
    )
    assert np.median(proportions(weak)) == pytest.approx(expected, abs=0.06)
    read = torch.cat(list(method._inputs(images)))
    assert torch.equal(
        read,
        method._new_views(images).take(
            torch.zeros(30, dtype=torch.int64), torch.arange(30)
        ),
    )
    assert proportions(read[0]).item() == pytest.approx(expected, abs=0.05)


def test_a_head_sees_what_its_clip_reads(clip, monkeypatch):
    monkeypatch.setattr(type(clip), "squashes", True)
    method = CoReg(clip, ["a", "b"], student="head", views=1)
    method.image_size_ = clip.image_size
    images = ImageSet([disc(150, 100)] * 4)
    weak = images.view(views.weak_view(clip.image_size, squash=True), seed=0)
    assert torch.equal(method._new_views(images, 1).tensor[1], clip.encode_image(weak))


DRAWN = [
    {},
    {"views": None},
    {"augmentation": "published", "split_views": "weak"},
    {"student": "clip", "options": None, "image_size": None, "views": 1},
    {"student": logits_only, "options": None},
]


@pytest.mark.parametrize("params", DRAWN, ids=without_address)
def test_views_that_are_drawn_train_the_same_bits(clip, images, params):
    params = {**SHORT, "epochs": 3, "warmup_epochs": 2, **params}
    few = images.subset(range(24))
    stored = CoReg(clip, images.classnames, **params).fit(few)
    with pytest.warns(
        UserWarning, match="24 images.* would take .* GB, more than view_memory"
    ):
        drawn = CoReg(clip, images.classnames, view_memory=0, **params).fit(few)
    assert bits(stored) == bits(drawn)


def test_drawn_features_train_the_same_head(clip, images):
    params = {
        **SHORT,
        "student": "head",
        "options": None,
        "epochs": 3,
        "warmup_epochs": 2,
        "augmentation": "published",
    }
    stored = CoReg(clip, images.classnames, **params).fit(images)
    with pytest.warns(UserWarning, match="view_memory"):
        drawn = CoReg(clip, images.classnames, view_memory=0, **params).fit(images)
    assert np.allclose(
        stored.weights_, drawn.weights_, atol=1e-4
    )  # encoded in other batches


class Same:
    """Many images that take no memory."""

    def __init__(self, count, image):
        self.count, self.image = count, image

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.image


def test_the_memory_of_views_is_said_before_it_is_taken(clip):
    images = ImageSet(Same(30_000, Image.new("RGB", (10, 10))))
    method = CoReg(clip, ["a", "b"], image_size=224)
    method.image_size_ = 224
    with pytest.warns(
        UserWarning,
        match=r"30,000 images in 17 versions each would take 76.8 GB, more than "
        r"view_memory \(4 GB\): they are made anew for each batch",
    ):
        views, plain = method._kept_views(images)
    assert isinstance(views, students.DrawnViews) and isinstance(
        plain, students.DrawnViews
    )
    method.image_size_ = 64
    assert method._bytes(images, 8) > 4e9 > method._bytes(images, 0)
    method.view_memory = 1e10
    assert method._bytes(images, 8) < 1e10, "this much may be kept"


def test_drawn_views_take_a_batch_of_memory(clip, monkeypatch):
    images, taken, read = digits("train").subset(range(200)), [], students.pixel_rows

    def watched(*arguments, **options):
        taken.append(read(*arguments, **options))
        return taken[-1]

    monkeypatch.setattr(students, "pixel_rows", watched)
    params = {
        **SHORT,
        "image_size": 16,
        "batch_size": 20,
        "epochs": 2,
        "warmup_epochs": 1,
        "views": None,
    }
    CoReg(clip, images.classnames, view_memory=1e6, **params).fit(images)
    image = 3 * 16 * 16
    assert sorted({tensor.numel() // image for tensor in taken}) == [
        20,
        80,
        200,
    ]  # warm-up; self-training; the images as they are, once


def test_padded_views_shift_and_mirror():
    image = photographs(1, 64, 64)[0][0]
    seen = set()
    for seed in range(400):
        view = np.asarray(
            students.padded_view(32, flip=seed % 2 == 0)(
                image, np.random.default_rng(seed)
            )
        )
        plain = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
        framed = np.pad(plain, ((4, 4), (4, 4), (0, 0)))
        whole = [framed, framed[:, ::-1]]
        found = [
            (mirrored, top, left)
            for mirrored in (0, 1)
            for top in range(9)
            for left in range(9)
            if np.array_equal(whole[mirrored][top : top + 32, left : left + 32], view)
        ]
        assert len(found) == 1
        seen.add(found[0])
        assert seed % 2 == 0 or not found[0][0]
    assert {top for _, top, _ in seen} == {left for *_, left in seen} == set(range(9))


def test_published_views_change_more_than_ours():
    images = photographs(60, 32, 32)
    plain = np.stack([np.asarray(image) for image, _ in images]).astype(float)
    changed = {
        name: [
            np.abs(
                np.stack([np.asarray(image) for image, _ in images.view(kind(32))])
                - plain
            ).mean()
            for kind in kinds
        ]
        for name, kinds in students.AUGMENTATIONS.items()
    }
    assert (
        changed["published"][0] > 1.5 * changed["crops"][0]
        and changed["published"][1] > changed["crops"][1]
    )
    white = Image.new("RGB", (28, 28), "white")
    black = [
        (np.asarray(students.covered_view(28)(white, np.random.default_rng(seed))) == 0)
        .all(-1)
        .sum()
        for seed in range(200)
    ]
    framed = [
        (np.asarray(students.padded_view(28)(white, np.random.default_rng(seed))) == 0)
        .all(-1)
        .sum()
        for seed in range(200)
    ]
    assert 100 < np.mean(black) - np.mean(framed) < 16 * 16


def test_published_distortions_have_the_released_ranges():
    low, high = students._STRENGTHS["brightness"]
    assert (1 + 0.9 * low, 1 + 0.9 * high) == pytest.approx((0.05, 0.95))
    assert [
        0.45 * bound for bound in students._STRENGTHS["translate x"]
    ] == pytest.approx([-0.3, 0.3])
    assert set(students._STRENGTHS) <= set(views.DISTORTIONS)


# As published.


def test_published_settings_are_those_of_the_released_code(clip):
    released = {  # side, epochs, warm-up, mirrored, strong view, stride
        "CIFAR10": (32, 800, 50, True, "published", 1),
        "CIFAR100": (32, 800, 100, True, "published", 1),
        "SVHN": (32, 800, 50, False, "published", 1),
        "FashionMNIST": (28, 100, 50, True, "cutout", 1),
        "EuroSAT": (64, 100, 50, True, "published", 2),
        "FER2013": (64, 100, 50, True, "cutout", 2),
        "GTSRB": (64, 100, 50, False, "published", 2),
    }
    assert set(module.PUBLISHED) == set(released)
    for name, published in module.PUBLISHED.items():
        method = CoReg(clip, [str(number) for number in range(10)], **published)
        method._check_parameters()
        method.classnames_, method.image_size_ = method.classnames, method.image_size
        network = method._built_in_network()
        assert 11.1e6 < sum(p.numel() for p in network.parameters()) < 11.6e6
        stride = network.body[3].path[0].stride[0]
        assert (
            method.image_size,
            method.epochs,
            method.warmup_epochs,
            method.flip,
            method.augmentation,
            stride,
        ) == released[name]
        assert (
            method.views,
            method.warmup_batch_size,
            method.delay,
            method.split_views,
        ) == (None, 512, 11, "weak")
        rates = [method._recipe().rate(epoch) for epoch in (0, 100, 400, 800, 900)]
        assert rates == pytest.approx([0.01, 0.00962, 0.005005, 1e-5, 1e-5], rel=1e-3)


def test_as_published_on_a_few_images(clip, images, test_images, tmp_path):
    params = {
        **module.PUBLISHED["EuroSAT"],
        "options": {"width": 2, "preactivation": True, "stride": 2},
        "image_size": 16,
        "epochs": 3,
        "warmup_epochs": 2,
        "batch_size": 16,
        "warmup_batch_size": 32,
        "delay": 0,
    }
    steps, train = [], training.train_epoch

    def counted(optimiser, loss, batches, *rest):
        steps.append(len(batches))
        return train(optimiser, loss, batches, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_epoch", counted)
        method = CoReg(clip, images.classnames, **params).fit(images)
    assert steps == [2, 2, 2, 2, 3, 3]
    method.save(tmp_path / "model")
    assert np.array_equal(
        CoReg.load(tmp_path / "model", clip).predict_proba(test_images),
        method.predict_proba(test_images),
    )
    plain = CoReg(clip, images.classnames, **{**params, "split_views": "plain"}).fit(
        images
    )
    assert (
        not np.array_equal(plain.losses_, method.losses_)
        and plain.history_[0]["loss"] == method.history_[0]["loss"]
    )


def test_the_prior_can_be_estimated_from_clip(clip, images, tmp_path):
    method = CoReg(clip, images.classnames, prior="clip", **SHORT)
    method.classnames_, method.image_size_ = images.classnames, 8
    prompts = templates.encode_prompts(clip, images.classnames, "neutral27")
    mean = module.partial_labels(
        clip.encode_image(images), prompts, clip.logit_scale, "mean"
    ).mean(0)
    for candidates in (None, one_hot(images.labels)):
        run = module._Run(method, images, np.full(COUNT, -1), candidates)
        assert np.allclose(run.prior, mean / mean.sum(), atol=1e-6)
    uniform = CoReg(clip, images.classnames, **SHORT).fit(images)
    assert not np.array_equal(method.fit(images).clean_, uniform.clean_)
    method.save(tmp_path / "model")
    assert CoReg.load(tmp_path / "model", clip).prior == "clip"


def test_candidates_above_a_threshold(clip, images):
    method = CoReg(
        clip,
        images.classnames,
        annotation="threshold",
        threshold=0.2,
        **{**SHORT, "epochs": 1, "warmup_epochs": 1},
    ).fit(images)
    prompts = templates.encode_prompts(clip, images.classnames, "neutral27")
    mean = module.partial_labels(
        clip.encode_image(images), prompts, clip.logit_scale, "mean"
    )
    for row, probabilities in zip(method.candidates_, mean):
        assert set(np.flatnonzero(row)) == {
            c for c, p in enumerate(probabilities) if p >= 0.2
        } | {int(probabilities.argmax())}
    assert method.candidates_.sum(1).max() > 1


@settings(max_examples=40)
@given(batches(), st.integers(0, 7), st.sampled_from(module.CONTRASTS))
def test_ablations_of_the_contrast_pair_by_pair(batch, queued, mode):
    """The masks of the released code (get_cont_mask and ModifiedSupConLoss), one pair
    at a time."""
    _, _, clean, classes, generator = batch
    count = len(classes)
    queries, embeddings, old = (
        F.normalize(torch.randn(n, 6, generator=generator), dim=1)
        for n in (count, count, queued)
    )
    queue = Queue(
        old,
        torch.randint(3, (queued,), generator=generator),
        torch.rand(queued, generator=generator) < 0.5,
    )
    everything, everyone, flags = (
        torch.cat([queries, embeddings, old]),
        torch.cat([classes, classes, queue.classes]),
        torch.cat([clean, clean, queue.clean]),
    )
    total = 0.0
    for i in range(count):
        if mode == "clean-pairs" and not clean[i]:
            continue
        inside, positive = [], []
        for j in range(len(everything)):
            same, trusted, own_key = (
                bool(classes[i] == everyone[j]),
                bool(clean[i] and flags[j]),
                j == count + i,
            )
            left_out = {
                "modified": same and not trusted,
                "supervised": False,
                "unsupervised": j < 2 * count,
                "clean-positives": False,
                "clean-pairs": not flags[j],
            }[mode]
            if j == i or (left_out and not own_key):
                continue
            inside.append((queries[i] @ everything[j]).item() / 0.07)
            if own_key or (
                same and mode != "unsupervised" and (trusted or mode == "supervised")
            ):
                positive.append(inside[-1])
        total += math.log(sum(math.exp(value) for value in inside)) - sum(
            positive
        ) / len(positive)
    found = module.noisy_contrastive(
        queries, Queue(embeddings, classes, clean), queue, mode=mode
    )
    assert found.item() == pytest.approx(total / count, rel=1e-3, abs=1e-3)


# Bad and unusual input.


def test_few_images_one_class_one_image(clip, images, test_images):
    for count in (1, 2, 3):
        fitted = CoReg(clip, images.classnames, **SHORT).fit(
            images.subset(range(count))
        )
        assert np.isfinite(fitted.predict_proba(test_images)).all()
    fitted = CoReg(clip, ["digit"], **SHORT).fit(images.unlabelled())
    assert (fitted.predict_proba(test_images.unlabelled()) == 1).all()


def test_candidates_empty_full_and_wrong(clip, images, test_images):
    candidates = one_hot(images.labels)
    candidates[::4], candidates[1::4] = False, True
    fitted = CoReg(clip, images.classnames, **SHORT).fit(images, candidates=candidates)
    assert (
        fitted.candidates_[0].all()
        and np.array_equal(fitted.candidates_[2], candidates[2])
        and np.isfinite(fitted.predict_proba(test_images)).all()
    )
    soft = CoReg(clip, images.classnames, **SHORT, annotation="mean").fit(
        images, candidates=candidates
    )
    assert np.array_equal(soft.weights_, fitted.weights_), (
        "own candidates take the place of any annotation"
    )
    for wrong, message in [
        (candidates[:5], r"\[N, C\] for 48 images"),
        (candidates[:, :4], "10 classes"),
        (np.zeros_like(candidates), "nothing to learn from"),
        (np.full(candidates.shape, np.nan), "0 or 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            CoReg(clip, images.classnames, **SHORT).fit(images, candidates=wrong)


def test_labels_are_kept_and_always_clean(clip, images):
    y = np.where(np.arange(COUNT) < 15, images.labels, -1)
    fitted = CoReg(clip, images.classnames, **SHORT).fit(images, y)
    assert (
        np.array_equal(fitted.candidates_[:15], one_hot(images.labels[:15]))
        and (fitted.clean_[:, :15] == 1).all()
    )
    alone = CoReg(clip, images.classnames, **SHORT).fit(images, images.labels)
    assert np.array_equal(alone.candidates_, one_hot(images.labels))


def test_degenerate_splits(clip, images, monkeypatch):
    """All clean, nobody clean, a class without a clean image: nothing breaks, nothing
    becomes NaN."""
    for posterior in (
        np.ones(COUNT),
        np.zeros(COUNT),
        (images.labels != 3).astype(float),
        (np.arange(COUNT) == 5).astype(float),
    ):
        monkeypatch.setattr(
            module, "clean_posterior", lambda losses: posterior.astype(np.float32)
        )
        fitted = CoReg(clip, images.classnames, **SHORT).fit(images)
        assert (
            all(math.isfinite(record["loss"]) for record in fitted.history_)
            and np.isfinite(fitted.weights_).all()
        )


def test_images_of_different_sizes(clip, images):
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 60, (20, 2))
    mixed = ImageSet(
        [
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
            for h, w in sizes
        ]
    )
    fitted = CoReg(clip, images.classnames, **{**SHORT, "image_size": None}).fit(mixed)
    assert fitted.image_size_ == students.student_size(mixed) and fitted.predict(
        mixed
    ).shape == (20,)


BAD = [
    ({"student": "vgg"}, "'resnet', 'head', 'clip'"),
    (
        {"student": lambda num_classes: logits_only(num_classes + 1)},
        r"logits of shape \(2, 11\) .*10 classes",
    ),
    ({"annotation": "vote"}, "'union'"),
    ({"annotation": "top-k", "k": 0}, "k must be"),
    ({"annotation": "ratio", "ratio": 2}, "ratio must lie"),
    ({"annotation": "top-k", "k": 10}, "nothing to learn from"),
    ({"views": 0}, "views must be"),
    ({"image_size": 4}, "image_size must be a whole number from 8"),
    ({"epochs": 0}, "epochs must be"),
    ({"warmup_epochs": 0}, "warmup_epochs"),
    ({"batch_size": 0}, "batch_size"),
    ({"learning_rate": -1}, "learning_rate"),
    ({"mixup": -1}, "mixup must be a number from 0"),
    ({"contrast": math.inf}, "contrast"),
    ({"prototype_momentum": 1.5}, "prototype_momentum"),
    ({"sharpening": 0}, "sharpening"),
    ({"prior": [0.5, 0.5]}, "10 positive numbers"),
    ({"prior": [0] * 10}, "positive"),
    ({"queue": -1}, "queue"),
    ({"augmentation": "none"}, "'crops', 'published', 'cutout'"),
    ({"schedule": None}, "'cosine', 'published'"),
    ({"split_views": "strong"}, "'plain', 'weak'"),
    ({"contrast_mode": "noisy"}, "'modified', 'supervised'"),
    ({"threshold": 1.5}, "threshold must be"),
    ({"warmup_batch_size": 0}, "warmup_batch_size must"),
    ({"view_memory": -1}, "view_memory must"),
    ({"view_memory": "much"}, "view_memory must"),
    ({"prior": "uniform"}, "'clip' or None, not 'uniform'"),
    ({"options": {"preactivation": 1}}, "preactivation must be True or False"),
    ({"learning_rate": 1e30, "epochs": 3}, "lower the learning rate"),
    ({"templates": ["no gap"]}, "gap"),
]


@pytest.mark.parametrize("params, message", BAD, ids=without_address)
def test_bad_parameters(clip, images, params, message):
    method = CoReg(clip, images.classnames, **{**SHORT, **params})
    with pytest.raises(ValueError, match=message):
        method.fit(images)
    assert not hasattr(method, "classnames_")


def test_callback_is_checked(clip, images):
    for answer, message in (
        ({"loss": 1}, "must return a dict without"),
        ({"x": object()}, "plain values"),
    ):
        with pytest.raises(ValueError, match=message):
            CoReg(clip, images.classnames, **SHORT).fit(
                images, callbacks=lambda method: answer
            )


def test_seeds_differ_and_networks_differ(clip, images):
    first, second = (
        CoReg(clip, images.classnames, **SHORT, seed=seed).fit(images)
        for seed in (0, 1)
    )
    assert (
        len({weights.tobytes() for weights in (*first.weights_, *second.weights_)}) == 4
    )


# Killed and resumed.

WORKER = """
import sys, time, torch
torch.set_num_threads(1)
from clipadapt import CoReg, digits, load_clip
images = digits("train").subset(range(48))
method = CoReg(
    load_clip(device="cpu"), images.classnames, checkpoint=sys.argv[1], **%r
)
method.fit(images, callbacks=lambda method: time.sleep(0.3) or {})
"""


def test_a_killed_fit_goes_on_bit_for_bit(clip, images, whole, test_images, tmp_path):
    params = {**SHORT, "epochs": 6}
    process = program(tmp_path, WORKER % params, tmp_path / "run")
    process.wait_for(tmp_path / "run")
    time.sleep(
        1.2
    )  # into self-training, with queue, prototypes and five epochs of losses
    process.kill()
    trained = []
    method = CoReg(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images, callbacks=lambda method: trained.append(1))
    assert 0 < len(trained) < 6 and bits(method) == bits(whole)
    assert np.array_equal(
        method.predict_proba(test_images), whole.predict_proba(test_images)
    )


@pytest.fixture(scope="module")
def whole(clip, images):
    """A fit of six epochs that nobody stops."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fitted = CoReg(clip, images.classnames, **{**SHORT, "epochs": 6}).fit(images)
    torch.set_num_threads(threads)
    return fitted


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_stopped_after_any_epoch(clip, images, whole, tmp_path, stop):
    params = {**SHORT, "epochs": 6}

    def pull_the_plug(method):
        if len(method.history_) == stop + 1:
            raise KeyboardInterrupt

    path = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        CoReg(clip, images.classnames, checkpoint=path, **params).fit(
            images, callbacks=pull_the_plug
        )
    resumed = CoReg(clip, images.classnames, checkpoint=path, **params).fit(images)
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize(
    "name, change",
    [
        (
            "images",
            lambda m, X, y, c: (m, ImageSet([image.rotate(9) for image, _ in X]), y, c),
        ),
        ("labels", lambda m, X, y, c: (m, X, np.roll(y, 1), c)),
        ("candidates", lambda m, X, y, c: (m, X, y, None)),
        ("seed", lambda m, X, y, c: (m.set_params(seed=1), X, y, c)),
        ("contrast", lambda m, X, y, c: (m.set_params(contrast=0.2), X, y, c)),
        (
            "student",
            lambda m, X, y, c: (
                m.set_params(student=logits_only, options=None),
                X,
                y,
                c,
            ),
        ),
        (
            "classnames",
            lambda m, X, y, c: (m.set_params(classnames=m.classnames[::-1]), X, y, c),
        ),
    ],
)
def test_resuming_another_run_is_refused_by_name(clip, images, tmp_path, name, change):
    y, candidates, plain = (
        np.where(np.arange(COUNT) < 5, images.labels, -1),
        one_hot(images.labels),
        ImageSet(images.images),
    )
    method = CoReg(
        clip,
        images.classnames,
        checkpoint=str(tmp_path / "run"),
        **{**SHORT, "epochs": 1, "warmup_epochs": 1},
    ).fit(plain, y, candidates=candidates)
    other, X, labels, theirs = change(clone(method), plain, y, candidates)
    with pytest.raises(
        ValueError, match=rf"another run: ([\w ]+, )*{name}(, [\w ]+)* changed"
    ):
        other.fit(X, labels, candidates=theirs)


# Whether it learns at all.


def test_it_learns_from_ambiguous_and_noisy_candidates(clip):
    images = digits("train").subset(range(300))
    candidates = module.synthetic_candidates(
        images.labels, 10, ambiguity=0.1, noise=0.2
    )
    params = {
        **SHORT,
        "image_size": 16,
        "options": {"width": 8, "depth": [1, 1, 1]},
        "views": 4,
        "epochs": 13,
        "warmup_epochs": 10,
        "contrast": 0,
    }
    fitted = CoReg(clip, images.classnames, **params).fit(images, candidates=candidates)
    assert fitted.score(digits("test")) > 0.6
    right, clean = (
        candidates[np.arange(300), images.labels],
        fitted.clean_.mean(0) > 0.5,
    )
    assert right[clean].mean() > right.mean() + 0.1, (
        "what is called clean is purer than the rest"
    )
    assert fitted.history_[-1]["candidates"] <= candidates.sum(1).mean() - 0.2


@pytest.mark.parametrize(
    "student, message",
    [
        (torch.nn.Linear(2, 2), "not a module"),
        (lambda count: torch.nn.Linear(5, count), "cannot be multiplied"),
        (lambda count: lambda inputs: [1, 2, 3], "must give logits"),
    ],
)
def test_students_that_are_no_students_are_refused_with_advice(
    clip, images, student, message
):
    with pytest.raises(ValueError, match=message):
        CoReg(
            clip, images.classnames, **{**SHORT, "student": student, "options": None}
        ).fit(images)


def test_both_momentum_copies_use_the_statistics_of_the_batch(clip, images):
    method = CoReg(clip, images.classnames, **SHORT)
    method.classnames_, method.image_size_ = images.classnames, 8
    run = module._Run(method, images, np.full(COUNT, -1), None)
    assert all(
        network.key.training
        and not any(p.requires_grad for p in network.key.parameters())
        for network in run.networks
    )


def test_a_clip_as_student_learns_the_same_in_little_memory(clip, images, monkeypatch):
    """Activations computed twice and steps in parts, against neither."""
    params = {
        **SHORT,
        "student": "clip",
        "options": None,
        "image_size": None,
        "views": 1,
    }
    whole = CoReg(clip, images.classnames, **params).fit(images)
    monkeypatch.setattr(training, "ACTIVATIONS", 0)
    monkeypatch.setattr(training, "GRADIENTS", 10_000)
    assert bits(CoReg(clip, images.classnames, **params).fit(images)) == bits(whole)


def test_only_own_students_take_steps_in_parts(clip, images, monkeypatch):
    """Those of others may use their weights where no gradient flows."""
    monkeypatch.setattr(training, "early_steps", lambda optimiser: 1 / 0)
    params = {**SHORT, "student": logits_only, "options": None}
    CoReg(clip, images.classnames, **params).fit(images)
    with pytest.raises(ZeroDivisionError):
        CoReg(clip, images.classnames, **SHORT).fit(images)


def test_prototypes_annotate(clip):
    images = digits("train").subset(range(200))
    fitted = CoReg(
        clip,
        images.classnames,
        **{**SHORT, "epochs": 1, "warmup_epochs": 1},
        annotation="prototypes",
        k=2,
    ).fit(images)
    teacher = Prototypes(clip, images.classnames, templates="neutral27").fit(images)
    assert np.array_equal(
        fitted.candidates_, top_k_candidates(teacher.predict_proba(images), 2)
    )
