"""The training loop: its schedule by hand, its order of examples, its bits, and
checkpoints that were damaged, changed or cut off."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from clipadapt.learning import training
from clipadapt.learning.training import (
    Checkpoint,
    Recipe,
    activations_fit,
    minimise,
    recomputed,
    train_epoch,
    train_epochs,
)
from clipadapt.learning.watching import Watched, Watching


@pytest.mark.parametrize(
    "epoch, rate",
    [
        (0, 0.1 / 6),
        (1, 0.2 / 6),
        (4, 0.5 / 6),
        (5, 0.1),
        (77.5, 0.05),
        (149, 0.1 * (1 + math.cos(math.pi * 144 / 145)) / 2),
    ],
)
def test_schedule_by_hand(epoch, rate):
    assert math.isclose(Recipe().rate(epoch), rate)


@given(epochs=st.integers(1, 40), warmup=st.integers(0, 12))
@settings(deadline=None)
def test_rate_rises_to_its_highest_and_then_falls(epochs, warmup):
    recipe = Recipe(epochs=epochs, warmup=warmup, learning_rate=3.0)
    rates = [recipe.rate(epoch) for epoch in range(epochs)]
    assert all(0 < rate <= 3.0 for rate in rates)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1]) and rates[
        warmup:
    ] == sorted(rates[warmup:], reverse=True)
    assert warmup >= epochs or math.isclose(rates[warmup], 3.0)


@given(
    epochs=st.integers(1, 8),
    batches=st.integers(1, 9),
    iterations=st.one_of(st.none(), st.integers(1, 60)),
    warmup=st.integers(0, 3),
)
@settings(deadline=None)
def test_the_cosine_ends_with_the_run_however_that_ends(
    epochs, batches, iterations, warmup
):
    """The rates of every step of a run, against a schedule counted in steps."""
    recipe = Recipe(
        epochs, 2, 1.0, 0.0, warmup=warmup, per_step=True, iterations=iterations
    )
    weight, rates = torch.nn.Parameter(torch.zeros(())), []
    optimiser = recipe.optimiser([weight])

    def loss(batch):
        rates.append(optimiser.param_groups[0]["lr"])
        return 0 * weight

    for epoch in range(math.ceil(recipe.length(batches))):
        train_epoch(optimiser, loss, [torch.arange(2)] * batches, recipe, epoch)
    steps, up = min(epochs * batches, iterations or math.inf), warmup * batches
    assert len(rates) == steps
    for step, rate in enumerate(rates):
        fall = math.cos(math.pi * (step - up) / max(1, steps - up))
        expected = (step + 1) / (up + 1) if step < up else (1 + fall) / 2
        assert math.isclose(rate, expected, abs_tol=1e-9)


@pytest.mark.parametrize(
    "number",
    [
        {"epochs": 0},
        {"iterations": 0},
        {"iterations": 2.5},
        {"epochs": 2.0},
        {"epochs": True},
        {"batch_size": 0},
        {"batch_size": -1},
        {"learning_rate": -0.1},
        {"warmup": -1},
        {"learning_rate": math.inf},
        {"learning_rate": math.nan},
        {"momentum": 1},
        {"momentum": -0.5},
        {"weight_decay": -1},
    ],
)
def test_numbers_out_of_range_are_named(number):
    with pytest.raises(ValueError, match=next(iter(number))):
        Recipe(**number)


def indices_of(count, recipe, seed):
    """The batches that `minimise` asked for, as lists of indices."""
    batches, parameter = [], torch.nn.Parameter(torch.zeros(1))

    def batch_loss(batch):
        assert batch.dtype == torch.int64 and batch.device.type == "cpu"
        batches.append(batch.tolist())
        return parameter.square().sum()

    minimise([parameter], batch_loss, count, recipe, seed)
    return batches


@given(
    count=st.integers(1, 40),
    batch_size=st.one_of(st.none(), st.integers(1, 50)),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=40)
def test_every_example_is_used_exactly_once_per_epoch(count, batch_size, epochs, seed):
    batches = indices_of(count, Recipe(epochs=epochs, batch_size=batch_size), seed)
    steps = math.ceil(count / min(count, batch_size or count))
    assert len(batches) == epochs * steps and max(map(len, batches)) <= (
        batch_size or count
    )
    for epoch in range(epochs):
        assert sorted(sum(batches[epoch * steps : (epoch + 1) * steps], [])) == list(
            range(count)
        )


def test_order_follows_the_seed_and_changes_between_epochs():
    recipe = Recipe(epochs=2, batch_size=30)
    first, second = indices_of(30, recipe, 0)
    assert first != second and [first, second] == indices_of(30, recipe, 0)
    assert (
        len({str(indices_of(30, recipe, seed)) for seed in (0, 1, 2, (0, 1), (1, 1))})
        == 5
    )


def fitted(seed, **numbers):
    """A linear classifier of noise, trained; its bits and its history."""
    data = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    classes, weight = torch.arange(50) % 3, torch.nn.Parameter(torch.zeros(3, 7))
    history = minimise(
        [weight],
        lambda batch: torch.nn.functional.cross_entropy(
            data[batch] @ weight.T, classes[batch]
        ),
        50,
        Recipe(**{"epochs": 5, "batch_size": 8, **numbers}),
        seed,
    )
    return weight.detach().numpy().tobytes(), history


def test_same_seed_same_bits_other_seed_other_bits():
    assert fitted(0) == fitted(0) and fitted(0)[0] != fitted(1)[0]
    assert fitted(0)[1][-1] < fitted(0)[1][0] < 1.2


@pytest.mark.parametrize(
    "number",
    [
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"learning_rate": 0.2},
        {"warmup": 0},
        {"batch_size": 7},
        {"epochs": 6},
    ],
)
def test_every_number_of_the_recipe_has_an_effect(number):
    assert fitted(0, **number)[0] != fitted(0)[0]


def test_one_step_by_hand():
    """Loss (w - 3)^2 / 2 from w = 1: gradient -2, and weight decay 0.5 adds 0.5; the
    rate of the one epoch is 0.1."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    history = minimise(
        [weight],
        lambda batch: (weight - 3) ** 2 / 2,
        1,
        Recipe(epochs=1, learning_rate=0.1, weight_decay=0.5, warmup=0),
    )
    assert history == [2.0] and math.isclose(weight.item(), 1 + 0.1 * 1.5, rel_tol=1e-6)


