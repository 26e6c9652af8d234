"""What the kernels of csrc/cuda owe beyond the suite that they pass as the backend `cuda-ptx`."""

import math
import struct

import pytest
import torch

from . import DEVICE
from .backends import BACKENDS, OPS
from .ptx import build, cuda, machine

if "cuda" not in BACKENDS or DEVICE.type != "cpu":
    pytest.skip("the compiled CUDA kernels are not executed on the CPU here", allow_module_level=True)


def _normal_pairs(radius: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    n0, n1 = torch.empty(len(radius)), torch.empty(len(radius))
    pointers = [struct.pack("<Q", tensor.data_ptr()) for tensor in (radius, angle, n0, n1)]
    blocks = (len(radius) // 256, 1, 1)
    machine.launch("normal_pairs", blocks, (256, 1, 1), [*pointers, struct.pack("<i", len(radius))])
    return n0, n1


@pytest.mark.parametrize("sign", ("random", "plus", "minus"))
def test_all_radii(sign):
    """On all 2^24 radii normals stay within 5e-6 max(1, |n|), with approximate instructions that err as documented."""
    machine.load_files([build.normals_ptx(cuda.TARGET)])
    index = torch.arange(2**24)
    words = [index << 8, (index * 2654435761) & 0xFFFFFFFF]
    with machine.options(races=False, approximate=sign):
        normals = _normal_pairs(*(word.to(torch.int64).to(torch.uint32) for word in words))
    radius = (-2 * (index.double() * 2.0**-24 + 2.0**-25).log()).sqrt()
    angle = words[1].double() * (2 * math.pi * 2.0**-32)
    for got, exact in zip(normals, (radius * angle.cos(), radius * angle.sin()), strict=True):
        error = (got - exact).abs()
        assert error.max() > 1e-9, "float32 normals cannot be this exact: the wrong thing was measured"
        assert (error / exact.abs().clamp(min=1)).max() <= 5e-6


def test_an_unknown_kind_gives_nan():
    """On a GPU the kinds are not read beforehand."""
    x, seed = torch.zeros(4, 16), torch.tensor([1])
    kinds = torch.tensor([0, 7, -1, 2**32])
    y = OPS["inject_noise"].overloads["cuda"](
        x, torch.ones(1), kinds, -1, [], 1.0, None, None, torch.float32, seed, 1, None
    )
    assert y[0].isfinite().all() and y[1:].isnan().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize("columns", (16, 5))
def test_std_of_any_logvar(dtype, columns):
    largest = torch.finfo(dtype).max
    logvar = torch.tensor([0.0, -300.0, 1e4, 4.7e4, -4.7e4, largest, -largest, torch.inf, -torch.inf, torch.nan])
    logvar = logvar.to(dtype)[:, None].expand(-1, columns).contiguous()
    mu, prior = torch.zeros_like(logvar), torch.ones(1, dtype=torch.promote_types(dtype, torch.float32))
    _, std, _ = OPS["reparameterize"].overloads["cuda"](mu, logvar, prior, None, False, None, 2, None)
    torch.testing.assert_close(std, (logvar.to(prior.dtype) / 2).exp(), rtol=1e-6, atol=1e-45, equal_nan=True)
