"""How well the predicted noise follows the true noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .frame import Frame
from .measures import BANDS, TRUE_LEVELS
from .statistics import interval, spearman

ESTIMATORS = ("udml", "pe")


def factor(row: str, noise: Mapping[str, Mapping[str, Sequence[float]]]) -> float:
    """The factor for a run's predictions: PE's are not tied to sigma, so they get one least-squares factor.

    It is fitted on the same predictions that are reported, over all modalities and levels.
    """
    if row != "pe":
        return 1.0
    products = sum(s * m for answer in noise.values() for s, m in zip(TRUE_LEVELS, answer["mean"], strict=True))
    return products / sum(sum(answer["mean_square"]) for answer in noise.values())


@dataclass(frozen=True)
class Answer:
    """A row's predictions for one modality; curves at TRUE_LEVELS, means over seeds.

    Attributes:
        low, median, high: quantiles over samples (10%, 50%, 90%), in units of sigma.
        spearman: correlation over all samples and levels, by seed; `curve`: the same for the medians.
        slopes: by band, then by seed.
    """

    low: list[float]
    median: list[float]
    high: list[float]
    spearman: list[float]
    curve: list[float]
    slopes: list[list[float]]

    @property
    def figures(self) -> dict[str, Any]:
        """Intervals over seeds by name."""
        named = {"Spearman": self.spearman, "Spearman of the medians": self.curve}
        named |= {f"slope {a}–{b}": s for (a, b), s in zip(BANDS, self.slopes, strict=True)}
        return {name: interval(values) for name, values in named.items()}


def answer(frame: Frame, row: str, modality: str) -> Answer | None:
    """A row's predictions for a modality; None if the row has no runs."""
    runs = [run["noise"] for run in frame.seeds(row).values()]
    if not runs:
        return None
    factors = [factor(row, noise) for noise in runs]
    own = [noise[modality] for noise in runs]

    def curve(name: str) -> list[float]:
        scaled = [[f * value for value in noise[name]] for f, noise in zip(factors, own, strict=True)]
        return [sum(values) / len(values) for values in zip(*scaled, strict=True)]

    slopes = [[f * noise["slopes"][band] for f, noise in zip(factors, own, strict=True)] for band in range(len(BANDS))]
    medians = [spearman(TRUE_LEVELS, noise["median"]) for noise in own]
    return Answer(curve("low"), curve("median"), curve("high"), [n["spearman"] for n in own], medians, slopes)
