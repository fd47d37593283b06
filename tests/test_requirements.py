"""The bounds of settings.ini have reasons, and tools/versions.py tries them all."""

import re
from pathlib import Path

import pytest

from tools import versions

settings = Path(versions.ROOT, "settings.ini").read_text(encoding="utf-8").splitlines()
bounds = [
    (above.strip(), line.strip())
    for above, line in zip(settings, settings[1:])
    if re.match(r"    \w", line)
]


@pytest.mark.parametrize("above, line", bounds, ids=[line for _, line in bounds])
def test_every_requirement_has_a_lower_bound_and_odd_ones_a_reason(above, line):
    """Odd is an upper bound, or a lower one that names a patch."""
    assert ">=" in line, "the lowest version that is allowed, for `make test-versions`"
    assert above.startswith("#") or not re.search(r"<|>=\d+\.\d+\.\d", line), (
        "a comment on the line above says why"
    )


def test_what_is_tried_is_what_settings_say(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    lists = {"": "one_package>=2", "dev_": "one-package>=2\n  third>=4"}
    lists |= {f"{extra}_": f"x-{extra}>=3" for extra in versions.EXTRAS}
    lists["watch_"] += " trackio>=1"
    lines = [f"{extra}requirements =\n  {asked}" for extra, asked in lists.items()]
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n" + "\n".join(lines) + "\n")
    extras = {f"x-{extra}" for extra in versions.EXTRAS}
    assert set(versions.of_users()) == {"one-package"} | extras
    assert list(versions.of_tests()) == ["third"]


def test_every_extra_is_tried_or_said_to_be_left_out():
    extras = re.findall(r"(?m)^(\w+)_requirements", "\n".join(settings))
    tried = {*versions.EXTRAS, "dev"}
    assert tried <= set(extras)
    assert all(extra in versions.__doc__ for extra in set(extras) - tried)


def test_a_python_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(versions, "HOME", tmp_path / "legs")
    monkeypatch.setattr("sys.argv", ["versions.py", "--pythons", "python0.1"])
    with pytest.raises(SystemExit) as stopped:
        versions.main()
    assert stopped.value.code == 1
    assert "python0.1: SKIPPED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "step, log, said",
    [
        ("tests", "1 failed, 9 passed in 3.21s", "1 failed, 9 passed"),
        ("tests", "= 9 passed, 2 skipped in 64.00s (0:01:04) =", "9 passed, 2 skipped"),
        ("tests", "ImportError: no module", "no test ran"),
        (
            "notebooks",
            "Starting /nbs/a.ipynb\nStarting /nbs/b.ipynb\n- Completed /nbs/a.ipynb\n"
            "- Completed /nbs/b.ipynb\n\nTests Failed On:\n=====\n\tb.ipynb\n",
            "1 passed, 1 failed",
        ),
    ],
)
def test_logs_are_counted(step, log, said):
    assert versions.counted(step, log) == said
