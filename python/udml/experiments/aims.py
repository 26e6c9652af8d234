"""Whether the aims are met, with the figures."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..training.evaluate import MIX
from .estimation import answer
from .faults import MASKED
from .frame import Condition, Frame, Probe, label
from .measures import ALL
from .plan import ROWS
from .statistics import Interval
from .unseen import BARE, CASES, FAULT, ONE, Unseen

OTHERS = ("static", "pe", "static-gamma", "pe-gamma")
# Points: by how much UDML has to win with a broken sensor, and how far it may lie below elsewhere.
MARGIN, SLACK = 5.0, 0.3
SPEARMAN, SLOPE = {"digits": 0.95, "watch": 0.95, "hog": 0.9}, 0.5


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
    return [*_mix(frame), *_clean(frame), *_broken(frame), *_estimator(frame), *_slow(frame)]


def _mix(frame: Frame) -> Iterator[Aim]:
    for other in OTHERS:
        found = frame.difference("udml", other, Condition(MIX))
        if found is None:
            continue
        own, above = other in ("static", "pe"), frame.plan.data in ("digits", "hog")
        text = f"UDML above {label(other)} on the mix, the interval above zero"
        yield Aim(text, found.low > 0 if own and above else None, points(found))
        text = f"UDML not more than {SLACK} below {label(other)} on the mix"
        yield Aim(text, found.mean >= -SLACK if own else None, points(found))


def _clean(frame: Frame) -> Iterator[Aim]:
    for other in ("static", "static-gamma"):
        found = frame.difference("udml", other, Condition(ALL, 0))
        if found is not None:
            holds = found.mean >= -SLACK if other == "static" else None
            yield Aim(f"UDML not more than {SLACK} below {label(other)} on clean samples", holds, points(found))


def _broken(frame: Frame) -> Iterator[Aim]:
    for group in (FAULT, BARE):
        cases = [case for case in CASES if case.group == group and case.kind != MASKED]
        for other in ("static", "static-gamma"):
            found = frame.differences("udml", other, [Unseen(case, ONE) for case in cases])
            if found is None:
                continue
            holds = all(i.mean >= MARGIN for i in found) if other == "static" else None
            figure = "; ".join(f"{case.text}: {points(i)}" for case, i in zip(cases, found, strict=True))
            yield Aim(f"{group}: UDML {MARGIN:g} points above {label(other)}", holds, figure)


def _estimator(frame: Frame) -> Iterator[Aim]:
    least = SPEARMAN[frame.plan.data]
    for modality in frame.spec.modalities:
        found = answer(frame, "udml", modality)
        if found is None:
            continue
        figures = found.figures
        slopes = {name: i for name, i in figures.items() if name.startswith("slope")}
        rank = figures["Spearman"]
        figure = f"{rank.mean:.3f} over samples (lowest seed {min(found.spearman):.3f})"
        figure += f", {figures['Spearman of the medians'].mean:.3f} of the medians"
        yield Aim(f"noise of {modality}: Spearman at least {least}", rank.mean >= least, figure)
        bands = ", ".join(f"{name.removeprefix('slope ')}: {i.mean:.2f}" for name, i in slopes.items())
        holds = all(i.mean > SLOPE for i in slopes.values())
        yield Aim(f"noise of {modality}: slope above {SLOPE} in each band of σ", holds, bands)


def _slow(frame: Frame) -> Iterator[Aim]:
    if frame.plan.data != "hog":
        return
    slow = frame.spec.modalities[-1]
    for other in ("static", "static-gamma"):
        found = frame.difference("udml", other, Probe(slow))
        if found is not None:
            holds = found.mean >= 0 if other == "static" else None
            yield Aim(f"probe of {slow}, which learns slowly, not below that of {label(other)}", holds, points(found))


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
