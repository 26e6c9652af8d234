"""Results in arithmetic of fifty digits, from the formulas alone: for ops whose float64 reference can cancel.

Each function takes the public function's arguments in float64 and gives its outputs and, for the gradients that come
in, the gradients of the inputs: name -> float64 tensor, as `conformance.evaluate` does. Values are finite.
"""

from collections.abc import Callable

import torch
from mpmath import mp, mpf
from torch import Tensor

mp.dps = 50
# mpmath takes a millisecond for a few elements.
MOST_ELEMENTS = 48


def _numbers(value: Tensor) -> list[list]:
    """Rows of the last dimension."""
    return [[mpf(number) for number in row] for row in value.reshape(-1, value.shape[-1]).tolist()]


def _tensor(rows: list, shape) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64).reshape(shape)


def evidential_loss(arguments: dict, gradients: dict) -> tuple[dict, dict]:
    evidence, weight, reduction = arguments["evidence"], mpf(arguments["kl_weight"]), arguments["reduction"]
    rows, classes = evidence.shape[:-1], evidence.shape[-1]
    target = arguments["target"].reshape(arguments["target"].shape + (1,) * (len(rows) - arguments["target"].dim()))
    targets = target.expand(rows).reshape(-1).tolist()
    count = max(len(targets), 1) if reduction == "mean" else 1
    incoming = gradients.get("loss", torch.zeros(())).double().expand(rows).reshape(-1).tolist()
    losses, slopes = [], []
    for row, y, g in zip(_numbers(evidence), targets, incoming, strict=True):
        loss, slope = _evidential_row(row, y, weight, classes)
        losses.append(loss)
        slopes.append([mpf(g) * s / count for s in slope])
    loss = _tensor([losses], rows) if reduction == "none" else torch.tensor(float(mp.fsum(losses) / count))
    return {"loss": loss.double()}, {"gradient of evidence": _tensor(slopes, evidence.shape)}


def _evidential_row(row: list, y: int, weight, classes: int) -> tuple:
    alpha = [e + 1 for e in row]
    strength = mp.fsum(alpha)
    wrong = [mpf(1) if k == y else a for k, a in enumerate(alpha)]
    total = mp.fsum(wrong)
    kl = mp.loggamma(total) - mp.fsum(map(mp.loggamma, wrong)) - mp.loggamma(classes)
    kl += mp.fsum((a - 1) * (mp.psi(0, a) - mp.psi(0, total)) for a in wrong)
    spare = mp.psi(1, total) * mp.fsum(a - 1 for a in wrong)
    slope = []
    for k, a in enumerate(alpha):
        cross = mp.psi(1, strength) - (mp.psi(1, a) if k == y else 0)
        slope.append(cross + (0 if k == y else weight * ((a - 1) * mp.psi(1, a) - spare)))
    return mp.psi(0, strength) - mp.psi(0, alpha[y]) + weight * kl, slope


def fusion_weights(arguments: dict, gradients: dict) -> tuple[dict, dict]:
    s = arguments["uncertainty"]
    present, alpha = _over(arguments["mask"], s, True).bool(), _over(arguments["dependency"], s, 1.0)
    tau, total = mpf(arguments["temperature"]), arguments["total"]
    incoming = gradients.get("weights", torch.zeros(())).double().expand_as(s)
    columns = [t.movedim(1, -1) for t in (s, alpha, incoming)]
    here = present.movedim(1, -1).reshape(-1, s.shape[1]).tolist()
    weights, slopes, tilts = [], [], []
    for row, factors, g, mask in zip(*map(_numbers, columns), here, strict=True):
        whole = mpf(sum(mask) if total is None else total)
        w, ds, da = _weights_row(row, factors, g, mask, arguments["g"], tau, whole)
        weights.append(w)
        slopes.append(ds)
        tilts.append(da)
    shape = columns[0].shape
    w, ds, da = (_tensor(t, shape).movedim(-1, 1) for t in (weights, slopes, tilts))
    results = {"gradient of uncertainty": ds}
    if (dependency := arguments["dependency"]) is not None:
        da = da.flatten(2).sum(2) if da.dim() > 2 else da
        results["gradient of dependency"] = da.sum(0) if dependency.dim() == 1 else da
    return {"weights": w}, results


def _weights_row(s: list, alpha: list, g: list, mask: list, kind: str, tau, whole) -> tuple:
    """One row's weights, and its gradients with respect to s and alpha."""
    inside = [m for m, present in enumerate(mask) if present]
    products = {m: s[m] * alpha[m] for m in inside}
    logits = {m: (1 / p if kind == "softmax" else -mp.log(p)) / tau for m, p in products.items()}
    top = max(logits.values(), default=mpf(0))
    powers = {m: mp.exp(value - top) for m, value in logits.items()}
    norm = mp.fsum(powers.values())
    share = {m: power / norm for m, power in powers.items()}
    mean = mp.fsum(share[m] * g[m] for m in inside)
    w, ds, da = ([mpf(0)] * len(s) for _ in range(3))
    for m in inside:
        w[m] = whole * share[m]
        # d logit / d log(s alpha), times the gradient of the logit.
        slope = whole * share[m] * (g[m] - mean) * (-1 / products[m] if kind == "softmax" else -1) / tau
        ds[m], da[m] = slope / s[m], slope / alpha[m]
    return w, ds, da


def _over(value: Tensor | None, like: Tensor, otherwise) -> Tensor:
    """(M,), (B, M) or more, in the shape of `like`, (B, M, *spatial)."""
    if value is None:
        return torch.full_like(like, otherwise)
    value = value if value.dim() > 1 else value.unsqueeze(0)
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim())).expand_as(like)


FORMULAS: dict[str, Callable] = {"evidential_loss": evidential_loss, "fusion_weights": fusion_weights}


def serves(op: str, arguments: dict) -> bool:
    """Whether the formulas cover the arguments, quickly."""
    if op not in FORMULAS:
        return False
    tensors = [value for value in arguments.values() if isinstance(value, Tensor) and value.is_floating_point()]
    valid = all(bool(((t >= 0) & t.isfinite()).all()) for t in tensors)
    if op == "fusion_weights":
        valid = valid and all(bool((t > 0).all()) for t in tensors)
    return valid and 0 < tensors[0].numel() <= MOST_ELEMENTS
