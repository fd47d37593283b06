"""Answers as tables for other tools: one row an image, whatever the method and whatever
the image, and back again."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.exceptions import NotFittedError

import clipadapt.images.pictures as pictures
from clipadapt import (
    CPL,
    FLYP,
    LPCLIP,
    FeatureSet,
    FeatureStore,
    ImageSet,
    NearestNeighbours,
    Prototypes,
    ReCLIP,
    StoredCLIP,
    ZeroShot,
    digits,
)
from clipadapt.app.cli import main
from clipadapt.judge.datatools import (
    to_cleanlab,
    to_dataset,
    to_fiftyone,
    to_pandas,
)

NAMES = digits("train").classnames


@pytest.fixture(scope="module")
def pool():
    return digits("train").subset(range(60))


@pytest.fixture(scope="module")
def fitted(clip, pool):
    """Methods by name: one that reads features, one that reads pictures, one both."""
    made = {
        "ZeroShot": ZeroShot(clip, NAMES),
        "FLYP": FLYP(clip, NAMES, epochs=1, batch_size=30),
        "ReCLIP": ReCLIP(clip, NAMES, epochs=1),
    }
    return {name: method.fit(pool) for name, method in made.items()}


@pytest.fixture
def photos(tmp_path):
    """Eight scans as files, the third damaged where only a decoder looks."""
    folder = tmp_path / "photos"
    scans = digits("test").subset(range(8))
    for number, label in enumerate(scans.labels):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        file = folder / NAMES[label] / f"{number}.png"
        scans[number][0].resize((128, 128)).save(file)
    images = ImageSet.from_folder(folder)
    content = bytearray(images.images[2].read_bytes())
    content[60:68] = b"nonsense"
    images.images[2].write_bytes(content)
    return images


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    files, decode = [], pictures._decode

    def note(file, name, *more):
        files.append(Path(name).name)
        return decode(file, name, *more)

    monkeypatch.setattr(pictures, "_decode", note)
    return files


@pytest.mark.parametrize("name", ["ZeroShot", "FLYP", "ReCLIP"])
def test_a_damaged_image_has_no_row_and_is_named(name, fitted, photos):
    with pytest.warns(UserWarning, match="1 of 8 images skipped"):
        table = to_pandas(fitted[name], photos)
    sound = [0, 1, 3, 4, 5, 6, 7]
    assert table.index.tolist() == sound
    assert table["image"].tolist() == [str(photos.images[place]) for place in sound]
    [(file, reason)] = table.attrs["skipped"]
    assert file == str(photos.images[2]) and "cannot be read" in reason
    answers = fitted[name].predict_proba(photos.subset(sound))
    assert np.allclose(table["confidence"], answers.max(1), atol=1e-6)
    assert table["class_index"].tolist() == answers.argmax(1).tolist()
    truth = [photos.classnames[label] for label in photos.labels[sound]]
    assert table["label"].tolist() == truth
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        to_pandas(fitted[name], photos[2:3])


@pytest.mark.parametrize("name", ["ZeroShot", "FLYP", "ReCLIP"])
def test_probabilities_and_features_decode_an_image_once(name, fitted, photos, decoded):
    pytest.importorskip("cleanlab")
    sound = photos[[0, 1, 3, 4, 5, 6, 7]]
    lab = to_cleanlab(
        fitted[name], sound.unlabelled(), issue_types={"outlier": {"k": 2}}
    )
    assert sorted(decoded) == sorted(Path(each).name for each in lab.data["image"])
    assert len(decoded) == 7


def test_a_store_is_asked_for_features(clip, photos, decoded, tmp_path):
    sound = photos[[0, 1, 3, 4]]
    stored = StoredCLIP(clip, FeatureStore(tmp_path / "store"))
    method = ZeroShot(stored, NAMES).fit(sound)
    first, second = to_pandas(method, sound), to_pandas(method, sound)
    pd.testing.assert_frame_equal(first, second)
    assert len(decoded) == 4


def test_the_command_writes_the_same(clip, photos, tmp_path):
    out = str(tmp_path / "answers.csv")
    root = str(photos.images[0].parent.parent)
    options = ["--classes", ",".join(NAMES), "--probabilities", "--no-store"]
    asked = ["zero-shot", "--images", root, "--out", out, *options]
    answer = CliRunner().invoke(main, asked)
    assert answer.exit_code == 0, answer.output
    with pytest.warns(UserWarning, match="skipped"):
        table = to_pandas(ZeroShot(clip, NAMES).fit(photos), photos, probabilities=True)
    written = pd.read_csv(out)
    ours = table.drop(columns=["class_index", "label"])
    assert ours.columns.tolist() == written.columns.tolist()
    numbers = ours.columns[2:]
    assert ours["image"].tolist() == written["image"].tolist()
    assert ours["prediction"].tolist() == written["prediction"].tolist()
    assert (ours[numbers].round(4).to_numpy() == written[numbers].to_numpy()).all()


def test_pairs_of_an_image_are_rows_and_an_image_without_has_one(clip, pool):
    method = CPL(clip, NAMES, epochs=1, batch_size=30).fit(pool)
    table = to_pandas(method, pool, "pseudolabels")
    used = table[table["used"]]
    assert sorted(zip(used.index, used["class_index"])) == sorted(
        map(tuple, method.pseudolabels_.tolist())
    )
    assert set(table.index) == set(range(60)) and used.index.has_duplicates
    assert not table[~table["used"]].index.has_duplicates
    assert (table["label"].cat.codes == pool.labels[table.index]).all()
    with pytest.raises(ValueError, match="several candidate classes"):
        to_cleanlab(method, pool, what="pseudolabels")


def test_reclip_uses_what_its_towers_agree_on(fitted, pool):
    first, second = fitted["ReCLIP"].pseudolabels_
    table = to_pandas(fitted["ReCLIP"], pool, "pseudolabels")
    assert (table["used"] == (first == second)).all()
    assert (table["class_index"] == np.where(first == second, first, -1)).all()


def test_lpclip_says_how_much_an_image_counts(clip, pool):
    method = LPCLIP(clip, NAMES, epochs=1, views=1, threshold=0.5).fit(pool)
    table = to_pandas(method, pool, "pseudolabels")
    confidences = method.confidences_
    assert 0 < table["used"].sum() < 60
    assert (table["used"] == (confidences >= 0.5)).all()
    assert np.allclose(table["weight"], confidences * (confidences >= 0.5))
    assert (table["class_index"] == method.pseudolabels_).all()


def test_pseudolabels_of_nobody_or_of_other_images_are_refused(clip, fitted, pool):
    with pytest.raises(ValueError, match="ZeroShot keeps no pseudolabels"):
        to_pandas(fitted["ZeroShot"], pool, "pseudolabels")
    with pytest.raises(ValueError, match="fitted on 60 images, and these are 5"):
        to_pandas(fitted["FLYP"], pool[:5], "pseudolabels")
    memory = NearestNeighbours(clip, NAMES, per_class=2).fit(pool)
    with pytest.raises(ValueError, match="not which images these are"):
        to_pandas(memory, pool, "pseudolabels")
    with pytest.raises(NotFittedError):
        to_pandas(Prototypes(clip, NAMES), pool, "pseudolabels")


def test_labels_are_compared_by_name(clip):
    train = digits("train").subset(range(12))
    names = NAMES[::-1] + ["smudge"]
    labels = 9 - train.labels
    labels[3], labels[4] = -1, 10
    other = ImageSet(train.images, names, labels)
    table = to_pandas(ZeroShot(clip, NAMES).fit(train), other)
    assert table["label"].isna().tolist() == [place == 3 for place in range(12)]
    assert table["label"][4] == "smudge"
    assert table["label"][0] == NAMES[train.labels[0]]
    same = table["label"] == table["prediction"]
    assert same[5:].equals(table["class_index"][5:] == train.labels[5:])


def test_classes_may_be_called_like_columns(clip, pool):
    names = ["path", "image", "confidence", "confidence (class)"]
    table = to_pandas(ZeroShot(clip, names).fit(pool), pool[:3], probabilities=True)
    added = [
        "path (class)",
        "image (class)",
        "confidence (class)",
        "confidence (class) (class)",
    ]
    assert table.columns[5:].tolist() == added
    assert np.allclose(table[added].sum(axis=1), 1)
    shared = to_dataset(ZeroShot(clip, names).fit(pool), pool[:3], probabilities=True)
    assert set(added) < set(shared.column_names)


def test_no_images_give_a_table_without_rows(fitted):
    for method in fitted.values():
        table = to_pandas(method, digits("test")[:0], probabilities=True)
        assert len(table) == 0 and table["confidence"].dtype == float
        assert table.columns[5:].tolist() == NAMES


@pytest.mark.parametrize(
    "package, extra, hand_over",
    [
        ("cleanlab", "tools", to_cleanlab),
        ("datasets", "tools", to_dataset),
        ("fiftyone", "fiftyone", to_fiftyone),
    ],
)
def test_a_package_that_is_not_there_is_named(
    package, extra, hand_over, fitted, pool, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'clipadapt\[{extra}\]'"):
        hand_over(fitted["ZeroShot"], pool)


def test_what_is_judged_keeps_its_place(fitted, photos):
    pytest.importorskip("cleanlab")
    labels = [NAMES[number % 2] for number in range(8)]
    labels[5] = None
    with pytest.warns(UserWarning) as said:
        lab = to_cleanlab(fitted["ZeroShot"], photos, labels, issue_types={"label": {}})
    assert lab.data["index"] == [0, 1, 3, 4, 6, 7]
    assert lab.data["label"] == [labels[place] for place in (0, 1, 3, 4, 6, 7)]
    assert lab.class_names == ["one", "zero"]
    said = " ".join(str(warning.message) for warning in said)
    assert (
        "1 of 8 images skipped" in said and "no image is labelled eight, five" in said
    )


def test_the_probability_of_a_class_without_labels_is_shared(clip):
    pytest.importorskip("cleanlab")
    train = digits("train").subset(range(200))
    method = ZeroShot(clip, NAMES).fit(train)
    some = train[train.labels < 7]
    with pytest.warns(UserWarning, match="no image is labelled eight, nine, seven"):
        lab = to_cleanlab(method, some, issue_types={"label": {}})
    found, answers = lab.get_issues("label"), method.predict_proba(some)
    elsewhere = answers[:, 7:].sum(1) > 0.9
    assert elsewhere.any() and (found["label_score"][elsewhere] < 0.3).all()


def test_labels_to_judge_are_one_kind(fitted, pool):
    pytest.importorskip("cleanlab")
    with pytest.raises(ValueError, match="not both"):
        to_cleanlab(fitted["FLYP"], pool, pool.labels, "pseudolabels")
    with pytest.raises(ValueError, match="what must be 'labels' or 'pseudolabels'"):
        to_cleanlab(fitted["FLYP"], pool, what="predictions")
    with pytest.raises(ValueError, match="no images"):
        to_cleanlab(fitted["FLYP"], pool[:0])


def test_features_have_no_pictures(clip, fitted, pool):
    features = FeatureSet(clip.encode_image(pool), NAMES, pool.labels)
    with pytest.raises(ValueError, match="the images themselves"):
        to_dataset(fitted["ZeroShot"], features)
    table = to_pandas(fitted["ZeroShot"], features)
    pd.testing.assert_frame_equal(table, to_pandas(fitted["ZeroShot"], pool))


def test_a_data_set_is_read_by_others(fitted, photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    sound = photos[[0, 1, 3]]
    made = to_dataset(fitted["ZeroShot"], sound, probabilities=True)
    made.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert saved.features["prediction"].names[:10] == NAMES
    assert saved[1]["image"].size == (128, 128)
    table = to_pandas(fitted["ZeroShot"], sound)
    assert saved["path"] == table["image"].tolist()
    assert np.allclose(saved["confidence"], table["confidence"])


def test_a_picture_that_lies_elsewhere_is_stored(fitted):
    datasets = pytest.importorskip("datasets")

    class Elsewhere(list):
        def file_of(self, index):
            return f"s3://bucket/{index}.png"

    images = ImageSet(Elsewhere(digits("test").images[:2]), NAMES)
    made = to_dataset(fitted["ZeroShot"], images)
    raw = made.cast_column("image", datasets.Image(decode=False))
    assert made["path"] == [None, None] and raw[1]["image"]["bytes"][1:4] == b"PNG"
    table = to_pandas(fitted["ZeroShot"], images)
    assert table["image"].tolist() == ["s3://bucket/0.png", "s3://bucket/1.png"]


@pytest.fixture
def files(tmp_path):
    scan = digits("test")[0][0]
    for name in ("a", "b", "c"):
        scan.save(tmp_path / f"{name}.png")
    return pd.DataFrame({"image": ["a.png", "b.png", "c.png"]}), tmp_path


@pytest.mark.parametrize(
    "labels, options, expected",
    [
        (["x", "", "y"], {}, [0, -1, 1]),
        (["x", " ", None], {}, [0, -1, -1]),
        ([" x  y", "x y", np.nan], {}, [0, 0, -1]),
        ([np.nan, 1.0, 0.0], {"classnames": ["y", "x"]}, [-1, 1, 0]),
        (pd.array([1, None, 0], "Int64"), {"classnames": ["y", "x"]}, [1, -1, 0]),
        ([1, -1, 0], {"classnames": ["y", "x"]}, [1, -1, 0]),
        (["2", "1", "2"], {}, [1, 0, 1]),
        ([1, 0, 1], {"classnames": ["0", "1"]}, [1, 0, 1]),
        (pd.Categorical(["y", "x", None], ["y", "z", "x"]), {}, [0, 2, -1]),
        ([np.nan] * 3, {"classnames": ["x"]}, [-1, -1, -1]),
    ],
    ids=str,
)
def test_labels_of_a_table(files, labels, options, expected):
    frame, root = files
    frame = frame.assign(label=labels).set_index(pd.Index([7, 7, 3]))
    images = ImageSet.from_dataframe(frame, label="label", root=root, **options)
    assert images.labels.tolist() == expected
    if hasattr(frame["label"].dtype, "categories"):
        assert images.classnames == ["y", "z", "x"], "a class without images stays"


@pytest.mark.parametrize(
    "labels, options, message",
    [
        ([True, False, True], {"classnames": ["x", "y"]}, "labels must be integers"),
        ([0.5, 1, 0], {"classnames": ["x", "y"]}, "labels must be integers"),
        ([1e30, 1, 0], {"classnames": ["x", "y"]}, "labels must be integers"),
        ([0, 1, 2], {"classnames": ["x", "y"]}, "found [2]"),
        (["x", "z", "y"], {"classnames": ["x", "y"]}, "classes that there are not: z"),
        ([0, 1, 0], {}, "numbers need classnames="),
        (["x", 3, "y"], {}, "for example 3"),
        (["x", ["y"], "y"], {}, "for example ['y']"),
        ([3, 7, 3], {"classnames": ["3", "7"]}, "read that column as text"),
    ],
    ids=str,
)
def test_labels_of_a_table_that_are_refused(files, labels, options, message):
    frame, root = files
    with pytest.raises(ValueError) as said:
        ImageSet.from_dataframe(
            frame.assign(label=labels), label="label", root=root, **options
        )
    assert message in str(said.value)


@pytest.mark.parametrize(
    "paths, error, message",
    [
        (
            ["a.png", "./a.png", "b.png"],
            ValueError,
            "1 files are listed more than once",
        ),
        (["a.png", "image 3", "b.png"], FileNotFoundError, "images.subset"),
        (
            ["a.png", "no\0thing", "b.png"],
            FileNotFoundError,
            "1 of 3 files are not there",
        ),
        (["a.png", 3, "b.png"], ValueError, "a path in every row, not 3"),
        (["a.png", "", "b.png"], ValueError, "a path in every row, not ''"),
    ],
    ids=str,
)
def test_paths_of_a_table_that_are_refused(files, paths, error, message):
    with pytest.raises(error) as said:
        ImageSet.from_dataframe(pd.DataFrame({"image": paths}), root=files[1])
    assert message in str(said.value) and "\0" not in str(said.value)


def test_a_table_is_a_table(files, monkeypatch):
    frame, root = files
    with pytest.raises(ValueError, match="a DataFrame of pandas, not str"):
        ImageSet.from_dataframe(str(root / "table.csv"))
    with pytest.raises(ValueError, match="several columns 'image'"):
        ImageSet.from_dataframe(pd.concat([frame, frame], axis=1))
    with pytest.raises(ValueError, match="check must be"):
        ImageSet.from_dataframe(frame, root=root, check="some")
    monkeypatch.chdir(root)
    images = ImageSet.from_dataframe(frame.rename(columns={"image": "file"}), "file")
    assert len(images) == 3 and images[0][0].size == (32, 32)
    assert len(ImageSet.from_dataframe(frame[:0])) == 0
    assert images.source == "a table of 3 images"
