"""Comparing: what a kill leaves, what a failure spares, what the report holds."""

import itertools
import re
import signal
import warnings

import numpy as np
import pytest
from matplotlib.transforms import Bbox
from PIL import Image
from processes import program

from clipadapt import (
    CLIP,
    FLYP,
    LPCLIP,
    AnchoredMixture,
    LatteCLIP,
    Prototypes,
    ReCLIP,
    StoredCLIP,
    ZeroShot,
    digits,
)
from clipadapt.app.demo import small_methods
from clipadapt.clip.captions import AttributeCaptioner
from clipadapt.images.sets import ImageSet
from clipadapt.judge.compare import (
    Run,
    _blocks,
    _file_stem,
    changes,
    compare,
    corruption_accuracies,
    plot_accuracies,
    plot_changes,
    plot_classes,
    plot_cost,
    recommend,
    redraw,
    run_all,
    tabulate,
)
from clipadapt.judge.report import report
from clipadapt.learning.training import Checkpoint


@pytest.fixture(scope="module")
def train():
    return digits("train").subset(range(60))


@pytest.fixture
def methods(clip):
    names = digits("test").classnames
    return {
        "zero-shot": ZeroShot(clip, names),
        "prototypes": Prototypes(clip, names),
        "LP-CLIP": LPCLIP(clip, names, epochs=2, views=1),
    }


def made_up(clip, name, answers, seed=0, seconds=1.0, kind=ZeroShot):
    return Run(
        name,
        kind(clip, ["a", "b", "c"]),
        np.eye(3, dtype=np.float32)[np.array(answers)],
        seconds,
        seed,
    )


SLOW_RUN = """
import sys, time
from pathlib import Path
from clipadapt import LPCLIP, digits, load_clip
from clipadapt.judge.compare import run_all

class Slow(LPCLIP):
    def _fit(self, images, labels):
        super()._fit(images, labels)
        print("fitted", self.seed, flush=True)
        if self.seed == 1:
            Path(sys.argv[2]).touch()
            time.sleep(float(sys.argv[3]))

train, test = digits("train").subset(range(40)), digits("test").subset(range(10))
slow = {"slow": Slow(load_clip(), train.classnames, epochs=1, views=1)}
for run in run_all(slow, train, test, seeds=(0, 1, 2), folder=sys.argv[1]):
    print("run", run.seed, run.probabilities.sum().round(3), flush=True)
"""


def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    killed = program(tmp_path, SLOW_RUN, tmp_path / "runs", tmp_path / "go", 60)
    killed.wait_for(tmp_path / "go")
    killed.kill()
    left = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(left) == 1 and re.fullmatch(
        r"slow-[0-9a-f]{8}-0\.safetensors", left[0]
    ), "the run that was done, and nothing half written"
    again = program(tmp_path, SLOW_RUN, tmp_path / "runs", tmp_path / "go", 0)
    done, _ = again.finish()
    assert re.findall(r"fitted (\d)", done) == ["1", "2"] and re.findall(
        r"run (\d) (\S+)", done
    ) == [("0", "10.0"), ("1", "10.0"), ("2", "10.0")]


