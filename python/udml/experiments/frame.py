"""The runs of a reproduction, in the form that tables, plots and the summary need."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..data import DataSpec
from ..training.evaluate import MIX
from .measures import ALL, LEVELS
from .plan import ABLATION, ROWS, Job, Plan
from .statistics import Interval, interval, paired

Seeds = dict[int, float]


class Scored(Protocol):
    """Something that a run has one number for, in percent."""

    def of(self, result: Mapping[str, Any]) -> float: ...


@dataclass(frozen=True)
class Condition:
    """The degradation of the test inputs: "mix", or one of LEVELS on all modalities or on one of them."""

    degraded: str
    sigma: int | None = None

    def __str__(self) -> str:
        if self.sigma is None:
            return "the mix of levels"
        what = "all degraded" if self.degraded == ALL else f"{self.degraded} degraded"
        return f"{what}, σ = {self.sigma}"

    def of(self, result: Mapping[str, Any]) -> float:
        """A run's accuracy in percent under this condition."""
        scores = result["accuracy"][self.degraded]
        return 100 * (scores if self.sigma is None else scores[LEVELS.index(self.sigma)])


@dataclass(frozen=True)
class Probe:
    """What a linear classifier of a modality's frozen features knows of clean test samples."""

    modality: str

    def of(self, result: Mapping[str, Any]) -> float:
        """A run's accuracy in percent."""
        return 100 * result["probe"][self.modality]


@dataclass(frozen=True)
class Frame:
    """The results of a reproduction.

    Attributes:
        plan: the reproduction.
        spec: the spec of its data.
        runs: by group, row and variant, the result of every seed that did not fail.
    """

    plan: Plan
    spec: DataSpec
    runs: dict[tuple[str, str, str], dict[int, dict[str, Any]]]

    @classmethod
    def of(cls, plan: Plan, spec: DataSpec, jobs: Sequence[Job], results: Mapping[str, dict[str, Any]]) -> "Frame":
        runs: dict = {}
        for job in jobs:
            if job.name in results:
                runs.setdefault((job.group, job.row, job.variant), {})[job.seed] = results[job.name]
        return cls(plan, spec, runs)

    def seeds(self, row: str, variant: str = "", group: str = "main") -> dict[int, dict[str, Any]]:
        """Results by seed; for a fusion or views that the main comparison also ran, its seeds that the group has."""
        if (group == "fusion" and variant == "concat") or (group == "views" and variant == "two"):
            main = self.runs.get(("main", row, ""), {})
            return {seed: result for seed, result in main.items() if seed < self.plan.side_seeds}
        return self.runs.get((group, row, variant), {})

    def has(self, group: str) -> bool:
        """Whether any run of the group exists."""
        return any(name == group for name, _, _ in self.runs)

    def values(self, row: str, pick: Callable[[dict], float], variant: str = "", group: str = "main") -> Seeds:
        """One number for each seed."""
        return {seed: pick(result) for seed, result in self.seeds(row, variant, group).items()}

    def accuracy(self, row: str, condition: Scored, variant: str = "", group: str = "main") -> Interval | None:
        """The accuracy in percent; None without runs."""
        values = self.values(row, condition.of, variant, group)
        return interval(list(values.values())) if values else None

    def difference(self, a: str, b: str, condition: Scored, variant: str = "", group: str = "main") -> Interval | None:
        """a - b over the seeds that both have, in points; None without any. An ablation row and a main row will do."""
        first, second = (self.values(row, condition.of, variant, self.group_of(row, group)) for row in (a, b))
        return paired(first, second) if set(first) & set(second) else None

    def differences(self, a: str, b: str, conditions: Sequence[Scored]) -> list[Interval] | None:
        """`difference` at each condition; None if any condition lacks it."""
        found = [i for c in conditions if (i := self.difference(a, b, c)) is not None]
        return found if len(found) == len(conditions) else None

    @staticmethod
    def group_of(row: str, group: str = "main") -> str:
        return "ablation" if row in ABLATION else group

    @property
    def degraded(self) -> tuple[str, ...]:
        """What is degraded: all modalities, or each alone."""
        return (ALL, *self.spec.modalities)

    def conditions(self) -> Iterator[Condition]:
        """The mix, and every level on all and on each modality; σ = 0 once."""
        yield Condition(MIX)
        for degraded in self.degraded:
            for sigma in LEVELS[degraded != ALL :]:
                yield Condition(degraded, sigma)

    def weaker(self) -> str | None:
        """The modality that is less accurate alone, in static + γ on clean validation samples."""
        runs = self.seeds("static-gamma").values()
        names = self.spec.modalities
        return min(names, key=lambda name: sum(r["unimodal"][name] for r in runs)) if runs else None


def label(row: str) -> str:
    """A row's name in tables and plots."""
    return ABLATION[row][0] if row in ABLATION else ROWS[row].label


def panel(degraded: str) -> str:
    """A title that says what is degraded."""
    return "all modalities degraded" if degraded == ALL else f"{degraded} alone degraded"
