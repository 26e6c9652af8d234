"""Whether the aims are met, with the figures."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..training.evaluate import MIX
from .estimation import answer
from .frame import Condition, Frame, label, panel
from .measures import ALL, LEVELS
from .plan import ROWS
from .statistics import Interval

WIN_LEVELS = (2, 4, 6, 8)
MARGIN, SLACK = 10.0, 0.5
SPEARMAN, SLOPE = 0.95, 0.5


class Aim(NamedTuple):
    """An aim, whether it is met (None: not an aim, only shown beside one), and the figure."""

    text: str
    holds: bool | None
    figure: str


def points(i: Interval) -> str:
    """A difference as text: +1.2 [0.4, 2.0]."""
    if math.isnan(i.half):
        return f"{i.mean:+.1f}"
    return f"{i.mean:+.1f} [{i.low:.1f}, {i.high:.1f}]"


def aims(frame: Frame) -> list[Aim]:
    """The aims of the data set, in order."""
    own = _nowhere_worse(frame) if frame.plan.data == "watch" else _above(frame)
    return [*own, *_clean(frame), *_estimator(frame)]


def _above(frame: Frame) -> Iterator[Aim]:
    scopes = {"the mix": [Condition(MIX)]} | {
        panel(degraded) + ", σ = 2, 4, 6, 8": [Condition(degraded, sigma) for sigma in WIN_LEVELS]
        for degraded in frame.degraded
    }
    for other in ("static", "pe", "static-gamma", "pe-gamma"):
        for scope, conditions in scopes.items():
            found = frame.differences("udml", other, conditions)
            if found is None:
                continue
            holds = all(i.low > 0 for i in found) if other in ("static", "pe") else None
            yield Aim(f"UDML above {label(other)}: {scope}", holds, "; ".join(map(points, found)))


def _nowhere_worse(frame: Frame) -> Iterator[Aim]:
    for other in ("static", "pe", "static-gamma", "pe-gamma"):
        found = {c: i for c in frame.conditions() if (i := frame.difference("udml", other, c)) is not None}
        if not found:
            continue
        lowest = min(found, key=lambda c: found[c].mean)
        means, below = sum(i.mean < 0 for i in found.values()), sum(i.high < 0 for i in found.values())
        figure = f"of {len(found)}, {means} means and {below} intervals lie below zero"
        figure += f"; the lowest mean is {points(found[lowest])} ({lowest})"
        text = f"UDML nowhere worse than {label(other)}: no interval of the difference below zero"
        yield Aim(text, below == 0 if other in ("static", "pe") else None, figure)
    for degraded in frame.degraded:
        conditions = [Condition(degraded, sigma) for sigma in LEVELS if sigma >= 2]
        above = frame.differences("udml", "static-clean", conditions)
        if above is not None:
            text = f"UDML {MARGIN:g} points above {label('static-clean')}: {panel(degraded)}, σ = 2, 4, 6, 8, 12"
            yield Aim(text, all(i.mean >= MARGIN for i in above), "; ".join(map(points, above)))


def _clean(frame: Frame) -> Iterator[Aim]:
    for other in ("static", "static-gamma"):
        found = frame.difference("udml", other, Condition(ALL, 0))
        if found is not None:
            holds = found.mean >= -SLACK if other == "static" else None
            yield Aim(f"UDML not more than half a point below {label(other)} at σ = 0", holds, points(found))


def _estimator(frame: Frame) -> Iterator[Aim]:
    for modality in frame.spec.modalities:
        found = answer(frame, "udml", modality)
        if found is None:
            continue
        figures = found.figures
        slopes = {name: i for name, i in figures.items() if name.startswith("slope")}
        rank = figures["Spearman"]
        figure = f"{rank.mean:.3f} over samples (lowest seed {min(found.spearman):.3f})"
        figure += f", {figures['Spearman of the medians'].mean:.3f} of the medians"
        yield Aim(f"noise of {modality}: Spearman at least {SPEARMAN}", rank.mean >= SPEARMAN, figure)
        bands = ", ".join(f"{name.removeprefix('slope ')}: {i.mean:.2f}" for name, i in slopes.items())
        holds = all(i.mean > SLOPE for i in slopes.values())
        yield Aim(f"noise of {modality}: slope above {SLOPE} in each band of σ", holds, bands)


def losses(frame: Frame) -> list[tuple[str, list[tuple[Condition, Interval]]]]:
    """By method, the conditions where the interval of UDML minus that method lies below zero."""
    found = []
    for other in ROWS:
        if other == "udml":
            continue
        differences = [(c, frame.difference("udml", other, c)) for c in frame.conditions()]
        below = [(c, i) for c, i in differences if i is not None and i.high < 0]
        if below:
            found.append((label(other), below))
    return found
