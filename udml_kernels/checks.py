"""Argument checks, in one error style: `<argument>: expected <what>, got <what>`.

Everything is checked before anything is computed. Values inside accelerator tensors are never read
(that would synchronise), nor are values while tracing: there the documented result is NaN.
"""

import contextlib
import numbers
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from ._constants import numbers_tensor
from .random import draw_seed

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMBERS = (*FLOATS, *INTEGERS)
MAX_MODALITIES = 16
_NUMBER_OR_TENSOR = "a number or a tensor of floats or integers"


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
    dense(argument, value)
    if value.dim() < min_dim:
        fail(argument, f"at least {min_dim} dimensions", shape_of(value))


def dense(argument: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        fail(argument, "a dense tensor (layout torch.strided)", kind, TypeError)


def tensor_of(argument: str, value: object, expected: str, dtypes: Sequence[torch.dtype]) -> None:
    """Require a dense tensor of one of `dtypes`, which `expected` describes."""
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        fail(argument, expected, value.dtype if isinstance(value, Tensor) else type(value).__name__, TypeError)
    dense(argument, value)


def same_device(argument: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        fail(argument, f"a tensor on {device}", f"one on {value.device}")


def same_shape(one: Sequence, other: Sequence) -> bool:
    """Equal sizes, compared one by one: `in` does not recognise that two symbolic sizes are equal."""
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def exact_shape(argument: str, value: Tensor, *shapes: tuple) -> None:
    if not any(same_shape(value.shape, shape) for shape in shapes):
        fail(argument, "shape " + " or ".join(dict.fromkeys(map(shape_text, shapes))), shape_of(value))


def shape_text(shape: Sequence) -> str:
    """A shape of numbers and names, such as (4, H)."""
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def choice(argument: str, value: object, choices) -> None:
    if not isinstance(value, str) or value not in choices:
        fail(argument, "one of " + ", ".join(choices), repr(value))


def flag(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        fail(argument, "True or False", repr(value), TypeError)
    return value


def number(argument: str, value: object, expected: str, valid: Callable) -> float:
    """Require a number that satisfies `valid`; a NaN satisfies nothing.

    The number may be a one-element tensor on the CPU. Where tensors cannot be read (see `readable`), that tensor is
    returned unchecked, as a float64 tensor without dimensions.
    """
    if isinstance(value, Tensor):
        value = _only_element(argument, value, expected)
        if isinstance(value, Tensor):
            return value  # type: ignore[return-value]
    if not _is_number(value):
        fail(argument, expected, type(value).__name__, TypeError)
    value = as_float(argument, value, expected)
    # A symbolic number of torch.compile supports comparisons, but not isnan.
    if value != value or not valid(value):
        fail(argument, expected, value)
    return value


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number; numpy's scalars are."""
    return isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)


def as_float(argument: str, value: float, expected: str) -> float:
    if isinstance(value, int):
        with contextlib.suppress(OverflowError):
            return float(value)
        fail(argument, expected, f"an integer of {len(str(abs(value)))} digits")
    return float(value)


def _only_element(argument: str, value: Tensor, expected: str):
    if value.numel() != 1 or value.dim() > 1 or value.dtype not in (*FLOATS, *INTEGERS):
        fail(argument, expected, f"a tensor of {shape_of(value)} and dtype {value.dtype}", TypeError)
    if value.device.type != "cpu":
        fail(argument, f"{expected}; a tensor of one number must lie on the CPU", f"one on {value.device}")
    if value.requires_grad:
        fail(argument, f"{expected}; no gradient reaches it", "a tensor that requires grad")
    dense(argument, value)
    plain = readable(value)
    return value.reshape(()).to(torch.float64) if plain is None else plain.item()


def readable(value: Tensor) -> Tensor | None:
    """The tensor whose values an argument check may read: on the CPU, while nothing is being traced; else None.

    For a tensor inside torch.func's transforms, it is the underlying tensor with the values of all members.
    """
    if torch.compiler.is_compiling() or value.device.type != "cpu" or value.numel() == 0:
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    if type(value) is not Tensor and is_fake(value):
        return None
    return None if torch._C._len_torch_dispatch_stack() and _is_tracing() else value


def _is_tracing() -> bool:
    """Whether make_fx or FakeTensorMode is active: tensors have no values under them."""
    key = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(k) is not None for k in (key.FAKE, key.PROXY))


def all_values(argument: str, value: Tensor, expected: str, valid: Callable) -> None:
    """Require every value to lie in the interval that `valid` (number -> bool) describes, where values may be read."""
    plain = readable(value)
    if plain is None:
        return
    low, high = (end.item() for end in plain.detach().aminmax())
    if low == low and valid(low) and valid(high):
        return
    for number in plain.flatten().tolist():
        if not valid(number):
            fail(argument, expected, f"{number} among its values")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted(**tensors: Tensor) -> list[Tensor]:
    """Require tensors to share a dtype and a device. Under autocast they are widened to one dtype."""
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


def per_sample(argument: str, value: Tensor | float, x: Tensor, expected: str, valid: Callable) -> Tensor:
    """A number, or a tensor with one value or one per sample, as a (1,) or (B,) tensor in x's arithmetic dtype.

    A number, or values that may be read, must satisfy `valid`, in that dtype.
    """
    dtype = compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        if not _is_number(value):
            fail(argument, f"{expected}: {_NUMBER_OR_TENSOR}", type(value).__name__, TypeError)
        value = number(argument, value, expected, valid)
        if abs(value) > torch.finfo(dtype).max:
            fail(argument, f"{expected}, and finite in {dtype}", value)
        return numbers_tensor([value], dtype, x.device)
    tensor_of(argument, value, f"{expected}: {_NUMBER_OR_TENSOR}", NUMBERS)
    same_device(argument, value, x.device)
    batch = x.shape[0]
    if value.dim() == 0:
        value = value.to(dtype).reshape(1)
    else:
        if value.shape[0] != batch or any(size != 1 for size in value.shape[1:]):
            fail(argument, f"a number, () or ({batch},), one value a sample", shape_of(value))
        if value.dim() > 1:
            value = value.reshape(batch)
        # The kernels need it contiguous, whatever its strides were; the copy is a few bytes.
        value = (value if value.dtype == dtype else value.to(dtype)).contiguous()
    all_values(argument, value, expected, valid)
    return value


def seed(value: Tensor | None, device: torch.device) -> Tensor:
    if value is None:
        if torch.compiler.is_compiling():
            # A seed drawn inside a compiled region may be drawn again, with another value, in its backward.
            fail("seed", "a tensor from draw_seed(), drawn outside the compiled region", "None")
        return draw_seed(device)
    tensor_of("seed", value, "an int64 tensor of one element, as draw_seed() gives", (torch.int64,))
    if value.numel() != 1:
        fail("seed", "an int64 tensor of one element", shape_of(value))
    same_device("seed", value, device)
    return value


def stream(value: int, limit: int = 2**24) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        fail("stream", "an integer", type(value).__name__, TypeError)
    if not 0 <= value < limit:
        fail("stream", f"an integer in [0, {limit})", value)
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def sample_ids(value: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    tensor_of("sample_ids", value, "an int64 tensor of shape (B,)", (torch.int64,))
    exact_shape("sample_ids", value, (batch,))
    same_device("sample_ids", value, device)
    return value


def features(value) -> list[Tensor]:
    """Require 1 to 16 float tensors of one dtype, device and batch size, (B, ...)."""
    if isinstance(value, Tensor) or not isinstance(value, (list, tuple)):
        fail("features", "a list or tuple of tensors, one a modality", type(value).__name__, TypeError)
    if not 1 <= len(value) <= MAX_MODALITIES:
        fail("features", f"1 to {MAX_MODALITIES} modalities", len(value))
    first = value[0]
    alike = True
    for m, feature in enumerate(value):
        float_tensor(f"features[{m}]", feature, 1)
        if feature.shape[0] != first.shape[0]:
            fail(f"features[{m}]", f"a batch of {first.shape[0]}, as features[0] has", shape_of(feature))
        alike = alike and feature.dtype == first.dtype and feature.device == first.device
    return list(value) if alike else promoted(**{f"features[{m}]": f for m, f in enumerate(value)})
