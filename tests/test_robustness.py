"""Robustness: corruptions of every size, found again in the store; evaluate for every
method; sets that are not outside; folders of ImageNet."""

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import spearmanr
from sklearn.exceptions import NotFittedError

from clipadapt import (
    LPCLIP,
    FeatureStore,
    ImageSet,
    Prototypes,
    StoredCLIP,
    ZeroShot,
    digits,
)
from clipadapt.app.demo import small_methods
from clipadapt.clip.features import hash_each
from clipadapt.images import views
from clipadapt.images.corruptions import (
    CORRUPTIONS,
    PARAMETERS,
    SEVERITIES,
    Corrupted,
    corrupt,
    corruption_parameters,
)
from clipadapt.judge.robustness import (
    COLUMNS,
    Restricted,
    evaluate,
    imagenet_names,
    inverted,
    letters,
    mean_corruption_accuracy,
    neighbour_purity,
    noise,
    outside_sets,
    plot_latent,
    plot_severity,
    read_imagenet,
    shapes,
    summarise,
    worst_corruption,
)
from clipadapt.learning import metrics
from clipadapt.methods import lpclip

COUNT = 24
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def train():
    return digits("train").subset(range(40))


@pytest.fixture(scope="module")
def test():
    return digits("test").subset(range(COUNT))


@pytest.fixture(scope="module")
def zero_shot(clip, train):
    return ZeroShot(clip, train.classnames).fit(train)


@pytest.fixture(scope="module")
def table(zero_shot, test):
    return evaluate(
        zero_shot,
        test,
        corruptions=["snow", "fog", "contrast"],
        severities=(1, 5),
        outside={"letters": letters(30), "noise": noise(20)},
    )


def pictures(size, count=6):
    """Smooth random colours, as photographs are: neighbours resemble each other."""
    rng = np.random.default_rng(size)
    small = [
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)) for _ in range(count)
    ]
    return [image.resize((size, size), Image.Resampling.BICUBIC) for image in small]


def moved(images, name, severity):
    return np.mean(
        [
            np.abs(
                np.asarray(
                    corrupt(image, name, severity, np.random.default_rng(i)), float
                )
                - np.asarray(image, float)
            ).mean()
            for i, image in enumerate(images)
        ]
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_grows(name):
    """More severe means further from the clean image; the published elastic transform
    alone moves less and ripples more."""
    strict = {
        "gaussian noise",
        "shot noise",
        "impulse noise",
        "defocus blur",
        "zoom blur",
        "snow",
        "brightness",
        "contrast",
        "jpeg compression",
    }
    for images in (
        [image for image, _ in digits("test").subset(range(12))],
        pictures(32),
        pictures(224, 3),
    ):
        distances = [moved(images, name, severity) for severity in SEVERITIES]
        assert min(distances) > 0
        if name != "elastic transform":
            assert (
                distances[4] > distances[0]
                and spearmanr(SEVERITIES, distances).statistic > 0
            )
        if name in strict:
            assert (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (33, 20), (50, 131)])
def test_any_size_will_do(name, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for severity in (1, 5):
        spoilt = corrupt(
            Image.fromarray(pixels), name, severity, np.random.default_rng(1)
        )
        assert spoilt.mode == "RGB" and spoilt.size == shape[::-1]
        again = corrupt(pixels, name, severity, np.random.default_rng(1))
        assert np.array_equal(np.asarray(spoilt), np.asarray(again))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_and_constant_images(name):
    grey = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    )
    colour = name in ("gaussian noise", "shot noise", "impulse noise", "frost")
    spread = np.ptp(
        np.asarray(corrupt(grey, name, 3, np.random.default_rng(0)), int), axis=2
    ).max()
    assert spread > 5 if colour else spread <= 2, (
        "noise and ice have colours, nothing else gives any to a grey image"
    )
    for level in (0, 100, 255):
        spoilt = np.asarray(
            corrupt(
                Image.new("RGB", (32, 32), (level,) * 3),
                name,
                5,
                np.random.default_rng(0),
            ),
            float,
        )
        if name in (
            "defocus blur",
            "glass blur",
            "motion blur",
            "zoom blur",
            "contrast",
            "elastic transform",
            "pixelate",
            "jpeg compression",
        ):
            assert np.abs(spoilt - level).max() <= 2, (
                "what only moves or averages pixels leaves a constant image alone"
            )


