"""Measure a rendered site in a browser: no code is cut off on a wide screen,
and on a narrow one no page scrolls sideways.

python tools/check_width.py [FOLDER]     default _docs; `make docs-width` does that

The browser is a Chromium: the environment variable CHROMIUM, or /usr/bin/chromium.
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDE, NARROW = 1400, 400

# What is folded has no width, so all of it is opened first.
OPEN = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
CUT = """
[...document.querySelectorAll('main pre')]
    .filter(block => !block.closest('.cell-output'))
    .filter(block => [block, ...block.querySelectorAll('*')]
        .some(part => part.scrollWidth > part.clientWidth && part.clientWidth > 0))
    .map(block => block.innerText.split('\\n')
        .reduce((a, b) => a.length > b.length ? a : b))
"""
SIDEWAYS = """
document.documentElement.scrollWidth - document.documentElement.clientWidth
"""


def cut_blocks(page: Page) -> list[str]:
    """The widest line of each block of code that is cut off at the right edge."""
    page.set_viewport_size({"width": WIDE, "height": 1000})
    page.evaluate(OPEN)
    return page.evaluate(CUT)


def pixels_too_wide(page: Page) -> int:
    """By how many pixels the page itself is wider than a narrow screen."""
    page.set_viewport_size({"width": NARROW, "height": 800})
    page.evaluate(OPEN)
    return page.evaluate(SIDEWAYS)


def check(folder: Path) -> list[str]:
    """Everything that is wrong, a line each."""
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox"],
        )
        page = browser.new_page()
        page.route("http*://**", lambda route: route.abort())  # the site is enough
        for path in sorted(folder.resolve().rglob("*.html")):
            name = path.relative_to(folder.resolve())
            page.goto(path.as_uri(), wait_until="load")
            problems += [
                f"{name}: cut off at {WIDE} pixels: {line.strip()!r}"
                for line in cut_blocks(page)
            ]
            if (more := pixels_too_wide(page)) > 0:
                problems.append(f"{name}: {more} pixels too wide at {NARROW} pixels")
        browser.close()
    return problems


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "_docs")
    if not (folder / "index.html").exists():
        sys.exit(f"{folder} holds no site: run `make docs` first")
    found = check(folder)
    print(*found, sep="\n")
    sys.exit(bool(found))