def test_what_is_kept_is_what_was_computed(tmp_path, methods, train, test_images):
    first = run_all(methods, train, test_images, seeds=(0, 3), folder=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = run_all(methods, train, test_images, seeds=(0, 3), folder=tmp_path)
    assert (
        files == {path: path.read_bytes() for path in tmp_path.iterdir()}
        and len(files) == 6
    )
    for a, b in zip(first, again):
        assert (a.name, a.seed, a.seconds) == (
            b.name,
            b.seed,
            b.seconds,
        ) and np.array_equal(a.probabilities, b.probabilities)
    assert tabulate(first, test_images).equals(
        tabulate(again, test_images)
    ) and recommend(first, test_images) == recommend(again, test_images)


@pytest.mark.parametrize("damage", [b"", b"not a run", b"\xff" * 200])
def test_a_damaged_run_is_named(tmp_path, methods, train, test_images, damage):
    run_all({"zero-shot": methods["zero-shot"]}, train, test_images, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    with pytest.raises(ValueError, match=f"{file.name}.*damaged"):
        run_all(
            {"zero-shot": methods["zero-shot"]}, train, test_images, folder=tmp_path
        )


def forged(content, record):
    """A checkpoint class whose file holds this."""

    class Forged(Checkpoint):
        def load(self):
            return content, record

    return Forged


GOOD = np.full((20, 10), 0.1, np.float32)
NAN = np.where(np.arange(10) == 3, np.nan, GOOD).astype(np.float32)


@pytest.mark.parametrize(
    "content, record, message",
    [
        ({"probabilities": GOOD[:5]}, {"seconds": 1.0}, "shape"),
        ({"probabilities": GOOD[:, :5]}, {"seconds": 1.0}, "shape"),
        ({"probabilities": GOOD.astype(float)}, {"seconds": 1.0}, "float64"),
        ({"probabilities": NAN}, {"seconds": 1.0}, "not finite"),
        ({"probabilities": 2 * GOOD}, {"seconds": 1.0}, "sum to one"),
        ({"probabilities": -GOOD}, {"seconds": 1.0}, "below 0"),
        ({}, {"seconds": 1.0}, "missing"),
        ({"probabilities": GOOD, "more": GOOD}, {"seconds": 1.0}, "more"),
        *(
            ({"probabilities": GOOD}, {"seconds": value}, "seconds")
            for value in (-1.0, "1", None, True, float("nan"))
        ),
        ({"probabilities": GOOD}, {}, "seconds"),
        *(
            ({"probabilities": GOOD}, {"seconds": 1.0, "history": value}, "history")
            for value in (None, "x", {"loss": 1.0}, [1.0])
        ),
    ],
)
def test_what_is_kept_is_checked(
    tmp_path, methods, train, test_images, monkeypatch, content, record, message
):
    monkeypatch.setattr("clipadapt.judge.compare.Checkpoint", forged(content, record))
    with pytest.raises(
        ValueError, match=f"zero-shot-.*is damaged.*{message}.*delete it"
    ):
        run_all(
            {"zero-shot": methods["zero-shot"]}, train, test_images, folder=tmp_path
        )


KILLED_INSIDE = """
import os, signal, sys
from clipadapt import ReCLIP, digits, load_clip
from clipadapt.judge.compare import run_all

def die(method):
    if len(method.history_) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

class Mortal(ReCLIP):
    def fit(self, X, y=None, callbacks=(), verbose=0):
        dies = self.seed == 1 and sys.argv[2] == "die"
        return super().fit(X, y, callbacks=die if dies else count)

epochs = []
def count(method):
    epochs.append(method.seed)

train, test = digits("train").subset(range(60)), digits("test").subset(range(10))
method = Mortal(
    load_clip(device="cpu"),
    train.classnames,
    projection="whole",
    epochs=5,
    learning_rate=0.03,
)
runs = run_all({"mortal": method}, train, test, seeds=(0, 1), folder=sys.argv[1])
bits = [run.probabilities.tobytes().hex() for run in runs]
print([epochs.count(seed) for seed in (0, 1)], bits, runs[1].method.checkpoint)
"""


def test_a_method_killed_inside_goes_on_and_answers_as_if_it_had_not_been(tmp_path):
    code, _, errors = program(tmp_path, KILLED_INSIDE, tmp_path / "a", "die").end()
    assert code == -signal.SIGKILL, errors
    left = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert re.fullmatch(r"mortal-[0-9a-f]{8}-0\.safetensors", left[0]) and re.match(
        r"mortal-[0-9a-f]{8}-1-[0-9a-f]{8}\.checkpoint", left[1]
    )
    resumed, whole = (
        program(tmp_path, KILLED_INSIDE, tmp_path / folder, "live").finish()[0]
        for folder in "ab"
    )
    assert resumed.startswith("[0, 4]") and whole.startswith("[6, 6]"), (
        "seed 0 is read, seed 1 goes on after two of six epochs"
    )
    assert resumed.split(" [")[1] == whole.split(" [")[1], "bit for bit"
    assert whole.rstrip().endswith("None")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        path.name for path in (tmp_path / "b").iterdir()
    )
    assert len(list((tmp_path / "a").iterdir())) == 2, "two runs, no checkpoint"


def test_a_changed_method_does_not_find_the_checkpoint_of_another(
    clip, tmp_path, train, test_images
):
    method = ReCLIP(
        clip, train.classnames, projection="whole", epochs=1, learning_rate=0.03
    )
    folder = tmp_path / "runs"
    folder.mkdir()
    stem = _file_stem("x", 0)
    (folder / f"{stem}-00000000.checkpoint.safetensors").write_bytes(
        b"of other parameters"
    )
    (run,) = run_all({"x": method}, train, test_images, folder=folder)
    assert not run.error and [path.name for path in folder.iterdir()] == [
        f"{stem}.safetensors"
    ]


ODD_NAMES = [
    "a b",
    "a-b",
    "a/b",
    "A B",
    "a  b",
    ".a b",
    "..",
    "../../x",
    "x" * 300,
    "猫",
    "\x1b[31m",
    "a\nb",
    "$x^$",
    "{}",
    "%s",
]


def test_every_name_gets_a_file_of_its_own(tmp_path, clip, train, test_images):
    methods = {name: ZeroShot(clip, train.classnames) for name in ODD_NAMES}
    runs = run_all(methods, train, test_images, folder=tmp_path / "runs")
    files = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len({name.casefold() for name in files}) == len(ODD_NAMES) and not any(
        run.error for run in runs
    )
    assert all(
        re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII)
        and name[0] not in ".-"
        and len(name) < 80
        for name in files
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert tabulate(runs, test_images)["method"].tolist() == ODD_NAMES


class Broken(ZeroShot):
    """A method whose answers are no probabilities."""

    def _predict_proba(self, images):
        return np.full((len(images), 10), np.nan, np.float32)


def test_answers_that_are_no_probabilities_are_the_error_of_a_run(
    clip, methods, train, test_images
):
    with pytest.warns(UserWarning, match="not finite"):
        runs = run_all(
            {"broken": Broken(clip, train.classnames), **methods}, train, test_images
        )
    assert "not finite" in runs[0].error and len(tabulate(runs, test_images)) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {0: 1},
        {None: 1},
        {float("nan"): 1},
        {"": 1},
        {"caf\udce9": 1},
        {b"a": 1},
        {("a",): 1},
    ],
)
def test_methods_have_names(clip, train, test_images, wrong):
    with pytest.raises(ValueError, match="the name of a method must be a text"):
        run_all(
            {name: ZeroShot(clip, train.classnames) for name in wrong},
            train,
            test_images,
        )


