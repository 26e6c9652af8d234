"""The results of a run of the suite: results.json, results.csv, and every figure that follows from the times.

The file holds what was measured; derived figures are computed only here. Times are seconds
per call, bandwidths are 1e9 bytes per second, reads and writes both counted.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1
KINDS = ("fused", "eager", "compile", "reference", "library")


@dataclass
class Variant:
    """The time that one implementation of a work takes.

    Attributes:
        kind: its role: one of KINDS.
        median, p20, p80: seconds per call, over the rounds.
        rounds: number of samples.
        calls: number of calls whose mean is one sample.
        peak_extra_bytes: peak memory during a call minus the memory in use before it, results included.
        launches: kernels that one call launches on a GPU.
        device_seconds: how long the GPU works on one call. Where `median` is far larger, the rest is Python's time.
    """

    kind: str
    median: float
    p20: float
    p80: float
    rounds: int
    calls: int
    peak_extra_bytes: int | None = None
    launches: int | None = None
    device_seconds: float | None = None


@dataclass
class Sweep:
    """The position of a work in a series: the value of the one quantity that changes along it."""

    series: str
    axis: str
    value: float | str


@dataclass
class Measured:
    """One work: an op at a shape, in a dtype and a direction, from a warm or a cold cache.

    Attributes:
        id: unique in a result.
        dims: the shape as text, such as 64x512x7x7 + 64x512x9x6.
        direction: "forward" or "forward+backward".
        cache: "warm" or "cold": whether the inputs were evicted from the caches before every call.
        elements: number of elements of the inputs that are as large as the work.
        bytes: what an ideal implementation moves.
        variants: by name; "fused" is the backend that serves the device. Empty if a result is wrong.
        instructions: arithmetic operations of the work; None where they were not counted.
        wrong: differences from the reference.
    """

    id: str
    op: str
    shape: str
    dims: str
    dtype: str
    direction: str
    cache: str
    threads: int
    device: str
    elements: int
    bytes: int
    variants: dict[str, Variant] = field(default_factory=dict)
    instructions: int | None = None
    sweep: Sweep | None = None
    wrong: list[str] = field(default_factory=list)

    def ns_per_element(self, variant: str = "fused") -> float:
        """Nanoseconds per element."""
        return 1e9 * self.variants[variant].median / self.elements

    def gb_s(self, variant: str = "fused") -> float:
        """Bandwidth, for the bytes that an ideal implementation moves."""
        return 1e-9 * self.bytes / self.variants[variant].median

    def baseline(self, kind: str) -> str | None:
        """The name of the fastest variant of a kind; None where there is none."""
        names = [name for name, v in self.variants.items() if v.kind == kind]
        return min(names, key=lambda name: self.variants[name].median, default=None)

    def ratio(self, kind: str, variant: str = "fused") -> float | None:
        """Speed-up over the fastest variant of a kind, such as "eager"; None where there is none."""
        baseline = self.baseline(kind)
        if baseline is None or variant not in self.variants:
            return None
        return self.variants[baseline].median / self.variants[variant].median

    def memory_ratio(self, variant: str = "fused") -> float | None:
        """Peak extra memory as a fraction of the eager baseline's; None where either was not measured."""
        baseline = self.baseline("eager")
        if baseline is None or variant not in self.variants:
            return None
        own, other = self.variants[variant].peak_extra_bytes, self.variants[baseline].peak_extra_bytes
        return None if own is None or not other else own / other


@dataclass
class Overhead:
    """Seconds per call at the smallest shape, where the kernel's own time is negligible."""

    op: str
    direction: str
    variant: str
    seconds: float


@dataclass
class Goal:
    """A speed goal: met where `reached` is at least `asked` (at most, if `most`).

    `reached` is None where the work was not measured.
    """

    name: str
    asked: float
    reached: float | None
    unit: str
    met: bool
    most: bool = False


@dataclass
class Slope:
    """d log(time) / d log(axis) of a series: 1 is linear."""

    series: str
    axis: str
    variant: str
    slope: float


