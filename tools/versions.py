"""The tests with the lowest versions that settings.ini allows, and with the newest.

python tools/versions.py [--pythons python3.10 ...] [--legs lowest newest] [--keep]

A leg is a Python and one end of the bounds. It has an environment of its own, made by
uv, with the package, the extras of `EXTRAS` and what the tests need; then the unit
tests run there, and the notebooks. `lowest` is the lowest version that is allowed *and*
comes as a wheel for this Python: pip takes no other without a compiler. Packages that
only bring others along, and the tools of the tests, are as new as those allow.

The extras fiftyone, captions, ray and browser are not in: they are large, or need what
the tests cannot bring. Nor is trackio, which wants a newer huggingface_hub than the
package does: `make integrations` tries it.

What is done is kept in .venv-versions/results.json, and not done again for the same
code; prose and outputs may change. `--keep` leaves the environments there (eight
gigabytes each).
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-versions"
EXTRAS = "hub tools server accelerate export widgets course watch".split()
LEFT_OUT = {"trackio"}
LINT = {"ruff", "ty", "import-linter", "pre-commit", "pytest-cov"}  # no test runs them
RESOLUTION = {"lowest": "lowest-direct", "newest": "highest"}
ELSEWHERE = ("cluster", "integrations", "devices", "browser", "test_thread_numbers.py")
UV = (sys.executable, "-m", "uv")


def requirements(*extras: str) -> dict[str, Requirement]:
    """What settings.ini asks for, by name; "" is the package itself."""
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    lists = [settings["DEFAULT"][f"{extra}requirements"].split() for extra in extras]
    found = [Requirement(line) for lines in lists for line in lines]
    return {str(canonicalize_name(one.name)): one for one in found}


def of_users() -> dict[str, Requirement]:
    """What is tried at both ends of its bounds."""
    found = requirements("", *(f"{extra}_" for extra in EXTRAS))
    return {name: one for name, one in found.items() if name not in LEFT_OUT}


def of_tests() -> dict[str, Requirement]:
    """What the tests need besides, always as new as it goes."""
    others = {*of_users(), *LINT}
    return {k: one for k, one in requirements("dev_").items() if k not in others}


def output(*command: str | Path, given: str | None = None) -> str:
    """What a command prints; a CalledProcessError says what it complained of."""
    done = subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return done.stdout


def version_of(python: str) -> str:
    """ "3.12" for a Python that starts, "" for one that does not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def make_environment(folder: Path, python: str, leg: str) -> None:
    """An environment with one end of the bounds; one that is complete stays."""
    done, pins, own = folder / "complete", folder / "pins.txt", folder / "bin/python"
    if done.exists():
        return
    output(*UV, "venv", "--quiet", "--seed", "--clear", "--python", python, folder)
    wheels = "--only-binary", ":all:"
    asked = "\n".join(map(str, of_users().values()))
    resolve = *UV, "pip", "compile", "--python", own, *wheels, "--resolution"
    chosen = output(*resolve, RESOLUTION[leg], "--no-annotate", "-", given=asked)
    named = [line for line in chosen.splitlines() if line.split("==")[0] in of_users()]
    pins.write_text("\n".join(named) + "\n")
    everything = "\n".join(map(str, [*of_users().values(), *of_tests().values()]))
    install = *UV, "pip", "install", "--quiet", "--python", own
    output(*install, *wheels, "--constraint", pins, "-r", "-", given=everything)
    output(*install, "--no-deps", "--editable", ROOT)
    done.touch()


def installed(folder: Path) -> dict[str, str]:
    """The versions of what settings.ini names, by name."""
    listed = output(
        *(*UV, "pip", "list", "--format", "json"), "--python", folder / "bin/python"
    )
    return {
        name: one["version"]
        for one in json.loads(listed)
        if (name := str(canonicalize_name(one["name"]))) in of_users()
    }


def steps(folder: Path, workers: int) -> dict[str, list[str]]:
    """The commands of a leg, as `make unit` and `make notebooks` have them."""
    left_out = [part for name in ELSEWHERE for part in ("--ignore", f"tests/{name}")]
    pytest = [str(folder / "bin/python"), *"-m pytest -v -rs --tb=short".split()]
    beside = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    tidy = ["-o", "tmp_path_retention_policy=failed", f"--basetemp={folder}/tmp"]
    notebooks = [str(folder / "bin/nbdev_test"), "--skip_file_re", "^([_.]|threads)"]
    return {
        "tests": [*pytest, *beside, *tidy, *left_out, "tests"],
        "notebooks": [*notebooks, "--n_workers", str(workers), "--do_print"],
    }


