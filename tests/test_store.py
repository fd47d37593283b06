"""Commands decode an image once in its life, and look after what they keep."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from clipadapt import ImageSet, Prototypes, digits, load_clip, readable
from clipadapt.app.cli import main
from clipadapt.clip import model
from clipadapt.images import pictures

COUNT = 24


def run(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path):
    """A sub-folder for each class, with JPEG files in it."""
    images = digits("train").subset(range(COUNT))
    for number, (image, label) in enumerate(images):
        folder = tmp_path / "photos" / images.classnames[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.resize((600, 400)).save(folder / f"{number:02d}.jpg", quality=95)
    return tmp_path / "photos"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, in a list that a test can clear."""
    names, original = [], pictures._decode

    def decode(file, name, *more):
        names.append(Path(name).name)
        return original(file, name, *more)

    monkeypatch.setattr(pictures, "_decode", decode)
    return names


@pytest.fixture
def encoded(monkeypatch):
    """How many images each batch has that any image tower encodes."""
    counts, original = [], model._features

    def features(clip, encoder, batch):
        if batch.ndim == 4:
            counts.append(len(batch))
        return original(clip, encoder, batch)

    monkeypatch.setattr(model, "_features", features)
    return counts


def damage(path):
    """A PNG file that is listed as an image and cannot be decoded."""
    digits("train")[0][0].save(path)
    content = bytearray(path.read_bytes())
    content[60:68] = b"nonsense"
    path.write_bytes(content)


@pytest.mark.parametrize("method", ["prototypes", "lpclip"])
def test_an_image_is_decoded_once_for_its_features_and_its_views(
    method, cache, photos, decoded, tmp_path
):
    fast = ["--set", "epochs=1"] if method == "lpclip" else []
    run("adapt", "--images", photos, "--method", method, *fast, "--out", tmp_path / "a")
    assert len(decoded) == COUNT
    decoded.clear()
    run("adapt", "--images", photos, "--method", method, *fast, "--out", tmp_path / "b")
    assert not decoded
    first, again = (tmp_path / name / "predictions.csv" for name in "ab")
    assert first.read_bytes() == again.read_bytes()


def test_a_new_image_is_the_only_one_that_is_decoded(cache, photos, decoded, tmp_path):
    run("encode", "--images", photos, "--out", tmp_path / "a.parquet")
    decoded.clear()
    Image.new("RGB", (300, 200), "red").save(min(photos.iterdir()) / "new.jpg")
    run("encode", "--images", photos, "--out", tmp_path / "b.parquet")
    assert decoded == ["new.jpg"]
    before, after = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    assert len(after) == COUNT + 1 and set(before.image) < set(after.image)
    both = before.merge(after, on="image")
    assert np.array_equal(np.stack(both.feature_x), np.stack(both.feature_y))


def test_compare_decodes_every_image_once(cache, photos, decoded, tmp_path):
    methods = "zero-shot,prototypes,nearest-neighbours"
    options = ["--images", photos, "--methods", methods, "--out", tmp_path / "out"]
    run("compare", *options)
    assert sorted(set(decoded)) == sorted(path.name for path in photos.rglob("*.jpg"))
    # the report shows some images
    assert len(decoded) <= 2 * COUNT


@pytest.mark.parametrize("options", [[], ["--no-store"]])
def test_a_damaged_image_is_named_skipped_and_counted(options, cache, photos, tmp_path):
    path = min(photos.iterdir()) / "damaged.png"
    damage(path)
    done = run("adapt", "--images", photos, "--out", tmp_path / "run", *options)
    assert "1 of 25 images skipped" in done.output and "damaged.png" in done.output
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["images"]["count"] == COUNT
    assert "damaged.png" in str(record["images"]["skipped"])
    answers = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert sorted(answers.image) == sorted(map(str, photos.rglob("*.jpg")))


