"""`python -m benchmarks gpu` without a GPU: the plan, what failing steps leave behind, a rehearsal."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.catalogue import catalogue
from benchmarks.gpu import facts, ncu_case, read, runner, sanitize, times
from benchmarks.gpu.plan import LIMIT, Part, Step, parts

ROOT = Path(__file__).parents[1]
OUT = Path("/results")


def steps(dry: bool = False) -> list[Step]:
    return [step for part in parts(OUT, dry).values() for step in part.steps]


def python(name: str, code: str, seconds: int = 60, **other) -> Step:
    return Step(name, (sys.executable, "-c", code), seconds, packages=(), **other)


def ended(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_the_parts_are_in_order():
    names = [[step.name for step in part.steps] for part in parts(OUT).values()]
    assert list(parts(OUT)) == [1, 2, 3, 4]
    assert names == [
        ["card", "facts", "info", "access_build", "access", "gpu_tests", "conformance_cuda"],
        ["times", "ncu_cuda", "ncu_triton"],
        ["conformance_triton", "memcheck", "racecheck"],
        ["compile_tests", "compile", "head_step"],
    ]
    assert names == [[step.name for step in part.steps] for part in parts(OUT, dry=True).values()]


def test_the_limits_of_the_steps_fit_into_their_parts():
    seconds = [sum(step.seconds for step in part.steps) for part in parts(OUT).values()]
    assert max(seconds) <= LIMIT < 600 and sum(seconds) <= 29 * 60


@pytest.mark.parametrize("dry", (False, True))
def test_what_the_steps_name_exists(dry):
    for step in steps(dry):
        command = list(step.command)
        if sys.executable in command:
            command = command[command.index(sys.executable) :]
            assert command[1] == "-m" and importlib.util.find_spec(command[2]), step.name
            assert not dry or not step.tools, step.name
        for word in command:
            if word.endswith((".py", ".cu")):
                assert (ROOT / word).is_file(), f"{step.name}: {word}"
        if step.tools and step.name != "access":
            assert step.command[0] in step.tools
    assert ROOT == runner.ROOT


def test_several_processes_only_where_pytest_can_start_them(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.plan.os.cpu_count", lambda: 16)
    monkeypatch.setattr("benchmarks.gpu.plan.find_spec", lambda name: name)
    several = [step.name for step in steps() if "-n" in step.command]
    assert several == ["conformance_cuda", "conformance_triton", "compile_tests"]
    monkeypatch.setattr("benchmarks.gpu.plan.find_spec", lambda name: None)
    assert not [step for step in steps() if "-n" in step.command]


def test_triton_is_compiled_and_this_checkout_imported(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("UDML_TEST_BACKENDS", "cpu")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = runner.environment()
    assert "TRITON_INTERPRET" not in found and "UDML_TEST_BACKENDS" not in found
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(ROOT / "python"), "/elsewhere"]


def test_a_step_that_takes_too_long_is_ended_with_its_children(tmp_path):
    # SIGINT, once ignored, is ignored by children too.
    child = f"import time; time.sleep(3); open({str(tmp_path / 'alive')!r}, 'w')"
    code = f"""if True:
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", {child!r}])
        print("started", flush=True)
        time.sleep(60)"""
    start = time.monotonic()
    step = python("slow", code)
    with (tmp_path / "slow.txt").open("w") as file:
        done = runner.execute(1, step, runner.environment(), file, 2)
    assert done.rc is None and done.why == "timed out after 2 s" and time.monotonic() - start < 10
    assert (tmp_path / "slow.txt").read_text() == "started\n"
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


def test_an_interrupted_step_can_still_write_what_it_has(tmp_path):
    code = """if True:
        import time
        try:
            print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("3 passed in 1.0s", flush=True)"""
    with (tmp_path / "slow.txt").open("w") as file:
        # Python itself may take seconds to start on a busy machine.
        done = runner.execute(1, python("slow", code), runner.environment(), file, 12)
    assert done.rc is None and done.why == "timed out after 12 s"
    assert read.tests((tmp_path / "slow.txt").read_text()) == "3 passed"


def test_a_failing_step_does_not_end_the_run(tmp_path):
    part = Part(
        "try",
        (
            python("wrong", "print('oh'); raise SystemExit(3)"),
            Step(
                "lacking",
                ("no-such-tool",),
                5,
                tools=("no-such-tool",),
                packages=("no_such_package",),
                files=(Path("no/file"),),
            ),
            Step("absent", (str(tmp_path / "absent"),), 5, packages=()),
            python("right", "print('fine')"),
        ),
    )
    found = runner.run_part(2, part, tmp_path)
    assert [done.rc for done in found] == [3, None, None, 0]
    assert found[1].why == "missing: the program no-such-tool, the Python package no_such_package, the file no/file"
    assert found[2].why.startswith("did not start: ")
    assert [(row["name"], row["rc"]) for row in ended(tmp_path)] == [(done.name, done.rc) for done in found]
    assert (tmp_path / "2_wrong.txt").read_text() == "oh\n" and (tmp_path / "2_right.txt").read_text() == "fine\n"
    assert "no-such-tool" in (tmp_path / "2_lacking.txt").read_text()


def test_tests_that_are_all_skipped_have_not_passed(tmp_path):
    code = "print('8 skipped in 0.1s')"
    part = Part("try", (python("skipped", code, tests=True), python("rehearsed", code)))
    assert [(done.why, done.passed) for done in runner.run_part(1, part, tmp_path)] == [
        ("no test passed", False),
        ("", True),
    ]


def test_a_part_has_a_limit_of_its_own(tmp_path):
    part = Part("try", (python("first", "pass"), python("second", "pass")))
    assert [done.why for done in runner.run_part(1, part, tmp_path, limit=1)] == ["the part's time was over"] * 2


def test_pytests_counts_also_of_a_run_that_was_ended():
    assert (
        read.tests("....\n== 2 failed, 40 passed, 1 skipped in 12.34s (0:00:12) ==\n")
        == "2 failed, 40 passed, 1 skipped"
    )
    assert read.tests("..F.s  [ 10%]\n....\n") == "7 passed, 1 failed, 1 skipped before it ended"
    assert read.tests("nothing\n") == ""


def test_what_says_most_is_timed_first():
    names = list(times.ordered(catalogue()))
    assert sorted(names) == sorted(catalogue())
    assert names[0].startswith("reparameterize/tokens/") and "/tiny/" in names[-1]
    small = [i for i, name in enumerate(names) if "/tiny/" in name]
    assert small == list(range(small[0], len(names)))
    for pattern in times.FIRST:
        assert any(times.fnmatch.fnmatchcase(name, pattern) for name in names), pattern


def test_times_dry(tmp_path, capsys):
    out = tmp_path / "times.jsonl"
    assert times.main([str(out), "--dry", "--only", "(reparameterize|weighted_fusion)/tiny/"]) == 0
    rows = read.lines(tmp_path, "times.jsonl")
    assert {row["variant"] for row in rows} == {"cpu", "eager"} and len(rows) == 8
    assert not any("error" in row for row in rows)
    assert times.main([str(out), "--dry", "--only", "/tiny/", "--seconds", "-1"]) == 0
    assert "works were not timed" in capsys.readouterr().out


def test_a_work_that_fails_is_a_row(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("not here")

    monkeypatch.setattr(times, "_on_backend", lambda *_: fails)
    assert times.main([str(tmp_path / "t.jsonl"), "--dry", "--only", "normal/tiny/"]) == 1
    assert read.lines(tmp_path, "t.jsonl")[0]["error"] == "RuntimeError: not here"


def test_the_scripts_run_on_the_cpu(capsys, one_thread):
    ncu_case.main("cpu")
    sanitize.main(1000, "cpu")
    said = capsys.readouterr().out
    assert ncu_case.IDEAL in said and "cases ran" in said
    assert {"torch", "commit", "packages", "backends"} <= facts.facts(times.torch.device("cpu")).keys()


def test_a_rehearsal_of_a_part(tmp_path):
    """As the command line runs it, in a Python that has not imported torch."""
    command = [sys.executable, "-m", "benchmarks", "gpu", "--dry", "--part", "2", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    packed = tmp_path / "out.tar.gz"
    result = subprocess.run(
        [*command, "--pack", str(packed)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert [(row["name"], row["rc"]) for row in ended(tmp_path / "out")] == [
        ("times", 0), ("ncu_cuda", 0), ("ncu_triton", 0)
    ]  # fmt: skip
    assert (tmp_path / "out" / "summary.md").read_text() in result.stdout and packed.stat().st_size > 0


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["gpu", "--part", "5"])
    assert "--part" in capsys.readouterr().err
