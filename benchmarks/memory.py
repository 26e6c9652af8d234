"""Peak extra memory of works, measured in a long-lived process: `python -m benchmarks.memory`.

It counts outputs, gradients, what autograd saves, and temporaries. On the CPU it is the kernel's high-water mark of
resident memory (VmHWM), reset before the call. It is a separate process because that mark is correct only if every
large allocation is mapped anew, where no memory freed earlier is reused, and times only if it is not.
The process reads a line of JSON, [id, threads], and answers with a line {variant: bytes}.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import torch

from udml_kernels.tools.steps import Step, fused_step

from .case import Case, all_cases

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Meter:
    """The client of that process, which the first request starts."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def peaks(self, case: Case, threads: int) -> dict[str, int]:
        """Bytes by variant, of the fused call and the eager calls; empty where they cannot be measured.

        Raises:
            RuntimeError: if the process ended instead of answering.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps([case.id, threads]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code, self._process = self._process.wait(), None
            raise RuntimeError(f"{case.id}: the process that measures peak memory ended with exit code {code}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


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


def measure(case: Case, device: torch.device) -> dict[str, int]:
    """Bytes by variant, in this process."""
    work = case.work()
    variants = {"fused": fused_step(work, device)}
    variants |= {name: Step(work, call, device) for name, call in work.eager.items()}
    peaks = {}
    for name, call in variants.items():
        call()
        peak = peak_of(call, device)
        if peak is not None:
            peaks[name] = peak
    return peaks


def main() -> None:
    for line in sys.stdin:
        id, threads = json.loads(line)
        torch.set_num_threads(threads)
        print(json.dumps(measure(all_cases()[id], torch.device("cpu"))), flush=True)


if __name__ == "__main__":
    main()
