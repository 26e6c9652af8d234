"""Two result files: the ratios, what is beyond the noise, and what cannot be compared."""

import argparse
import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.pairs import LEAST, ROLES, Outcome
from benchmarks.ratios import FASTER, NOISE, SLOWER, Estimate, duration, paired, quotient, verdict
from benchmarks.record import Measured, Result, Variant

ENVIRONMENT = {"processor": "EPYC", "isa": "avx512", "threads": "2", "torch": "2.13.0", "date": "2026-11-25"}


def _variant(median: float, spread: float = 0.02, kind: str = "fused") -> Variant:
    return Variant(kind, median, median * (1 - spread), median * (1 + spread), rounds=20, calls=1)


def _work(id: str, fused: Variant | None, eager: float = 1e-2) -> Measured:
    variants = {"eager": _variant(eager, kind="eager")} | ({"fused": fused} if fused else {})
    return Measured(id, id, "cremad", "64x512", "float32", "forward", "warm", 2, "cpu", 1, 1, variants)


def _result(works: list[Measured], **environment: str) -> Result:
    return Result({**ENVIRONMENT, **environment}, {"2": 30.0}, works)


@pytest.fixture
def command(tmp_path, capsys):
    """Compare two results, by the command: exit code, what it printed, and its JSON where there is one."""

    def call(a: Result, b: Result, *flags: str):
        for name, result in (("a", a), ("b", b)):
            result.save(tmp_path / f"{name}.json")
        code = _call([str(tmp_path / "a.json"), str(tmp_path / "b.json"), *flags, "--json", str(tmp_path / "out.json")])
        printed = capsys.readouterr()
        report = json.loads((tmp_path / "out.json").read_text()) if code < 2 else None
        return code, printed.out + printed.err, report

    return call


