"""Published split files, written in their own forms and read back.

Every image has one grey value of its own, so that a loaded one can be traced.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clipadapt import ImageSet, ZeroShot, digits
from clipadapt.app.cli import main
from clipadapt.app.runs import run_record
from clipadapt.images import datasets
from clipadapt.images.datasets import SPLIT_PLACES, TORCHVISION_SPLITS
from clipadapt.judge.compare import run_all
from clipadapt.judge.report import report

# of each data set: CoOp's file, and three images as that file names them
ZHOU = {
    "Caltech101": ("Caltech101", "accordion/image_0001.jpg", "Faces/image_0002.jpg"),
    "OxfordIIITPet": ("OxfordPets", "Abyssinian_1.jpg", "american_bulldog_2.jpg"),
    "StanfordCars": ("StanfordCars", "cars_train/00001.jpg", "cars_test/00001.jpg"),
    "Flowers102": ("OxfordFlowers", "image_00001.jpg", "image_00002.jpg"),
    "Food101": ("Food101", "apple_pie/1.jpg", "waffles/2.jpg"),
    "SUN397": ("SUN397", "a/abbey/sun_1.jpg", "j/jail/indoor/sun_2.jpg"),
    "DTD": ("DescribableTextures", "banded/banded_0001.jpg", "zigzagged/z_0002.jpg"),
    "EuroSAT": ("EuroSAT", "River/River_1.jpg", "SeaLake/SeaLake_1.jpg"),
    "UCF101": ("UCF101", "Apply_Eye_Makeup/v_1.jpg", "Yo_Yo/v_2.jpg"),
}
CLASSES = ["first_class", "Second Class"]


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), grey).convert("RGB").save(path, quality=95)


def greys(images) -> list[int]:
    return [round(np.asarray(image).mean() / 40) for image, _ in images]


def zhou(name: str, root: Path, place: str) -> Path:
    """Two images, one for training and one for testing, and a split file beside."""
    stem, *files = ZHOU[name]
    for number, file in enumerate(files):
        picture(root / place / file, 40 * (number + 1))
    rows = [[file, label, CLASSES[label]] for label, file in enumerate(files)]
    path = root / f"split_zhou_{stem}.json"
    splits = {"train": rows[:1], "val": [], "test": rows[1:]}
    path.write_text(json.dumps(splits), encoding="utf-8")
    return path


@pytest.fixture
def eurosat(tmp_path):
    return zhou("EuroSAT", tmp_path, "eurosat/2750")


PLACES = [(name, place) for name in SPLIT_PLACES for place in SPLIT_PLACES[name]]


@pytest.mark.parametrize("name, place", PLACES)
def test_coops_files_are_read_from_both_layouts(name, place, tmp_path):
    path = zhou(name, tmp_path, place)
    roots = [tmp_path, tmp_path / place, (tmp_path / place).parent]
    for root in roots[: 2 if place == "stanford_cars" else 3]:
        images = ImageSet.from_split_file(path, root, "test")
        assert greys(images) == [2] and images.labels.tolist() == [1]
        assert images.classnames == ["first class", "Second Class"]
    train = ImageSet.from_torchvision(name, tmp_path, "train", split_file=path)
    assert greys(train) == [1] and train.labels.tolist() == [0]
    assert not len(ImageSet.from_split_file(path, tmp_path, "val"))
    stem = re.escape(path.name)
    assert re.fullmatch(rf"train split of {stem} \(hash [0-9a-f]{{8}}\)", train.source)


def test_two_files_that_differ_have_other_hashes(eurosat, tmp_path):
    first = ImageSet.from_split_file(eurosat, tmp_path, "test").source
    eurosat.write_text(eurosat.read_text() + "\n")
    assert ImageSet.from_split_file(eurosat, tmp_path, "test").source != first


ROW = ["River/River_1.jpg", 0, "River"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"test": [["/etc/passwd", 0, "a"]]}, "no path below"),
        ({"test": [["../../a.jpg", 0, "a"]]}, "no path below"),
        ({"test": [["a/../../b.jpg", 0, "a"]]}, "no path below"),
        ({"test": [["C:/a.jpg", 0, "a"]]}, "no path below"),
        ({"test": [["..\\a.jpg", 0, "a"]]}, "no path below"),
        ({"test": [["a\0.jpg", 0, "a"]]}, "no path below"),
        ({"test": [["", 0, "a"]]}, "no path below"),
        ({"test": [ROW, ["b.jpg", 0, "Lake"]]}, "'River' and 'Lake'"),
        ({"test": [ROW], "train": [["b.jpg", 0, "Lake"]]}, "'River' and 'Lake'"),
        ({"test": [["b.jpg", 2, "Lake"], ROW]}, "must count 0, 1, 2"),
        ({"test": [["b.jpg", -1, "Lake"], ROW]}, "must count 0, 1, 2"),
        ({"test": [["b.jpg", 0]]}, "damaged"),
        ({"test": [["b.jpg", "0", "a"]]}, "damaged"),
        ({"test": [["b.jpg", 0.0, "a"]]}, "damaged"),
        ({"test": [[None, 0, "a"]]}, "damaged"),
        ({"test": 3}, "damaged"),
        ({"train": [ROW]}, "it has the splits train, not 'test'"),
        ({}, "it has the splits"),
        ([ROW], "no file of CoOp with several splits"),
    ],
)
def test_files_of_coop_that_are_refused(content, message, tmp_path):
    path = tmp_path / "split_zhou_EuroSAT.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        ImageSet.from_split_file(path, tmp_path, "test")
    assert "split_zhou_EuroSAT.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_no_split_file_is_refused(content, tmp_path):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    for split in ("test", None):
        with pytest.raises(ValueError, match="odd.json"):
            ImageSet.from_split_file(path, tmp_path, split)


def test_missing_images_are_counted_and_named(tmp_path):
    path = zhou("EuroSAT", tmp_path, "eurosat/2750")
    rows = [[f"River/River_{k}.jpg", 0, "River"] for k in range(5)]
    path.write_text(json.dumps({"test": rows}), encoding="utf-8")
    message = "4 of the 5 images of the split are not there, .*River_0.jpg"
    with pytest.raises(FileNotFoundError, match=message):
        ImageSet.from_split_file(path, tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="there is no split file"):
        ImageSet.from_split_file(tmp_path / "none.json", tmp_path, "test")


def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path):
    """The system does not say that it is not there, but that it is too long."""
    path = zhou("EuroSAT", tmp_path, "eurosat/2750")
    rows = [
        [f"River/{'River_' * 50}.jpg", 0, "River"],
        ["River/River_1.jpg", 0, "River"],
    ]
    for some in (rows, rows[::-1], rows[:1]):
        path.write_text(json.dumps({"test": some}), encoding="utf-8")
        message = (
            rf"1 of the {len(some)} images of the split are not there, .*River_River"
        )
        with pytest.raises(FileNotFoundError, match=message):
            ImageSet.from_split_file(path, tmp_path, "test")


def test_a_name_without_split_file_is_said(eurosat, tmp_path):
    with pytest.raises(ValueError, match="no split file for 'ImageNet'; .*UCF101"):
        ImageSet.from_torchvision("ImageNet", tmp_path, "test", split_file=eurosat)


def test_a_file_that_is_too_large_is_not_read(eurosat, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "LARGEST_SPLIT", 20)
    with pytest.raises(ValueError, match="larger than 20 bytes"):
        ImageSet.from_split_file(eurosat, tmp_path, "test")


@pytest.mark.parametrize("unpacked", ["", "train/"])
@pytest.mark.parametrize("labels", ["labels.txt", "labelmap.txt"])
def test_elevaters_index_is_read(unpacked, labels, tmp_path):
    """The files of the archive lie beside it, or in a folder of its name."""
    files = ["train/a b.jpg", "train/2.jpg"]
    for number, file in enumerate(files):
        picture(tmp_path / f"{unpacked}{file}", 40 * (number + 1))
    index = tmp_path / "train.txt"
    lines = [f"train.zip@{file} {1 - k}\n" for k, file in enumerate(files)]
    index.write_text("".join(lines) + "\n", encoding="utf-8")
    (tmp_path / labels).write_text("first_class\nSecond Class\n", encoding="utf-8")
    images = ImageSet.from_split_file(index, tmp_path)
    assert greys(images) == [1, 2] and images.labels.tolist() == [1, 0]
    assert images.classnames == ["first class", "Second Class"]
    assert images.source.startswith("train.txt (hash ")
    with pytest.raises(ValueError, match="no file of CoOp .* no 'test'"):
        ImageSet.from_split_file(index, tmp_path, "test")


@pytest.mark.parametrize(
    "lines, message",
    [
        ("a.jpg 0,1\n", "a path and one label, not 'a.jpg 0,1'"),
        ("a.jpg\n", "a path and one label"),
        ("a.jpg -1\n", "a path and one label"),
        ("a.jpg 2\n", "label 2 has no name among 2"),
        ("train.zip@../a.jpg 0\n", "no path below"),
        ("train.zip@/etc/passwd 0\n", "no path below"),
        ("../train.zip@a.jpg 0\n", "no path below"),
        ("\n", "there is no line"),
    ],
)
def test_indexes_that_are_refused(lines, message, tmp_path):
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    (tmp_path / "test.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        ImageSet.from_split_file(tmp_path / "test.txt", tmp_path)


def test_an_index_without_class_names_is_refused(tmp_path):
    (tmp_path / "test.txt").write_text("a.jpg 0\n")
    with pytest.raises(ValueError, match="no labels.txt or labelmap.txt"):
        ImageSet.from_split_file(tmp_path / "test.txt", tmp_path)


def coco(**changes) -> dict:
    return {
        "images": [
            {"id": 1, "width": 32.0, "file_name": "1.jpg", "zip_file": "images.zip"},
            {"id": 2, "width": 32.0, "file_name": "images.zip@2.jpg"},
        ],
        "annotations": [
            {"id": 1, "category_id": 2, "image_id": 1},
            {"id": 2, "category_id": 1, "image_id": 2},
        ],
        "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}],
        **changes,
    }


def test_elevaters_coco_is_read(tmp_path):
    for number in (1, 2):
        picture(tmp_path / "images" / f"{number}.jpg", 40 * number)
    path = tmp_path / "test.json"
    path.write_text(json.dumps(coco()), encoding="utf-8")
    images = ImageSet.from_split_file(path, tmp_path)
    assert images.classnames == ["cat", "dog"]
    assert greys(images) == [1, 2] and images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"annotations": [{"category_id": 3, "image_id": 1}]}, "no category 3"),
        ({"annotations": coco()["annotations"] * 2}, "image 1 has several labels"),
        ({"images": [{"id": 1}]}, "damaged"),
        ({"images": [{"id": 1, "file_name": "../1.jpg"}]}, "no path below"),
        ({"categories": {}}, "damaged"),
    ],
)
def test_coco_that_is_refused(changes, message, tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(coco(**changes)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ImageSet.from_split_file(path, tmp_path)


def test_every_source_says_what_it_is(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / "photos" / name / "1.jpg", 80)
    folder = ImageSet.from_folder(tmp_path / "photos")
    assert folder.source == "folder photos"
    assert folder.subset([0]).unlabelled().source == "folder photos"
    assert digits("test").source == "scikit-learn's digits, test half"
    assert ImageSet([]).source == ""
    said = {
        (name, split): datasets._torchvision_source(name, split)
        for name in TORCHVISION_SPLITS
        for split in ("train", "test")
    }
    assert len(set(said.values())) == len(said)
    assert said["EuroSAT", "test"] == (
        "torchvision's EuroSAT, test split, our 80 : 20 cut"
    )
    assert "validation images included" in said["DTD", "train"]
    assert "validation" not in said["DTD", "test"]


def test_reports_name_the_split_and_the_templates(clip, eurosat, tmp_path):
    train = ImageSet.from_split_file(eurosat, tmp_path, "train")
    test = ImageSet.from_split_file(eurosat, tmp_path, "test")
    told = {"first class": ["a river."], "second class": ["a lake.", "the sea."]}
    methods = {"zero-shot": ZeroShot(clip, train.classnames, templates=told)}
    runs = run_all(methods, train, test)
    page = report(runs, train, test, tmp_path / "report.html").read_text()
    assert f"tested on <bdi>{test.source}</bdi>" in page
    assert f"adapted on <bdi>{train.source}</bdi>" in page
    assert re.search(r"3 prompts for 2 classes \(hash \w{8}\): zero-shot<", page)
    assert "the sea" not in page
    assert run_record(clip, test=test)["test"]["source"] == test.source


def test_records_of_runs_name_images_and_templates(tmp_path):
    for number in range(2):
        picture(tmp_path / "scans" / f"{number}.png", 80 * number)
    given = ["--images", tmp_path / "scans", "--classes", "one,two", "--no-store"]
    for command, run in [
        (["adapt", "--method", "prototypes"], tmp_path / "adapted"),
        (["compare", "--methods", "zero-shot,prototypes"], tmp_path / "compared"),
    ]:
        answer = CliRunner().invoke(main, [*map(str, [*command, *given, "--out", run])])
        assert answer.exit_code == 0, answer.output
        record = json.loads((run / "record.json").read_text())
        assert record["images"]["source"] == "folder scans"
        expected = {"zero-shot": "single", "prototypes": "single"}
        assert record["templates"] == ("single" if command[0] == "adapt" else expected)
