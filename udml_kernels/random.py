"""Seeds, and the random numbers that the ops use.

Every backend follows one contract: Philox4x32-10, keyed by the 64-bit seed. The value of element e
(row-major over dims 1..) of a sample depends only on (seed, stream, sample id, e): not on strides,
batch size or order, threads, device, or how many machines share the batch.
"""

import torch
from torch import Tensor


def draw_seed(device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
    """A fresh seed from torch's generator, so `torch.manual_seed` controls it.

    Args:
        device: where the ops that take the seed run.
        generator: the generator of that device to draw from; None for its default one.

    Returns:
        An int64 tensor of shape (1,). One seed per training step serves every op of the step. Compiled
            code takes it as an input: draw it outside the compiled region.
    """
    return torch.empty((1,), dtype=torch.int64, device=device).random_(generator=generator)
