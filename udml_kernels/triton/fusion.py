"""fusion_weights and weighted_fusion. Kernels read features once and write results once.

Each program computes the weights that it needs.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._features import PLANES, exists_in, expand_to_tile, place_of, plane_tiles, read_at, readable, write_at
from ._launch import ceil_div, empty, launch, next_power_of_2
from ._math import rounded_product
from ._weighting import (
    Weighting,
    compute_weights,
    entries_of,
    load_entries,
    of_modality,
    positions,
    row_tiles,
    store_entries,
    weighting_of,
)
from ._weighting_gradient import dependency_sums, finish_dependency_gradient, weights_gradient

_CONCAT, _SUM = 0, 1
# The elements of a tile of positions x modalities.
_ENTRIES = 256


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["across"])
def _weights_kernel(
    out, inputs, rows, locations, across, inverse_temperature: tl.float64, total: tl.float64, floor: tl.float64,
    reference: tl.float64, PLANES: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr,
    TOTAL: tl.constexpr, FLOOR: tl.constexpr, REFERENCE: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    at = positions(pid // across, pid % across, rows, locations, PLANES, P)
    computed = compute_weights(
        inputs, at, inverse_temperature, total, floor, reference, M, MP, G, TOTAL, FLOOR, REFERENCE, C
    )
    store_entries(out, at, locations, computed[0], M, MP)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["parts", "across"])
def _weights_backward_kernel(
    grad, dots, parts, grad_uncertainty, sums, inputs, rows, locations, across, inverse_temperature: tl.float64,
    total: tl.float64, floor: tl.float64, reference: tl.float64, PLANES: tl.constexpr, PER_SAMPLE: tl.constexpr,
    M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, TOTAL: tl.constexpr, FLOOR: tl.constexpr,
    REFERENCE: tl.constexpr, C: tl.constexpr, P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """If weights are per sample, the kernel sums `dots` (B, M, parts) and adds it to `grad`."""
    pid = tl.program_id(0)
    at = positions(pid // across, pid % across, rows, locations, PLANES, P)
    weight_gradient = tl.zeros((P, MP), tl.float64)
    if grad[0] is not None:
        weight_gradient += load_entries(grad, at, 0.0, M, MP)
    if dots is not None:
        m = tl.arange(0, MP)[None, :, None]
        lane = tl.arange(0, PARTS)[None, None, :]
        summed = tl.zeros((P, MP, PARTS), tl.float64)
        part = 0
        while part < parts:
            run = dots + (at[0][:, :, None] * M + m) * parts + part + lane
            summed += tl.load(run, mask=at[2][:, :, None] & (m < M) & (part + lane < parts), other=0)
            part += PARTS
        weight_gradient += tl.sum(summed, 2)
    computed = compute_weights(
        inputs, at, inverse_temperature, total, floor, reference, M, MP, G, TOTAL, FLOOR, REFERENCE, C
    )
    weights_gradient(
        computed, weight_gradient, grad_uncertainty, sums, at, locations, pid % across, across, inverse_temperature,
        PLANES, PER_SAMPLE, M, MP, G, REFERENCE, C,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["across", "blocks"])
def _fuse_kernel(
    features, fused, extents, weights, inputs, rows, locations, across, blocks, inverse_temperature: tl.float64,
    total: tl.float64, floor: tl.float64, reference: tl.float64, SUM: tl.constexpr, RESIDUAL: tl.constexpr,
    M: tl.constexpr, MP: tl.constexpr, G: tl.constexpr, TOTAL: tl.constexpr, FLOOR: tl.constexpr,
    REFERENCE: tl.constexpr, C: tl.constexpr, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    at, place = place_of(pid, rows, locations, across, blocks, LAYOUT, R, BLOCK)
    computed = compute_weights(
        inputs, at, inverse_temperature, total, floor, reference, M, MP, G, TOTAL, FLOOR, REFERENCE, C
    )
    weight, present = computed[0], computed[1]
    fused_sum = tl.zeros((R, BLOCK), C)
    for m in tl.static_range(M):
        exists = exists_in(place, extents[m], LAYOUT)
        factor = expand_to_tile(of_modality(weight, m, MP), LAYOUT)
        # An absent modality contributes exactly 0 whatever its features hold. If weights are per sample, its features
        # are not read.
        if RESIDUAL:
            scaled = read_at(features[m], place, exists, LAYOUT, C) * (factor + 1.0)
        elif inputs[2][0] is None:
            scaled = read_at(features[m], place, exists, LAYOUT, C) * factor
        elif LAYOUT == PLANES:
            scaled = read_at(features[m], place, exists, LAYOUT, C) * factor
            scaled = tl.where(expand_to_tile(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0, scaled, 0.0)
        else:
            is_present = expand_to_tile(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0
            scaled = read_at(features[m], place, exists & is_present, LAYOUT, C) * factor
        if SUM:
            fused_sum += scaled
        else:
            write_at(fused[m], place, scaled, exists, LAYOUT)
    if SUM:
        write_at(fused[0], place, fused_sum, exists_in(place, extents[0], LAYOUT), LAYOUT)
    # Only the first of the programs with the same positions stores the weights.
    if (pid // across % blocks if LAYOUT == PLANES else pid % across) == 0:
        store_entries(weights, at, locations, weight, M, MP)


@triton.jit
def _fuse_backward_tile(grad, feature, grad_feature, place, extent, factor, is_present, RESIDUAL: tl.constexpr,
                        MASKED: tl.constexpr, C: tl.constexpr, LAYOUT: tl.constexpr):  # fmt: skip
    """Write the gradient of a tile's features, and return grad * feature, whose sum is the weight's gradient.

    With planes, the sum over threads is not the first one that the product is added to.
    """
    exists = exists_in(place, extent, LAYOUT)
    # An absent modality's features pass through a residual fusion, but its weight is constant, so it has no gradient.
    read = exists & is_present if MASKED and LAYOUT != PLANES else exists
    f = read_at(feature, place, read, LAYOUT, C)
    g = read_at(grad, place, exists if RESIDUAL else read, LAYOUT, C)
    feature_gradient = g * factor
    if MASKED and not RESIDUAL:
        feature_gradient = tl.where(is_present, feature_gradient, 0.0)
    write_at(grad_feature, place, feature_gradient, exists, LAYOUT)
    return g * f if LAYOUT == PLANES else rounded_product(g, f)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["across"])
def _unfuse_kernel(
    grads, features, grad_features, extents, grad_weights, grad_uncertainty, sums, dots, inputs, rows, locations,
    across, inverse_temperature: tl.float64, total: tl.float64, floor: tl.float64, reference: tl.float64,
    SUM: tl.constexpr, RESIDUAL: tl.constexpr, PER_SAMPLE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    G: tl.constexpr, TOTAL: tl.constexpr, FLOOR: tl.constexpr, REFERENCE: tl.constexpr, C: tl.constexpr,
    LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program processes its locations in all channels, or a part of a row: then it stores its sums in `dots`."""
    pid = tl.program_id(0)
    MASKED: tl.constexpr = inputs[2][0] is not None
    at, place = place_of(pid, rows, locations, across, 1, LAYOUT, R, BLOCK)
    computed = compute_weights(
        inputs, at, inverse_temperature, total, floor, reference, M, MP, G, TOTAL, FLOOR, REFERENCE, C
    )
    weight, present = computed[0], computed[1]
    # The sums are in double, because only their differences matter, which may be a thousandth of the sums.
    weight_gradient = tl.zeros(weight.shape, tl.float64)
    for m in tl.static_range(M):
        grad = grads[0] if SUM else grads[m]
        factor = expand_to_tile(of_modality(weight, m, MP), LAYOUT)
        is_present = expand_to_tile(of_modality(present.to(tl.int32), m, MP), LAYOUT) != 0
        if RESIDUAL:
            factor += 1.0
        if LAYOUT == PLANES:
            products = tl.zeros((R, BLOCK), C)
            channel = 0
            while channel < extents[m]:
                products += _fuse_backward_tile(
                    grad, features[m], grad_features[m], (place[0], place[1] + channel, place[2], place[3]),
                    extents[m], factor, is_present, RESIDUAL, MASKED, C, LAYOUT,
                )  # fmt: skip
                channel += R
            dot = tl.sum(products.to(tl.float64), 0)[:, None]
        else:
            products = _fuse_backward_tile(
                grad, features[m], grad_features[m], place, extents[m], factor, is_present, RESIDUAL, MASKED, C, LAYOUT
            )
            dot = expand_to_tile(tl.sum(products.to(tl.float64), 1), LAYOUT)
        weight_gradient = tl.where(tl.arange(0, MP)[None, :] == m, dot, weight_gradient)
    weight_gradient = tl.where(present, weight_gradient, 0.0)
    tile = pid % across
    if dots is not None:
        lane = tl.arange(0, MP)[None, :]
        tl.store(dots + (at[0] * M + lane) * across + tile, weight_gradient, mask=at[2] & (lane < M))
    else:
        if grad_weights[0] is not None:
            weight_gradient += load_entries(grad_weights, at, 0.0, M, MP)
        weights_gradient(
            computed, weight_gradient, grad_uncertainty, sums, at, locations, tile, across, inverse_temperature,
            LAYOUT == PLANES, PER_SAMPLE, M, MP, G, REFERENCE, C,
        )  # fmt: skip


