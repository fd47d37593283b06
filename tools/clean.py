"""Remove what nbdev_clean keeps and nobody wants to read later: widgets (their pictures
stay), progress bars that were shown while a cell ran, the blanks they left, and names
of files of the kernel."""

import re
from pathlib import Path

import nbformat


def is_bar(output) -> bool:
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    blank = output.output_type == "stream" and not text.strip()
    return blank or bool(re.search(r"\d+%\|.*\| \d+/\d+ \[", text))


def drop_widget(output) -> bool:
    """Whether an output had a widget beside its picture, which is dropped: its kernel
    is gone."""
    data = output.get("data", {})
    return (
        "image/png" in data
        and data.pop("application/vnd.jupyter.widget-view+json", None) is not None
    )


def without_kernel(output) -> bool:
    """Whether a warning named a file of the kernel that is gone, which is dropped."""
    before = output.get("text", "")
    if output.get("name") == "stderr":
        output["text"] = re.sub(r"\S*ipykernel_\d+/\d+\.py:\d+: ", "", before)
    return output.get("text", "") != before


project = Path(__file__).resolve().parent.parent
for path in [
    *(project / "nbs").rglob("*.ipynb"),
    *(project / "solutions").rglob("*.ipynb"),
]:
    notebook = nbformat.read(path, as_version=4)
    dirty = notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        kept = [output for output in cell.get("outputs", []) if not is_bar(output)]
        if len(kept) < len(cell.get("outputs", [])):
            cell.outputs, dirty = kept, True
        dropped = [drop_widget(output) for output in cell.get("outputs", [])]
        renamed = [without_kernel(output) for output in cell.get("outputs", [])]
        dirty = any(dropped) or any(renamed) or dirty
    if dirty:
        nbformat.write(notebook, path)
