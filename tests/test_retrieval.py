"""Retrieval: every kind of index against NumPy, saved and damaged indexes, FAISS's
global threshold, prototypes, both methods."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipadapt import digits, load_clip
from clipadapt.clip.index import KINDS, PrototypeIndex, encode_queries
from clipadapt.learning.testing import CHECKS, check_adapter
from clipadapt.methods.prototypes import (
    NearestNeighbours,
    Prototypes,
    cluster_prototypes,
    image_prototypes,
    iterate_prototypes,
    mix_prototypes,
    text_prototypes,
    update_prototypes,
)


def units(count, dim, seed=0):
    vectors = (
        np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def threshold_untouched():
    """Whatever a test does, FAISS's process-wide threshold is afterwards what it was
    before."""
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    yield
    assert faiss.cvar.distance_compute_blas_threshold == before


@pytest.mark.filterwarnings("ignore:no image was assigned")
@pytest.mark.parametrize(
    "method, params",
    [
        (Prototypes, {}),
        (Prototypes, {"per_class": 3, "image_weight": 0.7}),
        (Prototypes, {"iterations": 1, "momentum": 0}),
        (NearestNeighbours, {}),
        (NearestNeighbours, {"per_class": 2, "k": 3}),
        (NearestNeighbours, {"kind": "hnsw"}),
    ],
)
def test_methods_keep_every_promise(method, params):
    assert len(check_adapter(method, **params)) == len(CHECKS)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 60),
    dim=st.integers(1, 20),
    queries=st.integers(0, 40),
    k=st.integers(1, 80),
    seed=st.integers(0, 9),
)
def test_exact_search_is_a_sorted_matrix_product(count, dim, queries, k, seed):
    vectors, asked = units(count, dim, seed), units(queries, dim, seed + 100)
    found, positions = PrototypeIndex(vectors).search(asked, k)
    everything, k = asked @ vectors.T, min(k, count)
    assert (
        found.shape == positions.shape == (queries, k)
        and found.dtype == np.float32
        and positions.dtype == np.int64
    )
    assert np.allclose(found, -np.sort(-everything, axis=1)[:, :k], atol=1e-5)
    assert np.allclose(np.take_along_axis(everything, positions, 1), found, atol=1e-5)
    assert all(len(set(row)) == k for row in positions.tolist())


def test_exact_search_across_blocks():
    vectors, asked = units(40_000, 8), units(1500, 8, 1)
    found, _ = PrototypeIndex(vectors).search(asked, 7)
    for rows in np.array_split(np.arange(1500), 5):
        best = np.partition(asked[rows] @ vectors.T, -7, axis=1)[:, -7:]
        assert np.allclose(found[rows], -np.sort(-best, axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_saves_and_grows(kind, tmp_path):
    centres = units(20, 16)
    vectors = np.repeat(centres, 40, axis=0) + 0.1 * units(800, 16, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, asked = PrototypeIndex(vectors[:600], kind, seed=3), vectors[::17]
    index.add(vectors[600:])
    found, positions = index.search(asked, 5)
    best = np.argsort(-(asked @ vectors.T), axis=1)[:, :5]
    assert len(index) == 800 and np.mean(
        [len(set(a) & set(b)) for a, b in zip(positions, best)]
    ) / 5 > (0.25 if kind == "ivfpq" else 0.95)
    assert (np.diff(found) <= 0).all() and found.max() <= 1.2
    index.effort = 1
    everyone = index.search(asked[:20], 10**9)[1]
    assert np.array_equal(np.sort(everyone), np.tile(np.arange(800), (20, 1))), (
        "no -1, and nothing twice"
    )
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")
    again = PrototypeIndex.load(tmp_path / "index", dim=16)
    assert (again.kind, again.effort, again.dim, len(again)) == (kind, 1, 16, 800)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(again.search(asked, 5), index.search(asked, 5))
    )
    again.add(asked[:1])
    assert len(again) == 801
    assert np.array_equal(
        PrototypeIndex(vectors, kind, seed=3).search(asked, 5)[1],
        PrototypeIndex(vectors, kind, seed=3).search(asked, 5)[1],
    )


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_threshold_is_restored_when_search_raises(kind, monkeypatch):
    import faiss

    index, seen = PrototypeIndex(units(300, 8), kind), []

    class Breaks:
        nlist = 7

        def search(self, *arguments, **options):
            seen.append(faiss.cvar.distance_compute_blas_threshold)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(index, "_index", Breaks())
    index._index.ntotal = 300
    with pytest.raises(RuntimeError, match="out of memory"):
        index.search(units(16, 8), 3)
    assert seen == [1]


def test_threshold_is_restored_when_threads_search_at_once():
    index, asked, answers = PrototypeIndex(units(2000, 8), "ivf"), units(64, 8, 1), []
    threads = [
        threading.Thread(target=lambda: answers.extend([index.search(asked, 3)[1]] * 5))
        for _ in range(6)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(answers) == 30 and all(
        np.array_equal(answer, answers[0]) for answer in answers
    )


HOLED = units(300, 8)
HOLED[7, 3] = np.nan


@pytest.mark.parametrize(
    "vectors, message",
    [
        (HOLED, "1 of 300 .* hold NaN.*row 7"),
        (np.inf * units(2, 8), "NaN or infinite"),
        (1.1 * units(2, 8), "not of unit length"),
        (np.zeros((1, 8), np.float32), "not of unit length"),
        (units(3, 9), "9 dimensions, not 8"),
        (units(3, 8)[0], r"\[N, D\]"),
        (np.ones((2, 8), int), "int64"),
        (np.empty((3, 0), np.float32), r"\[N, D\]"),
    ],
)
def test_bad_vectors_are_named(vectors, message):
    index = PrototypeIndex(units(300, 8))
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            call(vectors)
    assert len(index) == 300
    if "dimensions" not in message:
        with pytest.raises(ValueError, match=f"(?s){message}"):
            PrototypeIndex(vectors)


@pytest.mark.parametrize(
    "count, options, message",
    [
        (0, {}, "at least one vector"),
        (300, {"kind": "lsh"}, "exact, ivf, ivfpq, hnsw"),
        (300, {"kind": "ivf", "nlist": 301}, "1 ... 300"),
        (300, {"kind": "ivfpq", "code_bytes": 3}, "divide the dimension 8"),
        (99, {"kind": "ivfpq"}, "at least 256"),
        (300, {"kind": "hnsw", "links": 1}, "links must be a whole number from 2"),
        (300, {"kind": "ivf", "effort": 0}, "effort must be a positive whole number"),
    ],
)
def test_bad_options_are_named(count, options, message):
    with pytest.raises(ValueError, match=message):
        PrototypeIndex(units(count, 8), **options)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_bad_counts_of_neighbours_are_named(k):
    with pytest.raises(ValueError, match="positive whole number"):
        PrototypeIndex(units(5, 8)).search(units(1, 8), k)


def test_all_forms_of_vectors_are_read():
    good = units(300, 8)
    index, frozen = PrototypeIndex(torch.from_numpy(good).requires_grad_()), good.copy()
    frozen.setflags(write=False)
    for queries in (
        good,
        frozen,
        good.astype(np.float64),
        good.astype(np.float16),
        np.asfortranarray(good),
        torch.from_numpy(good).bfloat16(),
    ):
        if isinstance(queries, torch.Tensor):
            queries = torch.nn.functional.normalize(queries.float(), dim=1)
        assert np.array_equal(index.search(queries, 1)[1][:, 0], np.arange(300))
    assert index.search(good[:0], 3)[0].shape == (0, 3)


def test_damaged_index_is_refused(tmp_path):
    folder = tmp_path / "index"
    PrototypeIndex(units(50, 8)).save(folder)
    path = folder / "index.safetensors"
    whole = path.read_bytes()
    for content in (b"", b"{", whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="index.safetensors.*damaged.*save it again"
        ):
            PrototypeIndex.load(folder)


def test_foreign_folder_and_other_dimension(tmp_path):
    index = PrototypeIndex(units(50, 8))
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="8 dimensions, not 512.*another CLIP"):
        PrototypeIndex.load(tmp_path / "index", dim=512)
    with pytest.raises(FileNotFoundError, match="no saved index"):
        PrototypeIndex.load(tmp_path)
    with pytest.raises(ValueError, match="something else"):
        index.save(tmp_path)


def test_an_index_of_an_earlier_version_is_named_and_replaced(tmp_path):
    for name in ("index.json", "index.faiss"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="earlier clipadapt"):
        PrototypeIndex.load(tmp_path)
    PrototypeIndex(units(50, 8)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]
    assert len(PrototypeIndex.load(tmp_path)) == 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_answers_as_before_with_any_effort(tmp_path, kind):
    index, queries = PrototypeIndex(units(3000, 16), kind), units(40, 16, 1)
    index.save(tmp_path / "index")
    loaded = PrototypeIndex.load(tmp_path / "index", 16)
    for effort in (index.effort, 1, 5):
        index.effort = loaded.effort = effort
        for before, after in zip(index.search(queries, 7), loaded.search(queries, 7)):
            assert np.array_equal(before, after)
    loaded.add(queries)
    assert len(loaded) == 3040 and np.allclose(
        loaded.search(queries, 1)[0], 1, atol=0.1
    )


@settings(deadline=None, max_examples=50)
@given(
    momentum=st.floats(0, 1),
    classes=st.integers(1, 6),
    dim=st.integers(2, 8),
    seed=st.integers(0, 99),
    present=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_update_keeps_unit_length_and_untouched_classes(
    momentum, classes, dim, seed, present
):
    prototypes, means, present = (
        units(classes, dim, seed),
        units(classes, dim, seed + 1000),
        np.array(present[:classes]),
    )
    moved = update_prototypes(prototypes, means, momentum, present)
    assert np.allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5) and np.array_equal(
        moved[~present], prototypes[~present]
    )
    assert np.allclose(update_prototypes(prototypes, means, 0), means, atol=1e-6)
    assert ((moved * means).sum(1) >= (prototypes * means).sum(1) - 1e-5).all(), (
        "towards the mean, never away from it"
    )


def test_a_mean_without_direction_changes_nothing():
    features = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    prototypes, counts = image_prototypes(
        features,
        [0, 0, 1],
        3,
        fallback=np.eye(3, 2, dtype=np.float32) + np.float32([[0, 0], [0, 0], [1, 0]]),
    )
    assert prototypes.tolist() == [[1, 0], [0, 1], [1, 0]] and counts.tolist() == [
        2,
        1,
        0,
    ]
    assert np.array_equal(
        update_prototypes(np.float32([[1, 0]]), np.float32([[-1, 0]]), 0.5), [[1, 0]]
    )


def test_prototypes_do_not_depend_on_the_order_of_images():
    features, labels, order = (
        units(200, 8),
        np.random.default_rng(0).integers(-1, 4, 200),
        np.random.default_rng(1).permutation(200),
    )
    assert np.allclose(
        image_prototypes(features, labels, 4)[0],
        image_prototypes(features[order], labels[order], 4)[0],
        atol=1e-6,
    )
    text = units(4, 8, 5)
    (first, classes, _), (second, shuffled, _) = (
        iterate_prototypes(features[rows], text) for rows in (np.arange(200), order)
    )
    assert np.allclose(first, second, atol=1e-4) and np.array_equal(
        classes[order], shuffled
    )


def test_given_labels_are_kept_and_bad_options_named():
    features, text = units(60, 8), units(3, 8, 1)
    labels = np.where(np.arange(60) % 2, -1, np.arange(60) % 3)
    _, classes, history = iterate_prototypes(features, text, labels)
    assert (
        np.array_equal(classes[labels >= 0], labels[labels >= 0])
        and history[0]["changed"] == (labels < 0).sum()
    )
    assert history == json.loads(json.dumps(history))
    for options, message in [
        ({"momentum": 1.5}, "momentum"),
        ({"image_weight": -1}, "image_weight"),
        ({"iterations": 0}, "iterations must be a positive whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            iterate_prototypes(features, text, **options)
    with pytest.raises(ValueError, match="8 dimensions, not 9"):
        iterate_prototypes(features, units(3, 9))
    with pytest.raises(ValueError, match="shapes"):
        mix_prototypes(text, text[:2], 0.5)
    with pytest.raises(ValueError, match="fallback must have shape"):
        image_prototypes(features, labels, 3, fallback=text[:2])


def test_clusters_of_repeated_images_and_of_none():
    same = np.repeat(units(1, 8), 20, axis=0)
    prototypes, owners = cluster_prototypes(
        np.concatenate([same, units(2, 8, 1)]), [1] * 20 + [3, 3], 5, per_class=4
    )
    assert owners.tolist() == [1, 1, 1, 1, 3, 3] and np.allclose(
        np.linalg.norm(prototypes, axis=1), 1, atol=1e-5
    )
    assert np.allclose(prototypes[:4] @ same[0], 1, atol=1e-2)
    prototypes, owners = cluster_prototypes(same[:0], [], 5, per_class=4)
    assert prototypes.shape == (0, 8) and owners.shape == (0,)
    state = np.random.get_state()[1].copy()
    first, second = (
        cluster_prototypes(units(100, 8), np.arange(100) % 2, 2, 5, seed=4)[0]
        for _ in range(2)
    )
    assert np.array_equal(first, second) and np.array_equal(
        np.random.get_state()[1], state
    )


@pytest.fixture(scope="module")
def clip():
    return load_clip(precision="float32")


@pytest.mark.parametrize(
    "method, params",
    [
        (Prototypes, {}),
        (Prototypes, {"per_class": 2}),
        (NearestNeighbours, {}),
        (NearestNeighbours, {"per_class": 3}),
    ],
)
def test_labels_given_and_classes_without_an_image(clip, method, params):
    train = digits("train").subset(range(60))
    known, plain = (
        np.where(np.arange(60) < 30, train.labels, -1),
        [train[i][0] for i in range(5)],
    )
    with pytest.warns(
        UserWarning, match="no image was assigned to 1 of 3 classes: eleven"
    ) as caught:
        model = method(clip, ["one", "zero", "eleven"], **params).fit(
            plain, [0, 1, 0, 0, 1]
        )
    assert model.empty_classes_ == ["eleven"] and caught[0].filename == __file__
    assert (
        model.pseudolabels_.tolist() == [0, 1, 0, 0, 1]
        and np.isfinite(model.predict_proba(plain)).all()
    )
    if method is Prototypes:
        assert np.allclose(
            model.prototypes_[-1], text_prototypes(clip, ["eleven"])[0], atol=1e-5
        ), "it keeps its text prototype"
        assert np.array_equal(
            Prototypes(clip, train.classnames).fit(train, known).pseudolabels_[:30],
            train.labels[:30],
        )


def test_queries(clip):
    train = digits("train").subset(range(3))
    assert np.allclose(
        encode_queries(clip, ["a", "b"]), clip.encode_text(["a", "b"]), atol=1e-6
    )
    assert encode_queries(clip, "a").shape == (1, clip.embed_dim)
    assert np.allclose(encode_queries(clip, train), clip.encode_image(train), atol=1e-6)
    assert np.allclose(
        encode_queries(clip, [image for image, _ in train]),
        clip.encode_image(train),
        atol=1e-6,
    )


def test_importing_the_package_does_not_import_faiss():
    code = "import sys, clipadapt.methods.prototypes; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