@pytest.mark.parametrize("wrong", [None, "ZeroShot", 3, ZeroShot, object()])
def test_what_is_no_method_is_refused(train, test_images, wrong):
    with pytest.raises(ValueError, match="x is"):
        run_all({"x": wrong}, train, test_images)


@pytest.mark.parametrize(
    "function",
    [
        tabulate,
        recommend,
        redraw,
        changes,
        plot_accuracies,
        plot_classes,
        plot_cost,
        plot_changes,
    ],
)
@pytest.mark.parametrize(
    "runs",
    [
        [],
        [None],
        [Run("a", None, None, 1.0, error="broke")],
        [Run(None, None, GOOD, 1.0)],
        "abc",
    ],
)
def test_runs_that_are_none_are_refused(test_images, function, runs):
    with pytest.raises(ValueError, match="run"):
        function(runs, test_images)


def test_other_test_images_are_other_runs(tmp_path, methods, train, test_images):
    run_all({"zero-shot": methods["zero-shot"]}, train, test_images, folder=tmp_path)
    with pytest.raises(ValueError, match="test images changed"):
        run_all(
            {"zero-shot": methods["zero-shot"]},
            train,
            test_images.subset(range(5)),
            folder=tmp_path,
        )


def test_seeds_change_the_order_of_the_images_and_seed_0_does_not(
    clip, train, test_images
):
    seen = []

    class Looks(ZeroShot):
        def _fit(self, images, labels):
            super()._fit(images, labels)
            seen.append(
                [np.asarray(images[i][0]).tobytes() for i in range(len(images))]
            )

    run_all(
        {"looks": Looks(clip, train.classnames)}, train, test_images, seeds=(0, 1, 1)
    )
    original = [np.asarray(image).tobytes() for image, _ in train]
    assert (
        seen[0] == original
        and seen[1] != original
        and sorted(seen[1]) == sorted(original)
        and seen[1] == seen[2]
    )


