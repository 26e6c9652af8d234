"""The benchmark's record: derived figures, files, goals, slopes, tables."""

import csv
import dataclasses

import pytest

from benchmarks import goals, scaling, suite, tables
from benchmarks.record import Measured, Overhead, Result, Sweep, Variant


def variant(kind: str, median: float, memory: int | None = None) -> Variant:
    return Variant(kind, median, 0.9 * median, 1.2 * median, 20, 3, memory)


def measured(op: str = "reparameterize", shape: str = "map14", fused: float = 1e-3, **other) -> Measured:
    """A million elements, 12 million bytes: 1 ns an element and 12 GB/s at a millisecond."""
    variants = {
        "eager a": variant("eager", 50e-3, 400),
        "eager b": variant("eager", 46e-3, 300),
        "compile": variant("compile", 20e-3),
        "fused": variant("fused", fused, 75),
    }
    fields = {"dtype": "float32", "direction": "forward", "cache": "warm", "threads": 2} | other
    id = "/".join(map(str, (op, shape, *fields.values())))
    return Measured(
        id, op, shape, "1000x1000", device="cpu", elements=10**6, bytes=12 * 10**6, variants=variants, **fields
    )


def result(*works: Measured) -> Result:
    return Result({"commit": "abc"}, {"1": 10.0, "2": 24.0}, list(works))


def test_derived_figures():
    work = measured()
    assert work.ns_per_element() == pytest.approx(1)
    assert work.gb_s() == pytest.approx(12)
    assert work.gb_s("compile") == pytest.approx(0.6)
    assert result(work).copy_share(work) == pytest.approx(0.5)
    # The fastest of the two.
    assert work.baseline("eager") == "eager b" and work.ratio("eager") == pytest.approx(46)
    assert work.ratio("compile") == pytest.approx(20)
    assert work.memory_ratio() == pytest.approx(0.25)
    assert work.ratio("library") is None
    assert result(measured(threads=1)).copy_share(measured(threads=3)) is None


def test_what_fits_a_gpus_cache_is_not_compared_with_a_copy():
    warm, cold = measured(), measured(cache="cold")
    for cache, shares in ((None, [0.5, 0.5]), (12 * 10**6, [0.5, 0.5]), (60 << 20, [None, 0.5])):
        found = dataclasses.replace(result(warm, cold), cache_bytes=cache)
        assert [found.copy_share(w) for w in (warm, cold)] == shares
    assert "of copy" not in suite.summary(warm, found.copy_share) and "50% of copy" in suite.summary(
        cold, found.copy_share
    )


def test_the_record_comes_back(tmp_path):
    first = result(measured(), measured(shape="B=64", sweep=Sweep("reparameterize", "B", 64)))
    first.overhead.append(Overhead("normal", "forward", "fused", 1e-5))
    first.goals, first.slopes = goals.evaluate(first), scaling.slopes(first)
    first.save(tmp_path / "results.json")
    assert Result.load(tmp_path / "results.json") == first


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected"):
        Result.load(path)


def test_csv_has_a_row_for_each_variant(tmp_path):
    result(measured()).save_csv(tmp_path / "results.csv")
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "results.csv").open())}
    assert list(rows) == ["eager a", "eager b", "compile", "fused"]
    assert float(rows["fused"]["times_eager"]) == 46 and float(rows["fused"]["share_of_copy"]) == 0.5
    assert rows["compile"]["peak_extra_bytes"] == ""


def test_goals():
    one = measured("reparameterize", "cremad", 1.9e-3, threads=1)
    works = result(measured(), measured("reparameterize", "cremad"), one, measured("head_step", "features", 5e-3))
    by_name = {goal.name: goal for goal in goals.evaluate(works)}
    faster = by_name["reparameterize map14 forward against eager"]
    assert faster.met and faster.reached == pytest.approx(46)
    copy = by_name["reparameterize map14 forward, time of a copy of its bytes"]
    assert copy.most and copy.met and copy.reached == pytest.approx(2)
    threads = by_name["reparameterize cremad forward, two threads against one"]
    assert threads.met and threads.reached == pytest.approx(1.9)
    missing = by_name["reparameterize map14 forward+backward against eager"]
    assert missing.reached is None and not missing.met
    slow = goals.evaluate(result(measured(fused=1.1e-3)))[0]
    assert not slow.met and slow.reached == pytest.approx(46 / 1.1)
    works.goals = list(by_name.values())
    assert "not measured" in tables.goals_table(works) and "NOT met" not in tables.goals_table(result())


def test_goals_are_for_the_cpu():
    assert goals.evaluate(result(dataclasses.replace(measured(), device="cuda"))) == []


def test_slopes():
    works = [measured("normal", f"B={b}", fused=1e-3 * b**1.5, sweep=Sweep("normal", "B", b)) for b in (8, 16, 32)] + [
        measured("normal", f"threads={n}", sweep=Sweep("normal", "threads", n)) for n in (1, 2)
    ]
    found = {(s.axis, s.variant): s.slope for s in scaling.slopes(result(*works))}
    assert found["B", "fused"] == pytest.approx(1.5) and found["B", "compile"] == pytest.approx(0)
    assert not any(axis == "threads" for axis, _ in found)


def test_headline_leaves_out_what_is_not_of_the_whole_machine():
    text = tables.headline(result(measured(), measured(threads=1, shape="one"), measured(cache="cold", shape="cold")))
    assert "map14" in text and "one" not in text and "cold" not in text
    assert "| 46 | 20 | 1 | 1.00 | 50 | 46.0 | 20.0 |" in text
