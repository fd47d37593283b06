"""The command line: what it writes, what it refuses, how it ends."""

import csv
import inspect
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import numpy as np
import open_clip
import pandas as pd
import psutil
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from processes import program
from tiny_llava import save_tiny_llava

import clipadapt
from clipadapt import CLIP, FPL, Adapter, digits
from clipadapt.app.cli import (
    _architectures,
    _check_padding,
    _tags,
    _without_retries,
    main,
)
from clipadapt.app.runs import (
    METHODS,
    check_value,
    configure,
    finished_run,
    in_words,
    saved_place,
)
from clipadapt.images.files import _host, write_arrays
from clipadapt.learning.adapter import read_saved

CLASSES = ",".join(digits("test").classnames)


def run(*arguments):
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], prog_name="clipadapt"
    )


def shell(*arguments):
    """The command in a process of its own, which hears Ctrl-C even where the tests run
    in the background, and so do not."""
    return subprocess.Popen(
        [sys.executable, "-m", "clipadapt.app.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`flat`: 40 images; `labelled`: 20 in sub-folders by class."""
    root = tmp_path_factory.mktemp("images")
    for name, images in (
        ("flat", digits("train").subset(range(40))),
        ("labelled", digits("test").subset(range(20))),
    ):
        for i, (image, label) in enumerate(images):
            path = (
                root
                / name
                / (images.classnames[label] if name == "labelled" else "")
                / f"{i:02d}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved") / "run"
    assert (
        run(
            "adapt", "--images", folders / "flat", "--classes", CLASSES, "--out", out
        ).exit_code
        == 0
    )
    return out


def test_a_run_says_which_preset_it_took_and_keeps_its_name(saved, folders, tmp_path):
    """Also when nobody chose one; what was asked for stays as it was asked."""
    said = "settings: preset small, made for the built-in CLIP; --preset default"
    assert said in (saved / "log.txt").read_text()
    assert json.loads((saved / "record.json").read_text())["preset"] == "small"
    assert json.loads((saved / "config.json").read_text())["preset"] is None
    same = ("--config", saved / "config.json", "--out", tmp_path / "own")
    done = run("adapt", *same, "--preset", "default")
    assert done.exit_code == 0 and "settings: preset default\n" in done.stderr
    record = json.loads((tmp_path / "own" / "record.json").read_text())
    assert record["preset"] == "default"
    both = ("--methods", "zero-shot", "--out", tmp_path / "both")
    done = run("compare", "--images", folders / "flat", "--classes", CLASSES, *both)
    assert done.exit_code == 0 and said in done.stderr
    record = json.loads((tmp_path / "both" / "record.json").read_text())
    assert record["preset"] == "small"


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """Features and captions of a test go to a folder of its own."""
    where = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("clipadapt.clip.features.cache_directory", lambda: where)
    monkeypatch.setattr("clipadapt.clip.captions.cache_directory", lambda: where)


def test_help_shows_examples():
    for command in main.commands:
        text = run(command, "--help").output
        assert (
            text.startswith(f"Usage: clipadapt {command}")
            and f"clipadapt {command}" in text.split("\n", 1)[1]
        ), command


def test_a_full_gpu_is_an_error_in_one_line_and_a_bug_is_not(folders, monkeypatch):
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a bug")):
        monkeypatch.setattr(
            "clipadapt.clip.features.StoredCLIP.encode_image",
            lambda *_, error=error, **__: (_ for _ in ()).throw(error),
        )
        done = run("zero-shot", "--images", folders / "flat", "--classes", CLASSES)
        assert done.exit_code == 1 and (
            "the memory of the GPU is full" in done.output
        ) == isinstance(error, torch.OutOfMemoryError)


def test_a_warning_is_said_once(folders, tmp_path):
    done = run(
        "compare",
        "--images",
        folders / "flat",
        "--classes",
        "cat,dog",
        "--methods",
        "zero-shot,prototypes,nearest-neighbours",
        "--out",
        tmp_path / "run",
    )
    assert (
        done.exit_code == 0
        and done.stderr.count("to this CLIP cat, dog are the same words") == 1
    )
    assert "one and the same answer" in done.output


def test_lazy_names_are_all_there():
    assert all(
        getattr(clipadapt, name).__name__ == name for name in clipadapt.__all__
    ) and set(clipadapt.__all__) <= set(dir(clipadapt))
    with pytest.raises(AttributeError, match="no attribute 'Clip'"):
        clipadapt.Clip


@pytest.mark.parametrize(
    "method, settings",
    [
        ("zero-shot", []),
        ("nearest-neighbours", []),
        ("prototypes", []),
        ("mixture", []),
        ("transclip", []),
        ("stata", []),
        ("zlap", []),
        ("gaussian-em", []),
        ("em-dirichlet", []),
        ("otter", []),
        ("inmap", []),
        ("fpl", ["epochs=1", "k=2"]),
        ("ifpl", ["epochs=1", "rounds=1", "k=2"]),
        ("grip", ["epochs=1", "rounds=1", "k=2"]),
        ("cpl", ["epochs=1", "rounds=1"]),
        ("coreg", ["epochs=1", "warmup_epochs=1"]),
        ("latteclip", ["epochs=1"]),
        ("lpclip", ["epochs=1", "views=1"]),
        ("flyp", ["epochs=1"]),
        ("reclip", ["epochs=1"]),
    ],
)
def test_every_method_adapts_and_predicts(method, settings, folders, tmp_path):
    options = [part for setting in settings for part in ("--set", setting)]
    done = run(
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--method",
        method,
        *options,
        "--out",
        tmp_path / "run",
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "model",
        "predictions.csv",
        "config.json",
        "record.json",
        "log.txt",
    }
    again = run(
        "predict",
        "--saved",
        tmp_path / "run" / "model",
        "--images",
        folders / "flat",
        "--out",
        tmp_path / "answers.csv",
    )
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "answers.csv"),
        pd.read_csv(tmp_path / "run" / "predictions.csv"),
        atol=1e-3,
    )


def test_methods_of_the_parametrisation_are_all(request):
    assert {
        mark.args[1][i][0]
        for mark in test_every_method_adapts_and_predicts.pytestmark
        for i in range(len(mark.args[1]))
    } == set(METHODS)


def test_the_mixture_adapts_when_no_method_is_named(saved):
    assert json.loads((saved / "config.json").read_text())["method"] == "mixture"
    assert "fitting AnchoredMixture" in (saved / "log.txt").read_text()


def test_a_run_can_be_repeated_from_its_folder(saved, tmp_path):
    record, log = (
        json.loads((saved / "record.json").read_text()),
        (saved / "log.txt").read_text(),
    )
    assert (
        record["images"]["count"] == 40
        and record["versions"]["clipadapt"] == clipadapt.__version__
        and "fitted in" in log
    )
    again = run("adapt", "--config", saved / "config.json", "--out", tmp_path / "again")
    assert (
        again.exit_code == 0
        and (tmp_path / "again" / "predictions.csv").read_bytes()
        == (saved / "predictions.csv").read_bytes()
    )
    assert (
        json.loads((tmp_path / "again" / "record.json").read_text())["images"]
        == record["images"]
    )


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "no config.json of a run"),
        ("[1]", "no config.json of a run"),
        ('{"seed": 1}', "no config.json of a run"),
        ('{"command": "compare"}', "another command than adapt"),
        ('{"command": "adapt", "method": "magic"}', "magic"),
    ],
)
def test_a_config_of_something_else_is_refused(content, message, tmp_path):
    """Else the handwriting would be adapted to, in silence."""
    (tmp_path / "config.json").write_text(content)
    refused = run(
        "adapt", "--config", tmp_path / "config.json", "--out", tmp_path / "x"
    )
    assert (
        refused.exit_code == 2
        and message in refused.stderr
        and not (tmp_path / "x").exists()
    )


