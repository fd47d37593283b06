"""ReCLIP and FLYP: propagation against the dense solution, towers, killed and resumed
fits, labels, and bad input."""

import time

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CustomTextCLIP
from PIL import Image
from processes import program
from sklearn.base import clone
from tiny_models import TEXT, TINY, VISION, tiny

from clipadapt import ImageSet, LatteCLIP, ZeroShot, digits
from clipadapt.learning.training import module_numbers
from clipadapt.methods import flyp, transduction
from clipadapt.methods import reclip as module
from clipadapt.methods.flyp import FLYP
from clipadapt.methods.reclip import ReCLIP

COUNT = 48
SHORT = {
    ReCLIP: {"epochs": 3, "batch_size": 16, "learning_rate": 0.02},
    FLYP: {"epochs": 3, "batch_size": 16, "learning_rate": 1e-4},
}

pytestmark = pytest.mark.usefixtures("one_thread")
both = pytest.mark.parametrize("kind", [ReCLIP, FLYP])


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(COUNT))


def arrays(method):
    """All fitted arrays by their bytes, and the history."""
    return {
        name: value.tobytes()
        for name, value in vars(method).items()
        if isinstance(value, np.ndarray)
    }, method.history_


# Propagation.


@st.composite
def problems(draw):
    """Image features (some twice), class features, a number of neighbours (sometimes
    too many), and labels of some images."""
    count, classes, dim, k = (
        draw(st.integers(1, 60)),
        draw(st.integers(1, 8)),
        draw(st.integers(2, 9)),
        draw(st.sampled_from([1, 2, 5, 20, 500])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    images, prompts = (
        torch.randn(n, dim, generator=generator) for n in (count, classes)
    )
    if draw(st.booleans()):
        images[count // 2 :] = images[: count - count // 2].clone()
    labels = np.where(
        torch.rand(count, generator=generator) < draw(st.sampled_from([0.0, 0.3])),
        torch.randint(classes, (count,), generator=generator),
        -1,
    )
    return images, prompts, k, labels


def dense_scores(nodes, graph, classes, labels, alpha):
    """(I - alpha G)^-1 Y by a direct solution, one source at a time."""
    seeds = np.zeros((len(nodes), classes))
    for c in range(classes):
        sources = [c, *(classes + np.flatnonzero(labels == c))]
        for source in sources:
            seeds[source, c] = 1 / len(sources)
    return np.linalg.solve(np.eye(len(nodes)) - alpha * graph, seeds)[classes:]


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.5, 0.99]))
def test_propagation_is_the_dense_solution(problem, alpha):
    images, prompts, k, labels = problem
    nodes = torch.cat([prompts, images])
    graph = transduction.neighbour_graph(nodes, k).toarray()
    found, scores = transduction.propagate_labels(
        images, prompts, k, alpha, labels=labels
    )
    exact = dense_scores(nodes, graph, len(prompts), labels, alpha)
    assert np.allclose(scores, exact, atol=1e-5 * exact.max()) and np.array_equal(
        found[labels >= 0], labels[labels >= 0]
    )
    top = np.sort(exact, 1)
    clear = (labels < 0) & (
        top[:, -1] - top[:, :-1].max(1, initial=0) > 1e-4 * exact.max()
    )
    assert np.array_equal(found[clear], exact.argmax(1)[clear])


@settings(max_examples=50, deadline=None)
@given(problems())
def test_graph_neighbour_by_neighbour(problem):
    images, prompts, k, _ = problem
    unit = F.normalize(torch.cat([prompts, images]), dim=1).double().numpy()
    cosines = unit @ unit.T
    graph = transduction.neighbour_graph(torch.cat([prompts, images]), k).toarray()
    assert (
        np.allclose(graph, graph.T)
        and (np.diag(graph) == 0).all()
        and np.abs(np.linalg.eigvalsh(graph)).max() < 1 + 1e-6
    )
    affinity, count = np.zeros_like(graph), len(unit)
    distinct = all(
        len(set(np.round(np.delete(row, i), 6))) == count - 1
        for i, row in enumerate(cosines)
    )
    if distinct and count > 1:  # equals at the k-th place may fall either way
        for i, row in enumerate(cosines):
            for j in sorted(set(range(count)) - {i}, key=lambda j: -row[j])[:k]:
                affinity[i, j] += (row[j] + 1) / 4
                affinity[j, i] += (row[j] + 1) / 4
        degree = affinity.sum(1)
        assert np.allclose(
            graph, affinity / np.sqrt(np.outer(degree, degree)), atol=1e-5
        )


