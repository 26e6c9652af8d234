"""The part of the noise estimator that both passes share: block sizes, first layer, activation and dropout."""

import torch
import triton
import triton.language as tl

from .. import checks
from ._launch import INTERPRETED, ceil_div, triton_dtype
from ._math import exponential, scalar
from ._rows import widened
from .random import noise_of, uniforms_of, words

# The size of a block of rows and hidden units does not depend on the batch, so the results of a row do not depend on
# the number of rows. Programs have two warps and process 16 features per step: float32 products read their operands
# from unswizzled shared memory, and these sizes minimize bank conflicts (counted by hand, not measured).
BLOCK = {"R": 16, "HB": 32, "BK": 64 if INTERPRETED else 16}

# A multiple of every BK.
CHAIN = tl.constexpr(512)

# The order matches udml_kernels.reference.noise_regression.ACTIVATIONS.
IDENTITY, RELU, GELU, SILU = (tl.constexpr(i) for i in range(4))


@triton.jit
def normal_cdf(x):
    """The CDF of the standard normal distribution. csrc/math.h explains the float32 polynomial."""
    if x.dtype == tl.float64:
        return (tl.erf(x * 0.7071067811865476) + 1.0) * 0.5
    else:
        size = tl.where(x < 0.0, -x, x)
        t = 1.0 / (size * 0.282842712 + 1.0)
        p = t * -0.0334144535 + 0.218501768
        p = p * t - 0.546335723
        p = p * t + 0.609876438
        p = p * t - 0.335468827
        p = p * t + 0.299025116
        p = p * t + 0.120529798
        p = p * t + 0.216842462
        p = p * t + 0.224725066
        p = p * t + 0.225718357
        tail = p * t * 0.5 * exponential(x * x * -0.5)
        return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def activate(h, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        return tl.where(h < 0.0, 0.0, h)
    elif ACTIVATION == GELU:
        return h * normal_cdf(h)
    elif ACTIVATION == SILU:
        return h / (exponential(-h) + 1.0)
    else:
        return h


@triton.jit
def activation_backward(activation_gradient, h, ACTIVATION: tl.constexpr):
    """Compute dL/dh from dL/dactivate(h)."""
    if ACTIVATION == RELU:
        return tl.where(h <= 0.0, 0.0, activation_gradient)
    elif ACTIVATION == GELU:
        return activation_gradient * (normal_cdf(h) + h * exponential(h * h * -0.5) * 0.3989422804014327)
    elif ACTIVATION == SILU:
        s = 1.0 / (exponential(-h) + 1.0)
        return activation_gradient * (s * (h * (1.0 - s) + 1.0))
    else:
        return activation_gradient


@triton.jit
def place(row_blocks, BLOCKS: tl.constexpr, H: tl.constexpr, SHIFTED: tl.constexpr, R: tl.constexpr, HB: tl.constexpr):
    """Return a program's group, block of rows, row numbers (R, 1), block of hidden units, and the first of these units.

    A hidden unit is element m H + unit of its sample, and random numbers come in groups of four. If H is not a multiple
    of 4, blocks therefore begin up to 3 units early (the first one before unit 0).
    """
    pid = tl.program_id(0)
    block = pid % BLOCKS
    m = (pid // BLOCKS // row_blocks).to(tl.int64)
    row_block = pid // BLOCKS % row_blocks
    row = row_block.to(tl.int64) * R + tl.arange(0, R)[:, None]
    first = block * HB
    if SHIFTED:
        first -= ((m * H) % 4).to(tl.int32)
    return m, row_block, row, block, first


@triton.jit
def first_layer(net, m, row, rows, unit, exists, D: tl.constexpr, H: tl.constexpr, BK: tl.constexpr, C: tl.constexpr):
    """Compute weight1 . x + bias1 for a block, (R, HB)."""
    x = net[0] + (m * rows + row) * D
    weight = net[1] + (m * H + unit) * D
    sums = tl.zeros((row.shape[0], unit.shape[1]), C)
    total = sums
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(x + k[None, :], mask=(row < rows) & (k[None, :] < D), other=0)
        b = tl.load(weight + k[:, None], mask=exists & (k[:, None] < D), other=0)
        sums = tl.dot(widened(a, C), widened(b, C), sums, input_precision="ieee", out_dtype=C)
        if D > CHAIN:
            total, sums = end_chain(total, sums, start + BK)
    return total + sums + widened(tl.load(net[2] + m * H + unit, mask=exists, other=0), C)


@triton.jit
def end_chain(total, sums, terms):
    """After every CHAIN terms, add the sums to `total` and begin new ones: a longer float32 chain of additions
    exceeds the tolerance.
    """
    if total.dtype == tl.float32:
        if terms % CHAIN == 0:
            total += sums
            sums = tl.zeros_like(sums)
    return total, sums


@triton.jit
def kept_units(noise, stream, m, row, rows, first, p, H: tl.constexpr, HB: tl.constexpr):
    """Return the mask (R, HB) of the units in a block that dropout keeps."""
    if noise[0] is None:
        return row < rows
    else:
        block = ((m * H + first) // 4).to(tl.uint32) + tl.arange(0, HB // 4)[None, :].to(tl.uint32)
        w0, w1, w2, w3 = words(noise, stream, row, rows, block)
        return uniforms_of(w0, w1, w2, w3, HB, tl.float32) >= scalar(p, tl.float32)


@triton.jit
def apply_dropout(value, noise, keep, scale, C: tl.constexpr):
    """Apply dropout to units or to the gradients of its results."""
    if noise[0] is None:
        return value
    else:
        return tl.where(keep, value * scalar(scale, C), 0.0)


class Estimator:
    """The sizes and arguments of the kernels that process blocks of hidden units."""

    def __init__(self, std, weight1, bias1, weight2, activation, dropout_p, seed, stream, sample_ids):
        self.groups = std.shape[0] if std.dim() == 3 else 1
        self.rows, self.features = std.shape[-2:]
        self.hidden, self.outputs = weight1.shape[-2], weight2.shape[-2]
        self.shape = (*std.shape[:-1], self.outputs)
        self.dtype = checks.compute_dtype(std.dtype)
        self.row_blocks = ceil_div(self.rows, BLOCK["R"])
        shifted = self.groups > 1 and self.hidden % 4 != 0
        self.blocks = max(ceil_div(self.hidden + 3 * shifted, BLOCK["HB"]), 1)
        self.programs = self.groups * self.row_blocks * self.blocks
        self.net = tuple(t.contiguous() for t in (std, weight1, bias1, weight2))
        self.noise = noise_of(seed if dropout_p > 0 else None, sample_ids)
        self.stream = stream
        self.dropout = (dropout_p, 1 / (1 - dropout_p) if dropout_p < 1 else 0.0)
        self.sizes = {"D": self.features, "H": self.hidden, "C": triton_dtype(self.dtype)}
        self.constants = {
            **self.sizes, "OUTPUTS": self.outputs, "ACTIVATION": activation, "BLOCKS": self.blocks, "SHIFTED": shifted,
            **BLOCK, "num_warps": 2,
        }  # fmt: skip

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.net[0].device)
