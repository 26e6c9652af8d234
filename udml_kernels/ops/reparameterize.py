from collections.abc import Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..reference.random import op_stream
from ..reference.reparameterize import pooled_sample
from . import _lists as lists
from ._lists import Call
from ._op import Op

_INPUTS = """Tensor mu, Tensor logvar, Tensor prior_var, float? std_max, bool sample,
    Tensor? seed, SymInt stream, Tensor? sample_ids"""


def _keeps_channels_last(mu: Tensor, logvar: Tensor) -> bool:
    """Whether both maps are dense with the channels last, as linear layers and channels_last convolutions write them.

    csrc/arguments.h has the same rule.
    """
    return all(t.movedim(1, -1).is_contiguous() and not t.is_contiguous() for t in (mu, logvar))


def like_maps(mu: Tensor, logvar: Tensor) -> Tensor:
    """An empty map in the layout of both maps: with the channels last, or else contiguous."""
    if not _keeps_channels_last(mu, logvar):
        return mu.new_empty(mu.shape)
    return mu.new_empty(mu.movedim(1, -1).shape).movedim(-1, 1)


def _fake(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids):
    dtype = checks.compute_dtype(mu.dtype)
    return like_maps(mu, logvar), mu.new_empty(mu.shape[:2], dtype=dtype), mu.new_empty(mu.shape[:1], dtype=dtype)


def _backward_fake(grad_z, grad_std, grad_kl, mu, logvar, prior_var, *rest):
    needs_prior = rest[-1]
    return like_maps(mu, logvar), like_maps(mu, logvar), prior_var.new_empty(prior_var.shape if needs_prior else 0)


def _backward(kernel, args, needs, grads):
    grad_mu, grad_logvar, grad_prior = kernel(_reparameterize_backward)(*grads, *args, needs.prior_var)
    return {"mu": grad_mu, "logvar": grad_logvar, "prior_var": grad_prior}


def _reference(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids):
    return reference.reparameterize(
        mu, logvar, prior_var, std_max=std_max, sample=sample, seed=seed, stream=stream >> 8, sample_ids=sample_ids
    )


