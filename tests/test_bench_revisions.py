"""Two revisions: checkouts, the tests that come first, the workers and their protocol, and a slowdown that is found."""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import checkouts, pairs, revisions, worker
from benchmarks.catalogue import catalogue
from benchmarks.process import ProcessError
from benchmarks.ratios import SLOWER

LIBRARY = checkouts.ROOT / "udml_kernels"
SMALL = "modality_dropout/features/float32/forward/warm"
EVIDENTIAL = "evidential_fusion/cremad/float32/forward/warm"
DRAWN = "inject_noise/features/float32/forward+backward/warm"


def _call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    revisions.add_arguments(parser)
    return revisions.run(parser.parse_args(arguments))


@pytest.fixture
def altered(tmp_path):
    """Copies of the library, each with a line of Python at the end of its __init__.py."""

    def copy(line: str):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "udml_kernels"
        shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so", "tools"))
        for library in LIBRARY.glob("_C_cpu_*.so"):
            (folder / library.name).symlink_to(library)
        with open(folder / "__init__.py", "a") as file:
            file.write(f"\n{line}\n")
        return folder

    return copy


def _measured(works, head, base=LIBRARY, **effort) -> list[pairs.Outcome]:
    effort = {"threads": 1, "rounds": 6, "processes": 1, **effort}
    return pairs.measure({"base": base, "again": base, "head": head}, works, **effort)


class _Echo:
    def open(self, work):
        return {"work": work}

    def fail(self):
        raise ValueError("expected something else")


def test_a_worker_answers_each_line_with_one():
    requests = io.StringIO(
        "".join(f"{json.dumps(r)}\n" for r in ({"do": "open", "work": "w"}, {"do": "fail"}, {"do": "?"}))
    )
    answers = io.StringIO()
    worker.serve(_Echo(), requests, answers)
    opened, failed, unknown = map(json.loads, answers.getvalue().splitlines())
    assert opened == {"work": "w"} and failed == {"error": "ValueError: expected something else"}
    assert unknown["error"].startswith("AttributeError")


def test_a_worker_has_the_library_it_was_given_and_times_it(altered):
    folder = altered("print('noise on stdout')")
    with pairs.worker(folder, threads=1) as process:
        assert process.ask("about")["library"] == str(folder)
        assert 0 < process.ask("open", work=SMALL)["seconds"] < 60
        assert 0 < process.ask("time", calls=3)["seconds"] < 60
        with pytest.raises(ProcessError, match="open: KeyError"):
            process.ask("open", work="no such work")


def test_a_worker_that_is_gone_says_so(tmp_path):
    with (
        pairs.worker(tmp_path / "nothing", threads=1) as process,
        pytest.raises(ProcessError, match="ended with 1"),
    ):
        process.ask("about")


_SLOW = (
    "import time; _fast = modality_dropout; modality_dropout = lambda *a, **k: (time.sleep(5e-3), _fast(*a, **k))[1]"
)


def test_a_planted_slowdown_is_found(altered):
    wait = "import time; _fast = modality_dropout"
    slow = altered(f"{wait}; modality_dropout = lambda *a, **k: (time.sleep(5e-3), _fast(*a, **k))[1]")
    (found,) = _measured([SMALL], slow)
    assert found.verdict == SLOWER and found.ratio.high < 0.5


def test_what_the_base_lacks_or_gives_otherwise_is_not_timed(altered):
    old = altered("del evidential_fusion")
    new = altered("_right = inject_noise; inject_noise = lambda *a, **k: _right(*a, **k) * 1.00002")
    missing, differing, unchanged = _measured([EVIDENTIAL, DRAWN, SMALL], new, base=old, rounds=1)
    assert "evidential_fusion" in missing.missing and not missing.timed
    assert differing.differences[0].startswith("result 0: error ") and not differing.timed
    assert unchanged.timed and len(unchanged.seconds["head"]) == 1


def test_without_kernels_there_is_nothing_to_compare(altered):
    folder = altered("")
    for library in folder.glob("*.so"):
        library.unlink()
    refused = pytest.raises(ProcessError, match="expected CPU kernels, got the backend reference")
    with pairs.worker(folder, threads=1) as process, refused:
        pairs.refuse_without_kernels({"head": process})