@pytest.mark.parametrize("command", ["adapt", "compare"])
def test_a_folder_that_is_taken_is_noticed_before_anything_is_decoded(
    command, cache, photos, decoded, tmp_path
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    words = [command, "--images", str(photos), "--out", str(tmp_path / "taken")]
    assert CliRunner().invoke(main, words).exit_code == 1
    assert not decoded and not (cache / "features").exists()


def test_in_python_a_damaged_image_is_named_and_can_be_left_out(cache, photos):
    path = photos / "damaged.png"
    damage(path)
    clip, images = load_clip(device="cpu"), ImageSet.from_folder(photos)
    names = images.classnames
    with pytest.raises(ValueError, match=r"damaged.png: .*; readable\(clip, images\)"):
        Prototypes(clip, names).fit(images)
    with pytest.warns(UserWarning, match="1 of 25 images skipped"):
        sound = readable(clip, images)
    assert len(Prototypes(clip, names).fit(sound).predict(sound)) == COUNT


def test_without_a_store_nothing_is_kept(cache, photos, tmp_path):
    run("adapt", "--images", photos, "--no-store", "--out", tmp_path / "run")
    assert "of encoding" not in (tmp_path / "run/log.txt").read_text()
    assert not (cache / "features").exists()


def test_whole_files_are_decoded_when_asked(cache, photos, tmp_path):
    run("encode", "--images", photos, "--out", tmp_path / "a.npy")
    run("encode", "--images", photos, "--exact", "--out", tmp_path / "b.npy")
    shrunk, exact = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert not np.array_equal(shrunk, exact)
    assert (shrunk * exact).sum(1).min() > 0.99


def test_the_store_is_shown_exported_verified_compacted_and_cleared(
    cache, photos, tmp_path
):
    run("encode", "--images", photos, "--out", tmp_path / "a.npy")
    listed = run("store", "list", "--out", tmp_path / "list.csv")
    [row] = pd.read_csv(tmp_path / "list.csv", dtype=str).to_dict("records")
    assert (row["rows"], row["model"]) == (str(COUNT), "built-in"), listed.output
    for name in ("all.parquet", "all.npy"):
        run("store", "export", row["key"], "--out", tmp_path / name)
    table = pd.read_parquet(tmp_path / "all.parquet")
    features = np.load(tmp_path / "all.npy")
    assert np.array_equal(np.stack(table.feature), features)
    assert pd.read_csv(tmp_path / "all.csv").key.tolist() == table.key.tolist()
    assert sorted(features.tolist()) == sorted(np.load(tmp_path / "a.npy").tolist())
    verified = run("store", "verify").output
    assert f"{COUNT} features are whole, 0 were damaged" in verified
    run("store", "compact")
    assert run("store", "list").output.count(str(COUNT))
    run("store", "clear")
    assert "built-in" not in run("store", "list").stdout


def test_a_key_that_is_not_there(cache):
    done = CliRunner().invoke(main, ["store", "export", "abc", "--out", "x.npy"])
    assert done.exit_code == 1
    assert "0 tables have a key that begins with 'abc'" in done.output


SHORT = ["--set", "epochs=1"]
TUNED = {
    "flyp": ["flyp", *SHORT],
    "visual prompts": ["fpl", "--set", "prompt=visual", *SHORT],
    "coreg on pixels": ["coreg", *SHORT, "--set", "warmup_epochs=1"],
    "latteclip": ["latteclip", *SHORT],
}


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_method_predicts_in_one_pass(
    name, cache, photos, decoded, encoded, tmp_path
):
    method, *settings = TUNED[name]
    fit = ["--images", photos, "--method", method, *settings, "--out", tmp_path / "run"]
    run("adapt", *fit)
    expected = pd.read_csv(tmp_path / "run" / "predictions.csv")
    damage(min(photos.iterdir()) / "00 damaged.png")
    out = tmp_path / "answers.csv"
    for more in (["--no-store"], ["--overwrite"]):
        decoded.clear()
        encoded.clear()
        asked = ["--images", photos, "--out", out, *more]
        done = run("predict", "--saved", tmp_path / "run", *asked)
        assert sorted(decoded) == sorted(path.name for path in photos.rglob("*.*"))
        by_clip = name in ("flyp", "latteclip")  # the tuned one, and nobody else
        assert sum(encoded) == (COUNT + 1 if by_clip else 0)
        assert "1 of 25 images skipped" in done.output and "damaged.png" in done.output
        assert f"of the {COUNT} labelled images" in done.output
        answers = pd.read_csv(out)
        assert answers.image.tolist() == expected.image.tolist()
        assert answers.prediction.tolist() == expected.prediction.tolist()
        assert np.allclose(answers.confidence, expected.confidence, atol=2e-4)


def test_a_damaged_image_gets_no_caption(cache, photos, tmp_path):
    damage(min(photos.iterdir()) / "00 damaged.png")
    out = tmp_path / "captions.csv"
    asked = ["--images", photos, "--captioner", "attributes", "--out", out]
    done = run("caption", *asked)
    assert "1 of 25 images skipped" in done.output and "damaged.png" in done.output
    assert "captions are missing" not in done.output
    captions = pd.read_csv(out)
    assert sorted(captions.image) == sorted(map(str, photos.rglob("*.jpg")))
    assert captions.caption.notna().all()
