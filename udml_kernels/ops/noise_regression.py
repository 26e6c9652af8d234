import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .. import backends, checks, reference
from ..reference.noise_regression import ACTIVATIONS
from ..reference.random import op_stream
from . import _lists as lists
from ._op import Op

_NAMES = tuple(ACTIVATIONS)
_INPUTS = """Tensor std, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? target,
    int activation, float dropout_p, Tensor? seed, SymInt stream, Tensor? sample_ids"""


def _fake(std, weight1, bias1, weight2, bias2, target, activation, dropout_p, seed, stream, sample_ids):
    shape, dtype = (*std.shape[:-1], weight2.shape[-2]), checks.compute_dtype(std.dtype)
    return std.new_empty(shape), std.new_empty((), dtype=dtype), std.new_empty(shape, dtype=dtype)


def _backward_fake(grad_noise, grad_loss, *args):
    needs = args[-1]
    return tuple(
        args[0].new_empty(0) if t is None or not needs >> i & 1 else t.new_empty(t.shape)
        for i, t in enumerate(args[:6])
    )


def _backward(kernel, args, needs, grads):
    names = needs._fields[:6]
    bits = sum(1 << i for i, name in enumerate(names) if getattr(needs, name))
    return dict(zip(names, kernel(_noise_regression_backward)(*grads[:2], *args, bits), strict=True))


def _reference(std, weight1, bias1, weight2, bias2, target, activation, dropout_p, seed, stream, sample_ids):
    noise, loss = reference.noise_regression(
        std,
        weight1,
        bias1,
        weight2,
        bias2,
        target,
        activation=_NAMES[activation],
        dropout_p=dropout_p,
        seed=seed,
        stream=stream >> 8,
        sample_ids=sample_ids,
    )
    loss = noise.new_zeros((), dtype=checks.compute_dtype(std.dtype)) if loss is None else loss
    return noise, loss, 2 * noise.log()


_noise_regression = Op(
    "noise_regression",
    f"({_INPUTS}) -> (Tensor noise, Tensor loss, Tensor o)",
    _fake,
    backward=_backward,
    reference=_reference,
    # o is one number per sample; without it, backward would have to run both layers again.
    saved_outputs=(2,),
)
_noise_regression_backward = Op(
    "noise_regression_backward",
    f"(Tensor? grad_noise, Tensor? grad_loss, {_INPUTS}, Tensor o, int needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
)


