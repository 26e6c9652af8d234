"""Access to features in the fusion kernels. Tiles have R x BLOCK elements and one of two shapes:

    weights per sample      R samples x BLOCK elements of a flattened sample; the weights of a tile are (R, 1)
    weights per location    R channels x BLOCK locations of one sample; the weights of a tile are (1, BLOCK)

(row, major, minor) addresses an element: `row` is its sample; (major, minor) is the tile's first element and a lane, or
the channel and the location.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._launch import ceil_div, next_power_of_2
from ._rows import Rows, Tiles, _collapsed, narrowed, pointers, rows_of, widened
from ._weighting import Weighting, positions

# This layout extends those of _rows: each channel is a plane of locations, and `outer stride` is the distance of
# channels.
PLANES = tl.constexpr(3)


@triton.jit
def place_of(pid, rows, locations, across, blocks, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr):
    """Return a program's positions, and (row, major, minor, whether the position exists) of its elements."""
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
def exists_in(place, extent, LAYOUT: tl.constexpr):
    """Return the mask of the elements that exist in a modality with `extent` channels, or elements per row."""
    if LAYOUT == PLANES:
        return place[3] & (place[1] < extent)
    else:
        return place[3] & (place[2] < extent - place[1])


@triton.jit
def expand_to_tile(values, LAYOUT: tl.constexpr):
    """Broadcast values of positions (P,) to the elements of a tile; of a single sample, return a scalar."""
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
def read_at(x, place, exists, LAYOUT: tl.constexpr, C: tl.constexpr):
    return widened(tl.load(_address(x, place, LAYOUT), mask=exists, other=0), C)


@triton.jit
def write_at(out, place, value, exists, LAYOUT: tl.constexpr):
    """Store a result. Results are dense within their rows, unless they have planes."""
    address = _address(out, place, LAYOUT if LAYOUT == PLANES else 0)
    tl.store(address, narrowed(value, out[0].dtype.element_ty), mask=exists)


def plane_tiles(weighting: Weighting, extent: int, elements: int) -> tuple[Tiles, int, int]:
    """Return tiles of R channels x BLOCK locations, the number of tiles that cover the channels, and the warps per
    program.

    Narrow tiles give more programs, and the weights of all modalities at a tile's locations fit in registers.
    """
    widest = min(next_power_of_2(weighting.locations), 512 // weighting.constants["MP"])
    channels = min(next_power_of_2(extent), elements // min(widest, 64))
    block = min(widest, elements // channels)
    across = ceil_div(weighting.locations, block)
    warps = 8 if channels * block > 2048 else 4
    # There is at least one tile, because the weights are needed even without channels.
    return Tiles(channels, block, across, weighting.rows * across), max(ceil_div(extent, channels), 1), warps


def _planes_of(t: Tensor, locations: int) -> Rows:
    dims = _collapsed(t.shape[2:], t.stride()[2:])
    if len(dims) > 1:
        t = t.contiguous()
        dims = [(locations, 1)]
    return Rows(t, t.stride(0), locations, t.stride(1), dims[0][1])


def readable(tensors: list[Tensor], weighting: Weighting) -> tuple[tuple, int]:
    if weighting.planes:
        return tuple(_planes_of(t, weighting.locations) for t in tensors), PLANES.value
    rows, layout = rows_of(*tensors)
    return tuple(rows), layout
