"""Reads settings.ini, the one place for the version, the dependencies and the
description."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


EXTRAS = (
    "hub",
    "captions",
    "server",
    "ray",
    "accelerate",
    "export",
    "widgets",
    "watch",
    "browser",
    "dev",
)


def requirements(extra=""):
    return settings[f"{extra}requirements"].split()


setup(
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
            f"{settings['lib_name']}={settings['lib_name']}.app.cli:main"
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
