"""What grows with the images is held once, or lies on disk: tables of classes, nodes of
a graph, views and patches. The numbers are those of the short way."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipadapt import FPL, LPCLIP, FeatureSet, NearestNeighbours, ZLaP, digits
from clipadapt.app import runs
from clipadapt.clip import features, featuresets
from clipadapt.clip import model as model_module
from clipadapt.clip.features import FeatureStore, StoredCLIP, view_named
from clipadapt.clip.index import exact_search
from clipadapt.clip.model import encode_all_views
from clipadapt.images import sets
from clipadapt.learning import metrics, prompts
from clipadapt.learning.adapter import Adapter
from clipadapt.learning.prompts import ImageTower
from clipadapt.methods import grip, lpclip, prototypes, transduction

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(40))


@pytest.fixture
def on_disk(monkeypatch):
    """Arrays of more than 1,000 bytes lie in files: the shapes of those that do."""
    shapes, new_array = [], featuresets.new_array

    def spied(*given, **options):
        array = new_array(*given, **options)
        if isinstance(array, np.memmap):
            shapes.append(array.shape)
        return array

    monkeypatch.setattr(featuresets, "IN_MEMORY", 1000)
    for module in (featuresets, features, prompts, transduction):
        monkeypatch.setattr(module, "new_array", spied)
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_large_answers_of_blocks_lie_on_disk(on_disk, dtype):
    table = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    answer = lambda some: (10 * some).to(dtype)
    found = featuresets.in_blocks(answer, table, 16)
    assert on_disk == [(2000, 3)] and torch.equal(found, answer(table))
    assert found.dtype == dtype and len(featuresets.in_blocks(answer, table[:30], 16))
    assert on_disk == [(2000, 3)], "small ones do not"
    halves = featuresets.in_blocks(torch.Tensor.bfloat16, table, 16)
    assert torch.equal(halves, table.bfloat16()), "NumPy has no such numbers"


def test_votes_need_no_table_of_guesses(clip, images, monkeypatch):
    shapes, blocks = [], prototypes.in_blocks

    def spied(*given):
        found = blocks(*given)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(prototypes, "in_blocks", spied)
    NearestNeighbours(clip, images.classnames).fit(images)
    assert shapes == [(40,)]


class Linear(Adapter):
    """Logits from features; it remembers which it gave, and of how many images."""

    def _fit(self, images, labels):
        self.asked = []

    def _predict_logits(self, images):
        self.asked.append(len(images))
        self.logits = self.clip.encode_image(images)[:, : len(self.classnames_)]
        return self.logits if self.logits.is_contiguous() else self.logits.clone()


@pytest.fixture(scope="module")
def many(clip):
    """40,000 features, of which every third has a label."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40_000, clip.embed_dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.where(np.arange(len(rows)) % 3, -1, rng.integers(10, size=len(rows)))
    return FeatureSet(rows, digits("test").classnames, labels)


def test_probabilities_take_the_place_of_logits(clip, many):
    model = Linear(clip, many.classnames).fit(many)
    expected = torch.from_numpy(many.features[:, :10]).softmax(1).numpy()
    table = torch.from_numpy(many.features[:, :10].copy())
    model._predict_logits = lambda images: table
    found = model.predict_proba(many)
    assert np.array_equal(found, expected)
    assert np.shares_memory(found, table.numpy()), "there are two tables [N, C]"
    spread = torch.zeros(1, 10).expand(len(many), 10)  # rows that share their memory
    model._predict_logits = lambda images: spread
    assert np.allclose(model.predict_proba(many), 0.1) and (spread == 0).all()


def test_classes_of_features_need_no_table_at_all(clip, many):
    model = Linear(clip, many.classnames).fit(many)
    expected = model.predict_proba(many).argmax(1)
    model.asked.clear()
    assert np.array_equal(model.predict(many), expected)
    known = many.labels >= 0
    score = (expected == many.labels)[known].mean()
    assert model.score(many) == pytest.approx(score)
    assert max(model.asked) <= featuresets.BLOCK < len(many)
    assert sum(model.asked) == len(many) + known.sum()
    assert model.predict(many.subset([])).shape == (0,)


