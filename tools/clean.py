"""Remove the widget state that nbdev_clean keeps: thousands of lines for progress bars that nobody sees."""
from pathlib import Path

import nbformat

for path in (Path(__file__).resolve().parent.parent / "nbs").rglob("*.ipynb"):
    notebook = nbformat.read(path, as_version=4)
    if notebook.metadata.pop("widgets", None):
        nbformat.write(notebook, path)