def _extents(features: list[Tensor], weighting: Weighting) -> tuple[int, ...]:
    """Return the number of channels of each modality, if weights are per location, or of elements per row."""
    return tuple(f.shape[1] if weighting.planes else math.prod(f.shape[1:]) for f in features)


def _parts(fused: list[Tensor], features: list[Tensor], mode: int) -> list[Tensor]:
    """Return the part of the fused tensors that belongs to each modality; the modalities of a sum share one tensor."""
    return list(fused[0].split([f.shape[1] for f in features], 1)) if mode == _CONCAT else fused


def _allocated(features: list[Tensor], mode: int) -> list[Tensor]:
    first = features[0]
    if mode == _CONCAT:
        return [empty((first.shape[0], sum(f.shape[1] for f in features), *first.shape[2:]), first.dtype, first)]
    return [empty(f.shape, f.dtype, f) for f in (features[:1] if mode == _SUM else features)]


def _position_tiles(weighting: Weighting, lanes: int = 1) -> tuple[int, int, int]:
    """Return (positions per tile, tiles per sample, programs). Only the last depends on the number of samples."""
    count = max(_ENTRIES // (weighting.constants["MP"] * lanes), 1)
    if not weighting.planes:
        return count, 1, ceil_div(weighting.rows, count)
    count = min(next_power_of_2(weighting.locations), count)
    across = ceil_div(weighting.locations, count)
    return count, across, weighting.rows * across


def fusion_weights(uncertainty, dependency, mask, g, temperature, total, floor, reference) -> Tensor:
    out = empty(uncertainty.shape, uncertainty.dtype, uncertainty)
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total, floor, reference)
    count, across, programs = _position_tiles(weighting)
    launch(
        _weights_kernel, out.device, programs, out, weighting.inputs, weighting.rows, weighting.locations, across,
        *weighting.numbers, PLANES=weighting.planes, P=count, **weighting.constants,
    )  # fmt: skip
    return out


