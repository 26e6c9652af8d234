"""Results in fifty-digit arithmetic, directly from the formulas: for ops whose float64 reference can cancel.

Each function takes the public function's arguments in float64 and the incoming gradients. It returns outputs and
gradients of the inputs as `conformance.evaluate` does, name -> float64 tensor, and for each of them, element by
element, the size of the terms that a careful evaluation adds up: the `terms` of `tolerances.assert_close`.
"""

from collections.abc import Callable

import torch
from mpmath import mp, mpf
from torch import Tensor

mp.dps = 50
# mpmath takes milliseconds per element.
MOST_ELEMENTS = 24


def _rows(value: Tensor) -> list[list]:
    """The rows along the last dimension, as lists of mpf."""
    return [[mpf(number) for number in row] for row in value.reshape(-1, value.shape[-1]).tolist()]


def _tensor(rows: list, shape) -> Tensor:
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64).reshape(shape)


def evidential_loss(arguments: dict, gradients: dict, unit: float) -> tuple[dict, dict, dict]:
    evidence, weight, reduction = arguments["evidence"], mpf(arguments["kl_weight"]), arguments["reduction"]
    rows, classes = evidence.shape[:-1], evidence.shape[-1]
    target = arguments["target"].reshape(arguments["target"].shape + (1,) * (len(rows) - arguments["target"].dim()))
    targets = target.expand(rows).reshape(-1).tolist()
    count = len(targets) if reduction == "mean" else 1
    incoming = gradients.get("loss", torch.zeros(())).double().expand(rows).reshape(-1).tolist()
    losses, sizes, slopes, terms = [], [], [], []
    for row, y, g in zip(_rows(evidence), targets, incoming, strict=True):
        loss, size, slope, term = _evidential_row(row, y, weight, classes)
        losses.append(loss)
        sizes.append(size)
        slopes.append([mpf(g) * s / count for s in slope])
        terms.append([abs(mpf(g)) * t / count for t in term])
    if reduction != "none":
        losses, sizes, rows = [mp.fsum(losses) / count], [mp.fsum(sizes) / count], ()
    slope, term = _tensor(slopes, evidence.shape), _tensor(terms, evidence.shape)
    sizes_of = {"loss": _tensor([sizes], rows), "gradient of evidence": term}
    return {"loss": _tensor([losses], rows)}, {"gradient of evidence": slope}, sizes_of


def _evidential_row(row: list, y: int, weight, classes: int) -> tuple:
    """The loss and the size of its terms, its derivatives and theirs."""
    alpha = [e + 1 for e in row]
    strength = mp.fsum(alpha)
    wrong = [mpf(1) if k == y else a for k, a in enumerate(alpha)]
    total = mp.fsum(wrong)

    def rest(x):
        """(x - 1) psi(x) - ln Gamma(x) - x, which grows like ln x while its terms grow like x ln x."""
        return (x - 1) * mp.psi(0, x) - mp.loggamma(x) - x

    # ln Gamma(total) - (total - K) psi(total) is -rest(total) - total + (K - 1) psi(total).
    parts = [*map(rest, wrong), -rest(total), (classes - 1) * mp.psi(0, total), -mp.loggamma(classes)]
    cross = mp.psi(0, strength), -mp.psi(0, alpha[y])
    loss = mp.fsum(cross) + weight * mp.fsum(parts)
    size = mp.fsum(map(abs, cross)) + abs(weight) * mp.fsum(map(abs, parts))
    spare = mp.psi(1, total) * mp.fsum(a - 1 for a in wrong)
    slope, term = [], []
    for k, a in enumerate(alpha):
        own = mp.psi(1, a)
        terms = [mp.psi(1, strength)] + ([-own] if k == y else [weight * (a - 1) * own, -weight * spare])
        slope.append(mp.fsum(terms))
        term.append(mp.fsum(map(abs, terms)))
    return loss, size, slope, term


def fusion_weights(arguments: dict, gradients: dict, unit: float) -> tuple[dict, dict, dict]:
    s, dependency = arguments["uncertainty"], arguments["dependency"]
    present, alpha = _over(arguments["mask"], s, True).bool(), _over(dependency, s, 1.0)
    incoming = gradients.get("weights", torch.zeros(())).double().expand_as(s)
    columns = [t.movedim(1, -1) for t in (s, alpha, incoming)]
    here = present.movedim(1, -1).reshape(-1, s.shape[1]).tolist()
    options = {name: arguments.get(name) for name in ("g", "temperature", "total", "floor", "reference")}
    tables = [_weights_and_sizes((*row, options), unit) for row in zip(*map(_rows, columns), here, strict=True)]
    w, ds, da, *sizes = (_tensor([t[i] for t in tables], columns[0].shape).movedim(-1, 1) for i in range(6))
    results, sizes_of = {"gradient of uncertainty": ds}, {"weights": sizes[0], "gradient of uncertainty": sizes[1]}
    if dependency is not None:
        results["gradient of dependency"], sizes_of["gradient of dependency"] = (
            _reduced(t, dependency) for t in (da, sizes[2])
        )
    return {"weights": w}, results, sizes_of


