"""Remove what nbdev_clean keeps and nobody wants to read later: widgets (their pictures
stay), progress bars that were shown while a cell ran, the blanks they left, messages
about another try, and names of the kernel's files. Tables get the same names in every
run."""

import re
from pathlib import Path

import nbformat

BAR = re.compile(r"\d+%\|.*\| \d+/\d+ \[")
AGAIN = re.compile(
    r"^Retrying in \d+s \[Retry | thrown while requesting [A-Z]+ https://"
    r"|UserWarning: A worker stopped while some jobs were given|^ +warnings\.warn\($"
)


def is_passing(output) -> bool:
    """Whether an output was for those who waited: a progress bar, what was left of
    one, another try of a download or of a process."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    if output.output_type == "stream":
        lines = [line for line in text.splitlines() if line.strip()]
        if all(AGAIN.search(line) for line in lines):
            return True
    return bool(BAR.search(text))


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


def rename_table(output, name: str) -> bool:
    """Whether a table had the random name that pandas gives it; now it has `name`."""
    before = output.get("data", {}).get("text/html", "")
    drawn = re.search(r'<table id="(T_[0-9a-f]{5})"', before)
    if drawn:
        output["data"]["text/html"] = before.replace(drawn[1], name)
    return drawn is not None


def clean(notebook) -> bool:
    """Whether there was something to clean."""
    dirty = notebook.metadata.pop("widgets", None) is not None
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        kept = [output for output in outputs if not is_passing(output)]
        if len(kept) < len(outputs):
            cell.outputs, dirty = kept, True
        for number, output in enumerate(kept):
            name = f"T_{cell.id}" + f"-{number}" * bool(number)
            changes = (
                drop_widget(output),
                without_kernel(output),
                rename_table(output, name),
            )
            dirty |= any(changes)
    return dirty


def main() -> None:
    project = Path(__file__).resolve().parent.parent
    for folder in (project / "nbs", project / "solutions"):
        for path in folder.rglob("*.ipynb"):
            notebook = nbformat.read(path, as_version=4)
            if clean(notebook):
                nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