def test_the_nodes_of_a_graph_are_one_copy_on_disk(on_disk, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(500, 8, generator=generator)
    text = torch.randn(5, 8, generator=generator)
    labels, scores = transduction.propagate_labels(points, text, 7)
    assert on_disk == [(505, 8)]
    for exact in (True, False):
        transduction.neighbour_graph(points, 7, exact)
    assert on_disk == [(505, 8), (500, 8), (500, 8)]
    monkeypatch.setattr(featuresets, "IN_MEMORY", 2**30)
    whole = F.normalize(torch.cat([text, points]), dim=1)
    assert torch.equal(transduction._unit_rows(text, points), whole)
    monkeypatch.setattr(transduction, "ROWS", 7)
    again = transduction.propagate_labels(points, text, 7)
    assert np.array_equal(again[0], labels) and np.array_equal(again[1], scores)


def dense_graph(points, k):
    """That of `neighbour_graph`, with products of matrices."""
    unit = F.normalize(points, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-torch.inf)
    best = cosines.topk(k, dim=1)
    kept = torch.zeros_like(cosines, dtype=torch.float64)
    kept.scatter_(1, best.indices, (best.values.double() + 1) / 2)
    kept = (kept + kept.T) / 2
    scale = kept.sum(1).rsqrt()
    return (scale[:, None] * kept * scale).numpy()


def test_the_graph_is_scaled_in_place():
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    graph = transduction.neighbour_graph(points, 7)
    assert np.allclose(graph.toarray(), dense_graph(points, 7), atol=1e-7)
    assert graph.indices.dtype == graph.indptr.dtype == np.int32


def test_the_order_of_the_nodes_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(400, 8, generator=generator)
    text = torch.randn(5, 8, generator=generator)
    given = np.where(np.arange(400) % 9, -1, np.arange(400) % 5)
    plain = transduction.propagate_labels(points, text, 7, labels=given, exact=True)
    monkeypatch.setattr(transduction, "EXACT", 100)
    order, place = transduction._orders(F.normalize(points, dim=1), 5)
    assert (order != np.arange(400)).any() and (order[place] == np.arange(400)).all()
    other = transduction.propagate_labels(points, text, 7, labels=given, exact=True)
    assert np.allclose(plain[1], other[1], atol=1e-5 * plain[1].max())
    assert (plain[0] == other[0]).mean() > 0.99


def views_of(clip):
    names = ("eval", "weak 0", "strong 0", "strong 1")
    return [view_named(name, clip.image_size, flip=False) for name in names]


def test_stored_views_of_many_images_lie_on_disk(clip, images, on_disk, tmp_path):
    stored, shape = StoredCLIP(clip, FeatureStore(tmp_path)), (4, 40, clip.embed_dim)
    plain = torch.cat([*clip.encode_views(images, views_of(clip))], 1)
    for _ in range(2):  # encoded, then read
        on_disk.clear()
        found = encode_all_views(stored, images, views_of(clip))
        assert found.dtype == torch.float16 and set(on_disk) == {shape}
        assert torch.equal(found, plain.half())
    batches = [*stored.encode_views(images, views_of(clip))]
    assert torch.equal(torch.cat(batches, 1), plain), "in the store nothing is rounded"


def test_batches_of_stored_views_follow_each_other(clip, on_disk, tmp_path):
    pages = np.zeros((1100, 4, 4), np.uint8)
    pages[1:, 0, 0], pages[1:, 0, 1] = np.divmod(np.arange(1, 1100), 200)
    stored = StoredCLIP(clip, FeatureStore(tmp_path))
    given = pages, [(None, 0), views_of(clip)[1]]
    batches = [*stored.encode_views(*given)]
    assert [tuple(batch.shape[:2]) for batch in batches] == [(2, 1024), (2, 76)]
    whole = torch.cat([*clip.encode_views(*given)], 1)
    assert (torch.cat(batches, 1) - whole).abs().max() < 1e-6
    assert [*stored.encode_views(pages[:0], given[1])] == []


def test_a_damaged_image_among_views_on_disk(clip, images, on_disk, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        images[number][0].save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    damaged, store = {}, FeatureStore(tmp_path / "store")
    found = [*StoredCLIP(clip, store).encode_views(paths, views_of(clip), 64, damaged)]
    assert list(damaged) == [1] and torch.cat(found, 1)[:, 1].isnan().all()
    assert torch.cat(found, 1)[:, [0, 2]].isfinite().all()


def test_methods_learn_from_what_lies_on_disk(clip, images, on_disk, tmp_path):
    stored, small = StoredCLIP(clip, FeatureStore(tmp_path)), lpclip.SMALL
    model = LPCLIP(stored, images.classnames, **{**small, "epochs": 2}).fit(images)
    assert model.score(images) > 0.5 and (5, 40, clip.embed_dim) in on_disk
    options = {**grip.SMALL, "epochs": 1, "k": 2, "prompt": "visual"}
    FPL(clip, images.classnames, **options).fit(images)
    assert (40, 17, 128) in on_disk, "the patches"


def test_patches_on_disk_are_rounded_and_nothing_else(clip, images, monkeypatch):
    tower = ImageTower(clip)
    plain = tower.embed(images)
    monkeypatch.setattr(featuresets, "IN_MEMORY", plain.nbytes - 1)
    halved = tower.embed(images)
    assert (plain.dtype, halved.dtype) == (torch.float32, torch.float16)
    assert torch.equal(halved, plain.half())
    assert (tower.plain(halved[:9]) - tower.plain(plain[:9])).abs().max() < 2e-3


def test_batches_of_features_are_let_go(clip):
    """They are copied into one table, and no list of them is kept beside it."""
    alive = []

    def batches():
        for number in range(5):
            assert sum(batch() is not None for batch in alive) <= 1
            batch = torch.full((3, clip.embed_dim), float(number))
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    found = model_module._collect(clip, batches(), 15, "image")
    assert torch.equal(found[:, 0], torch.arange(5.0).repeat_interleave(3))
    assert model_module._collect(clip, iter([]), 0, "image").shape == (
        0,
        clip.embed_dim,
    )


def test_a_store_asked_directly_answers_on_disk(clip, images, on_disk, tmp_path):
    store, shape = FeatureStore(tmp_path), (4, 40, clip.embed_dim)
    plain = torch.cat([*clip.encode_views(images, views_of(clip))], 1)
    for _ in range(2):  # encoded, then read
        on_disk.clear()
        found = store.encode_views(clip, images, views_of(clip))
        assert isinstance(found, np.memmap) and on_disk == [shape]
        assert np.array_equal(found, plain)
    assert np.array_equal(store.encode(clip, images, "weak 0", False), plain[1])


@pytest.fixture(scope="module")
def answers():
    """Probabilities of 200,000 images and 20 classes, 16 MB, and labels."""
    rng = np.random.default_rng(0)
    table = rng.random((200_000, 20), np.float32) ** 4
    table /= table.sum(1, keepdims=True)
    return rng.integers(20, size=len(table)), table


def in_one_piece(labels, table):
    """What the metrics are, with tables [N, C]."""
    whole = table.astype(np.float64)
    truth = np.eye(20)[labels]
    logs = np.log(np.where(whole > 0, whole, 1))
    scaled = whole / whole.sum(1, keepdims=True)
    return {
        metrics.negative_log_likelihood: -np.log(whole[truth > 0].clip(2.2e-16)).mean(),
        metrics.brier_score: ((whole - truth) ** 2).sum(1).mean(),
        metrics.max_probability: whole.max(1),
        metrics.negative_entropy: (scaled * logs).sum(1),
        metrics.expected_calibration_error: None,
        metrics.check_probabilities: table,
    }


def test_metrics_make_no_second_table(answers):
    labels, table = answers
    for metric, expected in in_one_piece(labels, table).items():
        of_labels = metric.__annotations__.get("labels")
        given = (labels, table) if of_labels else (table,)
        options = {"dtype": None} if metric is metrics.check_probabilities else {}
        tracemalloc.start()
        found = metric(*given, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < table.nbytes, f"{metric.__name__} takes {peak / table.nbytes:.1f}"
        if expected is not None:
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found is table
    checked = metrics.check_probabilities(table)
    assert checked.dtype == np.float64 and np.array_equal(checked, table)
    bad = table.copy()
    bad[150_000, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 200000 rows.*not finite; row 150000"):
        metrics.check_probabilities(bad, dtype=None)


def test_a_table_of_predictions_is_made_from_rows(clip, answers, monkeypatch):
    _, table = answers
    model = Linear(clip, [f"class {c}" for c in range(20)])
    model.classnames_ = model.classnames
    monkeypatch.setattr(sets, "image_names", lambda images: ["a"] * len(table))
    tracemalloc.start()
    found = runs.predictions(model, None, table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < table.nbytes
    whole = table.astype(float)
    assert np.array_equal(found["confidence"], whole.max(1).round(4))
    monkeypatch.setattr(sets, "image_names", lambda images: ["a"] * 50)
    few = runs.predictions(model, None, table[:50], probabilities=True)
    assert np.array_equal(few.iloc[:, 3:], whole[:50].round(4))


def looked_into(probed, sizes):
    """How many rows the lists of each row hold, and all but the last of them."""
    held = torch.where(probed >= 0, sizes[probed.long().clamp(min=0)], 0)
    last = (probed >= 0).sum(1, keepdim=True) - 1
    return held.sum(1), held.sum(1) - held.gather(1, last)[:, 0]


def test_a_row_is_compared_with_as_many_rows_whatever_the_lists(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    unit = F.normalize(torch.randn(4000, 8, generator=generator) + 1, dim=1)
    centres = F.normalize(torch.randn(30, 8, generator=generator), dim=1)
    monkeypatch.setattr(transduction, "COMPARED", 900)
    probed = transduction._nearest_lists(unit, centres)
    ranked = (unit @ centres.T).argsort(1, descending=True)[:, : probed.shape[1]]
    kept = probed >= 0
    assert torch.equal(probed[kept].long(), ranked[kept]) and kept[:, 0].all()
    sizes = ranked[:, 0].bincount(minlength=30)
    assert sizes.max() > 5 * sizes.float().mean(), "the lists are uneven"
    held, before = looked_into(probed, sizes)
    assert (before < 900).all() and (held >= 900).all()
    members = transduction._members(ranked[:, 0], 30)
    pairs = [
        (len(inside), len(outside))
        for inside, outside in zip(members, transduction._askers(probed, 30))
    ]
    assert sum(inside for inside, _ in pairs) == len(unit)
    assert sum(inside * outside for inside, outside in pairs) == held.sum()
    monkeypatch.setattr(transduction, "PROBES", 2)
    assert transduction._nearest_lists(unit, centres).shape == (4000, 2)


def test_many_lists_are_found_in_a_graph(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    unit = F.normalize(torch.randn(3000, 16, generator=generator), dim=1)
    centres = F.normalize(torch.randn(200, 16, generator=generator), dim=1)
    plain = transduction._nearest_lists(unit, centres)
    monkeypatch.setattr(transduction, "FLAT", 100)
    found = transduction._nearest_lists(unit, centres)
    same = [np.isin(a, b).mean() for a, b in zip(found.numpy(), plain.numpy())]
    assert np.mean(same) > 0.99
    monkeypatch.setattr(transduction, "SIZE", 16)
    assert transduction._list_centres(unit).norm(dim=1).allclose(torch.ones(187))


def test_neighbours_are_found_in_lists():
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(200, (12_000,), generator=generator)
    points = torch.randn(200, 12, generator=generator)[labels]
    points += 0.9 * torch.randn(12_000, 12, generator=generator)
    unit = F.normalize(points, dim=1)
    weights, places = transduction.nearest_rows(unit, 20, exact=False)
    true, exact = transduction.nearest_rows(unit, 20, exact=True)
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(places, exact)])
    assert recall > 0.97 and (weights <= true + 1e-6).all()
    assert not (places == torch.arange(12_000)[:, None]).any()


@pytest.fixture(scope="module")
def clumps():
    """12,000 rows in 200 clumps, and 3,000 others."""
    generator = torch.Generator().manual_seed(6)
    centres = torch.randn(200, 12, generator=generator)
    labels = torch.randint(200, (15_000,), generator=generator)
    points = centres[labels] + 0.9 * torch.randn(15_000, 12, generator=generator)
    return F.normalize(points, dim=1).split([12_000, 3000])


def recall_of(found, exact):
    return np.mean([np.isin(a, b).mean() for a, b in zip(found, exact)])


def test_others_find_their_neighbours_in_lists(clumps):
    rows, others = (part.numpy() for part in clumps)
    lists = transduction.NeighbourLists(rows)
    found, places = lists.search(others, 10)
    true, exact = exact_search(rows, others, 10)
    assert recall_of(places, exact) > 0.97 and (found <= true + 1e-6).all()
    assert np.allclose(found, np.einsum("qd,qkd->qk", others, rows[places]), atol=1e-5)
    assert (np.diff(found) <= 0).all() and all(len(set(row)) == 10 for row in places)
    alone = [lists.search(others[[i]], 10)[1][0] for i in range(20)]
    assert recall_of(alone, places[:20]) == 1, "whoever else asks"
    itself = lists.search(rows[:50], 1)[1][:, 0]
    assert (itself == np.arange(50)).all()


def test_a_query_is_compared_with_few_rows_however_many_there_are(clumps, monkeypatch):
    """Twice the rows, the same number of comparisons for each query."""
    monkeypatch.setattr(transduction, "SIZE", 32)
    monkeypatch.setattr(transduction, "COMPARED", 512)
    compared, spent = transduction._best_in_lists, []

    def counted(unit, members, queries, probed, *rest, **options):
        sizes = torch.tensor([*map(len, members)])
        held = torch.where(probed >= 0, sizes[probed.long().clamp(min=0)], 0).sum(1)
        spent.append(float(held.float().mean()))
        return compared(unit, members, queries, probed, *rest, **options)

    monkeypatch.setattr(transduction, "_best_in_lists", counted)
    rows, others = (part.numpy() for part in clumps)
    for count in (3000, 6000, 12_000):
        transduction.NeighbourLists(rows[:count]).search(others, 5)
    assert max(spent) < 512 + 100 and max(spent) / min(spent) < 1.1


def test_lists_are_chosen_among_those_around(clumps, monkeypatch):
    rows, _ = clumps
    monkeypatch.setattr(transduction, "SIZE", 32)
    centres = transduction._list_centres(rows)
    assert len(centres) == 375 > transduction.AROUND
    ranked = transduction._ranked_lists(rows, centres, 16)
    best = (rows @ centres.T).topk(16, 1).indices
    assert torch.equal(ranked[:, 0].long(), best[:, 0]) and ranked.dtype == torch.int32
    assert recall_of(ranked.numpy(), best.numpy()) > 0.97
    assert all(len(set(row)) == 16 for row in ranked.tolist())
    some = transduction._ranked_lists(rows[:9], centres, 16)
    assert torch.equal(some, ranked[:9]), "whoever else asks"


@pytest.mark.parametrize("kind", [NearestNeighbours, ZLaP])
def test_answers_from_lists_are_those_of_all_pairs(kind, clip, clumps, monkeypatch):
    rows, others = (
        FeatureSet(
            F.pad(part[:3000], (0, clip.embed_dim - 12)), digits("train").classnames
        )
        for part in clumps
    )
    method = kind(clip, rows.classnames).fit(rows)
    plain = method.predict_proba(others)
    assert np.allclose(
        kind(clip, rows.classnames).fit(rows).predict_proba(others), plain
    )
    monkeypatch.setattr(transduction, "EXACT", 2000)
    made, build = [], transduction.NeighbourLists.__init__
    spied = lambda self, vectors: (made.append(len(vectors)), build(self, vectors))[1]
    monkeypatch.setattr(transduction.NeighbourLists, "__init__", spied)
    listed = kind(clip, rows.classnames)
    listed.fit(rows)
    for _ in range(2):  # lists are made once
        found = listed.predict_proba(others)
    assert made == [3000]
    assert (found.argmax(1) == plain.argmax(1)).mean() > 0.98
    loaded = restored(listed)
    assert np.allclose(loaded.predict_proba(others), found, atol=1e-6)


def restored(method):
    """A method as it is after it was saved and loaded: without what is not fitted."""
    for name in ("_index", "_search"):
        vars(method).pop(name, None)
    return method


def test_many_neighbours_are_looked_for_among_all_pairs(clumps, monkeypatch):
    monkeypatch.setattr(transduction, "EXACT", 100)
    rows = clumps[0].numpy()
    few, many = (transduction.nearest_search(rows, k) for k in (5, 513))
    assert isinstance(few, transduction.NeighbourLists)
    assert not isinstance(many, transduction.NeighbourLists)
    assert many.search(rows[:2], 513)[1].shape == (2, 513)
    with pytest.raises(ValueError, match="dimensions"):
        few.search(np.eye(3, dtype=np.float32))


def test_parts_of_the_nodes_spread_as_all_of_them(monkeypatch):
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    graph = transduction.neighbour_graph(points, 7)
    seeds = np.eye(300, 4)
    whole = transduction.diffuse(graph, seeds)
    monkeypatch.setattr(transduction, "EXACT", 100)
    sevens = lambda count, size: featuresets.row_blocks(count, 7)
    monkeypatch.setattr(transduction, "row_blocks", sevens)
    assert np.allclose(transduction.diffuse(graph, seeds), whole, rtol=1e-9, atol=1e-12)
    monkeypatch.undo()
    dense = np.linalg.solve(np.eye(300) - 0.99 * graph.toarray(), seeds)
    assert np.allclose(whole, dense, atol=1e-5 * dense.max())