def _check_shapes(std: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    if std.dim() not in (2, 3):
        checks.fail("std", "(B, D), or (M, B, D) for M estimators", checks.shape_of(std))
    group, features = tuple(std.shape[:-2]), std.shape[-1]
    if weight1.dim() != std.dim() or tuple(weight1.shape[:-2]) != group or weight1.shape[-1] != features:
        checks.fail(
            "weight1", f"shape {checks.shape_text((*group, 'H', features))}, as std has it", checks.shape_of(weight1)
        )
    hidden = weight1.shape[-2]
    checks.exact_shape("bias1", bias1, (*group, hidden))
    if weight2.dim() != std.dim() or tuple(weight2.shape[:-2]) != group or weight2.shape[-1] != hidden:
        checks.fail(
            "weight2", f"shape {checks.shape_text((*group, 'O', hidden))}, as weight1 has it", checks.shape_of(weight2)
        )
    checks.exact_shape("bias2", bias2, (*group, weight2.shape[-2]))


def _rows(std: Sequence[Tensor]) -> Tensor:
    """M tensors (B, D, ...) as (M, B L, D), with a row for each of the L locations."""
    lists.check(std=std)
    for m, value in enumerate(std):
        checks.exact_shape(f"std[{m}]", value, tuple(std[0].shape))
    if std[0].dim() < 2:
        checks.fail("std[0]", "shape (B, D, ...)", checks.shape_of(std[0]))
    values = checks.promoted(**{f"std[{m}]": value for m, value in enumerate(std)})
    if std[0].dim() == 2:
        return torch.stack(values)
    return torch.stack([value.flatten(2).mT for value in values]).flatten(1, 2)


def noise_regression(
    std: Tensor | Sequence[Tensor],
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    target: Tensor | None = None,
    *,
    activation: str = "identity",
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Predict the noise strength from the standard deviation and compute its squared error, in one call.

        o = weight2 . dropout(act(weight1 . std + bias1)) + bias2
        noise = exp(o / 2)
        loss = mean((noise - target)^2)

    Args:
        std: (B, D): float32, float64, bfloat16 or float16. (M, B, D) runs M estimators in one call; every
            other argument then has a leading M too. A list of M tensors (B, D) is the same. A list of M maps
            (B, D, *spatial) runs them at every location.
        weight1, bias1: (H, D) and (H,), as torch.nn.Linear holds them.
        weight2, bias2: (O, H) and (O,).
        target: the true noise strength, in the units that `noise` shall have: (B, O), or (B,) when O is 1; or None. For
            maps (M, B, O, *spatial), or without O. The estimators' dimension comes first, also for a list: transpose
            levels (B, M), as the other ops take them.
        activation: identity, relu, gelu (the exact one) or silu.
        dropout_p: probability in [0, 1] that a hidden unit is zeroed (the others are scaled by 1 / (1 - p)).
        seed: int64, one element, on std's device (`draw_seed`); None draws one. Required under torch.compile
            when dropout_p > 0. Dropout's uniforms are elements (group, hidden unit) of the sample.
        stream: distinguishes calls that share a seed, in [0, 2^24).
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1. Location l of L is sample id * L + l.

    The weights and the target may have a floating dtype other than std's (a bfloat16 model gives float32
    pooled stds); they are then used in std's dtype.

    Returns:
        noise: (B, O), (M, B, O) or, for maps, (M, B, O, *spatial); std's dtype.
        loss: a scalar, float32 (float64 for float64 inputs), 0 for an empty batch; None without target.

    Gradients reach every tensor argument through both results.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (noise estimator).
    """
    maps = std
    if isinstance(std, (list, tuple)):
        std = _rows(std)
    std = cast(Tensor, std)
    weights = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    checks.float_tensor("std", std, 2)
    for name, value in weights.items():
        checks.float_tensor(name, value)
        checks.same_device(name, value, std.device)
    _check_shapes(std, **weights)
    weight1, bias1, weight2, bias2 = (w if w.dtype == std.dtype else w.to(std.dtype) for w in weights.values())
    samples, outputs = tuple(std.shape[:-1]), weight2.shape[-2]
    spatial: tuple[int, ...] = ()
    if not isinstance(maps, Tensor):
        samples, spatial = (len(maps), maps[0].shape[0]), tuple(maps[0].shape[2:])
    locations, shape = math.prod(spatial), (*samples, outputs, *spatial)
    if target is not None:
        checks.float_tensor("target", target)
        checks.same_device("target", target, std.device)
        checks.exact_shape("target", target, shape, *([(*samples, *spatial)] if outputs == 1 else []))
        target = target.to(checks.compute_dtype(std.dtype)).reshape(
            *samples, outputs, *([locations] if spatial else [])
        )
        target = target.mT.reshape(*std.shape[:-1], outputs) if spatial else target
    checks.choice("activation", activation, _NAMES)
    p = checks.number("dropout_p", dropout_p, "a probability in [0, 1]", lambda v: 0 <= v <= 1)
    checks.stream(stream)
    checks.sample_ids(sample_ids, samples[-1], std.device)
    if spatial and sample_ids is not None:
        here = torch.arange(locations, device=std.device)
        sample_ids = (sample_ids.unsqueeze(1) * locations + here).flatten()
    # A probability that is known only when the graph runs may be positive.
    seed = checks.seed(seed, std.device) if isinstance(p, Tensor) or p > 0 else None
    backend = backends.select(std.device, _noise_regression)
    word = op_stream("noise_regression", stream)
    code = _NAMES.index(activation)
    args = (std, weight1, bias1, weight2, bias2, target, code, p, seed, word, sample_ids)
    noise, loss, _ = _reference(*args) if backend == "reference" else _noise_regression(backend, *args)
    if spatial:
        noise = noise.unflatten(1, (samples[1], locations)).mT.reshape(shape).contiguous()
    return noise, None if target is None else loss
