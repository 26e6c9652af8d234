"""The benchmark suite: that neither a wrong nor a slow kernel passes, memory, and its commands."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import udml_kernels
from benchmarks import machine, memory, smoke, suite
from benchmarks.case import BOTH, Case, all_cases
from benchmarks.process import ProcessError
from benchmarks.record import Result
from benchmarks.shapes import Shape
from udml_kernels.testing.ops import reparameterize
from udml_kernels.tools.cli import main
from udml_kernels.tools.steps import Step, wrong

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = [(4, 3, 5), (4, 2, 7)]


def test_every_work_has_an_id_of_its_own():
    assert {case.op for case in all_cases().values()} >= {"normal", "head_step", "training_step", "evidential_fusion"}


def test_results_go_to_a_directory_of_this_machine():
    name = machine.results_directory(CPU, 3).name
    assert name.endswith("3cpu") and name == name.lower() and " " not in name
    assert machine._slug("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz") == "intel-xeon-platinum-8370c"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(machine, "copy_gb_s", lambda *_: {"1": 10.0})
    monkeypatch.setattr(machine, "flops_g", lambda *_: {})
    threads, said = torch.get_num_threads(), []
    made = suite.Suite(CPU, 1, quick=True, say=said.append)
    made.said = said
    yield made
    torch.set_num_threads(threads)


def pedantic(target, args, setup, rounds):
    """As pytest-benchmark does it."""
    for _ in range(rounds):
        setup()
        target(*args)


BENCHMARK = SimpleNamespace(pedantic=pedantic, extra_info={})


def case(build, **other) -> Case:
    return Case("reparameterize", "small", build, direction=BOTH, budget=0.01, **other)


def test_a_right_kernel_gets_a_time(run):
    found = run.run(case(lambda gradient: reparameterize.work(SMALL, gradient=gradient)), BENCHMARK)
    assert not found.wrong and set(found.variants) == {"eager", "fused"}
    fused = found.variants["fused"]
    assert 0 < fused.p20 <= fused.median <= fused.p80 and fused.rounds >= 5
    assert run.works == [found] and "eager" in run.said[0]


def test_a_run_that_is_cut_short_keeps_what_it_measured(run, tmp_path):
    run.partial = tmp_path / "made" / "results.partial.json"
    small = case(lambda gradient: reparameterize.work(SMALL, gradient=gradient))
    run.run(small, BENCHMARK)
    assert Result.load(run.partial).works == run.works
    run.run_overhead(small, BENCHMARK)
    kept = Result.load(run.partial)
    assert (
        kept == run.result() and kept.overhead and [p.name for p in run.partial.parent.iterdir()] == [run.partial.name]
    )


def test_kernels_and_their_time_on_a_gpu(monkeypatch):
    """What the profiler tells of five calls: two kernels each, and a copy that is none but takes time."""
    from torch.autograd import DeviceType

    def event(name, microseconds, device=DeviceType.CUDA):
        return SimpleNamespace(
            name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: microseconds)
        )

    calls = []
    seen = [
        event("kernel", 3.0),
        event("kernel", 4.0),
        event("Memcpy HtoD", 1.0),
        event("launch", 50.0, DeviceType.CPU),
    ]
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    profiler = SimpleNamespace(events=lambda: seen * len(calls))
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: contextlib.nullcontext(profiler))
    assert suite.on_device(lambda: calls.append(1)) == (2, pytest.approx(8e-6))


def test_the_suite_is_collected_where_the_checkout_is_not_installed():
    code = "import benchmarks, importlib.util; print(importlib.util.find_spec('udml').origin)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == ROOT / "python" / "udml" / "__init__.py"


@pytest.mark.parametrize("place", [0, -1], ids=["an output", "a gradient"])
def test_a_wrong_kernel_gets_no_time(run, monkeypatch, place):
    right = udml_kernels.reparameterize

    def off(mu, logvar, *args, **options):
        z, std, kl = right(mu, logvar, *args, **options)
        on_cpu = udml_kernels.backends.select(mu.device) != "reference"
        if not on_cpu:
            return z, std, kl
        # The value, or the gradient alone.
        return (z * 1.0001 if place == 0 else z + (logvar - logvar.detach()) * 1e-3), std, kl

    monkeypatch.setattr(udml_kernels, "reparameterize", off)
    monkeypatch.setitem(udml_kernels.backends._unavailable, "cpu", udml_kernels.backends._unavailable["cpu"])
    found = run.run(case(lambda gradient: reparameterize.work(SMALL, gradient=gradient)), BENCHMARK)
    assert found.wrong and found.variants == {} and "WRONG" in run.said[0]


def test_a_kernel_that_raises_gets_no_time(run):
    def build(gradient):
        return dataclasses.replace(reparameterize.work(SMALL), fused=lambda *_: 1 / 0)

    found = run.run(case(build), BENCHMARK)
    assert found.wrong == ["ZeroDivisionError: division by zero"] and not found.variants


def test_large_works_are_compared_on_some_of_their_samples(monkeypatch):
    monkeypatch.setattr("udml_kernels.tools.steps._WHOLE", 10)
    work = reparameterize.work([(9, 3, 5)], gradient=True)
    assert wrong(work, CPU) == []
    right = work.fused

    def last_row_off(*inputs, **options):
        ((z, std, kl),) = right(*inputs, **options)
        return [(torch.cat([z[:-1], 1.01 * z[-1:]]) if len(z) == 9 else z, std, kl)]

    assert wrong(dataclasses.replace(work, fused=last_row_off), CPU)


def test_cold_calls_come_after_an_eviction(run, monkeypatch):
    evicted = []
    monkeypatch.setattr(run, "_evict", lambda: evicted.append(1))
    cold = case(lambda gradient: reparameterize.work(SMALL, gradient=gradient), cache="cold")
    found = run.run(cold, BENCHMARK)
    samples = sum(v.rounds for v in found.variants.values())
    assert {v.calls for v in found.variants.values()} == {1} and len(evicted) >= samples


def test_overhead_is_not_a_work(run):
    run.run_overhead(case(lambda gradient: reparameterize.work(SMALL, gradient=gradient)), BENCHMARK)
    assert not run.works and {o.variant for o in run.overhead} == {"eager", "fused"}


@pytest.mark.parametrize("locations", [False, True], ids=["classification", "segmentation"])
def test_the_head_step_is_right_and_its_baseline_has_the_same_shapes(locations):
    from benchmarks.head_step import head_step

    shape = Shape("small", ((4, 6, 3, 2), (4, 6, 3, 2)), locations)
    work = head_step(shape)
    assert wrong(work, CPU) == []
    fused, plain = Step(work, work.fused, CPU)(udml_kernels.draw_seed()), Step(work, work.eager["eager"], CPU)()
    assert [t.shape for t in fused] == [t.shape for t in plain]


def test_the_training_step_is_right_and_its_baseline_runs_no_op():
    from benchmarks.training_step import perceptron

    work = perceptron()
    assert wrong(work, CPU) == []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("inject_noise", "reparameterize", "noise_regression", "weighted_fusion", "modality_dependency"):
            patch.setattr(udml_kernels, name, None)
        assert work.eager["eager"](torch.empty(0)).isfinite()


def test_peak_memory_counts_what_a_call_adds():
    """In a process of its own: 2^22 float32 in, as many out; eager PyTorch has intermediates beside."""
    with memory.meter() as meter:
        peaks = meter.ask("peaks", id="inject_noise/cremad/float32/forward/warm", threads=1)
    if not peaks:
        pytest.skip("this system has no mark of peak memory that can be reset")
    size = 4 * 64 * 512 * (49 + 54)
    assert size <= peaks["fused"] < 1.2 * size < peaks["eager"]


def test_the_meter_takes_every_id_and_says_when_it_breaks():
    spaced = next(id for id in all_cases() if " " in id)
    with memory.meter() as meter:
        assert all(isinstance(peak, int) for peak in meter.ask("peaks", id=spaced, threads=1).values())
        with pytest.raises(ProcessError, match="peaks: KeyError: 'nothing'"):
            meter.ask("peaks", id="nothing", threads=1)
        meter._process.kill()
        with pytest.raises(ProcessError, match="the process ended with -9"):
            meter.ask("peaks", id=spaced, threads=1)
        assert all(isinstance(peak, int) for peak in meter.ask("peaks", id=spaced, threads=1).values())


def test_the_table_in_the_package_takes_the_same_works(capsys, tmp_path):
    threads, file = str(torch.get_num_threads()), tmp_path / "out.json"
    assert main(["bench", "--quick", "--op", "evidential_fusion", "--threads", threads, "--json", str(file)]) == 0
    assert "fused" in capsys.readouterr().out
    (found,) = json.loads(file.read_text())["results"]
    assert set(found["times"]) == {"eager pairwise", "eager closed form", "fused"}


SLOW = [floor for floor in smoke.FLOORS if floor.case.startswith("reparameterize/features/")]


def test_smoke_turns_red_where_the_reference_stands_for_the_kernel(capsys):
    assert SLOW
    with udml_kernels.use_backend("reference"):
        assert smoke.check(SLOW, 0.1) == 1
    assert "TOO SLOW, second try" in capsys.readouterr().out


def test_smoke_is_green_above_its_floors(capsys):
    easy = [dataclasses.replace(floor, avx512=0.1, avx2=None) for floor in SLOW]
    assert smoke.check(easy, 0.1) == 0
    assert "second try" not in capsys.readouterr().out


def test_the_command_lists_its_commands(capsys):
    from benchmarks.__main__ import main

    assert main([]) == 2 and main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in ("run", "smoke", "table", "report", "compare", "revisions"))


def test_an_unknown_file_of_the_suite_is_refused(capsys):
    from benchmarks.__main__ import main

    assert main(["run", "everything"]) == 2
    assert "op: expected some of" in capsys.readouterr().out