def test_a_run_can_be_repeated_from_another_directory(folders, tmp_path, monkeypatch):
    (tmp_path / "classes.txt").write_text(
        "zero\n\n\tone\t\n  два \n八\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            "adapt",
            "--images",
            os.path.relpath(folders / "flat"),
            "--classes",
            "classes.txt",
            "--probabilities",
            "--out",
            "here",
        ).exit_code
        == 0
    )
    monkeypatch.chdir(folders)
    assert (
        run(
            "adapt",
            "--config",
            tmp_path / "here" / "config.json",
            "--out",
            tmp_path / "there",
        ).exit_code
        == 0
    )
    here, there = (
        pd.read_csv(tmp_path / name / "predictions.csv") for name in ("here", "there")
    )
    assert here.image[0] == os.path.join(
        os.path.relpath(folders / "flat", tmp_path), "00.png"
    )
    assert there.image[0] == str(folders / "flat" / "00.png")  # as the config names it
    pd.testing.assert_frame_equal(
        here.drop(columns="image"), there.drop(columns="image")
    )
    assert list(pd.read_csv(tmp_path / "there" / "predictions.csv").columns) == [
        "image",
        "prediction",
        "confidence",
        "zero",
        "one",
        "два",
        "八",
    ]


def test_a_list_of_classes_may_be_longer_than_a_file_name(folders, tmp_path):
    names = ",".join(
        f"a class with a long name, number {i}".replace(",", "") for i in range(20)
    )
    assert (
        run(
            "zero-shot",
            "--images",
            folders / "flat",
            "--classes",
            names,
            "--probabilities",
            "--out",
            tmp_path / "a.csv",
        ).exit_code
        == 0
    )
    assert len(pd.read_csv(tmp_path / "a.csv").columns) == 3 + 20


def test_labels_of_sub_folders_are_read_only_when_asked(folders, tmp_path):
    for name, options in (("blind", []), ("seen", ["--use-labels"])):
        assert (
            run(
                "adapt",
                "--images",
                folders / "labelled",
                "--method",
                "lpclip",
                "--set",
                "views=1",
                "--set",
                "epochs=1",
                *options,
                "--out",
                tmp_path / name,
            ).exit_code
            == 0
        )
        log = (tmp_path / name / "log.txt").read_text()
        assert ("all of these labels the method was given" in log) == (name == "seen")
        assert "encoding 20 images, and 2 views of each, which LPCLIP learns" in log
        assert log.index("encoding 20") < log.index("fitting LPCLIP")
        record = json.loads((tmp_path / name / "record.json").read_text())
        assert record["encoding_seconds"] > 0 and " s of encoding" in log
    blind, seen = (
        read_saved(tmp_path / name / "model")[0].fitted["history_"]
        for name in ("blind", "seen")
    )
    assert blind != seen


def test_labels_that_are_asked_for_and_are_nowhere_are_an_error(folders, tmp_path):
    same = ("--classes", CLASSES, "--use-labels", "--out", tmp_path / "x")
    done = run("adapt", "--images", folders / "flat", *same)
    said = f"no image of {folders / 'flat'} has a label; put those whose class"
    assert done.exit_code == 1 and said in done.stderr
    done = run("adapt", *same, "--classes", "cat,dog")
    assert done.exit_code == 1 and "no image of the handwriting has" in done.stderr
    assert not (tmp_path / "x").exists()


def test_formats_and_columns(saved, folders, tmp_path):
    assert (
        run(
            "predict",
            "--saved",
            saved / "model",
            "--images",
            folders / "labelled",
            "--out",
            tmp_path / "a.json",
            "--probabilities",
        ).exit_code
        == 0
    )
    table = pd.read_json(tmp_path / "a.json")
    assert (
        list(table.columns)
        == ["image", "prediction", "confidence", *CLASSES.split(",")]
        and len(table) == 20
    )
    np.testing.assert_allclose(table[CLASSES.split(",")].sum(axis=1), 1, atol=1e-3)
    piped = run("zero-shot", "--images", folders / "flat", "--classes", CLASSES)
    assert (
        piped.stdout.startswith("image,prediction,confidence\n")
        and piped.stdout.count("\n") == 41
    )


def test_class_names_may_hold_commas(folders, tmp_path):
    names = ["zero, none", *CLASSES.split(",")[1:]]
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    assert (
        run(
            "adapt",
            "--images",
            folders / "flat",
            "--classes",
            tmp_path / "classes.txt",
            "--out",
            tmp_path / "run",
        ).exit_code
        == 0
    )
    done = run(
        "predict",
        "--saved",
        tmp_path / "run",
        "--images",
        folders / "flat",
        "--probabilities",
        "--out",
        tmp_path / "answers.json",
    )
    assert (
        done.exit_code == 0
        and list(pd.read_json(tmp_path / "answers.json").columns[3:]) == names
    ), done.output


def test_one_image_is_enough(folders, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "only.png").write_bytes(
        (folders / "flat" / "00.png").read_bytes()
    )
    assert (
        run(
            "adapt",
            "--images",
            tmp_path / "one",
            "--classes",
            CLASSES,
            "--out",
            tmp_path / "run",
        ).exit_code
        == 0
    )
    assert len(pd.read_csv(tmp_path / "run" / "predictions.csv")) == 1


def test_damaged_images_are_named_skipped_and_counted(folders, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "good.png").write_bytes(
        (folders / "flat" / "00.png").read_bytes()
    )
    (tmp_path / "some" / "bad.png").write_bytes(b"no image")
    done = run(
        "adapt",
        "--images",
        tmp_path / "some",
        "--classes",
        CLASSES,
        "--out",
        tmp_path / "run",
    )
    assert (
        done.exit_code == 0
        and "bad.png" in done.stderr
        and "1 of 2 images skipped" in done.stderr
        and "1 of 2 images are used; 1 cannot be read (1 .png)" in done.stderr
        and "Traceback" not in done.output
    )
    assert json.loads((tmp_path / "run" / "record.json").read_text())["images"][
        "skipped"
    ][0][0].endswith("bad.png")


def test_a_folder_that_is_not_empty_is_not_touched(saved, folders, tmp_path):
    same = ("adapt", "--images", folders / "flat", "--classes", CLASSES, "--out")
    refused = run(*same, saved)
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr
    out = tmp_path / "run"
    assert (
        run(*same, out).exit_code == 0 and run(*same, out, "--overwrite").exit_code == 0
    )
    (out / "thesis.txt").write_text("mine")
    foreign = run(*same, out, "--overwrite")
    assert (
        foreign.exit_code == 1
        and "thesis.txt" in foreign.stderr
        and (out / "thesis.txt").read_text() == "mine"
        and (out / "predictions.csv").exists()
    )
    (out / "thesis.txt").unlink()
    (out / "model" / "weights.pt").write_text("mine")
    inner = run(*same, out, "--overwrite")
    assert (
        inner.exit_code == 1
        and "model/weights.pt" in inner.stderr
        and (out / "model" / "adapter.safetensors").exists()
    )
    other = run(
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--seed",
        1,
        "--out",
        saved,
        "--resume",
    )
    assert other.exit_code == 1 and "seed" in other.stderr