def counted(step: str, log: str) -> str:
    """How many passed and failed, as the last line of a log says it."""
    if step == "notebooks":
        started = len(re.findall(r"(?m)^Starting ", log))
        failed = len(re.findall(r"(?m)^\t\S+\.ipynb$", log))
        return f"{started - failed} passed, {failed} failed"
    lines = re.findall(r"(?m)^=*\s*(\d+ (?:passed|failed|error).*?) in [\d.]+s", log)
    return lines[-1] if lines else "no test ran"


def run(step: str, command: Sequence[str], folder: Path) -> dict:
    """Run one step of a leg, beside its log."""
    log, start = HOME / f"{folder.name}-{step}.log", time.perf_counter()
    place = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    kept = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
    with log.open("w") as file:
        code = subprocess.run(
            command,
            cwd=ROOT,
            env={**kept, **place, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    return {
        "passed": code == 0,
        "counts": counted(step, log.read_text(errors="replace")),
        "seconds": round(time.perf_counter() - start),
    }


def state() -> str:
    """A hash of what a leg tries: the package, tests and what they import, bounds, and
    the code of notebooks."""
    parts = ("clipadapt", "tests", "tools", "benchmarks")
    paths = [path for part in parts for path in (ROOT / part).rglob("*")]
    paths = [path for path in paths if path.is_file() and path.suffix != ".pyc"]
    paths = [*sorted(paths), ROOT / "settings.ini", ROOT / "Makefile"]
    read = [path.read_bytes() for path in paths]
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(one["source"]) for one in cells if one["cell_type"] == "code"]
        read.append("\n".join(code).encode())
    return hashlib.sha256(b"\0".join(read)).hexdigest()[:16]


def try_leg(python: str, leg: str, given: argparse.Namespace, results: dict) -> bool:
    """Run what is not yet done of a leg, and keep how it went."""
    name = f"python{version_of(python)}-{leg}"
    folder, now = HOME / name, state()
    if results.get(name, {}).get("state") != now:
        shutil.rmtree(folder, ignore_errors=True)
        results[name] = {"state": now, "versions": {}, "steps": {}}
    kept = results[name]
    for step, command in steps(folder, given.workers).items():
        if step in given.steps and step not in kept["steps"]:
            make_environment(folder, python, leg)
            kept["versions"] = installed(folder)
            kept["steps"][step] = run(step, command, folder)
            (HOME / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return all(one["passed"] for one in kept["steps"].values())


def show(results: dict) -> None:
    """The versions of every leg, then a line a leg."""
    wide = max(map(len, of_users()))
    print(" " * wide, *(f"{name[6:]:>12}" for name in results))
    for package in sorted(of_users()):
        found = (one["versions"].get(package, "-") for one in results.values())
        print(f"{package:{wide}}", *(f"{version:>12}" for version in found))
    for name, one in results.items():
        for step, went in one["steps"].items():
            word = "passed" if went["passed"] else "FAILED"
            print(f"{name} {step}: {word}, {went['counts']}, {went['seconds']} s")


def main() -> None:
    """Try the legs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pythons = [f"python3.{minor}" for minor in range(10, 14)]
    parser.add_argument("--pythons", nargs="+", default=pythons)
    parser.add_argument("--legs", nargs="+", choices=RESOLUTION, default=[*RESOLUTION])
    every = [*steps(HOME, 1)]
    parser.add_argument("--steps", nargs="+", choices=every, default=every)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    given = parser.parse_args()
    HOME.mkdir(exist_ok=True)
    file = HOME / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    missing = [python for python in given.pythons if not version_of(python)]
    there = [python for python in given.pythons if python not in missing]
    went = [try_leg(one, leg, given, results) for one in there for leg in given.legs]
    show(results)
    for python in missing:
        print(f"{python}: SKIPPED, no such Python here")
    sys.exit(0 if went and all(went) else 1)


if __name__ == "__main__":
    main()