def _call(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.run(parser.parse_args(arguments))


def test_faster_slower_and_noise_are_told_apart(command):
    names = {"quick": 0.5e-3, "slow": 2e-3, "same": 1.01e-3}
    old = _result([_work(name, _variant(1e-3)) for name in names])
    new = _result([_work(name, _variant(seconds)) for name, seconds in names.items()])
    code, printed, report = command(old, new)
    assert code == 0
    assert {work["id"]: work["verdict"] for work in report["works"]} == {"quick": FASTER, "slow": SLOWER, "same": NOISE}
    assert [work["ratio"] for work in report["works"]] == pytest.approx([2, 0.5, 1 / 1.01])
    (line,) = [line for line in printed.splitlines() if line.startswith("quick")]
    assert "1 ms" in line and "500 µs" in line and "2.000" in line and line.rstrip().endswith(FASTER)
    assert "\x1b" not in printed


@pytest.mark.parametrize("spread, expected", [(0.01, SLOWER), (0.2, NOISE)])
def test_the_spread_decides(command, spread, expected):
    old, new = (_result([_work("op", _variant(seconds, spread))]) for seconds in (1e-3, 1.1e-3))
    assert command(old, new)[2]["works"][0]["verdict"] == expected


def test_works_of_one_file_are_listed(command):
    old = _result([_work("both", _variant(1e-3)), _work("gone", _variant(1e-3)), _work("broken", _variant(1e-3))])
    broken = replace(_work("broken", None), wrong=["fused: error 1"])
    new = _result([_work("both", _variant(1e-3)), _work("new", _variant(1e-3)), broken])
    code, printed, report = command(old, new)
    assert code == 0
    left_out = {"new": "only in B", "gone": "only in A", "broken": "no fused in B (wrong results)"}
    assert report["not_compared"] == left_out
    assert all(f"not compared: {id}: {reason}" in printed for id, reason in left_out.items())


def test_another_machine_gives_a_warning(command):
    works = [_work("op", _variant(1e-3))]
    _, printed, report = command(_result(works), _result(works, processor="Xeon", isa="avx2", date="2026-11-26"))
    assert report["warnings"][:2] == [
        "different processor: EPYC in A, Xeon in B",
        "different isa: avx512 in A, avx2 in B",
    ]
    assert "separate runs" in report["warnings"][2]
    assert all(f"warning: {line}" in printed for line in report["warnings"])
    assert command(_result(works), _result(works))[2]["warnings"] == []


def test_drift_is_shown_and_divided_out(command):
    """B's machine was slow throughout: eager too takes 1.5 times as long."""
    old, new = (_result([_work("op", _variant(1e-3 * slow), 1e-2 * slow)]) for slow in (1, 1.5))
    _, printed, report = command(old, new)
    assert report["works"][0]["verdict"] == SLOWER and report["works"][0]["control"] == pytest.approx(1 / 1.5)
    assert "drift: eager A/B 0.667" in printed
    code, _, report = command(old, new, "--normalise", "--fail-below", "0.9")
    assert code == 0
    assert report["works"][0]["verdict"] == NOISE and report["works"][0]["ratio"] == pytest.approx(1)


def test_the_fastest_baseline_of_a_kind_is_the_control(command):
    results = []
    for slow in (1, 2):
        work = _work("op", _variant(1e-3))
        eager = {"eager linear": _variant(3e-3, kind="eager"), "eager baddbmm": _variant(2e-3 * slow, kind="eager")}
        work.variants = {"fused": work.variants["fused"], **eager}
        results.append(_result([work]))
    assert command(*results)[2]["works"][0]["control"] == pytest.approx(0.5)


def test_a_work_without_a_baseline_cannot_be_normalised(command):
    works = [_work("drawn", _variant(1e-3)), _work("op", _variant(1e-3))]
    del works[0].variants["eager"]
    assert command(_result(works), _result(works))[2]["works"][0]["control"] is None
    report = command(_result(works), _result(works), "--normalise")[2]
    assert report["not_compared"] == {"drawn": "no eager in both to normalise by"}


@pytest.mark.parametrize(
    "seconds, spread, code",
    [(1.2e-3, 0.01, 1), (1.2e-3, 0.3, 0), (1.05e-3, 0.01, 0), (1e-3, 0.01, 0)],
    ids=["surely below", "perhaps below", "slower, not below", "the same"],
)
def test_fail_below(command, seconds, spread, code):
    old, new = (_result([_work("op", _variant(s, spread))]) for s in (1e-3, seconds))
    found, printed, _ = command(old, new, "--fail-below", "0.9")
    assert found == code and ("below 0.9: op" in printed) == bool(code)
    assert command(old, new)[0] == 0


def test_another_variant(command):
    old, new = (_result([_work("op", _variant(1e-3), eager)]) for eager in (1e-2, 2e-2))
    report = command(old, new, "--variant", "eager")[2]
    assert report["works"][0]["verdict"] == SLOWER


def test_csv_has_a_line_for_each_work(command, tmp_path):
    works = [_work("one", _variant(1e-3)), _work("two", _variant(2e-3))]
    command(_result(works), _result(works), "--csv", str(tmp_path / "out.csv"))
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], float(row["a_s"]), row["verdict"]) for row in rows] == [
        ("one", 1e-3, NOISE),
        ("two", 2e-3, NOISE),
    ]