def test_blocks_change_nothing(monkeypatch):
    points = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    whole = transduction.neighbour_graph(points, 7).toarray()
    monkeypatch.setattr(transduction, "BLOCK", 1000)
    assert np.allclose(
        transduction.neighbour_graph(points, 7).toarray(), whole, atol=1e-6
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_images_and_of_classes_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    images, prompts = (
        torch.randn(n, 6, generator=generator) for n in (90, 70)
    )  # more classes than are solved at a time
    order, classes = (
        torch.randperm(90, generator=generator),
        torch.randperm(70, generator=generator),
    )
    scores, moved = (
        transduction.propagate_labels(*pair, k=5)[1]
        for pair in ((images, prompts), (images[order], prompts[classes]))
    )
    assert np.allclose(moved, scores[order][:, classes], atol=1e-5)


def test_islands_duplicates_and_one_class():
    prompts, images = torch.eye(3), torch.eye(3).repeat(4, 1)
    found, _ = transduction.propagate_labels(images, prompts, k=3)
    assert found.tolist() == [0, 1, 2] * 4
    assert transduction.propagate_labels(torch.ones(9, 3), prompts, k=100)[0].shape == (
        9,
    )
    assert (transduction.propagate_labels(images, prompts[:1], k=2)[0] == 0).all()
    found, scores = transduction.propagate_labels(
        torch.tensor([[0.1, 1.0], [0.11, 1.0]]),
        torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.05]]),
        k=1,
    )
    assert (scores == 0).all() and found.tolist() == [1, 1], (
        "no class arrives: the nearest one, not the first"
    )
    assert (
        transduction.propagate_labels(images, prompts, alpha=0)[0].tolist()
        == [0, 1, 2] * 4
    )
    assert torch.equal(
        transduction.class_centroids(images[:0], prompts, np.empty(0, np.int64)),
        prompts,
    )


def test_projection(clip, images):
    prompts = torch.randn(
        12, 5, generator=torch.Generator().manual_seed(0)
    )  # more classes than dimensions
    for projection, rank in (("span", 4), ("whole", 4), (None, 5)):
        matrix = transduction.projection_matrix(prompts, projection)
        assert (
            torch.allclose(matrix @ matrix, matrix, atol=1e-5)
            and round(matrix.trace().item()) == rank
        )
    shared = torch.linalg.svd(prompts, full_matrices=False).Vh[0]
    assert (transduction.projection_matrix(prompts) @ shared).norm() < 1e-5 and (
        transduction.projection_matrix(prompts, first=True) @ shared
    ).norm() > 0.99
    few = F.normalize(
        torch.randn(3, 9, generator=torch.Generator().manual_seed(1)), dim=1
    )
    found = {
        projection: transduction.projection_matrix(few, projection)
        .trace()
        .round()
        .item()
        for projection in ("span", "whole", None)
    }
    assert found == {"span": 2, "whole": 8, None: 9}
    directions = transduction.class_directions(few)
    points = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    flat, full = (
        F.normalize(points @ matrix, dim=1)
        for matrix in (directions, transduction.projection_matrix(few))
    )
    assert torch.allclose(flat @ flat.T, full @ full.T, atol=1e-5), (
        "coordinates have the cosines of the projections"
    )
    for bad, message in (
        ({"cut": 1}, "no direction is left"),
        ({"cut": 0}, "cut must be"),
        ({"projection": "x"}, "'span', 'whole', None"),
    ):
        with pytest.raises(ValueError, match=message):
            transduction.projection_matrix(few, **bad)
    with pytest.raises(ValueError, match="no direction is left"):
        transduction.projection_matrix(few[:1].expand(4, -1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k must be"),
        ({"k": 2.5}, "k must be"),
        ({"alpha": 1}, "below 1"),
        ({"alpha": -0.1}, "alpha"),
        ({"labels": np.array([0, 0])}, "shape"),
        ({"labels": np.full(6, 3)}, "0 ... 2"),
        ({"image_features": torch.full((6, 4), float("nan"))}, "not all finite"),
        ({"image_features": torch.ones(6, 3)}, r"\[N, D\]"),
        ({"class_features": torch.ones(0, 4)}, "at least one class"),
        ({"class_features": torch.ones(3, 4).long()}, "finite floats"),
    ],
)
def test_propagation_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        transduction.propagate_labels(
            **{
                "image_features": torch.randn(6, 4),
                "class_features": torch.randn(3, 4),
                **change,
            }
        )


