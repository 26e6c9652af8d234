"""Compare two results.json, A (old) and B (new): how many times as fast B is, and which changes exceed the noise.

The ratio of a work is the median of A over the median of B: above 1, B is faster. Its interval comes from p20 and p80
of both: in logarithms, the distance from the median to p20 of one and that to p80 of the other are added in quadrature,
which gives the middle 60 % of the ratio of one sample to one sample. At 20 rounds that is three standard errors of
the ratio of the medians. It does not shrink with more rounds: what distinguishes two runs, such as clock and
neighbours, affects all samples of a run. A ratio whose interval contains 1 is within noise.

Baselines are not this package's code and should not have changed between the runs, so their ratio is the drift of
the machine: it is shown beside each work, and --normalise divides by it.
"""

import argparse
import sys
from statistics import geometric_mean
from typing import Any

from udml_kernels.tools.table import table

from .ratios import Estimate, add_output_arguments, duration, interval, quotient, verdict, write
from .record import Measured, Result, Variant

HELP = "ratios of two results.json with their spread, and what is beyond the noise"
DECIDING = ("processor", "gpu", "isa", "backend", "threads", "torch", "compiler", "system")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.json", help="the old result")
    parser.add_argument("b", metavar="B.json", help="the new result")
    parser.add_argument("--variant", default="fused", help="the variant to compare (default: %(default)s)")
    parser.add_argument("--control", default="eager", help="the baseline that shows drift (default: %(default)s)")
    parser.add_argument("--normalise", action="store_true", help="divide each ratio by the control's ratio")
    add_output_arguments(parser)


def _estimate(label: str, variant: Variant) -> Estimate:
    try:
        return Estimate(variant.median, variant.p20, variant.p80)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: p20, median, p80: {error}") from error


def _pair(a: Measured, b: Measured, name: str | None) -> tuple[Estimate, Estimate] | None:
    if name not in a.variants or name not in b.variants:
        return None
    return _estimate(f"A, {a.id}, {name}", a.variants[name]), _estimate(f"B, {b.id}, {name}", b.variants[name])


def _control(a: Measured, b: Measured, name: str) -> Estimate | None:
    """The ratio of the variant `name` or, if there is none, of the fastest one of that kind in A ("eager linear")."""
    found = _pair(a, b, name if name in a.variants else a.baseline(name))
    return quotient(*found) if found else None


def compare(
    a: Result, b: Result, variant: str, control: str, normalise: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each work in both results, and for each of the others the reason why it is not compared.

    `control` is the drift, None where the two results lack a common baseline.

    Raises:
        ValueError: if times are not positive numbers in order, or no work can be compared.
    """
    rows, left_out = [], {work.id: "only in B" for work in b.works if a.find(work.id) is None}
    for old in a.works:
        new = b.find(old.id)
        if new is None:
            left_out[old.id] = "only in A"
            continue
        pair, drift = _pair(old, new, variant), _control(old, new, control)
        if pair is None:
            lacking = [name for name, work in (("A", old), ("B", new)) if variant not in work.variants]
            wrong = " (wrong results)" if old.wrong or new.wrong else ""
            left_out[old.id] = f"no {variant} in {' and '.join(lacking)}{wrong}"
        elif normalise and drift is None:
            left_out[old.id] = f"no {control} in both to normalise by"
        else:
            ratio = quotient(quotient(*pair), drift) if normalise and drift else quotient(*pair)
            times = {"id": old.id, "a_s": pair[0].value, "b_s": pair[1].value}
            seen = {"control": drift.value if drift else None, "verdict": verdict(ratio)}
            rows.append({**times, "ratio": ratio.value, "low": ratio.low, "high": ratio.high, **seen})
    if not rows:
        reasons = ", ".join(sorted(set(left_out.values()))) or "no works"
        raise ValueError(f"A, B: expected a work of which both have {variant}, got {reasons}")
    return rows, left_out


def warnings(a: Result, b: Result) -> list[str]:
    """Reasons why the ratios may be less reliable than they seem."""
    told = []
    for key in DECIDING:
        old, new = a.environment.get(key, "not stated"), b.environment.get(key, "not stated")
        if old != new:
            told.append(f"different {key}: {old} in A, {new} in B")
    if a.environment != b.environment:
        told.append("A and B are separate runs: the machine may have drifted; make bench-compare interleaves")
    return told


def _print(rows: list[dict], left_out: dict[str, str], told: list[str], options: argparse.Namespace) -> None:
    for line in told:
        print(f"warning: {line}")
    ratio = f"A/B over {options.control}'s" if options.normalise else "A/B"
    lines = [(f"work ({options.variant})", "A", "B", ratio, f"{options.control} A/B", "")]
    for r in rows:
        drift = f"{r['control']:.3f}" if r["control"] else "-"
        lines.append((r["id"], duration(r["a_s"]), duration(r["b_s"]), interval(r), drift, r["verdict"]))
    print(table(lines))
    drifts = [r["control"] for r in rows if r["control"]]
    if drifts:
        state = "taken out of the ratios" if options.normalise else "--normalise takes it out of the ratios"
        print(f"\ndrift: {options.control} A/B {geometric_mean(drifts):.3f}, geometric mean; {state}")
    for id, reason in left_out.items():
        print(f"not compared: {id}: {reason}")


def run(options: argparse.Namespace) -> int:
    """Returns: 0; 1 if --fail-below is given and a work is slower than that; 2 for files that cannot be compared."""
    try:
        a, b = Result.load(options.a), Result.load(options.b)
        rows, left_out = compare(a, b, options.variant, options.control, options.normalise)
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    told = warnings(a, b)
    _print(rows, left_out, told, options)
    report = {"a": a.environment, "b": b.environment, "variant": options.variant, "control": options.control}
    report |= {"normalised": options.normalise, "warnings": told, "not_compared": left_out}
    return int(write(options, rows, report))
