"""Prompts of each class: every method takes them, files of them are read and kept."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fuzz.state import CLASSES, Sealed, quick_methods, some_images
from safetensors.numpy import save
from sklearn.base import clone

from clipadapt import ZeroShot
from clipadapt.app.cli import main
from clipadapt.clip import templates
from clipadapt.clip.features import fit_facts
from clipadapt.clip.templates import check_templates, names_file, read_templates
from clipadapt.images.files import _seal

WORDINGS = ["a photo of a {}.", "the {}."]
NAMES = sorted(
    name
    for name, method in quick_methods(SimpleNamespace(name=None)).items()
    if "templates" in method.get_params(deep=False)
)
assert len(NAMES) > 15, "nearly all methods take templates"


def described(repeats=1):
    """Prompts of each class that say what `WORDINGS` do, each so many times."""
    return {
        name: [wording.format(name) for wording in WORDINGS] * repeats
        for name in CLASSES
    }


def answers(method, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.fit(images).predict_proba(images)


@pytest.fixture(scope="module")
def images():
    return some_images(12)


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_that_say_the_same_as_templates_give_the_same(
    name, clip, images, tmp_path
):
    method = quick_methods(clip)[name]
    expected = answers(clone(method).set_params(templates=WORDINGS), images)
    told = clone(method).set_params(templates=described())
    np.testing.assert_allclose(answers(told, images), expected, atol=1e-5)
    told.save(tmp_path / "saved")
    loaded = type(method).load(tmp_path / "saved", clip)
    assert loaded.templates == described()
    found = loaded.predict_proba(images)
    np.testing.assert_allclose(found, told.predict_proba(images), atol=1e-5)


@pytest.mark.parametrize("name", ["ZeroShot", "TransCLIP", "LatteCLIP", "ReCLIP"])
def test_a_class_with_fewer_prompts_counts_as_much(name, clip, images):
    method = quick_methods(clip)[name]
    uneven = {**described(), CLASSES[0]: described()[CLASSES[0]] * 3}
    found = answers(clone(method).set_params(templates=uneven), images)
    expected = answers(clone(method).set_params(templates=described()), images)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["FLYP", "CoReg"])
def test_uneven_descriptions_train(name, clip, images):
    uneven = {**described(), CLASSES[0]: ["one thing", "another", "a third {}"]}
    method = quick_methods(clip)[name].set_params(templates=uneven)
    assert np.isfinite(answers(method, images)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_prompts_is_said_before_anything_is_trained(name, clip, images):
    told = described()
    told["naught"] = told.pop(CLASSES[0])
    method = quick_methods(clip)[name].set_params(templates=told)
    message = f"no prompts for '{CLASSES[0]}'; there are prompts for 'naught'"
    with pytest.raises(ValueError, match=message):
        method.fit(images)


def test_a_file_is_read_and_its_content_saved(clip, images, tmp_path):
    file = tmp_path / "digits.json"
    file.write_text(json.dumps(described()), encoding="utf-8")
    for choice in (file, str(file)):
        method = ZeroShot(clip, CLASSES, templates=choice).fit(images)
        facts = fit_facts(method, images)
        assert facts["templates"] == described()
        method.save(tmp_path / "saved")
    file.unlink()
    loaded = ZeroShot.load(tmp_path / "saved", clip)
    assert loaded.templates == described()
    assert np.array_equal(loaded.predict_proba(images), method.predict_proba(images))
    with pytest.raises(FileNotFoundError, match="there is no file of templates"):
        method.save(tmp_path / "again")


def test_a_saved_method_cannot_make_us_read_a_file(clip, images, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('["a secret {}"]', encoding="utf-8")
    ZeroShot(clip, CLASSES, templates=["a {}"]).fit(images).save(tmp_path / "saved")
    path = tmp_path / "saved" / "adapter.safetensors"
    sealed = Sealed(path)
    sealed.record["params"]["templates"] = str(secret)
    header = sealed.header.model_copy(update={"record": json.dumps(sealed.record)})
    header.hash = _seal(sealed.arrays, header)
    path.write_bytes(save(sealed.arrays, {"clipadapt": header.model_dump_json()}))
    with pytest.raises(ValueError, match="names a file of templates .* not read"):
        ZeroShot.load(tmp_path / "saved", clip)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "cannot be used"),
        (b"\xff\xfe", "cannot be used"),
        (b"3", "neither a list nor an object"),
        (b'"single"', "neither a list nor an object"),
        (b"{}", "at least one class"),
        (b"[]", "at least one template"),
        (b'["no gap"]', "has 0"),
        (b'{"a": ["x"], "a": ["y"]}', "class 'a' is there twice"),
        (b'{"a": [["x"]]}', "must be text"),
        (b'{"a": {"b": "x"}}', "needs a list of 1 to 1000 prompts"),
        (b'{"a": null}', "needs a list of 1 to 1000 prompts"),
        (b'{"a": ["\\ud800"]}', "not Unicode text"),
        (b'{"": ["x"]}', "the name of a class with prompts is empty"),
        (b"[" * 100_000, "cannot be used"),
        (json.dumps({"a": ["x"] * 1001}).encode(), "it has 1001"),
    ],
)
def test_files_that_are_refused(content, message, tmp_path):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        check_templates(path)
    assert "odd.json" in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "none.json", "\0.json", "x" * 5000 + ".json"):
        with pytest.raises(FileNotFoundError):
            read_templates(path)
    assert names_file("\0.json") and names_file("a b.JSON") and not names_file("json")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "LARGEST_FILE", 10)
    path = tmp_path / "large.json"
    path.write_text('["a photo of a {}."]')
    with pytest.raises(ValueError, match="is larger than"):
        read_templates(path)


def test_the_command_line_takes_a_file(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for number, (image, _) in enumerate(map(some_images(3).__getitem__, range(3))):
        image.resize((32, 32)).save(scans / f"{number}.png")
    file = tmp_path / "told.json"
    file.write_text(json.dumps(described()), encoding="utf-8")
    names = ",".join(CLASSES)
    given = ["--images", scans, "--classes", names, "--no-store"]
    told = [*map(str, ["zero-shot", *given, "--templates", file])]
    answer = CliRunner().invoke(main, told)
    assert answer.exit_code == 0, answer.output
    assert "2.png" in answer.output
    run = ["adapt", *given, "--method", "prototypes", "--out", tmp_path / "run"]
    answer = CliRunner().invoke(main, [*map(str, run), "--set", f"templates={file}"])
    assert answer.exit_code == 0, answer.output
    file.write_text('{"zero": "a zero"}', encoding="utf-8")
    answer = CliRunner().invoke(main, told)
    assert answer.exit_code != 0 and "there are no prompts for" in answer.output
    assert "Traceback" not in answer.output


def test_a_report_does_not_fail_for_a_file_that_is_gone_or_damaged(tmp_path):
    path = tmp_path / "birds.json"
    path.write_text('{"heron": ["a heron"]}')
    assert templates.describe_templates(path).startswith("1 prompts for 1 classes")
    path.write_text("{")
    assert templates.describe_templates(path) == "a file that can no longer be read"
    path.unlink()
    assert templates.describe_templates(path) == "a file that can no longer be read"