def _weights_and_sizes(arguments: tuple, unit: float) -> list:
    """Weights, the gradients of uncertainty and alpha, and the sizes of all three.

    A rounding of the logits may change a row by much, so its effect is tried with a few patterns of errors.
    """
    entries = len(arguments[0]) + 1
    patterns = [[unit if m >> bit & 1 else -unit for m in range(entries)] for bit in range(4)]
    runs = [_weights_row(*arguments, jitter) for jitter in ([0] * entries, *patterns)]
    *results, terms_of_s, terms_of_alpha = runs[0]

    def moved(i: int) -> list:
        return [max(abs(run[i][m] - value) for run in runs) / unit for m, value in enumerate(runs[0][i])]

    by_s, by_alpha = (
        [size + term for size, term in zip(moved(i), terms, strict=True)]
        for i, terms in ((1, terms_of_s), (2, terms_of_alpha))
    )
    return [*results, moved(0), by_s, by_alpha]


def _reduced(value: Tensor, like: Tensor) -> Tensor:
    value = value.flatten(2).sum(2) if value.dim() > 2 else value
    return value.sum(0) if like.dim() == 1 else value


def _weights_row(d: list, alpha: list, g: list, mask: list, options: dict, jitter: list) -> tuple:
    """One row's weights, their gradients with respect to uncertainty and alpha, and the size of the gradients' terms.

    The reference is the entry -1.
    """
    softmax, tau, floor = options["g"] == "softmax", mpf(options["temperature"]), options["floor"]
    inside = [m for m, present in enumerate(mask) if present]
    count, zeros = len(inside), [mpf(0)] * len(d)
    w, ds, da, terms_of_s, terms_of_alpha = (list(zeros) for _ in range(5))
    if not inside:
        return w, ds, da, terms_of_s, terms_of_alpha
    total = mpf(count if options["total"] is None else options["total"])

    def variance(x):
        return x if floor is None else x * x + mpf(floor) ** 2

    products = {m: variance(d[m]) * alpha[m] for m in inside}
    slopes = {m: g[m] for m in inside}
    mean_alpha = mp.fsum(alpha[m] for m in inside) / count
    if options["reference"] is not None:
        products[-1], slopes[-1] = variance(mpf(options["reference"])) * mean_alpha, mpf(0)
    logits = {m: (1 / p if softmax else -mp.log(p)) / tau * (1 + jitter[m]) for m, p in products.items()}
    top = max(logits.values())
    powers = {m: mp.exp(value - top) * (count if m == -1 else 1) for m, value in logits.items()}
    norm = mp.fsum(powers.values())
    share = {m: power / norm for m, power in powers.items()}
    mean, size = (mp.fsum(share[m] * f(slopes[m]) for m in share) for f in (mpf, abs))
    factor = {m: total * share[m] * (-1 / products[m] if softmax else -1) / tau for m in share}
    of_mean = -factor[-1] * mean / (mean_alpha * count) if -1 in share else mpf(0)
    size_of_mean = abs(factor[-1]) * size / (mean_alpha * count) if -1 in share else mpf(0)
    for m in inside:
        w[m] = total * share[m]
        inner = 1 / d[m] if floor is None else 2 * d[m] / variance(d[m])
        ds[m], da[m] = factor[m] * (g[m] - mean) * inner, factor[m] * (g[m] - mean) / alpha[m] + of_mean
        term = abs(factor[m]) * (abs(g[m]) + size)
        terms_of_s[m], terms_of_alpha[m] = term * abs(inner), term / alpha[m] + size_of_mean
    return w, ds, da, terms_of_s, terms_of_alpha


def _over(value: Tensor | None, like: Tensor, otherwise) -> Tensor:
    """(M,), (B, M) or more, in the shape of `like`, (B, M, *spatial)."""
    if value is None:
        return torch.full_like(like, otherwise)
    value = value if value.dim() > 1 else value.unsqueeze(0)
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim())).expand_as(like)


def sizes_of_reference(op: str, arguments: dict, gradients: dict, sizes: dict) -> dict:
    """`sizes`, with the one rounding that the reference has beside a careful evaluation's.

    It differentiates with respect to 1 + e. For e far below 1 its gradient may be 0 instead of up to 4e-15 times the
    weight and the incoming gradient; see tests/test_truth.py.
    """
    if op != "evidential_loss" or "loss" not in gradients:
        return sizes
    evidence, name = arguments["evidence"], "gradient of evidence"
    rows = max(evidence[..., 0].numel(), 1) if arguments["reduction"] == "mean" else 1
    incoming = gradients["loss"].double().abs().expand(evidence.shape[:-1]).unsqueeze(-1) / rows
    return sizes | {name: sizes[name] + 4e-15 / 1e-12 * abs(arguments["kl_weight"]) * incoming}


FORMULAS: dict[str, Callable] = {"evidential_loss": evidential_loss, "fusion_weights": fusion_weights}


def serves(arguments: dict, gradients: dict) -> bool:
    """Whether the formulas cover the arguments: a few finite values, and of the kind that is documented."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor) and value.is_floating_point()]
    valid = all(bool(((t >= 0 if "evidence" in arguments else t > 0) & t.isfinite()).all()) for t in tensors)
    valid = valid and all(bool(g.isfinite().all()) for g in gradients.values())
    return valid and 0 < tensors[0].numel() <= MOST_ELEMENTS
