"""The papers' equations, written out once more, against ours.

Every published piece stands here as plain loops in float64, written from the paper and
its released code and from nothing of ours. What the package computes in float32, in
batches and without loops must agree to a millionth. Each test names its source.
"""

import math

import numpy as np
import pytest
import torch

from clipadapt import FLYP, GRIP, LatteCLIP, ReCLIP, digits
from clipadapt.learning.prompts import TextualPrompt, VisualPrompt
from clipadapt.learning.towers import contrastive_loss
from clipadapt.methods import coreg
from clipadapt.methods.grip import two_part_loss
from clipadapt.methods.latteclip import mix_texts, mixing_weights, update_prototypes
from clipadapt.methods.lpclip import teach, weighted_cross_entropy
from clipadapt.methods.transduction import (
    class_centroids,
    projection_matrix,
    propagate_labels,
)

MILLIONTH = 1e-6


def agree(ours, theirs, tolerance=MILLIONTH):
    """Equal up to a millionth: of the value where it is above 1, absolute below."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    off = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
    assert off.max(initial=0) <= tolerance, f"largest difference {off.max():.2g}"


def tensor(array):
    """What the package gets: float32, or whole numbers and truth values as they are."""
    array = np.asarray(array)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == float else array)


def given(array):
    """The same numbers for the loops: rounded to float32, computed with in float64."""
    return np.asarray(array, np.float32).astype(np.float64)


def unit(vector):
    return vector / math.sqrt(sum(x * x for x in vector))


def softmax(logits):
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return np.array([power / sum(powers) for power in powers])


def cross_entropy(logits, target):
    return -math.log(softmax(logits)[target])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape)
    return given(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def distributions(rng, count, classes):
    return given(rng.dirichlet(np.full(classes, 0.5), count))


def candidate_sets(rng, count, classes):
    """At least one candidate each; those of the first two rows are all classes."""
    candidates = rng.random((count, classes)) < 0.4
    candidates[np.arange(count), rng.integers(classes, size=count)] = True
    candidates[:2] = True
    return candidates


# Co-Reg (Wang et al. 2024, arXiv 2406.18550) and its released code.


def test_coreg_union_of_the_templates_answers(rng):
    """A class is a candidate if it is the best one under some template."""
    images, prompts = unit_rows(rng, 9, 8), unit_rows(rng, 5, 4, 8)

    theirs = np.zeros((9, 4))
    for i in range(9):
        for template in prompts:
            theirs[i, np.argmax(template @ images[i])] = 1

    agree(coreg.partial_labels(tensor(images), tensor(prompts), 100.0), theirs)


def test_coreg_partial_cross_entropy(rng):
    """Warm-up: -log of the candidates' probability, unless they are all."""
    p, candidates = distributions(rng, 12, 5), candidate_sets(rng, 12, 5)

    losses = []
    for i in range(12):
        if not all(candidates[i]):
            inside = sum(p[i, c] for c in range(5) if candidates[i, c])
            losses.append(-math.log(inside + 1e-5))

    agree(coreg.partial_cross_entropy(tensor(p), tensor(candidates)), np.mean(losses))


def test_coreg_negative_entropy(rng):
    """Warm-up: the confidence penalty, mean of sum p log p."""
    p = given(distributions(rng, 12, 5) * 0.99 + 0.002)

    theirs = np.mean([sum(x * math.log(x) for x in row) for row in p])

    agree(coreg.confidence_penalty(tensor(p)), theirs)


def test_coreg_best_candidate_loss(rng):
    """What the split looks at: -log of the best candidate's probability."""
    p = given(distributions(rng, 12, 5) * 0.99 + 0.002)
    candidates = candidate_sets(rng, 12, 5)

    theirs = []
    for row, candidate in zip(p, candidates):
        theirs.append(-math.log(max(row[c] for c in range(5) if candidate[c])))

    agree(coreg.best_candidate_loss(tensor(p), tensor(candidates)), theirs)


PRIORS = {"uniform": None, "given": [0.5, 0.2, 0.2, 0.1]}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_coreg_distribution_alignment(rng, prior):
    """Probabilities times prior, divided by how often a class is predicted."""
    p, often = distributions(rng, 12, 4), distributions(rng, 1, 4)[0]
    wanted = given([0.25] * 4 if prior is None else prior)

    theirs = []
    for row in p:
        raw = [row[c] * wanted[c] / often[c] for c in range(4)]
        theirs.append([value / sum(raw) for value in raw])

    ours = coreg.align_distribution(tensor(p), tensor(often), prior and tensor(wanted))
    agree(ours, theirs)


