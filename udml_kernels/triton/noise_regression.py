"""The noise estimator: two linear layers, then exp(o / 2) and its squared error.

Forward is two launches: the layers, cut into blocks of rows and hidden units, each giving its part of o; then the
sum of the parts, the noise and the loss (one launch more where the results need several programs). Backward is two as
well: dL/dhidden and what is summed over rows alone; then the products with the inputs and the first layer's weight.

Every block has one size whatever the batch, so that a row's results do not depend on the rows beside it. Products are
`input_precision="ieee"` also for half precision: tensor cores cut off the sums that they carry.
"""

import torch
import triton
import triton.language as tl

from ._estimator import Estimator, activated, dropped, first_layer, kept, place, through_activation
from ._launch import INTERPRETED, ceil_div, launch
from ._math import exponential, scalar
from ._rows import narrowed, widened
from ._sums import sum_runs

# Tiles of the gradients of std (rows, features) and weight1 (units, features), and the terms added in a step.
_TILE = {"TILE": 32, "DB": 64, "BK": 64 if INTERPRETED else 16}


@triton.jit
def _layers_kernel(
    parts, net, noise, groups, rows, row_blocks, p: tl.float64, scale: tl.float64, D: tl.constexpr, H: tl.constexpr,
    OUTPUTS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCKS: tl.constexpr, SHIFTED: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, HB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """parts (BLOCKS, M, B, O): what each block of units adds to o."""
    m, _, row, block, first = place(row_blocks, BLOCKS, H, SHIFTED, R, HB)
    unit = first + tl.arange(0, HB)[None, :]
    exists = (unit >= 0) & (unit < H)
    hidden = activated(first_layer(net, m, row, rows, unit, exists, D, H, BK, C), ACTIVATION)
    hidden = dropped(hidden, noise, kept(noise, m, row, rows, first, p, H, HB), scale, C)
    for out in range(OUTPUTS):
        weight = widened(tl.load(net[3] + (m * OUTPUTS + out) * H + unit, mask=exists, other=0), C)
        part = tl.sum(tl.where(exists, hidden * weight, 0.0), 1)[:, None]
        tl.store(parts + ((block * groups + m) * rows + row) * OUTPUTS + out, part, mask=row < rows)


@triton.jit
def _outputs_kernel(
    noise_out, o_out, squares, parts, bias2, target, rows, count, factor: tl.float64, OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The results from the parts of o; squares[program]: its squared errors times factor, one 0 without a target."""
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
def _by_output(incoming, index, mask, factor, C: tl.constexpr):
    """(dL/do, dL/dtarget); `incoming` is (grad_noise, grad_loss, o, target), the first two possibly None.

    In float64: a product that leaves the range of float32 may come back into it, by a factor of `noise` for one.
    """
    noise = exponential(tl.load(incoming[2] + index, mask=mask, other=0) * 0.5).to(tl.float64)
    by_error = tl.zeros_like(noise)
    if incoming[1] is not None:
        slope = tl.load(incoming[1]).to(tl.float64) * scalar(factor, tl.float64)
        by_error = slope * (noise - tl.load(incoming[3] + index, mask=mask, other=0).to(tl.float64))
    by_noise = by_error
    if incoming[0] is not None:
        by_noise += widened(tl.load(incoming[0] + index, mask=mask, other=0), C).to(tl.float64)
    return tl.where(mask, by_noise * noise * 0.5, 0.0).to(C), (-by_error).to(C)


@triton.jit
def _hidden_kernel(
    by_hidden, grad_target, partial, width, columns, incoming, net, noise, rows, row_blocks, factor: tl.float64,
    p: tl.float64, scale: tl.float64, ACTIVATION: tl.constexpr, D: tl.constexpr, H: tl.constexpr,
    OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr, SHIFTED: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    HB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """by_hidden (M, B, H): the gradient of the first layer's results.

    partial (row blocks, width): by block of rows, the gradients of bias1, weight2 and bias2, each from its entry of
    `columns` on. What is None (by_hidden, grad_target, a column) is not wanted.
    """
    m, row_block, row, block, first = place(row_blocks, BLOCKS, H, SHIFTED, R, HB)
    unit = first + tl.arange(0, HB)[None, :]
    exists = (unit >= 0) & (unit < H)
    inside = row < rows
    partial += row_block.to(tl.int64) * width
    h = tl.zeros((R, HB), C)
    hidden = h
    # Without an activation only weight2's gradient needs the first layer's results.
    if columns[1] is not None or ACTIVATION > 0:
        h = first_layer(net, m, row, rows, unit, exists, D, H, BK, C)
    # Behind the first layer, whose loop would have to carry it.
    keep = kept(noise, m, row, rows, first, p, H, HB)
    if columns[1] is not None:
        hidden = dropped(activated(h, ACTIVATION), noise, keep, scale, C)
    by_result = tl.zeros((R, HB), C)
    # What a row has of its own is in one dimension: as (R, 1) it cost more registers, and spilled on sm_100.
    line = row_block.to(tl.int64) * R + tl.arange(0, R)
    for out in range(OUTPUTS):
        index = (m * rows + line) * OUTPUTS + out
        weight = (m * OUTPUTS + out) * H + unit
        by_o, by_target = _by_output(incoming, index, line < rows, factor, C)
        if grad_target is not None:
            tl.store(grad_target + index, by_target, mask=(line < rows) & (block == 0))
        if columns[2] is not None:
            tl.store(partial + columns[2] + m * OUTPUTS + out, tl.sum(by_o, 0), mask=block == 0)
        by_o = by_o[:, None]
        by_result += by_o * widened(tl.load(net[3] + weight, mask=exists, other=0), C)
        if columns[1] is not None:
            sums = tl.sum(tl.where(inside, hidden * by_o, 0.0), 0)[None, :]
            tl.store(partial + columns[1] + weight, sums, mask=exists)
    by_result = through_activation(dropped(by_result, noise, keep, scale, C), h, ACTIVATION)
    if by_hidden is not None:
        tl.store(by_hidden + (m * rows + row) * H + unit, by_result, mask=inside & exists)
    if columns[0] is not None:
        sums = tl.sum(tl.where(inside, by_result, 0.0), 0)[None, :]
        tl.store(partial + columns[0] + m * H + unit, sums, mask=exists)


@triton.jit
def _std_tile(
    out, by_hidden, weight, pid, row_tiles, rows, D: tl.constexpr, H: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr, DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """by_hidden . weight1, of a tile of rows and features."""
    across: tl.constexpr = (D + DB - 1) // DB
    d = pid % across * DB + tl.arange(0, DB)[None, :]
    m = (pid // across // row_tiles).to(tl.int64)
    row = (pid // across % row_tiles).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None]
    sums = tl.zeros((TILE, DB), C)
    for start in range(0, H, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(by_hidden + (m * rows + row) * H + k[None, :], mask=(row < rows) & (k[None, :] < H), other=0)
        b = tl.load(weight + (m * H + k[:, None]) * D + d, mask=(k[:, None] < H) & (d < D), other=0)
        sums = tl.dot(a, widened(b, C), sums, input_precision="ieee", out_dtype=C)
    tl.store(out + (m * rows + row) * D + d, narrowed(sums, out.dtype.element_ty), mask=(row < rows) & (d < D))


@triton.jit
def _weight1_operands(by_hidden, x, m, unit, d, start, rows, D: tl.constexpr, H: tl.constexpr, BK: tl.constexpr):
    row = start + tl.arange(0, BK).to(tl.int64)
    base = m * rows + row
    a = tl.load(by_hidden + base[None, :] * H + unit, mask=(unit < H) & (row[None, :] < rows), other=0)
    b = tl.load(x + base[:, None] * D + d, mask=(row[:, None] < rows) & (d < D), other=0)
    return a, b


@triton.jit
def _weight1_tile(
    out, by_hidden, x, pid, rows, D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
    DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """by_hidden^T . x, of a tile of hidden units and features."""
    across: tl.constexpr = (D + DB - 1) // DB
    down: tl.constexpr = (H + TILE - 1) // TILE
    d = pid % across * DB + tl.arange(0, DB)[None, :]
    unit = pid // across % down * TILE + tl.arange(0, TILE)[:, None]
    m = (pid // across // down).to(tl.int64)
    sums = tl.zeros((TILE, DB), C)
    # A loop over a number argument is no range in the interpreter, and a `while` is not pipelined: by hand, then.
    start = 0
    a, b = _weight1_operands(by_hidden, x, m, unit, d, start, rows, D, H, BK)
    while start < rows:
        start += BK
        next_a, next_b = _weight1_operands(by_hidden, x, m, unit, d, start, rows, D, H, BK)
        sums = tl.dot(a, widened(b, C), sums, input_precision="ieee", out_dtype=C)
        a, b = next_a, next_b
    tl.store(out + (m * H + unit) * D + d, narrowed(sums, out.dtype.element_ty), mask=(unit < H) & (d < D))


@triton.jit
def _store_columns(grad, sums, column, first, size):
    if grad is not None:
        index = column - first
        tl.store(grad + index, narrowed(sums, grad.dtype.element_ty), mask=(index >= 0) & (index < size))


@triton.jit
def _sums_tile(grads, partial, pid, row_blocks, width, columns, sizes, TILE: tl.constexpr, DB: tl.constexpr):
    """Sums over the blocks of rows, in their order and in float64, of a tile of `partial`'s columns."""
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


@triton.jit
def _gradients_kernel(
    grads, by_hidden, net, partial, width, columns, sizes, rows, row_blocks, row_tiles, std_tiles, weight_tiles,
    D: tl.constexpr, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, DB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`grads` in the order of the inputs, None where not wanted."""
    pid = tl.program_id(0)
    if pid < std_tiles:
        if grads[0] is not None:
            _std_tile(grads[0], by_hidden, net[1], pid, row_tiles, rows, D, H, C, TILE, DB, BK)
    elif pid < std_tiles + weight_tiles:
        if grads[1] is not None:
            _weight1_tile(grads[1], by_hidden, net[0], pid - std_tiles, rows, D, H, C, TILE, DB, BK)
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
        _layers_kernel, std.device, e.programs, parts, e.net, e.noise, e.groups, e.rows, e.row_blocks, *e.dropout,
        **e.constants,
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
    by_hidden = e.empty(e.groups, e.rows, e.hidden) if wanted[0] or wanted[1] else None
    sizes = tuple(t.numel() for t in (bias1, weight2, bias2))
    columns, width = [], 0
    for size, want in zip(sizes, wanted[2:5], strict=True):
        columns.append(width if want else None)
        width += size * want
    partial = e.empty(e.row_blocks, width)
    truth = None if target is None else target.contiguous()
    by_noise = None if grad_noise is None else grad_noise.contiguous()
    incoming = (by_noise, None if target is None else grad_loss, o.contiguous(), truth)
    launch(
        _hidden_kernel, std.device, e.programs, by_hidden, grads[5], partial, width, tuple(columns), incoming, e.net,
        e.noise, e.rows, e.row_blocks, 2 / max(o.numel(), 1), *e.dropout, **e.constants,
    )  # fmt: skip
    row_tiles, across = ceil_div(e.rows, _TILE["TILE"]), ceil_div(e.features, _TILE["DB"])
    std_tiles = e.groups * row_tiles * across * wanted[0]
    weight_tiles = e.groups * ceil_div(e.hidden, _TILE["TILE"]) * across * wanted[1]
    launch(
        _gradients_kernel, std.device, std_tiles + weight_tiles + ceil_div(width, _TILE["DB"]), grads, by_hidden, e.net,
        partial, width, tuple(columns), sizes, e.rows, e.row_blocks, row_tiles, std_tiles, weight_tiles,
        **e.sizes, **_TILE,
    )  # fmt: skip
    return results
