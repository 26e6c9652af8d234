"""Results and gradients against arbitrary precision, where float64 formulas themselves may cancel or overflow.

The formulas are those of the literature, term by term, in mpmath; they share nothing with the package.
"""

import functools
import math

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

import udml_kernels
from udml_kernels import uniform, use_backend

from . import DEVICE
from .backends import BACKENDS, draws

COLUMNS = ("reference", *BACKENDS)
# Relative errors; of float32 the suite's own figure.
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype).removeprefix("torch."))
ON_ALL = pytest.mark.parametrize("backend", COLUMNS)


@pytest.fixture(autouse=True)
def digits():
    # The textbook's terms for evidence of 1e100 have some 100 digits in common.
    with mp.workdps(300):
        yield


def _assert_near(name: str, got: Tensor, truth: list, bound: float, absolute: float = 0.0) -> None:
    """Each value within bound * |truth| + absolute; beyond the dtype's range as rounding has it."""
    info = torch.finfo(got.dtype)
    for i, (value, exact) in enumerate(zip(got.flatten().tolist(), truth, strict=True)):
        if abs(exact) > info.max:
            assert value == math.copysign(math.inf, exact), (
                f"{name}[{i}]: {value}, the truth is {mpmath.nstr(exact, 9)}"
            )
            continue
        error = abs(mpf(value) - exact)
        assert error <= bound * abs(exact) + absolute + info.smallest_normal * info.eps, (
            f"{name}[{i}]: {value}, the truth is {mpmath.nstr(exact, 9)}"
        )


def _exact(t: Tensor) -> list:
    return [mpf(v) for v in t.flatten().tolist()]


# ---- The Dirichlet losses.


def _loss(evidence: list, true: int, kl_weight: float):
    alpha = [e + 1 for e in evidence]
    wrong = [mpf(1) if k == true else a for k, a in enumerate(alpha)]
    strength = sum(wrong)
    kl = mpmath.loggamma(strength) - sum(map(mpmath.loggamma, wrong)) - mpmath.loggamma(len(alpha))
    kl += sum((w - 1) * (mpmath.digamma(w) - mpmath.digamma(strength)) for w in wrong)
    return mpmath.digamma(sum(alpha)) - mpmath.digamma(alpha[true]) + kl_weight * kl


def _loss_gradient(evidence: list, true: int, kl_weight: float) -> list:
    alpha = [e + 1 for e in evidence]
    wrong = [mpf(1) if k == true else a for k, a in enumerate(alpha)]
    common = mpmath.psi(1, sum(alpha))
    divergence = (sum(wrong) - len(wrong)) * mpmath.psi(1, sum(wrong))
    by_wrong = [common + kl_weight * ((w - 1) * mpmath.psi(1, w) - divergence) for w in wrong]
    return [common - mpmath.psi(1, alpha[true]) if k == true else by for k, by in enumerate(by_wrong)]


def _evidence(rows: int, classes: int, decades: float, dtype: torch.dtype) -> Tensor:
    """Rows of all sizes: of evidence alike, and of evidence from one end of the range to the other."""
    generator = torch.Generator().manual_seed(classes)
    level = torch.linspace(-decades, decades, rows, dtype=torch.float64)[:, None]
    spread = torch.rand((rows, classes), generator=generator, dtype=torch.float64) * 2 - 1
    power = torch.where(torch.arange(rows)[:, None] % 3 == 0, decades * spread, level + spread * 0.5)
    return (10.0 ** power.clamp(-decades, decades)).to(dtype)


@functools.cache
def _losses(kl_weight: float, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, list, list]:
    """Evidence and targets, and the loss and gradient of each row, the same for all backends: they take seconds."""
    rows = 24 if classes < 64 else 8
    evidence = _evidence(rows, classes, 30.0 if dtype == torch.float32 else 100.0, dtype)
    target = torch.arange(rows) % classes
    arguments = [(_exact(row), true, kl_weight) for row, true in zip(evidence, target.tolist(), strict=True)]
    return evidence, target, [_loss(*a) for a in arguments], [_loss_gradient(*a) for a in arguments]