def test_coreg_sharpening(rng):
    """p^(1/T), normalised, T = 0.5."""
    p = given(distributions(rng, 12, 5) * 0.99 + 0.002)

    theirs = [[x**2 / sum(y**2 for y in row) for x in row] for row in p]

    agree(coreg.sharpen(tensor(p), 0.5), theirs)


def test_coreg_self_training_loss(rng):
    """SemiLoss: cross-entropy on the clean part, squared error on the rest."""
    logits, targets = given(rng.normal(size=(12, 5)) * 3), distributions(rng, 12, 5)
    clean = rng.random(12) < 0.5

    supervised, unlabelled = [], []
    for i in range(12):
        p = softmax(logits[i])
        if clean[i]:
            supervised.append(-sum(targets[i, c] * math.log(p[c]) for c in range(5)))
        else:
            unlabelled.append(np.mean([(p[c] - targets[i, c]) ** 2 for c in range(5)]))

    ours = coreg.self_training_losses(tensor(logits), tensor(targets), tensor(clean))
    agree(ours, [np.mean(supervised), np.mean(unlabelled)])


def test_coreg_prototype_bank(rng):
    """One clean image after the other moves its prototype, then all are normalised."""
    bank, z = unit_rows(rng, 4, 8), unit_rows(rng, 20, 8)
    classes = rng.integers(3, size=20)

    theirs = bank.copy()
    for embedding, c in zip(z, classes):
        theirs[c] = 0.999 * theirs[c] + 0.001 * embedding
    theirs = [unit(prototype) for prototype in theirs]

    ours = coreg.update_prototype_bank(tensor(bank), tensor(z), tensor(classes), 0.999)
    agree(ours, theirs)


def test_coreg_prototypical_alignment(rng):
    """KL(target || softmax(z mu / 0.3)) on clean images, squared error on the rest."""
    z, bank = unit_rows(rng, 12, 8), unit_rows(rng, 5, 8)
    targets, clean = distributions(rng, 12, 5), rng.random(12) < 0.5

    divergences, errors = [], []
    for i in range(12):
        s = softmax([z[i] @ prototype / 0.3 for prototype in bank])
        if clean[i]:
            pairs = [(t, p) for t, p in zip(targets[i], s) if t > 0]
            divergences.append(sum(t * math.log(t / p) for t, p in pairs))
        else:
            errors.append(np.mean([(p - t) ** 2 for t, p in zip(targets[i], s)]))

    ours = coreg.prototype_alignment(
        tensor(z), tensor(bank), tensor(targets), tensor(clean), 0.3
    )
    agree(ours, np.mean(divergences) + np.mean(errors))


def test_coreg_noisy_contrast(rng):
    """Its own key is positive, and who shares the label when both are clean; who shares
    it otherwise is left out of the denominator."""
    count, older = 8, 10
    queries, keys, queue = (unit_rows(rng, n, 8) for n in (count, count, older))
    classes, old_classes = rng.integers(3, size=count), rng.integers(3, size=older)
    clean, old_clean = rng.random(count) < 0.6, rng.random(older) < 0.6

    losses = []
    for i in range(count):
        rest = [j for j in range(count) if j != i]
        others = [(queries[j], classes[j], clean[j], False) for j in rest]
        others += [(keys[j], classes[j], clean[j], j == i) for j in range(count)]
        others += list(zip(queue, old_classes, old_clean, [False] * older))
        positive, denominator = [], 0
        for embedding, label, trusted, own_key in others:
            power = math.exp(queries[i] @ embedding / 0.07)
            shared = label == classes[i]
            if own_key or (shared and trusted and clean[i]):
                positive.append(power)
                denominator += power
            elif not shared:
                denominator += power
        losses.append(-np.mean([math.log(power / denominator) for power in positive]))

    ours = coreg.noisy_contrastive(
        tensor(queries),
        coreg.Queue(tensor(keys), tensor(classes), tensor(clean)),
        coreg.Queue(tensor(queue), tensor(old_classes), tensor(old_clean)),
        0.07,
    )
    agree(ours, np.mean(losses))


