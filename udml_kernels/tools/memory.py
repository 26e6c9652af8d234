"""Peak extra memory of a call: outputs, gradients, what autograd saves, and temporaries.

On the CPU it is the kernel's high-water mark of resident memory (VmHWM), reset before the call. It is correct
only in a process that maps every large allocation anew (`ENVIRONMENT`), where no memory freed earlier is reused.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import torch

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_of(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes beyond what was in use before the call; None where the system has no high-water mark that can be reset.

    On the CPU the process must have been started with `ENVIRONMENT`, and `call` made once before.
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


def reparameterize_peak(variant: str) -> int | None:
    """Peak bytes of reparameterize at 64x512x14x14, forward and backward, in a process of its own.

    `variant` is "eager" or "fused". None where it cannot be measured.
    """
    environment = {**os.environ, **ENVIRONMENT}
    result = subprocess.run(
        [sys.executable, "-m", __name__, variant], env=environment, capture_output=True, text=True, check=False
    )
    return int(result.stdout) if result.returncode == 0 else None


def _measure(variant: str) -> int | None:
    from . import workloads
    from .steps import Step, fused_step

    torch.set_num_threads(2)
    device = torch.device("cpu")

    def step(*shape: int) -> Callable[[], object]:
        work = workloads.reparameterize([shape], gradient=True)
        call = fused_step(work, device) if variant == "fused" else Step(work, work.eager["eager"], device)
        # The first call causes everything that is loaded, started or allocated on first use.
        call()
        return call

    return peak_of(step(64, 512, 14, 14), device)


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