def _other_schema(text: str) -> str:
    return text.replace('"schema": 1', '"schema": 99')


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda text: text[: len(text) // 2], "expected a results.json"),
        (_other_schema, "expected schema 1, got 99"),
        (lambda text: "[]", "expected schema 1, got None"),
        (lambda text: text.replace('"works"', '"work"'), "works"),
        (lambda text: text.replace('"median": 0.001', '"median": -1'), "expected 0 < low <= value <= high"),
        (lambda text: text.replace('"median": 0.001', '"median": null'), "p20, median, p80"),
        (lambda text: text.replace('"id": "op"', '"id": "other"'), "expected a work of which both have fused"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path, capsys, spoil, message):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    _result([_work("op", _variant(1e-3))]).save(good)
    if spoil:
        bad.write_text(spoil(good.read_text()))
    for pair in ((good, bad), (bad, good)):
        assert _call([str(path) for path in pair]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("cannot compare: ") and message in printed.err and not printed.out


@pytest.mark.parametrize(
    "flags", [("--fail-below", limit) for limit in ("0", "-1", "nan", "inf", "x")] + [("--json", "/nowhere/out.json")]
)
def test_flags_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        _call(["a", "b", *flags])
    assert stop.value.code == 2 and f"argument {flags[0]}: " in capsys.readouterr().err


def test_an_estimate_refuses_what_is_none():
    for numbers in ((1, 2, 3), (1, 0, 2), (float("nan"),) * 3, (float("inf"),) * 3):
        with pytest.raises(ValueError, match=r"^estimate: expected 0 < low"):
            Estimate(*numbers)


def test_distances_of_a_quotient_add_up_as_squares():
    """A step of a factor 8 and one of a factor 16 make one of 32: 3² + 4² = 5²."""
    ratio = quotient(Estimate(1.0, 1 / 8, 1.0), Estimate(1.0, 1.0, 16.0))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.0, 1 / 32, 1.0))


def test_a_verdict_needs_both_the_interval_and_the_floor():
    assert verdict(Estimate(1.1, 1.05, 1.2), 1.05) == FASTER
    assert verdict(Estimate(1 / 1.1, 1 / 1.2, 1 / 1.05), 1.05) == SLOWER
    assert verdict(Estimate(1.1, 0.99, 1.2), 1.05) == NOISE
    assert verdict(Estimate(1.1, 1.05, 1.2), 1.15) == NOISE


@pytest.mark.parametrize(
    "seconds, text",
    [(2.5, "2.5 s"), (1.234e-3, "1.23 ms"), (9.996e-4, "1 ms"), (4e-6, "4 µs"), (5e-9, "5 ns"), (2.5e-10, "0.25 ns")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def _sampled(generator: np.random.Generator, change: float, process: float) -> Outcome:
    """Three processes of twelve rounds: 3 % from sample to sample, `process` from one to the next, slow phases."""
    outcome = Outcome("op")
    for _ in range(3):
        phase = np.where(generator.random(12) < 0.2, 1.5, 1.0)
        for role in ROLES:
            own = np.exp(generator.normal(0, process) + generator.normal(0, 0.03, 12))
            outcome.seconds[role].append(list(1e-3 * phase * own * (change if role == "head" else 1)))
    return outcome


def _verdicts(change: float, process: float) -> list[str]:
    generator = np.random.default_rng(0)
    return [_sampled(generator, change, process).verdict for _ in range(100)]


@pytest.mark.parametrize("change, expected", [(1.1, SLOWER), (1 / 1.1, FASTER)])
def test_a_planted_change_of_ten_percent_is_found(change, expected):
    assert _verdicts(change, 0.01).count(expected) >= 98


@pytest.mark.parametrize("process", [0.0, 0.01, 0.03])
def test_no_change_is_within_noise(process):
    """Where processes differ by 3 %, of their own, that too is noise."""
    assert _verdicts(1.0, process).count(NOISE) >= 95


def test_the_interval_holds_the_true_ratio():
    generator = np.random.default_rng(1)
    found = [_sampled(generator, 1.25, 0.0).ratio for _ in range(200)]
    inside = sum(ratio.low <= 1 / 1.25 <= ratio.high for ratio in found) / len(found)
    assert 0.9 <= inside <= 1
    # And it is no wider than it has to be: two standard errors of a median of 36 ratios are 1.8 %.
    assert np.mean([ratio.high / ratio.low for ratio in found]) < 1.06


def test_pairs_without_noise():
    ratio = paired([[2.0, 4.0]], [[1.0, 2.0]])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    outcome = Outcome("op", {"base": [[2.0]], "again": [[2.0]], "head": [[1.999]]})
    assert outcome.least_change == LEAST and outcome.verdict == NOISE
