"""The random numbers of training; each is a function of the run's seed and of the position in the run.

None comes from a generator with state, so a resumed run, or one shared by several processes, gets the same numbers
as an uninterrupted run of one process.
"""

import torch
from torch import Tensor

import udml_kernels
from udml_kernels.streams import Purpose, Seed, Stream


def _mix(*words: int) -> int:
    """Map words in [0, 2^64) to a number in [0, 2^63), by SplitMix64's finaliser (Steele et al., 2014) over each."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def evaluation_seed(draw: int, device: torch.device | str = "cpu") -> Tensor:
    """The seed of a noise draw in evaluation, the same for every model and run: int64 (1,)."""
    return torch.tensor([Seed.COMMON + draw], device=device)


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The order of the samples in an epoch: a permutation, int64 (size,)."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(_mix(seed, Purpose.ORDER, epoch)))


def step_seeds(seed: int, first: int, count: int) -> Tensor:
    """The noise seeds of the steps first, first + 1, ..., counted over the whole run: int64 (count,)."""
    return torch.tensor([_mix(seed, Purpose.STEP, step) for step in range(first, first + count)], dtype=torch.int64)


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of torch's generator in an epoch, from which a user's encoder (a Dropout, for example) may draw."""
    return _mix(seed, Purpose.EPOCH, epoch)


def mixed_sigma(batch: int, modalities: int, max_sigma: float, seed: Tensor, sample_ids: Tensor) -> Tensor:
    """The mix of noise levels: each modality of a sample clean with probability 1/2, else uniform up to max_sigma.

    Args:
        seed: int64, one element; its device is the result's.
        sample_ids: int64 (B,), the samples' identities.

    Returns:
        float32 (B, M).
    """
    u = udml_kernels.uniform((batch, modalities), seed, stream=Stream.LEVELS, sample_ids=sample_ids)
    return (2 * u - 1).clamp(min=0) * max_sigma
