"""Lists on the CUDA backend: equal kernels of several modalities are one launch, with the same results."""

import pytest
import torch

import udml_kernels
from udml_kernels import inject_noise, reparameterize
from udml_kernels.ops._launches import together

from . import DEVICE
from .backends import BACKENDS
from .ptx import machine

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the compiled CUDA kernels are not executed on the CPU here", allow_module_level=True)

SEED = torch.tensor([2026])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows of whole vectors: the kernels that serve several calls take no others. Five are more than one launch serves.
FEATURES = [(4, 16), (4, 64), (4, 32), (4, 8), (4, 16)]
MAPS = [(4, 8, 4, 4), (4, 16, 3, 8), (4, 8, 8)]


def _tensors(shapes, dtype: torch.dtype, key: int, channels_last: bool = False) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(key)
    tensors = [torch.randn(s, generator=draw).to(dtype) for s in shapes]
    if channels_last:
        tensors = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in tensors]
    return [t.requires_grad_() for t in tensors]


def _launched() -> int:
    return sum(kernel["launches"] for kernel in machine.statistics()["kernels"].values())


def _launches(run) -> int:
    before = _launched()
    run()
    return _launched() - before


def sampled(shapes, dtype: torch.dtype, listed: bool, pool: bool = False, channels_last: bool = False, **options):
    """The results and gradients of `reparameterize` of a list, or of a call for each element."""
    mu, logvar = (_tensors(shapes, dtype, key, channels_last) for key in (0, 1))
    prior = torch.linspace(0.5, 2, 4 * len(shapes)).view(4, -1)
    with udml_kernels.use_backend("cuda"):
        if listed:
            z, std, kl = reparameterize(mu, logvar, prior, pool=pool, seed=SEED, **options)
        else:
            calls = [
                reparameterize(a, b, prior[:, m], pool=pool, seed=SEED, stream=m, **options)
                for m, (a, b) in enumerate(zip(mu, logvar, strict=True))
            ]
            z, std, kl = zip(*calls, strict=True)
            kl = torch.stack(kl, 1)
        total = sum(t.float().square().sum() for t in (*z, *std, kl))
        gradients = torch.autograd.grad(total, (*mu, *logvar))
    return [*z, *std, kl, *gradients]


FORMS = [
    {"shapes": FEATURES},
    {"shapes": FEATURES, "std_max": 1.5},
    {"shapes": MAPS, "pool": True},
    {"shapes": MAPS, "pool": True, "channels_last": True},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_reparameterize(form, dtype):
    one, other = (sampled(dtype=dtype, listed=listed, **form) for listed in (True, False))
    assert all(map(torch.equal, one, other))


def noisy(dtype: torch.dtype, listed: bool) -> list[torch.Tensor]:
    x, sigma = _tensors(FEATURES, dtype, 0), torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    with udml_kernels.use_backend("cuda"):
        if listed:
            return list(inject_noise(x, sigma, seed=SEED))
        return [inject_noise(a, sigma[:, m], seed=SEED, stream=m) for m, a in enumerate(x)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_inject_noise(dtype):
    assert all(map(torch.equal, noisy(dtype, True), noisy(dtype, False)))


@pytest.mark.parametrize(
    ("form", "alone", "together"),
    [
        # Sums, divergence and gradient of five modalities, of which four share a launch.
        ({"shapes": FEATURES}, 15, 6),
        ({"shapes": FEATURES[:2]}, 6, 3),
        ({"shapes": MAPS, "pool": True}, 9, 3),
        # A modality whose rows are no whole vectors has a launch of its own.
        ({"shapes": [*FEATURES[:2], (4, 5)]}, 9, 5),
    ],
)
def test_launches(form, alone, together):
    assert _launches(lambda: sampled(dtype=torch.float32, listed=False, **form)) == alone
    assert _launches(lambda: sampled(dtype=torch.float32, listed=True, **form)) == together


def test_long_launches_stay_apart():
    """Where blocks loop, a launch's start is a small part of its time."""
    shapes = [(256, 4096), (256, 4096)]
    with torch.no_grad(), udml_kernels.use_backend("cuda"), machine.options(races=False):
        x = [torch.zeros(s) for s in shapes]
        assert _launches(lambda: inject_noise(x, 1.0, seed=SEED)) == 2


def test_nothing_is_launched_after_an_error():
    def call():
        inject_noise(torch.zeros(4, 16), 1.0, seed=SEED)

    def failing():
        with pytest.raises(ZeroDivisionError), together("cuda"):
            call()
            raise ZeroDivisionError

    with torch.no_grad(), udml_kernels.use_backend("cuda"):
        assert _launches(failing) == 0
        assert _launches(call) == 1
