"""ZLaP against its formulas, written down node by node and solved densely: the graph,
the pool, new images, few labels, odd pools, and what is kept."""

import numpy as np
import pytest
import torch

from clipadapt import CLIP, FeatureSet, ZLaP
from clipadapt.learning.testing import check_adapter
from clipadapt.methods import transduction

NAMES = ["zero", "one", "two", "three", "four", "five"]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def text(clip):
    prompts = [f"a photo of a {name}." for name in NAMES]
    return clip.encode_text(prompts).numpy().astype(np.float64)


def points(count, seed, dim=64):
    """Unit rows in all directions, so that half of the cosines are negative."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, dim))).astype(np.float32)


# The formulas, node by node.


def nearest(row, table, k, but=None):
    """The k rows of a table with the largest cosine."""
    places = [j for j in range(len(table)) if j != but]
    return sorted(places, key=lambda j: -(row @ table[j]))[:k]


def naive_graph(x, t, k, gamma):
    """D^-1/2 (W + W') D^-1/2, texts first."""
    c = len(t)
    w = np.zeros((c + len(x), c + len(x)))
    for i in range(len(x)):
        for j in nearest(x[i], x, k - 1, but=i):
            w[c + i, c + j] = max(0, x[i] @ x[j])
        for j in nearest(x[i], t, k):
            w[c + i, j] = max(0, x[i] @ t[j]) ** gamma
    w = w + w.T
    scale = [1 / np.sqrt(degree) if degree else 0 for degree in w.sum(1)]
    return np.diag(scale) @ w @ np.diag(scale)


def naive_zlap(x, t, new, labels, k=5, gamma=5.0, alpha=0.3, sparse=False):
    """Scores of the pool [N, C], and those of new images [M, C].

    Without labels new images are solved for, one by one; the dual form is not used.
    """
    x, new = x.astype(np.float64), new.astype(np.float64)
    c = len(t)
    system = np.eye(c + len(x)) - alpha * naive_graph(x, t, k, gamma)
    seeds = np.zeros((c + len(x), c))
    for number in range(c):
        seeds[number, number] = 1
        for i in np.flatnonzero(labels == number):
            seeds[c + i, number] = 1
    table = np.linalg.solve(system, seeds)
    stored = table
    if sparse:
        stored = np.zeros_like(table)
        for node, row in enumerate(table):
            stored[node, row.argmax()] = row.max()
    answers = []
    for row in new:
        ties = np.zeros(c + len(x))
        for j in nearest(row, x, k):
            ties[c + j] = max(0, row @ x[j])
        for j in nearest(row, t, k):
            ties[j] = max(0, row @ t[j]) ** gamma
        solved = sparse or (labels >= 0).any()
        answers.append(ties @ stored if solved else np.linalg.solve(system, ties)[:c])
    return table[c:], np.array(answers)


def shares(scores):
    return scores / scores.sum(1, keepdims=True)


OPTIONS = [
    {},
    {"k": 2, "gamma": 1.0},
    {"k": 8, "alpha": 0.9, "gamma": 0.5},
    {"sparse": True},
    {"sparse": True, "k": 3, "alpha": 0.8},
]


@pytest.mark.parametrize("k, gamma", [(1, 5.0), (2, 1.0), (5, 5.0), (100, 3.0)])
def test_the_graph_is_what_its_formulas_say(text, k, gamma):
    x = points(30, seed=k)
    graph = transduction.modality_graph(
        torch.from_numpy(x), torch.from_numpy(text).float(), k, gamma
    )
    expected = naive_graph(x.astype(np.float64), text, k, gamma)
    assert np.abs(graph.toarray() - expected).max() < 1e-5
    assert not graph.toarray()[:6, :6].any(), "no text is tied to a text"
    assert graph.nnz <= 2 * 30 * (k - 1 + min(k, 6))


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_zlap_is_what_its_formulas_say(clip, text, options, labelled):
    rng = np.random.default_rng(len(options))
    middles = text[rng.integers(6, size=40)]
    x = unit(middles + points(40, seed=1)).astype(np.float32)
    new = unit(text[rng.integers(6, size=9)] + points(9, seed=2)).astype(np.float32)
    labels = np.full(40, -1)
    if labelled:
        labels[:5] = [3, 1, 4, 1, 5]
    pool, expected = naive_zlap(x, text, new, labels, **options)
    method = ZLaP(clip, NAMES, iterations=1000, **options)
    method.fit(FeatureSet(x, NAMES), labels)
    found = method._pool_proba(None).numpy()
    free = labels < 0
    assert np.abs(found - shares(pool))[free].max() < 1e-4
    assert np.array_equal(method.pseudolabels_[free], pool.argmax(1)[free])
    assert np.array_equal(method.pseudolabels_[~free], labels[~free])
    assert (found[~free, labels[~free]] == 1).all()
    answers = method.predict_proba(FeatureSet(new))
    assert np.abs(answers - shares(expected)).max() < 1e-4


def test_a_new_solution_is_not_needed(clip, text):
    """The dual form: stored columns give what a solution for the image would."""
    x, new = points(50, seed=3), points(6, seed=4)
    method = ZLaP(clip, NAMES, alpha=0.9, iterations=1000).fit(FeatureSet(x))
    arrived = method._arriving(torch.from_numpy(new)).numpy()
    _, expected = naive_zlap(x, text, new, np.full(50, -1), alpha=0.9)
    assert np.abs(arrived - expected).max() < 1e-5


# Odd pools.


def test_images_that_no_text_reaches_are_zero_shot(clip, text):
    away = unit(-text.sum(0) + 0.1 * points(8, seed=5)).astype(np.float32)
    assert (away @ text.T).max() < 0
    method = ZLaP(clip, NAMES).fit(FeatureSet(away))
    logits = clip.logit_scale * away.astype(np.float64) @ text.T
    powers = np.exp(logits - logits.max(1, keepdims=True))
    assert np.array_equal(method.pseudolabels_, logits.argmax(1))
    for found in (method._pool_proba(None), method.predict_proba(FeatureSet(away))):
        assert np.abs(np.asarray(found) - shares(powers)).max() < 1e-4


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_few_images_and_equal_images(clip, text, count, sparse):
    near = unit(text[2] + 0.5 * points(1, seed=6)).astype(np.float32)
    for x in (points(count, seed=7), near.repeat(count, 0)):
        method = ZLaP(clip, NAMES, sparse=sparse).fit(FeatureSet(x))
        found = method.predict_proba(FeatureSet(x))
        assert np.isfinite(found).all() and np.allclose(found.sum(1), 1, atol=1e-5)
    assert (method.pseudolabels_ == 2).all() and (found.argmax(1) == 2).all()


def test_one_class(clip):
    images = FeatureSet(points(7, seed=8))
    method = ZLaP(clip, NAMES[:1]).fit(images)
    assert (method.predict_proba(images) == 1).all()
    assert not method.pseudolabels_.any()


def test_features_that_are_not_numbers_are_refused(clip, monkeypatch):
    images = FeatureSet(points(7, seed=8))
    broken = torch.full((7, 64), torch.nan)
    monkeypatch.setattr(CLIP, "encode_image", lambda self, images: broken)
    with pytest.raises(ValueError, match="features hold NaN"):
        ZLaP(clip, NAMES).fit(images)
    with pytest.raises(ValueError, match="not all finite"):
        transduction.modality_graph(broken, torch.eye(64)[:3])


# What is kept.


def test_solutions_come_in_blocks_of_classes(text, monkeypatch):
    x = torch.from_numpy(points(60, seed=9))
    graph = transduction.modality_graph(x, torch.from_numpy(text).float())
    whole = transduction.spread_from_text(graph, 6)
    blocks = [np.array([c]) for c in range(6)]
    monkeypatch.setattr(transduction, "_class_blocks", lambda *given: blocks)
    assert np.array_equal(transduction.spread_from_text(graph, 6), whole)
    assert whole.dtype == np.float32 and whole.min() >= 0


def test_what_arrives_at_a_large_pool_is_not_kept_twice(clip, monkeypatch):
    images = FeatureSet(points(30, seed=10))
    method = ZLaP(clip, NAMES).fit(images)
    method._pool_proba(images)[:] = 0  # the caller's own
    assert method._pool_proba(images).max() > 0
    monkeypatch.setattr(transduction, "KEPT", 179)
    expected = method.fit(images).predict_proba(images)
    assert np.array_equal(np.asarray(method._pool_proba(images)), expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_saved_answers_alike(clip, sparse, tmp_path):
    images = FeatureSet(points(30, seed=11))
    method = ZLaP(clip, NAMES, sparse=sparse, k=3).fit(images)
    method.save(tmp_path / "kept")
    loaded = ZLaP.load(tmp_path / "kept", clip)
    assert np.array_equal(loaded.predict_proba(images), method.predict_proba(images))
    assert np.array_equal(loaded.pseudolabels_, method.pseudolabels_)
    assert loaded.scores_.shape == (36, 1 if sparse else 6)
    assert not hasattr(loaded, "_assignments")


def test_a_file_that_does_not_fit_together_is_refused(clip, tmp_path):
    method = ZLaP(clip, NAMES).fit(FeatureSet(points(30, seed=11)))
    for name, wrong, message in (
        ("scores_", method.scores_[:, :1].copy(), "scores_ must have the shape"),
        ("scores_", -method.scores_, "must not be negative"),
        ("features_", 2 * method.features_, "unit length"),
    ):
        whole = getattr(method, name)
        setattr(method, name, wrong)
        with pytest.raises(ValueError, match=message):
            method.save(tmp_path / "broken")
        setattr(method, name, whole)
    method.save(tmp_path / "whole")


def test_every_promise_is_kept_by_the_sparse_variant():
    check_adapter(ZLaP, sparse=True, k=3)
