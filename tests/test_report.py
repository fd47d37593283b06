"""The page of a comparison: what it shows first, and what it does with odd sets."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from clipadapt import FeatureSet, Prototypes, ZeroShot, digits, load_clip
from clipadapt.images.sets import ImageSet
from clipadapt.judge import report
from clipadapt.judge.compare import Run


def run(clip, name, test, right, kind=ZeroShot, **settings):
    """A run that is right in so many of the images, and wrong in the others."""
    classes = len(test.classnames)
    answers = (test.labels + (np.arange(len(test)) >= right)) % classes
    table = np.eye(classes, dtype=np.float32)[answers]
    return Run(name, kind(clip, test.classnames, **settings), table, 1.0)


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Writes a report without what takes seconds, its plots; returns the page."""
    monkeypatch.setattr(report, "recommend", lambda runs, test: "Use it.")
    monkeypatch.setattr(report, "_overview", lambda runs, test: [])
    monkeypatch.setattr(
        report,
        "_section",
        lambda run, test: {
            "name": run.name,
            "params": {},
            "accuracies": report._per_class(run, test),
            "plots": {},
        },
    )

    def write(runs, test, train=None):
        path = report.report(runs, train or test, test, tmp_path / "report.html")
        return path.read_text(encoding="utf-8")

    return write


def pictures(page):
    """(alternative text, picture) of every picture of a page."""
    found = re.findall(
        r'<img src="data:image/\w+;base64,([^"]+)"[^>]* alt="(.+?)"', page
    )
    return [
        (alt, Image.open(io.BytesIO(base64.b64decode(data)))) for data, alt in found
    ]


def bars(page):
    """(when, method, share, width) of every bar."""
    return re.findall(
        r'share">(.+?)</span>(\w+): <bdi>(.+?)</bdi>.*?width: (.+?)%', page
    )


def photographs(names, each=2, size=(300, 200)):
    images = [Image.new("RGB", size, (40 * n % 255, 80, 90)) for n in range(len(names))]
    return ImageSet(images * each, names, [*range(len(names))] * each)


def test_print_that_was_adapted_to_handwriting(clip, written):
    test = digits("test").subset(range(60))
    runs = [
        run(clip, "zero-shot", test, 30),
        run(clip, "prototypes", test, 45, Prototypes),
        run(clip, "others", test, 36, Prototypes),
    ]
    page = written(runs, test)
    shown = pictures(page)
    printed = [picture for alt, picture in shown if alt.endswith(", printed")]
    met = [picture for alt, picture in shown if alt.startswith("a test image of “")]
    assert len(printed) == 10 and {picture.size for picture in printed} == {(96, 96)}
    assert len(met) == 30 and {picture.size for picture in met} == {(32, 32)}
    assert "printed digits, letters and shapes" in page
    assert "“<bdi>a photo of a zero.</bdi>”" in page
    assert bars(page) == [
        ("50.0%", "before", "zero-shot", "50.0"),
        ("75.0%", "after", "prototypes", "75.0"),
    ]


@pytest.mark.parametrize(
    "right, words, whens",
    [
        ({"zero-shot": 3, "b": 4}, "gets better", ["before", "after"]),
        ({"zero-shot": 4, "b": 3}, "gets no better", ["before"]),
        ({"zero-shot": 4}, "answers", ["before"]),
        ({"a": 3, "b": 4}, "answers", ["after"]),
    ],
)
def test_what_came_of_it_is_said_as_it_is(clip, right, words, whens):
    test = photographs(["cat", "dog", "seven"])
    kinds = {"zero-shot": ZeroShot}
    runs = [
        run(clip, name, test, count, kinds.get(name, Prototypes))
        for name, count in right.items()
    ]
    story = report._story(runs, test)
    assert story["outcome"] == words
    assert [bar["when"] for bar in story["bars"]] == whens
    best = max(right, key=right.get)
    assert story["bars"][-1] == {"when": whens[-1], "name": best, "share": 4 / 6}
    assert [name for name, _ in story["signs"]] == ["seven"]


def test_photographs_are_shown_reduced_and_from_their_middle(written):
    """Ten of many classes, one photograph of each."""
    other = load_clip(device="cpu")
    other.name, other.pretrained = "ViT-B-32", "laion2b"
    test = photographs([f"breed {n}" for n in range(37)], size=(600, 400))
    page = written([run(other, "prototypes", test, 40, Prototypes)], test)
    shown = pictures(page)
    assert len(shown) == 10 and {picture.size for _, picture in shown} == {(176, 176)}
    assert {shown[0][0], shown[-1][0]} == {
        "a test image of “breed 0”",
        "a test image of “breed 36”",
    }
    assert "<bdi>ViT-B-32, laion2b</bdi>" in page and "printed" not in shown[0][0]
    assert "printed digits" not in page and "of 10 of them" in page
    assert [bar[1:3] for bar in bars(page)] == [("after", "prototypes")]


def test_the_built_in_clip_is_told_from_one_without_a_name(clip, clips, written):
    test = photographs(["cat", "dog"])
    page = written([run(clip, "a", test, 2)], test)
    assert "None of these classes is among them." in page
    assert [bar[1] for bar in bars(page)] == ["before"]
    page = written([run(clips("plain"), "a", test, 2)], test)
    assert "a CLIP without a name" in page and "printed digits" not in page


def test_features_and_lost_files_have_no_pictures(clip, written, tmp_path):
    features = np.eye(4, clip.embed_dim, dtype=np.float32)
    known = FeatureSet(features, ["cat", "dog"], [0, 1, 0, 1])
    lost = ImageSet([tmp_path / "lost.png"] * 2, ["cat", "dog"], [0, 1])
    for test in (known, lost):
        page = written([run(clip, "a", test, 1)], test)
        assert "a test image of" not in page and "Here are test images" not in page


def test_templates_that_are_gone_are_not_asked(clip, written, tmp_path):
    test = photographs(["cat", "dog"])
    gone = run(clip, "a", test, 2, templates=str(tmp_path / "gone.json"))
    own = run(clip, "b", test, 2, templates={"cat": ["my cat"], "dog": ["my dog"]})
    assert "It is asked" not in written([gone, own], test)
    said = run(clip, "c", test, 2, templates=["one {} here", "{}s"])
    assert "“<bdi>one cat here</bdi>”" in written([gone, said], test)


def test_files_that_were_left_out_are_named_without_their_folders(clip, written):
    test, train = photographs(["cat", "dog"]), photographs(["cat", "dog"])
    train.skipped = [(f"/home/me/{n}.jpg", "it is damaged") for n in range(30)]
    test.skipped = train.skipped[:1]
    page = written([run(clip, "a", test, 2)], test, train)
    assert "30 files that could not be read" in page and "and 10 more" in page
    assert "<bdi>0.jpg</bdi>" in page and "/home/me" not in page


def test_names_of_any_kind_stay_text(clip, written):
    names = ["<b>bold</b>", '" onload="', "قطة", "x" * 500]
    page = written([run(clip, names[1], photographs(names), 4)], photographs(names))
    assert "<b>bold" not in page and 'onload="' not in page and "قطة" in page
    assert "a photo of a &lt;b&gt;bold&lt;/b&gt;." in page
