"""Time two libraries in turn, each in its own process; a third process, of the first library again, shows the noise.

In every round each process times one sample of the same work while the others sleep. The order changes through all
permutations, so that a slow phase of the machine affects all processes and none always comes first.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .process import Process, ProcessError
from .ratios import Estimate, paired, verdict

ROLES = ("base", "again", "head")
# Approximate duration of a sample in seconds.
_SAMPLE = 10e-3
# Smaller changes are not reported, whatever the noise of this run is.
LEAST = 1.01


def worker(library: Path, threads: int) -> Process:
    """The client of benchmarks.worker."""
    # With an active wait policy OpenMP's threads spin after a sample and take the processors from the next process:
    # 12 ms per sample instead of 0.15 ms on a busy machine.
    environment = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    return Process(str(library), ["benchmarks.worker", str(library), str(threads)], environment)


@dataclass
class Outcome:
    """A work's seconds by role, (processes, rounds), or the reason why there are none.

    Attributes:
        missing: why the base cannot run the work.
        differences: where the results of head and base disagree.
    """

    id: str
    seconds: dict[str, list[list[float]]] = field(default_factory=lambda: {role: [] for role in ROLES})
    missing: str | None = None
    differences: list[str] = field(default_factory=list)

    @property
    def timed(self) -> bool:
        return self.missing is None and not self.differences

    @property
    def ratio(self) -> Estimate:
        """base / head: above 1, head is faster."""
        return paired(self.seconds["base"], self.seconds["head"])

    @property
    def control(self) -> Estimate:
        """base / base, from two processes: noise alone."""
        return paired(self.seconds["base"], self.seconds["again"])

    @property
    def least_change(self) -> float:
        """The factor that a change must exceed: the distance of the base / base interval's far end from 1."""
        return max(LEAST, self.control.extent)

    @property
    def verdict(self) -> str:
        return verdict(self.ratio, self.least_change)


def measure(
    libraries: dict[str, Path],
    works: Sequence[str],
    *,
    threads: int,
    rounds: int,
    processes: int,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Time works in the libraries of `ROLES`.

    Args:
        libraries: the folder `udml_kernels` of each role.
        rounds: samples of each work in each process.
        processes: how often the processes are started anew, since effects specific to a process do not average out.
        tell: called with one line per step.

    Raises:
        ProcessError: if head cannot run a work, or a library has no CPU kernels.
    """
    outcomes = [Outcome(id) for id in works]
    for start in range(processes):
        with ExitStack() as stack:
            workers = {role: stack.enter_context(worker(libraries[role], threads)) for role in ROLES}
            refuse_without_kernels(workers)
            for outcome in filter(lambda o: o.timed, outcomes):
                tell(f"{outcome.id}, {start + 1} of {processes}")
                take_turns(workers, outcome, rounds, check=start == 0)
    return outcomes


def refuse_without_kernels(workers: dict[str, Process]) -> None:
    """Raise ProcessError if a library would serve calls from the reference."""
    for process in workers.values():
        about = process.ask("about")
        if about["backend"] != "cpu":
            raise ProcessError(f"{process.name}: expected CPU kernels, got the backend {about['backend']}")


def take_turns(workers: dict[str, Process], outcome: Outcome, rounds: int, check: bool) -> None:
    """Take one process' samples of a work, into `outcome`; with `check`, compare the results first."""
    slowest = 0.0
    for role in ("head", "base", "again"):
        answer = workers[role].ask("open", work=outcome.id)
        if "missing" in answer:
            if role == "head":
                raise ProcessError(f"{workers[role].name}: {outcome.id}: {answer['missing']}")
            outcome.missing = answer["missing"]
            return
        slowest = max(slowest, answer["seconds"])
    if check:
        outcome.differences = _differences(workers["base"], workers["head"])
        if outcome.differences:
            return
    calls = max(1, min(1000, round(_SAMPLE / slowest)))
    samples: dict[str, list[float]] = {role: [] for role in ROLES}
    for _, order in zip(range(rounds), itertools.cycle(itertools.permutations(ROLES)), strict=False):
        for role in order:
            samples[role].append(workers[role].ask("time", calls=calls)["seconds"])
    for role in ROLES:
        outcome.seconds[role].append(samples[role])


def _differences(base: Process, head: Process) -> list[str]:
    """Where head's float64 results differ from base's by more than the tolerance table allows a backend.

    The base takes the place of the reference: head may have twice base's own error, plus the table's tolerance.
    """
    from udml_kernels.tools.tolerances import compare

    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, worker in (("base", base), ("head", head)):
            file = f"{folder}/{name}.pt"
            worker.ask("results", file=file, truth=name == "base")
            found[name] = torch.load(file)
    if len(found["base"]["results"]) != len(found["head"]["results"]):
        return ["a different number of results"]
    differences = []
    for i, (got, same, truth) in enumerate(
        zip(found["head"]["results"], found["base"]["results"], found["base"]["truth"], strict=True)
    ):
        error, allowed = compare(got, same, truth, torch.float32)
        if error > allowed:
            differences.append(f"result {i}: error {error:.2e}, allowed {allowed:.2e}")
    return differences
