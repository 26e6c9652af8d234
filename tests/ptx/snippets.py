"""Small PTX kernels written by hand: a few instructions applied to arrays, and exact rounding to compare them with."""

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import torch

from . import machine

UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
FLOATS = {32: np.float32, 64: np.float64}
_numbers = itertools.count()
Size = tuple[int, int, int]
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def unique(name: str) -> str:
    """A name for a kernel; the interpreter knows kernels by their names."""
    return f"{name}_{next(_numbers)}"


def load(text: str, name: str) -> None:
    machine.load(HEADER + text, f"{name}.ptx")


def launch(kernel: str, grid: int | Size, block: int | Size, *arguments: torch.Tensor | int, shared: int = 0) -> None:
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    widths = machine.parameter_sizes(kernel)
    packed = [struct.pack("<Q", v % 2**64)[:width] for v, width in zip(values, widths, strict=True)]
    sizes = [size if isinstance(size, tuple) else (size, 1, 1) for size in (grid, block)]
    machine.launch(kernel, *sizes, packed, shared)


def evaluate(body: str, bits: int, *inputs: np.ndarray, threads: int = 128, outside: str = "") -> np.ndarray:
    """Each thread executes `body` on its elements of `inputs`, in the registers %a, %b, %c, %e of their widths, and
    gives %d of `bits` bits. %p0, ... are predicates, %r0, ... %w0, ... registers of 32 and 64 bits."""
    machine.library()
    kernel, count = unique("snippet"), max((len(x) for x in inputs), default=threads)
    padded = -(-count // threads) * threads
    parameters = ", ".join(f".param .u64 p{k}" for k in range(len(inputs) + 1))
    lines = [f".reg .b{bits} %d;", ".reg .pred %p<8>;", ".reg .b32 %r<16>;", ".reg .b64 %w<16>;", ".reg .b32 %t<4>;",
             ".reg .b64 %u<3>;", "mov.u32 %t0, %ctaid.x;", "mov.u32 %t1, %ntid.x;", "mov.u32 %t2, %tid.x;",
             "mad.lo.s32 %t3, %t0, %t1, %t2;"]  # fmt: skip
    buffers = [torch.zeros(padded * bits // 8, dtype=torch.uint8)]
    for k, (name, values) in enumerate(zip("abce", inputs, strict=False), 1):
        width = values.dtype.itemsize * 8
        lines += [f".reg .b{width} %{name};", f"ld.param.u64 %u0, [p{k}];",
                  f"mad.wide.u32 %u1, %t3, {width // 8}, %u0;", f"ld.global.b{width} %{name}, [%u1];"]  # fmt: skip
        filled = np.resize(values, padded).view(np.uint8)
        buffers.append(torch.from_numpy(filled.copy()).clone())
    lines += [body, "ld.param.u64 %u0, [p0];", f"mad.wide.u32 %u1, %t3, {bits // 8}, %u0;",
              f"st.global.b{bits} [%u1], %d;", "ret;"]  # fmt: skip
    load(outside + f"\n.visible .entry {kernel}({parameters})\n{{\n" + "\n".join(lines) + "\n}\n", kernel)
    launch(kernel, padded // threads, threads, *buffers)
    return buffers[0].numpy().view(UNSIGNED[bits])[:count].copy()


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


# Bits of the significand, exponent of the smallest subnormal, largest number.
FORMATS = {
    "f16": (11, -24, Fraction(65504)),
    "bf16": (8, -133, Fraction(2**8 - 1) * 2**120),
    "tf32": (11, -136, Fraction(2**11 - 1) * 2**117),
    "f32": (24, -149, Fraction(2**24 - 1) * 2**104),
    "f64": (53, -1074, Fraction(2**53 - 1) * 2**971),
}


def integral(x: Fraction, mode: str) -> int:
    """x, rounded to an integer: rn (ties to even), rna (ties away from zero), rz, rm, rp."""
    low = x.numerator // x.denominator
    if mode == "rm" or low == x:
        return low
    if mode == "rp":
        return low + 1
    if mode == "rz":
        return low if x > 0 else low + 1
    if mode == "rna":
        return low + 1 if x - low > Fraction(1, 2) or (x - low == Fraction(1, 2) and x > 0) else low
    return round(x)


def rounded(x: Fraction, kind: str, mode: str = "rn") -> float:
    """x in a format, as a float; what is too large becomes infinite, or the largest number."""
    if x == 0:
        return 0.0
    precision, lowest, largest = FORMATS[kind]
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if abs(x) >= Fraction(2) ** exponent:
        exponent += 1
    ulp = Fraction(2) ** max(exponent - precision, lowest)
    y = integral(x / ulp, mode) * ulp
    if abs(y) > largest:
        stays = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        return float(largest if x > 0 else -largest) if stays else float("inf" if x > 0 else "-inf")
    return float(y) if y or x > 0 else -0.0


def rounded_half(x: float, kind: str, mode: str = "rn") -> float:
    return rounded(Fraction(x), kind, mode) if math.isfinite(x) and x else x


# A kernel that writes to `out`: %r0 thread, %r1 block, %w0 out, %w1 the thread's place in it.
BLOCK = """.visible .entry {name}(.param .u64 out) {{ .reg .b32 %r<16>; .reg .b64 %w<8>; .reg .pred %p<4>;
.shared .align 16 .b8 tile[1024]; ld.param.u64 %w0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0; mad.wide.u32 %w1, %r3, 4, %w0; {body} ret; }}"""


def run_block(body: str, grid: int, block: int, out: torch.Tensor) -> list[int]:
    name = unique("block")
    load(BLOCK.format(name=name, body=body), name)
    launch(name, grid, block, out)
    return out.tolist()


def some_integers(bits: int) -> list[int]:
    edges = [0, 1, 2, 3, 7, 2**bits - 1, 2**bits - 2, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** (bits // 2)]
    generator = np.random.default_rng(bits)
    return edges + [int(x) % 2**bits for x in generator.integers(0, 2**63, 6)]


def pairs(bits: int) -> tuple[np.ndarray, np.ndarray]:
    values = list(itertools.product(some_integers(bits), repeat=2))
    return tuple(np.array(side, dtype=UNSIGNED[bits]) for side in zip(*values, strict=True))


def some_floats(bits: int) -> np.ndarray:
    tiny, largest = np.finfo(FLOATS[bits]).smallest_subnormal, np.finfo(FLOATS[bits]).max
    normal = np.finfo(FLOATS[bits]).tiny
    edges = [0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 1 / 3, -0.1, tiny, -tiny, normal, -normal / 2, largest, -largest, 7e9]
    generator = np.random.default_rng(bits)
    values = np.array(edges + list(generator.normal(size=6) * 10.0 ** generator.integers(-5, 5, 6)))
    return values.astype(FLOATS[bits])


def float_pairs(bits: int) -> tuple[np.ndarray, np.ndarray]:
    values = list(itertools.product(some_floats(bits), repeat=2))
    return tuple(np.array(side, dtype=FLOATS[bits]) for side in zip(*values, strict=True))


def same_floats(got: np.ndarray, expected: list[float] | np.ndarray) -> None:
    """Equal, NaN where NaN, and zeros of the same sign."""
    expected = np.asarray(expected, dtype=got.dtype)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    number = ~np.isnan(expected)
    assert np.array_equal(got[number], expected[number])
    assert np.array_equal(np.signbit(got[number]), np.signbit(expected[number]))


EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


def as_halves(bits: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(HALVES[kind])
