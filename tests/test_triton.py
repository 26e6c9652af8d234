"""What only the Triton backend has: its Philox and its fast mathematics, how it walks memory, what the CPU executes."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import udml_kernels
from udml_kernels import backends
from udml_kernels.testing.ops.random import KNOWN_ANSWERS

from .backends import BACKENDS, is_executed
from .ptx import machine

if "triton" not in BACKENDS:
    pytest.skip("Triton is not among the backends under test", allow_module_level=True)

import triton
import triton.language as tl

from udml_kernels.triton import _math, _rows
from udml_kernels.triton import random as kernels

on_cpu = pytest.mark.skipif(not is_executed("triton"), reason="tests/ptx executes kernels on the CPU alone")


@triton.jit
def _philox_kernel(counter, key, out):
    c0, c1 = tl.load(counter).to(tl.uint32), tl.load(counter + 1).to(tl.uint32)
    c2, c3 = tl.load(counter + 2).to(tl.uint32), tl.load(counter + 3).to(tl.uint32)
    w0, w1, w2, w3 = kernels._philox(c0, c1, c2, c3, tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32))
    tl.store(out, w0.to(tl.int64))
    tl.store(out + 1, w1.to(tl.int64))
    tl.store(out + 2, w2.to(tl.int64))
    tl.store(out + 3, w3.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_the_kernels_philox(counter, key, words):
    out = torch.zeros(4, dtype=torch.int64)
    _philox_kernel[(1,)](torch.tensor(counter), torch.tensor(key), out)
    assert tuple(out.tolist()) == words


@triton.jit
def _normals_kernel(radius_word, angle_word, out0, out1, FAST: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    radius = tl.load(radius_word + index).to(tl.uint32)
    n0, n1 = kernels._normals(radius, tl.load(angle_word + index).to(tl.uint32), tl.float32, FAST)
    tl.store(out0 + index, n0)
    tl.store(out1 + index, n1)


def _all_radii(fast: bool) -> float:
    """The largest error over all 2^24 radii, each with another angle, as a fraction of max(1, |n|)."""
    worst, count = 0.0, 2**20
    for part in range(16):
        index = torch.arange(count) + part * count
        radius_word, angle_word = index << 8, (index * 2654435761) & 0xFFFFFFFF
        n0, n1 = torch.empty(count), torch.empty(count)
        _normals_kernel[(count // 1024,)](radius_word, angle_word, n0, n1, FAST=fast, BLOCK=1024)
        radius = (-2 * (index.double() * 2.0**-24 + 2.0**-25).log()).sqrt()
        angle = angle_word.double() * (2 * math.pi * 2.0**-32)
        for got, exact in ((n0, radius * angle.cos()), (n1, radius * angle.sin())):
            worst = max(worst, float(((got - exact).abs() / exact.abs().clamp(min=1)).max()))
    return worst


@on_cpu
def test_all_radii_of_the_portable_kernel():
    error = _all_radii(fast=False)
    assert 1e-9 < error <= 1e-6


@on_cpu
@pytest.mark.parametrize("sign", ("plus", "minus"))
def test_all_radii_of_the_fast_kernel_with_the_instructions_at_their_worst(sign):
    """No GPU is needed to bound what the approximate instructions do: 5e-6, where u is near 1 too."""
    with machine.options(approximate=sign):
        error = _all_radii(fast=True)
    assert 1e-7 < error <= 5e-6


def _fast_exponential_of_half(x: np.ndarray, error: float) -> np.ndarray:
    """`exponential_of_half` as an NVIDIA GPU computes it: fma exact to one rounding, ex2.approx off by `error`."""
    c, low = np.float32(0.7213475108146667), np.float32(9.6298151675e-9)
    t = (x * c).astype(np.float32)
    lost = (x.astype(np.float64) * np.float64(c) - t).astype(np.float32)
    lost = np.minimum((lost + x * low).astype(np.float32), np.float32(0.001))
    power = (np.exp2(t.astype(np.float64)) * (1 + error)).astype(np.float32)
    return power * (lost * np.float32(0.6931471805599453) + np.float32(1))


@pytest.mark.parametrize("error", (-(2.0**-22), 2.0**-22))
def test_the_fast_exponential_keeps_its_digits(error):
    x = np.linspace(-170, 177, 10**6, dtype=np.float32)
    exact = np.exp(x.astype(np.float64) / 2)
    relative = np.abs(_fast_exponential_of_half(x, error) / exact - 1).max()
    assert relative < 5e-7
    # Without the correction ten times that is lost: the test would see it.
    assert np.abs(np.exp2((x * np.float32(0.7213475)).astype(np.float32).astype(np.float64)) / exact - 1).max() > 2e-6


@triton.jit
def _exponential_kernel(x, out, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, _math.exponential(tl.load(x + lane)))


def test_the_exponential_at_its_ends():
    ends = (0.0, -0.0, 88.7228, 88.73, 100.0, 1e30, torch.inf, -87.3, -88.0, -104.0, -1e30, -torch.inf, torch.nan, 1.0)
    x = torch.tensor((*ends, *torch.linspace(-87, 88.7, 2**14 - len(ends)).tolist()))
    out = torch.empty_like(x)
    _exponential_kernel[(1,)](x, out, BLOCK=2**14)
    torch.testing.assert_close(out, x.double().exp().float(), rtol=5e-7, atol=1e-38, equal_nan=True)


@triton.jit
def _address_kernel(x, out, start, LAYOUT: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, 2)[:, None].to(tl.int64)
    begin = tl.full((), 0, tl.int64) + start
    address = _rows.pointers(x, row, begin, lane, LAYOUT).to(tl.int64) - x[0].to(tl.int64)
    tl.store(out + row * BLOCK + lane, address)


@pytest.mark.parametrize("start", (0, 2**31 - 3, 2**33 + 5))
@pytest.mark.parametrize("layout", (_rows.DENSE, _rows.STRIDED_LONG))
def test_offsets_beyond_2_to_the_31(start, layout):
    """Addresses alone: such a tensor fits in no test machine's memory."""
    inner, outer_stride, inner_stride, row_stride = (1, 0, 1, 2**35) if layout == _rows.DENSE else (7, 2**31 + 1, 3, 5)
    values, out = torch.zeros(1, dtype=torch.int8), torch.empty((2, 16), dtype=torch.int64)
    rows = _rows.Rows(values, row_stride, inner, outer_stride, inner_stride)
    _address_kernel[(1,)](rows, out, start, LAYOUT=layout, BLOCK=16)
    e = torch.arange(16) + start
    within = e if layout == _rows.DENSE else e // inner * outer_stride + e % inner * inner_stride
    assert torch.equal(out, torch.stack((within, within + row_stride)))


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (lambda: torch.zeros(4, 3, 5, 7), False),
        (lambda: torch.zeros(4, 3, 5, 7).to(memory_format=torch.channels_last), False),
        (lambda: torch.zeros(8, 3, 5, 7)[::2], False),
        (lambda: torch.zeros(4, 3, 5, 14)[..., ::2], False),
        (lambda: torch.zeros(1).expand(4, 3, 5, 7), False),
        (lambda: torch.zeros(4, 1, 1, 1).expand(4, 3, 5, 7), False),
        (lambda: torch.zeros(4, 5, 7, 3).movedim(-1, 1), False),
        (lambda: torch.zeros(7, 5, 3, 4).permute(3, 2, 1, 0), True),
    ],
)
def test_what_a_model_produces_is_read_where_it_lies(make, copied):
    value = make()
    (rows,), _ = _rows.rows_of(value)
    assert (rows.values is not value) == copied


