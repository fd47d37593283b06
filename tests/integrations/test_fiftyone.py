"""FiftyOne takes our answers. No window is opened. `make integrations` runs this.

FiftyOne fetches the server of MongoDB when it is installed. Where that was not to be
had, mongomock stands in for it, which keeps everything in memory: FiftyOne's classes
are the real ones all the same.
"""

import os
import tempfile

import numpy as np
import pytest

from clipadapt import CPL, FeatureSet, ImageSet, Prototypes, ZeroShot, digits
from clipadapt.judge.datatools import to_fiftyone, to_pandas

os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")
# not among the datasets of whoever runs this
os.environ.setdefault("FIFTYONE_DATABASE_DIR", tempfile.mkdtemp())
fiftyone = pytest.importorskip("fiftyone", reason="make integrations installs it")

NAMES = digits("train").classnames


def in_memory(patch):
    """Let FiftyOne use mongomock."""
    mongomock = pytest.importorskip("mongomock", reason="there is no mongod, either")
    import mongoengine.connection
    import pymongo

    server = mongomock.store.ServerStore()

    class Client(mongomock.MongoClient):
        _closed = False

        def __init__(self, *args, **options):
            known = {
                name: options[name] for name in ("host", "port") if name in options
            }
            super().__init__(*args, **known, _store=server)

    patch.setattr(pymongo, "MongoClient", Client)
    patch.setattr(mongoengine.connection, "MongoClient", Client)
    patch.setattr(fiftyone.config, "database_uri", "mongodb://localhost:27017")
    patch.setattr(fiftyone.config, "database_validation", False)
    patch.setenv("FIFTYONE_DISABLE_SERVICES", "1")


@pytest.fixture(scope="module", autouse=True)
def database():
    """The server of FiftyOne where there is one, else a database in memory."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            fiftyone.list_datasets()
        except fiftyone.core.config.FiftyOneConfigError:
            in_memory(patch)
        yield


@pytest.fixture
def photos(tmp_path):
    """Six scans as files; the third is damaged, and two have no label."""
    scans = digits("test").subset(range(6))
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file, (image, _) in zip(files, scans):
        image.save(file)
    content = bytearray(files[2].read_bytes())
    content[60:68] = b"nonsense"
    files[2].write_bytes(content)
    labels = [*scans.labels[:4], -1, -1]
    return ImageSet([str(file) for file in files], NAMES, labels)


def test_a_sample_has_its_answer_its_label_and_its_feature(clip, photos):
    method = ZeroShot(clip, NAMES).fit(photos)
    with pytest.warns(UserWarning, match="1 of 6 images skipped"):
        dataset = to_fiftyone(method, photos)
    with pytest.warns(UserWarning, match="1 of 6 images skipped"):
        table = to_pandas(method, photos)
    assert dataset.values("index") == table.index.tolist() == [0, 1, 3, 4, 5]
    assert dataset.values("filepath") == table["image"].tolist()
    assert dataset.values("prediction.label") == table["prediction"].tolist()
    confidences = dataset.values("prediction.confidence")
    assert np.allclose(confidences, table["confidence"])
    truth = [NAMES[label] for label in photos.labels[[0, 1, 3]]]
    assert dataset.values("ground_truth.label") == [*truth, None, None]
    features = clip.encode_image(photos[[0, 1, 3, 4, 5]]).numpy()
    assert np.allclose(np.stack(dataset.values("embedding")), features)
    dataset.delete()


def test_pseudolabels_are_one_or_several(clip, tmp_path):
    pool = digits("train").subset(range(40))
    one = Prototypes(clip, NAMES).fit(pool)
    dataset = to_fiftyone(one, pool, what="pseudolabels", folder=tmp_path / "scans")
    found = [NAMES[label] for label in one.pseudolabels_]
    assert dataset.values("pseudolabel.label") == found
    assert dataset.values("weight") == [1.0] * 40
    several = CPL(clip, NAMES, epochs=1, batch_size=20).fit(pool)
    dataset = to_fiftyone(several, pool, what="pseudolabels", folder=tmp_path / "scans")
    table = to_pandas(several, pool, "pseudolabels")
    lists = dataset.values("pseudolabel.classifications.label")
    for place, names in enumerate(lists):
        assert (names or []) == table.loc[[place], "pseudolabel"].dropna().tolist()
    assert dataset.values("used") == [bool(names) for names in lists]


def test_images_without_a_file_are_written_where_the_user_says(clip, tmp_path):
    test = digits("test").subset(range(3))
    method = ZeroShot(clip, NAMES).fit(test)
    before = fiftyone.list_datasets()
    with pytest.raises(ValueError, match="image 0 has none: name a folder"):
        to_fiftyone(method, test)
    folder = tmp_path / "new" / "scans"
    dataset = to_fiftyone(method, test, folder=folder)
    names = ["image-000000.png", "image-000001.png", "image-000002.png"]
    assert dataset.values("filepath") == [str(folder / name) for name in names]
    assert sorted(file.name for file in folder.iterdir()) == names
    dataset.delete()
    to_fiftyone(method, test, folder=folder).delete()
    with pytest.raises(ValueError, match="is another picture"):
        to_fiftyone(method, digits("train").subset(range(3)), folder=folder)
    assert fiftyone.list_datasets() == before, "what could not be filled is not there"


def test_names_are_new_and_features_have_no_pictures(clip, photos):
    sound = photos[[0, 1]]
    method = ZeroShot(clip, NAMES).fit(sound)
    dataset = to_fiftyone(method, sound, "clipadapt-test")
    assert dataset.name == "clipadapt-test" and not dataset.persistent
    with pytest.raises(
        ValueError, match="there is a FiftyOne dataset 'clipadapt-test'"
    ):
        to_fiftyone(method, sound, "clipadapt-test")
    assert len(dataset) == 2
    dataset.delete()
    with pytest.raises(ValueError, match="the images themselves"):
        to_fiftyone(method, FeatureSet(clip.encode_image(sound)))


def test_what_the_page_does_with_it(clip, tmp_path):
    brain = pytest.importorskip("fiftyone.brain")
    test = digits("test").subset(range(60))
    method = ZeroShot(clip, NAMES).fit(test)
    dataset = to_fiftyone(method, test, folder=tmp_path)
    results = dataset.evaluate_classifications("prediction", gt_field="ground_truth")
    assert results.metrics()["accuracy"] == pytest.approx(method.score(test))
    seen = brain.compute_visualization(dataset, embeddings="embedding", method="pca")
    assert seen.points.shape == (60, 2)
    dataset.delete()
