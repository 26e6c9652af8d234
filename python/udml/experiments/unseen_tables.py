"""The tables of unseen noise and faults, and their section of the report."""

from collections.abc import Sequence

from .frame import Frame, label
from .measures import ALL
from .plan import ROWS
from .tables import Rows, difference, markdown, percent, spread
from .unseen import BARE, CASES, ONE, Unseen

SHOWN = (
    "static",
    "static-gamma",
    "static-clean",
    "static-clean-gamma",
    "pe",
    "pe-gamma",
    "udml",
    "udml-authors",
    "oracle",
)
COMPARED = ("static", "static-gamma", "pe")


def unseen(frame: Frame) -> Rows:
    """Every row under every case: percent, and paired differences in points."""
    table: Rows = []
    for row in ROWS:
        for case in CASES:
            for degraded in (*([ALL] if case.together else []), ONE, *frame.spec.modalities):
                condition = Unseen(case, degraded)
                found = frame.accuracy(row, condition)
                if found is None:
                    continue
                line = {"method": label(row), "group": case.group, "case": case.text, "degraded": degraded}
                line |= {"seeds": found.n} | spread(found, "accuracy")
                for other in COMPARED:
                    line |= spread(None if row == other else frame.difference(row, other, condition), f"minus_{other}")
                table.append(line)
    return table


def section(frame: Frame) -> str:
    """The part of report.md."""
    conditions = [Unseen(case, ONE) for case in CASES] + [Unseen(case, ALL) for case in CASES if case.together]

    def named(condition: Unseen) -> str:
        return f"{condition.case.text}; {'all' if condition.degraded == ALL else 'one'}"

    def rows(cell, of: Sequence[str]) -> list[list[str]]:
        return [[named(c), *(cell(row, c) for row in of)] for c in conditions]

    others = [row for row in SHOWN if row != "udml"]
    shares = rows(lambda row, c: percent(frame.accuracy(row, c)), SHOWN)
    minus = rows(lambda row, c: difference(frame.difference("udml", row, c)), others)
    return f"""## Unseen noise, broken and missing sensors

Test samples under noise and faults that training does not have; one draw of the noise. "one": the mean over the
modalities, each degraded alone (`unseen.csv` has each); "all": all at once. Kinds of noise have the power of gaussian
noise of that σ, but for dropout, which takes σ/16 of the features; "replaced by noise" has gaussian noise of σ and
nothing else. "{BARE}" shows what the weights do without `InputGuard`, which otherwise masks an input that is
stuck, not finite or far too large, in every method but the authors preset. The oracle is told σ, and of a replaced or
broken modality the highest σ of training. The authors preset is trained on its own levels, the highest of which
replaces an input by noise.

Percent:

{markdown(["", *map(label, SHOWN)], shares)}
UDML minus the column's method, points:

{markdown(["", *map(label, others)], minus)}"""
