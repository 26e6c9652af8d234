"""Small PTX kernels written by hand: a few instructions applied to arrays, and exact rounding to compare them with."""

import itertools
import struct
from fractions import Fraction

import numpy as np
import torch

from . import machine

_UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
_numbers = itertools.count()
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


def unique(name: str) -> str:
    """A name for a kernel; the interpreter knows kernels by their names."""
    return f"{name}_{next(_numbers)}"


def load(text: str, name: str) -> None:
    machine.load(HEADER + text, f"{name}.ptx")


def launch(kernel: str, grid: int, block: int, *arguments: torch.Tensor | int, shared: int = 0) -> None:
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    sizes = machine.parameter_sizes(kernel)
    packed = [struct.pack("<Q", v % 2**64)[:size] for v, size in zip(values, sizes, strict=True)]
    machine.launch(kernel, (grid, 1, 1), (block, 1, 1), packed, shared)


def evaluate(body: str, bits: int, *inputs: np.ndarray, threads: int = 128, outside: str = "") -> np.ndarray:
    """Each thread executes `body` on its elements of `inputs`, in the registers %a, %b, %c, %e of their widths, and gives
    %d of `bits` bits. %p0, %p1, ... are predicates, %r0, ... %w0, ... registers of 32 and 64 bits."""
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
    return buffers[0].numpy().view(_UNSIGNED[bits])[:count].copy()


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
