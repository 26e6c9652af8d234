"""Peak extra memory of one reparameterize forward and backward, in a process of its own.

The kernel's high-water mark of resident memory (VmHWM) is reset after the inputs and the incoming gradients
exist, so what is counted is outputs, gradients, what autograd keeps, and temporaries. Every allocation above
64 KB is mapped afresh, so that memory freed earlier hides nothing.
"""

import os
import subprocess
import sys

import torch

from . import eager


def peak_extra_bytes(variant: str) -> int | None:
    """For "eager" or "fused"; None where the system has no resettable high-water mark."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(
        [sys.executable, "-m", __name__, variant], env=environment, capture_output=True, text=True, check=False
    )
    return int(result.stdout) if result.returncode == 0 else None


def _resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _measure(variant: str) -> int:
    import udml_kernels

    torch.set_num_threads(2)
    call = eager.reparameterize if variant == "eager" else udml_kernels.reparameterize

    def step(*shape: int, measured: bool = False) -> int:
        mu, logvar = (torch.randn(shape, requires_grad=True) for _ in range(2))
        prior, grad = torch.ones(shape[0]), torch.randn(shape)
        grads = [grad, torch.ones(shape[:2]), torch.ones(shape[0])]
        if measured:
            with open("/proc/self/clear_refs", "w") as mark:
                mark.write("5")
        before = _resident("VmRSS")
        outputs = call(mu, logvar, prior)
        gradients = torch.autograd.grad(outputs, (mu, logvar), grads)
        return _resident("VmHWM") - before if gradients else 0

    # Everything that is loaded or started on first use.
    step(2, 8, 64, 64)
    return step(64, 512, 14, 14, measured=True)


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
