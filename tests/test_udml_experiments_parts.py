"""The statistics of a reproduction, its plan, and the parts of its report."""

import math
from dataclasses import replace

import pytest

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from udml.experiments.estimation import factor
from udml.experiments.frame import Condition, Frame
from udml.experiments.measures import TRUE_LEVELS
from udml.experiments.plan import DATA, OPTIMIZER, ROWS, Plan, Trial, trial
from udml.experiments.statistics import interval, paired, ranks, slope, spearman, t_probability, t_quantile
from udml.experiments.style import apart
from udml.experiments.tuning import choose


@pytest.mark.parametrize(
    ("df", "confidence", "expected"),
    [
        (1, 0.95, 12.706205),
        (2, 0.95, 4.302653),
        (3, 0.95, 3.182446),
        (9, 0.95, 2.262157),
        (10, 0.99, 3.169273),
        (30, 0.95, 2.042272),
        (120, 0.95, 1.979930),
    ],
)
def test_t_quantiles_are_the_published_ones(df, confidence, expected):
    assert t_quantile(df, confidence) == pytest.approx(expected, abs=2e-6)
    assert t_probability(expected, df) == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize(("df", "confidence"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_t_quantile_names_what_it_expects(df, confidence):
    with pytest.raises(ValueError, match="df, confidence: expected at least 1"):
        t_quantile(df, confidence)


def test_an_interval_is_student_s():
    # Mean 3, standard deviation sqrt(2.5), t of four degrees of freedom 2.776445.
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.n) == (3, 5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-5)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)
    assert math.isnan(interval([1.0]).half)
    with pytest.raises(ValueError, match="expected at least one"):
        interval([])


def test_paired_differences_take_the_seeds_that_both_have():
    a, b = {0: 5.0, 1: 7.0, 2: 100.0}, {1: 6.0, 0: 3.0, 3: -100.0}
    found = paired(a, b)
    assert (found.mean, found.n) == (1.5, 2)
    assert found.half == pytest.approx(12.706205 * 0.5, abs=1e-5)
    with pytest.raises(ValueError, match="seeds in common"):
        paired({0: 1.0}, {1: 1.0})


def test_ranks_and_spearman_and_slope():
    assert ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # With ties, by hand: ranks 1.5, 1.5, 3 and 1, 2, 3.
    assert spearman([0, 0, 1], [1, 2, 3]) == pytest.approx(math.sqrt(0.75))
    assert math.isnan(spearman([1, 2], [5, 5]))
    assert slope([0, 1, 2, 3], [1, 3, 5, 7]) == pytest.approx(2)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("quick", [False, True])
def test_every_row_has_as_many_trials_and_other_seeds_than_the_report(data, quick):
    plan = Plan.of(data, 10, 6, quick)
    tuning = plan.tuning()
    counts = {row: sum(job.row == row for job in tuning) for row in ROWS}
    assert set(counts.values()) == {plan.trials * plan.tuning_seeds}
    reported = plan.runs(chosen())
    assert not {job.seed for job in tuning} & {job.seed for job in reported}
    names = [job.name for job in tuning + reported]
    assert len(set(names)) == len(names)


def test_trials_start_at_the_defaults_and_share_values_between_rows():
    assert trial("udml", 0) == Trial()
    for row, what in ROWS.items():
        point = trial(row, 3)
        assert set(point.config) == set(OPTIMIZER) and set(point.options) == set(what.space)
        assert point == trial(row, 3) != trial(row, 4)
        assert point.config == trial("static", 3).config
    assert trial("udml", 2).options["gamma"] == trial("static-gamma", 2).options["gamma"]


def test_rows_without_unimodal_losses_in_their_formula_have_none():
    for job in Plan("digits").tuning():
        assert (job.options.get("gamma") == 0) == (job.row in ("static", "static-clean", "pe", "ogm-ge"))


def test_the_best_trial_is_chosen_on_the_validation_score():
    plan = replace(Plan.of("digits", trials=3), tuning_seeds=2)
    results = {job.name: {"validation": 0.5 + 0.1 * (job.variant == "t1")} for job in plan.tuning()}
    lost = next(job for job in plan.tuning() if job.row == "pe" and job.variant == "t1")
    del results[lost.name]
    chosen, table = choose(plan, results)
    assert chosen["static"] == trial("static", 1)
    # One of the two seeds failed, so the trial has no score; of equals the first.
    assert chosen["pe"] == trial("pe", 0)
    assert [line["score"] for line in table if line["row"] == "pe"] == [0.5, None, 0.5]


def chosen():
    return dict.fromkeys(ROWS, Trial())


def test_pe_s_factor_is_least_squares():
    half = [sigma / 2 for sigma in TRUE_LEVELS]
    noise = {"fou": {"mean": half, "mean_square": [value**2 for value in half]}}
    assert factor("pe", noise) == pytest.approx(2)
    assert factor("udml", noise) == 1


def test_labels_are_moved_apart_and_keep_their_order():
    assert apart([0.0, 5.0, 10.0], 1.0).tolist() == [0, 5, 10]
    assert apart([1.0, 1.0, 1.2, 9.0], 1.0) == pytest.approx([0.0667, 1.0667, 2.0667, 9.0], abs=1e-3)


def test_conditions_hold_sigma_zero_once():
    spec = type("Spec", (), {"modalities": ("a", "b")})
    conditions = list(Frame(Plan("digits"), spec, {}).conditions())
    assert [c for c in conditions if c.sigma == 0] == [Condition("all", 0)]
    assert len(conditions) == len(set(conditions)) == 1 + 7 + 2 * 6
