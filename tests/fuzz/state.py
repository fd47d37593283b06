"""Targets for what lies on a disk: models, methods, indexes, checkpoints, rows."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
from open_clip.model import CLIP as OpenCLIP
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.base import clone

from clipadapt import Adapter, FeatureStore, digits, load_clip
from clipadapt.app.demo import small_methods
from clipadapt.clip.index import PrototypeIndex
from clipadapt.images.files import _Header, _seal
from clipadapt.learning.training import Checkpoint

from .mutate import json_text, mutate_arrays, mutate_bytes, mutate_json
from .runner import Target, Wrong

CLASSES = ["zero", "one", "two"]
HEAD = 1000  # bytes in which safetensors keeps its header
FEW = {
    "epochs": 2,
    "rounds": 2,
    "warmup": 0,
    "warmup_epochs": 1,
    "batch_size": 8,
    "queue": 16,
}


def quick_methods(clip) -> dict:
    """Every method by name, unfitted, with few steps: a fit takes milliseconds."""
    made = {}
    for method in small_methods(clip, CLASSES):
        known = method.get_params(deep=False)
        method.set_params(
            **{name: value for name, value in FEW.items() if name in known}
        )
        made[type(method).__name__] = method
    for prompt in ("visual", "multimodal"):
        made[f"FPL {prompt}"] = clone(made["FPL"]).set_params(prompt=prompt)
    return made


def some_images(count: int):
    """The first images of three classes, labels taken off."""
    images = digits("train")
    return images.subset(np.flatnonzero(images.labels < 3)[:count]).unlabelled()


class Sealed:
    """A file of arrays and a record, taken apart so that it can be forged."""

    def __init__(self, path: Path):
        self.content = path.read_bytes()
        with safe_open(path, "numpy") as file:
            self.header = _Header.model_validate_json(file.metadata()["clipadapt"])
            self.arrays = {name: file.get_tensor(name) for name in file.keys()}
        self.record = json.loads(self.header.record)

    def forged(self, dice: random.Random, arrays_too: bool = True) -> bytes:
        """Another record or other arrays, with the hash that belongs to them."""
        record, arrays = self.header.record, self.arrays
        if not arrays or not arrays_too or dice.random() < 0.5:
            text = json_text(dice, mutate_json(dice, self.record))
            record = text.encode(errors="replace").decode()
        else:
            arrays = mutate_arrays(dice, arrays)
        header = self.header.model_copy(update={"record": record})
        header.hash = _seal(arrays, header)
        return save(arrays, {"clipadapt": header.model_dump_json()})

    def damaged(self, dice: random.Random, other: bytes) -> bytes:
        """The file with bytes changed, or with another record under its old hash."""
        if dice.random() < 0.2:
            text = json_text(dice, mutate_json(dice, self.record))
            record = text.encode(errors="replace").decode()
            header = self.header.model_copy(update={"record": record})
            return save(self.arrays, {"clipadapt": header.model_dump_json()})
        return mutate_bytes(dice, self.content, other, HEAD)


def check_probabilities(answers: np.ndarray, count: int) -> None:
    """Wrong unless `answers` are probabilities of the three classes."""
    if answers.shape != (count, len(CLASSES)) or answers.dtype != np.float32:
        raise Wrong(f"answers are {answers.dtype} {answers.shape}")
    if (
        not np.isfinite(answers).all()
        or (answers < 0).any()
        or abs(answers.sum(1) - 1).max() > 1e-3
    ):
        raise Wrong("answers are no probabilities")


class SavedMethods(Target):
    """Files of `Method.save`, damaged, and forged with a valid hash.

    What is only damaged must be refused or give the very same answers. What is forged
    may be a classifier of its own, but its answers are probabilities.
    """

    name = "saved"

    def prepare(self, folder: Path) -> None:
        self.clip, images = load_clip(device="cpu"), some_images(24)
        self.asked = images.subset(range(6))
        self.seeds = {}
        for name, method in quick_methods(self.clip).items():
            fitted = method.fit(images)
            fitted.save(folder / name)
            answers = fitted.predict_proba(self.asked)
            sealed = Sealed(folder / name / "adapter.safetensors")
            self.seeds[name] = type(method), sealed, answers

    def attempt(self, dice: random.Random, folder: Path) -> None:
        names = sorted(self.seeds)
        kind, sealed, expected = self.seeds[dice.choice(names)]
        other = self.seeds[dice.choice(names)][1].content
        forged = dice.random() < 0.5
        content = sealed.forged(dice) if forged else sealed.damaged(dice, other)
        (folder / "adapter.safetensors").write_bytes(content)
        read = dice.choice((kind.load, Adapter.from_pretrained))
        answers = read(folder, self.clip).predict_proba(self.asked)
        if not forged:
            if content != other and not np.array_equal(answers, expected):
                raise Wrong("a damaged file gives other answers")
            return
        check_probabilities(answers, len(self.asked))


class SavedIndexes(Target):
    """Files of `PrototypeIndex.save`, damaged, and with a forged record.

    FAISS reads the bytes of the index itself; that is documented to be no match for a
    forger, so they are damaged only.
    """

    name = "indexes"

    def prepare(self, folder: Path) -> None:
        features = load_clip(device="cpu").encode_image(some_images(24)).numpy()
        self.queries, self.seeds = features[:6], {}
        for kind in ("exact", "hnsw"):
            index = PrototypeIndex(features, kind)
            index.save(folder / kind)
            found = index.search(self.queries, 3)
            self.seeds[kind] = Sealed(folder / kind / "index.safetensors"), found

    def attempt(self, dice: random.Random, folder: Path) -> None:
        sealed, expected = self.seeds[dice.choice(sorted(self.seeds))]
        other = self.seeds[dice.choice(sorted(self.seeds))][0].content
        if dice.random() < 0.5:
            content = sealed.forged(dice, arrays_too=False)
        else:
            content = sealed.damaged(dice, other)
        (folder / "index.safetensors").write_bytes(content)
        found = PrototypeIndex.load(folder).search(self.queries, 3)
        same = all(np.array_equal(*pair) for pair in zip(found, expected))
        if content != other and not same:
            raise Wrong("a damaged index finds other things")


class _Stopped(Exception):
    """A fit was stopped after a checkpoint."""


def stop_after(method, images, saves: int) -> None:
    """Fit `method` until its checkpoint was written `saves` times, or to the end."""
    original, count = Checkpoint.save, 0

    def save_and_stop(self, *arguments):
        nonlocal count
        original(self, *arguments)
        count += self.path is not None
        if count == saves:
            raise _Stopped

    Checkpoint.save = save_and_stop
    try:
        method.fit(images)
    except _Stopped:
        pass
    finally:
        Checkpoint.save = original


RARE = {"LatteCLIP": 0.02, "FLYP": 0.02, "CoReg": 0.1}  # checkpoints of up to 50 MB


class Checkpoints(Target):
    """Checkpoints of interrupted fits, damaged and forged, some with those before.

    What is only damaged is refused, or the fit ends as one that nothing happened to.
    """

    name = "checkpoints"

    def prepare(self, folder: Path) -> None:
        self.clip, self.images = load_clip(device="cpu"), some_images(12)
        self.seeds = {}
        for name, method in quick_methods(self.clip).items():
            if "checkpoint" not in method.get_params():
                continue
            whole = clone(method).fit(self.images).predict_proba(self.images)
            place = folder / name
            place.mkdir()
            method.set_params(checkpoint=str(place / "run.safetensors"))
            stop_after(method, self.images, 2)
            sealed = Sealed(place / "run.safetensors")
            earlier = {
                path.name: path.read_bytes()
                for path in place.iterdir()
                if path.name != "run.safetensors"
            }
            self.seeds[name] = method, sealed, earlier, whole

    def attempt(self, dice: random.Random, folder: Path) -> None:
        names = sorted(self.seeds)
        weights = [RARE.get(name, 1) for name in names]
        name, another = dice.choices(names, weights, k=2)
        method, sealed, earlier, expected = self.seeds[name]
        other = self.seeds[another][1].content
        forged = dice.random() < 0.5
        content = sealed.forged(dice) if forged else sealed.damaged(dice, other)
        (folder / "run.safetensors").write_bytes(content)
        if dice.random() < 0.2:
            for name, old in earlier.items():
                kept = (
                    old if dice.random() < 0.5 else mutate_bytes(dice, old, other, HEAD)
                )
                (folder / name).write_bytes(kept)
        method = clone(method).set_params(checkpoint=str(folder / "run.safetensors"))
        answers = method.fit(self.images).predict_proba(self.images)
        check_probabilities(answers, len(self.images))
        if (
            not forged
            and content != sealed.content
            and not np.array_equal(answers, expected)
        ):
            raise Wrong("a fit that went on from a damaged checkpoint ends otherwise")


class _Quick:
    """A CLIP that knows the features of its images beforehand."""

    name = pretrained = side = None
    decoder = resizer = "Pillow"

    def __init__(self, clip, images):
        vars(self).update(
            model=clip.model, preprocess=clip.preprocess, precision=clip.precision
        )
        self.features, self.fingerprint = clip.encode_image(images), clip.fingerprint
        self.embed_dim, self.image_size = clip.embed_dim, clip.image_size
        self.squashes = clip.squashes

    def encode_batches(self, images, batch_size=64, damaged=None):
        """The features of a selection of the images, all at once."""
        yield self.features[np.asarray(images.images.indices)]


def in_a_child(call) -> None:
    """Call something in a process of its own: Lance has threads, which do not fork."""
    child = os.fork()
    if not child:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the child failed")


class Rows(Target):
    """Damaged files of a feature store: made again, without an error."""

    name = "rows"
    errors = ()

    def prepare(self, folder: Path) -> None:
        images = digits("train").subset(range(20))
        self.images, self.clip = images, _Quick(load_clip(device="cpu"), images)
        self.expected = self.clip.features.numpy()
        in_a_child(lambda: self.encode(folder / "store"))
        [self.table] = (folder / "store").glob("*.lance")
        files = (path for path in self.table.rglob("*") if path.is_file())
        self.files = sorted(path.relative_to(self.table) for path in files)

    def encode(self, location: Path) -> np.ndarray:
        """The features of the images as a store gives them."""
        return FeatureStore(location, block_size=8).encode(self.clip, self.images)

    def attempt(self, dice: random.Random, folder: Path) -> None:
        location = folder / "store"
        table = location / self.table.name
        shutil.copytree(self.table, table)
        share = dice.choice([0.1, 0.6])
        for name in self.files:
            if dice.random() < share:
                self.damage(dice, table / name)
        store = FeatureStore(location, block_size=8)
        if dice.random() < 0.2:
            store.entries(), store.size()
        for _ in range(2):
            if not np.array_equal(self.encode(location), self.expected):
                raise Wrong("damaged rows were believed")
        if dice.random() < 0.2:
            store.verify()
            if [*store.verify().values()] != [(len(store.table(self.clip)), 0)]:
                raise Wrong("a table that was verified is still damaged")

    def damage(self, dice: random.Random, path: Path) -> None:
        """Change, empty or remove a file."""
        if dice.random() < 0.1:
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(mutate_bytes(dice, content, b"", 200))


SMALL_MODEL = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 16,
        "patch_size": 8,
        "width": 16,
        "layers": 1,
        "head_width": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 8,
        "heads": 1,
        "layers": 1,
    },
}


class ModelFolders(Target):
    """Model folders with other settings and damaged weights.

    What is accepted is a model: unit features of an image and of a text, or an error.
    """

    name = "models"

    def prepare(self, folder: Path) -> None:
        model = OpenCLIP(**SMALL_MODEL)
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        self.weights = save(weights)
        self.settings = {
            "model_cfg": SMALL_MODEL,
            "preprocess_cfg": {
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "interpolation": "bicubic",
            },
        }
        self.image = some_images(1)

    def attempt(self, dice: random.Random, folder: Path) -> None:
        text, weights = json.dumps(self.settings), self.weights
        if dice.random() < 0.7:
            text = json_text(dice, mutate_json(dice, self.settings))
        else:
            weights = mutate_bytes(dice, weights, b"", 4000)
        (folder / "open_clip_config.json").write_text(
            text, encoding="utf-8", errors="replace"
        )
        (folder / "open_clip_model.safetensors").write_bytes(weights)
        clip = load_clip(f"local-dir:{folder}", device="cpu")
        for features in (clip.encode_image(self.image), clip.encode_text(["a cat"])):
            if not abs(features.norm(dim=1) - 1).max() < 1e-3:
                raise Wrong("a model gives features that are not of unit length")
