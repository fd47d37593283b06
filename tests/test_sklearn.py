"""scikit-learn's own tools on every kind of input, with the same figures for all kinds;
labels in every form; methods that travel; and scikit-learn's own checks."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from odd_values import escapes
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import DataConversionWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer

from clipadapt import (
    LPCLIP,
    OTTER,
    AnchoredMixture,
    CoReg,
    EMDirichlet,
    FeatureSet,
    FeatureStore,
    GaussianEM,
    ImageSet,
    InMaP,
    NearestNeighbours,
    Prototypes,
    StatA,
    StoredCLIP,
    TransCLIP,
    ZeroShot,
    ZLaP,
    digits,
)
from clipadapt.learning.testing import BY_TEXT, NOT_EXPECTED, check_sklearn
from clipadapt.methods import lpclip

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:no image was assigned"),
]


@pytest.fixture(scope="module")
def images():
    """Two images of each digit, mixed."""
    train = digits("train")
    some = [np.flatnonzero(train.labels == c)[:2] for c in range(10)]
    return train[np.random.default_rng(0).permutation(np.concatenate(some))]


@pytest.fixture(scope="module")
def kinds(clip, images, tmp_path_factory):
    """The same images in every form that a method takes."""
    folder = tmp_path_factory.mktemp("images")
    pictures = [picture for picture, _ in images]
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, picture in zip(paths, pictures):
        picture.save(path)
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    features = FeatureSet(clip.encode_image(images), images.classnames, images.labels)
    rows, backwards = features.features, range(len(images))[::-1]
    return {
        "pictures": pictures,
        "paths": paths,
        "column of paths": pd.Series([str(path) for path in paths], index=backwards),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
        "ImageSet": images,
        "FeatureSet": features,
        "table": rows,
        "frame": pd.DataFrame(rows.astype(float), index=backwards),
    }


KINDS = (
    "pictures",
    "paths",
    "column of paths",
    "array",
    "tensor",
    "ImageSet",
    "FeatureSet",
    "table",
    "frame",
)


def grid(model, X, y):
    search = GridSearchCV(model, {"momentum": [0.1, 0.9], "iterations": [2]}, cv=2)
    answers = search.fit(X, y).best_estimator_.predict_proba(X)
    return np.concatenate([answers.ravel(), search.cv_results_["mean_test_score"]])


def several(model):
    return [("zero-shot", ZeroShot(model.clip, model.classnames)), ("ours", model)]


def confusion(model, X, y):
    import matplotlib.pyplot as plt

    fitted = model.fit(X, y)
    shown = ConfusionMatrixDisplay.from_estimator(
        fitted, X, y, display_labels=fitted.classnames_
    )
    plt.close(shown.figure_)
    return shown.confusion_matrix


def split(model, X, y):
    first, second, labels, others = train_test_split(
        X, y, test_size=0.5, stratify=y, random_state=0
    )
    assert len(first) == len(second) == 10
    return [model.fit(first, labels).score(second, others)]


TOOLS = {
    "cross_val_score": lambda model, X, y: cross_val_score(model, X, y, cv=2),
    "scoring": lambda model, X, y: cross_val_score(
        model, X, y, cv=2, scoring="balanced_accuracy"
    ),
    "cross_val_predict": lambda model, X, y: cross_val_predict(
        model, X, y, cv=2, method="predict_proba"
    ),
    "GridSearchCV": grid,
    "calibration": lambda model, X, y: (
        CalibratedClassifierCV(model, cv=2).fit(X, y).predict_proba(X)
    ),
    "frozen": lambda model, X, y: (
        CalibratedClassifierCV(FrozenEstimator(model.fit(X)), cv=2)
        .fit(X, y)
        .predict_proba(X)
    ),
    "voting": lambda model, X, y: (
        VotingClassifier(several(model), voting="soft").fit(X, y).predict_proba(X)
    ),
    "stacking": lambda model, X, y: (
        StackingClassifier(several(model), cv=2).fit(X, y).predict_proba(X)
    ),
    "confusion": confusion,
    "pipeline": lambda model, X, y: cross_val_score(
        make_pipeline(FunctionTransformer(), model), X, y, cv=2
    ),
    "splitting": split,
    "pickle": lambda model, X, y: pickle.loads(
        pickle.dumps(model.fit(X, y))
    ).predict_proba(X),
}


@pytest.fixture(scope="module")
def expected(clip, images, kinds):
    """What each tool gives on features, computed when first asked for."""
    made = {}

    def get(tool):
        if tool not in made:
            model = Prototypes(clip, images.classnames)
            made[tool] = TOOLS[tool](model, kinds["FeatureSet"], images.labels)
        return made[tool]

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_gives_the_same_on_every_kind(tool, kind, clip, images, kinds, expected):
    model = Prototypes(clip, images.classnames)
    found = TOOLS[tool](model, kinds[kind], images.labels)
    assert np.allclose(found, expected(tool), atol=1e-3)
    assert len(np.unique(found)) > 1 or 0 < np.max(found) < 1, "it is no constant"


def test_every_kind_is_tried(kinds):
    assert tuple(kinds) == KINDS


def test_without_y_folds_are_scored_by_the_labels_of_the_set(clip, images, kinds):
    folds = list(StratifiedKFold(2).split(images, images.labels))
    for given in (images, kinds["FeatureSet"]):
        model = Prototypes(clip, images.classnames)
        scores = cross_val_score(model, given, cv=folds)
        by_hand = [
            Prototypes(clip, images.classnames).fit(given[fit]).score(given[held_out])
            for fit, held_out in folds
        ]
        assert np.allclose(scores, by_hand) and 0.2 < scores.mean() < 1


def test_steps_on_features_hand_on_tables(clip, images, kinds):
    labels, features = images.labels, kinds["FeatureSet"]
    steps = make_pipeline(Normalizer(), Prototypes(clip, images.classnames))
    assert steps.fit(features, labels).n_features_in_ == 64
    plain = Prototypes(clip, images.classnames).fit(features, labels)
    assert np.allclose(steps.predict_proba(features), plain.predict_proba(features))
    probe = LogisticRegression(max_iter=1000).fit(features, features.labels)
    assert probe.score(features, labels) > 0.8 and probe.n_features_in_ == 64
    probe = make_pipeline(FunctionTransformer(clip.encode_image), probe)
    assert probe.fit(images, labels).score(images, labels) > 0.8


LABELS = {
    "list of names": lambda names, numbers: names.tolist(),
    "array of names": lambda names, numbers: names,
    "objects": lambda names, numbers: names.astype(object),
    "column": lambda names, numbers: pd.Series(names, index=numbers),
    "text": lambda names, numbers: pd.Series(names, dtype="string"),
    "categorical": lambda names, numbers: pd.Series(pd.Categorical(names)),
    "list": lambda names, numbers: numbers.tolist(),
    "small": lambda names, numbers: numbers.astype(np.uint8),
    "numbers": lambda names, numbers: pd.Series(numbers, dtype="Int64"),
    "tensor": lambda names, numbers: torch.from_numpy(numbers),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_in_every_form(form, clip, images, kinds):
    X, names = kinds["table"], np.array(images.classnames)[images.labels]
    model, y = Prototypes(clip, images.classnames), LABELS[form](names, images.labels)
    assert np.array_equal(model.true_labels(X, y), images.labels)
    wanted = model.fit(X, images.labels).predict_proba(X)
    assert np.array_equal(model.fit(X, y).predict_proba(X), wanted)
    assert model.score(X, y) == (wanted.argmax(1) == images.labels).mean()
    assert ImageSet(images.images, images.classnames, y).labels.tolist() == (
        images.labels.tolist()
    )
    if form != "tensor":  # scikit-learn counts the classes in it before it splits
        folds = list(StratifiedKFold(2).split(X, images.labels))
        scores = cross_val_score(model, X, y, cv=folds)
        numbered = cross_val_score(model, X, images.labels, cv=folds)
        assert np.array_equal(scores, numbered)
        search = GridSearchCV(model, {"momentum": [0.5]}, cv=folds).fit(X, y)
        assert search.best_score_ == scores.mean()


def test_labels_in_a_column_and_with_gaps(clip, images, kinds):
    X, names = kinds["table"], np.array(images.classnames, object)[images.labels]
    model = Prototypes(clip, images.classnames)
    wanted = model.fit(X, images.labels).predict_proba(X)
    for y in (names[:, None], images.labels[:, None], pd.DataFrame({"y": names})):
        with pytest.warns(DataConversionWarning, match="expected: labels of shape"):
            assert np.array_equal(model.fit(X, y).predict_proba(X), wanted)
    names[::2], numbers = None, np.where(np.arange(20) % 2, images.labels, -1)
    for y in (names, pd.Series(names), pd.Series(names).astype("category")):
        assert np.array_equal(model.true_labels(X, y), numbers)
    for wrong, message in (
        (["ten"] * 20, "that there are not: ten; there are zero, one"),
        (["one"] * 19, "20 images need labels of shape"),
        (np.full((20, 2), "one"), "20 images need labels of shape"),
        ([None] * 20, "must be integers"),
        (np.linspace(0, 1, 20), "must be integers"),
        (images.labels.astype(float), "must be integers"),
        (images.labels == 1, "must be integers"),
    ):
        for call in (model.fit, model.score, model.true_labels):
            with pytest.raises(ValueError, match=message):
                call(X, wrong)


def test_names_count_in_any_order_and_numbers_do_not(clip, images):
    names = np.array(images.classnames)[images.labels]
    backwards = ZeroShot(clip, images.classnames[::-1]).fit(images)
    assert backwards.score(images, names) == backwards.score(images) > 0.4
    with pytest.raises(ValueError, match="in another order"):
        backwards.score(images, images.labels)


def test_a_classifier_says_what_it_is(clip, images, kinds):
    model = ZeroShot(clip, images.classnames)
    for name in ("classes_", "n_features_in_"):
        assert not hasattr(model, name)
    model.fit(images)
    assert model.classes_.dtype == np.int64 and model.classes_.tolist() == [*range(10)]
    assert model.classnames_ == images.classnames
    assert not hasattr(model, "n_features_in_")
    assert model.fit(kinds["table"]).n_features_in_ == 64
    weighted = accuracy_score(
        images.labels, model.predict(images), sample_weight=images.labels
    )
    found = model.score(images, images.labels, sample_weight=images.labels)
    assert found == pytest.approx(weighted) and found != model.score(images)
    assert make_scorer(accuracy_score)(model, images, images.labels) > 0.4


def test_parameters_of_a_search_are_saved(clip, images, kinds, tmp_path):
    features, y = kinds["FeatureSet"], images.labels
    choices = {
        "momentum": np.linspace(0.1, 0.5, 2, dtype=np.float32),
        "per_class": np.array([1, 2]),
        "templates": np.array(["single", "a drawing of a {}."]),
    }
    found = GridSearchCV(Prototypes(clip, images.classnames), choices, cv=2)
    best = found.fit(features, y).best_estimator_
    assert isinstance(best.momentum, np.float32) and isinstance(best.templates, str)
    best.set_params(per_class=np.int64(2)).fit(features, y).save(tmp_path / "best")
    again = Prototypes.load(tmp_path / "best", clip)
    assert type(again.momentum) is float and type(again.per_class) is int
    assert type(again.templates) is str
    assert np.allclose(again.predict_proba(features), best.predict_proba(features))


def test_methods_travel_with_their_clip(clip, images, kinds, tmp_path):
    stored = StoredCLIP(clip, FeatureStore(tmp_path / "store"))
    wanted = stored.encode_image(images)
    again = pickle.loads(pickle.dumps(stored))
    assert torch.equal(again.encode_image(images), wanted)
    assert again.fingerprint == clip.fingerprint
    for method in (ZeroShot, NearestNeighbours):
        model = method(stored, images.classnames).fit(images)
        joblib.dump(model, tmp_path / "model.joblib")
        loaded = joblib.load(tmp_path / "model.joblib")
        answers = loaded.predict_proba(images)
        assert np.allclose(answers, model.predict_proba(images), atol=1e-6)


def test_folds_in_other_processes_and_threads(clip, images, tmp_path):
    stored = StoredCLIP(clip, FeatureStore(tmp_path / "store"))
    model = Prototypes(stored, images.classnames)
    given = model, images, images.labels
    alone = cross_val_score(*given, cv=2)
    with get_reusable_executor(max_workers=1) as process:  # what n_jobs starts
        there = process.submit(cross_val_score, *given, cv=2).result()
    with joblib.parallel_config("threading", n_jobs=2):
        beside = cross_val_score(*given, cv=2)
    assert np.allclose(alone, there) and np.allclose(alone, beside)


CHECKED = {
    ZeroShot: {},
    Prototypes: {},
    NearestNeighbours: {},
    AnchoredMixture: {},
    TransCLIP: {},
    StatA: {},
    ZLaP: {},
    GaussianEM: {},
    EMDirichlet: {"iterations": 2, "steps": 20},
    OTTER: {},
    InMaP: {"steps": 50},
    LPCLIP: {**lpclip.SMALL, "epochs": 2},
    CoReg: {"student": "head", "epochs": 2, "warmup_epochs": 1, "views": 1},
}


@pytest.mark.parametrize("method", CHECKED, ids=lambda method: method.__name__)
def test_scikit_learn_checks_methods_on_features(method):
    status = check_sklearn(method, **CHECKED[method]).groupby("status").check
    assert set(status.get_group("xfail")) == set(NOT_EXPECTED)
    assert status.count()["passed"] >= 40
    assert status.count().get("skipped", 0) <= 2  # array API, where SciPy has none


def test_what_is_not_expected_has_a_reason():
    assert all(len(reason.split()) > 3 for reason in NOT_EXPECTED.values())
    assert set(BY_TEXT) < {method.__name__ for method in CHECKED}


class OneAnswer(Prototypes):
    """A fault that scikit-learn's checks find: one answer, however many rows."""

    def predict(self, X):
        return super().predict(X)[:1]


def test_scikit_learn_finds_faults():
    with pytest.raises((AssertionError, ValueError), match="."):
        check_sklearn(OneAnswer)


class Reader(ZeroShot):
    """Holds to the text of the class names, which nobody has told scikit-learn."""


def test_an_accuracy_that_is_too_low_is_explained():
    with pytest.raises(AssertionError, match="add it to BY_TEXT"):
        check_sklearn(Reader)


def test_odd_values_are_refused_in_a_sentence(clip, images, kinds):
    model = ZeroShot(clip, images.classnames).fit(images)
    given = kinds["table"][:12], images.labels[:12], None
    assert escapes(model.fit, given[:2], [0, 1]) == []
    assert escapes(model.score, given, [0, 1]) == []
    assert escapes(lambda X: model.predict(X), given[:1], [0]) == []
    weigh = lambda weights: model.score(*given[:2], weights)
    assert escapes(weigh, given[2:], [0]) == []