def test_methods_are_left_as_they_were(methods, train, test_images):
    run_all(methods, train, test_images, seeds=(1,))
    assert all(
        method.seed == 0 and not hasattr(method, "classnames_")
        for method in methods.values()
    )


def test_one_failure_spares_the_others_and_only_failures_are_an_error(
    clip, methods, train, test_images, tmp_path
):
    bad = LPCLIP(clip, train.classnames, views=-1)
    with pytest.warns(UserWarning, match="bad with seed 0 failed .ValueError: views"):
        runs = run_all({"bad": bad, **methods}, train, test_images, folder=tmp_path)
    table = tabulate(runs, test_images)
    assert (
        table["method"].tolist() == ["bad", *methods]
        and np.isnan(table.loc[0, "accuracy"])
        and "views" in table.loc[0, "error"]
        and table.loc[1:, "accuracy"].notna().all()
    )
    assert "bad" not in recommend(runs, test_images)
    page = report(runs, train, test_images, tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert "failed: ValueError: views" in page
    with (
        warnings.catch_warnings(record=True),
        pytest.raises(
            ValueError, match="every method failed; the first one: ValueError: views"
        ),
    ):
        run_all({"bad": bad}, train, test_images)


def test_what_is_no_better_than_a_constant_answer_is_said_so(clip, test_images):
    constant = np.eye(10, dtype=np.float32)[
        [int(test_images.labels[0])] * len(test_images)
    ]
    runs = [
        Run(name, ZeroShot(clip, test_images.classnames), constant, 1.0)
        for name in "ab"
    ]
    assert "Giving every image the most frequent class would be right in" in recommend(
        runs,
        ImageSet(
            test_images.images,
            test_images.classnames,
            [test_images.labels[0]] * len(test_images),
        ),
    )
    right = np.eye(10, dtype=np.float32)[test_images.labels]
    assert "most frequent class" not in recommend(
        [Run("a", runs[0].method, right, 1.0), *runs[1:]], test_images
    )


def test_labels_of_the_training_images_are_not_read(methods, train, test_images):
    shuffled = ImageSet(
        train.images,
        train.classnames,
        np.random.default_rng(0).permutation(train.labels),
    )
    columns = ["method", "accuracy", "ece"]
    assert compare(methods, train, test_images)[columns].equals(
        compare(methods, shuffled, test_images)[columns]
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "a seed must be"),
        ({"seeds": (0.5,)}, "a seed must be"),
    ],
)
def test_bad_seeds_are_refused(methods, train, test_images, wrong, message):
    with pytest.raises(ValueError, match=message):
        run_all(methods, train, test_images, **wrong)


