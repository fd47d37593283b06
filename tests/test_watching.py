"""Who watches a fit is told the same by every method, and costs the fit nothing."""

import io
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from clipadapt import (
    CPL,
    FLYP,
    FPL,
    GRIP,
    IFPL,
    LPCLIP,
    OTTER,
    AnchoredMixture,
    CoReg,
    EMDirichlet,
    FeatureSet,
    GaussianEM,
    InMaP,
    LatteCLIP,
    NearestNeighbours,
    Prototypes,
    ReCLIP,
    StatA,
    TransCLIP,
    ZeroShot,
    ZLaP,
    digits,
)
from clipadapt.learning import processes, watching
from clipadapt.learning.pseudolabels import Pseudolabels
from clipadapt.learning.watching import (
    Callback,
    Plan,
    Progress,
    TensorBoard,
    Trackio,
    numbers,
)

SHORT = {"rounds": 2, "epochs": 1, "batch_size": None, "warmup": 0}
TOWERS = {"epochs": 2, "batch_size": 10}
STUDENTS = {"image_size": 8, "flip": False, "options": {"width": 4, "depth": [1, 1]}}
SEVERAL = {"epochs": 2, "warmup_epochs": 1, "delay": 0, "batch_size": 10, "views": 2}
METHODS = {
    ZeroShot: {},
    NearestNeighbours: {},
    OTTER: {},
    ZLaP: {},
    Prototypes: {"iterations": 2},
    AnchoredMixture: {"iterations": 2, "refine": True},
    GaussianEM: {"iterations": 2},
    EMDirichlet: {"iterations": 2, "steps": 5},
    InMaP: {"steps": 101},
    TransCLIP: {"rounds": 1},
    StatA: {"rounds": 1},
    LPCLIP: {"epochs": 2, "views": 1, "flip": False, "templates": "single"},
    FPL: {**SHORT, "k": 2},
    IFPL: {**SHORT, "k": 2},
    GRIP: SHORT,
    CPL: SHORT,
    CoReg: {**STUDENTS, **SEVERAL},
    FLYP: TOWERS,
    LatteCLIP: TOWERS,
    ReCLIP: {**TOWERS, "epochs": 1},
}
TRAINED = {CoReg, FLYP, LatteCLIP, ReCLIP}
STEPS = {  # how many such a fit has, where two are not right
    **dict.fromkeys((ZeroShot, NearestNeighbours, OTTER, ZLaP), 0),
    AnchoredMixture: 4,
    FPL: 1,
}
FORMER = {
    GRIP: "on_round",
    FPL: "on_round",
    CPL: "on_round",
    CoReg: "on_epoch",
    FLYP: "on_epoch",
    LatteCLIP: "on_epoch",
    ReCLIP: "on_epoch",
}
KEPT = [GRIP, CoReg, FLYP]  # rounds; epochs of students, and of a tower
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images():
    return digits("train").subset(range(20))


@pytest.fixture
def few(kind, images):
    """Half of the images, for those that train a tower."""
    return images.subset(range(10 if kind in TRAINED else 20))


@pytest.fixture(scope="module")
def features(clip, images):
    return FeatureSet(clip.encode_image(images), images.classnames, images.labels)


@pytest.fixture(scope="module")
def make(clip, images):
    """A method of a class, short to fit."""

    def make(kind, **more):
        return kind(clip, images.classnames, **{**METHODS[kind], **more})

    return make


def arrays(method):
    """All arrays that a fit left behind, as bytes."""
    kept = {name: getattr(method, name, None) for name in type(method).fitted}
    return {n: each.tobytes() for n, each in kept.items() if hasattr(each, "tobytes")}


