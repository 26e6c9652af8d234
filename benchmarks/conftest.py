"""One pytest item is one work. The results so far are written after each item, and all of them at the session's end."""

import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from udml_kernels import backends

from .machine import results_directory
from .record import Measured
from .report import write
from .suite import Suite


def pytest_addoption(parser):
    group = parser.getgroup("the benchmark suite")
    group.addoption("--device", default="cpu", help="cpu, or a GPU that torch knows, such as cuda")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="default: one per processor")
    group.addoption("--out", type=Path, help="directory of the results; default: benchmarks/results/<machine>")
    group.addoption("--quick", action="store_true", help="a fifth of the time, no torch.compile, no memory")


def pytest_generate_tests(metafunc):
    """Run the test of each bench file over the file's CASES; on a GPU without cases for a number of threads."""
    if "case" in metafunc.fixturenames:
        on_cpu = metafunc.config.getoption("device") == "cpu"
        chosen = [case for case in metafunc.module.CASES if on_cpu or case.threads is None]
        metafunc.parametrize("case", chosen, ids=lambda case: case.id)


@pytest.fixture(scope="session")
def suite(request):
    config, device = request.config, torch.device(request.config.getoption("device"))
    if backends.select(device) == "reference":
        pytest.exit(f"no kernels to time on {device}: {backends.why_unavailable(device.type)}", 2)
    terminal = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    threads = config.getoption("threads")
    out = config.getoption("out") or results_directory(device, threads)
    run = Suite(device, threads, config.getoption("quick"), say, out / "results.partial.json")
    say("\n".join(f"{key:18} {value}" for key, value in run.environment.items()))
    say(", ".join(f"{n} threads copy {rate:.1f} GB/s" for n, rate in run.copy_gb_s.items()))
    yield run
    run.meter.close()
    for line in write(run.result(), out):
        say(line)
    run.partial.unlink(missing_ok=True)
    say(f"{len(run.works)} works in {time.monotonic() - run.started:.0f} s, written to {out}")


if not find_spec("pytest_benchmark"):

    @pytest.fixture
    def benchmark():
        """The part of pytest-benchmark that the suite needs, for machines without it: the suite takes its own times."""

        def pedantic(target, args, setup, rounds):
            for _ in range(rounds):
                setup()
                target(*args)

        return SimpleNamespace(pedantic=pedantic, extra_info={})


@pytest.fixture
def measure(suite, benchmark):
    """Measures a case; fails if a result is wrong."""
    return lambda case: _right(suite.run(case, benchmark))


@pytest.fixture
def measure_overhead(suite, benchmark):
    """The same for a case so small that its kernel's time is negligible."""
    return lambda case: _right(suite.run_overhead(case, benchmark))


def _right(measured: Measured) -> None:
    if measured.wrong:
        pytest.fail(f"{measured.id}: wrong: {'; '.join(measured.wrong)}", pytrace=False)


def pytest_report_teststatus(report):
    """Print no dots between the lines of the works."""
    if report.passed:
        return ("passed" if report.when == "call" else ""), "", ""
    return None
