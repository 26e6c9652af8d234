"""Philox4x32-10, and the normals and uniforms that docs/ops.md specifies, as tiles for kernels; `normal` and `uniform`.

In kernels, `noise` is the tuple (seed pointer or None, sample ids pointer or None). To test for None, kernels use
`noise[0] is None`: for a tuple that contains None, Triton 3.6 cannot tell whether the tuple itself is None. The stream
word is an argument of its own: of a number in a tuple, Triton compiles a kernel for each divisibility by 16.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import fast_math, launch, triton_dtype
from ._math import _log1p_reduced, _split_exponent, fast_log2, fast_sincos, sincos_reduced
from ._rows import tile_of, tiles_of, write
from ._tuning import Config, tuned

Noise = tuple[Tensor | None, Tensor | None]


def noise_of(seed: Tensor | None, sample_ids: Tensor | None) -> Noise:
    return seed, None if sample_ids is None else sample_ids.contiguous()


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        # A 64-bit product takes one instruction, its two halves take two.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def words(noise, stream, row, rows, block):
    """Return the four words of the counters `block`, (1, Q) uint32, of rows (R, 1): each is (R, Q) uint32."""
    seed = tl.load(noise[0])
    if noise[1] is None:
        ids = row
    else:
        ids = tl.load(noise[1] + row, mask=row < rows, other=0)
    stream = tl.zeros_like(block) + stream
    low = tl.zeros_like(block) + ids.to(tl.uint32)
    high = tl.zeros_like(block) + (ids >> 32).to(tl.uint32)
    return _philox(
        tl.zeros_like(low) + block, stream.to(tl.uint32), low, high, seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    )


@triton.jit
def tile_words(noise, stream, row, rows, start, BLOCK: tl.constexpr):
    """Return the words of elements `start` .. `start + BLOCK`. start is a multiple of 4 (int64)."""
    block = (start // 4).to(tl.uint32) + tl.arange(0, BLOCK // 4)[None, :].to(tl.uint32)
    return words(noise, stream, row, rows, block)


@triton.jit
def interleaved(a, b, c, d, BLOCK: tl.constexpr):
    """Return (R, BLOCK) with a, b, c, d (R, BLOCK / 4) as elements 4q, 4q + 1, 4q + 2, 4q + 3."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], BLOCK))


@triton.jit
def uniform_of(word, C: tl.constexpr):
    """(w >> 8) 2^-24, in [0, 1)."""
    return (word >> 8).to(tl.int32).to(C) * 5.9604644775390625e-8


@triton.jit
def _radius_fast(word):
    """sqrt(-2 ln u) of a float32 u with an error below 3e-6.

    Near u = 1 the error of lg2.approx, 2^-22, is as large as ln u. For v = 1 - u below 2^-9 the series v + v^2/2 +
    v^3/3 (relative error 2e-9) replaces it. Above that, the radius is at least 0.06.
    """
    i = (word >> 8).to(tl.int32).to(tl.float32)
    u = i * 5.9604644775390625e-8 + 2.98023223876953125e-8
    v = (1.0 - i * 5.9604644775390625e-8) - 2.98023223876953125e-8
    series = v * (v * (v * 0.6666666667 + 1.0) + 2.0)
    return tl.sqrt(tl.where(v < 0.001953125, series, fast_log2(u) * -1.3862943611198906))


@triton.jit
def _radius_exact(word):
    """sqrt(-2 ln u), u = (2 (w >> 8) + 1) 2^-25. Above sqrt(1/2) it uses u - 1, which the integer gives exactly."""
    numerator = ((word >> 8) * 2 + 1).to(tl.int32)
    upper = numerator >= 23726567
    scaled = tl.where(upper, numerator - 33554432, numerator).to(tl.float32) * 2.98023223876953125e-8
    exponent, fraction = _split_exponent(scaled)
    power = tl.where(upper, 0, exponent).to(tl.float32)
    log = _log1p_reduced(tl.where(upper, scaled, fraction)) * -2.0 + power * -1.3862943611198906
    return tl.sqrt(log)


