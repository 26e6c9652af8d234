"""Access to maps (B, C, ...) in the kernels that sum over the locations of each channel.

A tile has R channels and BLOCK locations of one sample. The locations are its dimension AXIS, which is the last one
where they are the fast dimension in memory: tiles are (R, BLOCK) or (BLOCK, R). A place is the tuple (sample (1, 1),
the first of the R channels, the number of channels, the number of locations, the size that is a multiple of UNIT).
"""

import triton
import triton.language as tl

from ._math import scalar
from ._rows import narrowed, widened

# The layouts of the maps: any strides; dense with the locations fast; dense with the channels fast; dense and with few
# locations, whose number does not divide into vectors, so that R channels are accessed as one run of elements.
STRIDED, PLANES, LAST, FLAT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def place_of(channels, locations, units, blocks, parts, steps, LAYOUT: tl.constexpr, UNIT: tl.constexpr,
             R: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Return a program's place, its part of the locations, and the part's first location and end."""
    # The compiler sees that the fast size is a multiple of UNIT, and so vectorizes.
    size = units.to(tl.int64) * UNIT
    if LAYOUT == LAST:
        channels = size
    elif LAYOUT != FLAT:
        locations = size
    pid = tl.program_id(0)
    part = pid // blocks % parts
    row = (pid // blocks // parts).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    first = (pid % blocks).to(tl.int64) * R
    start = part.to(tl.int64) * steps * BLOCK
    return (row, first, channels, locations, size), part, start, tl.minimum(start + steps * BLOCK, locations)


@triton.jit
def channels_of(R: tl.constexpr, AXIS: tl.constexpr):
    """Return the numbers of a tile's channels, (R, 1) or (1, R)."""
    return tl.expand_dims(tl.arange(0, R), AXIS)


@triton.jit
def mask_of(place, begin, end, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr):
    """Return which elements of the tile that begins at location `begin` exist."""
    channels = tl.minimum(place[2] - place[1], R).to(tl.int32)
    locations = tl.minimum(end - begin, BLOCK).to(tl.int32)
    return (channels_of(R, AXIS) < channels) & (tl.expand_dims(tl.arange(0, BLOCK), 1 - AXIS) < locations)


@triton.jit
def _addresses(x, place, begin, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr):
    """Return the addresses of a tile. x is (pointer, strides of sample, channel, location) or, if dense, (pointer,)."""
    row, first, channels, locations = place[0], place[1], place[2], place[3]
    channel = first + channels_of(R, AXIS)
    location = begin + tl.expand_dims(tl.arange(0, BLOCK), 1 - AXIS)
    if LAYOUT == STRIDED:
        return x[0] + row * x[1] + channel * x[2] + location * x[3]
    elif LAYOUT == LAST:
        return x[0] + row * locations * channels + location * channels + channel
    else:
        return x[0] + row * channels * locations + channel * locations + location


@triton.jit
def _run(x, place, R: tl.constexpr, BLOCK: tl.constexpr):
    """Return the addresses (1, R BLOCK) of R channels that lie side by side, and the mask of the existing elements."""
    row, first, locations, size = place[0], place[1], place[3], place[4]
    start = first * locations
    lane = tl.arange(0, R * BLOCK)[None, :]
    return x + row * size + start + lane, lane < tl.minimum(size - start, R * locations).to(tl.int32)


@triton.jit
def read_tile(x, place, begin, end, LAYOUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, AXIS: tl.constexpr,
              C: tl.constexpr):  # fmt: skip
    """Load a tile in the arithmetic dtype C; elements that do not exist are 0."""
    if LAYOUT == FLAT:
        address, exists = _run(x[0], place, R, BLOCK)
        run = tl.reshape(tl.load(address, mask=exists, other=0), (R * BLOCK,))
        # The gather through shared memory gives each lane a channel, so that a sum is one over a thread's elements.
        locations = place[3]
        location = tl.arange(0, BLOCK)[:, None]
        index = channels_of(R, AXIS) * locations + tl.minimum(location, locations - 1)
        value = tl.reshape(tl.gather(run, tl.reshape(index, (R * BLOCK,)), 0), (BLOCK, R))
        return tl.where(location < locations, widened(value, C), 0.0)
    else:
        address = _addresses(x, place, begin, LAYOUT, R, BLOCK, AXIS)
        return widened(tl.load(address, mask=mask_of(place, begin, end, R, BLOCK, AXIS), other=0), C)


@triton.jit
def write_tile(x, value, place, begin, end, inverse_locations, LAYOUT: tl.constexpr, R: tl.constexpr,
               BLOCK: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    """Store a tile of a result, which is dense: with the channels last, or contiguous."""
    value = narrowed(value, x.dtype.element_ty)
    if LAYOUT == FLAT:
        address, exists = _run(x, place, R, BLOCK)
        locations = place[3]
        lane = tl.arange(0, R * BLOCK)
        # lane // locations: the distance of lane + 1/2 to a multiple is larger than the rounding errors.
        channel = ((lane.to(tl.float32) + 0.5) * scalar(inverse_locations, tl.float32)).to(tl.int32)
        channel = tl.minimum(channel, R - 1)
        index = (lane - channel * locations) % BLOCK * R + channel
        run = tl.gather(tl.reshape(value, (R * BLOCK,)), index, 0)
        tl.store(address, run[None, :], mask=exists)
    else:
        dense: tl.constexpr = LAST if LAYOUT == LAST else PLANES
        address = _addresses((x,), place, begin, dense, R, BLOCK, AXIS)
        tl.store(address, value, mask=mask_of(place, begin, end, R, BLOCK, AXIS))