@pytest.mark.parametrize("config", [None, '{"mine": 1}'])
def test_files_of_the_same_names_that_no_run_wrote_survive(config, folders, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter.safetensors").write_text("mine")
    (tmp_path / "report.html").write_text("mine")
    if config:
        (tmp_path / "config.json").write_text(config)
    before = {path: path.read_text() for path in tmp_path.rglob("*.*")}
    for option in ("--overwrite", "--resume"):
        assert (
            run(
                "adapt",
                "--images",
                folders / "flat",
                "--classes",
                CLASSES,
                "--out",
                tmp_path,
                option,
            ).exit_code
            == 1
        )
    assert {path: path.read_text() for path in tmp_path.rglob("*.*")} == before


def test_drafts_of_a_killed_run_do_not_stop_the_next(saved, folders, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_bytes((saved / "config.json").read_bytes())
    ended = f"{_host()}-{max(psutil.pids()) + 100_000}-00000000.draft"
    (out / f".predictions.csv.{ended}").write_text("half a ta")
    (out / f".model.{ended}").mkdir()
    (out / f".model.{ended}" / "adapter.safetensors").write_text("half")
    for option in ("--resume", "--overwrite"):
        assert (
            run(
                "adapt",
                "--images",
                folders / "flat",
                "--classes",
                CLASSES,
                "--out",
                out,
                option,
            ).exit_code
            == 0
        ), option
    assert {path.name for path in out.iterdir()} == {
        "model",
        "predictions.csv",
        "config.json",
        "record.json",
        "log.txt",
    }


def test_quiet_says_nothing_and_logs_all_the_same(folders, tmp_path):
    for name, arguments in (
        ("before", ["--quiet", "adapt"]),
        ("after", ["adapt", "--quiet"]),
    ):
        done = run(
            *arguments,
            "--images",
            folders / "flat",
            "--classes",
            CLASSES,
            "--out",
            tmp_path / name,
        )
        assert (
            done.exit_code == 0
            and done.output == ""
            and "fitted in" in (tmp_path / name / "log.txt").read_text()
        )


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (
            ["adapt", "--images", "nowhere", "--classes", "a,b", "--out", "x"],
            1,
            "no such folder",
        ),
        (["adapt", "--classes", ",", "--out", "x"], 1, "names no class"),
        (["adapt", "--classes", "a,a", "--out", "x"], 1, "distinct"),
        *(
            (command.split(), 1, f"{said}, and every image would be given it")
            for command, said in {
                "adapt --classes cat --out x": "--classes 'cat' names one class only",
                "zero-shot --classes cat;dog": "'cat;dog' names one class only",
                "compare --classes one.txt --out x": "'one.txt' names one class only",
                "adapt --images one --out x": "one has one sub-folder only ('cat')",
                "zero-shot --images one": "one has one sub-folder only ('cat')",
            }.items()
        ),
        (
            ["adapt", "--method", "lpclip", "--set", "epoch=3", "--out", "x"],
            1,
            "did you mean 'epochs'",
        ),
        (["adapt", "--set", "seed=3", "--out", "x"], 1, "--seed"),
        (
            [
                "adapt",
                "--method",
                "lpclip",
                "--set",
                "learning_rate=fast",
                "--out",
                "x",
            ],
            1,
            'must be a number, got "fast"',
        ),
        (
            ["adapt", "--method", "lpclip", "--set", "strong=maybe", "--out", "x"],
            1,
            "must be true or false",
        ),
        (
            ["adapt", "--set", "templates=5", "--out", "x"],
            1,
            "must be a word or a list of words or an object, got 5",
        ),
        (["adapt", "--classes", "clases.txt", "--out", "x"], 1, "no such file"),
        (["zero-shot", "--classes", "lists/classes"], 1, "no such file"),
        (["adapt", "--method", "lp-clip", "--out", "x"], 2, "lpclip"),
        (["zero-shot", "--out", "x.xlsx"], 1, ".csv or .json"),
        (["zero-shot", "--out", "."], 1, ".csv or .json"),
        (["caption", "--out", "x.txt"], 1, ".csv or .json"),
        (
            ["adapt", "--model", "ViT-B-33", "--pretrained", "openai", "--out", "x"],
            1,
            "ViT-B-3",
        ),
        (["predict", "--saved", "."], 1, "no saved method"),
        (["compare", "--methods", "magic", "--out", "x"], 1, "unknown method 'magic';"),
        (
            ["compare", "--methods", "fpll", "--out", "x"],
            1,
            "'fpll', did you mean 'fpl'",
        ),
        (
            ["adapt", "--captioner", "attributes", "--out", "x"],
            2,
            "mixture learns from no captions",
        ),
        (
            [
                "compare",
                "--captioner",
                "attributes",
                "--methods",
                "flyp,reclip",
                "--out",
                "x",
            ],
            2,
            "flyp, reclip learns from no captions",
        ),
        (
            [
                "adapt",
                "--captioner",
                "./nowhere",
                "--method",
                "latteclip",
                "--out",
                "x",
            ],
            1,
            "there is no folder './nowhere'",
        ),
        (["caption", "--images", "."], 2, "--captioner attributes for drawings"),
        (
            ["adapt", "--captioner", "", "--method", "latteclip", "--out", "x"],
            2,
            "it is empty",
        ),
        (["encode", "--out", "x.csv"], 1, ".safetensors or .npy"),
        (["teach"], 2, "No such command"),
        (["predict"], 2, "--saved"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "one" in " ".join(arguments):
        (tmp_path / "one" / "cat").mkdir(parents=True)
        digits("test")[0][0].save(tmp_path / "one" / "cat" / "1.png")
        (tmp_path / "one.txt").write_text("cat\n\n")
    result = run(*arguments)
    assert (
        result.exit_code == code
        and message in result.stderr
        and "Traceback" not in result.output
    ), result.output
    assert not (tmp_path / "x").exists(), "nothing is left behind"


def test_mistakes_are_found_before_anything_is_imported_for_them(tmp_path):
    """PyTorch takes seconds; every message names its option. Nor has help to
    wait."""
    (tmp_path / "empty").mkdir()
    mistakes = {
        "adapt --images nowhere --out x": "--images nowhere: no such folder",
        "predict --images nowhere --saved run/model": "--images nowhere: no such",
        "compare --test nowhere": "--test nowhere: no such folder",
        "compare --methods fpll": "--methods: unknown method 'fpll', did you mean",
        "adapt --classes a.txt --out x": "--classes a.txt: no such file",
        "predict --saved empty": "--saved empty holds no saved method",
        "zero-shot --templates no.json": "--templates no.json: no such file",
        "adapt --set templates=no.json --out x": "--set templates no.json: no such",
        "encode --model ViT-B-33 --out x.npy": "--model 'ViT-B-33': unknown model, did",
        "encode --model local-dir:no --out x.npy": "--model local-dir:no: there is no",
        "zero-shot --model ViT-B-32": "add --pretrained TAG, one of openai, ",
        "zero-shot --model ViT-B-32 --pretrained op": "no weights 'op'",
        "zero-shot --pretrained openai": "--pretrained openai needs the model",
        "caption --captioner ./no": "--captioner: there is no folder './no'",
        "adapt --workers 2 --out x": "--address and --workers go with --engine",
        "adapt --out empty/file": "empty/file is a file; choose another --out",
        "--help": "clipadapt predict --saved",
    }
    (tmp_path / "empty" / "file").touch()
    code = (
        "import json, sys; from click.testing import CliRunner\n"
        "from clipadapt.app.cli import main\n"
        "done = [CliRunner().invoke(main, m.split()).output for m in sys.argv[1:]]\n"
        "print(json.dumps([done, 'torch' in sys.modules]))"
    )
    line = [sys.executable, "-c", code, *mistakes]
    ran = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    said, imported = json.loads(ran.stdout)
    for words, (mistake, expected) in zip(said, mistakes.items(), strict=True):
        assert expected in words, (mistake, words)
    assert not imported


def test_the_models_and_weights_that_are_looked_up_are_those_of_openclip():
    """They are read from its files, so that nothing is imported for them."""
    assert _architectures() == sorted(open_clip.list_models())
    for model in open_clip.list_models()[::12]:
        if tags := _tags(model):  # where it says what no table says, load_clip asks it
            assert sorted(tags) == sorted(
                open_clip.list_pretrained_tags_by_model(model)
            )
    assert len(_tags("ViT-B-32")) > 5


def test_a_run_that_has_not_finished_says_how_to_go_on(saved, tmp_path):
    begun = tmp_path / "it's begun"
    begun.mkdir()
    shutil.copy(saved / "config.json", begun)
    for place in (begun, begun / "model"):
        done = run("predict", "--saved", place)
        assert done.exit_code == 1 and "run has not finished" in done.stderr
    line = done.stderr.partition("clipadapt ")[2]
    went_on = run(*shlex.split(line))
    assert went_on.exit_code == 0, went_on.output
    assert saved_place(begun) == begun / "model" == saved_place(begun / "model")
    (begun / "config.json").write_text('{"command": "compare"}')
    shutil.rmtree(begun / "model")
    done = run("predict", "--saved", begun)
    assert done.exit_code == 1 and "it is a comparison" in done.stderr


def test_a_finished_run_is_not_fitted_again(saved, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(saved, out)
    same = ("adapt", "--config", out / "config.json", "--out", out, "--resume")
    before = (out / "model" / "adapter.safetensors").stat().st_mtime_ns
    done = run(*same, "--json")
    assert done.exit_code == 0 and f"{out} is finished" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["images"] == 40 and answer["seconds"] > 0
    assert (out / "model" / "adapter.safetensors").stat().st_mtime_ns == before
    other = run(*same, "--seed", 5)
    assert other.exit_code == 1 and "begun with other options (seed)" in other.stderr
    (out / "record.json").write_text("[]")
    assert finished_run(str(out), json.loads((out / "config.json").read_text())) is None


def test_a_tokenizer_without_padding_is_one_sentence(clip, monkeypatch):
    """What transformers raises when a text is encoded names neither model nor file."""
    inner = type("Inner", (), {"pad_token": None})()
    bare = type("Bare", (), {"tokenizer": inner})()
    made = CLIP(clip.model, clip.preprocess, bare, name="hf-hub:some/body")
    monkeypatch.setattr("clipadapt.clip.model.load_clip", lambda *_, **__: made)
    done = run("zero-shot", "--classes", "a,b", "--model", "hf-hub:some/body")
    assert done.exit_code == 1
    assert "tokenizer of hf-hub:some/body has no padding token" in done.stderr
    inner.pad_token = "<pad>"
    _check_padding(made, "hf-hub:some/body")
    _check_padding(clip, None)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_hub_is_asked_again_without_a_word(wanted, monkeypatch, caplog):
    """Unless somebody wants to read it; other warnings are said, and nothing stays."""
    if wanted:
        monkeypatch.setenv("HF_HUB_VERBOSITY", "warning")
    said = "'[Errno 111]' thrown while requesting HEAD x", "Retrying in 1s [Retry 1/5]."
    asking = logging.getLogger("huggingface_hub.utils._http")
    before = asking.level, [*asking.filters]
    with _without_retries():
        for words in (*said, "you are not logged in"):
            asking.warning(words)
    heard = [record.getMessage() for record in caplog.records]
    assert heard == [*said * wanted, "you are not logged in"]
    assert (asking.level, asking.filters) == before


def forge(saved, folder, **changes):
    """A copy of a saved method whose record says something else, with a seal that
    fits."""
    record, arrays = read_saved(saved / "model")
    write_arrays(
        folder / "adapter.safetensors", arrays, record.model_copy(update=changes)
    )
    return folder


def test_a_model_of_a_newer_version(saved, folders, tmp_path):
    content = (saved / "model" / "adapter.safetensors").read_bytes()
    assert content.count(rb"\"format\":2") == 1
    newer = content.replace(rb"\"format\":2", rb"\"format\":9")
    (tmp_path / "adapter.safetensors").write_bytes(newer)
    result = run("predict", "--saved", tmp_path, "--images", folders / "flat")
    assert result.exit_code == 1 and "newer clipadapt" in result.stderr
    result = run(
        "predict",
        "--saved",
        forge(saved, tmp_path, method="Magic"),
        "--images",
        folders / "flat",
    )
    assert result.exit_code == 1 and "'Magic', which is no method" in result.stderr


def test_a_model_that_only_a_saved_method_names_is_not_loaded(
    saved, folders, clip, tmp_path, monkeypatch
):
    """Another one than the listed ones can come from anybody, so somebody has to ask
    for it."""
    loaded = []
    monkeypatch.setattr(
        "clipadapt.clip.model.load_clip",
        lambda *named, exact: loaded.append(named) or clip,
    )
    place = tmp_path / "it's here"
    place.mkdir()
    record, _ = read_saved(saved / "model")
    stranger = record.clip.model_copy(
        update={"name": f"local-dir:{place}", "pretrained": None}
    )
    same = (
        "predict",
        "--saved",
        forge(saved, tmp_path, clip=stranger),
        "--images",
        folders / "flat",
    )
    refused = run(*same)
    assert (
        refused.exit_code == 1
        and f"--model {shlex.quote(f'local-dir:{place}')}" in refused.stderr
        and not loaded
    )
    asked = run(*same, "--model", f"local-dir:{place}")
    assert asked.exit_code == 0 and f"loading local-dir:{place}" in asked.stderr, (
        asked.output
    )
    assert loaded == [(f"local-dir:{place}", None, None)]


def test_compare_with_and_without_labels(folders, tmp_path):
    done = run(
        "compare",
        "--images",
        folders / "flat",
        "--test",
        folders / "labelled",
        "--classes",
        CLASSES,
        "--methods",
        "zero-shot,prototypes",
        "--seeds",
        2,
        "--out",
        tmp_path / "seen",
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {
        "config.json",
        "record.json",
        "log.txt",
        "runs",
        "table.csv",
        "table.json",
        "report.html",
    }
    table = pd.read_csv(tmp_path / "seen" / "table.csv")
    assert (
        table["method"].tolist() == ["zero-shot", "prototypes"]
        and table["seeds"].tolist() == [2, 2]
        and "Use " in done.stdout
    )
    blind = run(
        "compare",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--methods",
        "zero-shot,prototypes",
        "--out",
        tmp_path / "blind",
    )
    assert (
        blind.exit_code == 0
        and "Without labels, take" in blind.stdout
        and not (tmp_path / "blind" / "report.html").exists()
    )


def test_compare_refuses_half_labelled_images_before_it_fits(folders, tmp_path):
    for i, where in enumerate(("", "zero")):
        (tmp_path / "half" / where).mkdir(exist_ok=True, parents=True)
        (tmp_path / "half" / where / "a.png").write_bytes(
            (folders / "flat" / f"{i:02d}.png").read_bytes()
        )
    refused = run(
        "compare",
        "--images",
        tmp_path / "half",
        "--classes",
        CLASSES,
        "--out",
        tmp_path / "x",
    )
    assert (
        refused.exit_code == 1
        and "1 of 2 images to score on have no label" in refused.stderr
        and not (tmp_path / "x").exists()
    )


def test_encode_and_caption(folders, tmp_path, cache):
    from safetensors.numpy import load_file

    for name, options in (
        ("f.safetensors", []),
        ("f.npy", ["--overwrite"]),
    ):  # both have f.json beside them
        assert (
            run(
                "encode",
                "--images",
                folders / "flat",
                "--out",
                tmp_path / name,
                *options,
            ).exit_code
            == 0
        )
    first, second = (
        load_file(tmp_path / "f.safetensors")["features"],
        np.load(tmp_path / "f.npy"),
    )
    assert (
        np.array_equal(first, second)
        and len(json.loads((tmp_path / "f.json").read_text())["names"])
        == len(first)
        == 40
    )
    assert (
        run(
            "caption",
            "--images",
            folders / "flat",
            "--captioner",
            "attributes",
            "--out",
            tmp_path / "c.json",
        ).exit_code
        == 0
    )
    assert pd.read_json(tmp_path / "c.json")["caption"].str.len().min() > 5


def test_files_that_are_there_stay(saved, folders, tmp_path, cache):
    for command, name, beside in [
        (["zero-shot", "--classes", CLASSES], "a.csv", "a.csv"),
        (["predict", "--saved", saved], "b.json", "b.json"),
        (["encode"], "c.npy", "c.json"),
        (["caption", "--captioner", "attributes"], "d.csv", "d.csv"),
    ]:
        (tmp_path / beside).write_text("mine")
        same = (*command, "--images", folders / "flat", "--out", tmp_path / name)
        refused = run(*same)
        assert (
            refused.exit_code == 1
            and f"{beside} is there already" in refused.stderr
            and (tmp_path / beside).read_text() == "mine"
        ), command
        assert (
            run(*same, "--overwrite").exit_code == 0
            and (tmp_path / beside).read_text() != "mine"
        ), command
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.csv",
        "b.json",
        "c.json",
        "c.npy",
        "d.csv",
    ]


@pytest.mark.parametrize(
    "command, where, message",
    [
        (
            ["encode", "--out", "x.npy"],
            "clipadapt.clip.features.FeatureStore.encode_views",
            "encoded is kept",
        ),
        (["caption"], "clipadapt.clip.captions.caption", "described is kept"),
        (
            ["zero-shot"],
            "clipadapt.methods.zeroshot.ZeroShot.fit",
            "Nothing was written",
        ),
        (
            ["compare", "--seeds", 3, "--methods", "zero-shot"],
            "clipadapt.judge.compare.run_all",
            "kept in runs/compared",
        ),
    ],
)
def test_ctrl_c_says_what_is_kept(
    command, where, message, tmp_path, monkeypatch, cache
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(where, interrupted)
    result = run(*command)
    assert (
        result.exit_code == 130
        and message in result.stderr
        and "Traceback" not in result.output
    )


def test_ctrl_c_keeps_the_state_and_resume_goes_on(folders, tmp_path):
    command = [
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--method",
        "reclip",
        "--set",
        "epochs=20",
        "--out",
    ]
    process = shell(*command, tmp_path / "run")
    checkpoint, deadline = (
        tmp_path / "run" / "checkpoint.safetensors",
        time.monotonic() + 300,
    )
    while (
        not checkpoint.exists()
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert (
        process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    ), errors
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json",
        "log.txt",
        "checkpoint.safetensors",
    }
    refused = run(*command, tmp_path / "run")
    assert refused.exit_code == 1 and "--resume" in refused.stderr
    assert (
        run(*command, tmp_path / "run", "--resume").exit_code == 0
        and run(*command, tmp_path / "whole").exit_code == 0
    )
    pd.testing.assert_frame_equal(
        *(
            pd.read_csv(tmp_path / name / "predictions.csv")
            for name in ("run", "whole")
        ),
        atol=2e-3,
    )
    assert not checkpoint.exists()


def test_a_closed_pipe_is_no_error(folders):
    process = shell("zero-shot", "--images", folders / "flat", "--classes", CLASSES)
    process.stdout.close()
    assert process.wait(timeout=300) == 141 and "Traceback" not in process.stderr.read()


def test_no_bar_in_a_pipe(folders, tmp_path):
    """Fits of the tests are too short for a bar to appear, so one more bar, without
    delay, asks whether bars are off."""
    arguments = [
        "adapt",
        "--images",
        str(folders / "flat"),
        "--classes",
        CLASSES,
        "--method",
        "lpclip",
        "--set",
        "epochs=2",
        "--out",
        str(tmp_path / "run"),
    ]
    code = (
        f"from clipadapt.app.cli import main; main({arguments!r}, "
        "standalone_mode=False); from tqdm import tqdm; list(tqdm(range(3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert (
        done.returncode == 0
        and "fitting LPCLIP" in done.stderr
        and "\r" not in done.stderr
        and "it/s" not in done.stderr
        and not done.stdout
    ), done.stderr


@pytest.fixture(scope="module")
def odd(folders, tmp_path_factory):
    """Photographs whose names are no UTF-8, a formula, an escape code, two lines."""
    root = tmp_path_factory.mktemp("odd")
    names = [b"caf\xe9.png", b"=1+1.png", b"\x1b[31mred.png", b"two\rlines\n.png"]
    for i, name in enumerate(names):
        path = os.path.join(os.fsencode(root), name)
        with open(path, "wb") as file:
            file.write((folders / "flat" / f"{i:02d}.png").read_bytes())
    return root, sorted(
        os.fsdecode(os.path.join(os.fsencode(root), name)) for name in names
    )


def cells(text, column="image"):
    """A column of CSV bytes as Python reads it."""
    lines = io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")
    return [row[column] for row in csv.DictReader(lines)]


def test_names_of_any_bytes_are_kept(odd, saved, tmp_path, cache):
    root, names = odd
    out = tmp_path / "run"
    for option in ([], ["--resume"], ["--overwrite"]):
        done = run(
            "adapt", "--images", root, "--classes", CLASSES, "--out", out, *option
        )
        assert done.exit_code == 0, done.output
        assert cells((out / "predictions.csv").read_bytes()) == names
    for command, options in (
        ("predict", ["--saved", saved]),
        ("zero-shot", ["--classes", CLASSES]),
        ("caption", ["--captioner", "attributes"]),
    ):
        piped = run(command, "--images", root, *options)
        assert piped.exit_code == 0 and cells(piped.stdout_bytes) == names
        for ending in ("csv", "json"):
            done = run(
                command,
                "--images",
                root,
                *options,
                "--out",
                tmp_path / f"{command}.{ending}",
            )
            assert done.exit_code == 0, done.output
        assert (tmp_path / f"{command}.csv").read_bytes() == piped.stdout_bytes
        assert [
            row["image"]
            for row in json.loads((tmp_path / f"{command}.json").read_text())
        ] == names
    assert run("encode", "--images", root, "--out", tmp_path / "f.npy").exit_code == 0
    assert json.loads((tmp_path / "f.json").read_text())["names"] == names
    same = (
        "compare",
        "--images",
        root,
        "--classes",
        CLASSES,
        "--methods",
        "zero-shot",
        "--out",
        tmp_path / "compared",
    )
    assert run(*same).exit_code == run(*same, "--resume").exit_code == 0


def test_a_folder_whose_name_is_no_utf_8(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = os.fsdecode(b"caf\xe9")
    os.symlink(odd[0], folder)
    done = run(
        "adapt", "--images", folder, "--classes", CLASSES, "--out", tmp_path / "run"
    )
    again = run(
        "adapt",
        "--config",
        tmp_path / "run" / "config.json",
        "--out",
        tmp_path / "again",
    )
    assert done.exit_code == again.exit_code == 0, done.output + again.output
    assert json.loads((tmp_path / "again" / "config.json").read_text())[
        "images"
    ] == str(tmp_path / folder)


def test_a_screen_shows_what_it_could_obey(odd, tmp_path, monkeypatch):
    monkeypatch.setattr("clipadapt.app.cli._is_terminal", lambda stream: True)
    (tmp_path / "\x1b[2J").mkdir()
    (tmp_path / "\x1b[2J" / "bad.png").write_bytes(b"no image")
    shown = [
        run("zero-shot", "--images", odd[0], "--classes", "\x1b[31mzero,one"),
        run("zero-shot", "--images", odd[0], "--classes", CLASSES),
        run("zero-shot", "--images", tmp_path / "\x1b[2J", "--classes", CLASSES),
        run("predict", "--saved", "\x1b[2J"),
        run("zero-shot", "--colour\x1b[2J"),
    ]
    assert (
        not any("\x1b" in done.output for done in shown)
        and r"\x1b[31mred.png" in shown[1].stdout
    )
    assert r"caf\xe9.png" in shown[1].stdout


def test_no_spreadsheet_computes_a_cell(folders, tmp_path):
    names = ["=1+1", "@SUM(A1)", "-cat", "+dog", "image"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for ending in ("csv", "json"):
        assert (
            run(
                "zero-shot",
                "--images",
                folders / "flat",
                "--classes",
                tmp_path / "classes.txt",
                "--probabilities",
                "--out",
                tmp_path / f"a.{ending}",
            ).exit_code
            == 0
        )
    table, plain = pd.read_csv(tmp_path / "a.csv"), pd.read_json(tmp_path / "a.json")
    assert list(table.columns[3:]) == [
        "'=1+1",
        "'@SUM(A1)",
        "'-cat",
        "'+dog",
        "image (class)",
    ]
    assert list(plain.columns[3:]) == names[:-1] + ["image (class)"] and set(
        plain["prediction"]
    ) <= set(names)
    assert all(table[name].dtype == float for name in table.columns[2:])


@pytest.mark.parametrize(
    "content, message",
    [
        ({"out": "y"}, "out is given on the command line"),
        ({"overwrite": True}, "overwrite is given"),
        ({"resume": True}, "resume is given"),
        ({"seed": "1"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": -1}, "seed"),
        ({"images": ["a"]}, "images: should be text"),
        ({"settings": [1]}, "settings.0"),
        ({"settings": None}, "settings"),
        ({"colour": "red"}, "colour is no option"),
        ("[" * 100_000, "too deeply nested"),
        (b"\xff\xfe", "no config.json of a run"),
        ("9" * 5000, "no config.json of a run"),
        (None, "no config.json of a run"),
    ],
)
def test_a_config_says_only_what_it_may(content, message, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        text = (
            json.dumps({"command": "adapt", **content})
            if isinstance(content, dict)
            else content
        )
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused = run("adapt", "--config", path, "--out", tmp_path / "x")
    assert (
        refused.exit_code == 2
        and message in refused.stderr
        and "Traceback" not in refused.output
    ), refused.output
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_a_config_that_names_a_model_says_so(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"command": "adapt", "model": "local-dir:/nowhere"})
    )
    done = run("adapt", "--config", tmp_path / "config.json", "--out", tmp_path / "x")
    assert (
        done.exit_code == 1
        and "no folder '/nowhere', which --config names" in done.stderr
    )


def test_a_damaged_config_in_a_run(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"command": "ada')
    for option in ("--resume", "--overwrite"):
        done = run(
            "adapt",
            "--images",
            folders / "flat",
            "--classes",
            CLASSES,
            "--out",
            tmp_path,
            option,
        )
        assert (
            done.exit_code == 1 and "choose another --out, or delete" in done.stderr
        ), done.output


@pytest.mark.parametrize(
    "wrong",
    [
        ["--method", "lpclip", "--set", "epochs=-1"],
        ["--method", "latteclip", "--set", "mixer=odd"],
        ["--set", "templates=odd"],
    ],
)
def test_wrong_parameters_leave_nothing_and_replace_nothing(
    wrong, saved, folders, tmp_path
):
    same = ("adapt", "--images", folders / "flat", "--classes", CLASSES, *wrong)
    assert run(*same, "--out", tmp_path / "x").exit_code == 1 and not list(
        tmp_path.iterdir()
    )
    shutil.copytree(saved, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    assert run(*same, "--out", tmp_path / "run", "--overwrite").exit_code == 1
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")
    } == before and os.listdir(tmp_path) == ["run"]


def test_a_run_is_not_replaced_when_something_else_came_into_it(
    saved, folders, tmp_path, monkeypatch
):
    from clipadapt.methods.mixture import AnchoredMixture

    shutil.copytree(saved, tmp_path / "run")
    save = AnchoredMixture.save

    def meanwhile(method, where):
        (tmp_path / "run" / "thesis.txt").write_text("mine")
        save(method, where)

    monkeypatch.setattr(AnchoredMixture, "save", meanwhile)
    done = run(
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--out",
        tmp_path / "run",
        "--overwrite",
    )
    assert (
        done.exit_code == 1
        and "thesis.txt" in done.stderr
        and ".run.overwriting" in done.stderr
    )
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine" and (
        tmp_path / ".run.overwriting" / "predictions.csv"
    ).is_file()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--seed", "-1"], 2, "--seed"),
        (["--seed", 2**70], 2, "--seed"),
        (["--images", ""], 2, "empty"),
        (["--out", "file/x"], 1, "a part of this path is a file"),
        (["--out", "file"], 1, "is a file"),
        (["--images", "file"], 1, "--images file is a file, and a folder"),
        (["--method", "fpll"], 2, "; did you mean 'fpl'?"),
        (["--method", "nothing"], 2, "'reclip'.\n"),
        (["--preset", "smal"], 2, "did you mean 'small'?"),
        (["--use-labels", "--classes", "cat,dog"], 1, "has a label; put those"),
        (["--set", "shrink=NaN"], 1, "must be finite"),
        (["--set", "shrink=1e999"], 1, "must be finite"),
        (["--set", "iterations=" + "9" * 30], 1, "below 2^31"),
        (["--set", "iterations=" + "9" * 5000], 1, "too many digits"),
        (["--set", "templates=" + "[" * 100_000], 1, "too many digits or brackets"),
        (["--set", "templates=[[1]]"], 1, "a list of words"),
        (["--set", "="], 1, "no parameter"),
        (["--device", "foo"], 1, "unknown device"),
        (["--device", ""], 1, "unknown device"),
        (["--model", ""], 1, "unknown model"),
        (["--out", ""], 2, "empty"),
        (["--out", "n" * 300], 1, "name too long"),
    ],
)
def test_odd_options_are_one_sentence(
    arguments, code, message, folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    done = run(
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--out",
        "x",
        *arguments,
    )
    assert (
        done.exit_code == code
        and message in done.stderr
        and "Traceback" not in done.output
    ), done.output
    assert os.listdir(tmp_path) == ["file"] and done.stderr.rstrip().count("\n") <= 4


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--methods", ","], 1, "names no method"),
        (["--methods", "fpl,fpl"], 1, "more than once"),
        (["--seeds", 10**9], 2, "--seeds"),
    ],
)
def test_odd_options_of_compare(arguments, code, message, folders, tmp_path):
    done = run(
        "compare",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--out",
        tmp_path / "x",
        *arguments,
    )
    assert (
        done.exit_code == code
        and message in done.stderr
        and not (tmp_path / "x").exists()
    ), done.output


def test_a_home_directory_is_meant_where_no_shell_has_seen_it(
    folders, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    same = (
        "zero-shot",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--out",
        "~/a.csv",
    )
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no home
    done = run(*same)
    assert (
        done.exit_code == 2
        and "no home directory" in done.stderr
        and not list(tmp_path.iterdir())
    )
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: str(path).replace("~", str(tmp_path))
    )
    assert run(*same).exit_code == 0 and (tmp_path / "a.csv").is_file()


def test_a_full_disk_is_one_sentence(folders, tmp_path, monkeypatch):
    """Files of more than 300 bytes cannot be written here."""
    commands = [
        ["adapt", "--out", "run"],
        ["zero-shot", "--out", "a.csv"],
        ["encode", "--out", "a.npy"],
        ["encode", "--out", "a.safetensors"],
        ["caption", "--captioner", "attributes", "--out", "a.json"],
        ["compare", "--methods", "zero-shot", "--out", "compared"],
    ]
    code = f"""
import resource, signal
from click.testing import CliRunner
from clipadapt import load_clip
from clipadapt.app.cli import main
load_clip()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
free, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for command in {commands!r}:
    classes = [] if command[0] in ("encode", "caption") else ["--classes", {CLASSES!r}]
    images = ["--images", {str(folders / "flat")!r}]
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    done = CliRunner().invoke(main, [*command, *images, *classes])
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    exited = isinstance(done.exception, SystemExit)
    last = done.output.splitlines()[-1]
    print(done.exit_code, last, "Traceback" in done.output, exited)
"""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    printed, errors = program(tmp_path, code).finish(seconds=300)
    lines = printed.splitlines()
    assert len(lines) == 6 and not errors, errors
    for line in lines:
        assert (
            line.startswith("1 Error: ")
            and "cannot be" in line
            and line.endswith("False True")
        ), line
    assert not list((tmp_path / "here").iterdir())


def test_a_log_that_cannot_be_written_ends_no_run(
    saved, folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "logging.StreamHandler.flush",
        lambda handler: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    done = run(
        "adapt",
        "--images",
        folders / "flat",
        "--classes",
        CLASSES,
        "--out",
        tmp_path / "run",
    )
    assert (
        done.exit_code == 0
        and done.stderr.count("log.txt ends here") == 1
        and "Traceback" not in done.output
    ), done.output


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="there is no /dev/full here"
)
def test_an_output_that_is_full_is_one_sentence(folders):
    arguments = ["zero-shot", "--images", folders / "flat", "--classes", CLASSES]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "clipadapt.app.cli", *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(
        "Error: the standard output cannot be written: the disk is full"
    )
    assert "Exception ignored" not in done.stderr


def test_sub_folders_with_underscores_are_classes_with_blanks(folders, tmp_path):
    for i, name in enumerate(("hot_dog", "cat")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(
            (folders / "flat" / f"{i:02d}.png").read_bytes()
        )
    for names in ("cat,hot_dog", "cat,hot dog"):
        done = run("zero-shot", "--images", tmp_path / "in", "--classes", names)
        assert done.exit_code == 0 and "2 of them labelled" in done.stderr, done.output
    both = run(
        "zero-shot", "--images", tmp_path / "in", "--classes", "cat,hot dog,hot_dog"
    )
    assert both.exit_code == 1 and "could mean both" in both.stderr
    other = run("zero-shot", "--images", tmp_path / "in", "--classes", "cat,dog")
    assert (
        other.exit_code == 0
        and "not the classes (hot dog)" in other.stderr
        and "0 of them labelled" in other.stderr
    )


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_one_sentence(folders, device):
    result = run(
        "zero-shot",
        "--images",
        folders / "flat",
        "--classes",
        "a,b",
        "--device",
        device,
    )
    assert result.exit_code == 1 and len(result.stderr.splitlines()) < 5
    assert "device" in result.stderr and "Traceback" not in result.stderr


def test_a_large_folder_is_refused_by_what_lies_in_it(folders, tmp_path, monkeypatch):
    """Nobody waits until the whole of a home folder has been looked at."""
    (tmp_path / "documents" / "letters").mkdir(parents=True)
    (tmp_path / "note.txt").touch()
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("it looked below"))
    result = run(
        "adapt", "--images", folders / "flat", "--classes", "a,b", "--out", tmp_path
    )
    assert (
        result.exit_code == 1
        and "holds other things than a run (documents, note.txt)" in result.stderr
    )


def test_the_limit_on_pixels_is_an_option(folders, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(folder / "large.png")
    Image.new("RGB", (10, 10)).save(folder / "small.png")
    result = run(
        "zero-shot", "--images", folder, "--classes", "a,b", "--max-pixels", 100
    )
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 2
    assert "large.png" in result.stderr and "--max-pixels" in result.stderr
    assert (
        len(
            run("zero-shot", "--images", folder, "--classes", "a,b").stdout.splitlines()
        )
        == 3
    )


@pytest.fixture
def another(clip, monkeypatch):
    """What --model loads: the built-in model under another name, which stands for any
    other CLIP."""
    named = CLIP(clip.model, clip.preprocess, clip.tokenizer, name="another")
    monkeypatch.setattr("clipadapt.clip.model.load_clip", lambda *_, **__: named)
    monkeypatch.setattr("clipadapt.app.cli._architectures", lambda: [])
    return named


def kept(out):
    """What a run of LatteCLIP says of captions: kinds of text it learned from, and its
    record and config."""
    kinds = read_saved(out / "model")[0].fitted["kinds_"]
    return (
        kinds,
        json.loads((out / "record.json").read_text())["captioner"],
        json.loads((out / "config.json").read_text())["captioner"],
    )


LATTE = ("--classes", CLASSES, "--method", "latteclip", "--set", "epochs=1", "--out")
ALONE = "no --captioner, so LatteCLIP learns from class descriptions alone"


@pytest.mark.parametrize("preset", ["default", "small"])
def test_nobody_describes_the_images_of_another_clip_unless_asked(
    preset, another, folders, cache, tmp_path
):
    """The ruler knows glyphs only, and once called photographs thin wide blue
    digits."""
    same = (
        "adapt",
        "--images",
        folders / "flat",
        "--model",
        "another",
        "--preset",
        preset,
    )
    done = run(*same, *LATTE, tmp_path / "alone")
    assert (
        done.exit_code == 0
        and ALONE in done.stderr
        and ALONE in (tmp_path / "alone" / "log.txt").read_text()
    ), done.output
    assert ("built-in model" in done.stderr) == (preset == "small")
    assert kept(tmp_path / "alone") == (["class"], None, None)
    assert not list(clipadapt.clip.captions.cache_directory().glob("captions*"))
    params = read_saved(tmp_path / "alone" / "model")[0].params
    assert params["domain"] == "object", "no preset calls photographs digits"
    asked = run(
        *same,
        "--captioner",
        "attributes",
        "--set",
        "domain=bird",
        *LATTE,
        tmp_path / "asked",
    )
    assert asked.exit_code == 0 and ALONE not in asked.stderr, asked.output
    kinds, record, config = kept(tmp_path / "asked")
    assert (
        kinds == ["class", "image", "group"]
        and re.match(r"attributes \d+: shape", record)
        and config == "attributes"
    )
    assert read_saved(tmp_path / "asked" / "model")[0].params["domain"] == "bird"


def test_a_config_carries_the_captioner_and_one_without_it_is_read(
    another, folders, cache, tmp_path
):
    out = tmp_path / "run"
    assert (
        run(
            "adapt",
            "--images",
            folders / "flat",
            "--model",
            "another",
            "--captioner",
            "attributes",
            *LATTE,
            out,
        ).exit_code
        == 0
    )
    assert (
        run(
            "adapt", "--config", out / "config.json", "--out", tmp_path / "again"
        ).exit_code
        == 0
    )
    assert kept(tmp_path / "again") == kept(out)
    old = json.loads((out / "config.json").read_text())
    del old["captioner"]
    (out / "config.json").write_text(json.dumps(old))
    assert (
        run(
            "adapt", "--config", out / "config.json", "--out", tmp_path / "old"
        ).exit_code
        == 0
    )
    assert kept(tmp_path / "old") == (["class"], None, None)
    (out / "config.json").write_text(json.dumps({**old, "captioner": 5}))
    refused = run("adapt", "--config", out / "config.json", "--out", tmp_path / "x")
    assert refused.exit_code == 2 and "captioner" in refused.stderr


def test_the_built_in_clip_keeps_its_ruler(folders, cache, tmp_path):
    done = run("adapt", "--images", folders / "flat", *LATTE, tmp_path / "run")
    kinds, record, config = kept(tmp_path / "run")
    assert done.exit_code == 0 and "--captioner" not in done.stderr and config is None
    assert kinds == ["class", "image", "group"] and re.match(
        r"attributes \d+: digit", record
    )


@pytest.fixture(scope="module")
def four(folders, tmp_path_factory):
    """Four images, few enough for a language model on a CPU."""
    root = tmp_path_factory.mktemp("four")
    for path in sorted((folders / "flat").iterdir())[:4]:
        shutil.copy(path, root / path.name)
    return root


def test_a_model_describes_the_images(another, four, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_llava(tmp_path / "llava")
    same = ("--images", four, "--captioner", "llava")
    done = run("adapt", "--model", "another", *same, *LATTE, tmp_path / "run")
    assert done.exit_code == 0 and "captions by llava" in done.stderr, done.output
    kinds, record, config = kept(tmp_path / "run")
    assert (
        kinds == ["class", "image", "group"] and "folder" in json.loads(record)["model"]
    )
    assert config == str(tmp_path / "llava"), "it can be repeated from anywhere"
    again = run(
        "adapt",
        "--config",
        tmp_path / "run" / "config.json",
        "--out",
        tmp_path / "again",
    )
    assert (
        again.exit_code == 0
        and f"captions by {config}, which --config names" in again.stderr
    )
    assert run("caption", *same, "--out", tmp_path / "captions.csv").exit_code == 0
    hostile = json.loads((tmp_path / "llava" / "config.json").read_text())
    (tmp_path / "llava" / "config.json").write_text(
        json.dumps({**hostile, "auto_map": {"AutoModel": "code.Model"}})
    )
    for command in (
        ("adapt", "--model", "another", *same, *LATTE, tmp_path / "x"),
        ("caption", *same),
    ):
        refused = run(*command)
        assert (
            refused.exit_code == 1
            and "run code of its own" in refused.stderr
            and not (tmp_path / "x").exists()
        )


def test_compare_says_who_described_the_images(another, folders, cache, tmp_path):
    same = (
        "compare",
        "--images",
        folders / "flat",
        "--test",
        folders / "labelled",
        "--classes",
        CLASSES,
        "--preset",
        "small",
        "--model",
        "another",
        "--methods",
        "zero-shot,latteclip",
    )
    done = run(*same, "--out", tmp_path / "alone")
    assert done.exit_code == 0 and ALONE in done.stderr, done.output
    assert (
        "latteclip had no captioner" in (tmp_path / "alone" / "report.html").read_text()
    )
    assert not list(clipadapt.clip.captions.cache_directory().glob("captions*"))
    asked = run(*same, "--captioner", "attributes", "--out", tmp_path / "asked")
    assert asked.exit_code == 0 and re.search(
        r"captions by attributes \d+: shape",
        (tmp_path / "asked" / "report.html").read_text(),
    )
    records = [
        json.loads((tmp_path / name / "record.json").read_text())["captioner"]
        for name in ("alone", "asked")
    ]
    assert records[0] is None and records[1].startswith("attributes")
    other = run(*same, "--out", tmp_path / "asked", "--resume")
    assert other.exit_code == 1 and "captioner" in other.stderr


def methods_of_the_package():
    """Every class that adapts, by name."""
    named = {name: getattr(clipadapt, name) for name in clipadapt.__all__}
    return {
        name: kind
        for name, kind in named.items()
        if isinstance(kind, type) and issubclass(kind, Adapter) and kind is not Adapter
    }


SAMPLES = {
    "true or false": True,
    "a whole number": 3,
    "a number": 0.5,
    "a word": "word",
    "an object": {"a": "b"},
    "null": None,
    "a list of words": ["a", "b"],
    "a list of numbers": [1, 0.5],
    "a list of whole numbers": [1, 2],
}


NOT_SET = {  # given in Python, or by an option of its own
    "annotator",
    "captioner",
    "checkpoint",
    "classnames",
    "clip",
    "method",
    "seed",
}


def test_an_annotator_is_given_in_python(clip):
    for setting in ("annotator=null", "annotator__momentum=0.5"):
        with pytest.raises(ValueError, match="is given in Python, as FPL"):
            configure(FPL(clip, ["a", "b"]), [setting])


@pytest.mark.parametrize("name", methods_of_the_package())
def test_every_parameter_of_every_method_can_be_set(name, clip):
    """With the value that stands, and with one of each kind that its annotation names;
    with nothing else."""
    kind = methods_of_the_package()[name]
    hints, signature = get_type_hints(kind.__init__), inspect.signature(kind)
    names = [one for one in signature.parameters if one not in NOT_SET]
    assert (
        set(names) <= set(kind(clip, ["a", "b"]).get_params(deep=False))
        if "method" not in signature.parameters
        else True
    )
    for parameter in names:
        method, default = (
            kind(clip, ["a", "b"]),
            signature.parameters[parameter].default,
        )
        configure(method, [f"{parameter}={json.dumps(default)}"])
        assert method.get_params(deep=False)[parameter] == json.loads(
            json.dumps(default)
        )
        words = in_words(hints[parameter])
        assert words, f"{parameter} of {name} cannot be set"
        for word in words:
            check_value(method, parameter, SAMPLES[word])
        with pytest.raises(
            ValueError, match=f"{parameter} of {name} must be {words[0]}"
        ):
            check_value(method, parameter, [{}, [[]]])


@pytest.mark.parametrize("method", ["fpl", "ifpl", "grip"])
def test_where_some_classes_have_no_label_the_pool_can_be_chosen(
    method, folders, tmp_path
):
    """Two sub-folders name two of ten classes; the other images lie loose, and may be
    asked to be of the other eight."""
    shutil.copytree(folders / "labelled", tmp_path / "images")
    for number, place in enumerate(sorted((tmp_path / "images").iterdir())[2:]):
        for path in place.iterdir():
            path.rename(tmp_path / "images" / f"{number}-{path.name}")
        place.rmdir()
    settings = [
        part
        for setting in ("epochs=1", "k=2", *["rounds=1"] * (method != "fpl"))
        for part in ("--set", setting)
    ]
    same = (
        "adapt",
        "--images",
        tmp_path / "images",
        "--classes",
        CLASSES,
        "--use-labels",
        "--method",
        method,
        *settings,
    )
    for pool in ("unseen", "mixed"):
        done = run(*same, "--set", f"pool={pool}", "--out", tmp_path / pool)
        assert done.exit_code == 0, done.output
        assert read_saved(tmp_path / pool / "model")[0].params["pool"] == pool
    refused = run(*same, "--set", "pool=deep", "--out", tmp_path / "x")
    assert (
        refused.exit_code == 1
        and "pool must be" in refused.stderr
        and not (tmp_path / "x").exists()
    )
