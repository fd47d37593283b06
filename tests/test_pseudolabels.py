"""Selection of pseudolabels, as properties of any scores: the order of images and
classes, counts, ties, precision, bad input, size."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odd_values import escapes
from sklearn.mixture import GaussianMixture

from clipadapt.learning import pseudolabels
from clipadapt.learning.pseudolabels import (
    DegenerateMixtureWarning,
    Pseudolabels,
    _Ties,
    above_threshold,
    candidate_quality,
    class_balanced,
    clean_posterior,
    conventional,
    coverage,
    effective_classes,
    purity,
    quality,
    ratio_candidates,
    score_calibration,
    top_k,
    top_k_candidates,
    union_candidates,
)

settings.register_profile("clipadapt", deadline=None, derandomize=True)
settings.load_profile("clipadapt")
POLICIES = ["per-class", "argmax", "one-class"]
SELECTORS = {
    **{
        policy: lambda scores, policy=policy: top_k(scores, 3, policy)
        for policy in POLICIES
    },
    "conventional": conventional,
    "above_threshold": lambda scores: above_threshold(scores, 0.5),
    "class_balanced": lambda scores: class_balanced(scores, 0.4),
}

shapes = st.tuples(st.integers(0, 25), st.integers(1, 6))
few_values = st.sampled_from([0, 2.0**-24, 0.25, 0.5, 1])  # ties everywhere
precisions = st.sampled_from([np.float16, np.float32, np.float64])
tied = precisions.flatmap(
    lambda precision: hnp.arrays(precision, shapes, elements=few_values)
)
free = hnp.arrays(np.float32, shapes, elements=st.floats(-10, 10, width=32))
tables = st.one_of(tied, free)


def contents(pseudolabels, scores):
    """The chosen rows themselves, as a sorted list: what was chosen, whatever its
    position was."""
    return sorted(
        (int(c), scores[i].tolist())
        for i, c in zip(pseudolabels.images, pseudolabels.classes)
    )


def pairs(pseudolabels):
    return {*zip(pseudolabels.images.tolist(), pseudolabels.classes.tolist())}


@pytest.mark.parametrize("name", SELECTORS)
@given(scores=tables, seed=st.integers(0, 99))
def test_permuted_images_give_the_permuted_choice(name, scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    one, other = SELECTORS[name](scores), SELECTORS[name](scores[order])
    assert contents(one, scores) == contents(other, scores[order])
    if len(np.unique(scores, axis=0)) == len(scores):
        assert pairs(one) == {(int(order[i]), c) for i, c in pairs(other)}


@pytest.mark.parametrize("name", SELECTORS)
@given(scores=tables, seed=st.integers(0, 99))
def test_renamed_classes_give_the_renamed_choice(name, scores, seed):
    if (
        len(np.unique(scores)) < scores.size
    ):  # ties between classes go to the first class
        scores = np.random.default_rng(seed).permutation(scores.size).reshape(
            scores.shape
        ) / max(1, scores.size)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    assert pairs(SELECTORS[name](scores)) == {
        (i, int(order[c])) for i, c in pairs(SELECTORS[name](scores[:, order]))
    }


@pytest.mark.parametrize("name", SELECTORS)
@given(scores=tables)
def test_what_every_choice_promises(name, scores):
    chosen = SELECTORS[name](scores)
    count, width = scores.shape
    assert [
        array.dtype for array in (chosen.images, chosen.classes, chosen.scores)
    ] == [np.int64, np.int64, np.float32]
    assert (
        len(pairs(chosen)) == len(chosen)
        and ((0 <= chosen.images) & (chosen.images < max(1, count))).all()
    )
    assert np.array_equal(
        chosen.scores, scores[chosen.images, chosen.classes].astype(np.float32)
    )
    assert np.array_equal(
        np.lexsort((chosen.images, -chosen.scores, chosen.classes)),
        np.arange(len(chosen)),
    )
    assert (
        chosen.counts(width).sum() == len(chosen)
        and 0 <= effective_classes(chosen, width) <= width + 1e-9
    )
    if name != "per-class":
        assert (chosen.labels(count) >= 0).sum() == len(chosen)


@pytest.mark.parametrize("policy", POLICIES)
@given(scores=tables, k=st.integers(1, 40))
def test_counts_never_exceed_k(policy, scores, k):
    counts = top_k(scores, k, policy).counts(scores.shape[1])
    assert (counts <= k).all()
    if policy == "per-class":
        assert (counts == min(k, len(scores))).all()
    if policy == "argmax":
        assert (
            counts == np.minimum(k, conventional(scores).counts(scores.shape[1]))
        ).all()
    if policy == "one-class":
        assert counts.sum() == min(len(scores), k * scores.shape[1])


def sorted_pairs_loop(scores, k, policy):
    """The policies as their definition says them: pairs from the best down; ties by the
    two highest scores, a hash of the row, position, class."""
    hashes = _Ties(scores).keys(np.arange(len(scores)))[2]
    top = [sorted(row.tolist(), reverse=True)[:2] for row in scores]
    pairs = sorted(
        (-scores[i, c], top[i], hashes[i], i, c) for i, c in np.ndindex(scores.shape)
    )
    boards, free = {c: [] for c in range(scores.shape[1])}, set(range(len(scores)))
    for *_, i, c in pairs:
        allowed = {
            "per-class": True,
            "argmax": c == scores[i].argmax(),
            "one-class": i in free,
        }[policy]
        if allowed and len(boards[c]) < k:
            boards[c].append(i)
            free.discard(i)
    return {(i, c) for c, board in boards.items() for i in board}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=200)
@given(scores=tables, k=st.integers(1, 12))
def test_top_k_is_its_definition(policy, scores, k):
    assert pairs(top_k(scores, k, policy)) == sorted_pairs_loop(scores, k, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "kind",
    ["smooth", "saturated", "half", "one-hot", "constant", "class-sorted", "rare"],
)
@pytest.mark.parametrize("k", [3, 300])
def test_top_k_is_its_definition_on_larger_tables(policy, kind, k):
    """Enough images for the pruning of one-class, and ties in plenty."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3000, 4)) * (
        40 if kind in ("saturated", "half", "one-hot") else 2
    ) + [2, 0, 0, -2]
    logits = torch.from_numpy(
        logits if kind != "class-sorted" else logits[logits.argmax(1).argsort()]
    )
    scores = (
        logits.softmax(1).numpy().astype(np.float16 if kind == "half" else np.float32)
    )
    scores = (
        np.eye(4, dtype=np.float32)[scores.argmax(1)]
        if kind == "one-hot"
        else np.full_like(scores, 0.25)
        if kind == "constant"
        else scores
    )
    if kind == "rare":  # most images tie for the last places of class 1
        scores[:, 1] = 0
        scores[[5, 2000], 1] = 1
    assert pairs(top_k(scores, k, policy)) == sorted_pairs_loop(scores, k, policy)
    assert pairs(top_k(np.asfortranarray(scores), k, policy)) == pairs(
        top_k(scores, k, policy)
    )


