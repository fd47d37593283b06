"""Features in the place of images: the same answers, no copies, every file refused that
is no table of features, and one sentence wherever pixels are needed."""

import errno
import os
import warnings

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from clipadapt import (
    CPL,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    OTTER,
    AnchoredMixture,
    CallableCaptioner,
    CoReg,
    EMDirichlet,
    FeatureSet,
    GaussianEM,
    ImageSet,
    InMaP,
    LatteCLIP,
    NearestNeighbours,
    Prototypes,
    ReCLIP,
    StatA,
    TransCLIP,
    ZeroShot,
    ZLaP,
    caption,
    digits,
)
from clipadapt.clip import featuresets
from clipadapt.clip.features import FeatureStore, StoredCLIP, hash_images, readable
from clipadapt.clip.featuresets import in_blocks, new_array, new_views
from clipadapt.judge.compare import compare
from clipadapt.judge.robustness import evaluate
from clipadapt.learning.students import all_features, view_makers
from clipadapt.methods import grip, lpclip
from clipadapt.methods.transduction import neighbour_graph, propagate_labels

pytestmark = pytest.mark.usefixtures("one_thread")
SENTENCE = "this needs the images themselves, and a FeatureSet holds"
TINY = {**grip.SMALL, "epochs": 1, "k": 2}


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(60))


@pytest.fixture(scope="module")
def features(clip, images):
    return FeatureSet(clip.encode_image(images), images.classnames, images.labels)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 8), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


SAME = {  # methods that see nothing but features
    "ZeroShot": lambda *given: ZeroShot(*given),
    "committee": lambda *given: ZeroShot(
        *given, templates="imagenet7", ensemble="probability"
    ),
    "Prototypes": lambda *given: Prototypes(*given, per_class=2),
    "NearestNeighbours": lambda *given: NearestNeighbours(*given, per_class=3),
    "AnchoredMixture": lambda *given: AnchoredMixture(*given),
    "TransCLIP": lambda *given: TransCLIP(*given),
    "StatA": lambda *given: StatA(*given),
    "ZLaP": lambda *given: ZLaP(*given),
    "GaussianEM": lambda *given: GaussianEM(*given),
    "EMDirichlet": lambda *given: EMDirichlet(*given, iterations=2, steps=20),
    "OTTER": lambda *given: OTTER(*given),
    "InMaP": lambda *given: InMaP(*given, steps=50),
    "FPL": lambda *given: FPL(*given, **TINY),
    "IFPL": lambda *given: IFPL(*given, rounds=2, **TINY),
    "GRIP": lambda *given: GRIP(*given, rounds=2, **TINY),
    "CPL": lambda *given: CPL(*given, rounds=2, **grip.SMALL | {"epochs": 1}),
}


@pytest.mark.parametrize("name", SAME)
def test_features_give_what_images_give(name, clip, images, features):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sixty images some classes get none
        answers = [
            SAME[name](clip, images.classnames).fit(given).predict_proba(given)
            for given in (images, features)
        ]
    assert np.array_equal(*answers)


