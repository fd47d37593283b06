"""Sinkhorn, OTTER and InMaP against their formulas, written out once more, and odd
pools."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array

from clipadapt import OTTER, FeatureSet, InMaP, ZeroShot, digits, sinkhorn
from clipadapt.clip.templates import average_prompts, encode_prompts
from clipadapt.learning.testing import CHECKS, check_adapter
from clipadapt.methods import transport
from clipadapt.methods.transport import exact_plan, near_potentials, remaining_shares

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = digits("train").classnames
UNEVEN = [0.05, 0.2, 0.1, 0.0, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1]


@pytest.fixture(scope="module")
def pool(clip):
    images = digits("train").subset(range(90))
    return FeatureSet(clip.encode_image(images), NAMES, images.labels)


@pytest.fixture(scope="module")
def text(clip):
    return average_prompts(encode_prompts(clip, NAMES)).double().numpy()


def softmax(row):
    powers = np.exp(np.array(row) - max(row))
    return powers / sum(powers)


def written_out_sinkhorn(p, shares, rounds):
    """Columns and rows divided by their sums in turn, as it is usually written; what
    has no share is struck off first."""
    p = p * (np.array(shares) > 0)
    p = p / p.sum(1, keepdims=True) / len(p)
    for _ in range(rounds):
        for c in range(p.shape[1]):
            p[:, c] *= shares[c] / p[:, c].sum() if shares[c] else 0
        for i in range(len(p)):
            p[i] /= p[i].sum() * len(p)
    return p * len(p)


def written_out_plan(probabilities, shares):
    """The linear programme of all pairs: cheapest cost, plan and rows of it."""
    count, classes = probabilities.shape
    equations, wanted = [], []
    for i in range(count):
        row = np.zeros((count, classes))
        row[i] = 1
        equations.append(row.ravel())
        wanted.append(1 / count)
    for c in range(classes):
        column = np.zeros((count, classes))
        column[:, c] = 1
        equations.append(column.ravel())
        wanted.append(shares[c])
    cost = -np.log(probabilities).ravel()
    found = linprog(cost, A_eq=np.array(equations), b_eq=wanted, method="highs")
    return found.fun, found.x.reshape(count, classes)


@pytest.mark.parametrize("rounds", [0, 1, 3, 20])
@pytest.mark.parametrize("shares", [[0.25] * 4, [0.1, 0.6, 0.3, 0.0]])
def test_sinkhorn_is_rows_and_columns_in_turn(rounds, shares):
    scores = 3 * np.random.default_rng(0).normal(size=(30, 4))
    potentials = sinkhorn(
        torch.from_numpy(scores), torch.tensor(shares).double(), rounds=rounds
    )
    ours = (torch.from_numpy(scores) + potentials).softmax(1).numpy()
    theirs = written_out_sinkhorn(
        np.array([softmax(row) for row in scores]), shares, rounds
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sinkhorn_reaches_the_shares_whatever_the_numbers():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(20_000, 3)) * 10 - 5000)
    wanted = torch.tensor([0.98, 0.01, 0.01]).double()
    potentials = sinkhorn(scores, wanted, rounds=200)
    reached = (scores + potentials).softmax(1).mean(0)
    np.testing.assert_allclose(reached, wanted, atol=1e-3)
    assert sinkhorn(1e5 * scores, wanted, rounds=2).isfinite().all()
    assert sinkhorn(scores[:0], wanted).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shares", [None, UNEVEN])
@pytest.mark.parametrize("scale", [None, 3.0, 100.0])
def test_otter_is_the_linear_programme(clip, pool, text, shares, scale):
    method = OTTER(clip, NAMES, class_shares=shares, scale=scale, solver="exact")
    method.fit(pool)
    q = np.full(10, 0.1) if shares is None else np.array(shares)
    s, x = scale or clip.logit_scale, pool.features.astype(float)
    probabilities = np.array([softmax(s * text @ row) for row in x])
    cost, plan = written_out_plan(probabilities, q)
    ours = method._assignments.numpy()
    assert np.isclose(-(ours * np.log(probabilities)).sum() / 90, cost, atol=1e-5)
    np.testing.assert_allclose(ours.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(ours.mean(0), q, atol=1e-5)
    whole = plan.max(1) > 0.999 / 90
    assert whole.sum() >= 90 - 9
    assert (method.pseudolabels_[whole] == plan.argmax(1)[whole]).all()
    adjusted = (
        x @ text.T + method.potentials_
    )  # equals, where an image is on the border
    adjusted[:, q == 0] = -np.inf
    theirs = adjusted[np.arange(90), method.pseudolabels_]
    np.testing.assert_allclose(theirs, adjusted.max(1), atol=1e-6)
    assert (method.predict(pool) != method.pseudolabels_).sum() <= 9


def test_the_plan_does_not_depend_on_the_scale(clip, pool):
    plans = [
        OTTER(clip, NAMES, scale=scale).fit(pool)._assignments
        for scale in (None, 0.1, 100.0)
    ]
    assert torch.equal(plans[0], plans[1]) and torch.equal(plans[0], plans[2])


@pytest.mark.parametrize("seed", range(8))
def test_exact_plans_of_odd_problems(seed):
    """Ties, classes without share, more classes than images: the potentials prove that
    no plan is better, and no row prefers a class without share."""
    rng = np.random.default_rng(seed)
    count, classes = rng.integers(1, 40), rng.integers(1, 12)
    scores = rng.normal(size=(count, classes)) * rng.choice([1e-3, 1, 1e3])
    if seed % 2:
        scores = np.round(scores, 1)
        scores[count // 2 :] = scores[0]
    shares = rng.dirichlet(np.ones(classes)) * (rng.random(classes) < 0.8)
    shares = shares / shares.sum() if shares.sum() else np.eye(classes)[0]
    given = torch.from_numpy(scores)
    plan = exact_plan(given, torch.from_numpy(shares))
    rows = np.bincount(plan.images, plan.amounts, minlength=count)
    columns = np.bincount(plan.classes, plan.amounts, minlength=classes)
    np.testing.assert_allclose(rows, 1, atol=1e-6)
    np.testing.assert_allclose(columns, count * shares, atol=1e-6)
    value = scores[plan.images, plan.classes] @ plan.amounts
    adjusted = scores + plan.potentials.numpy()
    bound = adjusted.max(1).sum() - count * shares @ plan.potentials.numpy()
    size = max(abs(scores).max(), 1e-9)
    assert np.isclose(value, bound, rtol=1e-6, atol=1e-6 * size * count)
    some = adjusted[:, shares > 0].max(1)
    assert (adjusted.max(1) <= some + 1e-6 * abs(scores).max()).all()


@pytest.mark.parametrize("tiny", [1e-300, 1e-16, 1e-10, 1e-8, 1e-5])
def test_shares_that_no_programme_sees(tiny):
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(300, 40)))
    shares = torch.full((40,), tiny).double()
    shares[:4] = (1 - 36 * tiny) / 4
    plan = exact_plan(scores, shares)
    columns = np.bincount(plan.classes, plan.amounts, minlength=40)
    np.testing.assert_allclose(columns, 300 * shares, atol=1e-4)
    assert plan.potentials.isfinite().all()


def test_a_poor_start_is_made_good(monkeypatch):
    """Whatever the first potentials are, the plan is the best of all."""
    rng = np.random.default_rng(1)
    scores, shares = torch.from_numpy(rng.normal(size=(50, 5))), torch.full((5,), 0.2)
    good = exact_plan(scores, shares.double())
    monkeypatch.setattr(
        transport, "near_potentials", lambda *given: torch.zeros(5).double()
    )
    again = exact_plan(scores, shares.double())
    value = [
        float(scores[p.images, p.classes].numpy() @ p.amounts) for p in (good, again)
    ]
    assert np.isclose(*value)


@pytest.mark.parametrize("count, classes", [(400, 3), (300, 30), (60, 60), (20, 50)])
def test_the_exact_plan_is_that_of_a_general_solver(count, classes):
    """HiGHS finds the same sum, on clumps, ties and shares of every size."""
    rng = np.random.default_rng(classes)
    scores = rng.normal(size=(8, classes))[rng.integers(8, size=count)]
    scores += 0.05 * rng.normal(size=scores.shape)
    scores[: count // 3] = scores[0]
    shares = rng.dirichlet(np.full(classes, 0.5))
    plan = exact_plan(torch.from_numpy(scores), torch.from_numpy(shares))
    once, shared = np.indices((count, classes))
    equations = np.concatenate([once.ravel(), count + shared.ravel()])
    pairs = np.tile(np.arange(count * classes), 2)
    sums = csr_array((np.ones(len(pairs)), (equations, pairs)))
    wanted = np.concatenate([np.ones(count), count * shares])
    found = linprog(-scores.ravel(), A_eq=sums, b_eq=wanted, method="highs-ipm")
    value = scores[plan.images, plan.classes] @ plan.amounts
    assert np.isclose(value, -found.fun, rtol=1e-6)
    columns = np.bincount(plan.classes, plan.amounts, minlength=classes)
    np.testing.assert_allclose(columns, count * shares, atol=1e-5)


def test_few_images_move_after_sinkhorn(monkeypatch):
    """The work of the exact plan is that of a few moves, not of all pairs."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(2000, 10)) + rng.normal(size=10))
    moves, move = [], transport._Exchange._move
    spied = lambda self, way: (moves.append(len(way)), move(self, way))
    monkeypatch.setattr(transport._Exchange, "_move", spied)
    exact_plan(scores, torch.full((10,), 0.1))
    assert 0 < len(moves) < 200 and max(moves) <= 10


