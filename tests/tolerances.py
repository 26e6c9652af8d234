"""How far a backend may be from the truth.

For every output and gradient, with `truth` the float64 reference on float64 copies of the very same
inputs (already rounded to the tested dtype) and `same` the reference on those inputs as they are,

    |got - truth|  <=  2 max|same - truth| + tolerance(dtype, device) max|truth| + one subnormal of got's dtype

element by element; both maxima run over the tensor, over the places where `same` and `truth` are finite.
Where `same` is NaN, inf or -inf, `got` must be exactly that, and nowhere else.

The table is the package's own, `udml_kernels.tools.tolerances`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from udml_kernels.tools.tolerances import NORMAL_ON_ACCELERATOR, NORMAL_ON_CPU, TOLERANCES, tolerance

from . import DEVICE

__all__ = ["TOLERANCES", "assert_close", "normal_bound", "plainly_close", "tolerance"]


def normal_bound(backend: str) -> float:
    """Of a float32 normal, times max(1, |n|). CUDA's formula is a GPU's also where the host executes it."""
    return NORMAL_ON_CPU if DEVICE.type == "cpu" and backend != "cuda" else NORMAL_ON_ACCELERATOR


def assert_close(
    name: str, got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, floor: float | Tensor = 0
) -> None:
    """The rule above for one tensor; integers and bools must be equal.

    `floor` joins max|truth|: the size of the terms where a sum of them cancels exactly, or nearly so. A tensor of
    truth's shape says so element by element.
    """
    if not got.is_floating_point():
        assert torch.equal(got, same), f"{name}: {int((got != same).sum())} of {got.numel()} values differ"
        return
    values, expected, exact = got.double(), same.double(), truth.double()
    ordinary = expected.isfinite()
    odd = ~ordinary & ~torch.isclose(values, expected, equal_nan=True) | ordinary & ~values.isfinite()
    assert not odd.any(), f"{name}: {_first(odd)} is {values[odd][0]}, the reference has {expected[odd][0]}"
    compared = ordinary & exact.isfinite()
    # A finite value where float64 has none would go unchecked: that is no case of a sound suite.
    assert bool((compared == ordinary).all()), f"{name}: the float64 reference is not finite where {got.dtype} is"
    if not compared.any():
        return
    error = torch.where(compared, (values - exact).abs(), 0)
    reference_error = torch.where(compared, (expected - exact).abs(), 0).max()
    scale = torch.where(compared, exact.abs(), 0).max().clamp(min=floor)
    limit = _limit(got, dtype, reference_error, scale)
    wrong = ~(error <= limit)
    if wrong.any():
        worst = torch.where(wrong, error, -1).argmax()
        allowed, size = (t.expand_as(error).reshape(-1)[worst] for t in (limit, scale))
        raise AssertionError(
            f"{name}: error {error.reshape(-1)[worst]:.3e} at {_first(error == error.reshape(-1)[worst])} exceeds"
            f" {allowed:.3e} (reference error {reference_error:.3e}, scale {size:.3e}; {int(wrong.sum())} of"
            f" {got.numel()} wrong)"
        )


def _limit(got: Tensor, dtype: torch.dtype, reference_error, scale):
    info = torch.finfo(got.dtype)
    return 2 * reference_error + tolerance(dtype, got.device) * scale + info.smallest_normal * info.eps


@np.errstate(all="ignore")
def plainly_close(got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    """True only where `assert_close` passes, and fast: whether three finite tensors obey the rule.

    False says nothing. One value that is not finite makes one of the three largest ones NaN or inf.
    """
    if not got.is_floating_point() or not got.numel():
        return False
    values, expected, exact = (t.detach().double().cpu().numpy() for t in (got, same, truth))
    largest = (values - exact, expected - exact, exact)
    error, reference_error, scale = sizes = [float(np.abs(difference).max()) for difference in largest]
    return all(map(math.isfinite, sizes)) and error <= _limit(got, dtype, reference_error, scale)


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())