def test_ties_too_many_for_one_block(monkeypatch):
    monkeypatch.setattr("clipadapt.learning.pseudolabels._BLOCK", 64)
    scores = (np.random.default_rng(0).integers(0, 3, (500, 5)) / 2).astype(np.float32)
    for policy in POLICIES:
        assert pairs(top_k(scores, 20, policy)) == sorted_pairs_loop(scores, 20, policy)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors_give_what_arrays_give(dtype):
    scores = (
        torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
        .to(dtype)
        .requires_grad_()
    )
    exact = scores.detach().double().numpy()
    for select in SELECTORS.values():
        assert pairs(select(scores)) == pairs(select(exact))
    assert np.array_equal(top_k_candidates(scores, 2), top_k_candidates(exact, 2))
    assert np.allclose(clean_posterior(scores[:, 0]), clean_posterior(exact[:, 0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_a_gpu():
    scores = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).half()
    assert pairs(top_k(scores.cuda(), 9, "one-class")) == pairs(
        top_k(scores, 9, "one-class")
    )


def test_nothing_is_written_to_the_scores():
    scores = np.random.default_rng(0).random((300, 5))
    scores.flags.writeable = False
    for select in SELECTORS.values():
        select(scores)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(name, bad):
    scores = np.random.default_rng(0).random((40, 3))
    scores[[7, 30], 1] = bad
    with pytest.raises(
        ValueError, match="2 images are NaN or infinite, the first is image 7"
    ):
        SELECTORS[name](scores)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None, "3"])
