import torch
from torch import Tensor

from .. import backends, checks, reference
from ._op import Op

_REDUCTIONS = ("none", "mean", "sum")


def _fusion_backward(kernel, args, needs, grads):
    return {"evidence": kernel(_evidential_fusion_backward)(*grads, *args)}


_evidential_fusion = Op(
    "evidential_fusion",
    "(Tensor evidence, Tensor? mask) -> Tensor",
    lambda evidence, mask: evidence.new_empty((evidence.shape[0], evidence.shape[2])),
    backward=_fusion_backward,
    reference=lambda evidence, mask: reference.evidential_fusion(evidence, mask=mask),
)
_evidential_fusion_backward = Op(
    "evidential_fusion_backward",
    "(Tensor grad, Tensor evidence, Tensor? mask) -> Tensor",
    lambda grad, evidence, mask: evidence.new_empty(evidence.shape),
)


def _loss_fake(evidence, target, kl_weight, reduction):
    shape = () if reduction else evidence.shape[:-1]
    return evidence.new_empty(shape, dtype=checks.compute_dtype(evidence.dtype))


def _loss_backward(kernel, args, needs, grads):
    return {"evidence": kernel(_evidential_loss_backward)(*grads, *args)}


def _loss_reference(evidence, target, kl_weight, reduction):
    return reference.evidential_loss(evidence, target, kl_weight, reduction=_REDUCTIONS[reduction])


_evidential_loss = Op(
    "evidential_loss",
    "(Tensor evidence, Tensor target, float kl_weight, int reduction) -> Tensor",
    _loss_fake,
    backward=_loss_backward,
    reference=_loss_reference,
)
_evidential_loss_backward = Op(
    "evidential_loss_backward",
    "(Tensor grad, Tensor evidence, Tensor target, float kl_weight, int reduction) -> Tensor",
    lambda grad, evidence, target, kl_weight, reduction: evidence.new_empty(evidence.shape),
)


def evidential_fusion(evidence: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Combine the evidence of M views by Dempster's reduced rule, in closed form.

        e = K (prod_m (1 + e_m / K) - 1)        computed as K expm1(sum_m log1p(e_m / K))

    It does not depend on the order of the views; a view without evidence changes nothing.

    Args:
        evidence: (B, M, K), not negative; M from 1 to 16; float32, float64, bfloat16 or float16.
        mask: bool (B, M), True where the view is present; an absent one counts as e = 0.

    Returns:
        (B, K), evidence's dtype. Evidence below -K gives NaN.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: Han et al., Trusted Multi-View Classification, 2021, rewritten without the pairwise recursion.
    """
    checks.float_tensor("evidence", evidence)
    if evidence.dim() != 3 or not 1 <= evidence.shape[1] <= checks.MAX_MODALITIES or evidence.shape[2] < 1:
        expected = f"shape (B, M, K) with M from 1 to {checks.MAX_MODALITIES} and K at least 1"
        checks.fail("evidence", expected, checks.shape_of(evidence))
    if mask is not None:
        checks.tensor_of("mask", mask, "a bool tensor, True where a view is present", (torch.bool,))
        checks.same_device("mask", mask, evidence.device)
        checks.exact_shape("mask", mask, tuple(evidence.shape[:2]))
    backend = backends.select(evidence.device, _evidential_fusion)
    if backend == "reference":
        return reference.evidential_fusion(evidence, mask=mask)
    return _evidential_fusion(backend, evidence, mask)


def evidential_loss(evidence: Tensor, target: Tensor, kl_weight: float = 1.0, *, reduction: str = "mean") -> Tensor:
    """Digamma cross entropy of a Dirichlet, plus kl_weight times the KL of its misleading part to the uniform one.

        alpha = e + 1, S = sum_k alpha_k
        loss  = psi(S) - psi(alpha_y) + kl_weight KL(Dir(alpha~) || Dir(1)),  alpha~ = alpha but 1 at y

    Args:
        evidence: (B, K) or (B, ..., K), the classes last, not negative (not checked): float32, float64,
            bfloat16 or float16, any strides.
        target: int64 (B,) or evidence's shape without K, classes in [0, K).
        kl_weight: lambda, usually raised from 0 to 1 over the first epochs.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or for "none" the losses in evidence's shape without K; float32 (float64 for float64 inputs).

    Gradients reach evidence.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected. On an accelerator the
            values of target are not read: an invalid class gives NaN.

    Source: Sensoy et al., Evidential Deep Learning, 2018; Han et al., 2021.
    """
    checks.float_tensor("evidence", evidence, 2)
    if evidence.shape[-1] < 1:
        checks.fail("evidence", "at least one class in the last dimension", checks.shape_of(evidence))
    checks.tensor_of("target", target, "an int64 tensor of classes", (torch.int64,))
    checks.same_device("target", target, evidence.device)
    rows = tuple(evidence.shape[:-1])
    checks.exact_shape("target", target, rows[:1], rows)
    classes = evidence.shape[-1]
    if checks.readable(target) is not None:
        # Not while tracing: a symbolic size in the message would specialise the graph to that size.
        checks.all_values("target", target, f"classes in [0, {classes})", lambda v: 0 <= v < classes)
    kl_weight = checks.number("kl_weight", kl_weight, "a number", lambda v: True)
    checks.choice("reduction", reduction, _REDUCTIONS)
    target = target.reshape(target.shape + (1,) * (len(rows) - target.dim())).expand(rows)
    backend = backends.select(evidence.device, _evidential_loss)
    args = (evidence, target, kl_weight, _REDUCTIONS.index(reduction))
    return _loss_reference(*args) if backend == "reference" else _evidential_loss(backend, *args)