@dataclass
class Result:
    """A run.

    Attributes:
        environment: what the times depend on, as text.
        copy_gb_s: the bandwidth of a plain copy, measured in that run, by the number of threads.
        flops_g: peak arithmetic in 1e9 operations per second, by number of threads; None where it was not measured.
        cache_bytes: size of a GPU's last-level cache. Data that stays in it between calls is not compared with a copy.
    """

    environment: dict[str, str]
    copy_gb_s: dict[str, float]
    works: list[Measured] = field(default_factory=list)
    overhead: list[Overhead] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    slopes: list[Slope] = field(default_factory=list)
    flops_g: dict[str, float] | None = None
    cache_bytes: int | None = None
    schema: int = SCHEMA

    def find(self, id: str) -> Measured | None:
        """The work with that id."""
        return next((work for work in self.works if work.id == id), None)

    def copy_share(self, work: Measured, variant: str = "fused") -> float | None:
        """A work's bandwidth as a fraction of a copy's with as many threads; None where that is not meaningful."""
        copy = self.copy_gb_s.get(str(work.threads))
        if work.cache == "warm" and work.bytes < (self.cache_bytes or 0):
            return None
        return work.gb_s(variant) / copy if copy else None

    def save(self, path: str | Path) -> None:
        """Write results.json. Readers see the previous file until the new one is complete."""
        whole = Path(path).with_suffix(".writing")
        whole.write_text(json.dumps(asdict(self), indent=1) + "\n")
        whole.replace(path)

    def save_csv(self, path: str | Path) -> None:
        """Write `rows`."""
        write_csv(path, list(self.rows()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each variant of each work, derived figures included; numbers are rounded to significant digits."""

        def short(value: float | None) -> float | str:
            return "" if value is None else float(f"{value:.5g}")

        for work in self.works:
            for name, v in work.variants.items():
                yield {
                    **{key: getattr(work, key) for key in ("id", "op", "shape", "dims", "dtype", "direction", "cache")},
                    **{key: getattr(work, key) for key in ("threads", "device", "elements", "bytes")},
                    "variant": name,
                    "kind": v.kind,
                    **{f"{key}_s": short(getattr(v, key)) for key in ("median", "p20", "p80")},
                    "rounds": v.rounds,
                    "calls": v.calls,
                    "ns_per_element": short(work.ns_per_element(name)),
                    "gb_s": short(work.gb_s(name)),
                    "share_of_copy": short(self.copy_share(work, name)),
                    "times_eager": short(work.ratio("eager", name)),
                    "times_compile": short(work.ratio("compile", name)),
                    "peak_extra_bytes": "" if v.peak_extra_bytes is None else v.peak_extra_bytes,
                    "launches": "" if v.launches is None else v.launches,
                    "device_s": short(v.device_seconds),
                }

    @staticmethod
    def load(path: str | Path) -> "Result":
        """Read results.json.

        Raises:
            ValueError: if the file is not a results.json, or has another schema.
        """
        try:
            content = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: expected a results.json, got text that is no JSON ({error})") from error
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise ValueError(f"{path}: expected schema {SCHEMA}, got {found!r}")
        try:
            return _result(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected the fields of schema {SCHEMA}, got a file without ({error})") from error


def _made(kind: type, content: dict[str, Any]) -> Any:
    """A dataclass from its fields; fields that a newer version added are ignored."""
    names = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in names})


def _result(content: dict[str, Any]) -> Result:
    result = _made(Result, content)
    result.works = [_made(Measured, item) for item in content["works"]]
    for work in result.works:
        work.variants = {name: _made(Variant, v) for name, v in work.variants.items()}
        work.sweep = _made(Sweep, work.sweep) if work.sweep else None
    for name, kind in {"overhead": Overhead, "goals": Goal, "slopes": Slope}.items():
        setattr(result, name, [_made(kind, item) for item in getattr(result, name)])
    return result


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per row, after a line with the names of the columns."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["id"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
