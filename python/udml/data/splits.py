"""The choice of test and validation samples: it depends only on a seed, on every machine and in every version."""

from collections.abc import Sequence

import torch
from torch import Tensor

import udml_kernels
from udml_kernels.streams import Seed, Stream

from .base import Batch

# Of all samples of feature vectors, and of what the test samples leave.
TEST_FRACTION, VALIDATION_FRACTION = 0.4, 0.25


def _order(count: int, seed: int) -> Tensor:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    keys = udml_kernels.uniform((count,), torch.tensor([seed], device="cpu"), stream=Stream.SPLIT)
    return keys.argsort(stable=True)


def _number(count: int, fraction: float) -> int:
    return min(max(round(count * fraction), 1), count - 1)


def _checked(fraction: float | str) -> float:
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ValueError(f"validation: expected a fraction between 0 and 1, or a list's name, got {fraction!r}")
    return fraction


def hold_out(groups: Sequence, fraction: float | str, seed: int) -> Tensor:
    """Choose whole groups: bool (N,), True for the samples of about `fraction` of the groups.

    At least one group is chosen and at least one is not, if there are two.

    Args:
        groups: N keys, such as the person of each sample.
        fraction: fraction of the distinct groups, between 0 and 1.
        seed: any 64-bit integer.
    """
    fraction, distinct = _checked(fraction), sorted(set(groups))
    chosen = {distinct[i] for i in _order(len(distinct), seed)[: _number(len(distinct), fraction)].tolist()}
    return torch.tensor([group in chosen for group in groups], dtype=torch.bool, device="cpu")


def hold_out_per_class(labels: Tensor, fraction: float | str, seed: int) -> Tensor:
    """Choose `fraction` of the samples of each class: bool (N,), for labels (N,). Arguments as for `hold_out`."""
    fraction, order = _checked(fraction), _order(len(labels), seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        chosen[rows[: _number(len(rows), fraction)]] = True
    return chosen


def split_vectors(batch: Batch, seed: int) -> dict[str, Batch]:
    """Training, validation and test samples of feature vectors (N, F): 45, 15 and 40 percent of each class.

    The test samples are the same whatever the seed. Every feature is centred and scaled by its mean and standard
    deviation over the training samples.
    """
    test = hold_out_per_class(batch.target, TEST_FRACTION, Seed.COMMON)
    rest = batch.select(~test)
    held = hold_out_per_class(rest.target, VALIDATION_FRACTION, seed)
    parts = {"train": rest.select(~held), "validation": rest.select(held), "test": batch.select(test)}
    for view in batch.inputs:
        std, mean = torch.std_mean(parts["train"].inputs[view].double(), 0)
        for part in parts.values():
            # A feature that is constant in training becomes 0 there.
            part.inputs[view] = ((part.inputs[view] - mean) / std.clamp(min=1e-6)).float()
    return parts