class Log(Callback):
    """Writes down what it is told, and returns the number of the step."""

    def __init__(self, images):
        self.images, self.heard = images, []

    def on_fit_begin(self, method, plan):
        self.heard.append("begin")
        self.plan = plan

    def on_step(self, method, record):
        assert record is method.history_[-1]
        self.heard.append("step")
        answers = method.predict_proba(self.images)
        assert np.allclose(answers.sum(1), 1, atol=1e-4)
        return {"seen": len(method.history_)}

    def on_fit_end(self, method):
        assert len(method.predict(self.images)) == len(self.images)
        self.heard.append("end")

    def on_fit_error(self, method, error):
        self.heard.append(type(error).__name__)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_tells_the_same(kind, make, few):
    log, steps = Log(few.subset(range(3))), STEPS.get(kind, 2)
    method = make(kind).fit(few, callbacks=[log])
    assert log.heard == ["begin", *["step"] * steps, "end"]
    assert log.plan == Plan(kind.step_unit, log.plan.steps, 0, len(few))
    assert steps <= log.plan.steps and bool(kind.step_unit) == bool(steps)
    history = getattr(method, "history_", [])
    assert [record.pop("seen") for record in history] == [*range(1, steps + 1)]
    alone = make(kind).fit(few)
    assert (
        arrays(alone) == arrays(method)
        and alone.get_params() == make(kind).get_params()
    )
    assert getattr(alone, "history_", []) == history


@pytest.mark.parametrize("kind", FORMER, ids=lambda kind: kind.__name__)
def test_the_former_name_works_with_a_warning(kind, make, few):
    both = FORMER[kind] == "on_round"
    seen = []

    def look(method, *pseudolabels):
        seen.extend(pseudolabels)
        return {"seen": len(method.history_)}

    before, now = make(kind), make(kind)
    with pytest.warns(FutureWarning, match=f"{FORMER[kind]}= is now callbacks="):
        before.fit(few, **{FORMER[kind]: look})
    assert len(seen) == both * len(before.history_)
    assert all(isinstance(each, Pseudolabels) for each in seen)
    steps = range(1, len(before.history_) + 1)
    assert [record["seen"] for record in before.history_] == [*steps]
    if kind in (GRIP, CoReg):
        now.fit(few, callbacks=lambda method: {"seen": len(method.history_)})
        assert arrays(before) == arrays(now) and before.history_ == now.history_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning):
            before.fit(few, **{FORMER[kind]: None})
    with pytest.raises(TypeError, match="on_"):
        other = {"on_round", "on_epoch"} - {FORMER[kind]}
        now.fit(few, **{other.pop(): look})


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_a_callback_that_raises_loses_no_step(kind, make, few, tmp_path):
    error = KeyboardInterrupt if kind in (GRIP, FLYP) else ZeroDivisionError

    def fail(method):
        raise error("a mistake")

    log = Log(few.subset(range(3)))
    method = make(kind, checkpoint=str(tmp_path / "run.safetensors"))
    with pytest.raises(error, match="a mistake"):
        method.fit(few, callbacks=[log, fail])
    assert log.heard == ["begin", "step", error.__name__]
    assert not hasattr(method, "classnames_") and "_watching" not in vars(method)
    log.heard.clear()
    method.fit(few, callbacks=log)
    assert log.heard == ["begin", "step", "end"]  # the second one alone
    assert log.plan.done == 1
    whole = make(kind).fit(few, callbacks=Log(few.subset(range(3))))
    assert arrays(method) == arrays(whole) and method.history_ == whole.history_


def test_an_error_after_the_fit_leaves_it_fitted(make, features):
    class Late(Callback):
        def on_fit_end(self, method):
            raise OSError("the disk is full")

    method = make(GaussianEM)
    with pytest.raises(OSError, match="the disk is full"):
        method.fit(features, callbacks=Late())
    assert len(method.predict(features)) == len(features)


def test_an_error_about_an_error_does_not_hide_it(make, features):
    class Broken(Callback):
        def on_step(self, method, record):
            raise ZeroDivisionError

        def on_fit_error(self, method, error):
            raise OSError("the disk is full")

    with (
        pytest.warns(UserWarning, match="the callback Broken failed, too: OSError"),
        pytest.raises(ZeroDivisionError),
    ):
        make(GaussianEM).fit(features, callbacks=Broken())


@pytest.mark.parametrize(
    "answer", [{"moved": 1}, 3, "text", {"a": object()}, {"a": {1, 2}}, [("a", 1)], 0]
)
def test_what_a_callback_returns_has_to_be_plain_and_new(answer, make, features):
    def look(method):
        return answer

    with pytest.raises(ValueError, match="the callback look|what the callback look"):
        make(GaussianEM).fit(features, callbacks=look)


@pytest.mark.parametrize("given", [3, "look", [None], Log, [Callback], {"a": 1}])
def test_what_is_no_callback_is_refused(given, make, features):
    with pytest.raises(ValueError, match="callbacks must be functions"):
        make(ZeroShot).fit(features, callbacks=given)


