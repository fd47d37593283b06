"""Measure reports in a real browser: on screens of six widths, light and dark, and on
paper, nothing is cut and the page never scrolls sideways. Pictures of the pages go to
runs/browser/. `python -m pytest -q tests/browser/report.py`; REPORT=path measures a
report that is there already, too.

The browser is a Chromium: the environment variable CHROMIUM, or /usr/bin/chromium.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from clipadapt import Prototypes, ZeroShot, digits, load_clip
from clipadapt.images.sets import ImageSet
from clipadapt.judge.compare import Run, tabulate
from clipadapt.judge.report import report

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")
PHOTOS = Path(__file__).resolve().parents[2] / "runs" / "browser"
WIDTHS = (360, 480, 768, 1024, 1300, 1600)
PAPER = 687  # pixels of A4 between margins of 14 mm
ODD = [
    *(
        "Größe Übermaß",
        "قطة فارسية",
        "חתול",
        "日本猫",
        "a  b",
        "<b>bold</b>",
        "x" * 300,
    ),
    "Rhinolophus ferrumequinum (Schreber, 1774), greater horseshoe bat of the West",
]
LONG = "Prototypes, with a very long name that somebody gave it, version 2 (final)"
# What is folded has no size, so all of it is opened first.
OPEN = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
SIDEWAYS = """
document.documentElement.scrollWidth - document.documentElement.clientWidth
"""
# What is wider than its place, or beyond the page, and neither scrolls nor is said by
# a title: a name with … tells all of itself when one points at it.
CUT = """() => {
    const right = document.documentElement.clientWidth + 1;
    const scrolls = part => part.closest('.scroll, .plot');
    return [...document.querySelectorAll('body *')].filter(part => {
        const hides = getComputedStyle(part).overflowX !== 'visible';
        const wide = part.clientWidth > 0 && part.scrollWidth > part.clientWidth + 1;
        const beyond = part.getBoundingClientRect().right > right;
        if (beyond && !scrolls(part)) return true;
        return hides && wide && !part.matches('.scroll, .plot, [title]');
    }).map(part => part.outerHTML.slice(0, 80));
}"""
SCROLLED = """
[...document.querySelectorAll('.scroll, .plot')]
    .filter(part => part.scrollWidth > part.clientWidth + 1)
    .map(part => part.querySelector('img')?.alt.slice(0, 60) ?? part.ariaLabel)
"""
# A bar of its own, and, where there is a table, names that stay while it moves.
VISIBLE = """
[...document.querySelectorAll('.scroll, .plot')]
    .filter(part => part.scrollWidth > part.clientWidth + 1)
    .every(part => part.offsetHeight - part.clientHeight >= 8 && part.tabIndex == 0)
"""
HEADS = """
[...document.querySelectorAll('thead th')].map(head => ({
    text: head.innerText, size: parseFloat(getComputedStyle(head).fontSize)
}))
"""
LIGHTNESS = """[getComputedStyle(document.body).color,
    getComputedStyle(document.body).backgroundColor]
    .map(colour => colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b) / 765)
