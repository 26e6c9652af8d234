from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from .. import checks, reference
from .._constants import numbers_tensor
from ..reference._dtype import per_tensor
from ..reference.noise import KINDS
from ..reference.random import op_stream
from . import _lists as lists
from ._lists import Call
from ._op import Op

_INPUTS = """Tensor x, Tensor sigma, Tensor? kinds, int kind, float[] clamp, float scale,
    Tensor? mean, Tensor? std, ScalarType out_dtype, Tensor seed, SymInt stream, Tensor? sample_ids"""


def _fake(x, sigma, kinds, kind, clamp, scale, mean, std, out_dtype, seed, stream, sample_ids):
    return x.new_empty(x.shape, dtype=out_dtype)


def _backward_fake(grad, x, sigma, *rest):
    needs_x, needs_sigma = rest[-2:]
    return x.new_empty(x.shape if needs_x else 0), sigma.new_empty(sigma.shape if needs_sigma else 0)


def _backward(kernel, args, needs, grads):
    added = args.kinds is None and KINDS[args.kind] in ("gaussian", "uniform")
    if added and not args.clamp and args.mean is None and not needs.sigma:
        # Noise that is only added leaves the gradient of x unchanged.
        return {"x": grads[0].to(args.x.dtype)}
    grad_x, grad_sigma = kernel(_inject_noise_backward)(*grads, *args, needs.x, needs.sigma)
    return {"x": grad_x, "sigma": grad_sigma}


def _reference(x, sigma, kinds, kind, clamp, scale, mean, std, out_dtype, seed, stream, sample_ids):
    return reference.inject_noise(
        x,
        sigma,
        kind=KINDS[kind] if kinds is None else kinds,
        clamp=tuple(clamp) or None,
        normalize=None if mean is None else (scale, mean, std),
        out_dtype=out_dtype,
        seed=seed,
        stream=stream >> 8,
        sample_ids=sample_ids,
    )


_inject_noise = Op("inject_noise", f"({_INPUTS}) -> Tensor", _fake, backward=_backward, reference=_reference)
_inject_noise_backward = Op(
    "inject_noise_backward",
    f"(Tensor grad, {_INPUTS}, bool needs_x, bool needs_sigma) -> (Tensor, Tensor)",
    _backward_fake,
)