def test_tiles_cover_everything_once():
    for rows in (1, 2, 3, 63, 64, 4096):
        for size in (1, 3, 15, 16, 17, 255, 2048, 2049, 50000):
            tiles = _rows.tiles_of(rows, size)
            assert tiles.across * tiles.BLOCK >= size > (tiles.across - 1) * tiles.BLOCK
            assert tiles.programs == tiles.across * -(-rows // tiles.R)
            assert all(n & (n - 1) == 0 for n in (tiles.R, tiles.BLOCK)) and tiles.R * tiles.BLOCK <= 2048


def test_tiles_do_not_depend_on_the_batch():
    for size in (1, 17, 512, 5000):
        shapes = {_rows.tiles_of(rows, size)[:3] for rows in (1, 2, 5, 64, 4096)}
        assert len(shapes) == 1, "the order of a tile's sums, so their last bits, would change with it"


@triton.jit
def _copy_kernel(x, out, size, reads, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out + lane, tl.load(x + lane, mask=lane < reads, other=0), mask=lane < size)


@on_cpu
def test_the_suite_sees_accesses_out_of_bounds():
    """Every kernel of every test is watched: a read past the end of a tensor is an error wherever it happens."""
    x, out = torch.zeros(5), torch.empty(5)
    _copy_kernel[(1,)](x, out, 5, 5, BLOCK=16)
    for size, reads, what in ((5, 6, "reads 4"), (7, 5, "writes 4")):
        with pytest.raises(RuntimeError, match=f"{what} bytes out of bounds"):
            _copy_kernel[(1,)](x, out, size, reads, BLOCK=16)


@triton.jit
def _store_kernel(out, scale, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK) // 2, tl.arange(0, BLOCK) * scale)


@on_cpu
def test_the_suite_sees_threads_that_store_different_values_to_one_place():
    """Copies of one value are no race: Triton lets each thread of a group that has one store it."""
    out = torch.empty(32, dtype=torch.int32)
    _store_kernel[(1,)](out, 0, BLOCK=64)
    assert out.eq(0).all()
    for programs, scale in ((1, 1), (2, 0)):
        with pytest.raises(RuntimeError, match="race in global memory"):
            _store_kernel[(programs,)](out, scale, BLOCK=64)


def _python(code: str, **environment) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("UDML_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=300
    )


def test_the_package_imports_without_triton():
    """And says so, and serves everything else."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, udml_kernels as uk; from udml_kernels import backends\n"
        "print(backends.why_unavailable('triton'))\n"
        "uk.normal((2, 3), torch.tensor([1]))\n"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "triton is not installed"


@pytest.mark.skipif(backends.has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_reason_names_the_interpreter():
    code = "from udml_kernels import backends; print(backends.why_unavailable('triton'))"
    assert "TRITON_INTERPRET=1" in _python(code).stdout
    assert _python(code, TRITON_INTERPRET="1").stdout.strip() == "None"


def test_the_kernels_are_not_imported_before_they_are_called():
    code = "import sys, udml_kernels; print([m for m in sys.modules if m.startswith('udml_kernels.triton')])"
    assert _python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("op", ("inject_noise", "reparameterize"))
def test_results_are_the_same_on_every_run(op):
    x, seed = torch.randn(3, 4, 700), torch.tensor([3])
    second = 0.5 if op == "inject_noise" else torch.zeros_like(x)
    with udml_kernels.use_backend("triton"):
        results = [getattr(udml_kernels, op)(x, second, seed=seed) for _ in range(2)]
    flat = [torch.utils._pytree.tree_leaves(r) for r in results]
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
