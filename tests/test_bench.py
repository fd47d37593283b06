"""The driver of the benchmarks, and that its page, its results and its list agree."""

import json
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "benchmarks"))
import measuring  # noqa: E402
import performance  # noqa: E402
from measuring import Row, Spent  # noqa: E402

FAKE = """
from pathlib import Path

def rows():
    from measuring import Row, spent
    with Path("{log}").open("a") as log:
        log.write("x")
    ours, _ = spent(lambda: sum(range(20_000)))
    return [Row("clip", "add", "ours", "theirs", ours, ours * 3, 2)]
"""


@pytest.fixture
def folder(tmp_path):
    """A benchmark that works, and one that does not."""
    log = (tmp_path / "log").as_posix()
    (tmp_path / "works.py").write_text(FAKE.format(log=log), encoding="utf-8")
    text = "def rows():\n    raise OSError('no such pictures')\n"
    (tmp_path / "fails.py").write_text(text, encoding="utf-8")
    return tmp_path


def test_one_that_fails_is_named_and_what_is_known_is_kept(folder, capsys, monkeypatch):
    monkeypatch.setattr(performance, "machine", lambda: {"cores": 2})
    results, names = folder / "found.jsonl", ("fails", "works")
    given = {"results": results, "folder": folder, "order": names}
    assert performance.measure(names, **given) == ["fails"]
    assert "no such pictures" in capsys.readouterr().err
    [line] = performance.read(results).values()
    [row] = line["rows"]
    assert line["benchmark"] == "works" and row["cpu_ratio"] == pytest.approx(3, 1e-3)
    assert performance.is_reached(row)
    monkeypatch.setattr(
        performance, "run", lambda *_: {"rows": [], "seconds": 1, "load": 9}
    )
    assert performance.measure(["works"], **given) == []  # known
    assert performance.read(results)["works"] == line
    code = folder / "works.py"
    code.write_text('"""Said."""\n' + code.read_text("utf-8"), encoding="utf-8")
    performance.measure(["works"], **given)
    assert performance.read(results)["works"]["load"] == line["load"]  # same code
    code.write_text(code.read_text("utf-8") + "\nmore = 1\n", encoding="utf-8")
    performance.measure(["works"], **given)
    assert performance.read(results)["works"]["load"] == 9
    later = {"rows": [{}], "seconds": 1, "load": 8}
    monkeypatch.setattr(performance, "run", lambda *_: later)
    performance.measure(["works"], **given)  # it had no rows: perhaps now it has
    assert performance.read(results)["works"]["load"] == 8
    code.write_text(code.read_text("utf-8") + "\nbase = 'EARLIER'\n", encoding="utf-8")
    performance.measure(["works"], **given)
    monkeypatch.setenv("EARLIER", "a folder")
    later["load"] = 7
    performance.measure(["works"], **given)
    assert performance.read(results)["works"]["load"] == 7
    monkeypatch.setattr(performance, "machine", lambda: {"cores": 4})
    performance.measure(["works"], **given)
    assert performance.read(results)["works"]["machine"] == {"cores": 4}


def test_the_page_shows_what_was_found(tmp_path):
    slow = Row("clip", "t", "o", "a", Spent(4, 2), Spent(2, 1), 1, "wall", 2**30, 2**31)
    fast = Row("judge", "u", "o", "a", Spent(0.001, 1), Spent(2, 1))
    machine = dict.fromkeys(("processor", "system", "clipadapt", "Python"), "it")
    machine |= {"cores": 2, "threads": 2, "GiB": 8, "torch": "2"}
    line = {"benchmark": "b", "seconds": 60, "load": 0.2, "machine": machine}
    rows = [slow.record(), fast.record()]
    results, page = tmp_path / "found.jsonl", tmp_path / "page.md"
    performance.write(results, {"b": {**line, "rows": rows}}, ["b"])
    marks = f"before\n{performance.BEGIN}\nold\n{performance.END}\nafter\n"
    page.write_text(marks, encoding="utf-8")
    performance.write_page(results, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text
    plain = text.replace("\N{NBSP}", " ").splitlines()
    table = [each for each in plain if each.startswith("|")]
    done, asked = "t | o *against* a", "1.00 (wall), **missed**"
    assert f"| {done} | 4 s / 2 s | 0.50 | 0.50 | {asked} | 1.00 / 2.00 |" in table
    assert "| u | o *against* a | 1 ms / 2 s | 2,000 | 1.00 |  |" in table
    performance.write_page(results, page)
    assert page.read_text(encoding="utf-8") == text


def test_time_is_that_of_children_too_and_turns_go_both_ways():
    import subprocess

    code = "import time\nwhile time.process_time() < 0.05: pass"
    took, _ = measuring.spent(lambda: subprocess.run([sys.executable, "-c", code]))
    assert took.cpu > 0.05 and took.wall > 0
    said = []
    calls = {name: lambda name=name: said.append(name) for name in "ab"}
    times, _ = measuring.turns(calls, rounds=3)
    assert "".join(said) == "abbaabba" and len(times["a"]) == 3
    assert measuring.median([Spent(1, 5), Spent(3, 4), Spent(2, 9)]) == (2, 5)
    assert measuring.least([Spent(1, 5), Spent(3, 4)]) == (1, 4)


def test_page_and_results_agree():
    kept = performance.read(performance.RESULTS)
    text = performance.PAGE.read_text(encoding="utf-8")
    inside = text.partition(performance.BEGIN)[2].partition(performance.END)[0]
    again = "python benchmarks/performance.py --page"
    assert inside.strip() == performance.render(kept), f"made anew by: {again}"
    for name, line in kept.items():
        assert name in performance.BENCHMARKS
        for row in line["rows"]:
            assert row["room"] in measuring.ROOMS
            for kind in ("cpu", "wall"):
                quotient = row["against"][kind] / row["took"][kind]
                assert row[f"{kind}_ratio"] == pytest.approx(quotient, rel=1e-3)


@pytest.mark.parametrize("name", performance.BENCHMARKS)
def test_every_benchmark_is_there_and_says_its_rows(name):
    code = (PROJECT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "\ndef rows(" in code and "Row(" in code


def test_make_bench_is_the_driver():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\nbench: ")[2].splitlines()[1]
    assert recipe.strip() == "$(BIN)/python benchmarks/performance.py"


def test_records_can_be_read_again():
    row = Row("clip", "t", "o", "a", Spent(3, 7), Spent(1, 1)).record()
    assert json.loads(json.dumps(row)) == row and "at_least" not in row
