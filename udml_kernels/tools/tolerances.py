"""How far a backend may be from the float64 reference: one rule, one table.

    error(backend) <= 2 * error(reference in the same dtype) + TOLERANCES[dtype of the result]

where error(y) = max over elements of |y - exact| / max(1, |exact|): absolute for small values, relative for
large ones. Where the same-dtype reference is not finite, the backend's value has to be the same one.
"""

import torch
from torch import Tensor

# float32: the normals' own limit, 1e-6 max(1, |n|), is the largest part.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-3,
    torch.float16: 2.5e-4,
}


def error(value: Tensor, exact: Tensor, where: Tensor) -> float:
    """The largest error among the elements chosen by `where`; 0 if there are none."""
    value, exact = value.double()[where], exact.double()[where]
    if value.numel() == 0:
        return 0.0
    scaled = (value - exact).abs() / exact.abs().clamp(min=1)
    return float(scaled.max())


def compare(value: Tensor, same: Tensor, exact: Tensor) -> tuple[float, float]:
    """(error, allowed) of a backend's result, given the reference in the same dtype and in float64.

    The error is inf where shape, dtype or a non-finite value differ from the same-dtype reference.
    """
    if value.shape != same.shape or value.dtype != same.dtype:
        return float("inf"), 0.0
    if not value.dtype.is_floating_point:
        return (0.0 if torch.equal(value, same) else float("inf")), 0.0
    special = ~same.isfinite()
    if not torch.equal(value[special].nan_to_num(nan=1.0), same[special].nan_to_num(nan=1.0)) or not torch.equal(
        value.isnan(), same.isnan()
    ):
        return float("inf"), TOLERANCES[value.dtype]
    where = ~special & exact.isfinite()
    return error(value, exact, where), 2 * error(same, exact, where) + TOLERANCES[value.dtype]
