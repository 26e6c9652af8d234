"""A one-minute benchmark whose ratios must stay above a floor: `make bench-smoke`.

It compares ratios of the fastest calls, not times: both sides are measured in turn in one process, and a busy machine
slows most calls, but not all. The floors are about 60 % of what two cores reach: noise stays above them, and a kernel
that lost its vectorization or its threads falls below. Random numbers gain twice as much from AVX-512 as from AVX2, and
PyTorch's own use neither: where that matters, the two levels have separate floors.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from udml_kernels import backends
from udml_kernels.tools.steps import Step, fused_step
from udml_kernels.tools.table import table
from udml_kernels.tools.timing import interleaved

from .case import all_cases

HELP = "in a minute: do the ratios stay above their floors?"
# Seconds for each ratio; a ratio that was too low is measured again, RETRY times as long.
BUDGET, RETRY = 1.5, 3
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Floor:
    """The required speed-up of a work over "eager", the "reference", or itself on "one thread".

    `avx2` is the floor without AVX-512; None where it is the same.
    """

    case: str
    against: str
    avx512: float
    avx2: float | None = None

    @property
    def least(self) -> float:
        return self.avx512 if self.avx2 is None or backends.isa_level == "avx512" else self.avx2


FLOORS = (
    Floor("normal/map14/float32/forward/warm", "eager", 3.9, 2.1),
    Floor("normal/map14/float32/forward/warm", "one thread", 1.2),
    Floor("inject_noise/cremad/float32/forward/warm", "eager", 4.0, 2.1),
    Floor("reparameterize/map14/float32/forward/warm", "eager", 6.0, 2.7),
    Floor("reparameterize/map14/float32/forward+backward/warm", "eager", 4.6, 2.1),
    Floor("reparameterize/map14, pooled/float32/forward/warm", "eager", 12, 6.5),
    Floor("weighted_fusion/large/float32/forward+backward/warm", "eager", 1.25),
    Floor("noise_regression/features, no dropout/float32/forward+backward/warm", "eager", 1.5),
    Floor("evidential_fusion/large/float32/forward+backward/warm", "eager", 2.3),
    Floor("head_step/cremad/float32/forward+backward/warm", "eager", 2.6, 1.7),
    Floor("reparameterize/features/float32/forward/warm", "reference", 15, 8.5),
)


def ratio(floor: Floor, budget: float) -> float:
    """The measured speed-up, timed for about `budget` seconds."""
    work = all_cases()[floor.case].work()
    fused = fused_step(work, _CPU)
    others: dict[str, Callable[[], object]] = {}
    if floor.against == "eager":
        others = {name: Step(work, call, _CPU) for name, call in work.eager.items()}
    elif floor.against == "reference":
        others = {"reference": fused_step(work, _CPU, "reference")}
    else:
        others = {"one thread": _on_one_thread(fused)}
    times = interleaved({**others, "fused": fused}, budget)
    return min(times[name].fastest for name in others) / times["fused"].fastest


def _on_one_thread(call: Callable[[], object]) -> Callable[[], object]:
    def single() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return single


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    """Print the ratios; return 1 if one stays below its floor in two measurements."""
    return check(FLOORS, BUDGET)


def check(floors: Sequence[Floor], budget: float) -> int:
    """The same for the given floors, with `budget` seconds for each."""
    rows, failed = [("work", "against", "at least", "reached", "")], 0
    for floor in floors:
        if floor.against == "one thread" and torch.get_num_threads() < 2:
            continue
        reached, again = ratio(floor, budget), False
        if reached < floor.least:
            reached, again = ratio(floor, RETRY * budget), True
        low = reached < floor.least
        failed += low
        verdict = ("TOO SLOW" if low else "ok") + (", second try" if again else "")
        rows.append((floor.case, floor.against, f"{floor.least:.1f}x", f"{reached:.1f}x", verdict))
    print(table(rows, right=(2, 3)))
    print(f"{failed} of {len(rows) - 1} ratios below their floor" if failed else f"all {len(rows) - 1} ratios hold")
    return 1 if failed else 0