@triton.jit
def _normals(radius_word, angle_word, C: tl.constexpr, FAST: tl.constexpr):
    """The Box-Muller transform of a pair of words to two normals in C.

    FAST takes sine and cosine of the whole angle in [-pi, pi). Including the rounding of the angle, and multiplied by
    the radius, its error is at most 4e-6. Otherwise the quadrant comes from the integer, and the angle is within an
    eighth of a turn.
    """
    if C == tl.float32 and FAST:
        radius = _radius_fast(radius_word)
        sine, cosine = fast_sincos(angle_word.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-9)
        n0, n1 = radius * cosine, radius * sine
    else:
        turned = angle_word + 0x20000000
        part = (turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000
        if C == tl.float32:
            radius = _radius_exact(radius_word)
            sine, cosine = sincos_reduced(part.to(tl.float32) * 1.46291807926715968e-9)
        else:
            u = (radius_word >> 8).to(tl.int32).to(C) * 5.9604644775390625e-8 + 2.98023223876953125e-8
            radius = tl.sqrt(-2.0 * tl.log(u))
            sine, cosine = sincos_reduced(part.to(C) * 1.46291807926715957e-9)
        odd = (turned & 0x40000000) != 0
        n0 = radius * tl.where(odd, sine, cosine)
        n1 = radius * tl.where(odd, cosine, sine)
        n0 = tl.where(((turned + 0x40000000) & 0x80000000) != 0, -n0, n0)
        n1 = tl.where((turned & 0x80000000) != 0, -n1, n1)
    return n0, n1


@triton.jit
def normals_of(w0, w1, w2, w3, BLOCK: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr):
    """Return (R, BLOCK) normals of the words (R, BLOCK / 4)."""
    n0, n1 = _normals(w0, w1, C, FAST)
    n2, n3 = _normals(w2, w3, C, FAST)
    return interleaved(n0, n1, n2, n3, BLOCK)


@triton.jit
def normals_at(noise, stream, row, rows, element, C: tl.constexpr, FAST: tl.constexpr):
    """Return the normals of elements (1, N) of rows (R, 1). Each is computed alone, which is cheaper for a few."""
    w0, w1, w2, w3 = words(noise, stream, row, rows, (element // 4).to(tl.uint32))
    second_pair = (element & 2) != 0
    n0, n1 = _normals(tl.where(second_pair, w2, w0), tl.where(second_pair, w3, w1), C, FAST)
    return tl.where((element & 1) != 0, n1, n0)


@triton.jit
def uniforms_of(w0, w1, w2, w3, BLOCK: tl.constexpr, C: tl.constexpr):
    return interleaved(uniform_of(w0, C), uniform_of(w1, C), uniform_of(w2, C), uniform_of(w3, C), BLOCK)


@triton.jit
def _truncate_uniform(u, dtype: tl.constexpr):
    """Truncate a uniform in [0, 1) to the bits that `dtype` can hold. Rounding to nearest could produce 1."""
    if dtype == tl.bfloat16:
        u = (u.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        u = (u.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    return u


@triton.jit(do_not_specialize=["stream", "rows"], do_not_specialize_on_alignment=["across"])
def _random_kernel(
    out, noise, stream: tl.uint32, rows, size, across, NORMAL: tl.constexpr, C: tl.constexpr, FAST: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, _, start, lane, mask = tile_of(rows, size, across, R, BLOCK)
    w0, w1, w2, w3 = tile_words(noise, stream, row, rows, start, BLOCK)
    if NORMAL:
        value = normals_of(w0, w1, w2, w3, BLOCK, C, FAST)
    else:
        value = _truncate_uniform(uniforms_of(w0, w1, w2, w3, BLOCK, C), out.dtype.element_ty)
    write(out, row, size, start, lane, value, mask)


def _generate(shape, seed, stream, sample_ids, dtype, is_normal) -> Tensor:
    device, rows, size = seed.device, shape[0], math.prod(shape[1:])

    def call(config: Config) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        tiles = tiles_of(rows, size, config.elements)
        launch(
            _random_kernel, device, tiles.programs, out, noise_of(seed, sample_ids), stream, rows, size, tiles.across,
            NORMAL=is_normal, C=triton_dtype(dtype), FAST=fast_math(device), R=tiles.R, BLOCK=tiles.BLOCK,
            num_warps=config.num_warps,
        )  # fmt: skip
        return out

    return tuned("normal" if is_normal else "uniform", dtype, rows * size, device, call)


def normal(shape, seed, stream, sample_ids, dtype) -> Tensor:
    return _generate(shape, seed, stream, sample_ids, dtype, True)


def uniform(shape, seed, stream, sample_ids, dtype) -> Tensor:
    return _generate(shape, seed, stream, sample_ids, dtype, False)
