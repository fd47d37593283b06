"""Public data sets load with the right labels: each is written in its real format,
tiny, and read back.

Every written image has a grey value of its own, so a loaded one tells which image it
is, what class it truly belongs to and which split it was written for.
"""

import urllib.request
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets
from torchvision_layouts import (
    GREY_STEP,
    LAYOUTS,
    draw,
    write,
    write_fer2013_without_test_labels,
)

from clipadapt import ImageSet
from clipadapt.images.datasets import TORCHVISION_SPLITS, dataset_facts

OWN_SPLIT = ["EuroSAT", "Caltech101", "SUN397"]
FETCHED_BY_HAND = ["FER2013", "StanfordCars"]
CLASS_COUNTS = {
    "CIFAR10": 10,
    "CIFAR100": 100,
    "EuroSAT": 10,
    "DTD": 47,
    "MNIST": 10,
    "SVHN": 10,
    "FER2013": 7,
    "GTSRB": 43,
    "Flowers102": 102,
    "FGVCAircraft": 100,
    "OxfordIIITPet": 37,
    "Food101": 101,
    "StanfordCars": 196,
    "SUN397": 397,
    "UCF101": 101,
    "Caltech101": 101,
    "RESISC45": 45,
    "FashionMNIST": 10,
}


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch):
    for module in ("cifar", "svhn", "flowers102", "fer2013"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: Path(path).is_file(),
        )


def load(name, root, split):
    return ImageSet.from_torchvision(name, root, split, download=False)


def greys(images):
    return [
        GREY_STEP * round(np.asarray(image).mean() / GREY_STEP) for image, _ in images
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_image_has_its_class_and_its_split(name, tmp_path):
    written = {image.grey: image for image in write(name, tmp_path)}
    splits = {split: load(name, tmp_path, split) for split in ("train", "test")}
    found = {split: greys(images) for split, images in splits.items()}
    assert sorted(found["train"] + found["test"]) == sorted(written)
    for split, images in splits.items():
        assert images.classnames == dataset_facts()[name]["classnames"]
        assert {image.mode for image, _ in images} == {"RGB"}
        assert [images.classnames[label] for _, label in images] == [
            written[grey].classname for grey in found[split]
        ]
        if name in OWN_SPLIT:
            per_class = Counter(written[grey].classname for grey in found[split])
            assert set(per_class.values()) == {8 if split == "train" else 2} and len(
                per_class
            ) == len(LAYOUTS[name][1])
        else:
            assert all(
                (written[grey].part == "test") == (split == "test")
                for grey in found[split]
            )


PIXELS_ONLY = ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN", "FER2013"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in PIXELS_ONLY])
def test_files_are_opened_by_our_own_rules(name, tmp_path, monkeypatch):
    """torchvision would let Pillow open what it likes: PostScript, for which it starts
    Ghostscript, and pictures of any size."""
    write(name, tmp_path)
    images = load(name, tmp_path, "train")
    monkeypatch.setattr(
        "subprocess.Popen",
        lambda *arguments, **options: pytest.fail("a process was started"),
    )
    Path(images.images[0]).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match="it holds none of JPEG"):
        images[0]
    images.max_pixels = 32 * 32 - 1
    with pytest.raises(ValueError, match="more than max_pixels"):
        images[1]


@pytest.mark.parametrize("name", OWN_SPLIT)
def test_our_split_does_not_depend_on_the_order_of_files(name, tmp_path, monkeypatch):
    write(name, tmp_path)
    first = [greys(load(name, tmp_path, split)) for split in ("train", "test")]
    assert [greys(load(name, tmp_path, split)) for split in ("train", "test")] == first
    in_order = Path.rglob
    monkeypatch.setattr(
        Path,
        "rglob",
        lambda folder, pattern: sorted(
            in_order(folder, pattern), key=lambda path: path.name[::-1]
        ),
    )
    assert [greys(load(name, tmp_path, split)) for split in ("train", "test")] == first


def test_a_test_split_without_labels_is_unlabelled(tmp_path):
    images = draw(LAYOUTS["FER2013"][1])
    write_fer2013_without_test_labels(tmp_path, images)
    assert set(load("FER2013", tmp_path, "test").labels) == {-1}
    assert load("FER2013", tmp_path, "train").labels.tolist() == [
        image.key for image in images if image.part != "test"
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_data_are_named(name, tmp_path):
    for split in ("train", "test"):
        with pytest.raises(FileNotFoundError, match=name):
            load(name, tmp_path, split)


@pytest.mark.parametrize(
    "name, split, message",
    [("CIFAR11", "train", "CIFAR11.*CIFAR10"), ("DTD", "val", "train.*test.*val")],
)
def test_unknown_names_and_splits_are_refused(name, split, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path, split)


def test_class_lists_are_complete_and_distinct():
    assert set(LAYOUTS) == set(TORCHVISION_SPLITS)
    classnames = {name: facts["classnames"] for name, facts in dataset_facts().items()}
    assert {name: len(known) for name, known in classnames.items()} == CLASS_COUNTS
    assert {name: len(set(known)) for name, known in classnames.items()} == CLASS_COUNTS


def no_network(*args, **options):
    raise URLError("no network")


@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name not in FETCHED_BY_HAND]
)
def test_a_failed_download_says_how_to_work_offline(name, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(
        ConnectionError, match=rf"{name}[\s\S]*offline[\s\S]*download=False"
    ):
        ImageSet.from_torchvision(name, tmp_path)


@pytest.mark.parametrize("name", FETCHED_BY_HAND)
def test_what_must_be_fetched_by_hand_is_missing(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        ImageSet.from_torchvision(name, tmp_path)


@pytest.mark.parametrize(
    "error",
    [URLError("refused"), TimeoutError("too slow"), ConnectionResetError("cut off")],
)
def test_a_connection_that_breaks_is_a_connection_error(error, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise error

    monkeypatch.setattr(torchvision.datasets, "DTD", broken)
    with pytest.raises(ConnectionError, match="DTD.*offline"):
        ImageSet.from_torchvision("DTD", tmp_path)


@pytest.mark.parametrize(
    "error", [ConnectionError("unreachable"), FileNotFoundError("not in the cache")]
)
def test_a_hub_that_cannot_be_reached_is_a_connection_error(error, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def broken(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(ConnectionError, match="nobody/nothing.*offline"):
        ImageSet.from_hub("nobody/nothing")