def test_bad_tests_are_refused(methods, train, test_images):
    for test, message in [
        (test_images.unlabelled(), "20 of 20 have none"),
        ([test_images[0][0]], "pass an ImageSet"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare(methods, train, test)
    for test in (test_images.subset([]), []):
        with pytest.raises(ValueError, match="at least one seed and one test image"):
            run_all(methods, train, test)
    for none in ({}, [], "FPL", None):
        with pytest.raises(
            ValueError, match="list or dict of methods|at least one method"
        ):
            run_all(none, train, test_images)


def test_unlabelled_images_can_be_asked(methods, train, test_images):
    runs = run_all(methods, train, test_images.unlabelled())
    assert all(run.probabilities.shape == (20, 10) for run in runs)


def test_figures_by_hand(clip):
    test = ImageSet(np.zeros((4, 8, 8), np.uint8), ["a", "b", "c"], [0, 0, 1, 2])
    runs = [
        made_up(clip, "base", [0, 1, 1, 0]),
        made_up(clip, "base", [0, 0, 1, 0], 1),
        made_up(clip, "other", [0, 0, 2, 2], kind=Prototypes),
        made_up(clip, "other", [0, 1, 1, 2], 1, 3.0, Prototypes),
    ]
    table = tabulate(runs, test).set_index("method")
    assert (
        table["accuracy"].tolist() == [0.625, 0.75]
        and table["gain"].tolist() == [0, 0.125]
        and table["seeds"].tolist() == [2, 2]
    )
    np.testing.assert_allclose(table["accuracy_std"], [np.std([0.5, 0.75], ddof=1), 0])
    np.testing.assert_allclose(
        table["mean_class_accuracy"],
        [((0.5 + 1) / 3 + 2 / 3) / 2, (2 / 3 + 2.5 / 3) / 2],
    )
    assert table["seconds"].tolist() == [1, 2]
    np.testing.assert_allclose(
        changes(runs, test).loc["other"], [(0.5 + 0.25) / 2, (0.25 + 0.25) / 2]
    )
    samples = redraw(runs, test, 200)
    assert (
        samples.shape == (200, 2)
        and samples["base"].between(0, 1).all()
        and 0.6 < samples["other"].mean() < 0.9
    )


def test_pictures_state_findings(clip):
    test = ImageSet(np.zeros((4, 8, 8), np.uint8), ["a", "b", "c"], [0, 0, 1, 2])
    runs = [
        made_up(clip, "base", [0, 1, 1, 0]),
        made_up(clip, "other", [0, 0, 1, 0], seconds=2.0, kind=Prototypes),
        made_up(clip, "slow", [0, 0, 0, 0], seconds=9.0, kind=Prototypes),
    ]
    assert (
        plot_accuracies(runs, test).get_title()
        == "other: 75.0 %, 25.0 points ahead of base"
    )
    assert plot_classes(runs, test).get_title() == "Lowest: base is right in 0 % of “c”"
    assert (
        plot_changes(runs, test).get_title()
        == "other breaks least: 0.0 % of the images, and mends 25.0 %"
    )
    assert (
        plot_cost(runs, test).get_title()
        == "base is the quickest, other the most accurate"
    )
    best = made_up(clip, "best", [0, 0, 1, 2], seconds=5.0, kind=Prototypes)
    assert (
        plot_cost([best, *runs], test).get_title()
        == "base is the quickest, best the most accurate"
    )
    assert (
        plot_cost([runs[0], runs[2]], test).get_title()
        == "base is the quickest, and no other is more accurate"
    )


def test_the_names_of_methods_lie_beside_their_rows(clip):
    """With four methods the rows are lower than the names are long."""
    test = ImageSet(np.zeros((4, 8, 8), np.uint8), ["a", "b", "c"], [0, 0, 1, 2])
    names = ["zero-shot", "mixture", "prototypes", "nearest neighbours"]
    axes = plot_classes([made_up(clip, name, [0, 1, 1, 0]) for name in names], test)
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert all(box.width > box.height for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert Bbox.intersection(one, other) is None


def test_the_best_that_is_also_the_quickest_is_named_once_as_the_best(clip):
    test = ImageSet(np.zeros((50, 8, 8), np.uint8), ["a", "b", "c"], [0] * 50)
    answers = np.arange(50) < 10
    best = made_up(clip, "best", answers.astype(int), seconds=1.0)
    other = made_up(clip, "other", (np.arange(50) > 38).astype(int))
    for seconds, first in (
        (2.0, "right, the highest mean. These"),
        (0.5, "right. The"),
    ):
        rival = Run("other", other.method, other.probabilities, seconds)
        said = recommend([best, rival], test)
        name = "best" if seconds > 1 else "other"
        assert said.startswith(f"Use {name}: ") and first in said
        assert ("that of best (80.0 %), but" in said) == (seconds < 1)


def test_names_of_many_methods_do_not_cover_each_other(clip):
    """Twenty points in a cluster, as quick methods of one kind are."""
    test = ImageSet(np.zeros((50, 8, 8), np.uint8), ["a", "b", "c"], [0] * 50)
    rng = np.random.default_rng(0)
    runs = [
        made_up(
            clip,
            f"LongMethod{i}",
            (np.arange(50) < rng.integers(2, 49)).astype(int),
            seconds=float(10 ** rng.uniform(-1, 1)),
        )
        for i in range(20)
    ]
    axes = plot_cost(runs, test)
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    pairs = [
        Bbox.intersection(one, other) for one, other in itertools.combinations(boxes, 2)
    ]
    shared = sum(pair.width * pair.height for pair in pairs if pair)
    assert len(boxes) == 20
    assert shared < 0.01 * sum(box.width * box.height for box in boxes)


def test_only_the_built_in_clip_has_a_ruler(clip):
    """With another one it would call photographs thin wide digits."""
    named = CLIP(clip.model, clip.preprocess, clip.tokenizer, name="another")
    for model, domain in (
        (clip, "digit"),
        (named, "object"),
        (StoredCLIP(named), "object"),
    ):
        (latteclip,) = (
            method
            for method in small_methods(model, ["a", "b"])
            if hasattr(method, "captioner")
        )
        assert latteclip.domain == domain and (latteclip.captioner is None) == (
            domain == "object"
        )


def test_a_kept_run_belongs_to_its_captioner(clip, train, tmp_path):
    short = {"epochs": 1, "batch_size": 64}
    methods = [
        LatteCLIP(clip, train.classnames, captioner=captioner, **short)
        for captioner in (None, AttributeCaptioner())
    ]
    test = digits("test").subset(range(10))
    run_all(methods[:1], train, test, folder=tmp_path)
    with pytest.raises(ValueError, match="captioner"):
        run_all(methods[1:], train, test, folder=tmp_path)


@pytest.mark.parametrize("folder", [None, "runs"])
def test_fitted_methods_are_let_go(clip, train, folder, tmp_path):
    """Each one that trained a tower holds a CLIP of its own."""
    test, where = digits("test").subset(range(10)), folder and tmp_path / folder
    method = FLYP(clip, train.classnames, epochs=1, batch_size=64)
    held = run_all([method], train, test)[0]
    light = run_all([method], train, test, folder=where, fitted=False)[0]
    assert np.array_equal(light.probabilities, held.probabilities)
    assert hasattr(held.method, "history_") and not hasattr(light.method, "history_")
    assert report([light], train, test, tmp_path / "report.html").exists()


def test_a_run_keeps_the_history_of_its_fit(clip, train, test_images, tmp_path):
    """Made now or read from the folder, its method fitted or let go."""
    method = AnchoredMixture(clip, train.classnames)
    where, asked = tmp_path / "runs", ({"mixture": method}, train, test_images)
    (held,) = run_all(*asked)
    others = [
        run_all(*asked, folder=folder, fitted=fitted)[0]
        for folder, fitted in ((None, False), (where, False), (where, True))
    ]
    assert len(held.history) > 1 and held.history == held.method.history_
    for run in others:
        assert run.history == held.history and not hasattr(run.method, "history_")
    page = report(others[1:2], train, test_images, tmp_path / "report.html").read_text()
    assert "how its fit went" in page and 'alt="mixture, training: ' in page


def test_a_kept_run_without_a_history_is_read(
    tmp_path, methods, train, test_images, monkeypatch
):
    """As older files are; the report then does not speak of curves."""
    kept = forged({"probabilities": GOOD}, {"seconds": 1.0})
    monkeypatch.setattr("clipadapt.judge.compare.Checkpoint", kept)
    only = {"LP-CLIP": methods["LP-CLIP"]}
    runs = run_all(only, train, test_images, folder=tmp_path)
    assert [run.history for run in runs] == [[]]
    page = report(runs, train, test_images, tmp_path / "report.html").read_text()
    assert "Open a line for the accuracy of each class" in page
    assert "how its fit went" not in page and ", training: " not in page


def test_a_history_that_no_file_can_hold_fails_no_run(clip, train, test_images):
    class Odd(ZeroShot):
        def _fit(self, images, labels):
            super()._fit(images, labels)
            self.history_ = [object()]

    (run,) = run_all([Odd(clip, train.classnames)], train, test_images)
    assert run.error is None and run.history == []


def test_corrupted_photographs_are_not_held_all_at_once(clip, monkeypatch):
    """Photographs of any shape come in blocks; the figures are those of all at once."""
    rng = np.random.default_rng(0)
    shapes = [(40, 60, 3), (70, 30, 3), (50, 50, 3), (33, 90, 3)] * 3
    photographs = [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes
    ]
    test = ImageSet(photographs, ["one", "two"], [0, 1] * 6)
    runs, sizes = run_all([ZeroShot(clip, test.classnames)], test, test), []
    whole = corruption_accuracies(runs, test, 3)

    def counted(images):
        for block in _blocks(images):
            sizes.append(sum(image.width * image.height for image, _ in block))
            yield block

    monkeypatch.setattr("clipadapt.judge.compare._PIXELS", 5000)
    monkeypatch.setattr("clipadapt.judge.compare._blocks", counted)
    assert corruption_accuracies(runs, test, 3).equals(whole)
    assert len(sizes) > 15 and max(sizes) < 5000 + 3000
