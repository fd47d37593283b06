"""Write README.md and its pictures from nbs/index.ipynb, without quarto.

python tools/readme.py            write them into the project
python tools/readme.py FOLDER     write them into another folder (the test compares)
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

project = Path(__file__).resolve().parent.parent


def write_readme(folder: Path) -> None:
    notebook = nbformat.read(project / "nbs" / "index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:  # directives are for the site and the tests
        cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source)
    exporter = MarkdownExporter(
        config=Config(
            {
                "NbConvertBase": {
                    "display_data_priority": [
                        "text/markdown",
                        "image/png",
                        "text/plain",
                    ]
                }
            }
        )
    )
    text, resources = exporter.from_notebook_node(
        notebook, {"output_files_dir": "images", "unique_key": "readme"}
    )
    text = re.sub(r"\]\(([^):]+\.(?:ipynb|svg))\)", r"](nbs/\1)", text).replace(
        "](https://github.com/clipadapt/clipadapt/blob/main/", "]("
    )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for old in (folder / "images").glob("readme_*"):
        old.unlink()
    for name, content in resources["outputs"].items():
        (folder / name).write_bytes(content)
    text = re.sub(
        r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())
    )
    (folder / "README.md").write_text(text.strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_readme(Path(sys.argv[1]) if len(sys.argv) > 1 else project)
