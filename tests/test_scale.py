"""What benchmarks/scale.py leaves out, does again, and makes of its lines."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import scale_tables  # noqa: E402
from scale_tables import Run  # noqa: E402


def line(run, seconds=None, status=None):
    """A line of a file of results."""
    measured = {"cpu_s": seconds, "fit_cpu_s": seconds, "peak_gib": 1.0}
    limits = {"limit_s": 60, "limit_gib": 12}
    return {**run._asdict(), **limits, "status": status or "measured", **measured}


def of_size(count, seconds=None, status=None):
    run = Run("Slow", 64, 10, count)
    return run, line(run, seconds, status)


def test_what_is_there_is_not_done_again_unless_the_limit_is_higher():
    assert scale_tables.is_left(None, 60, 12)
    _, measured = of_size(1000, 1.0)
    assert not scale_tables.is_left(measured, 600, 24)
    for status in ("over 60 s", "expected over: over 60 s at N = 1000"):
        _, over = of_size(1000, status=status)
        assert not scale_tables.is_left(over, 60, 12)
        assert scale_tables.is_left(over, 61, 12) and scale_tables.is_left(over, 60, 13)


def test_larger_runs_are_recorded_as_over_the_limit_and_not_tried():
    small, large = Run("Slow", 64, 10, 1000), Run("Slow", 64, 10, 100_000)
    assert scale_tables.too_large(small, {}, 60) is None
    known = dict([of_size(1000, 1.0), of_size(10_000, 10.0)])
    assert "at least 100 s" in scale_tables.too_large(large, known, 60)
    assert scale_tables.too_large(large, known, 101) is None
    assert scale_tables.too_large(small, known, 1) is None, "nothing is smaller"
    known = dict([of_size(1000, 1.0), of_size(10_000, status="over 60 s")])
    assert "over 60 s at N = 10000" in scale_tables.too_large(large, known, 1e9)
    other = large._replace(C=100)
    assert scale_tables.too_large(other, known, 60) is None


def test_exponents_and_what_is_steep(tmp_path):
    path = tmp_path / "growth.jsonl"
    series = {"Linear": 1e-4, "Square": 1e-9}
    lines = [
        line(Run(name, 64, 10, n), factor * n ** (1 if name == "Linear" else 2))
        for name, factor in series.items()
        for n in (1000, 10_000, 100_000, 1_000_000)
    ]
    lines.append(line(Run("Slow", 64, 10, 1000), status="over 60 s"))
    first = line(Run("Linear", 64, 10, 1000), 1e9)  # was done again
    path.write_text("".join(json.dumps(one) + "\n" for one in [first, *lines]))
    growth = scale_tables.read_growth(path)
    assert len(growth) == 9
    found = scale_tables.exponents(growth)
    assert found.loc[("Linear", 64, 10), "all N"] == pytest.approx(1)
    assert found.loc[("Square", 64, 10), "last"] == pytest.approx(2)
    assert [*scale_tables.steep(growth).index] == [("Square", 64, 10)]
    assert "rounds" not in scale_tables.steep(growth)
    rounds = growth["N"].map({1000: 5, 10_000: 5, 100_000: 7, 1_000_000: 80})
    steep = scale_tables.steep(growth.assign(rounds=rounds))
    assert steep["rounds"].tolist() == ["7 → 80"]
    unknown = rounds.where(growth["N"] < 1_000_000)
    assert scale_tables.steep(growth.assign(rounds=unknown))["rounds"].tolist() == [""]
    table = scale_tables.seconds_and_memory(growth)
    assert table.loc[("Slow", 64, 10), "N = 1,000"] == "over"
    assert table.loc[("Linear", 64, 10), "N = 1,000,000"] == "100"
    scale_tables.show(path)


def test_rounds_are_those_of_the_fit():
    import scale

    fitted = lambda history: type("Fitted", (), {"history_": history})()
    assert scale.rounds_of(fitted([{"change": 0.1}] * 7)) == {"rounds": 7}
    steps = [{"step": 0}, {"step": 100}, {"step": 160}]
    assert scale.rounds_of(fitted(steps)) == {"rounds": 161}
    assert scale.rounds_of(fitted([])) == scale.rounds_of(object()) == {}