def test_k_that_is_no_count(k):
    for call in (top_k, top_k_candidates):
        with pytest.raises(ValueError, match="k must be a positive whole number"):
            call(np.eye(3), k)


@pytest.mark.parametrize("shape", [(0, 3), (2, 5), (1, 1), (3, 1)])
def test_small_tables(shape):
    scores = np.random.default_rng(0).random(shape)
    for select in SELECTORS.values():
        chosen = select(scores)
        table = quality(
            chosen, np.zeros(shape[0], int), [f"class {c}" for c in range(shape[1])]
        )
        assert len(table) == shape[1] and table["count"].sum() == len(
            chosen
        )  # classes without pseudolabels are kept
    assert (
        top_k_candidates(scores, 2).shape
        == ratio_candidates(scores, 0.5).shape
        == union_candidates(scores[None]).shape
        == shape
    )


def test_memory_stays_small():
    scores = np.random.default_rng(0).random((100_000, 50), np.float32)
    for policy in POLICIES:
        tracemalloc.start()
        top_k(scores, 16, policy)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.7 * scores.nbytes, policy


# clean_posterior


def quietly(losses):
    """The posterior, and the reasons of the warnings that came with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = clean_posterior(losses)
    assert {warning.category for warning in caught} <= {DegenerateMixtureWarning}
    return posterior, [str(warning.message) for warning in caught]


@settings(max_examples=40)
@given(
    losses=hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(-1e6, 1e6)),
    seed=st.integers(0, 99),
)
def test_the_posterior_follows_its_image(losses, seed):
    order = np.random.default_rng(seed).permutation(len(losses))
    posterior, reasons = quietly(losses)
    assert posterior.dtype == np.float32 and ((posterior >= 0) & (posterior <= 1)).all()
    assert (
        np.array_equal(quietly(losses[order])[0], posterior[order])
        and len(reasons) <= 1
    )


@pytest.mark.parametrize(
    "losses, reason, clean",
    [
        ([], "0 losses are too few", 0),
        ([2.0], "1 losses are too few", 1),
        ([0.5] * 9, "all 9 losses are 0.5", 9),
        ([0, 1], "holds 1 of 2", 1),
        ([0.0] * 20 + [1.0], "holds 1 of 21", 20),
    ],
)
def test_degenerate_mixtures_are_reported(losses, reason, clean):
    posterior, reasons = quietly(np.array(losses, float))
    assert (
        len(reasons) == 1
        and reason in reasons[0]
        and posterior.sum() == clean
        and set(posterior) <= {0, 1}
    )


def test_the_scale_of_losses_does_not_matter():
    losses = np.random.default_rng(0).gamma(1, size=500)
    assert np.allclose(
        clean_posterior(losses), clean_posterior(1000 * losses - 7), atol=1e-4
    )


def two_kinds_of_losses(kind, seed, count=5000):
    """Losses of right labels, mostly low, and of wrong ones, mostly high."""
    rng = np.random.default_rng(seed)
    right = rng.random(count) < 0.7
    draws = {
        "gamma": (rng.gamma(1, 0.3, count), rng.gamma(4, 0.6, count)),
        "normal": (rng.normal(0.4, 0.1, count), rng.normal(1.2, 0.3, count)),
        "scale 100": (rng.exponential(0.05, count), rng.gamma(2, 4, count)),
        "scale 20": (rng.exponential(0.3, count), rng.gamma(3, 0.8, count)),
    }[kind]
    return np.where(right, *draws)


def expected_maximisation(values, means, variance, rounds):
    """Two Gaussians by hand: the lower mean, and its responsibility for each value."""
    means, shares = np.array(means, float), np.array([0.5, 0.5])
    variances = np.full(2, variance)
    for _ in range(rounds):
        distance = (values[:, None] - means) ** 2
        densities = np.exp(-distance / 2 / variances) / np.sqrt(2 * np.pi * variances)
        weighted = shares * densities
        resp = weighted / weighted.sum(1, keepdims=True)
        sizes = resp.sum(0)
        shares, means = sizes / len(values), (resp * values[:, None]).sum(0) / sizes
        distance = (values[:, None] - means) ** 2
        variances = (resp * distance).sum(0) / sizes + 5e-4
    return means.min(), resp[:, means.argmin()]


@pytest.mark.parametrize("kind", ["gamma", "normal", "scale 100", "scale 20"])
def test_the_split_is_the_one_of_the_released_code(kind):
    """Co-Reg's: scikit-learn's mixture of the losses scaled to 0 ... 1, the lower
    mean."""
    for seed in range(3):
        losses = two_kinds_of_losses(kind, seed)
        scaled = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
        mixture = GaussianMixture(
            n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed
        )
        found = mixture.fit(scaled).predict_proba(scaled)[:, mixture.means_.argmin()]
        ours = clean_posterior(losses) > 0.5
        beyond = losses < losses[found > 0.5].min()  # where Bayes' rule turns round
        assert (ours != ((found > 0.5) | beyond)).mean() < 0.01


@pytest.mark.parametrize("kind", ["gamma", "normal", "scale 20"])
def test_the_converged_mixture_is_the_one_by_hand(kind):
    losses = two_kinds_of_losses(kind, 0, count=1500)
    scaled = (losses - losses.min()) / (losses.max() - losses.min())
    low, high = np.quantile(scaled, [0.2, 0.9])
    mean, by_hand = expected_maximisation(scaled, (low, high), scaled.var() / 4, 3000)
    posterior = clean_posterior(losses, max_iter=3000, tol=1e-9)
    falling = scaled > mean  # below it, ours is held constant
    assert falling.mean() > 0.4 and np.abs(posterior - by_hand)[falling].max() < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_no_numbers(bad):
    with pytest.raises(ValueError, match="the first is image 1; clamp"):
        clean_posterior([1, bad])


# candidates and quality


@given(
    probabilities=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(1, 5)),
        elements=few_values,
    ),
    k=st.integers(1, 7),
    ratio=st.floats(0.01, 1),
)
def test_candidates(probabilities, k, ratio):
    first, width = probabilities[0], probabilities.shape[2]
    union = union_candidates(probabilities)
    assert (
        np.array_equal(
            union, union_candidates(torch.from_numpy(probabilities[::-1].copy()))
        )
        and (union.sum(1) <= len(probabilities)).all()
    )
    assert (top_k_candidates(first, k).sum(1) == min(k, width)).all()
    best = (
        np.take_along_axis(union_candidates(first[None]), first.argmax(1)[:, None], 1)
        if first.size
        else np.array(True)
    )
    assert (
        best.all()
        and (top_k_candidates(first, 1) == union_candidates(first[None])).all()
    )
    assert (ratio_candidates(first, ratio) >= top_k_candidates(first, 1)).all()
    report = candidate_quality(union, np.full(len(first), -1))
    assert np.isnan(report["coverage"]) and (
        np.isnan(report["size"]) or 1 <= report["size"] <= width
    )


@given(scores=free, seed=st.integers(0, 99))
def test_quality_is_a_count(scores, seed):
    count, width = scores.shape
    labels = np.random.default_rng(seed).integers(-1, width, count)
    chosen = top_k(scores, 4)
    table = quality(chosen, labels, [f"class {c}" for c in range(width)])
    for c in range(width):
        mine = chosen.images[chosen.classes == c]
        right, judged, exist = (
            (labels[mine] == c).sum(),
            (labels[mine] >= 0).sum(),
            (labels == c).sum(),
        )
        np.testing.assert_allclose(
            table.iloc[c],
            [
                len(mine),
                right / exist if exist else np.nan,
                right / judged if judged else np.nan,
            ],
        )
    known = labels[chosen.images] >= 0
    np.testing.assert_allclose(
        purity(chosen, labels),
        (labels[chosen.images] == chosen.classes)[known].mean()
        if known.any()
        else np.nan,
    )
    assert (
        np.isnan(coverage(chosen, count))
        if not count
        else 0 < coverage(chosen, count) <= 1
    )


def test_calibration_counts_every_judged_pair():
    scores = np.random.default_rng(0).dirichlet([1] * 4, 300)
    labels = np.random.default_rng(1).integers(-1, 4, 300)
    chosen = conventional(scores)
    table = score_calibration(chosen, labels)
    known = labels[chosen.images] >= 0
    assert table["count"].sum() == known.sum()
    np.testing.assert_allclose(
        (table["count"] * table.purity).sum() / known.sum(), purity(chosen, labels)
    )


def test_labels_that_do_not_fit():
    chosen = conventional(np.eye(3))
    for call in (
        purity,
        score_calibration,
        lambda chosen, labels: quality(chosen, labels, list("abc")),
    ):
        with pytest.raises(ValueError, match="labels for 2 images only"):
            call(chosen, [0, 1])
        with pytest.raises(ValueError, match="labels must"):
            call(chosen, [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="labels must lie in 0 ... 1"):
        quality(chosen, [0, 1, 2], ["a", "b"])
    with pytest.raises(ValueError, match="bool"):
        candidate_quality(np.eye(3))


def test_an_image_with_two_classes_has_no_label():
    chosen = top_k(np.array([[0.9, 0.8], [0.1, 0.2]]), 1)
    assert isinstance(chosen, Pseudolabels)
    with pytest.raises(ValueError, match="the first is image 0"):
        chosen.labels(2)


@pytest.mark.parametrize(
    "name, places",
    [
        ("conventional", [0]),
        ("top_k", [0, 1, 2]),
        ("above_threshold", [0, 1]),
        ("class_balanced", [0, 1]),
        ("clean_posterior", [0]),
        ("union_candidates", [0]),
        ("top_k_candidates", [0, 1]),
        ("ratio_candidates", [0, 1]),
        ("candidate_quality", [0]),
        ("purity", [0, 1]),
        ("coverage", [0, 1]),
        ("effective_classes", [0]),
        ("quality", [0, 1]),
        ("score_calibration", [0, 1, 2]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_nothing_but_value_errors_comes_of_odd_values(name, places):
    table, labels = (
        np.random.default_rng(0).dirichlet(np.ones(3), 12).astype(np.float32),
        np.arange(12) % 3,
    )
    chosen = pseudolabels.conventional(table)
    arguments = {
        "top_k": [table, 2, "argmax"],
        "above_threshold": [table, 0.5],
        "class_balanced": [table, 0.5],
        "clean_posterior": [table[:, 0]],
        "union_candidates": [[table, table]],
        "top_k_candidates": [table, 2],
        "ratio_candidates": [table, 0.5],
        "candidate_quality": [table > 0.3, labels],
        "purity": [chosen, labels],
        "coverage": [chosen, 12],
        "effective_classes": [chosen, 3],
        "quality": [chosen, labels, ["a", "b", "c"]],
        "score_calibration": [chosen, labels, 5],
    }.get(name, [table])
    assert not escapes(getattr(pseudolabels, name), arguments, places)
