"""The conversions of the PTX interpreter, all pairs of types, against Python's fractions and torch."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from .ptx.snippets import (
    EVERY_HALF,
    FLOATS,
    HALVES,
    UNSIGNED,
    as_halves,
    evaluate,
    integral,
    rounded,
    rounded_half,
    same_floats,
    signed,
    some_floats,
    some_integers,
)


@pytest.mark.parametrize("kind", HALVES)
def test_halves_to_others(kind):
    truth = as_halves(EVERY_HALF, kind)
    same_floats(evaluate(f"cvt.f32.{kind} %d, %a;", 32, EVERY_HALF).view(np.float32), truth.float().numpy())
    same_floats(evaluate(f"cvt.f64.{kind} %d, %a;", 64, EVERY_HALF).view(np.float64), truth.double().numpy())
    # All modes for one type, all types for one mode.
    for to, mode in [
        ("s32", "rni"),
        ("s32", "rmi"),
        ("s32", "rpi"),
        *((to, "rzi") for to in ("u32", "s64", "u16", "s8")),
    ]:
        got = evaluate(f"cvt.{mode}.{to}.{kind} %d, %a;", max(int(to[1:]), 32), EVERY_HALF)
        numbers = truth.double()
        whole = {"rni": numbers.round(), "rzi": numbers.trunc(), "rmi": numbers.floor(), "rpi": numbers.ceil()}[mode]
        expected = [as_integer(x, to, "rz", from_double=False) for x in whole.tolist()]
        assert [int(x) % 2 ** int(to[1:]) for x in got] == expected


def as_integer(x: float, kind: str, mode: str, from_double: bool) -> int:
    """Clamped to the range; of a NaN 0, or the highest bit if a type has 64 bits."""
    bits = int(kind[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    if math.isnan(x):
        return 2 ** (bits - 1) if from_double or bits == 64 else 0
    if math.isinf(x):
        return (low if x < 0 else high) % 2**bits
    whole = int(x) if x == int(x) else integral(Fraction(x), mode)
    return min(max(whole, low), high) % 2**bits


def floats_to_narrow() -> np.ndarray:
    """Every half and bfloat16, what lies halfway between neighbours and beside it, the ends, and words at random."""
    every = [as_halves(EVERY_HALF[: 1 << 15 : 7], kind).float().numpy() for kind in HALVES]
    values = np.concatenate([x[np.isfinite(x)] for x in every])
    values.sort()
    middle = (values[1:] / 2 + values[:-1] / 2).astype(np.float32)
    words = np.random.default_rng(1).integers(0, 1 << 32, 4000).astype(np.uint32).view(np.float32)
    ends = np.array([65504, 65519.99, 65520, 3.39e38, 3.4e38, math.inf, 2**-25, 2**-24, 1e-45, 0], dtype=np.float32)
    low, high = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(math.inf))
    positive = np.concatenate([values, middle, low, high, ends])
    return np.concatenate([positive, -positive, words])


@pytest.mark.parametrize("kind", HALVES)
def test_floats_to_halves(kind):
    values = floats_to_narrow()
    expected = torch.from_numpy(values).to(HALVES[kind])
    got = evaluate(f"cvt.rn.{kind}.f32 %d, %a;", 16, values)
    nan = expected.isnan().numpy()
    assert np.array_equal(np.where(nan, 0x7FFF, expected.view(torch.int16).numpy().view(np.uint16)), got)
    other = np.roll(values, 3)
    pair = evaluate(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", 32, values, other)
    assert np.array_equal(pair >> 16, got) and np.array_equal(pair & 0xFFFF, np.roll(got, 3))
    some = values[:: len(values) // 3000]
    some = some[np.isfinite(some) & (some != 0)]
    toward_zero = as_halves(evaluate(f"cvt.rz.{kind}.f32 %d, %a;", 16, some), kind).double().tolist()
    assert toward_zero == [rounded_half(float(x), kind, "rz") for x in some]
    relu = as_halves(evaluate(f"cvt.rn.relu.{kind}.f32 %d, %a;", 16, some), kind).double().tolist()
    assert relu == [max(rounded_half(float(x), kind), 0.0) for x in some]
    # Rounded once from float64: halfway in float32, and not in float64.
    doubles = some.astype(np.float64) * (1 + 2.0**-40)
    got = as_halves(evaluate(f"cvt.rn.{kind}.f64 %d, %a;", 16, doubles), kind).double().tolist()
    assert got == [rounded_half(float(x), kind) for x in doubles]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_double_to_float(mode):
    values = np.concatenate([some_floats(64), floats_to_narrow()[::50].astype(np.float64) * (1 + 2.0**-30)])
    values = values[np.isfinite(values) & (values != 0)]
    got = evaluate(f"cvt.{mode}.f32.f64 %d, %a;", 32, values).view(np.float32)
    assert got.tolist() == [rounded(Fraction(float(x)), "f32", mode) for x in values]


def test_tf32():
    values = floats_to_narrow()[::9]
    values = values[np.isfinite(values)]
    for mode in ("rn", "rna", "rz"):
        got = evaluate(f"cvt.{mode}.tf32.f32 %d, %a;", 32, values).view(np.float32)
        assert got.tolist() == [rounded(Fraction(float(x)), "tf32", mode) for x in values]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers_to_floats(source, mode):
    bits = int(source[1:])
    raw = [x % 2**bits for x in some_integers(max(bits, 16))] + [2**bits - 1 - 2 ** (bits // 3), 2 ** (bits - 1) + 1]
    a = np.array(raw, dtype=UNSIGNED[max(bits, 16)])
    numbers = [signed(x, bits) if source[0] == "s" else x for x in raw]
    for to in ("f16", "f32", "f64"):
        width = int(to[1:])
        got = evaluate(f"cvt.{mode}.{to}.{source} %d, %a;", width, a)
        values = as_halves(got, "f16").double().numpy() if width == 16 else got.view(FLOATS[width])
        assert values.tolist() == [rounded(Fraction(x), to, mode) for x in numbers]


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("bits", [32, 64])
def test_floats_to_integers(bits, mode):
    values = np.array(
        "0.5 1.5 2.5 -0.5 -1.5 127.5 -128.5 255.5 65535.5 2147483648 -2147483648 4294967296 9223372036854775808 "
        "-9223372036854775808 18446744073709551616 1e30 -1e30 inf -inf nan 0 2147483520 0.9999999".split(),
        dtype=FLOATS[bits],
    )
    for to in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        got = evaluate(f"cvt.{mode}.{to}.f{bits} %d, %a;", max(int(to[1:]), 32), values)
        expected = [as_integer(float(x), to, mode[:2], from_double=bits == 64) for x in values]
        assert [int(x) % 2 ** int(to[1:]) for x in got] == expected, to
    finite = values[np.isfinite(values)]
    got = evaluate(f"cvt.{mode}.f{bits}.f{bits} %d, %a;", bits, finite).view(FLOATS[bits])
    assert got.tolist() == [integral(Fraction(float(x)), mode[:2]) for x in finite]


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers_to_integers(source, saturates):
    bits = int(source[1:])
    a = np.array(some_integers(64 if bits == 64 else 32), dtype=UNSIGNED[64 if bits == 64 else 32])
    numbers = [signed(int(x), bits) if source[0] == "s" else int(x) % 2**bits for x in a]
    for to in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        width = int(to[1:])
        low, high = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if to[0] == "s" else (0, 2**width - 1)
        register = max(width, 32)
        got = evaluate(f"cvt{'.sat' * saturates}.{to}.{source} %d, %a;", register, a)
        expected = [min(max(x, low), high) if saturates else x % 2**width for x in numbers]
        # The register holds the value, extended.
        value = [signed(x, width) if to[0] == "s" else x % 2**width for x in expected]
        assert got.tolist() == [x % 2**register for x in value], to
