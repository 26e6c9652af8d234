"""Argument checks, in one error style: `<argument>: expected <what>, got <what>`.

Everything is checked before anything is computed. Values inside accelerator tensors are never read
(that would synchronise), nor are values while tracing: there the documented result is NaN.
"""

from typing import NoReturn

import torch
from torch import Tensor

from .random import draw_seed

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_MODALITIES = 16


def fail(argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{argument}: expected {expected}, got {got}")


def shape_of(value: Tensor) -> str:
    return f"shape {tuple(value.shape)}"


def float_tensor(argument: str, value: object, min_dim: int = 1, also: tuple = ()) -> None:
    if not isinstance(value, Tensor):
        fail(argument, "a tensor", type(value).__name__, TypeError)
    if value.dtype not in FLOATS and value.dtype not in also:
        names = ", ".join(str(d).removeprefix("torch.") for d in (*FLOATS, *also))
        fail(argument, f"a dtype of {names}", value.dtype, TypeError)
    if value.dim() < min_dim:
        fail(argument, f"at least {min_dim} dimensions", shape_of(value))


def same_device(argument: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        fail(argument, f"a tensor on {device}", f"one on {value.device}")


def exact_shape(argument: str, value: Tensor, *shapes: tuple) -> None:
    if tuple(value.shape) not in shapes:
        fail(argument, "shape " + " or ".join(str(tuple(s)) for s in shapes), shape_of(value))


def choice(argument: str, value: object, choices) -> None:
    if value not in choices:
        fail(argument, "one of " + ", ".join(choices), repr(value))


def number(argument: str, value: object, expected: str, valid) -> float:
    """A Python number that satisfies `valid`; a NaN satisfies nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        fail(argument, expected, f"{type(value).__name__}", TypeError)
    # A number that torch.compile treats as symbolic can be compared, but not asked for isnan.
    if value != value or not valid(value):
        fail(argument, expected, value)
    return float(value)


def readable(value: Tensor) -> bool:
    """Whether a tensor's values may decide about an error: on the CPU, outside of tracing."""
    return not torch.compiler.is_compiling() and value.device.type == "cpu" and value.numel() > 0


def all_values(argument: str, value: Tensor, expected: str, valid) -> None:
    """Every value lies in the interval that `valid` (number -> bool) describes, where values may be read."""
    if not readable(value):
        return
    low, high = (end.item() for end in value.detach().aminmax())
    if low == low and valid(low) and valid(high):
        return
    for number in value.flatten().tolist():
        if not valid(number):
            fail(argument, expected, f"{number} among its values")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted(**tensors: Tensor) -> list[Tensor]:
    """Tensors that must share a dtype and a device. Under autocast they are widened to one dtype."""
    (first_name, first), *rest = tensors.items()
    for name, value in rest:
        same_device(name, value, first.device)
    if all(value.dtype == first.dtype for _, value in rest):
        return list(tensors.values())
    if not torch.is_autocast_enabled(first.device.type):
        name, other = next((n, v) for n, v in rest if v.dtype != first.dtype)
        fail(name, f"the dtype of {first_name}, {first.dtype}", other.dtype, TypeError)
    widest = first.dtype
    for _, value in rest:
        widest = torch.promote_types(widest, value.dtype)
    return [value.to(widest) for value in tensors.values()]


def per_sample(argument: str, value: Tensor | float, x: Tensor) -> Tensor:
    """A number, or a tensor of one value or of one per sample: (1,) or (B,) in x's arithmetic dtype."""
    dtype = compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            fail(argument, "a number or a tensor", type(value).__name__, TypeError)
        return torch.full((1,), value, dtype=dtype, device=x.device)
    float_tensor(argument, value, 0)
    same_device(argument, value, x.device)
    batch = x.shape[0]
    if value.dim() == 0:
        return value.to(dtype).reshape(1)
    if value.shape[0] != batch or any(size != 1 for size in value.shape[1:]):
        fail(argument, f"a number, () or ({batch},), one value a sample", shape_of(value))
    if value.dim() > 1:
        value = value.reshape(batch)
    # A few bytes: the kernels take it dense, whatever its strides were.
    return (value if value.dtype == dtype else value.to(dtype)).contiguous()


def seed(value: Tensor | None, device: torch.device) -> Tensor:
    if value is None:
        if torch.compiler.is_compiling():
            # A seed drawn inside a compiled region can be drawn again, differently, in its backward.
            fail("seed", "a tensor from draw_seed(), drawn outside the compiled region", "None")
        return draw_seed(device)
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        fail("seed", "an int64 tensor of one element, as draw_seed() gives", got, TypeError)
    if value.numel() != 1:
        fail("seed", "an int64 tensor of one element", shape_of(value))
    same_device("seed", value, device)
    return value


def stream(value: int, limit: int = 2**24) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        fail("stream", "an integer", type(value).__name__, TypeError)
    if not 0 <= value < limit:
        fail("stream", f"an integer in [0, {limit})", value)
    return value


def sample_ids(value: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        fail("sample_ids", f"an int64 tensor of shape ({batch},)", got, TypeError)
    exact_shape("sample_ids", value, (batch,))
    same_device("sample_ids", value, device)
    return value


def features(value) -> list[Tensor]:
    """1 to 16 float tensors of one dtype, device and batch, (B, ...)."""
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple)):
        fail("features", "a list or tuple of tensors, one a modality", type(value).__name__, TypeError)
    if not 1 <= len(value) <= MAX_MODALITIES:
        fail("features", f"1 to {MAX_MODALITIES} modalities", len(value))
    first = value[0]
    alike = True
    for m, feature in enumerate(value):
        if not isinstance(feature, Tensor) or feature.dtype not in FLOATS or feature.dim() < 1:
            float_tensor(f"features[{m}]", feature, 1)
        if feature.shape[0] != first.shape[0]:
            fail(f"features[{m}]", f"a batch of {first.shape[0]}, as features[0] has", shape_of(feature))
        alike = alike and feature.dtype == first.dtype and feature.device == first.device
    return list(value) if alike else promoted(**{f"features[{m}]": f for m, f in enumerate(value)})
