"""Targets for what people give: class lists, labels, command lines, configs."""

import json
import os
import random
import warnings
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from click.testing import CliRunner

from clipadapt import ImageSet, digits, load_clip
from clipadapt.app.cli import main
from clipadapt.app.runs import METHODS
from clipadapt.clip.templates import fill_templates
from clipadapt.images.sets import check_classnames, check_labels

from .mutate import (
    ODD_NUMBERS,
    ODD_TEXTS,
    json_text,
    mutate_bytes,
    mutate_json,
    odd_value,
)
from .runner import Target, Wrong

LISTS = [
    "cat\ndog\nrabbit\n",
    "\ufeffcat\r\ndog\r\n",
    "0\n1\n2\n",
    "hot dog\nhot_dog\n",
    "id,name\n0,cat\n1,dog\n",
    "cat,dog,rabbit\n",
    "ébène\nébène\n",
    "猫\n犬\n",
    "cat\n\n\ndog",
    "\tcat \n dog",
    "$x^$\n=1+1\n",
]


def check_names(names) -> None:
    """Wrong unless `names` are distinct, clean texts, which stay what they are."""
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise Wrong(f"{names!r:.200} is no list of texts")
    if len(set(names)) < len(names) or any(
        not name or name != " ".join(name.split()) for name in names
    ):
        raise Wrong(f"{names!r:.200} has names that are empty, repeated or unclean")
    if check_classnames(names) != names:
        raise Wrong(f"{names!r:.200} are other names when checked again")


