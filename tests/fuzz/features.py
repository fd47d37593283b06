"""The target `features`: files of features, whole and damaged, and odd tables."""

import random
import warnings
from pathlib import Path

import numpy as np

from clipadapt.clip.featuresets import FeatureSet

from .mutate import mutate_bytes, odd_value
from .runner import Target, Wrong


class Features(Target):
    """NumPy and Parquet files, the folder of clip-retrieval, and things in memory."""

    name = "features"

    def prepare(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        rows = np.random.default_rng(0).standard_normal((12, 4), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        kinds = {"kind": ["cat", "dog", None] * 4, "number": [0, 1, -1] * 4}
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 4)
        np.save(folder / "rows.npy", rows)
        np.save(folder / "halves.npy", rows.astype(np.float16))
        for name, column in (("fixed", lists), ("free", rows.tolist())):
            content = pa.table({"feature": column, **kinds})
            options = {"compression": "none" if name == "fixed" else "snappy"}
            parquet.write_table(content, folder / f"{name}.parquet", **options)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def attempt(self, dice: random.Random, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.read(dice, folder)
        table = np.asarray(found.features, np.float64)
        if table.shape[0] != len(found) or len(found.labels) != len(found):
            raise Wrong(f"{found!r} has {table.shape} features")
        if not (np.abs(np.linalg.norm(table, axis=1) - 1) < 0.02).all():
            raise Wrong(f"{found!r} has features that are not of unit length")

    def read(self, dice: random.Random, folder: Path) -> FeatureSet:
        """A set made of something that was drawn."""
        if dice.random() < 0.2:
            return FeatureSet([odd_value(dice) for _ in range(3)])
        name = dice.choice([*self.files])
        content = self.files[name]
        if dice.random() < 0.9:
            content = mutate_bytes(dice, content, dice.choice([*self.files.values()]))
        path = folder / name
        path.write_bytes(content)
        if name.endswith(".npy"):
            if dice.random() < 0.5:
                return FeatureSet.from_npy(path)
            (folder / "img_emb").mkdir()
            path.rename(folder / "img_emb/img_emb_0.npy")
            return FeatureSet.from_clip_retrieval(folder)
        labels = dice.choice([None, "kind", "number", "nothing"])
        return FeatureSet.from_parquet(path, dice.choice([(), ["cat", "dog"]]), labels)
