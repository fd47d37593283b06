"""Drive the notebook on widgets in JupyterLab, in a real browser, as a reader does;
photographs go to runs/browser/. Run by `make test-browser`.

The browser is a Chromium: the environment variable CHROMIUM, or /usr/bin/chromium.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import sync_playwright

from clipadapt import ZeroShot, digits, load_clip
from clipadapt.app.widgets import describe, select

project = Path(__file__).resolve().parents[2]
photos = project / "runs" / "browser"
WIDGETS, TOKEN = "engine/widgets", "reader"
NOTEBOOK = os.environ.get("NOTEBOOK", WIDGETS)  # a path below nbs/, without its ending
# Cells that are run before the notebook has its kernel make JupyterLab ask for one, in
# a dialog that takes every key.
KERNEL_READY = """() => {
    const context = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    return context?.isReady && context.session?.kernel?.status === 'idle';
}"""
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab over a copy of the notebook, with settings of its own; its address."""
    folder = tmp_path_factory.mktemp("lab")
    copy = folder / "nbs" / f"{NOTEBOOK}.ipynb"
    copy.parent.mkdir(parents=True)
    shutil.copy(project / "nbs" / f"{NOTEBOOK}.ipynb", copy)
    for name, values in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(project),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--ip=127.0.0.1",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder / 'nbs'}",
        "--LabApp.extension_manager=readonly",
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=folder
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urlopen(f"{address}/api?token={TOKEN}")
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def page(server):
    """The notebook, open."""
    photos.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{server}/lab/tree/{NOTEBOOK}.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_function(KERNEL_READY)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def ran(page):
    """The notebook after all cells have run, and the texts that the live curves showed
    on the way."""
    seen = []
    page.evaluate(
        "void window.jupyterapp.commands.execute('notebook:run-all-cells')"
    )  # not waited for
    end = time.monotonic() + 600
    while time.monotonic() < end:
        prompts = page.locator(
            ".jp-Notebook .jp-CodeCell .jp-InputPrompt"
        ).all_inner_texts()
        seen += [
            text
            for text in page.locator(".widget-html-content").all_inner_texts()
            if text.endswith("epochs")
        ][-1:]
        if page.locator(
            '[data-mime-type="application/vnd.jupyter.error"]'
        ).count() or sum(
            bool(re.fullmatch(r"\[\d+\]:", prompt)) for prompt in prompts
        ) == len(prompts):
            break
        time.sleep(0.3)
    assert not page.locator(
        '[data-mime-type="application/vnd.jupyter.error"]'
    ).all_inner_texts()
    assert all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in prompts), prompts
    assert not page.locator(".jp-Dialog").count(), page.locator(
        ".jp-Dialog"
    ).inner_text()
    return page, seen


def panel(page, words: str):
    """The first panel whose controls contain these words."""
    found = page.locator(".jp-OutputArea-output .widget-vbox", has_text=words).first
    found.scroll_into_view_if_needed()
    return found


def line(found) -> str:
    return found.locator(".widget-html-content").first.inner_text()


def press(found, slider: str, *keys: str) -> str:
    """Press keys on a slider; return what its readout says."""
    control = found.locator(".widget-slider", has_text=slider)
    control.locator(".noUi-handle").focus()
    for key in keys:
        control.locator(".noUi-handle").press(key)
    return control.locator(".widget-readout").inner_text()


def drag(found, slider: str, pixels: int) -> str:
    """Drag the handle of a slider by so many pixels with the mouse; return what its
    readout says."""
    control, mouse = found.locator(".widget-slider", has_text=slider), found.page.mouse
    box = control.locator(".noUi-handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + pixels, y, steps=5)
    mouse.up()
    return control.locator(".widget-readout").inner_text()


def wait_for(found, text: str) -> None:
    """Until the line of a panel is `text`."""
    end = time.monotonic() + 20
    while line(found) != text and time.monotonic() < end:
        time.sleep(0.1)
    assert line(found) == text


def photograph(page, found, name: str) -> None:
    """Photograph a panel in the light and in the dark theme."""
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', "
            "{theme})",
            theme,
        )
        page.wait_for_selector(
            f"body[data-jp-theme-light={str(theme.endswith('Light')).lower()}]",
            state="attached",
        )  # it has no size
        time.sleep(0.5)
        found.screenshot(path=photos / f"{name}-{theme.split()[1].lower()}.png")


only_here = pytest.mark.skipif(
    NOTEBOOK != WIDGETS, reason="another notebook is only run from top to bottom"
)


def test_the_notebook_runs(ran):
    assert ran[0].locator(".jp-OutputArea-output").count()


@only_here
def test_a_slider_changes_what_the_function_says(ran):
    page, _ = ran
    train = digits("train")
    guesses, found = (
        ZeroShot(load_clip(), train.classnames).fit(train).predict_proba(train),
        panel(page, "threshold"),
    )
    assert press(found, "K per class", "Home") == "1"
    most = int(press(found, "K per class", "End"))
    assert most > 1
    before = found.locator("img").get_attribute("src")
    wait_for(
        found,
        describe(
            select(guesses, most, 0.0), 4, train.classnames, len(train), train.labels
        ),
    )
    threshold = float(drag(found, "threshold", 60))
    assert threshold > 0
    wait_for(
        found,
        describe(
            select(guesses, most, threshold),
            4,
            train.classnames,
            len(train),
            train.labels,
        ),
    )
    k = int(press(found, "K per class", *["PageDown"] * 6))
    assert k < most
    found.locator("select").select_option(label="seven")
    wait_for(
        found,
        describe(
            select(guesses, k, threshold), 7, train.classnames, len(train), train.labels
        ),
    )
    assert found.locator("img").get_attribute("src") != before
    photograph(page, found, "browse")


@only_here
def test_buttons_change_labels(ran):
    page, _ = ran
    found = panel(page, "change to")
    assert "20 decided, 20 changed" in line(found)
    proposed = found.locator("select").evaluate(
        "box => box.options[box.selectedIndex].text"
    )
    found.get_by_role("button", name="change").click()
    found.get_by_role("button", name="back").click()
    end = time.monotonic() + 20
    while (
        f"decided: {proposed}. 21 decided" not in line(found) and time.monotonic() < end
    ):
        time.sleep(0.1)
    assert f"decided: {proposed}. 21 decided, 21 changed" in line(found)
    photograph(page, found, "audit")


@only_here
def test_the_filter_leaves_the_disagreements(ran):
    page, _ = ran
    found = panel(page, "methods disagree")
    found.locator("input[type=checkbox]").check()
    answers = {}
    for _ in range(3):
        press(found, "place", "ArrowRight")
        time.sleep(1)
        answers[line(found)] = {
            re.sub(r".*: ", "", part) for part in line(found).split(". ")[1].split("; ")
        }
    assert len(answers) == 3 and all(
        len(different) > 1 for different in answers.values()
    ), answers
    photograph(page, found, "compare")


@only_here
def test_curves_grow_while_it_trains(ran):
    page, seen = ran
    found = page.locator(
        ".jp-OutputArea-output .widget-vbox", has_text="10 epochs"
    ).first
    found.scroll_into_view_if_needed()
    photograph(page, found, "curves")
    assert len({text for text in seen if re.fullmatch(r"\d+ epochs", text)}) >= 2, seen


@only_here
def test_photograph_of_the_first_screen(ran):
    page, _ = ran
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', "
            "{theme})",
            theme,
        )
        panel(page, "threshold")
        time.sleep(1)
        page.screenshot(path=photos / f"page-{theme.split()[1].lower()}.png")
