"""How far a backend may be from the reference: one rule, one table, for `check`, `bench` and the tests.

For every output and gradient, with `truth` the float64 reference on float64 copies of the same inputs
(already rounded to the dtype under test) and `same` the reference on those inputs as they are,

    max|got - truth|  <=  2 max|same - truth| + tolerance(dtype of the inputs, device) * max|truth| + a subnormal

over the places where `same` and `truth` are finite. Where `same` is NaN, inf or -inf, `got` is exactly that.
"""

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
    got: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[float, float]:
    """(error, allowed) of a backend's result for inputs of `dtype`: absolute, the largest of the tensor.

    `device` is where `got` was computed; None means the device on which it lies.

    The error is inf where the shape, the dtype or a value that is not finite differs; integers have to be equal.
    """
    if got.shape != same.shape or got.dtype != same.dtype:
        return float("inf"), 0.0
    if not got.is_floating_point():
        return (0.0 if torch.equal(got, same) else float("inf")), 0.0
    values, expected, exact = got.double(), same.double(), truth.double()
    ordinary = expected.isfinite()
    odd = ~ordinary & ~torch.isclose(values, expected, equal_nan=True) | ordinary & ~values.isfinite()
    info = torch.finfo(got.dtype)
    least = info.smallest_normal * info.eps
    if odd.any():
        return float("inf"), least
    where = ordinary & exact.isfinite()
    if not where.any():
        return 0.0, least
    values, expected, exact = values[where], expected[where], exact[where]
    allowed = 2 * (expected - exact).abs().max() + tolerance(dtype, device or got.device) * exact.abs().max() + least
    return float((values - exact).abs().max()), float(allowed)
