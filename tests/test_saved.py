"""What clipadapt 0.1.0 saved loads, and answers as it did then."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import clipadapt
from clipadapt.app.cli import main

# Methods fitted by 0.1.0 on the first 120 scans of the training half (the last four: on
# every ninth; no labels, an epoch or two, the presets), and their probabilities for the
# first five of the test half.
saved = Path(__file__).resolve().parent / "saved-0.1.0"
PROBABILITIES = json.loads((saved / "probabilities.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_method_of_0_1_0_answers_as_it_did(name):
    method = getattr(clipadapt, name).load(saved / name)
    probabilities = method.predict_proba(clipadapt.digits("test").subset(range(5)))
    np.testing.assert_allclose(probabilities, PROBABILITIES[name], atol=0.002)


def test_an_index_of_0_1_0_finds_what_it_found(clip):
    """Its vectors are every ninth image of the training half."""
    index = clipadapt.PrototypeIndex.load(saved / "index")
    images = clipadapt.digits("train").subset(range(0, 81, 9))
    _, nearest = index.search(clip.encode_image(images), 1)
    assert np.array_equal(nearest[:, 0], np.arange(9)) and len(index) == 100


def test_the_command_line_reads_a_method_of_0_1_0(tmp_path):
    image, _ = clipadapt.digits("test")[0]
    (tmp_path / "scans").mkdir()
    image.resize((32, 32)).save(tmp_path / "scans" / "one.png")
    command = f"predict --saved {saved / 'GRIP'} --images {tmp_path / 'scans'}"
    answer = CliRunner().invoke(main, command.split())
    assert answer.exit_code == 0, answer.output
    assert "one.png" in answer.output


def test_a_student_of_0_1_0_had_no_annotator_and_can_be_saved_again(tmp_path):
    method = clipadapt.GRIP.load(saved / "GRIP")
    assert method.annotator_ == "" and method.annotator is None
    method.save(tmp_path / "again")
    images = clipadapt.digits("test").subset(range(5))
    again = clipadapt.GRIP.load(tmp_path / "again")
    assert np.array_equal(again.predict_proba(images), method.predict_proba(images))
