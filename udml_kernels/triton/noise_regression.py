"""The noise estimator: two linear layers, then exp(o / 2) and its squared error.

The forward pass has two launches. The first divides the layers into blocks of rows and hidden units, each of which
computes a part of o; the second sums the parts and computes the noise and the loss (one more launch sums the loss if
the results need several programs). The backward pass has two launches as well: the first computes dL/dhidden and sums
over rows, the second the products with the inputs and with weight1.

The size of a block does not depend on the batch, so the results of a row do not depend on the number of rows. Products
use `input_precision="ieee"` also for half precision, because tensor cores truncate their accumulators.
"""

import torch
import triton
import triton.language as tl

from ._estimator import (
    CHAIN,
    Estimator,
    activate,
    activation_backward,
    apply_dropout,
    end_chain,
    first_layer,
    kept_units,
    place,
)
from ._launch import INTERPRETED, ceil_div, launch
from ._math import exponential, scalar
from ._rows import narrowed, widened
from ._sums import sum_runs

# The tiles of the gradients of std (rows, features) and weight1 (units, features), and the number of terms per step.
_TILE = {"TILE": 32, "DB": 64, "BK": 64 if INTERPRETED else 16}


@triton.jit(do_not_specialize=["stream", "groups", "rows", "row_blocks"])
def _layers_kernel(
    parts, net, noise, stream: tl.uint32, groups, rows, row_blocks, p: tl.float64, scale: tl.float64,
    D: tl.constexpr, H: tl.constexpr, OUTPUTS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCKS: tl.constexpr,
    SHIFTED: tl.constexpr, C: tl.constexpr, R: tl.constexpr, HB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """parts (BLOCKS, M, B, O): the contribution of each block of hidden units to o."""
    m, _, row, block, first = place(row_blocks, BLOCKS, H, SHIFTED, R, HB)
    unit = first + tl.arange(0, HB)[None, :]
    exists = (unit >= 0) & (unit < H)
    hidden = activate(first_layer(net, m, row, rows, unit, exists, D, H, BK, C), ACTIVATION)
    hidden = apply_dropout(hidden, noise, kept_units(noise, stream, m, row, rows, first, p, H, HB), scale, C)
    for out in range(OUTPUTS):
        weight = widened(tl.load(net[3] + (m * OUTPUTS + out) * H + unit, mask=exists, other=0), C)
        part = tl.sum(tl.where(exists, hidden * weight, 0.0), 1)[:, None]
        tl.store(parts + ((block * groups + m) * rows + row) * OUTPUTS + out, part, mask=row < rows)


@triton.jit
def _outputs_kernel(
    noise_out, o_out, squares, parts, bias2, target, rows, count, factor: tl.float64, OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the results from the parts of o. squares[program] is its squared errors times factor, or 0."""
    pid = tl.program_id(0)
    index = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    bias = bias2 + index // (rows * OUTPUTS) * OUTPUTS + index % OUTPUTS
    total = widened(tl.load(bias, mask=mask, other=0), C).to(tl.float64)
    part = parts + index
    for _ in range(BLOCKS):
        total += tl.load(part, mask=mask, other=0).to(tl.float64)
        part += count
    o = total.to(C)
    value = exponential(o * 0.5)
    tl.store(o_out + index, o, mask=mask)
    tl.store(noise_out + index, narrowed(value, noise_out.dtype.element_ty), mask=mask)
    if target is None:
        tl.store(squares, tl.full((), 0.0, C), mask=pid == 0)
    else:
        error = tl.where(mask, value - tl.load(target + index, mask=mask, other=0), 0.0).to(tl.float64)
        tl.store(squares + pid, (tl.sum(error * error, 0) * factor).to(C))


@triton.jit
def _output_gradients(incoming, index, mask, factor, C: tl.constexpr):
    """Return (dL/do, dL/dtarget). `incoming` is (grad_noise, grad_loss, o, target); the first two may be None.

    The arithmetic is float64: a product may leave the range of float32 although its product with `noise` does not.
    """
    noise = exponential(tl.load(incoming[2] + index, mask=mask, other=0) * 0.5, False).to(tl.float64)
    error_gradient = tl.zeros_like(noise)
    if incoming[1] is not None:
        slope = tl.load(incoming[1]).to(tl.float64) * scalar(factor, tl.float64)
        error_gradient = slope * (noise - tl.load(incoming[3] + index, mask=mask, other=0).to(tl.float64))
    noise_gradient = error_gradient
    if incoming[0] is not None:
        noise_gradient += widened(tl.load(incoming[0] + index, mask=mask, other=0), C).to(tl.float64)
    return tl.where(mask, noise_gradient * noise * 0.5, 0.0).to(C), (-error_gradient).to(C)


@triton.jit(do_not_specialize=["stream"])
def _hidden_kernel(
    hidden_gradient, grad_target, partial, width, columns, incoming, net, noise, stream: tl.uint32, rows, row_blocks,
    factor: tl.float64, p: tl.float64, scale: tl.float64, ACTIVATION: tl.constexpr, D: tl.constexpr, H: tl.constexpr,
    OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr, SHIFTED: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    HB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """hidden_gradient (M, B, H): the gradient of the first layer's results.

    partial (row blocks, width): for each block of rows, the gradients of bias1, weight2 and bias2. `columns` has the
    first column of each. hidden_gradient, grad_target and entries of `columns` are None if the gradient is not
    requested.
    """
    m, row_block, row, block, first = place(row_blocks, BLOCKS, H, SHIFTED, R, HB)
    unit = first + tl.arange(0, HB)[None, :]
    exists = (unit >= 0) & (unit < H)
    inside = row < rows
    partial += row_block.to(tl.int64) * width
    h = tl.zeros((R, HB), C)
    hidden = h
    # Without an activation only the gradient of weight2 needs the first layer's results.
    if columns[1] is not None or ACTIVATION > 0:
        h = first_layer(net, m, row, rows, unit, exists, D, H, BK, C)
    # This follows the first layer, whose loop would otherwise keep the mask in registers.
    keep = kept_units(noise, stream, m, row, rows, first, p, H, HB)
    if columns[1] is not None:
        hidden = apply_dropout(activate(h, ACTIVATION), noise, keep, scale, C)
    activation_gradient = tl.zeros((R, HB), C)
    # Values per row are one-dimensional: with shape (R, 1) they needed more registers, which spilled on sm_100.
    row_index = row_block.to(tl.int64) * R + tl.arange(0, R)
    for out in range(OUTPUTS):
        index = (m * rows + row_index) * OUTPUTS + out
        weight = (m * OUTPUTS + out) * H + unit
        o_gradient, target_gradient = _output_gradients(incoming, index, row_index < rows, factor, C)
        if grad_target is not None:
            tl.store(grad_target + index, target_gradient, mask=(row_index < rows) & (block == 0))
        if columns[2] is not None:
            tl.store(partial + columns[2] + m * OUTPUTS + out, tl.sum(o_gradient, 0), mask=block == 0)
        o_gradient = o_gradient[:, None]
        activation_gradient += o_gradient * widened(tl.load(net[3] + weight, mask=exists, other=0), C)
        if columns[1] is not None:
            sums = tl.sum(tl.where(inside, hidden * o_gradient, 0.0), 0)[None, :]
            tl.store(partial + columns[1] + weight, sums, mask=exists)
    activation_gradient = activation_backward(apply_dropout(activation_gradient, noise, keep, scale, C), h, ACTIVATION)
    if hidden_gradient is not None:
        tl.store(hidden_gradient + (m * rows + row) * H + unit, activation_gradient, mask=inside & exists)
    if columns[0] is not None:
        sums = tl.sum(tl.where(inside, activation_gradient, 0.0), 0)[None, :]
        tl.store(partial + columns[0] + m * H + unit, sums, mask=exists)


@triton.jit
def _std_tile(
    out, hidden_gradient, weight, pid, row_tiles, rows, D: tl.constexpr, H: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr, DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute hidden_gradient . weight1 for a tile of rows and features."""
    across: tl.constexpr = (D + DB - 1) // DB
    d = pid % across * DB + tl.arange(0, DB)[None, :]
    m = (pid // across // row_tiles).to(tl.int64)
    row = (pid // across % row_tiles).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    sums = tl.zeros((TILE, DB), C)
    total = sums
    for start in range(0, H, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(hidden_gradient + (m * rows + row) * H + k[None, :], mask=(row < rows) & (k[None, :] < H), other=0)
        b = tl.load(weight + (m * H + k[:, None]) * D + d, mask=(k[:, None] < H) & (d < D), other=0)
        sums = tl.dot(a, widened(b, C), sums, input_precision="ieee", out_dtype=C)
        if H > CHAIN:
            total, sums = end_chain(total, sums, start + BK)
    tl.store(out + (m * rows + row) * D + d, narrowed(total + sums, out.dtype.element_ty), mask=(row < rows) & (d < D))


@triton.jit
def _weight1_operands(hidden_gradient, x, m, unit, d, start, rows, D: tl.constexpr, H: tl.constexpr, BK: tl.constexpr):
    row = start + tl.arange(0, BK).to(tl.int64)
    base = m * rows + row
    a = tl.load(hidden_gradient + base[None, :] * H + unit, mask=(unit < H) & (row[None, :] < rows), other=0)
    b = tl.load(x + base[:, None] * D + d, mask=(row[:, None] < rows) & (d < D), other=0)
    return a, b


@triton.jit
def _weight1_tile(
    out, hidden_gradient, x, pid, rows, D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute hidden_gradient^T . x for a tile of hidden units and features."""
    across: tl.constexpr = (D + DB - 1) // DB
    down: tl.constexpr = (H + TILE - 1) // TILE
    d = pid % across * DB + tl.arange(0, DB)[None, :]
    unit = pid // across % down * TILE + tl.arange(0, TILE)[:, None]
    m = (pid // across // down).to(tl.int64)
    sums = tl.zeros((TILE, DB), C)
    total = sums
    # The interpreter has no range over a number argument, and Triton does not pipeline `while` loops, so the code
    # pipelines the loads.
    start = 0
    a, b = _weight1_operands(hidden_gradient, x, m, unit, d, start, rows, D, H, BK)
    while start < rows:
        start += BK
        next_a, next_b = _weight1_operands(hidden_gradient, x, m, unit, d, start, rows, D, H, BK)
        sums = tl.dot(a, widened(b, C), sums, input_precision="ieee", out_dtype=C)
        total, sums = end_chain(total, sums, start)
        a, b = next_a, next_b
    tl.store(out + (m * H + unit) * D + d, narrowed(total + sums, out.dtype.element_ty), mask=(unit < H) & (d < D))


@triton.jit
def _store_columns(grad, sums, column, first, size):
    if grad is not None:
        index = column - first
        tl.store(grad + index, narrowed(sums, grad.dtype.element_ty), mask=(index >= 0) & (index < size))


@triton.jit
def _sums_tile(grads, partial, pid, row_blocks, width, columns, sizes, TILE: tl.constexpr, DB: tl.constexpr):
    """Sum a tile of the columns of `partial` over the blocks of rows, in order and in float64."""
    column = pid * DB + tl.arange(0, DB)[None, :]
    total = tl.zeros((TILE, DB), tl.float64)
    start = 0
    while start < row_blocks:
        block = start + tl.arange(0, TILE).to(tl.int64)[:, None]
        mask = (block < row_blocks) & (column < width)
        total += tl.load(partial + block * width + column, mask=mask, other=0).to(tl.float64)
        start += TILE
    sums = tl.sum(total, 0)[None, :].to(partial.dtype.element_ty)
    _store_columns(grads[2], sums, column, columns[0], sizes[0])
    _store_columns(grads[3], sums, column, columns[1], sizes[1])
    _store_columns(grads[4], sums, column, columns[2], sizes[2])


@triton.jit(do_not_specialize=["width", "rows", "row_blocks", "row_tiles", "std_tiles", "weight_tiles"])
def _gradients_kernel(
    grads, hidden_gradient, net, partial, width, columns, sizes, rows, row_blocks, row_tiles, std_tiles, weight_tiles,
    D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`grads` has the order of the inputs, with None if a gradient is not requested."""
    pid = tl.program_id(0)
    if pid < std_tiles:
        if grads[0] is not None:
            _std_tile(grads[0], hidden_gradient, net[1], pid, row_tiles, rows, D, H, C, TILE, DB, BK)
    elif pid < std_tiles + weight_tiles:
        if grads[1] is not None:
            _weight1_tile(grads[1], hidden_gradient, net[0], pid - std_tiles, rows, D, H, C, TILE, DB, BK)
    else:
        tile = pid - std_tiles - weight_tiles
        _sums_tile(grads, partial, tile, row_blocks, width, columns, sizes, TILE, DB)


def noise_regression(
    std, weight1, bias1, weight2, bias2, target, activation, dropout_p, seed, stream, sample_ids
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    e = Estimator(std, weight1, bias1, weight2, activation, dropout_p, seed, stream, sample_ids)
    noise, o = std.new_empty(e.shape), e.empty(*e.shape)
    count = o.numel()
    if count == 0:
        return noise, torch.zeros((), dtype=e.dtype, device=std.device), o
    parts = e.empty(e.blocks, count)
    launch(
        _layers_kernel, std.device, e.programs, parts, e.net, e.noise, e.stream, e.groups, e.rows, e.row_blocks,
        *e.dropout, **e.constants,
    )  # fmt: skip
    programs = ceil_div(count, 256)
    squares = e.empty(1, 1 if target is None else programs)
    launch(
        _outputs_kernel, std.device, programs, noise, o, squares, parts, bias2.contiguous(),
        None if target is None else target.contiguous(), e.rows, count, 1 / count,
        OUTPUTS=e.outputs, BLOCKS=e.blocks, C=e.sizes["C"], BLOCK=256,
    )  # fmt: skip
    return noise, squares.view(()) if squares.numel() == 1 else sum_runs(squares, ()), o


def noise_regression_backward(
    grad_noise, grad_loss, std, weight1, bias1, weight2, bias2, target, activation, dropout_p, seed, stream,
    sample_ids, o, needs,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    inputs = (std, weight1, bias1, weight2, bias2, target)
    wanted = [t is not None and bool(needs >> i & 1) for i, t in enumerate(inputs)]
    e = Estimator(std, weight1, bias1, weight2, activation, dropout_p, seed, stream, sample_ids)
    if e.rows == 0:
        return tuple(t.new_zeros(t.shape) if want else std.new_empty(0) for t, want in zip(inputs, wanted, strict=True))
    results = tuple(t.new_empty(t.shape) if want else std.new_empty(0) for t, want in zip(inputs, wanted, strict=True))
    grads = tuple(grad if want else None for grad, want in zip(results, wanted, strict=True))
    hidden_gradient = e.empty(e.groups, e.rows, e.hidden) if wanted[0] or wanted[1] else None
    sizes = tuple(t.numel() for t in (bias1, weight2, bias2))
    columns, width = [], 0
    for size, want in zip(sizes, wanted[2:5], strict=True):
        columns.append(width if want else None)
        width += size * want
    partial = e.empty(e.row_blocks, width)
    targets = None if target is None else target.contiguous()
    noise_gradient = None if grad_noise is None else grad_noise.contiguous()
    incoming = (noise_gradient, None if target is None else grad_loss, o.contiguous(), targets)
    launch(
        _hidden_kernel, std.device, e.programs, hidden_gradient, grads[5], partial, width, tuple(columns), incoming,
        e.net, e.noise, e.stream, e.rows, e.row_blocks, 2 / max(o.numel(), 1), *e.dropout, **e.constants,
    )  # fmt: skip
    row_tiles, across = ceil_div(e.rows, _TILE["TILE"]), ceil_div(e.features, _TILE["DB"])
    std_tiles = e.groups * row_tiles * across * wanted[0]
    weight_tiles = e.groups * ceil_div(e.hidden, _TILE["TILE"]) * across * wanted[1]
    launch(
        _gradients_kernel, std.device, std_tiles + weight_tiles + ceil_div(width, _TILE["DB"]), grads, hidden_gradient,
        e.net, partial, width, tuple(columns), sizes, e.rows, e.row_blocks, row_tiles, std_tiles, weight_tiles,
        **e.sizes, **_TILE,
    )  # fmt: skip
    return results