def test_parameters_are_complete_and_scaled():
    assert (
        set(PARAMETERS) == set(CORRUPTIONS)
        and len(CORRUPTIONS) == 15
        and set(CORRUPTIONS.values()) == {"noise", "blur", "weather", "digital"}
    )
    assert all(len(one) == len(other) == 5 for _, one, other in PARAMETERS.values())
    for name in CORRUPTIONS:
        own, double = (
            corruption_parameters(name, 2, 32),
            corruption_parameters(name, 2, 64),
        )
        for key, value in own.items():
            assert double[key] == (
                2 * value
                if key in ("radius", "sigma", "edge", "reach", "flake")
                else value
            )
    assert corruption_parameters("fog", 1, 84) == {
        "amount": 0.2,
        "decay": 3,
    } and corruption_parameters("fog", 1, 85) == {"amount": 1.5, "decay": 2}


@pytest.mark.parametrize(
    "name, hint",
    [
        ("gaussian_noise", "'gaussian noise'"),
        ("Jpeg", "'jpeg compression'|there are gaussian"),
        ("xyzzy", "there are gaussian"),
        (3, "there are gaussian"),
        (["fog"], "did you mean 'fog'"),
    ],
)
def test_unknown_corruptions(name, hint, test):
    with pytest.raises(ValueError, match=hint):
        Corrupted(test, name, 1)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, True, "3", None])