def test_students_read_features_as_they_are(clip, images, features):
    student = LPCLIP(clip, images.classnames, **{**lpclip.SMALL, "epochs": 2})
    fresh = LPCLIP(
        clip, images.classnames, **{**lpclip.SMALL, "epochs": 2, "views": None}
    )
    assert student.fit(features).score(features) > 0.5
    assert np.array_equal(student.weight_, fresh.fit(features).weight_)
    options = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "views": 2}
    pair = CoReg(clip, images.classnames, student="head", view_memory=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it takes no memory for views
        assert pair.fit(features).score(features) > 0.5
    anew = CoReg(clip, images.classnames, student="head", **{**options, "views": None})
    anew.fit(features)


REFUSED = {
    "visual": lambda *given: FPL(*given, prompt="visual", **TINY),
    "multimodal": lambda *given: FPL(*given, prompt="multimodal", **TINY),
    "resnet": lambda *given: CoReg(*given, epochs=1),
    "sized": lambda *given: CoReg(*given, epochs=1, image_size=16),
    "clip": lambda *given: CoReg(*given, epochs=1, student="clip"),
    "LatteCLIP": lambda *given: LatteCLIP(*given, epochs=1),
    "FLYP": lambda *given: FLYP(*given, epochs=1),
    "ReCLIP": lambda *given: ReCLIP(*given, epochs=1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_need_pixels_say_so(name, clip, features):
    with pytest.raises(ValueError, match=SENTENCE) as refusal:
        REFUSED[name](clip, features.classnames).fit(features)
    assert "\n" not in str(refusal.value) and "Prototypes" in str(refusal.value)


@pytest.mark.parametrize("name", ("LatteCLIP", "FLYP", "ReCLIP"))
def test_a_tuned_tower_is_not_asked_for_features_of_the_frozen_one(
    name, clip, features, images
):
    method = REFUSED[name](clip, features.classnames).fit(images)
    assert len(method.predict(images)) == len(images)
    asked = method.predict, method.predict_proba, method.predict_logits, method.score
    for ask in asked:
        with pytest.raises(ValueError, match=SENTENCE):
            ask(features)


def test_methods_say_whether_features_are_enough(clip, images):
    for cases, needed in ((SAME, False), (REFUSED, True)):
        for make in cases.values():
            assert make(clip, images.classnames).needs_images == needed
    reclip = REFUSED["ReCLIP"](clip, images.classnames)
    assert reclip.reads_features  # of the frozen CLIP, and the images for the other


def test_whatever_needs_pixels_says_so(clip, features):
    method = ZeroShot(clip, features.classnames).fit(features)
    teller = CallableCaptioner(lambda images, prompts: [""] * len(images), "none")
    for call in (
        lambda: features[0],
        lambda: features.read(0),
        lambda: features.images[0],
        lambda: [*features],
        lambda: features.view(lambda image, rng: image),
        lambda: [*clip.pixel_batches(features)],
        lambda: [*clip.encode_views(features, [(lambda image, rng: image, 0)])],
        lambda: caption(teller, features, "What is it?", False),
        lambda: evaluate(method, features),
    ):
        with pytest.raises(ValueError, match=SENTENCE):
            call()


def test_a_set_without_images_is_a_set(features, images):
    assert len(features) == 60 and isinstance(features, ImageSet)
    assert (features.labels == images.labels).all()
    assert (features.unlabelled().labels == -1).all()
    some = features.subset([5, 3])
    assert (some.features == features.features[[5, 3]]).all()
    assert some.labels.tolist() == images.labels[[5, 3]].tolist()
    few = features.subset(features.labels == 4)
    assert (few.labels == 4).all() and few.classnames == images.classnames
    assert len(features.subset([])) == 0 and features.skipped == []
    assert "60 features of length 64, 60 labelled, 10 classes" in repr(features)


def test_a_clip_returns_features_without_a_copy(clip, features, tmp_path):
    np.save(tmp_path / "rows.npy", features.features)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    part = mapped[7:40]
    for given in (features.features, torch.from_numpy(features.features)):
        encoded = clip.encode_image(FeatureSet(given))
        assert np.shares_memory(encoded.numpy(), features.features)
    for given, wanted in ((mapped, mapped), (part, features.features[7:40])):
        kept = FeatureSet(given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoded = clip.encode_image(kept)
        assert np.array_equal(encoded.numpy(), wanted)
        assert np.shares_memory(encoded.numpy(), kept.features)
        encoded += 1  # whoever does that must not change the file, nor crash
    assert np.array_equal(np.load(tmp_path / "rows.npy"), features.features)
    kept = FeatureSet.from_npy(tmp_path / "rows.npy")
    for batch in (
        *clip.encode_batches(kept, 16),
        *clip.encode_batches(kept.subset([1])),
    ):
        assert np.shares_memory(batch.numpy(), kept.features)
    stored = StoredCLIP(clip, FeatureStore(tmp_path / "store"))
    assert np.shares_memory(stored.encode_image(kept).numpy(), kept.features)
    assert readable(stored, kept) is kept and not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_other_numbers_become_float32(clip, features, dtype):
    other = FeatureSet(features.features.astype(dtype))
    encoded = clip.encode_image(other)
    assert encoded.dtype == torch.float32 and other.features.dtype == dtype
    assert torch.allclose(encoded, torch.from_numpy(features.features), atol=1e-3)
    again = clip.encode_image(other.unlabelled())
    assert np.shares_memory(encoded.numpy(), again.numpy()), "converted once"
    batches = torch.cat([*clip.encode_batches(other, 7)])
    assert torch.equal(batches, encoded)
    transposed = FeatureSet(np.asfortranarray(features.features))
    assert np.array_equal(clip.encode_image(transposed).numpy(), features.features)


def test_bfloat16_and_lists(features):
    rounded = FeatureSet(torch.from_numpy(features.features).bfloat16())
    assert np.abs(rounded.features - features.features).max() < 0.01
    assert FeatureSet([[0.6, 0.8]]).features.shape == (1, 2)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ([1.0, 2.0], "table of floats"),
        ([[1, 2]], "table of floats"),
        ([[1.0], [2.0, 3.0]], "table"),
        (np.empty((3, 0), np.float32), "table of floats"),
        (np.full((2, 3), "a"), "table of floats"),
        (np.array([[1.0, 0], [np.inf, 0]]), "row 1 is not finite"),
        (np.array([[1.0, 0], [0, 0]]), "row 1 is all zero"),
        (torch.zeros(2, 3, 8, 8), "table of floats"),
    ],
)
def test_what_is_no_table_of_features(wrong, words):
    with pytest.raises(ValueError, match=words):
        FeatureSet(wrong)


def test_lengths(clip, table):
    with pytest.warns(UserWarning, match="49 of 50 .*row 0 has length 3"):
        scaled = FeatureSet(np.where(np.arange(50)[:, None] == 9, 1, 3) * table)
    assert np.allclose(scaled.features, table, atol=1e-6)
    with pytest.raises(ValueError, match="length 8, and this CLIP's have length 64"):
        clip.encode_image(scaled)
    with pytest.raises(ValueError, match="length 8"):
        Prototypes(clip, ["a", "b"]).fit(scaled)
    with pytest.raises(ValueError, match="labels"):
        FeatureSet(table, ["a"], [0])


def write_lists(path, table, **columns):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(table.ravel()), table.shape[1])
    content = pa.table({"feature": lists, **columns})
    if path.suffix == ".lance":
        lance.write_dataset(content, str(path), max_rows_per_file=20)
    else:
        parquet.write_table(content, path, row_group_size=20)


@pytest.mark.parametrize("ending", ["parquet", "lance"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tables_with_columns(table, tmp_path, ending, dtype):
    path, rows = tmp_path / f"some.{ending}", table.astype(dtype)
    names = ["cat", "my dog", None, ""] * 12 + ["cat", "cat"]
    numbers = pa.array([1, None] * 25)
    write_lists(path, rows, kind=names, number=numbers)
    read = getattr(FeatureSet, f"from_{ending}")
    assert np.array_equal(read(path).features, rows)
    named = read(path, labels="kind")
    assert named.classnames == ["cat", "my dog"]
    assert named.labels[:4].tolist() == [0, 1, -1, -1]
    assert read(path, ["my  dog", "cat"], "kind").labels[:2].tolist() == [1, 0]
    assert read(path, ["a", "b"], "number").labels[:2].tolist() == [1, -1]
    assert read(path, ["a"], np.zeros(50, int), "feature").labels.tolist() == [0] * 50
    for options, words in (
        ({"column": "kind"}, "no column 'kind' with lists of floats; .* 'feature'"),
        ({"labels": "nothing"}, "no column 'nothing'; it has 'feature', 'kind'"),
        (
            {"labels": "kind", "classnames": ["cat"]},
            "not among the class names: my dog",
        ),
        ({"labels": "number", "classnames": ["a"]}, "labels must lie in"),
    ):
        with pytest.raises(ValueError, match=words):
            read(path, **options)


def test_lists_of_any_length(table, tmp_path):
    path = tmp_path / "lists.parquet"
    parquet.write_table(pa.table({"a": table.tolist(), "b": table.tolist()}), path)
    with pytest.raises(ValueError, match="not one column .* 'a', 'b'"):
        FeatureSet.from_parquet(path)
    assert np.allclose(FeatureSet.from_parquet(path, column="b").features, table)
    for wrong in ([[1.0], [0.6, 0.8]], [[1.0], None], [[1.0], [None]], [[], []], []):
        content = pa.table({"a": pa.array(wrong, pa.list_(pa.float32()))})
        parquet.write_table(content, path)
        with pytest.raises(ValueError):
            FeatureSet.from_parquet(path)


def clip_retrieval(folder, table, parts=2):
    """A folder as clip-retrieval writes it."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        np.save(folder / f"img_emb/img_emb_{part}.npy", table[rows].astype(np.float16))
        content = {"image_path": [f"{row}.jpg" for row in rows], "kind": rows % 2}
        metadata = folder / f"metadata/metadata_{part}.parquet"
        parquet.write_table(pa.table(content), metadata)
    return folder


def test_the_folder_of_clip_retrieval(table, tmp_path):
    folder = clip_retrieval(tmp_path / "eleven", table, 11)  # 10 comes after 9
    found = FeatureSet.from_clip_retrieval(folder, ["a", "b"], "kind")
    assert np.array_equal(found.features, table.astype(np.float16))
    assert found.labels.tolist() == [0, 1] * 25
    one = clip_retrieval(tmp_path / "one", table, 1)
    assert isinstance(FeatureSet.from_clip_retrieval(one).features, np.memmap)
    (folder / "metadata/metadata_3.parquet").unlink()
    with pytest.raises(ValueError, match="img_emb_3.npy has . rows, .* metadata no"):
        FeatureSet.from_clip_retrieval(folder)
    np.save(one / "img_emb/img_emb_0.npy", table[:9])
    with pytest.raises(ValueError, match="9 rows, and its metadata 50"):
        FeatureSet.from_clip_retrieval(one)
    (one / "metadata/metadata_0.parquet").unlink()
    assert len(FeatureSet.from_clip_retrieval(one)) == 9
    with pytest.raises(ValueError, match="no metadata with a column 'kind'"):
        FeatureSet.from_clip_retrieval(one, labels="kind")
    with pytest.raises(FileNotFoundError, match="img_emb_0.npy"):
        FeatureSet.from_clip_retrieval(tmp_path)


def test_files_of_another_kind(table, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[{}]], object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", table)
    np.save(tmp_path / "numbers.npy", np.arange(6).reshape(2, 3))
    np.save(tmp_path / "cut.npy", table)
    content = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:200])
    (tmp_path / "text").write_text("no features")
    readers = FeatureSet.from_npy, FeatureSet.from_parquet, FeatureSet.from_lance
    for name in ("objects.npy", "several.npz", "numbers.npy", "cut.npy", "text"):
        for read in readers:
            with pytest.raises(ValueError):
                read(tmp_path / name)
    for read in (*readers, FeatureSet.from_clip_retrieval):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere")
    whole = tmp_path / "whole.parquet"
    write_lists(whole, table)
    content = whole.read_bytes()
    for end in (4, 200, len(content) - 9):
        whole.write_bytes(content[:end])
        with pytest.raises(ValueError, match="whole.parquet"):
            FeatureSet.from_parquet(whole)


def test_damaged_lance_tables_are_named(table, tmp_path):
    path = tmp_path / "rows.lance"
    write_lists(path, table)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for damage in (content[: len(content) // 2], b"", content[::-1]):
            file.write_bytes(damage)
            try:  # a file that is not needed may be anything
                found = FeatureSet.from_lance(path).features
                assert np.array_equal(found, table)
            except ValueError as error:
                assert "rows.lance" in str(error)
        file.write_bytes(content)


def test_checkpoints_know_their_features(clip, features, tmp_path):
    options = {**TINY, "rounds": 2, "checkpoint": str(tmp_path / "round")}
    first = IFPL(clip, features.classnames, **options).fit(features)
    again = IFPL(clip, features.classnames, **options).fit(features)
    assert np.array_equal(first.prompt_, again.prompt_)
    other = features.subset(np.arange(60)[::-1])
    assert hash_images(features) != hash_images(other)
    with pytest.raises(ValueError, match="checkpoint"):
        IFPL(clip, features.classnames, **options).fit(other)


def test_methods_are_compared_on_features(clip, features):
    methods = [
        ZeroShot(clip, features.classnames),
        Prototypes(clip, features.classnames),
    ]
    rows = compare(methods, features, features)
    assert rows["accuracy"].between(0.5, 1).all()


def test_features_are_judged_without_corruptions(clip, features):
    method = ZeroShot(clip, features.classnames).fit(features)
    outside = {"itself": features.unlabelled()}
    table = evaluate(method, features, corruptions=(), outside=outside)
    assert {"test", "outside"} == set(table["kind"])


def test_blocks_change_nothing_but_memory(clip, features):
    whole = clip.encode_image(features)
    weights = torch.randn(64, 7, generator=torch.Generator().manual_seed(0))
    split = in_blocks(lambda some: some @ weights, whole, 16)
    assert torch.allclose(split, whole @ weights, atol=1e-5)
    assert len(in_blocks(lambda some: some @ weights, whole[:0], 16)) == 0


def test_large_arrays_lie_on_disk(clip, images, monkeypatch):
    assert not isinstance(new_array((4, 2)), np.memmap)
    mapped = new_array((40, 20), "float16", limit=100)
    mapped[:] = 7
    assert isinstance(mapped, np.memmap) and (mapped == 7).all()
    makers = view_makers(clip.image_size, 1)
    plain = all_features(clip, images, makers)
    monkeypatch.setattr(featuresets, "IN_MEMORY", 1000)
    halved = all_features(clip, images, makers)
    assert (plain.dtype, halved.dtype) == (torch.float32, torch.float16)
    assert (halved.float() - plain).abs().max() < 5e-4
    assert new_views((1, 2, 3)).dtype == torch.float32
    for kind, options in (
        (LPCLIP, {**lpclip.SMALL, "epochs": 1}),
        (CoReg, {"student": "head", "epochs": 2, "warmup_epochs": 1, "views": 1}),
    ):
        method = kind(clip, images.classnames, **options).fit(images)
        assert method.score(images) > 0.5


def synthetic(count, classes=20, dim=64, seed=0):
    """Classes that overlap a little, and text a little off."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((classes, dim)) / dim**0.5
    labels = rng.integers(classes, size=count)
    rows = text[labels] + 0.75 * rng.standard_normal((count, dim)) / dim**0.5
    text = text + 0.5 * rng.standard_normal(text.shape) / dim**0.5
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, text)]
    return *(torch.from_numpy(x).float() for x in unit), labels


def test_labels_spread_over_lists_as_over_all_pairs():
    images, text, labels = synthetic(20_000)
    exact, _ = propagate_labels(images, text, exact=True)
    lists, _ = propagate_labels(images, text, exact=False)
    assert (exact == lists).mean() >= 0.99 and (exact == labels).mean() > 0.8
    graph, other = (neighbour_graph(images[:3000], 20, e) for e in (True, False))
    shared = (graph.astype(bool).multiply(other.astype(bool))).nnz / graph.nnz
    assert shared > 0.97 and abs(other - other.T).max() < 1e-12


def test_a_file_system_that_cannot_reserve_room_is_used_all_the_same(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    array = featuresets.new_array((3, 4), limit=0)
    array[:] = 1
    assert array.sum() == 12
