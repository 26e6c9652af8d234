"""Intermediate results outside float32's range while the result is inside it: the truth is the float64 reference."""

import math

import pytest
import torch
from torch import Tensor

import udml_kernels
from udml_kernels import reference, use_backend

from . import DEVICE
from .backends import BACKENDS

ON_ALL = pytest.mark.parametrize("backend", BACKENDS)
HIGHEST = torch.finfo(torch.float32).max


def _results(function, tensors: list[Tensor], incoming: list[Tensor | None], options: dict) -> list[Tensor]:
    """Outputs, then the gradients of `tensors`; None stands for an output whose gradient does not come in."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    outputs = function(*leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, incoming, strict=True) if g is not None]
    found, given = zip(*pairs, strict=True)
    return [o.detach() for o in outputs] + list(torch.autograd.grad(found, leaves, given))


def _assert_right(op: str, backend: str, tensors: list, incoming: list, **options) -> None:
    tensors, incoming = (
        [None if t is None else torch.tensor(t, device=DEVICE) for t in ts] for ts in (tensors, incoming)
    )
    with use_backend(backend):
        got = _results(getattr(udml_kernels, op), tensors, incoming, options)
    right = _results(getattr(reference, op), [t.double() for t in tensors], incoming, options)
    for value, exact in zip(got, right, strict=True):
        torch.testing.assert_close(value, exact.to(value.dtype), rtol=1e-5, atol=0)


@ON_ALL
@pytest.mark.parametrize("g", [0.3, 0.0, -1e-30])
def test_divergences_near_the_highest_number(backend: str, g: float):
    mu = [[1e15, -9e14, 3.0], [1.5e19, 1.0, 1.4e19]]
    _assert_right(
        "reparameterize", backend, [mu, [[0.0, 1.0, -1.0]] * 2, [1.2e-8, 1.0]], [None, None, [g, g]], sample=False
    )


@ON_ALL
def test_a_divergence_that_is_infinite_without_a_gradient(backend: str):
    _assert_right(
        "reparameterize", backend, [[[HIGHEST, 2.0]], [[0.0, 170.0]], [1e-37]], [None, None, [0.0]], sample=False
    )


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU is not among the backends under test")
@pytest.mark.parametrize(
    ("mu", "logvar", "prior", "g"),
    [
        ([[-1e15, 2.0]], [[201.0, 203.0]], 3.3, 0.0),  # std is no float32
        ([[1.0, 1.0, 1.0, 1.0]], [[-3.3e38, -3e37, 0.0, -1e38]], 1.0, -1e-10),
        ([[HIGHEST, 1.0]], [[1.0, 2.0]], 1e-37, 1e-45),  # sums of 1e114 and a gradient below the normal numbers
    ],
)
def test_sums_that_are_no_float32(mu: list, logvar: list, prior: float, g: float):
    _assert_right("reparameterize", "cpu", [mu, logvar, [prior]], [None, None, [g]], sample=False)


@ON_ALL
def test_the_loss_of_a_scaled_up_step(backend: str):
    """A gradient scaler's factor: twice the gradient is infinite, its product with the error is not."""
    std, weights = [[0.9, -0.3]], [[[1.0, 0.5]], [0.1], [[0.7]], [-3.0]]
    _assert_right("noise_regression", backend, [std, *weights, [[0.1]]], [None, HIGHEST])


@pytest.mark.parametrize("backend", ("reference", *BACKENDS))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.float64, 1e-12)])
def test_the_tail_of_gelu(dtype: torch.dtype, bound: float, backend: str):
    """h (1 + erf(h / sqrt 2)) / 2 is 0 below -8.3 in float64, and below -5.5 in float32."""
    if backend == "reference" and dtype == torch.float32:
        bound = 0.01  # Above -4 it is PyTorch's, which cancels.
    std = torch.linspace(-12, -2, 21, dtype=dtype).reshape(-1, 1).to(DEVICE).requires_grad_()
    layers = [torch.tensor(t, dtype=dtype, device=DEVICE) for t in ([[1.0]], [0.0], [[1.0]], [0.0])]
    with use_backend(backend):
        noise, _ = udml_kernels.noise_regression(std, *layers, activation="gelu")
        noise.sum().backward()
    for h, slope in zip(std.flatten().tolist(), std.grad.flatten().tolist(), strict=True):
        cdf, density = math.erfc(-h / math.sqrt(2)) / 2, math.exp(-h * h / 2) / math.sqrt(2 * math.pi)
        assert slope == pytest.approx(math.exp(h * cdf / 2) * (cdf + h * density) / 2, rel=bound), h