# CLIP's loss, FLYP (Goyal et al. 2023, arXiv 2212.00638).


def clip_loss(images, texts, scale):
    """Both directions of the cross-entropy with the diagonal as target, averaged."""
    count, logits = len(images), scale * images @ texts.T
    rows = np.mean([cross_entropy(logits[i], i) for i in range(count)])
    columns = np.mean([cross_entropy(logits[:, i], i) for i in range(count)])
    return (rows + columns) / 2


def test_flyp_loss(rng):
    """Section 3 (ClipLoss of the code): images of the same class are negatives, too."""
    images, texts = unit_rows(rng, 10, 16), unit_rows(rng, 10, 16)
    texts[4] = texts[2]

    ours = contrastive_loss(tensor(images), tensor(texts), 50.0)
    agree(ours, clip_loss(images, texts, 50.0))


# The towers of the built-in CLIP; a learning rate of 0 leaves them as they are.


@pytest.fixture(scope="module")
def some():
    return digits("train").subset(range(0, 60, 3))


@pytest.fixture(scope="module")
def features(clip, some):
    return given(clip.encode_image(some))


@pytest.fixture(scope="module")
def prompts(clip, some):
    sentences = [f"a photo of a {name}." for name in some.classnames]
    return given(clip.encode_text(sentences))


def test_flyp_on_pseudolabels(clip, some, features, prompts):
    """LatteCLIP's baseline: each image with the prompt of its best class."""
    texts = np.stack([prompts[np.argmax(prompts @ image)] for image in features])
    theirs = clip_loss(features, texts, clip.logit_scale)

    still = {"view": None, "epochs": 1, "batch_size": None, "learning_rate": 0.0}
    ours = FLYP(clip, some.classnames, **still).fit(some)
    agree(ours.history_[0]["loss"], theirs)


# LatteCLIP (Cao et al. 2024, arXiv 2410.08211) and its released code.


def mix(texts, prototypes):
    """Equations 5 and 6: texts weighted by the gap between their best two classes."""
    weights = []
    for text in texts:
        best, second = sorted(prototypes @ text)[:-3:-1]
        weights.append(best - second + 1e-6)
    return sum(weight * text for weight, text in zip(weights, texts)) / sum(weights)


def test_latteclip_mixer(rng):
    texts, prototypes = unit_rows(rng, 9, 3, 16), unit_rows(rng, 5, 16)

    theirs = [mix(of_image, prototypes) for of_image in texts]

    present = torch.ones(9, 3, dtype=bool)
    weights = mixing_weights(tensor(texts), tensor(prototypes), present)
    agree(mix_texts(tensor(texts), weights), theirs)


def test_latteclip_prototypes(rng):
    """Equation 8: a class that occurs moves towards the mean of its vectors."""
    bank, vectors = unit_rows(rng, 5, 16), unit_rows(rng, 9, 16)
    classes = rng.integers(4, size=9)

    theirs = bank.copy()
    for c in range(5):
        mine = [vector for vector, label in zip(vectors, classes) if label == c]
        if mine:
            theirs[c] = unit(0.99 * bank[c] + 0.01 * sum(mine) / len(mine))

    ours = update_prototypes(tensor(bank), tensor(vectors), tensor(classes), 0.99)
    agree(ours, theirs)


BANKS = {
    "default": {"update_with": "text", "prototype_momentum": 0.99},
    "the paper's formula": {"update_with": "blend", "prototype_momentum": 0.99},
    "the released code": {"update_with": "blend", "prototype_momentum": 0.0},
}


