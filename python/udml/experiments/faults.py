"""What a broken sensor does to a modality's input (B, ...)."""

from collections.abc import Callable

import torch
from torch import Tensor

Fault = Callable[[Tensor], Tensor]
# Not a fault, but what one is compared with: the modality is missing.
MASKED = "masked"


def _first_feature(value: float) -> Fault:
    def broken(x: Tensor) -> Tensor:
        x = x.clone()
        x.flatten(1)[:, 0] = value
        return x

    return broken


def _scaled(power: int) -> Fault:
    return lambda x: x * 10.0**power


def _stuck(value: float) -> Fault:
    return lambda x: torch.full_like(x, value)


FAULTS: dict[str, Fault] = {f"times 1e{k}": _scaled(k) for k in range(1, 7)} | {
    **{f"stuck at {value:g}": _stuck(value) for value in (0.0, 1.0, 5.0, 1000.0)},
    "one feature 1000": _first_feature(1000.0),
    "NaN": _stuck(float("nan")),
    "one feature NaN": _first_feature(float("nan")),
    "infinite": _stuck(float("inf")),
    "one feature infinite": _first_feature(float("inf")),
    # A fault that no check of a single input can detect: a healthy input, the same for all samples.
    "frozen at a sample": lambda x: x[:1].expand_as(x),
}
