"""EMDirichlet against its formulas, written out once more as loops, and odd pools."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.special import gammaln, psi
from scipy.stats import dirichlet

from clipadapt import EMDirichlet, FeatureSet, digits
from clipadapt.clip.templates import average_prompts, encode_prompts
from clipadapt.learning.testing import CHECKS, check_adapter
from clipadapt.methods.dirichlet import fit_concentrations, match_clusters

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = digits("train").classnames


@pytest.fixture(scope="module")
def pool(clip):
    """Images of the first five digits."""
    images = digits("train")
    chosen = np.flatnonzero(images.labels < 5)[:60]
    features = clip.encode_image(images.subset(chosen))
    return FeatureSet(features, NAMES[:5], images.labels[chosen])


def softmax(row):
    powers = np.exp(np.array(row) - max(row))
    return powers / sum(powers)


def written_out_step(alpha, logs):
    """One step of majorise-minimise for one class."""
    total, after = sum(alpha), []
    for a, log in zip(alpha, logs):
        curvature = 2 * (psi(a + 1) * a - gammaln(a + 1)) / a**2
        slope = psi(a + 1) - psi(total) - log - curvature * a
        after.append((-slope + np.sqrt(slope**2 + 4 * curvature)) / (2 * curvature))
    return after


def written_out(q, labels, hard, weight, rounds, steps):
    """Assignments, concentrations and shares after some rounds, from the formulas."""
    count, classes = q.shape

    def kept(i, answer):
        return answer if labels[i] < 0 else np.eye(classes)[labels[i]]

    z = [kept(i, q[i]) for i in range(count)]
    alpha = [[1.0] * classes for _ in range(classes)]
    for _ in range(rounds):
        mass = [sum(z[i][c] for i in range(count)) for c in range(classes)]
        for c in range(classes):
            if mass[c] < 1e-6:
                continue
            logs = sum(z[i][c] * np.log(q[i]) for i in range(count)) / mass[c]
            for _ in range(steps):
                before, alpha[c] = alpha[c], written_out_step(alpha[c], logs)
                moved = [abs(a - b) / b for a, b in zip(alpha[c], before)]
                if max(moved) <= 1e-4:
                    break
        shares = [max(m / count, 1e-30) for m in mass]
        z = []
        for i in range(count):
            scores = [
                dirichlet(alpha[c]).logpdf(q[i] / q[i].sum())
                + weight * (np.log(shares[c]) + 1)
                for c in range(classes)
            ]
            answer = np.eye(classes)[np.argmax(scores)] if hard else softmax(scores)
            z.append(kept(i, answer))
    return np.array(z)


def matched(z, q):
    """The columns of z in the order of the classes that they fit best."""
    classes = q.shape[1]
    means = [z[:, c] @ q / max(z[:, c].sum(), 1e-6) for c in range(classes)]
    best = max(
        permutations(range(classes)),
        key=lambda order: sum(means[order[c]][c] for c in range(classes)),
    )
    return z[:, list(best)]


@pytest.mark.parametrize(
    "params, labelled",
    [
        ({"iterations": 1, "steps": 5}, False),
        ({"iterations": 4, "steps": 20}, False),
        ({"iterations": 4, "steps": 20, "hard": True}, False),
        ({"iterations": 3, "steps": 300, "complexity_weight": 0}, False),
        ({"iterations": 3, "steps": 10, "complexity_weight": 2.5}, False),
        ({"iterations": 3, "steps": 10, "scale": 30.0}, False),
        ({"iterations": 3, "steps": 10, "match_classes": False}, True),
        ({"iterations": 3, "steps": 10, "match_classes": False, "hard": True}, True),
    ],
)
def test_it_is_what_the_formulas_say(clip, pool, params, labelled):
    labels = np.where(np.arange(len(pool)) % 6 == 0, pool.labels, -1)
    labels = labels if labelled else np.full(len(pool), -1)
    method = EMDirichlet(clip, NAMES[:5], **params).fit(pool, labels)
    text = average_prompts(encode_prompts(clip, NAMES[:5])).double().numpy()
    scale = params.get("scale", 0.3 * clip.logit_scale)
    q = np.array([softmax(scale * text @ x) for x in pool.features.astype(float)])
    z = written_out(
        q,
        labels,
        params.get("hard", False),
        params.get("complexity_weight", 5 // 5),
        params["iterations"],
        params["steps"],
    )
    if params.get("match_classes", True):
        z = matched(z, q)
    assert (method.pseudolabels_ == z.argmax(1)).all()
    if not params.get("hard") and not labelled:
        np.testing.assert_allclose(method.predict_proba(pool), z, atol=1e-3)


def test_concentrations_are_the_most_likely():
    """Where the likelihood is highest, its derivative is zero."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 20, (4, 6))
    logs = np.array([np.log(rng.dirichlet(row, 40)).mean(0) for row in truth])
    found = fit_concentrations(logs, np.ones((4, 6)), 100_000, 1e-9)
    slope = psi(found.sum(1, keepdims=True)) - psi(found) + logs
    assert abs(slope).max() < 1e-5


