import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, checks
from .. import reference as plain
from .._constants import numbers_tensor
from ._op import Op

WEIGHTINGS = ("softmax", "inverse")
MODES = ("concat", "sum", "scale")
_WEIGHTING_INPUTS = "int g, float temperature, float? total, float? floor, float? reference"
_WEIGHT_INPUTS = f"Tensor uncertainty, Tensor? dependency, Tensor? mask, {_WEIGHTING_INPUTS}"
_FUSION_INPUTS = (
    "Tensor[] features, Tensor uncertainty, Tensor? dependency, Tensor? mask,"
    f" int mode, bool residual, {_WEIGHTING_INPUTS}"
)


def _weights_fake(uncertainty, *rest):
    return uncertainty.new_empty(uncertainty.shape)


def _weights_backward_fake(grad, uncertainty, dependency, *rest):
    shape = dependency.shape if rest[-1] else 0
    return uncertainty.new_empty(uncertainty.shape), uncertainty.new_empty(shape)


def _weights_backward(kernel, args, needs, grads):
    grad_uncertainty, grad_dependency = kernel(_fusion_weights_backward)(*grads, *args, needs.dependency)
    return {"uncertainty": grad_uncertainty, "dependency": grad_dependency}


def _options(g, temperature, total, floor, against):
    """The reference's keyword arguments from the ops' arguments."""
    return {"g": WEIGHTINGS[g], "temperature": temperature, "total": total, "floor": floor, "reference": against}


def _weights_reference(uncertainty, dependency, mask, *weighting):
    return plain.fusion_weights(uncertainty, dependency, mask=mask, **_options(*weighting))


_fusion_weights = Op(
    "fusion_weights",
    f"({_WEIGHT_INPUTS}) -> Tensor",
    _weights_fake,
    backward=_weights_backward,
    reference=_weights_reference,
)
_fusion_weights_backward = Op(
    "fusion_weights_backward",
    f"(Tensor grad, {_WEIGHT_INPUTS}, bool needs_dependency) -> (Tensor, Tensor)",
    _weights_backward_fake,
)


def _fused_shapes(features, mode):
    first = features[0]
    if MODES[mode] == "concat":
        return [(first.shape[0], sum(f.shape[1] for f in features), *first.shape[2:])]
    return [first.shape] if MODES[mode] == "sum" else [f.shape for f in features]


def _fusion_fake(features, uncertainty, dependency, mask, mode, *rest):
    fused = [features[0].new_empty(shape) for shape in _fused_shapes(features, mode)]
    return fused, uncertainty.new_empty(uncertainty.shape)


def _fusion_backward_fake(grads, grad_weights, features, uncertainty, dependency, *rest):
    needs_dependency = rest[-1]
    gradients = [f.new_empty(f.shape) for f in features]
    shape = dependency.shape if needs_dependency else 0
    return gradients, uncertainty.new_empty(uncertainty.shape), uncertainty.new_empty(shape)


def _fusion_backward(kernel, args, needs, grads):
    features, (grad_fused, grad_weights) = args.features, grads
    given = [g is not None for g in (grad_fused if MODES[args.mode] == "scale" else grad_fused * len(features))]
    if not all(given):
        # A missing gradient counts as 0, and 0 times a non-finite feature would be NaN: those features become 0 too.
        shapes = _fused_shapes(features, args.mode)
        grad_fused = [features[0].new_zeros(s) if g is None else g for g, s in zip(grad_fused, shapes, strict=True)]
        args = args._replace(
            features=[f if passes else torch.zeros_like(f) for f, passes in zip(features, given, strict=True)]
        )
    grad_features, grad_uncertainty, grad_dependency = kernel(_weighted_fusion_backward)(
        grad_fused, grad_weights, *args, needs.dependency
    )
    return {
        "features": [g if passes else None for g, passes in zip(grad_features, given, strict=True)],
        "uncertainty": grad_uncertainty,
        "dependency": grad_dependency,
    }


def _fusion_reference(features, uncertainty, dependency, mask, mode, residual, *weighting):
    options = {"mode": MODES[mode], "residual": residual, "mask": mask, **_options(*weighting)}
    fused, weights = plain.weighted_fusion(features, uncertainty, dependency, **options)
    return [fused] if isinstance(fused, Tensor) else list(fused), weights


