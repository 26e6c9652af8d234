"""fusion_weights and weighted_fusion: features read once, results written once, weights formed again in each program.

Tiles of R x BLOCK elements, in two shapes:

    weights per sample      R samples x BLOCK elements of a flattened sample; a tile's weights are (R, 1)
    weights per location    R channels x BLOCK locations of one sample; a tile's weights are (1, BLOCK)

An element is addressed by (row, major, minor): its sample, then the tile's first element and a lane, or its channel
and its location.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import ceil_div, empty, launch, next_power_of_2
from ._rows import Rows, Tiles, _collapsed, narrowed, pointers, rows_of, widened
from ._weighting import (
    Weighting,
    dependency_gradient,
    dependency_sums,
    entries_of,
    load_entries,
    of_modality,
    positions,
    row_tiles,
    store_entries,
    weigh,
    weighting_of,
    weights_gradient,
)

_CONCAT, _SUM = 0, 1
# Elements of a tile of positions x modalities.
_ENTRIES = 256
# Beside the layouts of _rows: planes of locations, a channel `outer stride` from the next.
PLANES = tl.constexpr(3)


@triton.jit
def _weights_kernel(
    out, inputs, rows, locations, across, inverse_temperature: tl.float64, total: tl.float64, PLANES: tl.constexpr,
    M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, TOTAL: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    at = positions(pid // across, pid % across, rows, locations, PLANES, P)
    weighed = weigh(inputs, at, inverse_temperature, total, M, MP, G, TOTAL, C)
    store_entries(out, at, locations, weighed[0], M, MP)


@triton.jit
def _weights_backward_kernel(
    grad, dots, parts, grad_s, sums, inputs, rows, locations, across, inverse_temperature: tl.float64,
    total: tl.float64, PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    G: tl.constexpr, TOTAL: tl.constexpr, C: tl.constexpr, P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`dots` (B, M, parts), where weights are per sample: to be summed and added to `grad`."""
    pid = tl.program_id(0)
    at = positions(pid // across, pid % across, rows, locations, PLANES, P)
    by_weight = tl.zeros((P, MP), tl.float64)
    if grad[0] is not None:
        by_weight += load_entries(grad, at, 0.0, M, MP)
    if dots is not None:
        m = tl.arange(0, MP)[None, :, None]
        lane = tl.arange(0, PARTS)[None, None, :]
        summed = tl.zeros((P, MP, PARTS), tl.float64)
        part = 0
        while part < parts:
            run = dots + (at[0][:, :, None] * M + m) * parts + part + lane
            summed += tl.load(run, mask=at[2][:, :, None] & (m < M) & (part + lane < parts), other=0)
            part += PARTS
        by_weight += tl.sum(summed, 2)
    weighed = weigh(inputs, at, inverse_temperature, total, M, MP, G, TOTAL, C)
    weights_gradient(
        weighed, by_weight, grad_s, sums, at, locations, pid % across, across, inverse_temperature, PLANES, PER_SAMPLE,
        M, MP, G, C,
    )  # fmt: skip


@triton.jit
def _place(pid, rows, locations, across, blocks, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """A program's positions, and the (row, major, minor, whether there is such a position) of its elements."""
    lane = tl.arange(0, BLOCK)[None, :]
    tile = pid % across
    if LAYOUT == PLANES:
        at = positions(pid // (across * blocks), tile, rows, locations, True, BLOCK)
        major = (pid // across % blocks).to(tl.int64) * R + tl.arange(0, R)[:, None]
        minor = tile.to(tl.int64) * BLOCK + lane
        place = (at[0], major, minor, minor < locations)
    else:
        at = positions(pid // across, tile, rows, locations, False, R)
        place = (at[0], tile.to(tl.int64) * BLOCK, lane, at[2])
    return at, place


@triton.jit
def _exists(place, extent, LAYOUT: tl.constexpr):
    """Which elements exist of a modality with `extent` channels, or elements in a row."""
    if LAYOUT == PLANES:
        return place[3] & (place[1] < extent)
    else:
        return place[3] & (place[2] < extent - place[1])


@triton.jit
def _along(values, LAYOUT: tl.constexpr):
    """What positions (P,) have, as the elements of a tile have it; of one sample a scalar, which needs no layout."""
    if LAYOUT == PLANES:
        return values[None, :]
    elif values.shape[0] == 1:
        return tl.sum(values, 0)
    else:
        return values[:, None]


@triton.jit
def _address(x, place, LAYOUT: tl.constexpr):
    if LAYOUT == PLANES:
        return x[0] + place[0] * x[1] + place[1] * x[3] + place[2] * x[4]
    else:
        return pointers(x, place[0], place[1], place[2], LAYOUT)


@triton.jit
def _read(x, place, exists, LAYOUT: tl.constexpr, C: tl.constexpr):
    return widened(tl.load(_address(x, place, LAYOUT), mask=exists, other=0), C)


@triton.jit
def _write(out, place, value, exists, LAYOUT: tl.constexpr):
    """Results are dense within their rows, unless in planes."""
    address = _address(out, place, LAYOUT if LAYOUT == PLANES else 0)
    tl.store(address, narrowed(value, out[0].dtype.element_ty), mask=exists)


@triton.jit
def _fuse_kernel(
    features, fused, extents, weights, inputs, rows, locations, across, blocks, inverse_temperature: tl.float64,
    total: tl.float64, SUM: tl.constexpr, RESIDUAL: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr,
    TOTAL: tl.constexpr, C: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    at, place = _place(pid, rows, locations, across, blocks, LAYOUT, R, BLOCK)
    weighed = weigh(inputs, at, inverse_temperature, total, M, MP, G, TOTAL, C)
    weight, present = weighed[0], weighed[1]
    together = tl.zeros((R, BLOCK), C)
    for m in tl.static_range(M):
        exists = _exists(place, extents[m], LAYOUT)
        factor = _along(of_modality(weight, m, MP), LAYOUT)
        # An absent modality is exactly 0 whatever its features hold: where that goes by rows, they are not even read.
        if RESIDUAL:
            scaled = _read(features[m], place, exists, LAYOUT, C) * (factor + 1.0)
        elif inputs[2][0] is None:
            scaled = _read(features[m], place, exists, LAYOUT, C) * factor
        elif LAYOUT == PLANES:
            scaled = _read(features[m], place, exists, LAYOUT, C) * factor
            scaled = tl.where(_along(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0, scaled, 0.0)
        else:
            here = _along(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0
            scaled = _read(features[m], place, exists & here, LAYOUT, C) * factor
        if SUM:
            together += scaled
        else:
            _write(fused[m], place, scaled, exists, LAYOUT)
    if SUM:
        _write(fused[0], place, together, _exists(place, extents[0], LAYOUT), LAYOUT)
    # The first of the programs that have these positions.
    if (pid // across % blocks if LAYOUT == PLANES else pid % across) == 0:
        store_entries(weights, at, locations, weight, M, MP)


@triton.jit
def _unfuse_tile(grad, feature, grad_feature, place, extent, factor, here, RESIDUAL: tl.constexpr, MASKED: tl.constexpr,
                 C: tl.constexpr, LAYOUT: tl.constexpr):  # fmt: skip
    """Writes the features' gradient of a tile; returns the products whose sum is the weight's."""
    exists = _exists(place, extent, LAYOUT)
    # Residual features of an absent modality pass, but its weight is no variable.
    read = exists & here if MASKED and LAYOUT != PLANES else exists
    f = _read(feature, place, read, LAYOUT, C)
    g = _read(grad, place, exists if RESIDUAL else read, LAYOUT, C)
    by_feature = g * factor
    if MASKED and not RESIDUAL:
        by_feature = tl.where(here, by_feature, 0.0)
    _write(grad_feature, place, by_feature, exists, LAYOUT)
    return g * f


@triton.jit
def _unfuse_kernel(
    grads, features, grad_features, extents, grad_weights, grad_s, sums, dots, inputs, rows, locations, across,
    inverse_temperature: tl.float64, total: tl.float64, SUM: tl.constexpr, RESIDUAL: tl.constexpr,
    PER_SAMPLE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, TOTAL: tl.constexpr, C: tl.constexpr,
    LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program has its locations in all channels. It may have a part of a row only: then its dots go to `dots`."""
    pid = tl.program_id(0)
    MASKED: tl.constexpr = inputs[2][0] is not None
    at, place = _place(pid, rows, locations, across, 1, LAYOUT, R, BLOCK)
    weighed = weigh(inputs, at, inverse_temperature, total, M, MP, G, TOTAL, C)
    weight, present = weighed[0], weighed[1]
    # In double: of the dots their differences count, which may be a thousandth of them.
    by_weight = tl.zeros(weight.shape, tl.float64)
    for m in tl.static_range(M):
        grad = grads[0] if SUM else grads[m]
        factor = _along(of_modality(weight, m, MP), LAYOUT)
        here = _along(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0
        if RESIDUAL:
            factor += 1.0
        if LAYOUT == PLANES:
            products = tl.zeros((R, BLOCK), C)
            channel = 0
            while channel < extents[m]:
                products += _unfuse_tile(
                    grad, features[m], grad_features[m], (place[0], place[1] + channel, place[2], place[3]),
                    extents[m], factor, here, RESIDUAL, MASKED, C, LAYOUT,
                )  # fmt: skip
                channel += R
            dot = tl.sum(products.to(tl.float64), 0)[:, None]
        else:
            products = _unfuse_tile(
                grad, features[m], grad_features[m], place, extents[m], factor, here, RESIDUAL, MASKED, C, LAYOUT
            )
            dot = _along(tl.sum(products.to(tl.float64), 1), LAYOUT)
        by_weight = tl.where(tl.arange(0, MP)[None, :] == m, dot, by_weight)
    by_weight = tl.where(present, by_weight, 0.0)
    tile = pid % across
    if dots is not None:
        lane = tl.arange(0, MP)[None, :]
        tl.store(dots + (at[0] * M + lane) * across + tile, by_weight, mask=at[2] & (lane < M))
    else:
        if grad_weights[0] is not None:
            by_weight += load_entries(grad_weights, at, 0.0, M, MP)
        weights_gradient(
            weighed, by_weight, grad_s, sums, at, locations, tile, across, inverse_temperature, LAYOUT == PLANES,
            PER_SAMPLE, M, MP, G, C,
        )  # fmt: skip


def _plane_tiles(weighting: Weighting, extent: int, elements: int) -> tuple[Tiles, int, int]:
    """Tiles of R channels x BLOCK locations, how many make up the channels, and the warps for one.

    Narrow ones: there are more of them, and the weights of all modalities at a tile's locations fit in registers.
    """
    widest = min(next_power_of_2(weighting.locations), 512 // weighting.constants["MP"])
    channels = min(next_power_of_2(extent), elements // min(widest, 64))
    block = min(widest, elements // channels)
    across = ceil_div(weighting.locations, block)
    warps = 8 if channels * block > 2048 else 4
    return Tiles(channels, block, across, weighting.rows * across), ceil_div(extent, channels), warps


def _planes_of(t: Tensor, locations: int) -> Rows:
    dims = _collapsed(t.shape[2:], t.stride()[2:])
    if len(dims) > 1:
        t = t.contiguous()
        dims = [(locations, 1)]
    return Rows(t, t.stride(0), locations, t.stride(1), dims[0][1])


def _readable(tensors: list[Tensor], weighting: Weighting) -> tuple[tuple, int]:
    if weighting.planes:
        return tuple(_planes_of(t, weighting.locations) for t in tensors), PLANES.value
    rows, layout = rows_of(*tensors)
    return tuple(rows), layout


def _extents(features: list[Tensor], weighting: Weighting) -> tuple[int, ...]:
    """Of every modality its channels, where weights are per location, or the elements of a row."""
    return tuple(f.shape[1] if weighting.planes else math.prod(f.shape[1:]) for f in features)


def _parts(fused: list[Tensor], features: list[Tensor], mode: int) -> list[Tensor]:
    """Where each modality is in the fused tensors; the modalities of a sum share one."""
    return list(fused[0].split([f.shape[1] for f in features], 1)) if mode == _CONCAT else fused


def _allocated(features: list[Tensor], mode: int) -> list[Tensor]:
    first = features[0]
    if mode == _CONCAT:
        return [empty((first.shape[0], sum(f.shape[1] for f in features), *first.shape[2:]), first.dtype, first)]
    return [empty(f.shape, f.dtype, f) for f in (features[:1] if mode == _SUM else features)]


def _position_tiles(weighting: Weighting, lanes: int = 1) -> tuple[int, int, int]:
    """(positions of a tile, tiles of a sample's locations, programs), by the number of locations alone."""
    count = max(_ENTRIES // (weighting.constants["MP"] * lanes), 1)
    if not weighting.planes:
        return count, 1, ceil_div(weighting.rows, count)
    count = min(next_power_of_2(weighting.locations), count)
    across = ceil_div(weighting.locations, count)
    return count, across, weighting.rows * across


def fusion_weights(uncertainty, dependency, mask, g, temperature, total) -> Tensor:
    out = empty(uncertainty.shape, uncertainty.dtype, uncertainty)
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total)
    count, across, programs = _position_tiles(weighting)
    launch(
        _weights_kernel, out.device, programs, out, weighting.inputs, weighting.rows, weighting.locations, across,
        *weighting.numbers, PLANES=weighting.planes, P=count, **weighting.constants,
    )  # fmt: skip
    return out


def _weights_backward(weighting: Weighting, like: Tensor, grad, dots, needs_dependency) -> tuple[Tensor, Tensor]:
    grad_s = empty(like.shape, like.dtype, like)
    parts = 1 if dots is None else dots.shape[2]
    lanes = min(next_power_of_2(parts), 32)
    count, across, programs = _position_tiles(weighting, lanes)
    sums = dependency_sums(weighting, like, needs_dependency, across, programs)
    launch(
        _weights_backward_kernel, like.device, programs, entries_of(grad), dots, parts, grad_s, sums, weighting.inputs,
        weighting.rows, weighting.locations, across, *weighting.numbers, PLANES=weighting.planes,
        PER_SAMPLE=weighting.per_sample, P=count, PARTS=lanes, **weighting.constants,
    )  # fmt: skip
    return grad_s, dependency_gradient(weighting, like, sums)


def fusion_weights_backward(grad, uncertainty, dependency, mask, g, temperature, total, needs_dependency):
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total)
    return _weights_backward(weighting, uncertainty, grad, None, needs_dependency)


def weighted_fusion(features, uncertainty, dependency, mask, mode, residual, g, temperature, total):
    fused, weights = _allocated(features, mode), empty(uncertainty.shape, uncertainty.dtype, uncertainty)
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total)
    extents = _extents(features, weighting)
    if weighting.planes:
        tiles, blocks, warps = _plane_tiles(weighting, max(extents), 2048)
    else:
        (tiles, warps), blocks = row_tiles(weighting.rows, max(extents), 2048, uncertainty.element_size()), 1
    sources, layout = _readable(features, weighting)
    targets, _ = _readable(_parts(fused, features, mode), weighting)
    launch(
        _fuse_kernel, weights.device, tiles.programs * blocks, sources, targets, extents, weights, weighting.inputs,
        weighting.rows, weighting.locations, tiles.across, blocks, *weighting.numbers, SUM=mode == _SUM,
        RESIDUAL=residual, LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK, num_warps=warps, **weighting.constants,
    )  # fmt: skip
    return fused, weights


def weighted_fusion_backward(
    grads, grad_weights, features, uncertainty, dependency, mask, mode, residual, g, temperature, total,
    needs_dependency,
):  # fmt: skip
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total)
    extents = _extents(features, weighting)
    if weighting.planes:
        tiles, _, warps = _plane_tiles(weighting, max(extents), 4096)
    else:
        tiles, warps = row_tiles(weighting.rows, max(extents), 4096, uncertainty.element_size())
    grad_features = [empty(f.shape, f.dtype, f) for f in features]
    incoming = _parts(grads, features, mode)
    sources, layout = _readable([*incoming, *features], weighting)
    targets, _ = _readable(grad_features, weighting)
    dots = grad_s = sums = None
    if not weighting.planes and tiles.across > 1:
        dots = empty((weighting.rows, len(features), tiles.across), torch.float64, uncertainty)
    else:
        grad_s = empty(uncertainty.shape, uncertainty.dtype, uncertainty)
        sums = dependency_sums(weighting, uncertainty, needs_dependency, tiles.across, tiles.programs)
    launch(
        _unfuse_kernel, uncertainty.device, tiles.programs, sources[: len(incoming)], sources[len(incoming) :],
        targets, extents, entries_of(grad_weights), grad_s, sums, dots, weighting.inputs, weighting.rows,
        weighting.locations, tiles.across, *weighting.numbers, SUM=mode == _SUM, RESIDUAL=residual,
        PER_SAMPLE=weighting.per_sample, LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK, num_warps=warps,
        **weighting.constants,
    )  # fmt: skip
    if dots is not None:
        return grad_features, *_weights_backward(weighting, uncertainty, grad_weights, dots, needs_dependency)
    return grad_features, grad_s, dependency_gradient(weighting, uncertainty, sums)