class _Fake:
    """A worker that writes down who was asked for a sample."""

    def __init__(self, role, asked, seconds=2e-3, **opened):
        self.role, self.asked, self.name, self.opened = role, asked, role, {"seconds": seconds, **opened}

    def ask(self, do, **arguments):
        if do == "open":
            return self.opened
        self.asked.append((self.role, arguments["calls"]))
        return {"seconds": 1e-3 * len(self.asked)}


def test_the_three_take_turns_in_every_order():
    asked, outcome = [], pairs.Outcome("work")
    workers = {role: _Fake(role, asked) for role in pairs.ROLES}
    pairs.take_turns(workers, outcome, rounds=6, check=False)
    rounds = [tuple(role for role, _ in asked[i : i + 3]) for i in range(0, 18, 3)]
    assert len(set(rounds)) == 6 and all(set(order) == set(pairs.ROLES) for order in rounds)
    # As many calls as fill a sample, the same for all.
    assert {calls for _, calls in asked} == {5}
    assert outcome.seconds["base"] == [[1e-3 * (i + 1) for i, (role, _) in enumerate(asked) if role == "base"]]


def test_what_head_lacks_is_an_error():
    workers = {role: _Fake(role, [], missing="AttributeError: no such op") for role in pairs.ROLES}
    with pytest.raises(ProcessError, match="head: work: AttributeError: no such op"):
        pairs.take_turns(workers, pairs.Outcome("work"), rounds=1, check=False)


@pytest.mark.parametrize("body, failing", [("assert True", []), ("assert False", ["test_it.py::test_it"])])
def test_failing_tests_are_named(tmp_path, monkeypatch, body, failing):
    (tmp_path / "test_it.py").write_text(
        f"import os\n\n\ndef test_it():\n    assert os.getcwd() == {str(tmp_path)!r}\n    {body}\n"
    )
    monkeypatch.setattr(checkouts, "QUICK_TESTS", ("test_it.py",))
    assert checkouts.failing_tests(tmp_path, ["head_step"]) == failing


def test_no_tests_are_no_success(tmp_path, monkeypatch):
    (tmp_path / "test_it.py").write_text("")
    monkeypatch.setattr(checkouts, "QUICK_TESTS", ("test_it.py",))
    (reason,) = checkouts.failing_tests(tmp_path, ["normal"])
    assert reason.startswith("pytest ended with 5")


def test_the_quick_tests_are_those_of_the_ops():
    assert checkouts.test_command(["normal", "evidential_fusion"])[-2:] == [
        "-k",
        "evidential_fusion or evidential_loss or normal",
    ]
    assert "-k" not in checkouts.test_command(["normal", "head_step"])
    # Every op has cases there under that name.
    from udml_kernels.testing.cases import CASES

    tested = {case.op for case in CASES}
    for op in {case.op for case in catalogue().values()} - {"head_step"}:
        assert set(checkouts.test_command([op])[-1].split(" or ")) <= tested


@pytest.mark.parametrize("red", ["base", "head"])
def test_red_tests_stop_it(monkeypatch, capsys, tmp_path, red):
    folders = {"old": tmp_path / "old", checkouts.WORKING_TREE: tmp_path / "new"}
    monkeypatch.setattr(checkouts, "prepare", folders.__getitem__)
    monkeypatch.setattr(checkouts, "describe", str)
    bad = folders["old" if red == "base" else checkouts.WORKING_TREE]
    monkeypatch.setattr(checkouts, "failing_tests", lambda folder, ops: ["tests/t.py::t"] if folder == bad else [])
    monkeypatch.setattr(pairs, "measure", lambda *_, **__: pytest.fail("something was timed"))
    assert _call("old", "--works", SMALL) == 3
    assert f"the tests of {red} are red\n  tests/t.py::t" in capsys.readouterr().err


def test_a_revision_that_git_does_not_know(capsys):
    assert _call("no-such-revision", "--works", SMALL) == 2
    assert "revision: expected one that git knows, got 'no-such-revision'" in capsys.readouterr().err


