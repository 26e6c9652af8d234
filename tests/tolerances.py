"""How far a random number may be from the truth; the rule for everything else is `udml_kernels.tools.tolerances`."""

from udml_kernels.tools.tolerances import NORMAL_ON_ACCELERATOR, NORMAL_ON_CPU

from . import TRITON


def normal_bound(backend: str) -> float:
    """Of a float32 normal, times max(1, |n|)."""
    exact = backend == "cpu" or (backend == "triton" and TRITON == "portable")
    return NORMAL_ON_CPU if exact else NORMAL_ON_ACCELERATOR