# What training does; the contract is checked in chapters 12 and 13.


@both
def test_saved_after_training_with_labels(clip, images, test_images, tmp_path, kind):
    y = np.where(np.arange(COUNT) < 12, images.labels, -1)
    method = kind(clip, images.classnames, **SHORT[kind]).fit(images, y)
    assert (np.atleast_2d(method.pseudolabels_)[:, :12] == y[:12]).all()
    method.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model", clip)
    assert np.array_equal(
        loaded.predict_proba(test_images), method.predict_proba(test_images)
    )
    assert loaded.history_ == method.history_ and np.array_equal(
        loaded.pseudolabels_, method.pseudolabels_
    )
    assert not hasattr(clone(method), "pseudolabels_")


def test_reclip_trains_layer_norms_where_towers_agree(clip, images):
    method = ReCLIP(clip, images.classnames, **SHORT[ReCLIP])
    method.classnames_ = images.classnames
    run = module._Run(method, images.unlabelled(), np.full(COUNT, -1))
    run.look(first=True)
    batches = {"text": [], "image": []}
    for tower in batches:
        plain = getattr(run, f"{tower}_loss")
        setattr(
            run,
            f"{tower}_loss",
            lambda batch, *pixels, tower=tower, plain=plain: (
                batches[tower].append(batch.tolist()),
                plain(batch, *pixels),
            )[1],
        )
    run.pseudolabels = run.pseudolabels.copy()
    run.pseudolabels[1, ::3] = (run.pseudolabels[0, ::3] + 1) % 10
    agreed = np.flatnonzero(run.agreed).tolist()
    run.epoch(1)
    for found in batches.values():
        assert sorted(sum(found, [])) == agreed and max(map(len, found)) <= 16
    assert batches["text"] == batches["image"], "both towers see the same batches"
    state, before = run.tuned.model.state_dict(), clip.model.state_dict()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    norms = {
        f"{name}.{kind}"
        for name, part in clip.model.named_modules()
        if isinstance(part, torch.nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    assert changed == norms
    run.pseudolabels[1] = (run.pseudolabels[0] + 1) % 10
    assert run.train(2) == {"text_loss": None, "image_loss": None}, (
        "no agreement, nothing trained"
    )


@pytest.mark.parametrize("scale", module.IMAGE_LOSSES)
def test_reclip_losses_by_hand(clip, images, scale):
    method = ReCLIP(clip, images.classnames, **SHORT[ReCLIP], image_loss=scale)
    method.classnames_ = images.classnames
    run = module._Run(method, images.unlabelled(), np.full(COUNT, -1))
    run.look(first=True)
    batch, features = torch.tensor([3, 9, 14, 20]), clip.encode_image(images)
    pixels = next(clip.pixel_batches(images.subset(batch), 4))
    mean = []
    for classifier in run.classifiers:
        logits = clip.logit_scale * features[batch].double() @ classifier.double().T
        probabilities = logits.softmax(1)
        losses = [
            -np.log(probabilities[row, run.pseudolabels[0, i]].item())
            for row, i in enumerate(batch)
        ]
        mean.append(np.mean(losses))
    assert run.text_loss(batch).item() == pytest.approx(mean[0], rel=1e-4)
    assert run.image_loss(batch, pixels).item() == pytest.approx(
        mean[1] / (4 if scale == "published" else 1), rel=1e-4
    )


def test_reclip_trains_the_image_tower_less_with_the_published_loss(clip, images):
    """Plain SGD steps are proportional to the loss: with one batch of all images, 1 / N
    as far."""
    plain = {**SHORT[ReCLIP], "epochs": 1, "batch_size": None, "weight_decay": 0.0}
    before = module_numbers(module.layer_norms(clip.model, "image"))
    moved = {}
    for scale in module.IMAGE_LOSSES:
        method = ReCLIP(clip, images.classnames, **plain, image_loss=scale).fit(images)
        moved[scale] = method.layer_norms_ - before
    assert (
        np.allclose(moved["published"], moved["mean"] / COUNT, atol=1e-6)
        and np.abs(moved["mean"]).max() > 1e-4
    )


def test_reclip_without_training_is_propagation(clip, images):
    method = ReCLIP(clip, images.classnames, epochs=0, projection="whole").fit(images)
    features, prompts = (
        clip.encode_image(images),
        torch.from_numpy(
            ZeroShot(clip, images.classnames).fit(images).prompt_features_[0]
        ),
    )
    matrix = transduction.projection_matrix(prompts, "whole")
    expected = transduction.propagate_labels(features @ matrix, prompts @ matrix)[0]
    assert (
        (method.pseudolabels_ == expected).all()
        and len(method.history_) == 1
        and method.history_[0]["agreement"] == 1
    )
    centroids = transduction.class_centroids(features, prompts, expected)
    assert np.allclose(method.image_classifier_, centroids, atol=1e-5) and np.allclose(
        method.text_classifier_, prompts, atol=1e-5
    )


@pytest.mark.parametrize(
    "params",
    [
        {"epochs": None},
        {"batch_size": None},
        {"batch_size": 500},
        {"templates": ["a {}.", "one {}."]},
        {"k": 500},
        {"projection": None},
        {"cut": 5},
    ],
    ids=str,
)
def test_reclip_variants(clip, images, test_images, params):
    method = ReCLIP(
        clip, images.classnames, **{**SHORT[ReCLIP], "epochs": 1, **params}
    ).fit(images)
    assert np.isfinite(method.predict_proba(test_images)).all() and len(
        method.history_
    ) == (3 if params.get("epochs", 1) is None else 2)


def test_flyp_refresh(clip, images):
    zero_shot = ZeroShot(clip, images.classnames).fit(images).predict(images)
    fitted = {
        refresh: FLYP(clip, images.classnames, **SHORT[FLYP], refresh=refresh).fit(
            images
        )
        for refresh in flyp.REFRESH
    }
    assert np.array_equal(fitted["never"].pseudolabels_, zero_shot) and [
        record["changed"] for record in fitted["never"].history_
    ] == [0, 0, 0]
    assert fitted["epoch"].history_[0] == fitted["never"].history_[0], (
        "the first epoch of both learns from zero-shot labels"
    )
    assert len({method.image_weights_.tobytes() for method in fitted.values()}) >= 2
    once = FLYP(
        clip,
        images.classnames,
        **{**SHORT[FLYP], "learning_rate": 0.0},
        refresh="step",
        view=None,
    ).fit(images)
    assert np.array_equal(once.pseudolabels_, zero_shot), (
        "a model that stays the same, on images as they are, repeats itself"
    )


def test_flyp_draws_templates(clip, images):
    params = {**SHORT[FLYP], "refresh": "never"}
    one, two = (
        FLYP(clip, images.classnames, **params, templates=templates).fit(images)
        for templates in (["a {}."], ["a {}.", "a {} of ink."])
    )
    assert one.history_[0]["loss"] != two.history_[0]["loss"]
    prompts = [
        template.replace("{}", name)
        for template in ("a {}.", "a {} of ink.")
        for name in images.classnames
    ]
    text = two.tuned_clip().encode_text(prompts).view(2, 10, -1).mean(0)
    assert np.allclose(two.class_features_, F.normalize(text, dim=1), atol=1e-5)


def test_flyp_mixes_weights(clip, images, test_images):
    from clipadapt.learning.training import module_numbers

    original = module_numbers(clip.model.visual)
    whole, half, none = (
        FLYP(clip, images.classnames, **SHORT[FLYP], alpha=alpha).fit(images)
        for alpha in (1.0, 0.5, 0.0)
    )
    assert np.allclose(
        half.image_weights_, (whole.image_weights_ + original) / 2, atol=1e-6
    ) and np.array_equal(none.image_weights_, original)
    assert np.allclose(
        none.predict_proba(test_images),
        ZeroShot(clip, images.classnames).fit(images).predict_proba(test_images),
        atol=1e-4,
    )


@both
def test_training_helps(clip, kind):
    images, test = digits("train").subset(range(300)), digits("test").subset(range(300))
    params = {**(flyp if kind is FLYP else module).SMALL, "epochs": 3}
    assert (
        kind(clip, images.classnames, **params).fit(images).score(test)
        > ZeroShot(clip, images.classnames).fit(images).score(test) + 0.02
    )


# Killed and resumed.

WORKER = """
import sys, time, torch
torch.set_num_threads(1)
from clipadapt import digits, load_clip
from clipadapt import %s as method
images = digits("train").subset(range(48))
model = method(
    load_clip(device="cpu"), images.classnames, checkpoint=sys.argv[1], **%r
)
model.fit(images, callbacks=lambda method: time.sleep(0.3) or {})
"""


@both
def test_a_killed_fit_goes_on_bit_for_bit(clip, images, test_images, tmp_path, kind):
    params = {**SHORT[kind], "epochs": 6}
    process = program(tmp_path, WORKER % (kind.__name__, params), tmp_path / "run")
    process.wait_for(tmp_path / "run")
    time.sleep(0.8)
    process.kill()
    trained = []
    method = kind(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images, callbacks=lambda method: trained.append(1))
    whole = kind(clip, images.classnames, **params).fit(images)
    assert 0 < len(trained) < 7 and arrays(method) == arrays(whole)
    assert np.array_equal(
        method.predict_proba(test_images), whole.predict_proba(test_images)
    )
    again = kind(
        clip, images.classnames, checkpoint=str(tmp_path / "run"), **params
    ).fit(images)
    assert arrays(again) == arrays(whole), "a finished run is only read"


@both
@pytest.mark.parametrize("stop", [1, 2])
def test_stopped_after_any_epoch(clip, images, tmp_path, kind, stop):
    def pull_the_plug(method):
        if len(method.history_) == stop + 1:
            raise KeyboardInterrupt

    params = {
        **SHORT[kind],
        **({"refresh": ["epoch", "step"][stop - 1]} if kind is FLYP else {}),
    }
    path = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        kind(clip, images.classnames, checkpoint=path, **params).fit(
            images, callbacks=pull_the_plug
        )
    assert arrays(
        kind(clip, images.classnames, checkpoint=path, **params).fit(images)
    ) == arrays(kind(clip, images.classnames, **params).fit(images))


@both
@pytest.mark.parametrize(
    "name, change",
    [
        (
            "images",
            lambda m, X, y: (m, ImageSet([image.rotate(9) for image, _ in X]), y),
        ),
        ("labels", lambda m, X, y: (m, X, np.roll(y, 1))),
        ("seed", lambda m, X, y: (m.set_params(seed=1), X, y)),
        ("learning_rate", lambda m, X, y: (m.set_params(learning_rate=0.5), X, y)),
        (
            "classnames",
            lambda m, X, y: (m.set_params(classnames=m.classnames[::-1]), X, y),
        ),
        ("templates", lambda m, X, y: (m.set_params(templates="a {}"), X, y)),
    ],
)
def test_resuming_another_run_is_refused_by_name(
    clip, images, tmp_path, kind, name, change
):
    y, plain = (
        np.where(np.arange(COUNT) < 5, images.labels, -1),
        ImageSet(images.images),
    )
    method = kind(
        clip,
        images.classnames,
        checkpoint=str(tmp_path / "run"),
        **{**SHORT[kind], "epochs": 1},
    ).fit(plain, y)
    other, X, labels = change(clone(method), plain, y)
    with pytest.raises(
        ValueError, match=rf"another run: ([\w ]+, )*{name}(, [\w ]+)* changed"
    ):
        other.fit(X, labels)


# Bad and unusual input.


@both
def test_few_images_one_class_one_image(clip, images, test_images, kind):
    for count in (1, 2, 3):
        assert np.isfinite(
            kind(clip, images.classnames, **SHORT[kind])
            .fit(images.subset(range(count)))
            .predict_proba(test_images)
        ).all()
    fitted = kind(clip, ["digit"], **SHORT[kind]).fit(images.unlabelled())
    assert (fitted.predict_proba(test_images.unlabelled()) == 1).all()


BAD = [
    (ReCLIP, {"k": 0}, "k must be"),
    (ReCLIP, {"alpha": 1.0}, "alpha must be"),
    (ReCLIP, {"projection": "half"}, "'span', 'whole', None"),
    (ReCLIP, {"cut": 1}, "no direction"),
    (ReCLIP, {"epochs": -1}, "epochs must be"),
    (ReCLIP, {"batch_size": 0}, "batch_size"),
    (ReCLIP, {"learning_rate": -1}, "learning_rate"),
    (ReCLIP, {"learning_rate": 1e30}, "lower the learning rate"),
    (ReCLIP, {"templates": ["no gap"]}, "gap"),
    (ReCLIP, {"image_loss": "sum"}, "'published', 'mean'"),
    (FLYP, {"refresh": "daily"}, "'step', 'epoch', 'never'"),
    (FLYP, {"view": "strong"}, "'crop', 'colour', None"),
    (FLYP, {"crop": "round"}, "'redrawn', 'cut'"),
    (FLYP, {"alpha": 1.5}, "0 ... 1"),
    (FLYP, {"epochs": 0}, "epochs must be"),
    (FLYP, {"iterations": 0}, "iterations must be"),
    (FLYP, {"batch_size": 0}, "batch_size"),
    (FLYP, {"weight_decay": -1}, "weight_decay"),
    (FLYP, {"learning_rate": 1e30}, "lower the learning rate"),
    (FLYP, {"templates": []}, "at least one template"),
]


@pytest.mark.parametrize("kind, params, message", BAD, ids=str)
def test_bad_parameters(clip, images, kind, params, message):
    method = kind(clip, images.classnames, **{**SHORT[kind], **params})
    with pytest.raises(ValueError, match=message):
        method.fit(images)
    assert not hasattr(method, "classnames_")


@both
def test_callback_is_checked(clip, images, kind):
    taken = "agreement" if kind is ReCLIP else "loss"
    for answer, message in (
        ({taken: 1}, "must return a dict without"),
        ({"x": object()}, "plain values"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(clip, images.classnames, **SHORT[kind]).fit(
                images, callbacks=lambda method: answer
            )


@both
def test_seeds_differ(clip, images, kind):
    first, second = (
        kind(clip, images.classnames, **SHORT[kind], seed=seed).fit(images)
        for seed in (0, 1)
    )
    assert arrays(first)[0] != arrays(second)[0]


# Other kinds of CLIP.


def test_reclip_trains_batch_norms_of_residual_networks():
    model = open_clip.create_model("RN50", pretrained=None)
    norms = [
        part
        for part in model.visual.modules()
        if isinstance(part, torch.nn.BatchNorm2d)
    ]
    gains = [parameter for part in norms for parameter in (part.weight, part.bias)]
    assert [*map(id, module.layer_norms(model, "image"))] == [*map(id, gains)]
    assert len(module.layer_norms(model, "text")) == 2 * (2 * 12 + 1)


def test_reclip_needs_normalisation_layers():
    with pytest.raises(
        ValueError, match="image tower of this CLIP has no LayerNorm or BatchNorm"
    ):
        module.layer_norms(torch.nn.Module(), "image")


def test_a_captioning_decoder_is_no_text_tower():
    model = torch.nn.ModuleDict(
        {name: torch.nn.LayerNorm(2) for name in ("visual", "text", "text_decoder")}
    )
    assert [*map(id, module.layer_norms(model, "text"))] == [
        id(model["text"].weight),
        id(model["text"].bias),
    ]
    assert [*map(id, module.layer_norms(model, "image"))] == [
        id(model["visual"].weight),
        id(model["visual"].bias),
    ]


KINDS = {
    **TINY,
    "sigmoid loss": lambda: CustomTextCLIP(
        16,
        VISION,
        {**TEXT, "no_causal_mask": True, "pool_type": "last"},
        init_logit_bias=-10.0,
    ),
}


@both
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_clip(name, kind):
    """Photographs of mixed shapes; both towers learn, nothing but them, and a saved
    method predicts the same."""
    clip, photographs = tiny(KINDS[name]), mixed_shapes()
    mode = "squash" if name == "sigmoid loss" else "shortest"
    clip.preprocess = open_clip.image_transform(32, is_train=False, resize_mode=mode)
    method = kind(
        clip,
        ["river", "forest", "annual crop land"],
        **{**SHORT[kind], "epochs": 1, "batch_size": 5},
    ).fit(photographs)
    before, after = clip.model.state_dict(), method._tuned.model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    towers = {
        "image" if name.startswith("visual.") else "text"
        for name in changed - {"logit_scale", "logit_bias"}
    }
    assert (
        towers == {"image", "text"}
        and np.isfinite(method.predict_proba(photographs)).all()
    )
    if kind is ReCLIP:
        norms = {
            f"{place}.{part}"
            for place, layer in clip.model.named_modules()
            if isinstance(layer, (torch.nn.LayerNorm, torch.nn.BatchNorm2d))
            for part in ("weight", "bias")
        }
        assert changed <= norms


def mixed_shapes():
    """Twelve photographs of other heights and widths, three in grey."""
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (60, 40), (33, 33), (90, 30), (64, 48), (48, 64)]
    pixels = [
        rng.integers(0, 255, (*sizes[i % 6], 3), dtype=np.uint8) for i in range(12)
    ]
    pictures = [Image.fromarray(array) for array in pixels]
    return ImageSet(
        [
            picture.convert("L") if i % 4 == 0 else picture
            for i, picture in enumerate(pictures)
        ]
    )


# The numbers of FLYP.


def test_flyp_stops_after_its_iterations(clip, images):
    params = {**SHORT[FLYP], "epochs": 9}  # three steps an epoch
    limited = FLYP(clip, images.classnames, **params, iterations=6).fit(images)
    plain = FLYP(
        clip, images.classnames, **{**params, "epochs": 2}, iterations=None
    ).fit(images)
    assert len(limited.history_) == 2 and arrays(limited) == arrays(plain), (
        "the schedule ends where the run does"
    )
    assert (
        len(FLYP(clip, images.classnames, **params, iterations=4).fit(images).history_)
        == 2
    )


def test_flyp_has_the_numbers_of_latteclip(clip, images):
    method, latte = FLYP(clip, images.classnames), LatteCLIP(clip, images.classnames)
    shared = (
        "crop",
        "epochs",
        "iterations",
        "batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "warmup",
    )
    assert {name: getattr(method, name) for name in shared} == {
        name: getattr(latte, name) for name in shared
    }
    assert (
        method.epochs,
        method.iterations,
        method.batch_size,
        method.learning_rate,
    ) == (50, 2000, 512, 1e-7)
    assert method.view == "colour" and latte.colour
    weights = torch.nn.Linear(3, 2)
    optimiser = method._recipe().optimiser(weights.parameters())
    assert isinstance(optimiser, torch.optim.AdamW)
    decays = {
        group["params"][0].ndim: (group["weight_decay"], group["betas"], group["eps"])
        for group in optimiser.param_groups
    }
    assert decays == {2: (0.2, (0.9, 0.98), 1e-6), 1: (0.0, (0.9, 0.98), 1e-6)}


def test_reclip_has_the_numbers_of_its_code(clip, images):
    method = ReCLIP(clip, images.classnames)
    assert (
        method.k,
        method.alpha,
        method.projection,
        method.cut,
        method.image_loss,
    ) == (20, 0.99, "span", 768, "published")
    optimiser = method._recipe(1).optimiser(torch.nn.Linear(2, 2).parameters())
    [group] = optimiser.param_groups
    assert isinstance(optimiser, torch.optim.SGD)
    assert (
        group["lr"],
        group["momentum"],
        group["weight_decay"],
        method.batch_size,
    ) == (1e-3, 0.9, 1e-4, 64)
    assert method._recipe(5).rate(0) == 1e-3, "the rate that every epoch has"