"""


def runs_of(clip, test, names):
    """Runs of a method each, one a little better than the other."""
    rng, classes = np.random.default_rng(0), len(test.classnames)
    for number, name in enumerate(names):
        right = rng.random(len(test)) < 0.6 + 0.3 * number / len(names)
        answers = np.where(right, test.labels, rng.integers(classes, size=len(test)))
        kind = Prototypes if number else ZeroShot
        table = np.eye(classes, dtype=np.float32)[answers]
        yield Run(name, kind(clip, test.classnames), table, 10.0 ** (number % 4 - 2))


def reports(folder):
    """Reports of several kinds: path by name."""
    clip, test = load_clip(device="cpu"), digits("test")
    names = ["ZeroShot", "NearestNeighbours", "AnchoredMixture", "EMDirichlet"]
    runs = list(runs_of(clip, test, names))
    table = tabulate(runs, test)
    table["worst_corruption_accuracy"] = table["accuracy"] / 2
    made = {
        "demo": report(runs, digits("train"), test, folder / "demo.html", table),
    }
    rng = np.random.default_rng(0)
    for name, classes, methods in (
        ("odd", [*ODD, *(f"breed {n}" for n in range(29))], ["zero-shot", LONG]),
        ("many", [f"class {n} of a thousand" for n in range(1000)], names[:2]),
        ("one", ["cat", "dog"], ["prototypes"]),
    ):
        noise = rng.integers(0, 256, (20, 6, 9, 3), np.uint8)
        pictures = [Image.fromarray(each).resize((300, 200)) for each in noise]
        labels = np.arange(2 * len(classes)) % len(classes)
        images = [pictures[label % 20] for label in labels]
        test = ImageSet(images, classes, labels, skipped=[("y" * 200 + ".png", "bad")])
        runs = list(runs_of(clip, test, methods))
        made[name] = report(runs, test, test, folder / f"{name}.html")
    if "REPORT" in os.environ:
        made["yours"] = Path(os.environ["REPORT"]).resolve()
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return reports(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def browser():
    PHOTOS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox"],
            ignore_default_args=["--hide-scrollbars"],
        )
        yield browser
        browser.close()


def opened(browser, path, width=1300, scheme="light"):
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page.goto(path.as_uri())
    return page


KINDS = ["demo", "odd", "many", "one", *(["yours"] if "REPORT" in os.environ else [])]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_cuts_anything(browser, made, name, scheme):
    page = opened(browser, made[name], scheme=scheme)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(OPEN)
        assert page.evaluate(SIDEWAYS) <= 0, f"the page scrolls at {width}"
        assert page.evaluate(CUT) == [], f"cut at {width}"
        assert page.evaluate(VISIBLE), f"what scrolls at {width} does not show it"
        assert min(head["size"] for head in page.evaluate(HEADS)) >= 12
        page.evaluate(OPEN.replace("true", "false"))
    for width in WIDTHS:  # last, since a picture of a page takes its scrollbars away
        page.set_viewport_size({"width": width, "height": 900})
        picture = PHOTOS / f"report-{name}-{width}-{scheme}.png"
        page.screenshot(path=picture, full_page=True)
    ink, ground = page.evaluate(LIGHTNESS)
    assert (ink > 0.8 and ground < 0.2) == (scheme == "dark")
    page.close()


@pytest.mark.parametrize("width", [1300, 1600])
def test_the_tables_of_the_demo_fit_on_a_desk(browser, made, width):
    page = opened(browser, made["demo"], width)
    assert page.evaluate(SCROLLED) == []
    heads = [head["text"].split() for head in page.evaluate(HEADS)]
    assert ["worst", "corruption", "accuracy"] in heads
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_paper_is_white_and_holds_everything(browser, made, name, scheme):
    page = opened(browser, made[name], PAPER, scheme)
    page.evaluate(OPEN)
    page.emulate_media(media="print", color_scheme=scheme)
    assert page.evaluate(SIDEWAYS) <= 0 and page.evaluate(CUT) == []
    assert page.evaluate(SCROLLED) == [], "paper does not scroll"
    ink, ground = page.evaluate(LIGHTNESS)
    assert ink < 0.2 and ground == 1
    page.evaluate(OPEN.replace("true", "false"))
    page.pdf(path=PHOTOS / f"report-{name}-{scheme}.pdf", format="A4")
    page.close()


@pytest.mark.parametrize("scale", [1, 2])
def test_the_first_figure_is_on_the_first_screen_and_sharp(browser, made, scale):
    page = browser.new_page(
        viewport={"width": 1300, "height": 800}, device_scale_factor=scale
    )
    page.goto(made["odd"].as_uri())
    box = page.locator(".story").bounding_box()
    assert box["y"] + box["height"] < 800
    stretched = page.evaluate("""
    [...document.querySelectorAll('.story img')]
        .map(picture => picture.clientWidth / picture.naturalWidth)
    """)
    assert stretched and max(stretched) * scale < 1.2
    page.goto(made["demo"].as_uri())
    assert page.locator(".story").bounding_box()["height"] < 400
    page.locator(".story").screenshot(path=PHOTOS / f"report-story-{scale}x.png")
    page.close()