def _weights_backward(weighting: Weighting, like: Tensor, grad, dots, needs_dependency) -> tuple[Tensor, Tensor]:
    grad_uncertainty = empty(like.shape, like.dtype, like)
    parts = 1 if dots is None else dots.shape[2]
    lanes = min(next_power_of_2(parts), 32)
    count, across, programs = _position_tiles(weighting, lanes)
    sums = dependency_sums(weighting, like, needs_dependency, across, programs)
    launch(
        _weights_backward_kernel, like.device, programs, entries_of(grad), dots, parts, grad_uncertainty, sums,
        weighting.inputs, weighting.rows, weighting.locations, across, *weighting.numbers, PLANES=weighting.planes,
        PER_SAMPLE=sums is not None and weighting.per_sample, P=count, PARTS=lanes, **weighting.constants,
    )  # fmt: skip
    return grad_uncertainty, finish_dependency_gradient(weighting, like, sums)


def fusion_weights_backward(
    grad, uncertainty, dependency, mask, g, temperature, total, floor, reference, needs_dependency
):
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total, floor, reference)
    return _weights_backward(weighting, uncertainty, grad, None, needs_dependency)


def weighted_fusion(features, uncertainty, dependency, mask, mode, residual, g, temperature, total, floor, reference):
    fused, weights = _allocated(features, mode), empty(uncertainty.shape, uncertainty.dtype, uncertainty)
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total, floor, reference)
    extents = _extents(features, weighting)
    if weighting.planes:
        tiles, blocks, warps = plane_tiles(weighting, max(extents), 2048)
    else:
        (tiles, warps), blocks = row_tiles(weighting.rows, max(extents), 2048, uncertainty.element_size()), 1
    sources, layout = readable(features, weighting)
    targets, _ = readable(_parts(fused, features, mode), weighting)
    launch(
        _fuse_kernel, weights.device, tiles.programs * blocks, sources, targets, extents, weights, weighting.inputs,
        weighting.rows, weighting.locations, tiles.across, blocks, *weighting.numbers, SUM=mode == _SUM,
        RESIDUAL=residual, LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK, num_warps=warps, **weighting.constants,
    )  # fmt: skip
    return fused, weights