_reparameterize = Op(
    "reparameterize",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _fake,
    backward=_backward,
    reference=_reference,
)
_reparameterize_backward = Op(
    "reparameterize_backward",
    f"(Tensor? grad_z, Tensor? grad_std, Tensor? grad_kl, {_INPUTS}, bool needs_prior) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


def _pooled_fake(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids):
    std = mu.new_empty(mu.shape[:2], dtype=checks.compute_dtype(mu.dtype))
    return torch.empty_like(std, dtype=mu.dtype), std, std.new_empty(mu.shape[:1]), torch.empty_like(std)


def _pooled_backward_fake(grad_z, grad_std, grad_kl, spread, mu, logvar, prior_var, *rest):
    needs_prior = rest[-1]
    return like_maps(mu, logvar), like_maps(mu, logvar), prior_var.new_empty(prior_var.shape if needs_prior else 0)


def _pooled_backward(kernel, args, needs, grads):
    *inputs, spread = args
    grad_mu, grad_logvar, grad_prior = kernel(_reparameterize_pooled_backward)(
        *grads[:3], spread, *inputs, needs.prior_var
    )
    return {"mu": grad_mu, "logvar": grad_logvar, "prior_var": grad_prior}


def _pooled_reference(mu, logvar, prior_var, std_max, sample, seed, stream, sample_ids):
    return pooled_sample(mu, logvar, prior_var, std_max, sample, seed, stream >> 8, sample_ids)


# `spread` is the standard deviation of z's noise, which backward needs.
_reparameterize_pooled = Op(
    "reparameterize_pooled",
    f"({_INPUTS}) -> (Tensor z, Tensor std, Tensor kl, Tensor spread)",
    _pooled_fake,
    backward=_pooled_backward,
    reference=_pooled_reference,
    saved_outputs=(3,),
)
_reparameterize_pooled_backward = Op(
    "reparameterize_pooled_backward",
    "(Tensor? grad_z, Tensor? grad_std, Tensor? grad_kl, Tensor spread, "
    f"{_INPUTS}, bool needs_prior) -> (Tensor, Tensor, Tensor)",
    _pooled_backward_fake,
)


def _call(mu, logvar, prior_var, std_max, sample, pool, pool_std, seed, stream, sample_ids) -> Call:
    """Check the arguments, and convert them to what the kernels take."""
    checks.float_tensor("mu", mu, 2)
    checks.float_tensor("logvar", logvar, 2)
    mu, logvar = checks.promoted(mu=mu, logvar=logvar)
    checks.exact_shape("logvar", logvar, tuple(mu.shape))
    tiny = torch.finfo(checks.compute_dtype(mu.dtype)).tiny
    expected = "positive variances (in float32 at least 1.2e-38)"
    prior_var = checks.per_sample("prior_var", prior_var, mu, expected, lambda v: v >= tiny)
    if std_max is not None:
        std_max = checks.number("std_max", std_max, "a positive number or None", lambda v: v > 0)
    checks.stream(stream)
    checks.sample_ids(sample_ids, mu.shape[0], mu.device)
    seed = checks.seed(seed, mu.device) if checks.flag("sample", sample) else None
    pooled = checks.flag("pool", pool) and mu.dim() > 2
    if not checks.flag("pool_std", pool_std):
        if pool:
            checks.fail("pool_std", "True, as z is pooled", "False")
        if not _keeps_channels_last(mu, logvar):
            # Without locations there is nothing to average, and element (c, l) has the noise of element c L + l.
            mu, logvar = mu.flatten(1), logvar.flatten(1)
    op, plain = (_reparameterize_pooled, _pooled_reference) if pooled else (_reparameterize, _reference)
    word = op_stream(op.name, stream)
    return Call(op, plain, mu.device, (mu, logvar, prior_var, std_max, sample, seed, word, sample_ids))


def _results(call: Call, outputs: Sequence[Tensor], mu: Tensor, pool_std: bool) -> tuple[Tensor, Tensor, Tensor]:
    """z, std and kl from the outputs of a call; without `pool_std` std has mu's shape."""
    z, std, kl = outputs[:3]
    if pool_std or mu.dim() == 2:
        return z, std, kl
    if z.dim() == 2:
        return z.view(mu.shape), std.view(mu.shape), kl
    logvar, std_max = call.args[1], call.args[3]
    std = (logvar.to(std.dtype) / 2).exp()
    return z, std if std_max is None else std.clamp(max=std_max), kl


def _calls(mu, logvar, prior_var, std_max, sample, pool, pool_std, seed, stream, sample_ids) -> list[Call]:
    """A call for each modality."""
    lists.check(mu=mu, logvar=logvar)
    prior_vars = lists.per_modality("prior_var", prior_var, mu)
    seed = checks.seed(seed, mu[0].device) if checks.flag("sample", sample) else None
    return [
        lists.element(
            m, ("mu", "logvar"), _call, a, b, p, std_max, sample, pool, pool_std, seed, stream + m, sample_ids
        )
        for m, (a, b, p) in enumerate(zip(mu, logvar, prior_vars, strict=True))
    ]


@overload
def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    prior_var: Tensor | float = 1.0,
    *,
    std_max: float | None = None,
    sample: bool = True,
    pool: bool = False,
    pool_std: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def reparameterize(
    mu: Sequence[Tensor],
    logvar: Sequence[Tensor],
    prior_var: Tensor | float = 1.0,
    *,
    std_max: float | None = None,
    sample: bool = True,
    pool: bool = False,
    pool_std: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]: ...
def reparameterize(
    mu: Tensor | Sequence[Tensor],
    logvar: Tensor | Sequence[Tensor],
    prior_var: Tensor | float = 1.0,
    *,
    std_max: float | None = None,
    sample: bool = True,
    pool: bool = False,
    pool_std: bool = True,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Any, Any, Tensor]:
    """Sample z ~ N(mu, std^2), with the pooled std and the KL to N(0, prior_var), in one pass.

        std = min(exp(logvar / 2), std_max)
        z   = mu + std * eps                      (mu itself when `sample` is False)
        kl  = sum 1/2 [(std^2 + mu^2) / prior_var - log(std^2 / prior_var) - 1]   over the sample

    With `pool`, z is the mean over the L locations of dims 2... The mean of independent normals is a normal, which is
    sampled directly, with one eps for each channel (the local reparameterization):

        z_c = mean_l mu_cl + sqrt(sum_l std_cl^2) / L * eps_c

    It has the distribution of the pooled map, and its gradients the same mean and less variance. No map is written.

    Lists of M modalities, 1 to 16, are sampled in one call, with the results of M calls with the streams
    stream .. stream + M - 1.

    Args:
        mu, logvar: (B, C, ...), one shape and dtype: float32, float64, bfloat16 or float16; any strides. Or lists of M
            such tensors, whose shapes may differ but for B.
        prior_var: the prior's *variance* (UDML: the sample's noise level): a number, (), (B,) or (B, 1, ..); for
            lists also (B, M).
            Positive; as a float32 value it must be a normal number (at least 1.2e-38).
        std_max: upper limit of the standard deviation, or None.
        sample: False in evaluation: z = mu, or its mean with `pool`.
        pool: return z pooled over the locations, (B, C). For (B, C) inputs it changes nothing.
        pool_std: False returns std at every location. Not with `pool`.
        seed: int64, one element, on mu's device (`draw_seed`); None draws one. Required under torch.compile.
        stream: distinguishes calls that share a seed, in [0, 2^24).
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

    Returns:
        z: mu's shape, or (B, C) with `pool`; mu's dtype. A map has the channels last in memory if mu and logvar do, and
            is contiguous otherwise; so are the gradients of mu and logvar.
        std: (B, C), the mean of std over dims 2.., or mu's shape without `pool_std`; float32 (float64 for float64
            inputs).
        kl: (B,), float32 (float64), in nats.

        For lists, tuples of z and std, and kl (B, M).

    Gradients reach mu, logvar and prior_var through all three outputs. Backward regenerates the noise
    from the seed; only the inputs are kept. `std_max` has the gradient of torch.clamp.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected. On an accelerator the
            value of prior_var is not read: one that is not positive gives NaN.

    Source: Kingma & Welling, 2014 (reparameterisation, KL); UDML, arXiv 2603.19681 (prior = noise level);
    Kingma, Salimans & Welling, 2015 (local reparameterization).
    """
    if isinstance(mu, (list, tuple)):
        calls = _calls(mu, logvar, prior_var, std_max, sample, pool, pool_std, seed, checks.stream(stream), sample_ids)
        results = [
            _results(call, outputs, a, pool_std) for call, outputs, a in zip(calls, lists.run(calls), mu, strict=True)
        ]
        z, std, kl = zip(*results, strict=True)
        return z, std, torch.stack(kl, 1)
    call = _call(mu, logvar, prior_var, std_max, sample, pool, pool_std, seed, stream, sample_ids)
    return _results(call, call.run(), cast(Tensor, mu), pool_std)
