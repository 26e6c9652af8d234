"""Numbers as the report prints them: three digits and a unit. None, NaN and infinity are "not measured"."""

import math
import re
from typing import TypeGuard

from ..record import Measured

MISSING = "not measured"
KINDS = {
    "fused": "fused, this package",
    "other": "its further backends",
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    "library": "other libraries",
    "reference": "this package's reference",
}


def known(value: float | None) -> TypeGuard[float]:
    """Whether a value was measured."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if not known(value):
        return MISSING
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{float(f'{value:.3g}'):,.{min(digits, 9)}f}"


def _scaled(value: float | None, units: list[tuple[float, str]]) -> str:
    if not known(value):
        return MISSING
    size, unit = next(((s, u) for s, u in units if abs(float(f"{value / s:.3g}")) >= 1), units[-1])
    return f"{number(value / size)} {unit}"


def seconds(value: float | None) -> str:
    return _scaled(value, [(1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])


def size(value: float | None) -> str:
    """A number of bytes, such as 42.2 MiB."""
    if value == 0:
        return "0"
    return _scaled(value, [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def part(value: float | None, whole: float | None) -> str:
    """One number of bytes out of another: 13.0 of 42.2 MiB."""
    (first, *unit), last = size(value).split(), size(whole)
    return f"{first} of {last}" if unit == last.split()[1:] else f"{size(value)} of {last}"


def rate(value: float | None) -> str:
    return f"{number(value)} GB/s" if known(value) else MISSING


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return f"{number(100 * value)} %" if known(value) else MISSING


def span(low: float | None, high: float | None) -> str:
    """A range of times; the unit is given once if both have the same."""
    if not known(low) or not known(high):
        return MISSING
    (first, unit), last = seconds(low).split(), seconds(high)
    return f"{first} – {last}" if last.endswith(f" {unit}") else f"{first} {unit} – {last}"


def times(value: float | None) -> str:
    """A ratio, to two digits below 1."""
    if not known(value):
        return MISSING
    return f"{value:.2f}×" if 0.1 <= value < 1 else f"{value:.2g}×" if 1e-4 < value < 0.1 else f"{number(value)}×"


def plain(text: str) -> str:
    """Remove trailing zeros, as on an axis: 1.00 ms is 1 ms."""
    return re.sub(r"\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)", r"\1", text)


def where(work: Measured) -> str:
    """What distinguishes a work from the others of its op, in short."""
    short = {"forward+backward": "fwd+bwd", "forward": "fwd"}
    dtype = {"float32": "", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
    parts = [work.shape, dtype.get(work.dtype, work.dtype), short.get(work.direction, work.direction)]
    alone = work.threads == 1 and work.device == "cpu"
    return " ".join([*filter(None, parts), *["cold"] * (work.cache == "cold"), *["1 thread"] * alone])