def test_inmap_works_in_blocks_of_bounded_size(clip, pool, monkeypatch):
    sizes, blocks = [], transport.row_blocks
    spied = lambda count, *size: (sizes.append(size), blocks(count, *size))[1]
    monkeypatch.setattr(transport, "row_blocks", spied)
    transport.vision_proxies(torch.ones(50, 4), torch.eye(4), torch.eye(4), 1.0, 3)
    assert sizes == [(transport.CACHED * torch.get_num_threads() // 4,)] * 3


def test_sinkhorn_comes_near_to_the_plan(clip):
    images = digits("train")
    pool = FeatureSet(clip.encode_image(images), NAMES)
    exact = OTTER(clip, NAMES, class_shares=UNEVEN).fit(pool)
    soft = OTTER(clip, NAMES, class_shares=UNEVEN, solver="sinkhorn").fit(pool)
    assert (exact.solver_, soft.solver_) == ("exact", "sinkhorn")
    assert (exact.pseudolabels_ == soft.pseudolabels_).mean() > 0.98
    counts = np.bincount(soft.pseudolabels_, minlength=10) / len(pool)
    np.testing.assert_allclose(counts, UNEVEN, atol=0.01)
    assert (exact.predict_proba(pool)[:, 3] == 0).all(), "its share is 0"


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_labels_use_their_class_up(clip, pool, solver):
    labels = np.where(np.arange(90) < 12, 0, -1)  # more than the tenth of class 0
    method = OTTER(clip, NAMES, solver=solver).fit(pool, labels)
    counts = np.bincount(method.pseudolabels_, minlength=10)
    assert counts[0] == 12 and counts[1:].sum() == 78
    assert (method.pseudolabels_[:12] == 0).all()
    if solver == "exact":
        assert counts[1:].max() <= 10 and counts[1:].min() >= 7
        sums = method._assignments.sum(0)
        np.testing.assert_allclose(sums[1:], 78 / 9, atol=1e-4)
    assert np.isfinite(method.potentials_).all()
    known = OTTER(clip, NAMES, solver=solver).fit(pool, pool.labels)
    assert np.array_equal(known.pseudolabels_, pool.labels)
    left = remaining_shares(torch.tensor([0.5, 0.5]).double(), torch.tensor([0, 0, -1]))
    assert left.tolist() == [0, 1]


def written_out_inmap(x, text, labels, scale, image_scale, steps, power, threshold):
    """Proxies after some steps, from the formulas."""
    guesses = np.array([softmax(scale * text @ row) for row in x])
    shares = guesses.mean(0) ** power / (guesses.mean(0) ** power).sum()
    free, classes = labels < 0, len(text)
    known = np.array([(labels == c).sum() for c in range(classes)])
    left = np.maximum(shares * len(x) - known, 0)
    targets = np.eye(classes)[np.maximum(labels, 0)]
    targets[free] = written_out_sinkhorn(guesses[free], left / left.sum(), 20)
    for row in targets[free]:
        assert abs(max(row) - threshold) > 1e-5, "no near tie, for this test"
    for i in np.flatnonzero(free):
        if max(targets[i]) > threshold:
            targets[i] = np.eye(classes)[np.argmax(targets[i])]
    w, rate, before = text.copy(), 10 * image_scale / len(x), np.inf
    for _ in range(steps):
        gradient = np.zeros_like(w)
        for i in range(len(x)):
            said = softmax(image_scale * w @ x[i])
            gradient += np.outer(said - targets[i], x[i])
        length = np.sqrt((gradient**2).sum())
        rate = rate / 2 if length > before else rate
        before = length
        w = np.array([row / np.linalg.norm(row) for row in w - rate * gradient])
    return w


@pytest.mark.parametrize(
    "params, labelled",
    [
        ({"steps": 1}, False),
        ({"steps": 40}, False),
        ({"steps": 40, "share_power": 0.7}, False),
        ({"steps": 40, "threshold": 0.3}, True),
        ({"steps": 30, "scale": 100.0}, False),
        ({"steps": 30, "scale": 50.0, "image_scale": 10.0}, True),
    ],
)
def test_inmap_is_what_the_formulas_say(clip, pool, text, params, labelled):
    labels = np.where(np.arange(90) % 9 == 0, pool.labels, -1)
    labels = labels if labelled else np.full(90, -1)
    method = InMaP(clip, NAMES, **params).fit(pool, labels)
    scale = params.get("scale", clip.logit_scale)
    image_scale = params.get("image_scale", scale / 4)
    proxies = written_out_inmap(
        pool.features.astype(float),
        text,
        labels,
        scale,
        image_scale,
        params["steps"],
        params.get("share_power", 0),
        params.get("threshold", 0.6),
    )
    np.testing.assert_allclose(method.proxies_, proxies, atol=1e-4)
    expected = [softmax(image_scale * proxies @ x) for x in pool.features]
    np.testing.assert_allclose(method.predict_proba(pool), expected, atol=1e-3)


def test_inmap_comes_to_rest(clip, pool):
    short, long = (InMaP(clip, NAMES, steps=n).fit(pool) for n in (150, 2000))
    losses = [entry["loss"] for entry in short.history_]
    assert len(losses) >= 2 and losses[-1] < losses[0] - 0.1
    assert abs(long.history_[-1]["loss"] - losses[-1]) < 1e-4
    np.testing.assert_allclose(long.proxies_, short.proxies_, atol=1e-2)


METHODS = [
    (OTTER, {}),
    (OTTER, {"solver": "sinkhorn"}),
    (OTTER, {"class_shares": UNEVEN}),
    (InMaP, {"steps": 200}),
    (InMaP, {"steps": 50, "share_power": 1.0, "threshold": 1.0}),
]


@pytest.mark.parametrize("kind, params", METHODS)
def test_they_keep_every_promise(kind, params):
    assert len(check_adapter(kind, **params)) == len(CHECKS)


@pytest.mark.parametrize("kind, params", METHODS)
def test_odd_pools(clip, pool, kind, params):
    for count in (1, 2, 7):  # fewer images than classes
        few = kind(clip, NAMES, **params).fit(pool.subset(range(count)))
        assert np.isfinite(few.predict_proba(pool)).all()
        assert len(few.pseudolabels_) == count
    alike = kind(clip, NAMES, **params).fit(pool.subset([3] * 9))
    assert np.isfinite(alike.predict_proba(pool)).all()
    labels = np.where(pool.labels < 4, pool.labels, 0)  # nobody is in classes 4 to 9
    told = kind(clip, NAMES, **params).fit(pool, labels)
    assert np.isfinite(told.predict_proba(pool)).all()
    assert np.array_equal(told.pseudolabels_, labels)
    if "class_shares" not in params:
        alone = kind(clip, NAMES[:1], **params).fit(pool.unlabelled())
        assert (alone.predict(pool) == 0).all()


def test_a_single_image_gets_its_likeliest_class(clip, pool):
    """A tenth of it goes to each class; of equals, the likelier is its label."""
    one = pool.subset([3])
    method = OTTER(clip, NAMES, solver="exact").fit(one)
    assert method.pseudolabels_ == ZeroShot(clip, NAMES).fit(one).predict(one)


def test_blocks_change_nothing(clip, pool, monkeypatch):
    kinds = [(OTTER, {"solver": "sinkhorn"}), (OTTER, {}), (InMaP, {"steps": 50})]
    whole = [
        kind(clip, NAMES, **given).fit(pool).predict_proba(pool)
        for kind, given in kinds
    ]
    blocks = transport.row_blocks
    monkeypatch.setattr(transport, "row_blocks", lambda count, *_: blocks(count, 7))
    parts = [
        kind(clip, NAMES, **given).fit(pool).predict_proba(pool)
        for kind, given in kinds
    ]
    for one, other in zip(whole, parts):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_potentials_get_nearer_with_more_rounds():
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 4)))
    wanted = torch.tensor([0.7, 0.1, 0.1, 0.1]).double()
    off = [
        abs(
            np.bincount(
                (scores + near_potentials(scores, wanted, 200, rounds)).argmax(1),
                minlength=4,
            )
            / 400
            - wanted.numpy()
        ).max()
        for rounds in (1, 30)
    ]
    assert off[1] < 0.01 < off[0]