@ON_ALL
@pytest.mark.parametrize(("dtype", "large", "bound"), [(torch.float16, 1e3, 4e-3), (torch.float32, 1e19, 1e-5)])
def test_a_gradient_beside_one_that_overflows(dtype: torch.dtype, large: float, bound: float, backend: str):
    """Of units without the first sample: feature 0's is infinite by the second, the others' are what the rest gives."""
    std, incoming = torch.full((8, 4), 1e-4), torch.ones(8, 1)
    std[0] = incoming[:2] = large
    std[1, 0] = 10 * large
    layers = [torch.zeros(16, 4), torch.full((16,), 0.1), torch.ones(1, 16), torch.zeros(1)]
    inputs, options = (
        [t.to(DEVICE, dtype) for t in (std, *layers)],
        {"dropout_p": 0.25, "seed": torch.tensor([3], device=DEVICE)},
    )

    def noise(function, tensors: list[Tensor]) -> list[Tensor]:
        return _results(lambda *t, **o: function(*t, **o)[0], tensors, [incoming.to(DEVICE)], options)

    with use_backend(backend):
        got = noise(udml_kernels.noise_regression, inputs)[2]
    right = noise(reference.noise_regression, [t.double() for t in inputs])[2].to(dtype)
    assert right.isinf().any() and right.isfinite().any()
    torch.testing.assert_close(got, right, rtol=bound, atol=0)


@ON_ALL
def test_a_dropped_unit_times_an_infinite_weight(backend: str):
    """It is 0 * inf, a NaN, as with dropout between two linear layers."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    inputs = [torch.rand(*shape, generator=draw, device=DEVICE) for shape in ((64, 5), (8, 5), (8,), (1, 8), (1,))]
    inputs[3][0, 3] = math.inf
    options = {"dropout_p": 0.0625, "seed": torch.tensor([3], device=DEVICE)}
    expected, _ = reference.noise_regression(*inputs, **options)
    with use_backend(backend):
        noise, _ = udml_kernels.noise_regression(*inputs, **options)
    assert expected.isnan().any() and expected.isinf().any()
    torch.testing.assert_close(noise, expected, equal_nan=True)


@ON_ALL
def test_no_samples_and_infinite_weights(backend: str):
    leaves = [torch.full(shape, math.inf, device=DEVICE, requires_grad=True) for shape in ((3, 8), (3,), (2, 3), (2,))]
    with use_backend(backend):
        noise, _ = udml_kernels.noise_regression(torch.empty(0, 8, device=DEVICE), *leaves)
        gradients = torch.autograd.grad(noise, leaves, torch.empty_like(noise))
    assert all((g == 0).all() for g in gradients)


@ON_ALL
@pytest.mark.parametrize("g", [1e-10, 0.0])
def test_factors_whose_product_is_infinite(backend: str, g: float):
    _assert_right(
        "evidential_fusion", backend, [[[[0.0], [1e20], [1e20]], [[1e20], [2e20], [1e20]]]], [[[g], [g * 1e-12]]]
    )


@ON_ALL
def test_a_gradient_below_the_normal_numbers(backend: str):
    _assert_right("evidential_fusion", backend, [[[[0.5 * m] for m in range(15)]]], [[[1.4e-45]]])


@ON_ALL
@pytest.mark.parametrize("locations", [(), (3,)])
def test_gradients_whose_difference_is_infinite(backend: str, locations: tuple[int, ...]):
    s = torch.rand(2, 2, *locations).add(1).tolist()
    g = torch.tensor([[HIGHEST, -HIGHEST], [1.0, 2.0]]).reshape(2, 2, *[1] * len(locations)).expand(2, 2, *locations)
    _assert_right("fusion_weights", backend, [s, [[1.0, 2.0]] * 2], [g.tolist()], temperature=1000.0)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU is not among the backends under test")
def test_terms_of_a_dependency_gradient_that_are_no_float32():
    """The terms of two locations are 1e39 and -1e39."""
    s = [[[1.0, 1.0, 1e-3], [1.0, 1.0, 1.0]]]
    g = [[[1e17, -1e17, 0.5], [-1e17, 1e17, 3.0]]]
    _assert_right("fusion_weights", "cpu", [s, [[1e-22, 1e-22]]], [g], g="inverse")


@ON_ALL
@pytest.mark.parametrize("locations", [(), (3,)])
@pytest.mark.parametrize("g", [math.nan, math.inf, HIGHEST])
def test_the_weight_of_an_only_modality_is_constant(backend: str, locations: tuple[int, ...], g: float):
    s = torch.full((2, 2, *locations), 0.5, device=DEVICE, requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]], device=DEVICE)
    with use_backend(backend):
        weights = udml_kernels.fusion_weights(s, mask=mask)
        (slope,) = torch.autograd.grad(weights, s, torch.full_like(weights, g))
    assert (slope == 0).all()