class ClassLists(Target):
    """Text files of odd bytes, and odd things in the place of a list."""

    name = "classes"

    def attempt(self, dice: random.Random, folder: Path) -> None:
        if dice.random() < 0.3:
            check_names(check_classnames(self.odd_list(dice)))
            return
        codec = dice.choice(
            ["utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "utf-32", "utf-8-sig"]
        )
        text = (
            dice.choice(LISTS)
            if dice.random() < 0.7
            else "\n".join(dice.choices(ODD_TEXTS, k=dice.choice([0, 1, 3])))
        )
        content = text.encode(codec, errors="replace")
        if content and dice.random() < 0.8:
            content = mutate_bytes(dice, content, dice.choice(LISTS).encode())
        path = folder / dice.choice(
            ["classes.txt", "classes.csv", "classes.tsv", "classes"]
        )
        path.write_bytes(content)
        check_names(check_classnames(dice.choice([path, str(path)])))

    def odd_list(self, dice: random.Random):
        """Something that somebody may take for a list of class names."""
        words = dice.choices(
            ["cat", "dog", "hot dog", *ODD_TEXTS], k=dice.choice([0, 1, 2, 5])
        )
        return dice.choice(
            [
                words,
                tuple(words),
                set(words),
                frozenset(words),
                dict.fromkeys(words),
                np.array(words, dtype=object),
                np.array([1, 2]),
                iter(words),
                [odd_value(dice) for _ in range(3)],
                odd_value(dice),
                {0: "zero"},
                [None, "cat"],
                [b"cat"],
                [float("nan")],
                b"cat",
                None,
                3,
                [["cat"], ["dog"]],
                "no such file",
                ".",
                "\0",
                torch.zeros(2),
                range(3),
                [1, 2],
                [True],
                object(),
            ]
        )


PROMPTS = [
    ["a photo of a {}.", "the {}."],
    {"cat": ["a photo of a {}.", "It purrs."], "Hot_Dog": "a sausage in a bun"},
    {"cat": ["A cat."], "hot dog": ["A hot dog."], "rabbit": ["Long ears."]},
]


class Templates(Target):
    """Files of templates and of prompts by class name; odd things in their place."""

    name = "templates"

    def attempt(self, dice: random.Random, folder: Path) -> None:
        content = dice.choice(PROMPTS)
        choice = mutate_json(dice, content) if dice.random() < 0.7 else content
        if dice.random() < 0.7:
            text = json_text(dice, choice).encode("utf-8", errors="replace")
            if dice.random() < 0.5:
                text = mutate_bytes(dice, text, json.dumps(content).encode())
            choice = folder / dice.choice(["prompts.json", "a b.JSON"])
            choice.write_bytes(text)
        elif dice.random() < 0.3:
            choice = dice.choice([odd_value(dice), *ODD_TEXTS, folder, "none.json"])
        names = ["cat", "hot dog"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of prompts for other classes
            prompts = fill_templates(choice, names)
        if len(prompts.texts) != prompts.own.numel() or not prompts.own[0].all():
            raise Wrong("a class has no prompts")
        if not all(type(text) is str and text.strip() for text in prompts.texts):
            raise Wrong(f"{prompts.texts!r:.200} are no prompts")


ZHOU = {
    "train": [["River/River_1.jpg", 0, "River"], ["Lake/Lake_1.jpg", 1, "Sea_or Lake"]],
    "val": [],
    "test": [["Lake/Lake_1.jpg", 1, "Sea_or Lake"]],
}
COCO = {
    "images": [{"id": 1, "file_name": "all.zip@River/River_1.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
    "categories": [{"id": 1, "name": "River"}, {"id": 2, "name": "Lake"}],
}
INDEX = b"all.zip@River/River_1.jpg 0\nall.zip@Lake/Lake_1.jpg 1\n"


class Splits(Target):
    """Split files of CoOp and ELEVATER, damaged in all ways."""

    name = "splits"

    def attempt(self, dice: random.Random, folder: Path) -> None:
        for name in ("River/River_1.jpg", "Lake/Lake_1.jpg"):
            (folder / name).parent.mkdir()
            (folder / name).write_bytes(b"")
        (folder / "labels.txt").write_text("River\nLake\n")
        known = dice.choice([ZHOU, COCO, None])
        content = INDEX
        if known is not None:
            changed = mutate_json(dice, known) if dice.random() < 0.7 else known
            content = json_text(dice, changed).encode("utf-8", errors="replace")
        if dice.random() < 0.5:
            content = mutate_bytes(dice, content, INDEX)
        path = folder / "split.json"
        path.write_bytes(content)
        split = dice.choice(["train", "test", None, None, *ODD_TEXTS[:3]])
        images = ImageSet.from_split_file(path, folder, split)
        inside = folder.resolve()
        for file in images.images:
            if inside not in Path(file).resolve().parents:
                raise Wrong(f"{file} is not in the folder")
        check_names(images.classnames)


class Frames(Target):
    """Tables of images with odd columns, as people read them from spreadsheets."""

    name = "frames"

    def prepare(self, folder: Path) -> None:
        for name in ("a.png", "b.png", "c.png"):
            digits("test")[0][0].save(folder / name)
        self.root = folder

    def attempt(self, dice: random.Random, folder: Path) -> None:
        rows = dice.choice([0, 1, 3, 3, 3])
        sound = ["a.png", "b.png", "c.png"][:rows]
        paths = [
            path if dice.random() < 0.95 else dice.choice([*ODD_TEXTS, odd_value(dice)])
            for path in sound
        ]
        known = [["x", "y", None], [0, 1, None], [0.0, 1.5, np.nan], ["0", 1, ""]]
        values = [*dice.choice(known), *dice.choices(ODD_TEXTS, k=2), odd_value(dice)]
        labels = [dice.choice(values) for _ in range(rows)]
        names = dice.choice([None, ["x", "y"], ["0", "1"], ["1", "0"], odd_value(dice)])
        frame = pd.DataFrame({"image": pd.Series(paths, dtype=object)})
        frame["label"] = pd.Series(labels, dtype=object)
        # not all that people have is a column of every kind
        with suppress(TypeError, ValueError, OverflowError):
            kind = dice.choice(["object", "category", "Int64", "float", "str"])
            frame["label"] = frame["label"].astype(kind)
        frame.index = dice.choices(range(3), k=rows)
        options = {"label": dice.choice(["label", "label", None, "other"])}
        options["check"] = dice.choice(["names", "names", "names", "header"])
        if names is not None:
            options["classnames"] = names
        images = ImageSet.from_dataframe(frame, root=self.root, **options)
        if len(images) != rows:
            raise Wrong(f"{len(images)} images of {rows} rows")
        check_names(images.classnames)
        check_labels(images.labels, rows, len(images.classnames))


class Labels(Target):
    """Odd arrays and lists in the place of labels."""

    name = "labels"

    def attempt(self, dice: random.Random, folder: Path) -> None:
        count, classes = dice.choice([0, 1, 3, 3, 3]), dice.choice([0, 1, 3, 3])
        labels = check_labels(self.odd_labels(dice, count), count, classes)
        if (
            not isinstance(labels, np.ndarray)
            or labels.dtype != np.int64
            or labels.shape != (count,)
        ):
            raise Wrong(f"{labels!r:.200} is no int64 array of {count} labels")
        if count and not (-1 <= labels.min() and labels.max() < classes):
            raise Wrong(f"{labels} leave the range of {classes} classes")

    def odd_labels(self, dice: random.Random, count: int):
        """Something that somebody may take for `count` labels."""
        values = [
            dice.choice([-1, 0, 1, 2, dice.choice(ODD_NUMBERS), odd_value(dice)])
            for _ in range(count)
        ]
        plain = np.array(
            [dice.choice([-1, 0, 1, 2, 3, 255, 2**31, -(2**63)]) for _ in range(count)],
            dtype=np.int64,
        )
        dtype = dice.choice(
            [
                "int8",
                "uint8",
                "int32",
                "uint64",
                "float32",
                "float64",
                "complex64",
                "bool",
                "U3",
                "S3",
                "object",
                "M8[s]",
                "int64",
            ]
        )
        with np.errstate(all="ignore"):
            array = plain.astype(dtype)
        return dice.choice(
            [
                values,
                tuple(values),
                plain,
                array,
                array,
                array[:, None],
                array[None],
                array.tolist(),
                plain[:-1],
                torch.from_numpy(plain),
                torch.zeros(count, dtype=torch.bfloat16),
                None,
                odd_value(dice),
                dict.fromkeys(range(count)),
                set(range(count)),
                iter(range(count)),
                "cat",
                b"\0" * count,
                np.array(1),
                [[0]] * count,
                [[0], [0, 1], 2],
                range(count),
                object(),
                np.ma.masked_array(plain, plain < 0),
            ]
        )


def _make_folders(root: Path) -> None:
    """`flat`: four images; `labelled`: four of two classes; `odd`: no images, too."""
    for i, (image, _) in enumerate(digits("train").subset(range(4))):
        for path in (
            root / "flat" / f"{i}.png",
            root / "labelled" / ("zero", "one")[i % 2] / f"{i}.png",
            root / "odd" / f"{i}.png",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (root / "odd" / "bad.png").write_bytes(b"nothing")
    (root / "odd" / "note.docx").write_bytes(b"text")
    (root / "empty").mkdir()
    (root / "classes.txt").write_text("zero\none\n")
    (root / "table.csv").write_text("id,name\n0,zero\n")


def check_ending(result, folder: Path) -> None:
    """Raise Refused or WrongOptions for an exit code, Wrong for an undocumented end."""
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1, 2):
        raise Wrong(f"exit code {result.exit_code}")
    if "Traceback" in result.output or "\x1b" in result.output:
        raise Wrong(f"a traceback or an escape code: {result.output[-300:]!r}")
    said = _error_in_json(result.stdout) or result.stderr.strip()
    if result.exit_code and not said:
        raise Wrong(f"exit code {result.exit_code} without a word")
    if result.exit_code == 1:
        raise Refused(said.splitlines()[-1])
    if result.exit_code == 2:
        raise WrongOptions(said[-300:])


def _error_in_json(text: str) -> str:
    """The error that a command says with --json; "" without it."""
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    return str(answer.get("error", "")) if isinstance(answer, dict) else ""


class Refused(Exception):
    """A command ended with exit code 1."""


class WrongOptions(Exception):
    """A command ended with exit code 2."""


STORING = ("adapt", "predict", "zero-shot", "compare", "encode")


class CommandLine(Target):
    """Command lines with odd options, on a few images and the built-in CLIP."""

    name = "command-line"
    errors = (Refused, WrongOptions)

    def prepare(self, folder: Path) -> None:
        self.root = folder
        _make_folders(folder)
        clip, few = load_clip(device="cpu"), digits("train").subset(range(6))
        original = load_clip

        def load_once(name=None, pretrained=None, device=None, exact=False):
            """The built-in CLIP is loaded once, every other one as always."""
            given = (name, pretrained, device)
            return (
                clip
                if given in ((None, None, None), (None, None, "cpu"))
                else original(*given, exact=exact)
            )

        def the_few(split="train"):
            """What commands take without --images."""
            return few

        for name, change in (
            ("clip.model.load_clip", load_once),
            ("images.sets.digits", the_few),
            ("clip.features.cache_directory", lambda: folder / "cache"),
            ("clip.captions.cache_directory", lambda: folder / "cache"),
            ("learning.adapter.Adapter.push_to_hub", lambda *_, **__: "sent nowhere"),
            ("app.course.open_course", lambda folder: 0),
        ):
            self.changes.enter_context(mock.patch(f"clipadapt.{name}", change))
        saved = self.invoke(
            "adapt",
            "--images",
            folder / "flat",
            "--classes",
            "zero,one",
            "--out",
            folder / "run",
        )
        assert saved.exit_code == 0, saved.output
        self.config = json.loads((folder / "run" / "config.json").read_text())

    def invoke(self, *arguments):
        """Call the command in this process, without a store: Lance does not fork."""
        words = [str(argument) for argument in arguments]
        if words and words[0] in STORING:
            words.insert(1, "--no-store")
        return CliRunner(env={"NO_COLOR": "1"}).invoke(
            main,
            words,
            prog_name="clipadapt",
            color=True,
        )

    def enter(self, folder: Path) -> None:
        """Work in `folder`, which is at home, too: nothing leads out of it."""
        os.chdir(folder)
        os.environ["HOME"] = str(folder)

    def attempt(self, dice: random.Random, folder: Path) -> None:
        self.enter(folder)
        command = dice.choice(
            [*main.commands, "adapt", "predict", "zero-shot", "encode"]
        )
        if command in ("demo", "doctor"):  # minutes; another process
            command = "adapt"
        check_ending(self.invoke(*self.arguments(dice, command)), folder)

    def arguments(self, dice: random.Random, command: str) -> list:
        """A command and its options, most of them sensible."""
        if command == "store":
            key = dice.choice([*ODD_TEXTS, "0", "15641227"])
            return ["store", "export", key, "--out", self.value(dice, "--out")]
        arguments = [command]
        names = [
            option
            for parameter in main.commands[command].params
            for option in parameter.opts
            if option != "--config" and option.startswith("-")
        ]
        if command in ("course", "push", "completion"):
            kinds = {"course": "--out", "push": "--saved", "completion": "--method"}
            arguments.append(self.value(dice, kinds[command]))
        for name in ("--images", "--out", "--classes", "--saved"):
            if name in names and dice.random() < 0.85:
                arguments += [name, self.value(dice, name)]
        if "--methods" in names:
            arguments += [
                "--methods",
                dice.choice(
                    ["zero-shot", "zero-shot,prototypes", self.value(dice, "--methods")]
                ),
            ]
        for name in dice.sample(names, dice.choice([0, 0, 1, 1, 2])):
            flag = name in (
                "--exact",
                "--no-store",
                "--overwrite",
                "--resume",
                "--use-labels",
                "--probabilities",
                "--quiet",
                "--help",
                "--json",
                "--no-open",
                "--public",
            )
            arguments += [name] if flag else [name, self.value(dice, name)]
        if dice.random() < 0.05:
            arguments.insert(dice.randrange(len(arguments)), dice.choice(ODD_TEXTS))
        return arguments

    def value(self, dice: random.Random, name: str) -> str:
        """A value for an option: seven in ten are of the right kind."""
        root, kinds = (
            self.root,
            {
                "--images": [
                    "flat",
                    "flat",
                    "labelled",
                    "odd",
                    "empty",
                    "nowhere",
                    "classes.txt",
                ],
                "--test": ["labelled", "flat", "odd"],
                "--classes": ["classes.txt", "table.csv"],
                "--saved": ["run", "run/model", "flat", "nowhere"],
            },
        )
        plain = {
            "--out": [
                "out",
                "out.csv",
                "out.json",
                "out.npy",
                "out.safetensors",
                "a/b/c.csv",
                ".",
                "/dev/null/x",
                "out.csv/",
            ],
            "--classes": ["zero,one", "zero", "one,zero,two", "a,a", ",,", "zero, one"],
            "--method": ["zero-shot", "prototypes", "nearest-neighbours", *METHODS],
            "--methods": ["zero-shot,nothing", "", ",", "zero-shot,zero-shot", "all "],
            "--seed": ["0", "1", "-1", str(2**32), str(2**70), "1.5"],
            "--seeds": ["1", "2", "0", "-1"],
            "--device": ["cpu", "gpu", "cuda:99", "meta", "mps"],
            "--preset": ["small", "default"],
            "--set": [
                "epochs=1",
                "epochs=-1",
                "k=1",
                "iterations=0",
                "seed=1",
                "momentum=nan",
                "clip=1",
                "templates=x",
                "rounds=1e9",
                "=",
                "batch_size=0",
                "image_weight=2",
            ],
            "--model": ["ViT-B-33", "local-dir:nowhere", "", "hf-hub:", "x/y"],
            "--pretrained": ["none", ""],
            "--templates": [
                "single",
                "imagenet80",
                "a {}.",
                "no blank",
                "{} {}",
                "{0}",
            ],
            "--captioner": ["nowhere", ""],
            "--prompt": ["?", ""],
        }
        if dice.random() < 0.3:
            return (
                dice.choice([text for text in ODD_TEXTS if "\0" not in text])
                .encode(errors="replace")
                .decode()
            )
        paths = [str(root / entry) for entry in kinds.get(name, [])]
        return dice.choice([*paths, *plain.get(name, [])] or ["x"])


class Config(CommandLine):
    """Files for `--config`, and run folders whose config.json was changed."""

    name = "config"

    def attempt(self, dice: random.Random, folder: Path) -> None:
        self.enter(folder)
        precious = folder / "precious"
        precious.mkdir()
        (precious / "photo.txt").write_text("mine")
        options = {
            **self.config,
            "images": str(self.root / dice.choice(["flat", "labelled"])),
        }
        if dice.random() < 0.3:
            options.update(out=str(precious), overwrite=True)
        text = (
            json_text(dice, mutate_json(dice, options))
            if dice.random() < 0.9
            else json.dumps(options)
        )
        content = text.encode(errors="replace")
        if dice.random() < 0.2:
            content = mutate_bytes(dice, content)
        (folder / "config.json").write_bytes(content)
        given = (
            self.run_folder(dice, folder, content)
            if dice.random() < 0.3
            else [
                "--config",
                folder / "config.json",
                *dice.choice([[], ["--out", folder / "out"]]),
            ]
        )
        result = self.invoke("adapt", *given)
        if (precious / "photo.txt").read_text() != "mine":
            raise Wrong("a config file made a command replace a folder")
        check_ending(result, folder)

    def run_folder(self, dice: random.Random, folder: Path, content: bytes) -> list:
        """The arguments that take over a run with this config.json."""
        (folder / "begun").mkdir()
        (folder / "begun" / "config.json").write_bytes(content)
        takeover = dice.choice(["--resume", "--overwrite"])
        return [
            "--out",
            folder / "begun",
            takeover,
            "--images",
            self.root / "flat",
            "--classes",
            "zero,one",
        ][: dice.choice([3, 7])]