def test_every_step_makes_the_fit_better():
    logs = np.array([[-3.0, -0.2, -5.0], [-1.2, -1.1, -1.2]])
    alpha, last = np.ones((2, 3)), -np.inf
    for _ in range(50):
        alpha = fit_concentrations(logs, alpha, 1)
        norm = gammaln(alpha.sum(1)) - gammaln(alpha).sum(1)
        likelihood = norm + ((alpha - 1) * logs).sum(1)
        assert (likelihood >= last - 1e-12).all()
        last = likelihood
    tiny = fit_concentrations(logs, np.full((2, 3), 1e-12), 1)
    assert np.isfinite(tiny).all() and (tiny > 0).all()


def test_matching_leaves_known_classes_and_takes_the_best_of_the_others():
    rng = np.random.default_rng(0)
    for _ in range(20):
        answers = torch.from_numpy(rng.dirichlet(np.ones(5), 5))
        order = match_clusters(answers, torch.ones(5), [2])
        best = max(
            (order for order in permutations(range(5)) if order[2] == 2),
            key=lambda order: sum(answers[order[c], c] for c in range(5)),
        )
        assert tuple(order) == best
    empty = match_clusters(answers, torch.tensor([1.0, 0, 1, 0, 0]), [])
    assert sorted(empty) == [0, 1, 2, 3, 4]


def test_the_published_weight_prefers_few_classes(clip):
    images = digits("train")
    pool = FeatureSet(clip.encode_image(images), NAMES)
    sizes = [
        EMDirichlet(clip, NAMES, complexity_weight=weight, iterations=15)
        .fit(pool)
        .history_[-1]["effective_classes"]
        for weight in (0, None)
    ]
    assert sizes[0] > 9.5 and sizes[1] < 7
    named = EMDirichlet(clip, NAMES, complexity_weight=2, iterations=15).fit(pool)
    assert named.history_[-1]["effective_classes"] == sizes[1], "floor(10 / 5) is 2"


@pytest.mark.parametrize("params", [{}, {"hard": True, "complexity_weight": 0}])
def test_it_keeps_every_promise(params):
    short = {"iterations": 3, "steps": 50}
    assert len(check_adapter(EMDirichlet, **short, **params)) == len(CHECKS)


@pytest.mark.parametrize("hard", [False, True])
def test_odd_pools(clip, pool, hard):
    short = {"iterations": 3, "steps": 50, "hard": hard}
    for count in (1, 2, 7):  # fewer images than classes
        few = EMDirichlet(clip, NAMES, **short).fit(
            FeatureSet(pool.features[:count], NAMES)
        )
        assert np.isfinite(few.predict_proba(pool.unlabelled())).all()
    alike = EMDirichlet(clip, NAMES[:5], **short).fit(pool.subset([3] * 9))
    assert np.isfinite(alike.predict_proba(pool)).all()
    assert len(set(alike.pseudolabels_)) == 1
    alone = EMDirichlet(clip, NAMES[:1], **short).fit(FeatureSet(pool.features))
    assert (alone.predict(FeatureSet(pool.features)) == 0).all()
    labels = np.where(pool.labels < 2, pool.labels, 0)  # nobody is in classes 2 to 4
    told = EMDirichlet(clip, NAMES[:5], **short).fit(pool, labels)
    assert np.isfinite(told.predict_proba(pool)).all()
    assert np.array_equal(told.pseudolabels_, labels)


def test_blocks_change_nothing(clip, pool, monkeypatch):
    whole = EMDirichlet(clip, NAMES[:5], iterations=3, steps=20).fit(pool)
    monkeypatch.setattr("clipadapt.methods.dirichlet._NUMBERS", 37)
    parts = EMDirichlet(clip, NAMES[:5], iterations=3, steps=20).fit(pool)
    np.testing.assert_allclose(
        parts.predict_proba(pool), whole.predict_proba(pool), atol=1e-5
    )


def test_labels_stay_in_what_is_said_of_the_pool(clip, pool):
    labels = np.where(np.arange(60) % 6 == 0, pool.labels, -1)
    method = EMDirichlet(clip, NAMES[:5], iterations=3)
    found = method.fit_predict_proba(pool, labels)
    known, free = labels >= 0, labels < 0
    assert (found[known, labels[known]] == 1).all()
    assert np.array_equal(found[free], method.predict_proba(pool)[free])


def test_what_it_refuses(clip, pool):
    broken = pool.subset(np.arange(60)[::-1])
    broken.features[5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        EMDirichlet(clip, NAMES[:5]).fit(broken)
    for params, what in [
        ({"complexity_weight": -1}, "complexity_weight"),
        ({"iterations": 0}, "iterations"),
        ({"steps": 0}, "steps"),
        ({"scale": 0}, "scale"),
    ]:
        with pytest.raises(ValueError, match=what):
            EMDirichlet(clip, NAMES[:5], **params).fit(pool)