def weighted_fusion_backward(
    grads, grad_weights, features, uncertainty, dependency, mask, mode, residual, g, temperature, total, floor,
    reference, needs_dependency,
):  # fmt: skip
    weighting = weighting_of(uncertainty, dependency, mask, g, temperature, total, floor, reference)
    extents = _extents(features, weighting)
    if weighting.planes:
        tiles, _, warps = plane_tiles(weighting, max(extents), 4096)
    else:
        tiles, warps = row_tiles(weighting.rows, max(extents), 4096, uncertainty.element_size())
    grad_features = [empty(f.shape, f.dtype, f) for f in features]
    incoming = _parts(grads, features, mode)
    sources, layout = readable([*incoming, *features], weighting)
    targets, _ = readable(grad_features, weighting)
    dots = grad_uncertainty = sums = None
    if not weighting.planes and tiles.across > 1:
        dots = empty((weighting.rows, len(features), tiles.across), torch.float64, uncertainty)
    else:
        grad_uncertainty = empty(uncertainty.shape, uncertainty.dtype, uncertainty)
        sums = dependency_sums(weighting, uncertainty, needs_dependency, tiles.across, tiles.programs)
    launch(
        _unfuse_kernel, uncertainty.device, tiles.programs, sources[: len(incoming)], sources[len(incoming) :],
        targets, extents, entries_of(grad_weights), grad_uncertainty, sums, dots, weighting.inputs, weighting.rows,
        weighting.locations, tiles.across, *weighting.numbers, SUM=mode == _SUM, RESIDUAL=residual,
        PER_SAMPLE=sums is not None and weighting.per_sample, LAYOUT=layout, R=tiles.R, BLOCK=tiles.BLOCK,
        num_warps=warps, **weighting.constants,
    )  # fmt: skip
    if dots is not None:
        return grad_features, *_weights_backward(weighting, uncertainty, grad_weights, dots, needs_dependency)
    return grad_features, grad_uncertainty, finish_dependency_gradient(weighting, uncertainty, sums)