def test_works_are_chosen_by_op_and_by_name(capsys):
    assert revisions.chosen(["modality_dropout"], ["*/features/*/forward/*"]) == [SMALL]
    assert len(revisions.chosen(None, None)) == len(catalogue()) > 30
    assert _call("HEAD", "--works", "nothing/*") == 2
    assert SMALL in capsys.readouterr().out.splitlines()


def _folders(place) -> list:
    return [path for path in place.iterdir() if path.is_dir()]


@pytest.fixture
def checkout_folder(tmp_path, monkeypatch):
    """Checkouts go to a folder of the test, and git forgets them afterwards."""
    monkeypatch.setattr(checkouts, "CHECKOUTS", tmp_path / "compare")
    (tmp_path / "compare").mkdir()
    yield tmp_path / "compare"
    for folder in _folders(tmp_path / "compare"):
        checkouts.remove(folder)


def _linked(folder) -> None:
    """The working tree's kernels in the place of a build, which takes minutes."""
    for library in LIBRARY.glob("_C_cpu_*.so"):
        place = folder / "udml_kernels" / library.name
        place.unlink(missing_ok=True)
        place.symlink_to(library)
    # As a build does, and git does not ignore it.
    (folder / "udml_kernels" / "_not_built_cuda.txt").write_text("left out\n")


def test_the_last_commit_against_the_working_tree(monkeypatch, checkout_folder, capsys, tmp_path):
    monkeypatch.setattr(checkouts, "build", _linked)
    monkeypatch.setattr(checkouts, "test_command", lambda ops: [sys.executable, "-c", ""])
    report, table = tmp_path / "out.json", tmp_path / "out.csv"
    files = ["--json", str(report), "--csv", str(table)]
    assert _call("HEAD", "--works", SMALL, "--rounds", "6", "--processes", "1", "--threads", "1", *files) == 0
    printed = capsys.readouterr().out
    assert "base  " in printed and "head  working tree at " in printed and SMALL in printed
    (work,) = json.loads(report.read_text())["works"]
    assert work["id"] == SMALL and work["low"] <= work["ratio"] <= work["high"] and work["floor"] >= pairs.LEAST
    assert table.read_text().startswith("id,base_s,head_s,ratio")
    (folder,) = _folders(checkout_folder)
    assert checkouts.commit("HEAD").startswith(folder.name)
    # What is there is taken again; what somebody changed is not.
    monkeypatch.setattr(checkouts, "build", lambda folder: None)
    assert checkouts.prepare("HEAD") == folder and list((folder / "udml_kernels").glob("*.so"))
    before = (folder / "setup.py").read_text()
    (folder / "setup.py").write_text("changed")
    checkouts.prepare("HEAD")
    assert (folder / "setup.py").read_text() == before


def test_a_checkout_that_does_not_build_goes(monkeypatch, checkout_folder, capsys):
    def fail(folder):
        raise checkouts.CannotCompare(f"{folder.name} does not build:\nno compiler")

    monkeypatch.setattr(checkouts, "build", fail)
    assert _call("HEAD", "--works", SMALL) == 2
    assert "does not build:\nno compiler" in capsys.readouterr().err
    assert _folders(checkout_folder) == []
    listed = subprocess.run(["git", "worktree", "list"], cwd=checkouts.ROOT, capture_output=True, text=True).stdout
    assert str(checkout_folder) not in listed


def test_a_failing_build_is_told_with_its_output(tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('line 1 is wrong')")
    with pytest.raises(checkouts.CannotCompare, match="line 1 is wrong"):
        checkouts.build(tmp_path)


def test_a_working_tree_with_old_kernels_is_refused(tmp_path):
    for name in ("csrc/cpu/noise.cpp", "csrc/math.h", "udml_kernels/_C_cpu_avx2.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    checkouts._refuse_stale(tmp_path)
    (tmp_path / "csrc/cpu/noise.cpp").write_text("new")
    os.utime(tmp_path / "csrc/cpu/noise.cpp", (2e9, 2e9))
    with pytest.raises(checkouts.CannotCompare, match="make setup"):
        checkouts._refuse_stale(tmp_path)