def _number_values(name: str, value, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a list of numbers, as a tensor of one dimension.

    Numbers are written by fills, which neither synchronise with an accelerator nor break the capture of a CUDA graph.
    """
    if isinstance(value, Tensor):
        checks.tensor_of(name, value, "a number or a tensor of numbers", (*checks.FLOATS, *checks.INTEGERS))
        if value.dim() > 1:
            checks.fail(name, "a number or one value a channel", checks.shape_of(value))
        if value.device != device and value.device.type != "cpu":
            checks.same_device(name, value, device)
        return value.reshape(-1).to(device, dtype)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    largest = torch.finfo(dtype).max
    numbers = [checks.number(name, v, "finite numbers", lambda v: abs(v) <= largest) for v in numbers]
    return numbers_tensor(numbers, dtype, device)


def _normalization(normalize, x: Tensor) -> tuple[float, Tensor | None, Tensor | None]:
    if normalize is None:
        return 1.0, None, None
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 3:
        checks.fail("normalize", "None or (scale, mean, std)", repr(normalize), TypeError)
    if x.dim() < 2:
        checks.fail("x", "(B, C, ...) to normalize channels", checks.shape_of(x))
    scale = checks.number("normalize[0], the scale", normalize[0], "a number other than 0", lambda v: v != 0)
    dtype, channels = checks.compute_dtype(x.dtype), x.shape[1]
    moments = []
    for name, value in zip(("mean", "std"), normalize[1:], strict=True):
        value = _number_values(f"normalize, the {name}", value, dtype, x.device)
        # Compared one by one: `in` does not recognise that a symbolic size is equal.
        count = value.shape[0]
        if count != 1 and count != channels:
            checks.fail(f"normalize, the {name}", f"a number or {channels} values, one a channel", f"{count} values")
        moments.append(value.expand(channels).contiguous())
    divisors = checks.readable(moments[1])
    if divisors is not None and bool((divisors == 0).any()):
        checks.fail("normalize, the std", "values other than 0", "0.0 among its values")
    return scale, moments[0], moments[1]


def _kind(kind, x: Tensor, sigma: Tensor, clamp) -> tuple[Tensor | None, int]:
    if isinstance(kind, str):
        checks.choice("kind", kind, KINDS)
        if kind == "salt_pepper" and clamp is None:
            checks.fail("clamp", "(low, high), the two values that salt_pepper sets", "None")
        if kind in ("salt_pepper", "dropout"):
            checks.all_values("sigma", sigma, f"fractions in [0, 1] for {kind}", lambda v: 0 <= v <= 1)
        return None, KINDS.index(kind)
    checks.tensor_of("kind", kind, f"a name ({', '.join(KINDS)}) or an integer tensor (B,)", checks.INTEGERS)
    checks.exact_shape("kind", kind, (x.shape[0],))
    checks.same_device("kind", kind, x.device)
    checks.all_values("kind", kind, f"codes in [0, {len(KINDS)})", lambda v: 0 <= v < len(KINDS))
    codes, sigmas = checks.readable(kind), checks.readable(sigma)
    if codes is not None:
        if clamp is None and bool((codes == KINDS.index("salt_pepper")).any()):
            checks.fail("clamp", "(low, high), the two values that salt_pepper sets", "None")
        # Under torch.vmap, readable tensors hold all members, and the members of kind and of sigma need not pair up.
        if sigmas is not None and codes is kind and sigmas is sigma:
            fraction = (kind == KINDS.index("salt_pepper")) | (kind == KINDS.index("dropout"))
            levels = sigma.expand(x.shape[0])[fraction]
            checks.all_values("sigma", levels, "fractions in [0, 1] for salt_pepper and dropout", lambda v: v <= 1)
    return kind.to(torch.int64), -1


def _call(x, sigma, kind, clamp, normalize, out_dtype, seed, stream, sample_ids) -> Call:
    """Check the arguments, and convert them to what the kernels take."""
    checks.float_tensor("x", x, 1, also=(torch.uint8,))
    # A NaN in a tensor is accepted and gives NaN, as in the reference.
    expected = "a standard deviation that is not negative"
    sigma = checks.per_sample("sigma", sigma, x, expected, lambda v: not v < 0)
    if clamp is not None:
        if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
            checks.fail("clamp", "None or (low, high)", repr(clamp), TypeError)
        low = checks.number("clamp[0]", clamp[0], "a number", lambda v: True)
        # clamp[0] itself is not part of the message: it would specialise a traced graph to its value.
        high = checks.number("clamp[1]", clamp[1], "a number of at least clamp[0]", lambda v: v >= low)
        clamp = low, high
    kinds, code = _kind(kind, x, sigma, clamp)
    scale, mean, std = _normalization(normalize, x)
    if out_dtype is None:
        out_dtype = x.dtype if x.is_floating_point() else torch.float32
    elif out_dtype not in checks.FLOATS:
        checks.fail("out_dtype", "float32, float64, bfloat16 or float16", out_dtype, TypeError)
    checks.stream(stream)
    checks.sample_ids(sample_ids, x.shape[0], x.device)
    seed = checks.seed(seed, x.device)
    word = op_stream("inject_noise", stream)
    args = (x, sigma, kinds, code, list(clamp or ()), scale, mean, std, out_dtype, seed, word, sample_ids)
    return Call(_inject_noise, _reference, x.device, args)


def _calls(x, sigma, kind, clamp, normalize, out_dtype, seed, stream, sample_ids) -> list[Call]:
    """A call for each modality."""
    lists.check(x=x)
    count, seed = len(x), checks.seed(seed, x[0].device)
    kinds = kind.unbind(1) if isinstance(kind, Tensor) and kind.shape[1:] == (count,) else [kind] * count
    options = [per_tensor(value, count) for value in (clamp, normalize)]
    each = zip(x, lists.per_modality("sigma", sigma, x), kinds, *options, strict=True)
    return [
        lists.element(m, ("x", "clamp", "normalize"), _call, *of_modality, out_dtype, seed, stream + m, sample_ids)
        for m, of_modality in enumerate(each)
    ]


@overload
def inject_noise(
    x: Tensor,
    sigma: Tensor | float,
    *,
    kind: str | Tensor = "gaussian",
    clamp: Sequence | None = None,
    normalize: Sequence | None = None,
    out_dtype: torch.dtype | None = None,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Tensor: ...
@overload
def inject_noise(
    x: Sequence[Tensor],
    sigma: Tensor | float,
    *,
    kind: str | Tensor = "gaussian",
    clamp: Sequence | None = None,
    normalize: Sequence | None = None,
    out_dtype: torch.dtype | None = None,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, ...]: ...
def inject_noise(
    x: Tensor | Sequence[Tensor],
    sigma: Tensor | float,
    *,
    kind: str | Tensor = "gaussian",
    clamp: Sequence | None = None,
    normalize: Sequence | None = None,
    out_dtype: torch.dtype | None = None,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Any:
    """Apply noise of known strength, then clamp, then normalise, in one pass over x.

    With eps standard normal and u uniform in [0, 1), one of the two per element:

        gaussian     x + sigma eps              speckle  x (1 + sigma eps)
        uniform      x + sigma sqrt(3) (2u - 1) replace  sigma eps
        salt_pepper  clamp[0] where u < sigma/2, clamp[1] where sigma/2 <= u < sigma, else x
        dropout      0 where u < sigma, else x

    and then y = clamp(y, *clamp), y = (y / scale - mean_c) / std_c.

    A list of M modalities, 1 to 16, gets its noise in one call, with the results of M calls with the streams
    stream .. stream + M - 1.

    Args:
        x: (B, ...): float32, float64, bfloat16, float16 or uint8; any strides. uint8 is computed in float32,
            so nothing wraps around. Or a list of M such tensors of one dtype, whose shapes may differ but for B.
        sigma: a standard deviation in x's units (a fraction for salt_pepper and dropout): a number, (), (B,)
            or (B, 1, ..); for a list also (B, M); not negative.
        kind: a name, or an integer tensor (B,) of indices into `udml_kernels.KINDS`: mixed kinds in a batch. For a list
            also (B, M).
        clamp: (low, high) or None; salt_pepper needs it. For a list also a list of M.
        normalize: (scale, mean, std) or None; mean and std are numbers or one value per channel (dim 1). For a list
            also a list of M.
        out_dtype: the result's dtype; None for x's (float32 for uint8).
        seed: int64, one element, on x's device (`draw_seed`); None draws one. Required under torch.compile.
        stream: distinguishes calls that share a seed, in [0, 2^24).
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

    Returns:
        A contiguous tensor of x's shape; for a list a tuple of them.

    Gradients reach x and sigma (reparameterised: sum of g eps). clamp has the gradient of torch.clamp; the
    thresholds of salt_pepper and dropout have none.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected. On an accelerator values
            are not read: an unknown kind, or salt_pepper without clamp, gives NaN there.

    Source: UDML, arXiv 2603.19681 (gaussian); the further kinds are this package's.
    """
    if isinstance(x, (list, tuple)):
        calls = _calls(x, sigma, kind, clamp, normalize, out_dtype, seed, checks.stream(stream), sample_ids)
        return tuple(noisy for (noisy,) in lists.run(calls))
    return _call(x, sigma, kind, clamp, normalize, out_dtype, seed, stream, sample_ids).run()