@pytest.mark.parametrize("verbose", [-1, 1.5, "1", None])
def test_what_is_no_verbosity_is_refused(verbose, make, features):
    with pytest.raises(ValueError, match="verbose must be 0"):
        make(ZeroShot).fit(features, verbose=verbose)


def test_functions_get_what_they_take(make, features):
    seen = []
    one, two = (lambda *, m=None: m), (lambda method, pseudolabels: seen.append("2"))
    assert watching._takes_two(two) and not watching._takes_two(seen.append)
    assert watching._takes_two(one)  # it takes none: the error says so
    make(GRIP).fit(features, None, two)  # by place, as before
    make(GRIP).fit(features, callbacks=(seen.append, two))
    assert [type(each).__name__ for each in seen] == ["str"] * 2 + ["GRIP", "str"] * 2
    make(GaussianEM).fit(features, callbacks=lambda method, chosen: seen.append(chosen))
    assert seen[-1] is None


def test_one_line_a_step_and_nothing_at_0(make, features, capsys):
    make(GRIP).fit(features, verbose=0)
    make(ZeroShot).fit(features)
    assert capsys.readouterr() == ("", "")
    make(GRIP).fit(features, verbose=1)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    number, time = r"-?\d[\d.e+-]*", r"\d+\.\d\d s"
    assert len(lines) == 3 and not err
    first = rf"\[GRIP\] round 1 of 2: loss {number}, {time}, about {time} left"
    assert re.fullmatch(first, lines[0])
    assert re.fullmatch(rf"\[GRIP\] round 2 of 2: loss {number}, {time}", lines[1])
    assert re.fullmatch(rf"\[GRIP\] fitted in {time}", lines[2])
    make(GaussianEM).fit(features, callbacks=lambda method: {"mine": 1}, verbose=2)
    begin, step, *_ = capsys.readouterr().out.splitlines()
    assert begin == "[GaussianEM] 20 images, at most 2 iterations"
    assert re.search("1 of at most 2: moved .*, log_likelihood .*, mine 1,", step)
    make(ZeroShot).fit(features, verbose=True)
    assert re.fullmatch(rf"\[ZeroShot\] fitted in {time}\n", capsys.readouterr().out)


def test_the_epochs_of_a_long_round_are_told(make, features, capsys, monkeypatch):
    def told(kind, verbose, **more):
        make(kind, **more).fit(features, verbose=verbose)
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) < 88 for line in lines)
        return lines

    def epochs(kind, verbose, **more):
        lines = "\n".join(told(kind, verbose, **more))
        return [*map(int, re.findall(r"epoch (\d+) of \d+: loss \S+, \S+ s", lines))]

    assert epochs(FPL, 1, epochs=20) == [*range(2, 20, 2)]
    assert epochs(FPL, 1, epochs=3) == [1, 2]
    assert epochs(FPL, 2, epochs=3) == [1, 2, 3]
    assert epochs(FPL, 0, epochs=3) == epochs(CPL, 1, epochs=3) == []
    assert len(told(FPL, 1, epochs=1)) == 2  # how its round ended, and the fit
    monkeypatch.setattr(watching, "SILENCE", 0)
    assert epochs(GRIP, 1, epochs=4) == [1, 2, 3] * 2


def test_a_fit_that_is_stopped_says_after_what(make, features):
    def stop(method):
        raise KeyboardInterrupt

    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        make(GRIP).fit(features, callbacks=[Progress(file=file), stop])
    assert "[GRIP] stopped by KeyboardInterrupt, after 1 round," in file.getvalue()


