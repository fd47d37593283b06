"""Check a rendered site: every link inside it leads somewhere, every picture is there and described, every page has a title and a description.

python tools/check_site.py [FOLDER]     default _docs
"""
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup


def read(path: Path) -> BeautifulSoup:
    """A page, without the bytes of pictures that it carries inside: they take most of the time and are never wrong."""
    return BeautifulSoup(re.sub(r"data:image/[^\"']+", "data:", path.read_text(encoding="utf-8")), "html.parser")


def inside(link: str) -> bool:
    """Is this a link to another place of the site?"""
    return bool(link) and not link.startswith(("data:", "javascript:", "mailto:")) and not urlsplit(link).scheme and not link.startswith("//")


def check_page(path: Path, page: BeautifulSoup) -> list[str]:
    """What a page lacks by itself."""
    problems = []
    if not (page.title and page.title.get_text(strip=True)) or not page.find("h1"):
        problems.append("no title")
    if not page.find("meta", attrs={"name": "description", "content": True}):
        problems.append("no description")
    main = page.find("main") or page
    problems += [f"a picture without a description: {str(image)[:80]}" for image in main.find_all("img") if not image.get("alt", "").strip()]
    text = main.get_text()
    return problems + [f"unfilled mark or unread Markdown: {mark!r}" for mark in ("{{", ":::", "]{.") if mark in without_code(main)] + (["empty page"] if len(text) < 200 else [])


def without_code(main) -> str:
    """The text of a page outside of code, where marks of any kind are allowed."""
    return "".join(string for string in main.find_all(string=True) if not string.find_parent(["code", "pre", "script", "style"]))


def check(folder: Path) -> list[str]:
    """Everything that is wrong, a line each."""
    pages = {path: read(path) for path in sorted(folder.rglob("*.html"))}
    anchors = {path: {tag["id"] for tag in page.find_all(id=True)} | {tag["name"] for tag in page.find_all("a", attrs={"name": True})} for path, page in pages.items()}
    if not pages:
        return [f"no page in {folder}"]
    problems = []
    for path, page in pages.items():
        found = check_page(path, page)
        for tag in page.find_all(["a", "img", "link", "script"]):
            link = tag.get("href") or tag.get("src") or ""
            if not inside(link):
                continue
            parts = urlsplit(link)
            target = (folder if parts.path.startswith("/") else path.parent).joinpath(unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"broken link: {link}")
            elif parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
                found.append(f"no such place on the page: {link}")
        problems += [f"{path.relative_to(folder)}: {problem}" for problem in dict.fromkeys(found)]
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else "_docs").resolve())
    print(*found, sep="\n")
    sys.exit(bool(found))