@ON_ALL
@DTYPES
@pytest.mark.parametrize("classes", (1, 2, 3, 10, 64))
@pytest.mark.parametrize("kl_weight", (0.0, 1.0))
def test_evidential_loss_over_the_whole_range(kl_weight, classes, dtype, backend):
    evidence, target, losses, gradients = _losses(kl_weight, classes, dtype)
    leaf = evidence.to(DEVICE, copy=True).requires_grad_()
    with use_backend(backend):
        loss = udml_kernels.evidential_loss(leaf, target.to(DEVICE), kl_weight, reduction="none")
        loss.sum().backward()
    bound = BOUNDS[dtype]
    for row, gradient in enumerate(gradients):
        # The terms of the divergence are of size 1 also where it is next to nothing; without it nothing cancels.
        absolute = kl_weight * bound * max(classes, 1)
        _assert_near(f"loss of row {row}", loss[row], [losses[row]], bound, absolute)
        # Of a row's largest; the divergence's derivative is rounded in double precision where evidence is small.
        absolute = float(bound * max(map(abs, gradient))) + kl_weight * 4e-15
        _assert_near(f"gradient of row {row}", leaf.grad[row], gradient, bound, absolute)


@ON_ALL
def test_evidential_loss_of_the_fault_report(backend):
    evidence = torch.tensor([[1e12, 1.0, 2.0]], dtype=torch.float64, device=DEVICE)
    with use_backend(backend):
        losses = [
            float(udml_kernels.evidential_loss(evidence, torch.tensor([true], device=DEVICE))) for true in range(3)
        ]
    for true, loss in enumerate(losses):
        assert loss == pytest.approx(float(_loss([mpf(10**12), mpf(1), mpf(2)], true, 1.0)), rel=1e-14)


@ON_ALL
@DTYPES
@pytest.mark.parametrize("views", (1, 2, 5))
def test_evidential_fusion_over_the_whole_range(views, dtype, backend):
    classes, rows = 3, 12
    decades = (37.0 if dtype == torch.float32 else 300.0) / views
    evidence = _evidence(rows, views * classes, decades, dtype).view(rows, views, classes)
    leaf = evidence.to(DEVICE).requires_grad_()
    with use_backend(backend):
        fused = udml_kernels.evidential_fusion(leaf)
        fused.sum().backward()
    for row in range(rows):
        factors = [[1 + e / classes for e in _exact(evidence[row, m])] for m in range(views)]
        products = [mpmath.fprod(f[k] for f in factors) for k in range(classes)]
        _assert_near(f"row {row}", fused[row], [classes * (p - 1) for p in products], BOUNDS[dtype])
        gradient = [products[k] / factors[m][k] for m in range(views) for k in range(classes)]
        _assert_near(f"gradient of row {row}", leaf.grad[row], gradient, BOUNDS[dtype])


# ---- The weights.


def _weights(s: list, alpha: list, g: str, temperature: float) -> list:
    inverse = [1 / (x * a) for x, a in zip(s, alpha, strict=True)]
    logits = [(q if g == "softmax" else mpmath.log(q)) / mpf(temperature) for q in inverse]
    shares = [mpmath.exp(x - max(logits)) for x in logits]
    return [x / sum(shares) for x in shares]


def _weight_gradients(s: list, alpha: list, by_weight: list, g: str, temperature: float) -> tuple[list, list]:
    shares = _weights(s, alpha, g, temperature)
    by_s, by_alpha = [], []
    for m, (x, a) in enumerate(zip(s, alpha, strict=True)):
        by_logit = shares[m] * sum(p * (by_weight[m] - by) for p, by in zip(shares, by_weight, strict=True))
        by_log = -len(s) * by_logit / mpf(temperature) * (1 / (x * a) if g == "softmax" else 1)
        by_s.append(by_log / x)
        by_alpha.append(by_log / a)
    return by_s, by_alpha