@pytest.mark.parametrize("kind, params", METHODS)
def test_a_pool_is_encoded_once_and_keeps_its_labels(
    clip, pool, kind, params, monkeypatch
):
    calls, encode = [], type(clip).encode_image
    monkeypatch.setattr(
        type(clip),
        "encode_image",
        lambda self, images: calls.append(1) or encode(self, images),
    )
    labels = np.where(np.arange(90) % 9 == 0, pool.labels, -1)
    method = kind(clip, NAMES, **params)
    found = method.fit_predict_proba(pool, labels)
    assert len(calls) == 1
    assert (found[labels >= 0, labels[labels >= 0]] == 1).all()
    if kind is InMaP:
        free = labels < 0
        assert np.array_equal(found[free], method.predict_proba(pool)[free])


@pytest.mark.parametrize("kind", [OTTER, InMaP])
def test_what_both_refuse(clip, pool, kind):
    broken = pool.subset(np.arange(90)[::-1])
    broken.features[5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        kind(clip, NAMES).fit(broken)
    with pytest.raises(ValueError, match="scale"):
        kind(clip, NAMES, scale=0).fit(pool)


@pytest.mark.parametrize(
    "kind, params, what",
    [
        (OTTER, {"class_shares": [0.5, 0.5]}, "10 numbers"),
        (OTTER, {"class_shares": [0.2] * 10}, "sum to 1"),
        (OTTER, {"class_shares": [-0.1, 0.3] + [0.1] * 8}, "from 0"),
        (OTTER, {"class_shares": [np.nan] + [0.1] * 9}, "numbers"),
        (OTTER, {"class_shares": ["a"] * 10}, "numbers"),
        (OTTER, {"solver": "simplex"}, "solver"),
        (InMaP, {"share_power": -1}, "share_power"),
        (InMaP, {"threshold": 2}, "threshold"),
        (InMaP, {"steps": 0}, "steps"),
        (InMaP, {"rounds": -1}, "rounds"),
        (InMaP, {"image_scale": 0}, "image_scale must be above 0"),
    ],
)
def test_what_one_refuses(clip, pool, kind, params, what):
    with pytest.raises(ValueError, match=what):
        kind(clip, NAMES, **params).fit(pool)