@pytest.mark.parametrize("bank", BANKS)
def test_latteclip_step(clip, some, features, prompts, bank):
    """Mixer, blend, both losses, and how the prototypes move, in one step."""
    told = {
        "image": [f"a photo of thing {i}." for i in range(len(some))],
        "group": [f"all are {i % 4} of a kind." for i in range(len(some))],
    }
    of_image, of_group = (given(clip.encode_text(texts)) for texts in told.values())

    best = [int(np.argmax(prompts @ image)) for image in features]  # both pseudolabels
    texts = zip(prompts[best], of_image, of_group)
    mixed = np.stack([mix(three, prompts) for three in texts])
    blended = 0.99 * prompts[best] + 0.01 * mixed
    loss = 2 * clip_loss(features, blended, clip.logit_scale)  # fine-tuned, zero-shot

    momentum = BANKS[bank]["prototype_momentum"]
    towards = mixed if BANKS[bank]["update_with"] == "text" else blended
    moved = prompts.copy()
    for c in set(best):
        mine = [vector for vector, label in zip(towards, best) if label == c]
        moved[c] = unit(momentum * prompts[c] + (1 - momentum) * sum(mine) / len(mine))

    still = {"augment": False, "epochs": 1, "batch_size": 20, "learning_rate": 0.0}
    ours = LatteCLIP(clip, some.classnames, **still, **BANKS[bank])
    ours.fit(some, captions=told)
    agree(ours.history_[0]["loss"], loss)
    agree(ours.class_features_, moved)


# LP-CLIP (Laroudie et al. 2023, arXiv 2309.10361).


def test_lpclip_consistency_loss(rng):
    """The teacher's confidence weighs the student's cross-entropy."""
    images, classes = unit_rows(rng, 12, 16), unit_rows(rng, 5, 16)
    student = given(rng.normal(size=(12, 5)) * 3)

    losses = []
    for image, logits in zip(images, student):
        answer = softmax([100 * (image @ c) for c in classes])
        losses.append(max(answer) * cross_entropy(logits, np.argmax(answer)))

    labels, confidences = teach(tensor(images), tensor(classes), 100.0)
    ours = weighted_cross_entropy(tensor(student), labels, confidences)
    agree(ours, np.mean(losses), 5e-6)


# ReCLIP (Hu et al. 2024, arXiv 2308.03793) and its released code.


@pytest.mark.parametrize("cut", [768, 4])
def test_reclip_projection(rng, cut):
    """Section 3.1: left singular vectors of the class features, without the first."""
    classes = unit_rows(rng, 7, 16)

    left = np.linalg.svd(classes.T, full_matrices=False)[0]
    theirs = sum(np.outer(left[:, r], left[:, r]) for r in range(1, min(cut, 7)))

    agree(projection_matrix(tensor(classes), "span", cut), theirs)


def propagated(images, classes, k, alpha):
    """Section 3.2: every affinity, the k largest of a row, a direct solution."""
    nodes = [unit(node) for node in (*classes, *images)]
    count = len(nodes)
    kept = np.zeros((count, count))
    for i in range(count):
        affinities = {j: (nodes[i] @ nodes[j] + 1) / 2 for j in range(count) if j != i}
        for j in sorted(affinities, key=affinities.get)[-k:]:
            kept[i, j] = affinities[j]
    graph = (kept + kept.T) / 2
    degrees = [sum(row) for row in graph]
    for i in range(count):
        for j in range(count):
            graph[i, j] /= math.sqrt(degrees[i] * degrees[j])
    start = np.eye(count)[:, : len(classes)]
    return np.linalg.solve(np.eye(count) - alpha * graph, start)[len(classes) :]


def test_reclip_propagation(rng):
    images, classes = unit_rows(rng, 150, 8), unit_rows(rng, 6, 8)

    theirs = propagated(images, classes, k=20, alpha=0.99)

    labels, scores = propagate_labels(
        tensor(images), tensor(classes), 20, 0.99, tolerance=1e-12
    )
    agree(scores, theirs)
    assert labels.tolist() == theirs.argmax(1).tolist()


def centroids(images, classes, labels):
    found = []
    for c, prompt in enumerate(classes):
        mine = [image for image, label in zip(images, labels) if label == c]
        found.append(unit(prompt + sum(mine)))
    return np.stack(found)


def test_reclip_centroids(rng):
    """Section 3.3: the mean of a class's prompt and images, normalised."""
    images, classes = unit_rows(rng, 20, 8), unit_rows(rng, 5, 8)
    labels = rng.integers(4, size=20)

    ours = class_centroids(tensor(images), tensor(classes), labels)
    agree(ours, centroids(images, classes, labels))