def test_mean_loss_weighs_batches_by_their_examples():
    """Losses are the number of examples in the batch: 4, 4 and 2 of ten examples have
    the mean 3.6."""
    weight = torch.nn.Parameter(torch.zeros(()))
    assert minimise(
        [weight],
        lambda batch: 0 * weight + len(batch),
        10,
        Recipe(epochs=2, batch_size=4),
    ) == [3.6, 3.6]


def test_frozen_parameters_stay_and_may_come_from_a_generator():
    frozen, free = (
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        torch.nn.Parameter(torch.ones(2)),
    )
    minimise(
        (parameter for parameter in (frozen, free)),
        lambda batch: (frozen * free).sum(),
        4,
        Recipe(epochs=1),
    )
    assert frozen.tolist() == [1, 1] and (free < 1).all()


def test_nothing_to_train_and_losses_that_explode():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="no examples"):
        minimise([weight], lambda batch: weight.sum(), 0, Recipe(epochs=1))
    for nothing in ([], [torch.nn.Parameter(torch.ones(1), requires_grad=False)]):
        with pytest.raises(ValueError, match="no parameters"):
            minimise(nothing, lambda batch: weight.sum(), 3, Recipe(epochs=1))
    steps = []
    with pytest.raises(ValueError, match="loss is nan: lower the learning rate"):
        minimise(
            [weight],
            lambda batch: steps.append(1) or weight.sum() * math.nan,
            30,
            Recipe(epochs=3),
        )
    assert len(steps) == 1, "no step is taken after it"
    with pytest.raises(
        ValueError, match="last step left parameters that are not finite"
    ):
        minimise(
            [weight],
            lambda batch: 1e38 * weight.sum(),
            3,
            Recipe(epochs=1, learning_rate=1e3, warmup=0),
        )


