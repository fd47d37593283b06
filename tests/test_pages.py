"""The Python on the pages runs as it stands there, on small folders and with the
built-in CLIP instead of a large one."""

import re
from pathlib import Path

import pytest

import clipadapt
from clipadapt import digits

PAGES = Path(__file__).parent.parent / "nbs" / "pages"
BLOCK = re.compile(r"(?sm)^```python\n(.*?)^```")
# what a block needs that is not here: a database and a browser, a data set
ELSEWHERE = re.compile(r"^import fiftyone|from_split_file", re.MULTILINE)


@pytest.mark.parametrize(
    "page, classes, count, left",
    [
        ("own_data", ["cat", "dog"], 3, 1),
        ("data_tools", ["cat", "dog", "rabbit"], 5, 2),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_a_page_run_one_after_the_other(
    page, classes, count, left, clip, tmp_path, monkeypatch
):
    pytest.importorskip("cleanlab")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clipadapt, "load_clip", lambda *_, **__: clip)
    for number, (image, _) in enumerate(digits("train").subset(range(12))):
        for folder in (Path("photos", classes[number % len(classes)]), Path("more")):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    blocks = BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    here = [block for block in blocks if not ELSEWHERE.search(block)]
    assert (len(here), len(blocks) - len(here)) == (count, left)
    names = {"y": ["cat"] * 6 + ["dog"] * 6}  # a page takes it as known
    for block in here:  # no scan is that surely a cat; datasets 4 saves no empty set
        block = block.replace('row["confidence"] > 0.9', 'row["confidence"] > 0.3')
        exec(compile(block, f"{page}.md", "exec"), names)
    assert {"clip", "ImageSet"} <= {*names}
