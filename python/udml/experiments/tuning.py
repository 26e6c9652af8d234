"""The choice of hyper-parameters, on the validation split only."""

import math
from collections.abc import Mapping
from typing import Any

from .plan import OPTIMIZER, ROWS, Plan, Trial, trial


def choose(plan: Plan, results: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Trial], list[dict[str, Any]]]:
    """The best trial of every row, the earlier one of equal trials; a row without any result keeps its defaults.

    The trials are drawn in the plan and not by a tuner such as optuna, so that rows that share a value try the same.

    Args:
        plan: the plan that was tuned.
        results: by job name, the results of the tuning jobs that did not fail.

    Returns:
        The chosen points by row, and a row for every trial: row, trial, its values, score (the mean over the tuning
        seeds of the jobs' `tuning_score`; None if a seed failed) and chosen.
    """
    scores: dict[tuple[str, int], list[float]] = {}
    for job in plan.tuning():
        value = results[job.name]["validation"] if job.name in results else math.nan
        scores.setdefault((job.row, int(job.variant[1:])), []).append(value)
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    chosen, table = {}, []
    for row in ROWS:
        numbers = range(plan.trials)
        best = max(numbers, key=lambda n: -math.inf if math.isnan(means[row, n]) else means[row, n])
        chosen[row] = trial(row, best)
        for number in numbers:
            score = means[row, number]
            line = {"row": row, "trial": number, **values(row, number)}
            table.append(line | {"score": None if math.isnan(score) else score, "chosen": number == best})
    return chosen, table


def values(row: str, number: int) -> dict[str, Any]:
    """The tuned values of a trial; "default" for those that trial 0 leaves at the method's default."""
    names = [*OPTIMIZER, *ROWS[row].space]
    point = trial(row, number)
    return {name: {**point.config, **point.options}.get(name, "default") for name in names}
