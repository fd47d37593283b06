"""Reads settings.ini, the one place for the version, the dependencies and the
description."""

import runpy
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


EXTRAS = (
    "hub",
    "tools",
    "fiftyone",
    "captions",
    "server",
    "ray",
    "accelerate",
    "export",
    "widgets",
    "course",
    "watch",
    "browser",
    "dev",
)


def requirements(extra=""):
    return settings[f"{extra}requirements"].split()


course = runpy.run_path(str(here / "clipadapt" / "app" / "course.py"))


class BuildWithCourse(build_py):
    """The package with the notebooks of the course in it, without their outputs. An
    editable installation reads those of the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            course["collect"](here, Path(self.build_lib) / "clipadapt" / "course")


class SourceWithCourse(sdist):
    """The sources with the notebooks of the course, without their outputs."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for path in Path(base_dir).rglob("*.ipynb"):
            text = path.read_text(encoding="utf-8")
            path.unlink()  # it may be a link to the one in the checkout
            path.write_text(course["without_outputs"](text), encoding="utf-8")


setup(
    cmdclass={"build_py": BuildWithCourse, "sdist": SourceWithCourse},
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    url=settings["git_url"],
    keywords=settings["keywords"],
    packages=find_packages(include=["clipadapt*"]),
    package_data={
        "clipadapt.images": ["datasets.json"],
        "clipadapt.clip": ["builtin/*"],
        "clipadapt.judge": ["report.html"],
    },
    include_package_data=True,
    python_requires=f">={settings['min_python']}",
    install_requires=requirements(),
    extras_require={extra: requirements(f"{extra}_") for extra in EXTRAS},
    entry_points={
        "console_scripts": [
            f"{settings['lib_name']}={settings['lib_name']}.__main__:main"
        ],
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
