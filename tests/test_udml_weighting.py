"""The reference of the weighting, and the estimator's choices, against the formulas."""

import math

import pytest
import torch
from udml.data import load_data
from udml.layers import NoiseEstimator, UncertaintyWeighting
from udml.training.randomness import mixed_sigma

from udml_kernels.streams import Seed

ROWS, FLOOR, REFERENCE = 4, 0.5, 3.0


def naive(noise, alpha, mask, tau):
    """Weights (B, M, *sp) of the formulas in the docstring, row by row and place by place."""
    weights = torch.zeros_like(noise)
    for b in range(noise.shape[0]):
        here = [m for m in range(noise.shape[1]) if mask is None or mask[b, m]]
        if not here:
            continue
        a = alpha[b] if alpha.dim() > 1 else alpha
        mean = sum(a[m] for m in here) / len(here)
        u = {m: ((noise[b, m] ** 2 + FLOOR**2) * a[m]) ** (-1 / tau) for m in here}
        u_r = ((REFERENCE**2 + FLOOR**2) * mean) ** (-1 / tau)
        for m in here:
            weights[b, m] = len(here) * u[m] / (sum(u.values()) + len(here) * u_r)
    return weights


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("spatial", [(), (2, 3)])
def test_weights_against_a_reference(tau, masked, per_sample, spatial):
    torch.manual_seed(0)
    noise = (6 * torch.rand(ROWS, 3, *spatial, dtype=torch.float64)).requires_grad_()
    alpha = 0.5 + torch.rand(*((ROWS, 3) if per_sample else (3,)), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool() if masked else None
    weighting = UncertaintyWeighting(temperature=tau, floor=FLOOR, reference=REFERENCE)
    expected = naive(noise, alpha, mask, tau)
    torch.testing.assert_close(weighting.weights(noise, alpha, mask), expected)
    features = [torch.randn(ROWS, 5, *spatial, dtype=torch.float64) for _ in range(3)]
    fused, weights = weighting(features, noise, alpha, mask=mask, mode="sum")
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(fused, sum(expected[:, m].unsqueeze(1) * f for m, f in enumerate(features)))
    scaled, _ = weighting(features, noise, alpha, mask=mask, mode="scale")
    torch.testing.assert_close(sum(scaled), fused)
    weights.square().sum().backward()
    (wanted,) = torch.autograd.grad(naive(noise, alpha, mask, tau).square().sum(), noise)
    torch.testing.assert_close(noise.grad, wanted)


def test_all_weights_fall_where_all_are_noisy():
    weighting = UncertaintyWeighting(floor=1.0, temperature=2.0, reference=6.0)
    sums = weighting.weights(torch.tensor([[0.0, 0.0], [6.0, 6.0], [60.0, 60.0]])).sum(1)
    assert 2 > sums[0] > sums[1] > sums[2] > 0
    torch.testing.assert_close(sums[1], torch.tensor(1.0))


def test_a_reference_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="reference: expected a positive number"):
        UncertaintyWeighting(reference=0.0)


def test_the_reference_is_one_more_term_of_the_softmax():
    weighting = UncertaintyWeighting(g="softmax", temperature=0.5, floor=1.0, reference=2.0)
    noise, alpha = torch.tensor([[0.3, 1.7, 5.0]]), torch.tensor([0.5, 1.0, 3.0])
    terms = (1 / ((noise**2 + 1) * alpha) / 0.5).exp()
    expected = 3 * terms / (terms.sum() + 3 * math.exp(1 / (5 * 1.5) / 0.5))
    torch.testing.assert_close(weighting.weights(noise, alpha), expected)


def test_the_estimator_reads_the_logarithm_and_teaches_the_std():
    torch.manual_seed(0)
    plain = NoiseEstimator(2, 6, hidden=8).eval()
    log = NoiseEstimator(2, 6, hidden=8, log=True, detach=False).eval()
    log.load_state_dict(plain.state_dict())
    stds = [torch.rand(ROWS, 6, requires_grad=True) for _ in range(2)]
    noise, loss = log(stds, torch.rand(ROWS, 2))
    torch.testing.assert_close(noise, plain([s.log() for s in stds])[0])
    loss.backward()
    assert all(s.grad.abs().sum() > 0 for s in stds)
    stds = [torch.zeros(ROWS, 6, requires_grad=True) for _ in range(2)]
    noise, loss = log(stds, torch.rand(ROWS, 2))
    loss.backward()
    assert noise.isfinite().all() and all(s.grad.isfinite().all() for s in stds)


def test_the_test_digits_do_not_follow_the_noise_levels():
    # One seed may choose the test digits and draw the levels: they must not be the same numbers.
    index = load_data("digits").test.batch.index
    for seed in (Seed.COMMON, Seed.COMMON + 1, 0):
        clean = (mixed_sigma(len(index), 2, 12.0, torch.tensor([seed]), index) == 0).float().mean(0)
        assert ((clean > 0.43) & (clean < 0.57)).all()