_weighted_fusion = Op(
    "weighted_fusion",
    f"({_FUSION_INPUTS}) -> (Tensor[], Tensor)",
    _fusion_fake,
    backward=_fusion_backward,
    reference=_fusion_reference,
)
_weighted_fusion_backward = Op(
    "weighted_fusion_backward",
    f"(Tensor[] grads, Tensor? grad_weights, {_FUSION_INPUTS}, bool needs_dependency) -> (Tensor[], Tensor, Tensor)",
    _fusion_backward_fake,
)


def _dependency(value, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, (list, tuple)):
        expected = "positive numbers, one a modality"
        numbers = [checks.number(f"dependency[{m}]", v, expected, lambda v: v > 0) for m, v in enumerate(value)]
        return numbers_tensor(numbers, dtype, device)
    checks.tensor_of("dependency", value, "a tensor of floats or integers, a list of numbers or None", checks.NUMBERS)
    checks.same_device("dependency", value, device)
    return value if value.dtype == dtype else value.to(dtype)


def check_options(g: str, temperature: float, total=None, floor=None, against=None) -> tuple:
    """Check how uncertainties become weights; returns the options as the kernels take them."""
    checks.choice("g", g, WEIGHTINGS)
    temperature = checks.number("temperature", temperature, "a positive number", lambda v: v > 0)
    if total is not None:
        total = checks.number("total", total, "a number or None", lambda v: True)
    if floor is not None:
        floor = checks.number("floor", floor, "a number that is not negative, or None", lambda v: 0 <= v < math.inf)
    if against is not None:
        against = checks.number("reference", against, "a positive number or None", lambda v: 0 < v < math.inf)
    return WEIGHTINGS.index(g), temperature, total, floor, against


def _checked_weighting(uncertainty, dependency, mask, g, temperature, total, floor, against, dtype):
    """Check the arguments of the weights and convert them to what the kernels take."""
    checks.float_tensor("uncertainty", uncertainty, 2)
    modalities = uncertainty.shape[1]
    if not 1 <= modalities <= checks.MAX_MODALITIES:
        checks.fail("uncertainty", f"1 to {checks.MAX_MODALITIES} modalities in dim 1", checks.shape_of(uncertainty))
    pair = (uncertainty.shape[0], modalities)
    if dependency is not None:
        dependency = _dependency(dependency, dtype, uncertainty.device)
        checks.exact_shape("dependency", dependency, (modalities,), pair)
    if mask is not None:
        checks.tensor_of("mask", mask, "a bool tensor, True where a modality is present", (torch.bool,))
        checks.same_device("mask", mask, uncertainty.device)
        checks.exact_shape("mask", mask, pair, tuple(uncertainty.shape))
    options = check_options(g, temperature, total, floor, against)
    uncertainty = uncertainty if uncertainty.dtype == dtype else uncertainty.to(dtype)
    return uncertainty, dependency, mask, *options


def fusion_weights(
    uncertainty: Tensor,
    dependency: Tensor | Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    g: str = "softmax",
    temperature: float = 1.0,
    total: float | None = None,
    floor: float | None = None,
    reference: float | None = None,
) -> Tensor:
    """How much each modality counts: w_m = g(1 / (s_m alpha_m)).

        g="softmax":  w = total * softmax_m(1 / (s_m alpha_m) / temperature)
        g="inverse":  w = total * softmax_m(-log(s_m alpha_m) / temperature),
                      which is 1 / (s_m alpha_m), normalised, at temperature 1

    Args:
        uncertainty: s, positive, (B, M), or (B, M, *spatial) for weights per location; M from 1 to 16.
        dependency: alpha, positive, (M,) or (B, M), or a list of M numbers; None for 1.
        mask: bool (B, M) or of uncertainty's shape, True where the modality is present. An absent one gets
            weight exactly 0 (and passes no gradient, whatever it holds), the rest are renormalised; where all
            are absent the weights are 0.
        g: "softmax" or "inverse".
        temperature: tau, positive. The default, softmax at temperature 1, gives nearly all weight to one modality
            where the uncertainties are far below 1; UDML's layers use "inverse" with a floor.
        total: what the weights of a row sum to; None for the number of modalities present in it.
        floor: f, not negative: uncertainty is then a standard deviation d (a predicted noise strength), and
            s = d^2 + f^2. d may be 0 where f is positive.
        reference: r, positive, in uncertainty's unit: the weights of a row then sum to total * c, with

                c = sum_m u_m / (sum_m u_m + M u_r),   u = exp(the argument of softmax),

            over the M modalities present; u_r is that of uncertainty r and of their mean dependency. c is near 1
            where a modality is far more certain than the reference, and near 0 where none is.

    Returns:
        weights of uncertainty's shape, float32 (float64 for float64 inputs). Computed from logarithms, so stable
            for s * alpha from 1e-30 to 1e30. An s or alpha that is not positive gives inf or NaN.

    Gradients reach uncertainty and dependency.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (uncertainty times dependency); floor and reference are this package's.
    """
    checks.float_tensor("uncertainty", uncertainty, 2)
    dtype = checks.compute_dtype(uncertainty.dtype)
    args = _checked_weighting(uncertainty, dependency, mask, g, temperature, total, floor, reference, dtype)
    backend = backends.select(uncertainty.device, _fusion_weights)
    return _weights_reference(*args) if backend == "reference" else _fusion_weights(backend, *args)