def test_unknown_severities(severity, test):
    with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5"):
        Corrupted(test, "fog", severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pixels_depend_on_seed_and_position_only(name, test):
    spoilt = Corrupted(test, name, 4, seed=3)
    backwards = {i: np.asarray(spoilt[i][0]) for i in reversed(range(COUNT))}
    whole = digits("test")
    forwards = {
        i: np.asarray(Corrupted(whole, name, 4, seed=3)[i][0]) for i in range(COUNT)
    }
    assert all(np.array_equal(forwards[i], backwards[i]) for i in range(COUNT))
    assert np.array_equal(np.asarray(spoilt.subset([7])[0][0]), forwards[7])
    assert (
        np.array_equal(spoilt.labels, test.labels)
        and spoilt.classnames == test.classnames
        and len(spoilt.unlabelled()) == COUNT
    )
    random = name not in (
        "defocus blur",
        "zoom blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg compression",
    )
    other = np.asarray(Corrupted(test, name, 4, seed=4)[7][0])
    assert np.array_equal(other, forwards[7]) != random
    assert name in repr(spoilt) and "severity 4" in repr(spoilt)


def test_corrupted_images_are_found_in_the_store(
    clip, test, train, tmp_path, monkeypatch
):
    stored = StoredCLIP(clip, FeatureStore(tmp_path))
    methods = [
        ZeroShot(stored, train.classnames).fit(train),
        Prototypes(stored, train.classnames).fit(train),
    ]
    first = evaluate(
        methods[0],
        test,
        corruptions=["snow", "fog"],
        severities=(1, 5),
        outside={"inverted": inverted(test)},
    )

    def refuse(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr(type(clip), "encode_batches", refuse)
    again = evaluate(
        methods[0],
        test,
        corruptions=["snow", "fog"],
        severities=(1, 5),
        outside={"inverted": inverted(test)},
    )
    pd.testing.assert_frame_equal(first, again)
    other = evaluate(
        methods[1],
        test,
        corruptions=["snow", "fog"],
        severities=(1, 5),
        outside={"inverted": inverted(test)},
    )
    assert len(other) == len(first) and not np.allclose(other.value, first.value)
    with pytest.raises(AssertionError, match="encoded again"):
        evaluate(methods[0], test, corruptions=["snow"], severities=(1,), seed=1)


def test_names_of_transforms_tell_corruptions_apart(test):
    few = test.subset([0])
    digests = {
        hash_each(Corrupted(few, name, severity, seed))[0]
        for name in CORRUPTIONS
        for severity in (1, 2)
        for seed in (0, 1)
    }
    assert len(digests) == 15 * 2 * 2


def test_every_method_is_evaluated(clip, train, test):
    outside = {"letters": letters(15), "noise": noise(10)}
    for method in small_methods(clip, train.classnames):
        cheap = {
            name: value
            for name, value in {
                "epochs": 1,
                "iterations": 1,
                "views": 1,
                "annotations": 1,
            }.items()
            if name in method.get_params()
        }
        method.set_params(**cheap).fit(train)
        found = evaluate(
            method, test, corruptions=["fog"], severities=(5,), outside=outside
        )
        assert (
            list(found.columns) == COLUMNS
            and found.value.notna().all()
            and (found.method == type(method).__name__).all()
        )
        closed = found[found.kind != "outside"]
        assert (
            closed.groupby(["kind", "set", "severity"])
            .metric.apply(set)
            .map(
                lambda seen: seen == {"accuracy", "ece", "adaptive_ece", "nll", "brier"}
            )
            .all()
        )
        assert found[
            (found.kind == "test") & (found.metric == "accuracy")
        ].value.item() == pytest.approx(method.score(test))
        scores = set(found[found.kind == "outside"].score)
        try:
            method.predict_logits(test)
            assert scores == {"max probability", "entropy", "energy"}
        except ValueError:
            assert scores == {"max probability", "entropy"}
        assert (
            found[
                found.metric.isin(
                    ["accuracy", "ece", "adaptive_ece", "auroc", "aupr", "fpr95"]
                )
            ]
            .value.between(0, 1)
            .all()
        )


def test_each_set_is_encoded_once(clip, train, test, monkeypatch):
    seen, encode = [], type(clip).encode_batches
    monkeypatch.setattr(
        type(clip),
        "encode_batches",
        lambda self, images, *rest, **more: (
            seen.append(len(images)) or encode(self, images, *rest, **more)
        ),
    )
    for method in (
        ZeroShot(clip, train.classnames),
        ZeroShot(clip, train.classnames, ensemble="probability"),
    ):
        method.fit(train)
        seen.clear()
        evaluate(
            method,
            test,
            corruptions=["fog", "snow"],
            severities=(1,),
            outside={"noise": noise(10)},
        )
        assert sum(seen) == COUNT + 2 * COUNT + 10


def test_numbers_are_those_of_the_metrics(table, zero_shot, test):
    value = table.set_index(["kind", "set", "severity", "score", "metric"]).value
    spoilt, others = Corrupted(test, "contrast", 5), noise(20)
    probabilities = zero_shot.predict_proba(spoilt)
    for name, measure in {
        "ece": metrics.expected_calibration_error,
        "adaptive_ece": metrics.adaptive_calibration_error,
        "nll": metrics.negative_log_likelihood,
        "brier": metrics.brier_score,
    }.items():
        assert value["corruption", "contrast", 5, "", name] == pytest.approx(
            measure(test.labels, probabilities), abs=1e-4
        )
    found = metrics.detection(
        metrics.max_probability(zero_shot.predict_proba(test)),
        metrics.max_probability(zero_shot.predict_proba(others)),
    )
    for name in ("auroc", "aupr", "fpr95"):
        assert value["outside", "noise", 0, "max probability", name] == pytest.approx(
            found[name], abs=0.02
        )
    assert not table.duplicated(["kind", "set", "severity", "score", "metric"]).any()


def test_views_without_any_content(zero_shot):
    """Constant images, all of them the same: every metric is still a number."""
    blank = ImageSet(
        [Image.new("RGB", (32, 32), (level,) * 3) for level in (0, 0, 128, 255)],
        zero_shot.classnames,
        [0, 1, 2, 3],
    )
    found = evaluate(
        zero_shot,
        blank,
        severities=(5,),
        outside={"the same": ImageSet([Image.new("RGB", (32, 32), "red")] * 3)},
    )
    assert np.isfinite(found.value).all() and set(
        found[found.kind == "corruption"].set
    ) == set(CORRUPTIONS)
    with pytest.raises(ValueError, match="none of the"):
        LPCLIP(
            zero_shot.clip,
            zero_shot.classnames,
            **{**lpclip.SMALL, "epochs": 1, "views": 1},
            threshold=1.0,
        ).fit(blank)


def test_what_evaluate_refuses(zero_shot, clip, test, train):
    for arguments, message in [
        ((test.unlabelled(),), f"{COUNT} of {COUNT} have none"),
        ((ImageSet([], test.classnames),), "no images to test on"),
        ((test, [-1] + [0] * (COUNT - 1)), "1 of 24 have none"),
        ((test, [11] * COUNT), "0 ... 9"),
        ((ImageSet(test.images, ["cat"], [0] * COUNT),), "does not know: cat"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(zero_shot, *arguments, corruptions=())
    for options, message in [
        ({"corruptions": ["rain"]}, "there is no corruption 'rain'"),
        ({"severities": (1, 9)}, "not 9"),
        ({"outside": {"none": ImageSet([])}}, "no images in the outside set 'none'"),
        ({"outside": noise(3)}, "dict"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(zero_shot, test, **options)
    with pytest.raises(NotFittedError):
        evaluate(ZeroShot(clip, train.classnames), test)


def test_other_ways_to_call(zero_shot, test):
    plain = evaluate(zero_shot, test, corruptions=())
    listed = evaluate(
        zero_shot,
        [image for image, _ in test],
        test.labels,
        corruptions=(),
        name="mine",
    )
    assert plain.value.equals(listed.value) and set(listed.method) == {"mine"}
    turned = ImageSet(test.images, test.classnames[::-1], 9 - test.labels)
    assert evaluate(zero_shot, turned, corruptions=()).value.equals(plain.value), (
        "labels are translated by class name"
    )
    single = evaluate(zero_shot, test, corruptions="fog", severities=5)
    assert len(single) == 10 and set(single.severity) == {0, 5}


def test_sets_that_are_not_outside(zero_shot, test):
    same_names = ImageSet(noise(3).images, ["letter a", " SE VEN "], [0, 1, 1])
    unlabelled = ImageSet(noise(3).images, zero_shot.classnames)
    with pytest.warns(UserWarning, match="'mine' has images of SE VEN"):
        evaluate(zero_shot, test, corruptions=(), outside={"mine": same_names})
    with pytest.warns(
        UserWarning, match="2 images of the outside set 'mine' are test images"
    ):
        evaluate(
            zero_shot,
            test,
            corruptions=(),
            outside={
                "mine": ImageSet([*noise(3).images, test.images[4], test.images[9]])
            },
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(
            zero_shot,
            test,
            corruptions=(),
            outside={"names only": unlabelled, **outside_sets(test)},
        )


def test_outside_sets(test):
    one, other = outside_sets(test, 1), outside_sets(test, 2)
    assert list(one) == ["letters", "shapes", "noise", "inverted"]
    for name in one:
        pixels = [
            np.stack([np.asarray(image) for image, _ in images])
            for images in (one[name], outside_sets(test, 1)[name], other[name])
        ]
        assert pixels[0].shape == (COUNT, 32, 32, 3) and np.array_equal(
            pixels[0], pixels[1]
        )
        assert np.array_equal(pixels[0], pixels[2]) == (name == "inverted")
        if name in ("letters", "shapes"):
            assert pixels[0].mean() < 128 and (pixels[0].max((1, 2, 3)) > 150).all(), (
                "light ink on a dark page, and none empty"
            )
    assert (one["letters"].labels >= 0).all() and (one["inverted"].labels == -1).all()
    assert all(image.mode == "RGB" for image, _ in shapes(3))
    for make in (letters, shapes, noise):
        with pytest.raises(ValueError, match="count must be"):
            make(0)


def test_summaries(table):
    accuracies = (
        table[(table.kind == "corruption") & (table.metric == "accuracy")]
        .groupby("set")
        .value.mean()
    )
    name, accuracy = worst_corruption(table)
    assert accuracy == accuracies.min() == accuracies[name]
    assert mean_corruption_accuracy(table) == pytest.approx(accuracies.mean())
    two = pd.concat(
        [
            table,
            table.assign(method="other", value=table.value / 2),
            table.assign(method="other", value=table.value / 4),
        ]
    )
    summary = summarise(two).set_index("method")
    assert list(summary.index) == ["ZeroShot", "other"]
    assert summary.accuracy["other"] == pytest.approx(
        0.375 * summary.accuracy["ZeroShot"]
    ) and summary.mean_auroc["other"] == pytest.approx(
        0.375 * summary.mean_auroc["ZeroShot"]
    )
    assert (
        summarise(table, "energy").mean_auroc.item() != summary.mean_auroc["ZeroShot"]
    )
    clean = summarise(table[table.kind == "test"])
    assert (
        clean.drop(columns=["method", "accuracy", "ece", "worst_corruption"])
        .isna()
        .all(axis=None)
    )
    for ask in (worst_corruption, mean_corruption_accuracy):
        with pytest.raises(ValueError, match="holds no corruptions"):
            ask(table[table.kind == "test"])
        with pytest.raises(ValueError, match="2 methods"):
            ask(two)


def test_plots(table):
    import matplotlib.colors
    import matplotlib.pyplot as plt

    axes = plot_severity(
        pd.concat([table, table.assign(method="other", value=table.value / 2)])
    )
    last = (
        100 * table[(table.severity == 5) & (table.metric == "accuracy")].value.mean()
    )
    assert (
        f"ZeroShot is right in {last:.0f} % at severity 5"
        in axes.get_title().replace("\n", " ")
        and "accuracy" in axes.get_ylabel()
    )
    eleven = plot_severity(
        pd.concat(
            [
                table.assign(method=f"method {k}", value=table.value * (k + 1) / 11)
                for k in range(11)
            ]
        )
    )
    lines = eleven.get_legend().get_lines()
    assert [text.get_text() for text in eleven.get_legend().get_texts()] == [
        f"method {k}" for k in range(10, -1, -1)
    ]
    assert len({matplotlib.colors.to_hex(line.get_color()) for line in lines}) == 11
    with pytest.raises(ValueError, match="no corruptions"):
        plot_severity(table[table.kind != "corruption"])
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 12)
    figure = plot_latent(
        {
            "near": labels[:, None] + 0.01 * rng.standard_normal((24, 3)),
            "random": rng.standard_normal((24, 3)),
        },
        labels,
        ["a", "b"],
    )
    assert figure.axes[0].get_title().replace("\n", " ").startswith("near: 100.0 %")
    for labels, message in (
        (np.zeros(4, int), "need labels of shape"),
        (np.zeros(3, int), "features must be"),
        ([0, -1, 0], "every row needs a label"),
    ):
        with pytest.raises(ValueError, match=message):
            neighbour_purity(np.zeros((3, 2)), labels)
    for features in (np.zeros(3), np.full((3, 2), np.nan), None, [["a"]]):
        with pytest.raises(ValueError, match="features must be"):
            neighbour_purity(features, [0, 0, 0])
    plt.close("all")


def folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name) * 9,) * 3).save(root / name / "one.png")
    return root


def test_folders_of_imagenet(tmp_path):
    wnids, names = [f"n{i:08d}" for i in range(0, 2000, 2)], imagenet_names()
    whole = folders(tmp_path / "val", reversed(wnids))
    part = folders(tmp_path / "r", [wnids[837], wnids[3], wnids[657], wnids[744]])
    assert read_imagenet(whole).classnames == names and len(set(names)) == 1000
    for known in (wnids, wnids[::-1], whole, str(whole)):
        images = read_imagenet(part, known)
        assert images.classnames == [
            names[3],
            "missile",
            "projectile",
            "dark glasses",
        ] and images.labels.tolist() == [0, 1, 2, 3]
    numbered = read_imagenet(folders(tmp_path / "v2", ["0", "10", "9", "999"]))
    assert numbered.classnames == [
        names[0],
        names[9],
        names[10],
        names[999],
    ] and sorted(numbered.labels.tolist()) == [0, 1, 2, 3]
    assert [numbered.classnames[label] for label in numbered.labels] == [
        names[0],
        names[10],
        names[9],
        names[999],
    ], "by path: 0, 10, 9, 999"
    for call, message in [
        (lambda: read_imagenet(part), "got 4"),
        (lambda: read_imagenet(part, wnids[:10]), "got 10"),
        (
            lambda: read_imagenet(folders(tmp_path / "x", ["n00000001"]), wnids),
            "n00000001",
        ),
        (lambda: read_imagenet(folders(tmp_path / "n", ["1000"])), "1000"),
        (lambda: read_imagenet(part / wnids[3]), "one folder a class"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError):
        read_imagenet(tmp_path / "none")


def test_some_classes_only(zero_shot, clip, train, test, tmp_path):
    wanted = ["nine", "two", "five"]
    limited = Restricted(zero_shot, wanted)
    few = test.subset(np.isin(test.labels, [9, 2, 5]))
    few = ImageSet(
        few.images, ["two", "five", "nine"], np.searchsorted([2, 5, 9], few.labels)
    )
    assert np.array_equal(
        limited.predict_logits(few), zero_shot.predict_logits(few)[:, [9, 2, 5]]
    )
    assert np.allclose(limited.predict_proba(few).sum(1), 1, atol=1e-5)
    found = evaluate(limited, few, corruptions=())
    assert found[found.metric == "accuracy"].value.item() == limited.score(few)
    averaged = Restricted(
        ZeroShot(clip, train.classnames, ensemble="probability").fit(train), wanted
    )
    assert np.allclose(averaged.predict_proba(few).sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="dog"):
        Restricted(zero_shot, ["two", "dog"])
    with pytest.raises(ValueError, match="fitted already"):
        limited.fit(train)
    with pytest.raises(ValueError, match="cannot be saved"):
        limited.save(tmp_path / "limited")


@pytest.mark.parametrize("shape", [(96, 64), (64, 224), (300, 300)])
def test_large_images_are_corrupted_as_the_clip_reads_them(zero_shot, shape):
    pages = ImageSet(
        [image.resize(shape) for image, _ in digits("test").subset(range(12))],
        zero_shot.classnames,
        digits("test").labels[:12],
    )
    table = evaluate(zero_shot, pages, corruptions=["gaussian noise"], severities=[5])
    small = ImageSet([views.centre_view(32)(image, None) for image, _ in pages])
    seen = zero_shot.predict_proba(Corrupted(small, "gaussian noise", 5))
    rows = table[(table.kind == "corruption") & (table.metric == "nll")]
    expected = metrics.negative_log_likelihood(pages.labels, seen)
    assert abs(rows.value.item() - expected) < 1e-4
    assert Corrupted(pages, "fog", 1)[0][0].size == shape
    assert Corrupted(pages, "fog", 1, size=32)[0][0].size == (32, 32)
    assert Corrupted(pages, "fog", 1, size=512)[0][0].size == shape, "never enlarged"
