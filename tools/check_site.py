"""Check a rendered site: every link inside it leads somewhere, every picture is there
and described, every page has a title and a description.

python tools/check_site.py [FOLDER]     default _docs
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

UNREAD = (
    "{{",
    "}}",
    "{%",
    ":::",
    "]{.",
    "{#",
    "\\(",
    "\\[",
)  # template marks, Markdown and formulas that nobody read


class Page(HTMLParser):
    """What the check wants to know of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.undescribed, self.words = set(), [], [], []
        self.title, self.headings, self.description, self.quiet, self.inside_title = (
            "",
            0,
            "",
            0,
            False,
        )
        self.feed(
            re.sub(r"data:image/[^\"']+", "data:", text)
        )  # the bytes of a picture that the page carries are never wrong

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.headings += tag == "h1"
        self.inside_title = tag == "title" and not self.title
        self.quiet += tag in ("code", "script", "style", "math")
        if tag == "img" and not found.get("alt", "").strip():
            self.undescribed.append(found.get("src", "")[:60])
        if tag == "meta" and found.get("name") == "description":
            self.description = found.get("content", "")

    def handle_endtag(self, tag: str) -> None:
        self.inside_title = False
        self.quiet -= tag in ("code", "script", "style", "math")

    def handle_data(self, text: str) -> None:
        if self.inside_title:
            self.title += text
        elif not self.quiet:
            self.words.append(text)

    def lacks(self) -> list[str]:
        """What is wrong with the page by itself."""
        text = "".join(self.words)
        return (
            (["no title"] if not self.title.strip() or not self.headings else [])
            + (["no description"] if not self.description.strip() else [])
            + [
                f"a picture without a description: {source}"
                for source in self.undescribed
            ]
            + [
                (
                    "something that was not read as Markdown: "
                    f"{text[max(0, text.index(mark) - 30) :][:80]!r}"
                )
                for mark in UNREAD
                if mark in text
            ]
        )


def inside(link: str) -> bool:
    """Is this a link to another place of the site?"""
    return not urlsplit(link).scheme and not link.startswith("//")


def check(folder: Path) -> list[str]:
    """Everything that is wrong, a line each."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.html"))
    }
    problems = [] if pages else [f"no page in {folder}"]
    for path, page in pages.items():
        found = page.lacks()
        for link in filter(inside, page.links):
            parts = urlsplit(link)
            target = (
                path.parent.joinpath(unquote(parts.path)).resolve()
                if parts.path
                else path
            )
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"broken link: {link}")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].ids
            ):
                found.append(f"no such place on the page: {link}")
        problems += [
            f"{path.relative_to(folder.resolve())}: {problem}"
            for problem in dict.fromkeys(found)
        ]
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else "_docs"))
    print(*found, sep="\n")
    sys.exit(bool(found))
