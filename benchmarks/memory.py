"""Peak extra memory of works, measured in a long-lived process: `python -m benchmarks.memory`.

It is a separate process because the high-water mark is correct only if every large allocation is mapped anew, and
times only if it is not. The process reads a line of JSON, [id, threads], and answers with a line {variant: bytes}.
"""

import json
import os
import subprocess
import sys

import torch

from udml_kernels.tools.memory import ENVIRONMENT, peak_of
from udml_kernels.tools.steps import Step, fused_step

from .case import Case, all_cases


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
                env={**os.environ, **ENVIRONMENT},
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