def _check_features(features: list[Tensor], uncertainty: Tensor, mode: str) -> None:
    checks.same_device("uncertainty", uncertainty, features[0].device)
    pair = (features[0].shape[0], len(features))
    if uncertainty.dim() < 2 or not checks.same_shape(uncertainty.shape[:2], pair):
        expected = f"shape {pair} or {checks.shape_text((*pair, '*spatial'))}, as features has it"
        checks.fail("uncertainty", expected, checks.shape_of(uncertainty))
    locations = tuple(uncertainty.shape[2:])
    for m, feature in enumerate(features):
        if feature.dim() < 2:
            checks.fail(f"features[{m}]", "at least 2 dimensions, (B, C, ...)", checks.shape_of(feature))
        if locations and not checks.same_shape(feature.shape[2:], locations):
            checks.fail(f"features[{m}]", f"(B, C, {', '.join(map(str, locations))})", checks.shape_of(feature))
        if mode == "concat" and not checks.same_shape(feature.shape[2:], features[0].shape[2:]):
            expected = f"the shape of features[0] but for dim 1, {tuple(features[0].shape)}"
            checks.fail(f"features[{m}]", expected, checks.shape_of(feature))
        if mode == "sum":
            checks.exact_shape(f"features[{m}]", feature, tuple(features[0].shape))


def weighted_fusion(
    features: Sequence[Tensor],
    uncertainty: Tensor,
    dependency: Tensor | Sequence[float] | None = None,
    *,
    mode: str = "concat",
    residual: bool = False,
    mask: Tensor | None = None,
    g: str = "softmax",
    temperature: float = 1.0,
    total: float | None = None,
    floor: float | None = None,
    reference: float | None = None,
) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
    """Weight the modalities and fuse them, in one pass over the features.

    Args:
        features: M tensors (B, C_m, ...), M from 1 to 16, one dtype (float32, float64, bfloat16, float16),
            any strides. Widths may differ, except for mode "sum".
        uncertainty, dependency, mask, g, temperature, total, floor, reference: as in `fusion_weights`. Weights per
            location, (B, M, *spatial), need features (B, C_m, *spatial).
        mode: "concat" (along dim 1), "sum", or "scale" (the weighted features as a tuple).
        residual: scale by 1 + w instead of w.

    Returns:
        fused: a tensor, or a tuple of M for "scale", in the features' dtype.
        weights: as `fusion_weights` gives them.

    An absent modality (mask False) contributes exactly 0 whatever its features hold; with `residual` it
    passes unchanged, as its factor is 1 + 0.

    Gradients reach features, uncertainty and dependency through both results.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681; the residual form is the authors' a + w a.
    """
    checks.choice("mode", mode, MODES)
    features = checks.features(features)
    checks.float_tensor("uncertainty", uncertainty, 2)
    _check_features(features, uncertainty, mode)
    dtype = checks.compute_dtype(features[0].dtype)
    weighting = _checked_weighting(uncertainty, dependency, mask, g, temperature, total, floor, reference, dtype)
    backend = backends.select(features[0].device, _weighted_fusion)
    args = (features, *weighting[:3], MODES.index(mode), checks.flag("residual", residual), *weighting[3:])
    fused, weights = _fusion_reference(*args) if backend == "reference" else _weighted_fusion(backend, *args)
    return tuple(fused) if mode == "scale" else fused[0], weights