def test_who_watches_is_no_part_of_the_method(make, features, clip, tmp_path):
    """In the middle of a fit it is pickled, cloned and saved, and nobody is with it."""
    copies = []

    def look(method):
        if not copies:
            copies.append(pickle.loads(pickle.dumps(Small(method))))
            assert "callbacks" not in clone(method).get_params()
            method.save(tmp_path)

    class Small:
        def __init__(self, method):
            self.state = {
                name: value
                for name, value in method.__getstate__().items()
                if name not in ("clip",)
            }

        def __reduce__(self):
            return dict, (self.state,)

    method = make(GaussianEM).fit(features, callbacks=look)
    assert not {"_watching", "callbacks"} & set(copies[0])
    assert "iterations" in copies[0] and not hasattr(method.__class__, "callbacks")
    loaded = GaussianEM.load(tmp_path, clip)
    assert len(loaded.history_) == 1 and set(loaded.get_params()) == set(
        make(GaussianEM).get_params()
    )


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_scikit_learn_hands_callbacks_on(make, features):
    seen = []
    X, y = features.features, features.labels
    params = {"callbacks": [lambda method: seen.append(method.iterations)]}
    cross_val_score(make(GaussianEM), X, y, cv=2, params=params)
    assert seen == [2] * 4
    search = GridSearchCV(make(GaussianEM), {"iterations": [1, 2]}, cv=2, refit=False)
    search.fit(X, y, callbacks=[lambda method: seen.append(method.iterations)])
    assert sorted(seen[4:]) == [1] * 2 + [2] * 4


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_calls_them_by_itself(rank, make, features):
    token = processes._here.set(processes.Processes(rank, 2))
    counts = []
    try:
        make(GaussianEM).fit(
            features, callbacks=lambda method: counts.append(processes.current().count)
        )
        assert processes.current().count == 2
    finally:
        processes._here.reset(token)
    assert counts == [1, 1] * (rank == 0)


def test_who_only_reads_records_costs_no_answers(make, features, monkeypatch):
    shown = []
    monkeypatch.setattr(
        GaussianEM, "_keep_answers", lambda self, *_: shown.append(self.step_unit)
    )
    make(GaussianEM).fit(features, callbacks=Progress(file=io.StringIO()))
    assert len(shown) == 1
    make(GaussianEM).fit(features, callbacks=Callback())
    assert len(shown) == 1 + 3


def test_an_annotator_is_not_watched(clip, make, images):
    log = Log(images.subset(range(3)))
    teacher = make(ZeroShot)
    make(GRIP, annotator=teacher).fit(images, callbacks=log)
    assert log.heard == ["begin", "step", "step", "end"]


def test_numbers_of_a_record_by_name():
    record = {"loss": np.float32(0.5), "weights": {"a": 1, "b": [2, 3]}, "none": None}
    found = dict(numbers({**record, "flag": True, "text": "1", "many": [0] * 9}))
    names = ["loss", "weights a", "weights b 0", "weights b 1", "none"]
    assert list(found) == names and np.isnan(found["none"])


def curves(folder):
    """What the event files of a folder hold: values by step, by name."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    found = accumulator.EventAccumulator(str(folder)).Reload()
    names = found.Tags()["scalars"]
    return {n: {p.step: p.value for p in found.Scalars(n)} for n in names}


def test_tensorboard_has_what_the_history_has(make, features, tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    first = make(GRIP).fit(features, callbacks=[lambda m: {"a": {"b": 2.0}}, board])
    make(ZeroShot).fit(features, callbacks=board)
    make(GRIP, seed=1).fit(features, callbacks=board)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["GRIP", "GRIP-2", "ZeroShot"]
    found = curves(tmp_path / "GRIP")
    assert set(found) == {"k", "pseudolabels", "loss", "a/b"}
    for name in ("k", "pseudolabels", "loss"):
        values = [found[name][step] for step in (1, 2)]
        assert np.allclose(values, [record[name] for record in first.history_])
    assert not curves(tmp_path / "ZeroShot") and not board._writers


def test_a_fit_that_goes_on_continues_its_curve(make, features, tmp_path):
    pytest.importorskip("tensorboard")
    board, logs = TensorBoard(tmp_path / "logs"), tmp_path / "logs"

    def stop(method):
        raise ZeroDivisionError

    method = make(GRIP, checkpoint=str(tmp_path / "run.safetensors"))
    with pytest.raises(ZeroDivisionError):
        method.fit(features, callbacks=[board, stop])
    assert list(curves(logs / "GRIP")["loss"]) == [1] and not board._writers
    method.fit(features, callbacks=TensorBoard(logs))
    assert [path.name for path in logs.iterdir()] == ["GRIP"]
    assert list(curves(logs / "GRIP")["loss"]) == [1, 2]


@pytest.mark.parametrize(
    "make_one, module",
    [
        (lambda: TensorBoard("logs"), "torch.utils.tensorboard"),
        (lambda: Trackio("project"), "trackio"),
    ],
)
def test_without_the_extra_it_is_named(make_one, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'clipadapt\[watch\]'"):
        make_one()