def test_reclip_losses(clip, some, features, prompts):
    """The code's training loop, where both towers agree on m: the text tower minimises
    sum(m CE) / sum(m), the image tower mean(m CE) / sum(m)."""
    left = np.linalg.svd(prompts.T, full_matrices=False)[0][:, 1:]
    labels = propagated(features @ left, prompts @ left, k=5, alpha=0.99).argmax(1)
    text_logits = clip.logit_scale * features @ prompts.T
    image_logits = clip.logit_scale * features @ centroids(features, prompts, labels).T
    agreed = np.ones(len(some))
    text = [cross_entropy(row, c) for row, c in zip(text_logits, labels)]
    image = [cross_entropy(row, c) for row, c in zip(image_logits, labels)]

    still = {"k": 5, "epochs": 1, "batch_size": None, "learning_rate": 0.0}
    ours = ReCLIP(clip, some.classnames, **still).fit(some)
    assert ours.pseudolabels_.tolist() == [labels.tolist()] * 2
    agree(ours.history_[1]["text_loss"], sum(agreed * text) / sum(agreed))
    agree(ours.history_[1]["image_loss"], np.mean(agreed * image) / sum(agreed))
    mean = [softmax(row) for row in (text_logits + image_logits) / 2]
    agree(ours.predict_proba(some), mean, 5e-6)


# FPL, IFPL, GRIP (Menghini et al. 2023, arXiv 2306.01669) and their released code.


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_grip_two_part_loss(rng, share):
    """gamma times the labelled mean plus lambda times the pseudolabelled one."""
    logits, classes = given(rng.normal(size=(12, 5)) * 3), rng.integers(5, size=12)
    guessed = rng.random(12) < share

    theirs = 0
    for weight, part in ((0.3, ~guessed), (1.7, guessed)):
        losses = [cross_entropy(logits[i], classes[i]) for i in range(12) if part[i]]
        theirs += weight * np.mean(losses) if losses else 0

    ours = two_part_loss(tensor(logits), tensor(classes), tensor(guessed), (0.3, 1.7))
    agree(ours, theirs)


POOLS = {
    "Flowers102": (2040, 102, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
    "RESISC45": (6300, 45, [14, 28, 42, 56, 70, 84, 98, 112, 126, 140]),
    "FGVC Aircraft": (6667, 100, [6, 13, 19, 26, 33, 39, 46, 53, 59, 66]),
    "DTD": (3760, 47, [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]),
    "EuroSAT": (27000, 10, [270, 540, 810, 1080, 1350, 1620, 1890, 2160, 2430, 2700]),
}


@pytest.mark.parametrize("name", POOLS)
def test_grip_sizes(clip, name):
    """K_t = floor(t m / C), m = floor(N / rounds): at last there are N in all."""
    count, classes, theirs = POOLS[name]
    assert GRIP(clip, ["cat"], rounds=10).sizes(count, classes) == theirs


NAMES = ["cat", "annual crop land", "x"]
TOWERS = ["built-in", "plain", "quick-GELU"]


@pytest.mark.parametrize("name", TOWERS)
def test_textual_prompt(clips, name):
    """Section 2.1 (CoOp): placeholder words become a prefix, then the whole encoder."""
    clip = clips(name)
    model, prompt = clip.model, TextualPrompt(clip, NAMES, length=4)

    tokens = clip.tokenizer([f"X X X X {name}" for name in NAMES])
    with torch.no_grad():
        x = model.token_embedding(tokens)
        x[:, 1:5] = prompt.prefix
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        ends = model.ln_final(x)[torch.arange(3), tokens.argmax(1)]
        theirs = ends @ model.text_projection

    ours = prompt.embed_classes().detach()
    agree(ours, [unit(row) for row in given(theirs)])


@pytest.mark.parametrize("name", TOWERS)
def test_visual_prompt(clips, some, name):
    """Section 2.1 (VPT): vectors without a position between class token and patches."""
    clip = clips(name)
    visual, prompt = clip.model.visual, VisualPrompt(clip, NAMES, length=4)

    rows = []
    with torch.no_grad():
        for image, _ in some:
            pixels = clip.preprocess(image)[None]
            patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([visual.class_embedding[None, None], patches], 1)
            x = x + visual.positional_embedding
            x = torch.cat([x[:, :1], prompt.vectors[None], x[:, 1:]], 1)
            x = visual.transformer(visual.ln_pre(x))
            rows.append(unit(given(visual.ln_post(x[:, 0]) @ visual.proj)[0]))

    agree(prompt.embed_images(prompt.prepare(some)).detach(), rows)
