"""How far a backend may be from the reference: one rule, one table, for `check`, `bench` and the tests.

For every output and gradient, with `truth` the float64 reference on float64 copies of the same inputs
(already rounded to the dtype under test) and `same` the reference on those inputs as they are,

    |got - truth|  <=  2 max|same - truth| + tolerance(dtype of the inputs, device) max|truth| + one subnormal of got's

element by element; both maxima run over the tensor, over the places where `same` and `truth` are finite.
Where `same` is NaN, inf or -inf, `got` must be exactly that, and nowhere else.
"""

import math

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


def compare(got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, floor: float = 0) -> tuple[float, float]:
    """(error, allowed) of a backend's result for inputs of `dtype`: absolute, the largest of the tensor.

    The error is inf where the shape, the dtype or a value that is not finite differs; integers have to be equal.
    `floor` is that of `assert_close`.
    """
    if got.shape != same.shape or got.dtype != same.dtype:
        return float("inf"), 0.0
    if not got.is_floating_point():
        return (0.0 if torch.equal(got, same) else float("inf")), 0.0
    values, expected, exact = got.double(), same.double(), truth.double()
    if _odd(values, expected).any():
        return float("inf"), _subnormal(got.dtype)
    where = expected.isfinite() & exact.isfinite()
    if not where.any():
        return 0.0, _subnormal(got.dtype)
    values, expected, exact = values[where], expected[where], exact[where]
    allowed = _limit(got, dtype, (expected - exact).abs().max(), exact.abs().max().clamp(min=floor))
    return float((values - exact).abs().max()), float(allowed)


def assert_close(
    name: str, got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, floor: float | Tensor = 0
) -> None:
    """The rule for one tensor; integers and bools must be equal.

    `floor` joins max|truth|: the size of the terms where a sum of them cancels exactly, or nearly so. A tensor of
    truth's shape says so element by element.
    """
    if not got.is_floating_point():
        assert torch.equal(got, same), f"{name}: {int((got != same).sum())} of {got.numel()} values differ"
        return
    values, expected, exact = got.double(), same.double(), truth.double()
    odd = _odd(values, expected)
    assert not odd.any(), f"{name}: {_first(odd)} is {values[odd][0]}, the reference has {expected[odd][0]}"
    ordinary = expected.isfinite()
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


def _odd(values: Tensor, expected: Tensor) -> Tensor:
    """Where one of the two is not finite and the other is not the same."""
    ordinary = expected.isfinite()
    return ~ordinary & ~torch.isclose(values, expected, equal_nan=True) | ordinary & ~values.isfinite()


def _limit(got: Tensor, dtype: torch.dtype, reference_error, scale):
    return 2 * reference_error + tolerance(dtype, got.device) * scale + _subnormal(got.dtype)


def _subnormal(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(where.nonzero()[0].tolist())