# s, alpha. Their products' inverses, or the ratios of those, leave the range of float32.
FLOAT32_ROWS = (
    ([1e-24, 1.0, 1e24], [1.0, 1.0, 1.0]),
    ([1e-39, 1e-30, 1e-29], [1e9, 1.0, 1.0]),
    ([1e-45, 3e38, 1.0], [1e-45, 3e38, 1.0]),
    ([1e-17, 1.0, 1.1e16], [1.0, 1.0, 1.0]),
    ([1e20, 3e20, 2e20], [1e20, 1e20, 1e20]),
    ([1e-20, 3e-20, 1e-20], [1e-25, 1e-25, 1e-25]),
    ([1e30, 1e32, 1e35], [1e10, 1e7, 1e5]),
    ([0.5, 1.5, 2.0], [1.0, 0.7, 1.2]),
)


def _weight_bound(dtype: torch.dtype, s: list, alpha: list, g: str, temperature: float) -> float:
    """The rounding of a logit, which the exponential turns into a relative error."""
    logits = [mpmath.log(x * a) / temperature for x, a in zip(s, alpha, strict=True)]
    if g == "softmax":
        shares = _weights(s, alpha, g, temperature)
        inverse = [1 / (x * a) / temperature for x, a in zip(s, alpha, strict=True)]
        logits = [q for q, p in zip(inverse, shares, strict=True) if p > 1e-60]
    return BOUNDS[dtype] * (1 + float(max(logits) - min(logits)))


@ON_ALL
@DTYPES
@pytest.mark.parametrize("spatial", ((), (5,)), ids=("sample", "location"))
@pytest.mark.parametrize("temperature", (1.0, 1000.0, 0.5))
@pytest.mark.parametrize("g", ("softmax", "inverse"))
def test_weights_over_the_whole_range(g, temperature, spatial, dtype, backend):
    s = torch.tensor([row[0] for row in FLOAT32_ROWS]).to(dtype)
    alpha = torch.tensor([row[1] for row in FLOAT32_ROWS]).to(dtype)
    by_weight = torch.tensor([0.7, -1.3, 0.45]).to(dtype)
    wide = s.view(*s.shape, *[1] * len(spatial)).expand(*s.shape, *spatial)
    leaves = [wide.clone().to(DEVICE).requires_grad_(), alpha.clone().to(DEVICE).requires_grad_()]
    with use_backend(backend):
        weights = udml_kernels.fusion_weights(*leaves, g=g, temperature=temperature)
        grad = by_weight.view(1, -1, *[1] * len(spatial)).expand(weights.shape).to(DEVICE)
        weights.backward(grad)
    places = math.prod(spatial)
    # Of subnormal terms the sum has the rounding of each.
    steps = places * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for row in range(len(s)):
        exact = _exact(s[row]), _exact(alpha[row])
        bound = _weight_bound(dtype, *exact, g, temperature)
        name = f"row {row}, {s[row].tolist()}"
        for place in range(places):
            at = (row, slice(None), *[place] * len(spatial))
            _assert_near(name, weights[at], [3 * p for p in _weights(*exact, g, temperature)], bound)
            by_s, by_alpha = _weight_gradients(*exact, _exact(by_weight), g, temperature)
            # A weight that is no float32 number is 0, and so is its gradient.
            shares = _weights(*exact, g, temperature)
            small = [min(p, 1 - p) < torch.finfo(dtype).tiny for p in shares]
            for m in range(3):
                if not small[m]:
                    _assert_near(f"gradient, {name}", leaves[0].grad[at][m], [by_s[m]], 4 * bound)
                    _assert_near(f"gradient, {name}", leaves[1].grad[row, m], [by_alpha[m] * places], 4 * bound, steps)
                else:
                    assert leaves[0].grad[at][m].isfinite() and leaves[1].grad[row, m].isfinite()


