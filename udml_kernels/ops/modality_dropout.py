from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, checks, reference
from .._constants import numbers_tensor
from ..reference.random import op_stream
from ._op import Op


def _dropout_fake(features, p, keep_one, seed, stream, sample_ids):
    mask = features[0].new_empty((features[0].shape[0], len(features)), dtype=torch.bool)
    return [f.new_empty(f.shape) for f in features], mask


def _dropout_backward(kernel, args, needs, grads):
    # The gradient is the same op applied to the incoming gradient: the seed gives the same mask again.
    features = [f.new_zeros(f.shape) if g is None else g for f, g in zip(args.features, grads[0], strict=True)]
    dropped, _ = kernel(_modality_dropout)(*args._replace(features=features))
    return {"features": dropped}


def _dropout_reference(features, p, keep_one, seed, stream, sample_ids):
    kept, mask = reference.modality_dropout(
        features, p, keep_one=keep_one, seed=seed, stream=stream >> 8, sample_ids=sample_ids
    )
    return list(kept), mask


_modality_dropout = Op(
    "modality_dropout",
    "(Tensor[] features, Tensor p, bool keep_one, Tensor seed, SymInt stream, Tensor? sample_ids)"
    " -> (Tensor[], Tensor)",
    _dropout_fake,
    backward=_dropout_backward,
    reference=_dropout_reference,
)


def modality_dropout(
    features: Sequence[Tensor],
    p: Tensor | float,
    *,
    keep_one: bool = True,
    mask_only: bool = False,
    seed: Tensor | None = None,
    stream: int = 0,
    sample_ids: Tensor | None = None,
) -> Any:
    """Zero whole modalities, per sample, with probability p; what is kept is not rescaled.

    Args:
        features: M tensors (B, ...), M from 1 to 16, one dtype (float32, float64, bfloat16, float16).
        p: probabilities in [0, 1]: a number, (), or (M,); used in float32.
        keep_one: never drop all the modalities of a sample: where all would be dropped, the one with the largest
            u_m - p_m is kept.
        mask_only: return the mask alone, for `weighted_fusion`, which ignores what it drops: no feature is copied.
        seed: int64, one element, on the features' device (`draw_seed`); None draws one. Required under
            torch.compile. Modality m is dropped where element m of the sample's uniforms is below p_m.
        stream: distinguishes calls that share a seed, in [0, 2^24).
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

    Returns:
        features: a tuple of M contiguous tensors.
        mask: bool (B, M), True where kept. With `mask_only` it is the only result.

    Gradients reach the features that were kept.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected. On an accelerator the
            values of a tensor p are not read; a NaN there drops the modality.

    Source: UDML, arXiv 2603.19681 (modality dropout, by which the dependency is measured).
    """
    features = checks.features(features)
    device, count = features[0].device, len(features)
    if isinstance(p, Tensor):
        checks.float_tensor("p", p, 0)
        checks.exact_shape("p", p, (), (count,))
        checks.same_device("p", p, device)
        checks.all_values("p", p, "probabilities in [0, 1]", lambda v: 0 <= v <= 1)
        p = p.to(torch.float32).detach().expand(count)
    else:
        p = checks.number("p", p, "probabilities in [0, 1]", lambda v: 0 <= v <= 1)
        p = numbers_tensor([p], torch.float32, device).expand(count)
    checks.stream(stream)
    checks.sample_ids(sample_ids, features[0].shape[0], device)
    seed = checks.seed(seed, device)
    if checks.flag("mask_only", mask_only):
        # The mask depends on the number of samples and modalities alone.
        features = [features[0].detach().new_empty((features[0].shape[0], 0))] * count
    backend = backends.select(device, _modality_dropout)
    args = (features, p, checks.flag("keep_one", keep_one), seed, op_stream("modality_dropout", stream), sample_ids)
    kept, mask = _dropout_reference(*args) if backend == "reference" else _modality_dropout(backend, *args)
    return mask if mask_only else (tuple(kept), mask)


def _dependency_fake(logits):
    return logits.new_empty(logits.shape[:1], dtype=checks.compute_dtype(logits.dtype))


def _dependency_backward(kernel, args, needs, grads):
    return {"logits": kernel(_modality_dependency_backward)(*grads, *args)}


_modality_dependency = Op(
    "modality_dependency",
    "(Tensor logits) -> Tensor",
    _dependency_fake,
    backward=_dependency_backward,
    reference=reference.modality_dependency,
)
_modality_dependency_backward = Op(
    "modality_dependency_backward",
    "(Tensor grad, Tensor logits) -> Tensor",
    lambda grad, logits: logits.new_empty(logits.shape),
)


def modality_dependency(logits: Tensor) -> Tensor:
    """How much the model depends on each modality: alpha_m = mean over the batch of sum_k |logit_mbk|.

    Args:
        logits: (M, B, K): the head's output with every modality but m zeroed; M from 1 to 16; float32,
            float64, bfloat16 or float16, any strides.

    Returns:
        (M,), float32 (float64 for float64 inputs); 0 for an empty batch.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (dependency calculator).
    """
    checks.float_tensor("logits", logits)
    if logits.dim() != 3 or not 1 <= logits.shape[0] <= checks.MAX_MODALITIES:
        checks.fail("logits", f"shape (M, B, K) with M from 1 to {checks.MAX_MODALITIES}", checks.shape_of(logits))
    backend = backends.select(logits.device, _modality_dependency)
    return reference.modality_dependency(logits) if backend == "reference" else _modality_dependency(backend, logits)
