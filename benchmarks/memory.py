"""Peak extra memory of works, measured in a long-lived process: `python -m benchmarks.memory`.

It counts outputs, gradients, what autograd saves, and temporaries. On the CPU it is the kernel's high-water mark of
resident memory (VmHWM), reset before the call. That mark counts a large allocation only if malloc maps fresh pages for
it. Fresh pages distort times, so memory is measured in another process.
"""

import sys
from collections.abc import Callable

import torch

from udml_kernels.tools.steps import Step, fused_step

from .case import all_cases
from .process import Process, serve

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def meter() -> Process:
    """The client of that process: ask("peaks", id=..., threads=...) for the bytes by variant."""
    return Process("peak memory", ["benchmarks.memory"], _ENVIRONMENT)


def peak_of(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes beyond what was in use before the call; None where the system has no high-water mark that can be reset.

    On the CPU the process must have been started with `_ENVIRONMENT`, and `call` made once before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    try:
        with open("/proc/self/clear_refs", "w") as mark:
            mark.write("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    results = call()
    peak = _resident("VmHWM") - before
    del results
    return max(0, peak)


def _resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


class Session:
    """The requests."""

    def peaks(self, id: str, threads: int) -> dict[str, int]:
        """Bytes by variant, of the fused call and the eager calls; empty where they cannot be measured."""
        torch.set_num_threads(threads)
        work, device = all_cases()[id].work(), torch.device("cpu")
        variants = {"fused": fused_step(work, device)}
        variants |= {name: Step(work, call, device) for name, call in work.eager.items()}
        found = {}
        for name, call in variants.items():
            call()
            found[name] = peak_of(call, device)
        return {name: peak for name, peak in found.items() if peak is not None}


if __name__ == "__main__":
    serve(Session(), sys.stdin, sys.stdout)
