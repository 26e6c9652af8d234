"""How far a backend may be from the reference: one rule, one table, for `check`, `bench` and the tests.

For every output and gradient, with `truth` the float64 reference on float64 copies of the same inputs
(already rounded to the dtype under test) and `same` the reference on those inputs as they are,

    |got - truth|  <=  2 max|same - truth| + tolerance(dtype of the inputs, device) max|truth| + one subnormal of got's

element by element; both maxima run over the tensor, over the places where `same` and `truth` are finite.
Where `same` is NaN, inf or -inf, `got` must be exactly that, and nowhere else.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Half-precision ops compute in float32 and round once, so they have float32's tolerance: the rounding is in
# |same - truth|. float32's tolerance covers the error bound of the normals, 1e-6 max(1, |n|), which `same` does
# not need, as its normals are evaluated in double precision.
TOLERANCES = {
    # Relative to the largest element of a tensor whose sums may cancel to a thousandth of their terms.
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,
    torch.float16: 2e-6,
}
# Error bounds of a float32 normal, as a fraction of max(1, |n|): on accelerators normals come from approximate
# instructions.
NORMAL_ON_CPU, NORMAL_ON_ACCELERATOR = 1e-6, 5e-6


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    if dtype == torch.float64 or device.type == "cpu":
        return TOLERANCES[dtype]
    return TOLERANCES[dtype] + NORMAL_ON_ACCELERATOR - NORMAL_ON_CPU


def compare(
    got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, terms: float | Tensor = 0
) -> tuple[float, float]:
    """(error, allowed) of a backend's result for inputs of `dtype`: absolute, the largest of the tensor.

    The error is inf where the shape, the dtype or a value that is not finite differs; integers have to be equal.
    `terms` is that of `assert_close`.
    """
    if got.shape != same.shape or got.dtype != same.dtype:
        return float("inf"), 0.0
    if not got.is_floating_point():
        return (0.0 if torch.equal(got, same) else float("inf")), 0.0
    if not got.numel():
        return 0.0, _subnormal(got.dtype)
    found = _judge(got, same, truth, dtype, terms)
    if found.odd.any():
        return float("inf"), _subnormal(got.dtype)
    return float(found.error.max()), float(found.limit.max())


def assert_close(
    name: str, got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, terms: float | Tensor = 0
) -> None:
    """The rule for one tensor; integers and bools must be equal.

    `terms` joins max|truth|: the size of the terms where a sum of them cancels exactly, or nearly so. A tensor of
    truth's shape says so element by element.
    """
    if not got.is_floating_point():
        assert torch.equal(got, same), f"{name}: {int((got != same).sum())} of {got.numel()} values differ"
        return
    if not got.numel():
        return
    odd, error, limit, reference_error, scale = _judge(got, same, truth, dtype, terms)
    assert not odd.any(), f"{name}: {_first(odd)} is {got[odd][0]}, the reference has {same[odd][0]}"
    # A finite value where float64 has none would go unchecked: that is no case of a sound suite.
    unchecked = same.isfinite() & ~truth.isfinite()
    assert not unchecked.any(), f"{name}: the float64 reference is not finite where {got.dtype} is"
    wrong = ~(error <= limit)
    if wrong.any():
        worst = torch.where(wrong, error, -1).argmax()
        allowed, size = (t.expand_as(error).reshape(-1)[worst] for t in (limit, scale))
        raise AssertionError(
            f"{name}: error {error.reshape(-1)[worst]:.3e} at {_first(error == error.reshape(-1)[worst])} exceeds"
            f" {allowed:.3e} (reference error {reference_error:.3e}, scale {size:.3e}; {int(wrong.sum())} of"
            f" {got.numel()} wrong)"
        )


@np.errstate(all="ignore")
def plainly_close(got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    """True only where `assert_close` passes, and fast: whether three finite tensors obey the rule.

    False says nothing. One value that is not finite makes one of the three largest ones NaN or inf.
    """
    if not got.is_floating_point() or not got.numel():
        return False
    values, expected, right = (t.detach().double().cpu().numpy() for t in (got, same, truth))
    largest = (values - right, expected - right, right)
    error, reference_error, scale = sizes = [float(np.abs(difference).max()) for difference in largest]
    return all(map(math.isfinite, sizes)) and error <= _limit(got, dtype, reference_error, scale)


class _Judged(NamedTuple):
    """The rule for each element: `odd` is where one of two values is not finite and the other is not the same."""

    odd: Tensor
    error: Tensor
    limit: Tensor
    reference_error: Tensor
    scale: Tensor


def _judge(got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, terms: float | Tensor) -> _Judged:
    values, expected, right = got.double(), same.double(), truth.double()
    ordinary = expected.isfinite()
    odd = ~ordinary & ~torch.isclose(values, expected, equal_nan=True) | ordinary & ~values.isfinite()
    compared = ordinary & right.isfinite()
    error = torch.where(compared, (values - right).abs(), 0)
    reference_error = torch.where(compared, (expected - right).abs(), 0).max()
    scale = torch.where(compared, right.abs(), 0).max().clamp(min=terms)
    return _Judged(odd, error, _limit(got, dtype, reference_error, scale), reference_error, scale)


def _limit(got: Tensor, dtype: torch.dtype, reference_error, scale):
    return 2 * reference_error + tolerance(dtype, got.device) * scale + _subnormal(got.dtype)


def _subnormal(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())