def test_random_state_is_left_alone():
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    fitted(3)
    assert before == (
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )


ARRAYS, RECORD, FACTS = (
    {
        "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.empty((0, 2), np.int64),
    },
    {"round": 2, "history": [0.1, 1 / 3]},
    {"seed": 0, "k": [1, 2]},
)


def test_checkpoint_gives_back_what_it_got(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.safetensors", {**FACTS, "pair": (1, 2)})
    assert checkpoint.load() is None
    checkpoint.save({"weights": np.zeros(1)}, {})
    checkpoint.save({**ARRAYS, "turned": ARRAYS["weights"].T}, RECORD)
    arrays, record = Checkpoint(
        str(tmp_path / "run.safetensors"), {**FACTS, "pair": [1, 2]}
    ).load()
    assert (
        record == RECORD
        and set(arrays) == {*ARRAYS, "turned"}
        and arrays["none"].dtype == np.int64
        and arrays["none"].shape == (0, 2)
    )
    assert np.array_equal(arrays["weights"], ARRAYS["weights"]) and np.array_equal(
        arrays["turned"], ARRAYS["weights"].T
    )
    assert sorted(os.listdir(tmp_path)) == [
        "run.previous.safetensors",
        "run.safetensors",
    ]
    checkpoint.delete()
    assert not os.listdir(tmp_path) and checkpoint.load() is None


def test_no_path_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Checkpoint(None, FACTS).save(ARRAYS, RECORD)
    assert Checkpoint(None, FACTS).load() is None and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "facts, name",
    [
        ({**FACTS, "seed": 1}, "seed"),
        ({"seed": 0}, "k"),
        ({**FACTS, "new": None}, None),
        ({**FACTS, "new": 1}, "new"),
        ({}, "seed, k"),
    ],
)
def test_changed_facts_are_named(tmp_path, facts, name):
    Checkpoint(tmp_path / "run", FACTS).save(ARRAYS, RECORD)
    if name is None:  # a fact that is None counts as absent
        assert Checkpoint(tmp_path / "run", facts).load()
    else:
        with pytest.raises(ValueError, match=f"another run: {name} changed"):
            Checkpoint(tmp_path / "run", facts).load()


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="must be a file, not a folder"):
        Checkpoint(tmp_path, {})


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "run"
    checkpoint = Checkpoint(path, FACTS)
    checkpoint.save(ARRAYS, RECORD)
    whole = path.read_bytes()
    for content in (
        b"",
        b"text",
        whole[:20],
        whole[: len(whole) // 2],
        whole[:-1],
        b"\xff" * len(whole),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged.*delete it to start anew"):
            checkpoint.load()
    for metadata in (
        None,
        {"other": "file"},
        {"clipadapt": "{"},
        {"clipadapt": "[]"},
        {"clipadapt": json.dumps({"facts": {}})},
    ):
        save_file(ARRAYS, path, metadata=metadata)
        with pytest.raises(ValueError, match="no file of clipadapt, or a damaged one"):
            checkpoint.load()
    path.write_bytes(whole)
    assert checkpoint.load()[1] == RECORD


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run", FACTS)
    checkpoint.save(ARRAYS, RECORD)
    with pytest.raises(ValueError, match="must be plain values"):
        checkpoint.save(ARRAYS, {"round": object()})
    assert checkpoint.load()[1] == RECORD and os.listdir(tmp_path) == ["run"]


# Ten rounds over one parameter, of which every round saves a checkpoint; argument 2 is
# the pause in every round.
WORKER = """
import sys, time
import numpy as np, torch
from clipadapt.learning.training import (
    Checkpoint, Recipe, activations_fit, minimise, recomputed, train_epoch,
    train_epochs)
data = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
weight = torch.nn.Parameter(torch.zeros(5))
checkpoint = Checkpoint(sys.argv[1], {"task": "test"})
start = {"weight": np.zeros(5, np.float32)}, {"round": 0, "history": []}
arrays, record = checkpoint.load() or start
def loss(batch):
    return (data[batch] @ weight - 1).square().mean()
weight.data.copy_(torch.from_numpy(arrays["weight"]))
for number in range(record["round"], 10):
    record["history"] += minimise([weight], loss, 40, Recipe(epochs=2), (7, number))
    record["round"] = number + 1
    checkpoint.save({"weight": weight.detach().numpy()}, record)
    time.sleep(float(sys.argv[2]))
"""


def test_a_process_killed_between_rounds_goes_on_bit_for_bit(tmp_path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, tmp_path / "killed", "0.5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 60
    while not (tmp_path / "killed").exists():
        assert time.monotonic() < end and process.poll() is None, "waited in vain"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        1 <= Checkpoint(tmp_path / "killed", {"task": "test"}).load()[1]["round"] < 10
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("killed", "whole"):
        monkeypatch.setattr(sys, "argv", ["", tmp_path / name, "0"])
        exec(WORKER, {})
    torch.set_num_threads(threads)
    (killed, story), (whole, told) = (
        Checkpoint(tmp_path / name, {"task": "test"}).load()
        for name in ("killed", "whole")
    )
    assert story == told and killed["weight"].tobytes() == whole["weight"].tobytes()


class Shared(torch.nn.Module):
    """Three layers, of which one acts twice and one never."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, inputs):
        first, second, _ = self.layers
        return second(first(first(inputs).tanh()).tanh()).square().mean()


def weights_after(method, early, steps=None):
    """All weights after four epochs of three batches, and whether a layer was
    unused."""
    network = Shared()
    inputs = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(4, 10, 0.1, weight_decay=0.1, method=method, per_step=True)
    optimiser = recipe.optimiser(network.parameters())
    if steps is not None:
        optimiser.register_step_post_hook(lambda *arguments: steps.append(1))
    for epoch in range(4):
        loss, batches = lambda batch: network(inputs[batch]), torch.arange(30).split(10)
        train_epoch(optimiser, loss, batches, recipe, epoch, early)
    assert all(parameter.grad is None for parameter in network.parameters())
    return torch.cat(
        [parameter.detach().flatten() for parameter in network.parameters()]
    )


@pytest.mark.parametrize("method", ["sgd", "adamw"])
@pytest.mark.parametrize("most, more", [(0, True), (300, True), (10**6, False)])
def test_a_step_in_parts_gives_the_same_bits(monkeypatch, method, most, more):
    whole, steps = weights_after(method, early=False), []
    monkeypatch.setattr(training, "GRADIENTS", most)
    monkeypatch.setattr(training, "_fused", lambda parameters: None)  # other roundings
    assert torch.equal(weights_after(method, early=True, steps=steps), whole)
    assert (len(steps) > 12) == more


def test_gradients_are_dropped_as_they_come(monkeypatch):
    """In a step in parts no two layers have gradients at the same time."""
    monkeypatch.setattr(training, "GRADIENTS", 0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(5)))
    optimiser, alive = Recipe().optimiser(layers.parameters()), []
    optimiser.register_step_pre_hook(
        lambda *arguments: alive.append(
            sum(parameter.grad is not None for parameter in layers.parameters())
        )
    )
    loss = lambda batch: layers(torch.ones(2, 4)).sum()
    train_epoch(optimiser, loss, [torch.arange(2)], Recipe(), 0, early=True)
    assert alive == [1, 1, 1, 1, 1, 0]


def test_a_loss_that_is_not_finite_moves_nothing(monkeypatch):
    monkeypatch.setattr(training, "GRADIENTS", 0)
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.clone()
    optimiser = Recipe().optimiser(layer.parameters())
    with pytest.raises(ValueError, match="the loss is nan"):
        train_epoch(
            optimiser,
            lambda batch: layer(torch.ones(2)).sum() * math.nan,
            [torch.arange(2)],
            Recipe(),
            0,
            early=True,
        )
    assert torch.equal(layer.weight, before)


def test_a_second_gradient_in_a_backward_pass_is_refused(monkeypatch):
    """A nested backward pass would make the step with a part of the gradient."""
    monkeypatch.setattr(training, "GRADIENTS", 0)
    layer = torch.nn.Linear(2, 2)
    twice = lambda inputs: torch.utils.checkpoint.checkpoint(
        layer, inputs, use_reentrant=True
    )
    loss = lambda batch: twice(twice(torch.ones(2, requires_grad=True))).sum()
    optimiser = Recipe().optimiser(layer.parameters())
    with pytest.raises(RuntimeError, match="two gradients"):
        train_epoch(optimiser, loss, [torch.arange(2)], Recipe(), 0, early=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_not_finite_end_a_run(bad):
    weight = torch.nn.Parameter(torch.tensor([1.0, bad]))
    nothing = torch.nn.Parameter(torch.empty(0))
    optimiser = Recipe().optimiser([weight, nothing])
    with pytest.raises(ValueError, match="not finite: lower"):
        train_epoch(
            optimiser,
            lambda batch: (0 * weight[:1]).sum() + nothing.sum(),
            [torch.arange(2)],
            Recipe(),
            0,
        )


def test_batch_statistics_are_counted_once(monkeypatch):
    """A network that updates them in training keeps its activations."""
    asked = []
    network = torch.nn.BatchNorm1d(2)
    network.set_grad_checkpointing = asked.append
    for mode, calls in ((True, []), (False, [True, False])):
        network.train(mode)
        with recomputed(network):
            pass
        assert asked == calls
    with recomputed(network, wanted=False), recomputed(torch.nn.Linear(2, 2)):
        pass
    assert asked == [True, False]


def test_activations_are_counted_for_each_example_and_weights_are_not():
    layer = torch.nn.Linear(1000, 4)  # keeps its inputs, 4 kB an example
    fits = lambda count: activations_fit(layer, torch.ones(2, 1000), count)
    assert fits(training.ACTIVATIONS // 4000) and not fits(
        training.ACTIVATIONS // 4000 + 1
    )


class Recorded(Watched):
    """A run and a method in one, which note what is asked of them."""

    def __init__(self, *callbacks):
        self.asked, self._watching = [], Watching(callbacks)

    def epoch(self, number):
        self.asked.append(f"epoch {number}")
        return {"epoch": number}

    def state(self):
        self.asked.append("state")
        return {}

    def restore(self, arrays):
        self.asked.append("restore")

    def finish(self):
        self.asked.append("finish")

    def _show(self, run):
        self.asked.append("show")


def test_a_run_is_shown_when_somebody_looks(tmp_path):
    """Without a callback it is shown once, when its optimiser is gone."""
    quiet, watched, again = Recorded(), Recorded(lambda method: {"seen": 1}), Recorded()
    train_epochs(quiet, quiet, 2, Checkpoint(None, {}))
    train_epochs(watched, watched, 2, Checkpoint(tmp_path / "run", {}))
    train_epochs(again, again, 2, Checkpoint(tmp_path / "run", {}))
    assert quiet.asked == ["epoch 0", "epoch 1", "finish", "show"]
    assert watched.asked == ["epoch 0", "show", "state", "epoch 1", "show", "state"]
    assert again.asked == ["restore", "finish", "show"]
    assert again.history_ == watched.history_ and again.history_[1]["seen"] == 1