# ---- reparameterize: gradients whose factors leave the range of float32.

# grad_kl, prior_var, mu, logvar
DIVERGENCES = (
    (1e30, 1.8e-31, 0.0, -70.0),
    (1e30, 1.8e-31, 1e-26, -71.0),
    (1e-30, 1.2e-38, 1e8, -20.0),
    (1e-30, 1.2e-38, 1e-30, -100.0),
    (1e20, 3e38, 1e25, 80.0),
    (-1e30, 1e-20, 1e-17, -46.0),
    (1.0, 3e38, 1e19, 88.0),
    (1.0, 1e30, 1e25, 100.0),
)


@ON_ALL
@DTYPES
@pytest.mark.parametrize("locations", ((), (3,)), ids=("flat", "map"))
def test_the_gradients_of_the_divergence_over_the_whole_range(locations, dtype, backend):
    shape, size = (len(DIVERGENCES), 5, *locations), 5 * math.prod(locations)
    by_kl, prior, mu, logvar = (torch.tensor(column, dtype=dtype) for column in zip(*DIVERGENCES, strict=True))
    wide = [t.view(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous() for t in (mu, logvar)]
    leaves = [t.to(DEVICE).requires_grad_() for t in (*wide, prior.clone())]
    with use_backend(backend):
        _, _, kl = udml_kernels.reparameterize(*leaves, sample=False)
        kl.backward(by_kl.to(DEVICE))
    bound = 4 * BOUNDS[dtype]
    for row in range(len(DIVERGENCES)):
        g, t, m, lv = (mpf(float(x[row])) for x in (by_kl, prior, mu, logvar))
        variance, squares = mpmath.exp(lv), (mpmath.exp(lv) + m * m) / t
        cancelling = float(abs(lv) + abs(mpmath.log(t)) + 1)
        _assert_near(
            f"kl {row}", kl[row], [size * (squares - lv + mpmath.log(t) - 1) / 2], bound, bound * size * cancelling
        )
        by_mu, by_logvar = g * m / t, g * (variance / t - 1) / 2
        absolute = float(bound * abs(g))
        _assert_near(f"mu {row}", leaves[0].grad[row], [by_mu] * size, bound)
        _assert_near(f"logvar {row}", leaves[1].grad[row], [by_logvar] * size, bound, absolute)
        by_prior = g * size * (1 - squares) / t / 2
        absolute = float(bound * abs(g) * size / t) if abs(g) * size / t < mpf(10) ** 300 else 0.0
        _assert_near(f"prior {row}", leaves[2].grad[row], [by_prior], bound, absolute)


@ON_ALL
def test_a_gradient_of_z_is_not_lost_beside_a_large_quotient(backend):
    mu, logvar = torch.zeros((1, 3), device=DEVICE), torch.full((1, 3), -70.7, device=DEVICE)
    mu.requires_grad_()
    with use_backend(backend):
        z, _, kl = udml_kernels.reparameterize(mu, logvar, 1.8e-31, sample=False)
        torch.autograd.backward([z, kl], [torch.full_like(z, -17.9), torch.full_like(kl, 1e30)])
    assert torch.equal(mu.grad, torch.full_like(mu, -17.9))


# ---- uniform.


@ON_ALL
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_uniforms_stay_below_1(dtype, backend):
    """To nearest, 2^-9 of bfloat16's and 2^-12 of float16's would be 1. They are cut off where the dtype ends."""
    shape, seed = (64, draws(backend, 2**14)), torch.tensor([7], device=DEVICE)
    with use_backend(backend):
        u, exact = uniform(shape, seed, dtype=dtype), uniform(shape, seed, dtype=torch.float64)
    assert u.max() < 1 and u.min() >= 0
    lost = exact - u.double()
    eps = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(dtype, 0.0)
    assert (lost >= 0).all() and (lost <= exact * eps).all()
    if eps:
        assert (lost > exact * eps / 2).any(), "rounded down, not to nearest"
