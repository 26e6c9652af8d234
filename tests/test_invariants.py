"""What must hold whatever the numbers: properties of the method, on inputs that hypothesis chooses."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import udml_kernels
from udml_kernels import evidential_fusion, evidential_loss, fusion_weights, inject_noise, use_backend, weighted_fusion
from udml_kernels.tools.tolerances import compare

from . import DEVICE
from .backends import BACKENDS, draws

pytestmark = pytest.mark.parametrize("backend", BACKENDS)
fixed = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31)
# Triton compiles for each number of modalities.
modalities = st.sampled_from((1, 2, 3, 5, 16))
weightings = st.sampled_from(("softmax", "inverse"))
SEED = torch.tensor([17])


def _draw(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def _weighting(seed: int, m: int, batch: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = _draw(seed)
    s, alpha = (10 ** (2 * torch.rand(batch, m, generator=draw) - 1) for _ in range(2))
    return s, alpha, torch.rand(batch, m, generator=draw) < 0.7


@fixed
@given(seeds, modalities, weightings, st.sampled_from((None, 1.0, 2.5)))
def test_weights_sum_to_total(backend, seed, m, g, total):
    s, alpha, mask = _weighting(seed, m)
    with use_backend(backend):
        weights = fusion_weights(s, alpha, mask=mask, g=g, total=total)
    present = mask.sum(1).float()
    expected = present if total is None else torch.where(present > 0, total, 0.0)
    torch.testing.assert_close(weights.sum(1), expected, rtol=1e-5, atol=1e-6)
    assert (weights >= 0).all() and (weights[~mask] == 0).all()


@fixed
@given(seeds, modalities, weightings)
def test_permuting_modalities_permutes_the_weights(backend, seed, m, g):
    s, alpha, mask = _weighting(seed, m)
    order = torch.randperm(m, generator=_draw(seed + 1))
    with use_backend(backend):
        weights = fusion_weights(s, alpha, mask=mask, g=g)
        permuted = fusion_weights(s[:, order], alpha[:, order], mask=mask[:, order], g=g)
    torch.testing.assert_close(permuted, weights[:, order], rtol=2e-5, atol=1e-6)


@fixed
@given(seeds, modalities.filter(lambda m: m > 1), weightings)
def test_an_absent_modality_is_one_removed(backend, seed, m, g):
    s, alpha, _ = _weighting(seed, m)
    gone = seed % m
    mask = torch.ones(7, m, dtype=torch.bool)
    mask[:, gone] = False
    rest = [k for k in range(m) if k != gone]
    features = [torch.randn(7, 5, generator=_draw(seed + k)) for k in range(m)]
    s[:, gone], features[gone] = torch.nan, features[gone] * torch.nan
    with use_backend(backend):
        fused, weights = weighted_fusion(features, s, alpha, mask=mask, mode="sum", g=g)
        without, fewer = weighted_fusion([features[k] for k in rest], s[:, rest], alpha[:, rest], mode="sum", g=g)
    torch.testing.assert_close(weights[:, rest], fewer, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(fused, without, rtol=2e-5, atol=2e-5)


@fixed
@given(seeds, st.integers(2, 16), weightings)
def test_a_noisier_modality_counts_less(backend, seed, m, g):
    s, alpha, _ = _weighting(seed, m)
    noisier = s.clone()
    noisier[:, 0] *= 2
    with use_backend(backend):
        before, after = fusion_weights(s, alpha, g=g), fusion_weights(noisier, alpha, g=g)
    assert (after[:, 0] <= before[:, 0] * (1 + 1e-5)).all()
    assert (after[:, 1:] >= before[:, 1:] * (1 - 1e-5)).all()


def test_inverse_is_the_authors_rule(backend):
    """w_m = M (1 / (s_m a_m)) / sum_j 1 / (s_j a_j)."""
    s, alpha, _ = _weighting(3, 4)
    inverse = 1 / (s * alpha)
    with use_backend(backend):
        got = fusion_weights(s, alpha, g="inverse")
    torch.testing.assert_close(got, 4 * inverse / inverse.sum(1, keepdim=True), rtol=1e-5, atol=1e-6)


@fixed
@given(seeds, modalities, st.sampled_from(("concat", "sum", "scale")), st.booleans())
def test_fusion_is_weight_times_feature(backend, seed, m, mode, residual):
    s, alpha, mask = _weighting(seed, m)
    features = [torch.randn(7, 5, generator=_draw(seed + k)) for k in range(m)]
    with use_backend(backend):
        fused, weights = weighted_fusion(features, s, alpha, mask=mask, mode=mode, residual=residual)
        assert torch.equal(weights, fusion_weights(s, alpha, mask=mask))
    scaled = [f * (residual + weights[:, k : k + 1]) for k, f in enumerate(features)]
    expected = {"concat": lambda: torch.cat(scaled, 1), "sum": lambda: sum(scaled), "scale": lambda: tuple(scaled)}
    torch.testing.assert_close(fused, expected[mode](), rtol=1e-5, atol=1e-5)


@fixed
@given(seeds, modalities, st.integers(1, 33))
def test_evidence_combines_in_any_order(backend, seed, m, classes):
    draw = _draw(seed)
    evidence = torch.rand(5, m, classes, generator=draw) * 3
    mask = torch.rand(5, m, generator=draw) < 0.7
    order = torch.randperm(m, generator=draw)
    with use_backend(backend):
        fused = evidential_fusion(evidence, mask=mask)
        shuffled = evidential_fusion(evidence[:, order], mask=mask[:, order])
        zeroed = evidential_fusion(evidence * mask.unsqueeze(2))
    torch.testing.assert_close(shuffled, fused, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(zeroed, fused, rtol=1e-6, atol=1e-6)


def test_two_views_combine_by_dempsters_rule(backend):
    """Belief masses b = e / S, u = K / S, S = sum e + K, combined pairwise as the paper states it."""
    evidence = torch.rand(9, 2, 5, generator=_draw(1), dtype=torch.float64) * 4
    strength = evidence.sum(2) + 5
    b, u = evidence / strength.unsqueeze(2), (5 / strength).unsqueeze(2)
    conflict = (b[:, 0].sum(1) * b[:, 1].sum(1) - (b[:, 0] * b[:, 1]).sum(1)).unsqueeze(1)
    belief = (b[:, 0] * b[:, 1] + b[:, 0] * u[:, 1] + b[:, 1] * u[:, 0]) / (1 - conflict)
    doubt = u[:, 0] * u[:, 1] / (1 - conflict)
    with use_backend(backend):
        torch.testing.assert_close(evidential_fusion(evidence), belief * 5 / doubt, rtol=1e-12, atol=1e-12)


def test_evidential_loss_against_mpmath(backend):
    """In float64, loss and gradient are exact where torch's own trigamma is not (it is off by 5e-10)."""
    evidence = torch.tensor([[0.01, 0.5, 1.3, 2.7], [6.2, 10.0, 99.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target, weight = [2, 0], 0.5
    with use_backend(backend):
        loss = evidential_loss(evidence, torch.tensor(target), weight, reduction="none")
        (slope,) = torch.autograd.grad(loss.sum(), evidence)

    def exact(row: list, y: int):
        alpha = [1 + e for e in row]
        wrong = [mpmath.mpf(1) if k == y else a for k, a in enumerate(alpha)]
        strength = mpmath.fsum(wrong)
        divergence = mpmath.loggamma(strength) - mpmath.loggamma(len(row))
        divergence -= mpmath.fsum(mpmath.loggamma(a) for a in wrong)
        divergence += mpmath.fsum((a - 1) * (mpmath.digamma(a) - mpmath.digamma(strength)) for a in wrong)
        return mpmath.digamma(mpmath.fsum(alpha)) - mpmath.digamma(alpha[y]) + weight * divergence

    with mpmath.workdps(40):
        for i, y in enumerate(target):
            row = [mpmath.mpf(v) for v in evidence[i].tolist()]
            assert math.isclose(loss[i], exact(row, y), rel_tol=1e-13)
            for k in range(4):
                derivative = mpmath.diff(lambda v, r=row, k=k, y=y: exact([*r[:k], v, *r[k + 1 :]], y), row[k])
                assert abs(float(slope[i, k]) - float(derivative)) <= 1e-13, (i, k)


@pytest.mark.parametrize(
    ("kind", "x", "mean", "std"),
    [("gaussian", 2.0, 2.0, 0.5), ("uniform", 2.0, 2.0, 0.5), ("speckle", 2.0, 2.0, 1.0), ("replace", 2.0, 0.0, 0.5)],
)
def test_noise_has_the_stated_moments(backend, kind, x, mean, std):
    count = draws(backend, 10**6)
    with use_backend(backend):
        y = inject_noise(torch.full((4, count // 4), x), 0.5, kind=kind, seed=SEED).double()
    assert abs(float(y.mean()) - mean) < 4.5 * std / math.sqrt(count)
    # The variance of a sample variance is below 2 sigma^4 / n for each of these laws.
    assert abs(float(y.var()) / std**2 - 1) < 4.5 * math.sqrt(2 / count)
    if kind == "uniform":
        assert float((y - x).abs().max()) <= 0.5 * math.sqrt(3) * (1 + 1e-6)


@pytest.mark.parametrize("kind", ("dropout", "salt_pepper"))
@pytest.mark.parametrize("fraction", (0.0, 0.25, 1.0))
def test_noise_hits_the_stated_fraction(backend, kind, fraction):
    count = draws(backend, 10**6)
    with use_backend(backend):
        y = inject_noise(torch.full((4, count // 4), 0.5), fraction, kind=kind, clamp=(0.0, 1.0), seed=SEED)
    error = 4.5 * math.sqrt(max(fraction * (1 - fraction), 0) / count)
    assert abs(float((y != 0.5).double().mean()) - fraction) <= error
    if kind == "salt_pepper":
        assert abs(float((y == 1).double().mean()) - fraction / 2) <= 4.5 * math.sqrt(fraction / 2 / count)


def test_uint8_does_not_wrap(backend):
    """A dark pixel made darker stays dark: the fault of the authors' code."""
    x = torch.zeros(2, 10**4, dtype=torch.uint8)
    with use_backend(backend):
        y = inject_noise(x, 100.0, clamp=(0.0, 255.0), seed=SEED)
    assert y.min() == 0 and 0.45 < float((y == 0).double().mean()) < 0.55


@fixed
@given(seeds, modalities, st.floats(0, 1, width=32))
def test_keep_one_keeps_one(backend, seed, m, p):
    features = [torch.ones(64, 2)] * m
    key = torch.tensor([seed])
    with use_backend(backend):
        kept, mask = udml_kernels.modality_dropout(features, p, seed=key)
        _, free = udml_kernels.modality_dropout(features, p, seed=key, keep_one=False)
    assert mask.any(1).all()
    # It only ever adds one, and only where nothing was left.
    assert torch.equal(mask.sum(1), free.sum(1).clamp(min=1)) and (mask | ~free).all()
    for k, feature in enumerate(kept):
        assert torch.equal(feature, mask[:, k : k + 1].float().expand(64, 2))
    if p == 0:
        assert free.all()
    if p == 1:
        assert not free.any()


def test_modality_dropout_has_the_stated_rate(backend):
    count = draws(backend, 10**5)
    features = [torch.ones(count, 1)] * 3
    p = torch.tensor([0.1, 0.5, 0.9])
    with use_backend(backend):
        _, mask = udml_kernels.modality_dropout(features, p, seed=SEED, keep_one=False)
    assert ((mask.double().mean(0) - (1 - p)).abs() < 4.5 * (p * (1 - p) / count).sqrt()).all()


def test_kl_is_zero_at_the_prior_and_positive_elsewhere(backend):
    prior = torch.tensor([0.25, 1.0, 4.0])
    logvar = prior.log().unsqueeze(1).expand(3, 65)
    with use_backend(backend):
        _, _, at = udml_kernels.reparameterize(torch.zeros(3, 65), logvar, prior, seed=SEED)
        _, _, off = udml_kernels.reparameterize(torch.full((3, 65), 0.1), logvar + 0.1, prior, seed=SEED)
    assert at.abs().max() < 1e-4 and (off > 0.1).all()


def test_evaluation_returns_mu(backend):
    mu = torch.randn(4, 33, generator=_draw(0))
    with use_backend(backend):
        z, _, _ = udml_kernels.reparameterize(mu, torch.zeros(4, 33), sample=False)
    assert torch.equal(z, mu) and z.data_ptr() != mu.data_ptr()


@pytest.mark.parametrize("value", [torch.inf, 1e7])
@pytest.mark.parametrize("spoiled", ["weight1", "bias1"])
def test_a_unit_that_every_sample_drops_counts_for_nothing(backend, spoiled, value):
    """Not even where its first layer is infinite or huge: kernels may fold the layers, and inf - inf is not 0."""
    units, p = 40, 0.2
    # The first seed by which some unit is dropped from all four samples.
    seeds = (torch.tensor([value], device=DEVICE) for value in range(100))
    dead = ((udml_kernels.reference.uniform((4, units), seed, stream=3) < p).all(0) for seed in seeds)
    first, unit = next((first, int(gone.nonzero()[0])) for first, gone in enumerate(dead) if gone.any())
    draw = _draw(1)
    std, weight1, weight2 = (
        torch.randn(*shape, generator=draw, device=DEVICE) for shape in ((4, 7), (units, 7), (1, units))
    )
    arguments = {"weight1": weight1, "bias1": torch.ones(units, device=DEVICE), "weight2": weight2}
    arguments[spoiled][unit] = value
    leaves = [t.requires_grad_() for t in (std, *arguments.values(), torch.ones(1, device=DEVICE))]
    results = {}
    for name in (backend, "reference"):
        with use_backend(name):
            noise, _ = udml_kernels.noise_regression(*leaves, dropout_p=p, seed=torch.tensor([first], device=DEVICE))
        results[name] = [noise, *torch.autograd.grad(noise.sum(), leaves)]
    assert results["reference"][0].isfinite().all()
    for got, expected in zip(results[backend], results["reference"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("activation", "p"), [("identity", 0.1), ("relu", 0.0)])
def test_sums_over_many_samples_keep_their_digits(backend, activation, p):
    """A chain of 5,000 float32 additions is off by more than the tolerance, one of 20,000 by twice that."""
    rows, draw = 20_000, _draw(2)
    shapes = ((rows, 33), (8, 33), (8,), (1, 8), (1,))
    leaves = [torch.rand(*shape, generator=draw, device=DEVICE) for shape in shapes]
    leaves[1] /= 33**0.5
    target, seed = 2 * torch.rand(rows, 1, generator=draw, device=DEVICE), torch.tensor([7], device=DEVICE)

    def gradients(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [t.to(dtype).requires_grad_() for t in leaves]
        with use_backend(name):
            _, loss = udml_kernels.noise_regression(
                *inputs, target.to(dtype), activation=activation, dropout_p=p, seed=seed
            )
        return list(torch.autograd.grad(loss, inputs))

    got, same = gradients(backend, torch.float32), gradients("reference", torch.float32)
    for value, expected, truth in zip(got, same, gradients("reference", torch.float64), strict=True):
        error, allowed = compare(value, expected, truth, torch.float32)
        assert error <= allowed


@pytest.mark.parametrize("mode", ("concat", "sum", "scale"))
def test_an_infinite_gradient_does_not_reach_an_absent_modality(backend, mode):
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    features = [torch.ones(3, 4).requires_grad_() for _ in range(3)]
    s, alpha = (torch.ones(3, 3).requires_grad_() for _ in range(2))
    with use_backend(backend):
        fused, _ = weighted_fusion(features, s, alpha, mask=mask, mode=mode)
        outputs = fused if mode == "scale" else [fused]
        torch.autograd.backward(outputs, [torch.full_like(o, torch.inf) for o in outputs])
    for gradient in (s.grad, alpha.grad, *(torch.stack([f.grad[:, i] for f in features], 1) for i in range(4))):
        assert bool((gradient[~mask] == 0).all())
