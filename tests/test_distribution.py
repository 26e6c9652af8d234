"""The noise as random variables: accuracy over every radius, moments, Kolmogorov-Smirnov, independence."""

import math

import pytest
import torch

from udml_kernels import normal, reference, uniform, use_backend

from . import DEVICE
from .backends import BACKENDS, draws, is_executed
from .tolerances import normal_bound

COUNT = 10**8
CHUNK = 4 * 10**6
BINS = 2**20
SEED = torch.tensor([20240229])
# Kolmogorov's distribution: D sqrt(n) exceeds 1.95 with probability 1e-3. The seed is fixed: this cannot flake.
KS_LIMIT = 1.95


# Kernels that tests/ptx executes would take minutes for the 3e8 pairs. Their tests of all radii, in `test_triton`
# and `test_cuda_kernels`, pass the radii to the kernel directly.
SWEPT = [backend for backend in BACKENDS if not is_executed(backend)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", SWEPT)
def test_all_radii(backend):
    """The radius of every one of the 2^24 uniforms, to normal_bound() max(1, r).

    A pair's radius is sqrt(n0^2 + n1^2) whatever its angle, and `uniform` of the same counter tells which of
    the 2^24 it is. Pairs are drawn until each has come up: 3e8 for coupons that many.
    """
    index = torch.arange(2**24, dtype=torch.float64)
    radius = (-2 * (index * 2.0**-24 + 2.0**-25).log()).sqrt()
    seen = torch.zeros(2**24, dtype=torch.bool)
    worst, draws = torch.zeros((), dtype=torch.float64), 0
    with use_backend(backend):
        while not seen.all():
            draws += 1
            assert draws <= 150, f"{int((~seen).sum())} radii never came up"
            arguments = {"stream": draws, "sample_ids": torch.arange(8)}
            n, u = (values((8, CHUNK // 4), SEED, **arguments) for values in (normal, uniform))
            which = (u.view(-1, 2)[:, 0] * 2.0**24).long()
            seen[which] = True
            exact = radius[which]
            n0, n1 = n.double().view(-1, 2).unbind(-1)
            worst = torch.maximum(worst, ((torch.hypot(n0, n1) - exact).abs() / exact.clamp(min=1)).max())
    assert worst <= normal_bound(backend)
    assert worst > 1e-9, "float32 normals cannot be this exact: the wrong thing was measured"


@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_are_accurate_where_the_public_function_reaches(backend):
    # A million pairs: with the sweep of the radii, this is the accuracy of the angles.
    shape = (64, 2**15)
    with use_backend(backend):
        single, double = normal(shape, SEED), normal(shape, SEED, dtype=torch.float64)
    exact = reference.normal(shape, SEED, dtype=torch.float64)
    assert ((single - exact).abs() / exact.abs().clamp(min=1)).max() <= normal_bound(backend)
    assert ((double - exact).abs() / exact.abs().clamp(min=1)).max() <= 1e-14


class _Accumulated:
    """Moments, lagged products and a histogram of equally likely bins."""

    LAGS = (1, 2, 3, 4, 8, 16, 64)

    def __init__(self):
        self.count, self.powers = 0, torch.zeros(5, dtype=torch.float64)
        self.lagged = torch.zeros(len(self.LAGS), dtype=torch.float64)
        self.histogram = torch.zeros(BINS, dtype=torch.int64)
        self.largest = 0.0

    def add(self, standardized: torch.Tensor, probability: torch.Tensor) -> None:
        x = standardized.double().flatten()
        self.count += len(x)
        self.largest = max(self.largest, float(x.abs().max()))
        square = x * x
        self.powers += torch.stack((x.new_tensor(len(x)), x.sum(), square.sum(), x @ square, square @ square))
        self.lagged += torch.stack([x[:-k] @ x[k:] for k in self.LAGS])
        self.histogram += torch.bincount((probability.flatten() * BINS).long().clamp_(0, BINS - 1), minlength=BINS)

    def ks(self) -> float:
        """sqrt(n) sup |F_n - F| at the bins' edges, at most 2^-20 sqrt(n) = 0.01 short of the supremum."""
        edges = torch.arange(1, BINS + 1, dtype=torch.float64) / BINS
        return float((self.histogram.cumsum(0) / self.count - edges).abs().max()) * math.sqrt(self.count)

    def chi_square_z(self, bins: int = 4096) -> float:
        expected = self.count / bins
        statistic = float(((self.histogram.view(bins, -1).sum(1) - expected) ** 2 / expected).sum())
        return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


def _accumulate(backend: str, values, standardize, probability) -> _Accumulated:
    result = _Accumulated()
    with use_backend(backend):
        # Samples of uneven length, so that vector tails occur throughout.
        rows, columns = 4, CHUNK // 4 - 3
        count = draws(backend, COUNT)
        for i in range(0, -(-count // (rows * columns))):
            x = values((rows, columns), SEED, stream=3, sample_ids=torch.arange(rows) + rows * i)
            result.add(standardize(x), probability(x))
    assert result.count >= count
    return result


def _assert_moments(result: _Accumulated, fourth: float, sixth: float, eighth: float) -> None:
    """Sample moments within 4.5 standard errors, for a symmetric law of variance 1."""
    mean, variance, third, kurtosis = result.powers[1:] / result.count
    error = {"mean": 1, "variance": fourth - 1, "third": sixth, "fourth": eighth - fourth**2}
    got = {"mean": mean, "variance": variance - 1, "third": third, "fourth": kurtosis - fourth}
    for name, square in error.items():
        assert abs(float(got[name])) < 4.5 * math.sqrt(square / result.count), f"{name}: off by {float(got[name])}"
    z = result.lagged / math.sqrt(result.count)
    assert z.abs().max() < 4.5, f"correlated at lags {result.LAGS}: {z.tolist()}"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_normals_are_normal(backend):
    result = _accumulate(backend, normal, lambda x: x, lambda x: torch.special.ndtr(x.double()))
    _assert_moments(result, 3, 15, 105)
    assert result.ks() < KS_LIMIT
    assert abs(result.chi_square_z()) < 4.5
    # Twenty numbers are expected beyond; of 1e8, that is beyond 5.2.
    beyond = -float(torch.special.ndtri(torch.tensor(10 / result.count, dtype=torch.float64)))
    assert beyond < result.largest <= 5.89


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_uniforms_are_uniform(backend):
    result = _accumulate(
        backend, uniform, lambda x: (x.double() - (0.5 - 2.0**-25)) * math.sqrt(12), lambda x: x.double()
    )
    _assert_moments(result, 9 / 5, 27 / 7, 9)
    assert result.ks() < KS_LIMIT
    assert abs(result.chi_square_z()) < 4.5


def test_the_tests_see_a_wrong_law():
    """A mean off by 2e-3, a variance off by 0.4 %, neighbours that agree: each shows at a tenth of the numbers."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    for wrong in (lambda x: x + 2e-3, lambda x: x * 1.002, lambda x: x[::2].repeat_interleave(2)):
        result = _Accumulated()
        for _ in range(3):
            x = wrong(torch.randn(CHUNK, generator=draw, dtype=torch.float64))
            result.add(x, torch.special.ndtr(x))
        with pytest.raises(AssertionError):
            _assert_moments(result, 3, 15, 105)
            assert result.ks() < KS_LIMIT
