"""The effect of rounding on a result: the float64 reference, with each of its operations rounded at random.

Monte Carlo arithmetic (Parker, 1997): every result that float32 cannot represent exactly is changed by a random
relative error of up to the tolerance, and so are the inputs; sums and matrix products are changed by up to that
fraction of the size of their terms. The distance of a few such runs from the undisturbed one is the size of the error
that cancellation leaves in any evaluation of the same formulas.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from udml_kernels import reference

# Data movement, selections and signs: nothing is rounded.
_EXACT = set(
    """_to_copy abs cat clamp clamp_max clamp_min clone copy empty fill full full_like gather masked_fill max
    maximum min minimum neg new_empty new_zeros ones ones_like relu scatter select_backward sgn sign slice_backward
    stack threshold_backward where zeros zeros_like""".split()
)
_SUMS = {"sum", "mean", "mm", "bmm"}


@functools.cache
def _name(func) -> str | None:
    """The name of an operation, if it rounds."""
    name = func.overloadpacket.__name__
    changes_none = name in _EXACT or any(returned.alias_info is not None for returned in func._schema.returns)
    return None if changes_none else name


class _RandomRounding(TorchDispatchMode):
    def __init__(self, unit: float, seed: int, tiny: float = 0.0, most: float = math.inf, alike: bool = False):
        super().__init__()
        self.unit, self.tiny, self.most, self.alike = unit, tiny, most, alike
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = self._rounded(func, args, kwargs or {})
        if self.most < math.inf and isinstance(result, Tensor) and result.dtype == torch.float64:
            result = torch.where(result.abs() > self.most, result * math.inf, result)
        return result

    def _rounded(self, func, args, kwargs):
        result = func(*args, **kwargs)
        name = _name(func)
        if name is None:
            return result
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or not result.numel():
            return result
        if name in _SUMS:
            size = func(*(a.abs() if isinstance(a, Tensor) else a for a in args), **kwargs)
            # Terms of both signs may overflow: inf - inf.
            return torch.where(size > self.most, math.nan, result + self.error_of(size))
        if name == "_softmax_backward_data":
            gradient, weights, dim = args[:3]
            total = (gradient * weights).abs().sum(dim, keepdim=True)
            return result + self.error_of(weights * (gradient.abs() + total))
        if name in ("gelu", "gelu_backward"):
            # x (1 + erf(x / sqrt 2)) / 2: for negative x the sum cancels. args[0] is x, or the gradient.
            return result + self.error_of(args[0])
        return self.of_float32(result)

    @np.errstate(all="ignore")
    def of_float32(self, result: Tensor) -> Tensor:
        """`result`, changed where float32 cannot represent it."""
        values, error = result.detach().cpu().numpy(), self._error_of(result)
        held = values.astype(np.float32) == values
        return torch.from_numpy(np.where(held, values, values + error)).to(result.device)

    def changed(self, value: Tensor) -> Tensor:
        with _disable_current_modes():
            return value + self.error_of(value)

    def error_of(self, size: Tensor) -> Tensor:
        return torch.from_numpy(self._error_of(size)).to(size.device)

    @np.errstate(all="ignore")
    def _error_of(self, size: Tensor) -> np.ndarray:
        """The random errors; by NumPy, as there are many small ones: its calls take a third of the time."""
        values = size.detach().cpu().numpy()
        shape, place = size.shape, ...
        if self.alike:
            distinct, place = np.unique(values, return_inverse=True)
            shape, place = distinct.shape, place.reshape(values.shape)
        error = 2 * torch.rand(shape, generator=self.generator, dtype=size.dtype).cpu().numpy()[place] - 1
        if self.tiny:
            # A result below `tiny` is flushed to 0 with probability 1/2.
            lost = np.minimum(np.sign(error), 0)
            error = np.where(np.abs(values) < self.tiny, lost, self.unit * error)
        else:
            error = self.unit * error
        return np.where(np.isfinite(values), error * values, 0)


@contextlib.contextmanager
def _rounded(unit: float, seed: int, **options: float) -> Iterator[_RandomRounding]:
    """Random words keep their bits, as thresholds are compared with them; normals get the contract's error."""
    rounding = _RandomRounding(unit, seed, **options)

    def uniform(*args, **kwargs):
        with _disable_current_modes():
            return reference.uniform(*args, **kwargs)

    def normal(*args, **kwargs):
        with _disable_current_modes():
            values = reference.normal(*args, **kwargs)
            return values + rounding.error_of(values.abs().clamp(min=1))

    with contextlib.ExitStack() as stack:
        for name in ("noise", "reparameterize", "noise_regression", "modality_dropout"):
            module = sys.modules[f"udml_kernels.reference.{name}"]
            for function in (normal, uniform):
                if hasattr(module, function.__name__):
                    stack.enter_context(mock.patch.object(module, function.__name__, function))
        stack.enter_context(rounding)
        yield rounding


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(torch.isclose(one, other, 0, 0, equal_nan=True), 0, (one - other).abs().nan_to_num(torch.inf))


def widening(
    evaluate: Callable[..., tuple[dict, dict]],
    truth: tuple[dict, dict],
    unit: float,
    seeds: Iterable[int],
    **options: float,
) -> Iterator[dict[str, Tensor]]:
    """How far rounded runs of `evaluate`, one per seed, get from `truth`: by output and gradient, element by element.

    Yields the largest distances so far after each run; inf where only one of the two is finite. `options`: results
    below `tiny` may be lost, those above `most` are infinite, and if `alike`, equal values get equal errors.
    `evaluate(changed)` passes its inputs through `changed`, for errors that many results share.
    """
    widest: dict[str, Tensor] = {}
    for seed in seeds:
        with _rounded(unit, seed, **options) as rounding:
            results = evaluate(rounding.changed)
        for values, exact in zip(results, truth, strict=True):
            for name, value in values.items():
                if value.is_floating_point():
                    apart = _distance(value.double(), exact[name].double())
                    widest[name] = torch.maximum(widest.get(name, apart), apart)
        yield dict(widest)


def spread(
    evaluate: Callable[..., tuple[dict, dict]],
    truth: tuple[dict, dict],
    unit: float,
    seeds: Iterable[int] = range(4),
    **options: float,
) -> dict[str, Tensor]:
    """The result of `widening` after the last run."""
    *_, widest = widening(evaluate, truth, unit, seeds, **options)
    return widest
