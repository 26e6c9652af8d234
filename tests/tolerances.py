"""How far a random number may be from the truth; the rule for everything else is `udml_kernels.tools.tolerances`."""

from udml_kernels.tools.tolerances import NORMAL_ON_ACCELERATOR, NORMAL_ON_CPU

from . import DEVICE


def normal_bound(backend: str) -> float:
    """Of a float32 normal, times max(1, |n|). CUDA's formula is a GPU's also where the host executes it."""
    return NORMAL_ON_CPU if DEVICE.type == "cpu" and backend != "cuda" else NORMAL_ON_ACCELERATOR
