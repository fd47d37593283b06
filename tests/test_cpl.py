"""CPL: the candidate rule, the loss and the training against naive transcriptions of
their formulas, and the contract of a method."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from clipadapt import CPL, GRIP, FeatureSet, ImageSet, Prototypes, ZeroShot, digits
from clipadapt.learning.prompts import TextualPrompt
from clipadapt.learning.pseudolabels import top_k
from clipadapt.learning.testing import check_adapter
from clipadapt.methods.cpl import candidate_loss, candidate_pseudolabels
from clipadapt.methods.grip import PROMPTS, SETTINGS

UNSEEN, COUNT = [6, 7, 8, 9], 80
SHORT = {"rounds": 2, "epochs": 1, "options": {"length": 2}}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


def bits(method):
    return method.prompt_.tobytes(), method.pseudolabels_.tobytes(), method.history_


def some_labels(images, setting):
    y = np.full(len(images), -1)
    if setting == "semi-supervised":
        for c in range(10):
            y[np.flatnonzero(images.labels == c)[:2]] = c
    elif setting == "transductive":
        y = np.where(np.isin(images.labels, UNSEEN), -1, images.labels)
    return y


def quantile(values, share):
    """Linear between order statistics, in exact numbers."""
    values, place = sorted(map(Fraction, values)), (len(values) - 1) * share
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def naive_candidates(table, percentile, beta, gamma):
    """Sec. 3 of Zhang et al. 2024, row by row and column by column."""
    rows = [[Fraction(p) for p in row] for row in table.tolist()]
    count, classes = table.shape
    beta = 1 - gamma / classes if beta == "auto" else beta
    beta = max(Fraction(0), Fraction(beta).limit_denominator(1000))
    limit = quantile([max(row) for row in rows], Fraction(percentile) / 100)
    sets = np.zeros((count, classes), bool)
    for i, row in enumerate(rows):
        total = Fraction(0)
        for c in sorted(range(classes), key=lambda c: (-row[c], c)):
            least = quantile([other[c] for other in rows], beta)
            sets[i, c] = row[c] >= least and row[c] > Fraction(1, 10**7)
            total += row[c]
            if total > limit:
                break
    return sets


@st.composite
def tables(draw):
    """Probabilities in eighths, so that ties are common and sums are exact."""
    count, classes = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    rows = st.lists(st.integers(0, classes - 1), min_size=8, max_size=8)
    drawn = [draw(rows) for _ in range(count)]
    return np.array([np.bincount(row, minlength=classes) / 8 for row in drawn])


@given(
    table=tables(),
    percentile=st.sampled_from([0, 25, 50, 60, 75, 100]),
    beta=st.sampled_from(["auto", 0, 0.5, 0.75, 0.9, 1]),
    gamma=st.sampled_from([0.5, 1, 2, 30]),
    kind=st.sampled_from([np.float64, np.float32, np.float16]),
)
def test_candidates_are_those_of_the_formulas(table, percentile, beta, gamma, kind):
    found = candidate_pseudolabels(table.astype(kind), percentile, beta, gamma)
    expected = naive_candidates(table, percentile, beta, gamma)
    assert found.dtype == bool and np.array_equal(found, expected)
    assert found.any(), "the highest probability of all is a candidate"


@pytest.mark.parametrize("count, classes", [(200, 7), (3, 40), (1, 5), (50, 1)])
def test_candidates_of_random_tables(count, classes):
    rng = np.random.default_rng([count, classes])
    table = rng.dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    for percentile, beta in ((60, "auto"), (0, 0.9), (90, 0.0), (100, 1.0)):
        found = candidate_pseudolabels(table, percentile, beta)
        assert np.array_equal(found, naive_candidates(table, percentile, beta, 2))


@pytest.mark.parametrize("beta, each", [(0.0, 101), (0.9, 11), (0.5, 51), (1.0, 1)])
def test_a_class_takes_its_share_of_the_images(beta, each):
    """The value at place 100 beta of 0 ... 100 and those above it, noise or not."""
    table = np.random.default_rng(0).dirichlet(np.ones(4), 101)
    found = candidate_pseudolabels(table, percentile=100.0, beta=beta)
    within = candidate_pseudolabels(table, percentile=100.0, beta=0.0)
    ranks = (-table).argsort(0).argsort(0)
    assert np.array_equal(found, within & (ranks < each))


def test_blocks_of_rows_change_nothing(monkeypatch):
    from clipadapt.methods import cpl

    table = np.random.default_rng(0).dirichlet(np.full(6, 0.4), 500).astype(np.float32)
    whole = candidate_pseudolabels(table)
    blocks = cpl.row_blocks
    monkeypatch.setattr(cpl, "row_blocks", lambda count: blocks(count, 7))
    assert np.array_equal(candidate_pseudolabels(table), whole)


def test_sure_and_equal_images():
    """One-hot rows keep their class, equal rows get equal sets."""
    sure = np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    assert np.array_equal(candidate_pseudolabels(sure), sure.astype(bool))
    alike = np.tile(np.array([[0.5, 0.3, 0.2]], np.float32), (20, 1))
    assert candidate_pseudolabels(alike).tolist() == [[True, True, False]] * 20
    assert candidate_pseudolabels(np.ones((4, 1))).all()
    assert candidate_pseudolabels(np.empty((0, 3))).shape == (0, 3)
    nearly = np.full((50, 4), 1e-9, np.float32)
    nearly[np.arange(50), np.arange(50) % 4] = 1  # float32 knows no better
    assert np.array_equal(candidate_pseudolabels(nearly), nearly == 1)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"percentile": -1}, "percentile must be a finite number in 0 ... 100"),
        ({"percentile": 101}, "percentile"),
        ({"percentile": float("nan")}, "percentile"),
        ({"percentile": "60"}, "percentile"),
        ({"beta": 1.5}, "beta must be a finite number in 0 ... 1"),
        ({"beta": "automatic"}, "beta must be 'auto' or a number"),
        ({"beta": True}, "beta"),
        ({"beta": None}, "beta"),
        ({"gamma": 0}, "gamma must be above 0"),
        ({"gamma": -2}, "gamma"),
    ],
)
def test_rules_out_of_range_are_named(clip, images, given, message):
    with pytest.raises(ValueError, match=message):
        candidate_pseudolabels(np.ones((2, 1)), **given)
    with pytest.raises(ValueError, match=message):
        CPL(clip, images.classnames, **{**SHORT, **given}).fit(images)


@pytest.mark.parametrize(
    "table, message",
    [
        (np.ones(3), r"shape \[N, C\]"),
        (np.ones((2, 2), int), "floating-point"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, -0.1]]), "negative"),
        (np.empty((3, 0)), r"shape \[N, C\]"),
    ],
)
def test_tables_that_are_no_probabilities(table, message):
    with pytest.raises(ValueError, match=message):
        candidate_pseudolabels(table)


def test_loss_by_hand():
    """Logits ln 6, ln 3, 0 are probabilities 0.6, 0.3 and 0.1."""
    logits = torch.tensor([[math.log(6), math.log(3), 0.0]] * 3, requires_grad=True)
    classes = torch.tensor([[0, 2], [1, 0], [2, 1]])
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.25, 0.75]])
    losses = candidate_loss(logits, classes, weights)
    by_hand = [-math.log(0.7), -math.log(0.3), -math.log(0.025 + 0.225)]
    assert np.allclose(losses.detach(), by_hand, atol=1e-6)
    losses.sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad.sum(1).abs() < 1e-6).all()


def test_loss_of_one_candidate_is_the_cross_entropy_and_of_all_is_zero():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 30
    classes = torch.arange(5)[:, None] % 4
    expected = torch.nn.functional.cross_entropy(
        logits, classes[:, 0], reduction="none"
    )
    one = candidate_loss(logits, classes, torch.ones(5, 1))
    assert torch.allclose(one, expected, atol=1e-5)
    everything = torch.arange(4).expand(5, 4)
    assert candidate_loss(logits, everything, torch.ones(5, 4)).abs().max() < 1e-5


def naive_places(table, sets, k):
    """Images apply to their candidates, surest first; a class that holds more than `k`
    refuses the least sure, who applies to the next: images that have a place."""
    wishes = [
        sorted(np.flatnonzero(row), key=lambda c, p=p: -p[c])
        for row, p in zip(sets, table)
    ]
    held, waiting = [[] for _ in range(table.shape[1])], [*range(len(table))]
    while waiting:
        image = waiting.pop()
        if not wishes[image]:
            continue
        c = wishes[image].pop(0)
        held[c] = sorted([*held[c], image], key=lambda i: -table[i, c])
        waiting += held[c][k:]
        held[c] = held[c][:k]
    return sorted(image for some in held for image in some)


def test_rounds_are_those_of_the_formulas(clip, images):
    """The first from zero-shot CLIP, the second from the prompt of the first."""
    names, seen = images.classnames, []

    def keep(method, chosen):
        seen.append((method.predict_proba(images), chosen, method.history_[-1]))

    method = CPL(clip, names, gamma=1.5, **SHORT).fit(images, callbacks=keep)
    table = ZeroShot(clip, names).fit(images).predict_proba(images)
    assert [record["k"] for record in method.history_] == [4, 8]
    for k, (after, chosen, record) in zip((4, 8), seen):
        sets = candidate_pseudolabels(table, gamma=1.5)
        placed = naive_places(table, sets, k)
        pairs = [(i, c) for i in placed for c in np.flatnonzero(sets[i])]
        assert [*zip(chosen.images, chosen.classes)] == pairs
        assert np.allclose(chosen.scores, table[chosen.images, chosen.classes])
        assert record["pseudolabels"] == len(pairs)
        assert record["images"] == len(placed) < len(images)
        table = after
    assert [*map(tuple, method.pseudolabels_)] == pairs


@pytest.mark.parametrize("soft_start", [True, False])
def test_training_is_that_of_the_formulas(clip, images, soft_start):
    """Two rounds, by plain loops over batches and images."""
    names = images.classnames
    recipe = {"epochs": 4, "warmup": 1, "batch_size": 7, "weight_decay": 0.01}
    method = CPL(
        clip, names, rounds=2, soft_start=soft_start, options={"length": 2}, **recipe
    ).fit(images)
    features = clip.encode_image(images)
    prompt = TextualPrompt(clip, names, length=2)
    untrained = prompt.prefix.detach().clone()
    table = ZeroShot(clip, names).fit(images).predict_proba(images)
    for number, k in enumerate((4, 8)):
        sets = candidate_pseudolabels(table)
        placed = np.array(naive_places(table, sets, k))
        weights = sets * (table if soft_start and number == 0 else 1.0)
        weights = torch.tensor(weights / (weights.sum(1, keepdims=True) + 1e-30))
        if not (soft_start and number == 0):
            weights = torch.tensor(sets.astype(float))
        prompt.prefix.data.copy_(untrained)
        optimiser = torch.optim.SGD([prompt.prefix], 0.1, 0.9, weight_decay=0.01)
        order = np.random.default_rng((0, number))
        for epoch in range(4):
            share = (1 + math.cos(math.pi * (epoch - 1) / 3)) / 2
            optimiser.param_groups[0]["lr"] = 0.1 * (0.5 if epoch < 1 else share)
            for batch in torch.from_numpy(order.permutation(len(placed))).split(7):
                rows = torch.from_numpy(placed)[batch]
                p = prompt(features, rows).softmax(1)
                loss = -(p * weights[rows]).sum(1).log().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        table = prompt.predict(features).numpy()
    trained = prompt.prefix.detach().numpy().ravel()
    assert np.abs(method.prompt_ - trained).max() < 1e-4
    assert np.abs(method.predict_proba(images) - table).max() < 1e-4


CASES = [
    (prompt, setting, pool)
    for prompt in PROMPTS
    for setting in SETTINGS
    for pool in (("mixed", "unseen") if setting == "transductive" else ("mixed",))
]


@pytest.mark.parametrize("prompt, setting, pool", CASES)
def test_all_settings(clip, images, test_images, prompt, setting, pool):
    y = some_labels(images, setting)
    method = CPL(
        clip, images.classnames, prompt=prompt, setting=setting, pool=pool, **SHORT
    ).fit(images, y)
    probabilities = method.predict_proba(test_images)
    assert probabilities.shape == (20, 10) and np.isfinite(probabilities).all()
    chosen, classes = method.pseudolabels_.T
    assert (y[chosen] == -1).all(), "only unlabelled images get candidates"
    assert set(classes) <= set(UNSEEN if pool == "unseen" else range(10))
    assert len({*map(tuple, method.pseudolabels_)}) == len(chosen)
    last = method.history_[-1]
    assert len(method.history_) == 2 and math.isfinite(last["loss"])
    assert last["pseudolabels"] == len(chosen) >= last["images"]
    assert last["images"] == len(set(chosen)) <= (y < 0).sum()


def test_a_part_of_the_loss_is_weighted_by_its_images(clip, images):
    """20 labels beside the images of the round, whatever their candidates."""
    y = some_labels(images, "semi-supervised")
    params = {**SHORT, "rounds": 1}
    method = CPL(clip, images.classnames, **params).fit(images, y)
    share = 20 / (20 + method.history_[0]["images"])
    by_hand = CPL(clip, images.classnames, weights=(share, 1 - share), **params)
    assert bits(by_hand.fit(images, y)) == bits(method)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"prompt": "visual", "beta": 0.5, "percentile": 75},
        {
            "prompt": "multimodal",
            "options": {"length": 2, "attention": "pairs"},
            "soft_start": False,
            "gamma": 3,
        },
    ],
)
def test_contract(clip, params):
    assert len(check_adapter(CPL, clip, **{**SHORT, **params})) > 10


def test_contract_with_an_annotator(clip):
    names = digits("train").classnames
    assert (
        check_adapter(CPL, clip, annotator=Prototypes(clip, names), **SHORT) is not None
    )


@pytest.mark.parametrize(
    "change",
    [
        {"percentile": 95},
        {"beta": 0.3},
        {"gamma": 1.0},
        {"soft_start": False},
        {"seed": 1},
        {"growth": (0.3, 0.4)},
        {"weight_decay": 0.0},
        {"templates": "a drawing of a {}."},
    ],
)
def test_every_parameter_has_an_effect(clip, images, change):
    plain = bits(CPL(clip, images.classnames, **SHORT).fit(images))
    changed = CPL(clip, images.classnames, **{**SHORT, **change}).fit(images)
    assert bits(changed) != plain


def test_images_with_a_single_candidate_each_make_it_grip(clip, images):
    """A sure annotator, whose sets are single labels, and GRIP with one class each."""
    names = images.classnames

    class Sure(ZeroShot):
        def _pool_proba(self, some):
            return torch.eye(10)[torch.arange(len(some)) % 10]

    params = {**SHORT, "rounds": 1, "annotator": Sure(clip, names)}
    cpl = CPL(clip, names, **params).fit(images)
    grip = GRIP(clip, names, policy="one-class", **params).fit(images)
    pairs = [{*map(tuple, method.pseudolabels_)} for method in (cpl, grip)]
    assert pairs[0] == pairs[1] and len(pairs[0]) == 80


def test_save_load_and_clone(clip, images, test_images, tmp_path):
    params = {**SHORT, "beta": 0.7, "percentile": 50, "gamma": 1.5}
    method = CPL(clip, images.classnames, soft_start=False, **params).fit(images)
    method.save(tmp_path / "saved")
    loaded = CPL.load(tmp_path / "saved", clip)
    assert (loaded.beta, loaded.percentile, loaded.gamma) == (0.7, 50, 1.5)
    assert loaded.soft_start is False and loaded.history_ == method.history_
    answers = method.predict_proba(test_images)
    assert np.allclose(loaded.predict_proba(test_images), answers, atol=1e-6)
    assert bits(clone(method).fit(images)) == bits(method) == bits(loaded.fit(images))
    assert "k" not in method.get_params() and "policy" not in method.get_params()
    with pytest.raises(ValueError, match="holds a 'CPL', not a GRIP"):
        GRIP.load(tmp_path / "saved", clip)


class Lost(BaseException):
    pass


def test_an_interrupted_fit_goes_on_and_knows_its_rules(clip, images, tmp_path):
    names, params = images.classnames, {**SHORT, "rounds": 3}
    whole = CPL(clip, names, **params).fit(images)

    def stop(method, chosen):
        if len(method.history_) == 2:
            raise Lost

    checkpoint = str(tmp_path / "run")
    method = CPL(clip, names, checkpoint=checkpoint, **params)
    with pytest.raises(Lost):
        method.fit(images, callbacks=stop)
    for change in ({"gamma": 3.0}, {"percentile": 61}, {"soft_start": False}):
        other = clone(method).set_params(**change)
        with pytest.raises(ValueError, match=f"another run: {[*change][0]} changed"):
            other.fit(images)
    with pytest.raises(ValueError, match="another run: annotator changed"):
        clone(method).set_params(annotator=Prototypes(clip, names)).fit(images)
    assert bits(clone(method).fit(images)) == bits(whole)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_annotator_makes_the_first_candidates(clip, images, prompt):
    names = images.classnames
    teacher = Prototypes(clip, names).fit(images)
    params = {**SHORT, "rounds": 1, "prompt": prompt}
    method = CPL(clip, names, annotator=teacher, **params).fit(images)
    table = teacher.predict_proba(images)
    sets = candidate_pseudolabels(table)
    placed = naive_places(table, sets, 8)
    pairs = [(i, c) for i in placed for c in np.flatnonzero(sets[i])]
    assert [*map(tuple, method.pseudolabels_)] == pairs
    assert method.annotator_ == "Prototypes"
    assert np.array_equal(teacher.predict_proba(images), table)


def test_features_are_enough_for_textual_prompts(clip, images, test_images):
    names = images.classnames
    method = CPL(clip, names, **SHORT)
    expected = bits(method.fit(images))
    features = FeatureSet(clip.encode_image(images), names)
    assert bits(method.fit(features)) == expected
    held_out = FeatureSet(clip.encode_image(test_images))
    answers = method.predict_proba(test_images)
    assert np.allclose(method.predict_proba(held_out), answers, atol=1e-5)


def test_small_and_odd_pools(clip, images, test_images):
    """Fewer images than classes, one image, a class that nobody shows, equal images,
    and every image labelled."""
    names = images.classnames
    alike = ImageSet([images.images[0]] * 30, names)
    without = images.subset(images.labels != 3)
    few = (images.subset(range(7)), images.subset([0]), without, alike)
    for X in few:
        method = CPL(clip, names, **SHORT).fit(X)
        assert np.isfinite(method.predict_proba(test_images)).all()
        assert set(method.pseudolabels_[:, 0]) <= set(range(len(X)))
        assert len(method.pseudolabels_), "the surest pair is always a candidate"
    bound = CPL(clip, names, **{**SHORT, "epochs": 20}).fit(images, images.labels)
    assert bound.pseudolabels_.shape == (0, 2)
    assert [record["k"] for record in bound.history_] == [0]
    zero_shot = ZeroShot(clip, names).fit(images)
    assert bound.score(images) > zero_shot.score(images)
    twin = GRIP(clip, names, **{**SHORT, "epochs": 20}).fit(images, images.labels)
    assert np.allclose(bound.prompt_, twin.prompt_, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_class(clip, images, prompt):
    method = CPL(clip, ["zero"], prompt=prompt, **SHORT).fit(ImageSet(images.images))
    assert (method.predict_proba(ImageSet(images.images)) == 1).all()


def test_labels_given_as_y_count_and_others_do_not(clip, images):
    y = some_labels(images, "semi-supervised")
    method = CPL(clip, images.classnames, **SHORT)
    expected = bits(method.fit(images, y))
    assert bits(method.fit(images.unlabelled(), y)) == expected
    wrong = np.where(y >= 0, (y + 1) % 10, -1)
    assert bits(method.fit(images, wrong)) != expected


def test_the_order_of_images_decides_no_candidate(clip, images):
    table = ZeroShot(clip, images.classnames).fit(images).predict_proba(images)
    order = np.random.default_rng(0).permutation(len(table))
    turned = candidate_pseudolabels(table[order])
    assert np.array_equal(turned, candidate_pseudolabels(table)[order])
    chosen = [top_k(t, 5, "one-class").images for t in (table, table[order])]
    assert set(chosen[0]) == set(order[chosen[1]])
