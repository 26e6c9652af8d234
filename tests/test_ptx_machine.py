"""The instructions of the PTX interpreter against Python's integers and fractions, numpy and torch."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from .ptx import machine
from .ptx.snippets import evaluate, integral, launch, load, rounded, signed, unique

UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
FLOATS = {32: np.float32, 64: np.float64}
LANES = np.arange(32, dtype=np.uint32)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    machine.library()


def some_integers(bits: int) -> list[int]:
    edges = [0, 1, 2, 3, 7, 2**bits - 1, 2**bits - 2, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** (bits // 2)]
    generator = np.random.default_rng(bits)
    return edges + [int(x) % 2**bits for x in generator.integers(0, 2**63, 6)]


def pairs(bits: int) -> tuple[np.ndarray, np.ndarray]:
    values = list(itertools.product(some_integers(bits), repeat=2))
    return tuple(np.array(side, dtype=UNSIGNED[bits]) for side in zip(*values, strict=True))


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


# ---- Integers.

INTEGERS = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: truncated_quotient(a, b),
    "rem": lambda a, b, n: a - b * truncated_quotient(a, b),
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    if name in ("div", "rem"):
        a, b = a[b != 0], b[b != 0]
    number = (lambda x: signed(int(x), bits)) if kind[0] == "s" else int
    got = evaluate(f"{name}.{kind} %d, %a, %b;", bits, a, b)
    assert got.tolist() == [INTEGERS[name](number(x), number(y), bits) % 2**bits for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    c = np.resize(np.array(some_integers(2 * bits), dtype=UNSIGNED[2 * bits]), len(a))
    number = (lambda x: signed(int(x), bits)) if kind[0] == "s" else int
    products = [number(x) * number(y) for x, y in zip(a, b, strict=True)]
    got = evaluate(f"mul.wide.{kind} %d, %a, %b;", 2 * bits, a, b)
    assert got.tolist() == [p % 4**bits for p in products]
    got = evaluate(f"mad.wide.{kind} %d, %a, %b, %c;", 2 * bits, a, b, c)
    assert got.tolist() == [(p + int(z)) % 4**bits for p, z in zip(products, c, strict=True)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_mad(kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    c = a[::-1].copy()
    number = (lambda x: signed(int(x), bits)) if kind[0] == "s" else int
    for part, shift in (("lo", 0), ("hi", bits)):
        got = evaluate(f"mad.{part}.{kind} %d, %a, %b, %c;", bits, a, b, c)
        expected = [((number(x) * number(y) >> shift) + int(z)) % 2**bits for x, y, z in zip(a, b, c, strict=True)]
        assert got.tolist() == expected


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_one_integer(bits):
    a = np.array(some_integers(bits), dtype=UNSIGNED[bits])
    modulus = 2**bits
    assert evaluate(f"neg.s{bits} %d, %a;", bits, a).tolist() == [-int(x) % modulus for x in a]
    assert evaluate(f"abs.s{bits} %d, %a;", bits, a).tolist() == [abs(signed(int(x), bits)) % modulus for x in a]
    assert evaluate(f"not.b{bits} %d, %a;", bits, a).tolist() == [~int(x) % modulus for x in a]
    assert evaluate(f"cnot.b{bits} %d, %a;", bits, a).tolist() == [int(x == 0) for x in a]
    if bits > 16:
        text = [f"{int(x):0{bits}b}" for x in a]
        assert evaluate(f"popc.b{bits} %d, %a;", 32, a).tolist() == [t.count("1") for t in text]
        assert evaluate(f"clz.b{bits} %d, %a;", 32, a).tolist() == [len(t) - len(t.lstrip("0")) for t in text]
        assert evaluate(f"brev.b{bits} %d, %a;", bits, a).tolist() == [int(t[::-1], 2) for t in text]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    a, b = pairs(bits)
    assert np.array_equal(evaluate(f"and.b{bits} %d, %a, %b;", bits, a, b), a & b)
    assert np.array_equal(evaluate(f"or.b{bits} %d, %a, %b;", bits, a, b), a | b)
    assert np.array_equal(evaluate(f"xor.b{bits} %d, %a, %b;", bits, a, b), a ^ b)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits):
    cases = list(itertools.product(some_integers(bits), [0, 1, 5, bits - 1, bits, bits + 1, 200, 2**32 - 1]))
    a = np.array([x for x, _ in cases], dtype=UNSIGNED[bits])
    b = np.array([y for _, y in cases], dtype=np.uint32)
    by = [min(y, bits) for _, y in cases]
    modulus = 2**bits
    assert evaluate(f"shl.b{bits} %d, %a, %b;", bits, a, b).tolist() == [
        (int(x) << y) % modulus for x, y in zip(a, by, strict=True)
    ]
    assert evaluate(f"shr.u{bits} %d, %a, %b;", bits, a, b).tolist() == [int(x) >> y for x, y in zip(a, by, strict=True)]
    assert evaluate(f"shr.s{bits} %d, %a, %b;", bits, a, b).tolist() == [
        (signed(int(x), bits) >> y) % modulus for x, y in zip(a, by, strict=True)
    ]


FIELDS = list(itertools.product([0, 1, 13, 31, 32, 50, 63, 64, 255, 256 + 3], [0, 1, 8, 31, 32, 33, 63, 64, 255]))


def extracted(a: int, position: int, length: int, bits: int, is_signed: bool) -> int:
    """Bit by bit, as the PTX ISA defines bfe."""
    position, length = position & 255, length & 255
    sign = a >> min(position + length - 1, bits - 1) & 1 if is_signed and length else 0
    result = 0
    for k in range(bits):
        result |= (a >> (position + k) & 1 if k < length and position + k < bits else sign) << k
    return result


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfe(kind):
    bits = int(kind[1:])
    cases = [(x, *field) for x in some_integers(bits) for field in FIELDS]
    a = np.array([x for x, _, _ in cases], dtype=UNSIGNED[bits])
    b, c = (np.array(side, dtype=np.uint32) for side in list(zip(*cases, strict=True))[1:])
    got = evaluate(f"bfe.{kind} %d, %a, %b, %c;", bits, a, b, c)
    assert got.tolist() == [extracted(*case, bits, kind[0] == "s") for case in cases]


@pytest.mark.parametrize("bits", [32, 64])
def test_bfi(bits):
    values = some_integers(bits)
    cases = [(x, y, *field) for x, y in zip(values, values[::-1], strict=True) for field in FIELDS]
    a, b = (np.array(side, dtype=UNSIGNED[bits]) for side in list(zip(*cases, strict=True))[:2])
    c, e = (np.array(side, dtype=np.uint32) for side in list(zip(*cases, strict=True))[2:])

    def inserted(x, y, position, length):
        position, length = position & 255, length & 255
        for k in range(length):
            if position + k < bits:
                y = y & ~(1 << (position + k)) | (x >> k & 1) << (position + k)
        return y

    got = evaluate(f"bfi.b{bits} %d, %a, %b, %c, %e;", bits, a, b, c, e)
    assert got.tolist() == [inserted(*case) for case in cases]


def test_bytes_and_funnels():
    a, b = pairs(32)
    c = np.resize(np.array([0x3210, 0x7654, 0x0123, 0xFEDC, 0x8A1F, 5, 31, 32, 40, 0], dtype=np.uint32), len(a))

    def permuted(x, y, selector):
        source, result = (int(x) | int(y) << 32).to_bytes(8, "little"), 0
        for k in range(4):
            pick = selector >> 4 * k & 15
            byte = source[pick & 7]
            result |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * k
        return result

    assert evaluate("prmt.b32 %d, %a, %b, %c;", 32, a, b, c).tolist() == [
        permuted(x, y, int(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    joined = [int(x) | int(y) << 32 for x, y in zip(a, b, strict=True)]
    for mode, limit in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        by = [limit(int(z)) for z in c]
        assert evaluate(f"shf.l.{mode}.b32 %d, %a, %b, %c;", 32, a, b, c).tolist() == [
            (x << n >> 32) % 2**32 for x, n in zip(joined, by, strict=True)
        ]
        assert evaluate(f"shf.r.{mode}.b32 %d, %a, %b, %c;", 32, a, b, c).tolist() == [
            (x >> n) % 2**32 for x, n in zip(joined, by, strict=True)
        ]
    for table in (0x80, 0xFE, 0x96, 0xE8, 0x1B):
        got = evaluate(f"lop3.b32 %d, %a, %b, %c, {table};", 32, a, b, c)
        expected = np.zeros_like(a)
        for k in range(32):
            row = (a >> k & 1) << 2 | (b >> k & 1) << 1 | c >> k & 1
            expected |= (table >> row.astype(np.uint32) & 1).astype(np.uint32) << np.uint32(k)
        assert np.array_equal(got, expected)


# ---- Floating point.


def some_floats(bits: int) -> np.ndarray:
    tiny, largest = np.finfo(FLOATS[bits]).smallest_subnormal, np.finfo(FLOATS[bits]).max
    normal = np.finfo(FLOATS[bits]).tiny
    edges = [0.0, -0.0, 1.0, -1.0, 1.5, 3.0, 1 / 3, -0.1, tiny, -tiny, normal, -normal / 2, largest, -largest, 1e-20, 7e9]
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


EXACT = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "fma": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", EXACT)
def test_rounding(name, bits, mode):
    a, b = float_pairs(bits)
    c = -(a * FLOATS[bits](0.7) + b[::-1] / 3)
    c[~np.isfinite(c)] = 1
    operands = "%a, %b, %c" if name == "fma" else "%a, %b"
    got = evaluate(f"{name}.{mode}.f{bits} %d, {operands};", bits, a, b, c).view(FLOATS[bits])
    exact = [EXACT[name](*map(Fraction, map(float, values))) for values in zip(a, b, c, strict=True)]
    nonzero = np.array([x != 0 for x in exact])
    expected = np.array([rounded(x, f"f{bits}", mode) for x in exact], dtype=FLOATS[bits])
    assert np.array_equal(got[nonzero], expected[nonzero]) and not got[~nonzero].any()


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("bits", [32, 64])
def test_quotients_and_roots(bits, mode):
    a, b = float_pairs(bits)
    a, b = a[b != 0], b[b != 0]
    exact = [Fraction(float(x)) / Fraction(float(y)) for x, y in zip(a, b, strict=True)]
    got = evaluate(f"div.{mode}.f{bits} %d, %a, %b;", bits, a, b).view(FLOATS[bits])
    assert got.tolist() == [rounded(x, f"f{bits}", mode) for x in exact]
    got = evaluate(f"rcp.{mode}.f{bits} %d, %b;", bits, a, b).view(FLOATS[bits])
    assert got.tolist() == [rounded(1 / Fraction(float(y)), f"f{bits}", mode) for y in b]
    positive = np.unique(np.abs(some_floats(bits)))[1:]
    got = evaluate(f"sqrt.{mode}.f{bits} %d, %a;", bits, positive).view(FLOATS[bits])
    for x, root in zip(positive, got, strict=True):
        # 2^400 below the root's last bit no sum of it and a float ends.
        scaled = math.isqrt(int(Fraction(float(x)) * 4**1200))
        exact_root = Fraction(scaled if scaled**2 == Fraction(float(x)) * 4**1200 else 2 * scaled + 1, 2**1200)
        exact_root /= 1 if scaled**2 == Fraction(float(x)) * 4**1200 else 2
        assert float(root) == rounded(exact_root, f"f{bits}", mode)


def test_special_values():
    values = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0], dtype=np.float32)
    a, b = (np.array(x, dtype=np.float32) for x in zip(*itertools.product(values, repeat=2), strict=True))
    with np.errstate(all="ignore"):
        for name, truth in (("add", a + b), ("sub", a - b), ("mul", a * b), ("div.rn", a / b)):
            got = evaluate(f"{name}.f32 %d, %a, %b;", 32, a, b)
            same_floats(got.view(np.float32), truth)
            assert set(got[np.isnan(truth)]) == {0x7FFFFFFF}
    # Of a NaN and a number the number; -0 is less than +0.
    for bits in (32, 64):
        x, y = a.astype(FLOATS[bits]), b.astype(FLOATS[bits])
        for name, choose in (("min", min), ("max", max)):
            keyed = [choose((float(u), math.copysign(1, u)), (float(v), math.copysign(1, v)))[0] for u, v in zip(x, y)]
            expected = np.where(np.isnan(x), y, np.where(np.isnan(y), x, keyed))
            same_floats(evaluate(f"{name}.f{bits} %d, %a, %b;", bits, x, y).view(FLOATS[bits]), expected)
            if bits == 32:
                expected = np.where(np.isnan(x) | np.isnan(y), math.nan, expected)
                same_floats(evaluate(f"{name}.NaN.f32 %d, %a, %b;", 32, x, y).view(np.float32), expected)


def test_flush_and_saturation():
    a, b = float_pairs(32)
    tiny = np.finfo(np.float32).tiny

    def flushed(x):
        return np.where(np.abs(x) < tiny, np.copysign(np.float32(0), x), x)

    with np.errstate(all="ignore"):
        for name, truth in (("add", flushed(a) + flushed(b)), ("mul", flushed(a) * flushed(b))):
            same_floats(evaluate(f"{name}.ftz.f32 %d, %a, %b;", 32, a, b).view(np.float32), flushed(truth))
        same_floats(
            evaluate("add.sat.f32 %d, %a, %b;", 32, a, b).view(np.float32), np.clip(a + b, 0, 1) + np.float32(0)
        )
    nan = np.array([math.nan], dtype=np.float32)
    assert evaluate("add.sat.f32 %d, %a, %a;", 32, nan).tolist() == [0]
    assert np.array_equal(evaluate("neg.f32 %d, %a;", 32, a), a.view(np.uint32) ^ 0x80000000)
    assert np.array_equal(evaluate("abs.f32 %d, %a;", 32, a), a.view(np.uint32) & 0x7FFFFFFF)
    same_floats(evaluate("copysign.f32 %d, %a, %b;", 32, a, b).view(np.float32), np.copysign(b, a))


EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


def as_halves(bits: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(HALVES[kind])


@pytest.mark.parametrize("kind", HALVES)
def test_half_arithmetic(kind):
    generator = np.random.default_rng(0)
    a, b, c = (generator.integers(0, 1 << 16, 1 << 12).astype(np.uint16) for _ in range(3))
    x, y, z = (as_halves(v, kind).double() for v in (a, b, c))
    # Sums and products of two, and of three, are exact in float64 up to its own rounding, far below a half's.
    for name, truth in (("add", x + y), ("sub", x - y), ("mul", x * y)):
        got = as_halves(evaluate(f"{name}.rn.{kind} %d, %a, %b;", 16, a, b), kind)
        expected = [rounded_half(float(t), kind) for t in truth]
        same_floats(got.double().numpy(), expected)
    got = as_halves(evaluate(f"fma.rn.{kind} %d, %a, %b, %c;", 16, a, b, c), kind).double()
    for g, u, v, t in zip(got.tolist(), x.tolist(), y.tolist(), z.tolist(), strict=True):
        if all(map(math.isfinite, (u, v, t))):
            assert g == rounded(Fraction(u) * Fraction(v) + Fraction(t), kind)
    low, high = torch.fmin(x, y), torch.fmax(x, y)
    differ = (x != y).numpy()
    for name, truth in (("min", low), ("max", high)):
        got = as_halves(evaluate(f"{name}.{kind} %d, %a, %b;", 16, a, b), kind).double().numpy()
        same_floats(got[differ], truth.numpy()[differ])
    assert np.array_equal(evaluate(f"neg.{kind} %d, %a;", 16, EVERY_HALF), EVERY_HALF ^ 0x8000)
    assert np.array_equal(evaluate(f"abs.{kind} %d, %a;", 16, EVERY_HALF), EVERY_HALF & 0x7FFF)
    packed = [v.astype(np.uint32) | v[::-1].astype(np.uint32) << 16 for v in (a, b, c)]
    both = evaluate(f"fma.rn.{kind}x2 %d, %a, %b, %c;", 32, *packed)
    assert np.array_equal(both & 0xFFFF, evaluate(f"fma.rn.{kind} %d, %a, %b, %c;", 16, a, b, c))
    assert np.array_equal(both >> 16, (both & 0xFFFF)[::-1])


def rounded_half(x: float, kind: str, mode: str = "rn") -> float:
    return rounded(Fraction(x), kind, mode) if math.isfinite(x) and x else x


# ---- Conversions.


@pytest.mark.parametrize("kind", HALVES)
def test_halves_to_others(kind):
    truth = as_halves(EVERY_HALF, kind)
    same_floats(evaluate(f"cvt.f32.{kind} %d, %a;", 32, EVERY_HALF).view(np.float32), truth.float().numpy())
    same_floats(evaluate(f"cvt.f64.{kind} %d, %a;", 64, EVERY_HALF).view(np.float64), truth.double().numpy())
    for to, mode in itertools.product(("s32", "u32", "s64", "u16", "s8"), ("rni", "rzi", "rmi", "rpi")):
        got = evaluate(f"cvt.{mode}.{to}.{kind} %d, %a;", max(int(to[1:]), 32), EVERY_HALF)
        expected = [as_integer(x, to, mode[:2], from_double=False) for x in truth.double().tolist()]
        assert [int(x) % 2 ** int(to[1:]) for x in got] == expected


def as_integer(x: float, kind: str, mode: str, from_double: bool) -> int:
    """Clamped to the range; of a NaN 0, or the highest bit if a type has 64 bits."""
    bits = int(kind[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    if math.isnan(x):
        return 2 ** (bits - 1) if from_double or bits == 64 else 0
    if math.isinf(x):
        return (low if x < 0 else high) % 2**bits
    return min(max(integral(Fraction(x), mode), low), high) % 2**bits


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
        [0.5, 1.5, 2.5, -0.5, -1.5, 127.5, -128.5, 255.5, 65535.5, 2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 2.0**64]
        + [1e30, -1e30, math.inf, -math.inf, math.nan, 0.0, 2147483520.0, 0.9999999],
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


# ---- Comparisons.

COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integer_comparisons(kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    number = (lambda x: signed(int(x), bits)) if kind[0] == "s" else int
    unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"} if kind[0] == "u" else {}
    for name in [*COMPARISONS, *unsigned]:
        got = evaluate(f"setp.{name}.{kind} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", 32, a, b)
        compare = COMPARISONS[unsigned.get(name, name)]
        assert got.tolist() == [compare(number(x), number(y)) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_float_comparisons(kind):
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5]
    x, y = zip(*itertools.product(values, repeat=2), strict=True)
    if kind in HALVES:
        a, b = (torch.tensor(v).to(HALVES[kind]).view(torch.int16).numpy().view(np.uint16) for v in (x, y))
    else:
        a, b = (np.array(v, dtype=FLOATS[int(kind[1:])]) for v in (x, y))
    both = list(zip(x, y, strict=True))
    unordered = [math.isnan(u) or math.isnan(v) for u, v in both]
    for name, compare in COMPARISONS.items():
        for suffix, with_nan in (("", False), ("u", True)):
            got = evaluate(f"setp.{name}{suffix}.{kind} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", 32, a, b)
            assert got.tolist() == [with_nan if n else compare(u, v) for n, (u, v) in zip(unordered, both, strict=True)]
    got = evaluate(f"setp.nan.{kind} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", 32, a, b)
    assert got.tolist() == unordered
    got = evaluate(f"setp.num.{kind} %p0, %a, %b; selp.u32 %d, 1, 0, %p0;", 32, a, b)
    assert got.tolist() == [not n for n in unordered]


def test_predicates():
    a, b = pairs(32)
    less, odd = a < b, (a & 1) == 1
    prepare = "and.b32 %r0, %a, 1; setp.eq.u32 %p2, %r0, 1; "
    for name, join in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        body = f"setp.lt.{name}.u32 %p0|%p1, %a, %b, %p2; selp.u32 %r1, 1, 0, %p0; selp.u32 %r2, 2, 0, %p1; "
        got = evaluate(prepare + body + "or.b32 %d, %r1, %r2;", 32, a, b)
        assert np.array_equal(got, join(less, odd) + 2 * join(~less, odd))
        body = f"setp.lt.u32 %p0, %a, %b; {name}.pred %p1, !%p0, %p2; selp.u32 %d, 1, 0, %p1;"
        assert np.array_equal(evaluate(prepare + body, 32, a, b), join(~less, odd))
    got = evaluate(prepare + "not.pred %p0, %p2; mov.u32 %d, 0; @%p0 mov.u32 %d, 5; @!%p0 mov.u32 %d, 7;", 32, a, b)
    assert np.array_equal(got, np.where(odd, 7, 5))


# ---- Lanes of a warp.


def shuffled(mode: str, by: int, lane: int, clamp: int, segment: int) -> tuple[int, bool]:
    """As the PTX ISA defines shfl."""
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment & 31)}[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode):
    for by, width in itertools.product((0, 1, 3, 16, 31), (1, 2, 8, 16, 32)):
        segment = 32 - width & 31
        clamp = 0 if mode == "up" else 31
        body = f"shfl.sync.{mode}.b32 %r0|%p0, %a, {by}, {segment << 8 | clamp}, -1; selp.u32 %r1, 256, 0, %p0;"
        got = evaluate(body + "add.u32 %d, %r0, %r1;", 32, LANES + 100, threads=32)
        expected = [shuffled(mode, by, lane, clamp, segment) for lane in range(32)]
        assert got.tolist() == [100 + source + 256 * inside for source, inside in expected], (by, width)


def test_votes_and_matches():
    values = np.array([3, 5, 3, 3, 5, 9, 0, 0] * 4, dtype=np.uint32)
    for mask in (0xFFFFFFFF, 0x0000FF00, 0x00000001, 0xF0F0F0F0):
        # Each lane has a mask that names it: those outside have theirs.
        choose = f"mov.u32 %r7, %laneid; mov.u32 %r8, 1; shl.b32 %r8, %r8, %r7; and.b32 %r9, %r8, {mask}; "
        choose += f"setp.ne.u32 %p7, %r9, 0; selp.b32 %r9, {mask}, {mask ^ 0xFFFFFFFF}, %p7; "
        members = [[k for k in range(32) if (mask >> k & 1) == (mask >> lane & 1)] for lane in range(32)]

        def run(body, choose=choose):
            return evaluate(choose + "setp.eq.u32 %p0, %a, 3; " + body, 32, values, threads=32).tolist()

        threes = [[bool(values[k] == 3) for k in lanes] for lanes in members]
        assert run("vote.sync.any.pred %p1, %p0, %r9; selp.u32 %d, 1, 0, %p1;") == [any(t) for t in threes]
        assert run("vote.sync.all.pred %p1, !%p0, %r9; selp.u32 %d, 1, 0, %p1;") == [not any(t) for t in threes]
        assert run("vote.sync.uni.pred %p1, %p0, %r9; selp.u32 %d, 1, 0, %p1;") == [len(set(t)) == 1 for t in threes]
        assert run("vote.sync.ballot.b32 %d, %p0, %r9;") == [
            sum(1 << k for k in lanes if values[k] == 3) for lanes in members
        ]
        equal = [sum(1 << k for k in members[lane] if values[k] == values[lane]) for lane in range(32)]
        assert run("match.any.sync.b32 %d, %a, %r9;") == equal
        everyone = [len({int(values[k]) for k in lanes}) == 1 for lanes in members]
        assert run("match.all.sync.b32 %r0|%p1, %a, %r9; selp.u32 %d, %r0, 0, %p1;") == [
            sum(1 << k for k in lanes) * same for lanes, same in zip(members, everyone, strict=True)
        ]
        reductions = {"add.u32": sum, "min.u32": min, "max.s32": max, "and.b32": lambda v: np.bitwise_and.reduce(v),
                      "or.b32": lambda v: np.bitwise_or.reduce(v), "xor.b32": lambda v: np.bitwise_xor.reduce(v)}  # fmt: skip
        for name, reduce in reductions.items():
            assert run(f"redux.sync.{name} %d, %a, %r9;") == [
                int(reduce([int(values[k]) for k in lanes])) for lanes in members
            ]
        assert run("elect.sync %r0|%p1, %r9; selp.u32 %r1, 32, 0, %p1; add.u32 %d, %r0, %r1;") == [
            lanes[0] + 32 * (lanes[0] == lane) for lane, lanes in enumerate(members)
        ]


def test_collectives_of_some_lanes():
    body = "setp.lt.u32 %p0, %a, 5; mov.u32 %d, 77; @%p0 bra IN; bra OUT; IN: activemask.b32 %d; "
    body += "shfl.sync.idx.b32 %r1, %a, 4, 31, 31; add.u32 %d, %d, %r1; OUT: bar.warp.sync -1;"
    assert evaluate(body, 32, LANES, threads=32).tolist() == [31 + 4] * 5 + [77] * 27


def test_divergence():
    # A loop of as many passes as the lane's number, with a branch in it; then the lanes are together again.
    body = """mov.u32 %r0, 0; mov.u32 %r1, 0;
    LOOP: setp.ge.u32 %p0, %r0, %a; @%p0 bra DONE; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra EVEN;
    add.u32 %r1, %r1, 100; bra NEXT; EVEN: add.u32 %r1, %r1, %r0; NEXT: add.u32 %r0, %r0, 1; bra LOOP;
    DONE: activemask.b32 %r3; setp.eq.u32 %p2, %r3, -1; selp.u32 %r3, 0, 1000000, %p2; add.u32 %d, %r1, %r3;"""
    expected = [sum(100 if k % 2 else k for k in range(n)) for n in range(32)]
    assert evaluate(body, 32, LANES, threads=32).tolist() == expected


def test_calls_and_local_memory():
    # Squares into local memory of the caller, which a function reads by a generic address; it has local memory too.
    function = """
.func (.param .b32 result) pick(.param .b64 table, .param .b32 index)
{ .reg .b32 %i<4>; .reg .b64 %x<6>; .local .align 4 .b8 mine[16];
  ld.param.u32 %i0, [index]; ld.param.u64 %x0, [table]; mul.wide.u32 %x1, %i0, 4; add.u64 %x2, %x0, %x1;
  ld.u32 %i1, [%x2]; mov.u64 %x3, mine; st.local.u32 [%x3+8], %i1; ld.local.u32 %i2, [mine+8];
  st.param.b32 [result], %i2; ret; }
"""
    body = """.local .align 4 .b8 squares[128]; mov.u64 %w0, squares; cvta.local.u64 %w1, %w0; mov.u32 %r0, 0;
    FILL: mul.lo.u32 %r1, %r0, %r0; mad.lo.u32 %r1, %a, 1000, %r1; mad.wide.u32 %w2, %r0, 4, %w0;
    st.local.u32 [%w2], %r1; add.u32 %r0, %r0, 1; setp.lt.u32 %p0, %r0, 32; @%p0 bra FILL;
    { .param .b64 p0; .param .b32 p1; .param .b32 back; st.param.b64 [p0], %w1; st.param.b32 [p1], %a;
      call.uni (back), pick, (p0, p1); ld.param.b32 %d, [back]; }"""
    got = evaluate(body, 32, LANES, threads=32, outside=function)
    assert got.tolist() == [1000 * n + n * n for n in range(32)]


# ---- Blocks.

BLOCK = """.visible .entry {name}(.param .u64 out) {{ .reg .b32 %r<16>; .reg .b64 %w<8>; .reg .pred %p<4>;
.shared .align 16 .b8 tile[1024]; ld.param.u64 %w0, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %r0; mad.wide.u32 %w1, %r3, 4, %w0; {body} ret; }}"""


def run_block(body: str, grid: int, block: int, out: torch.Tensor) -> list[int]:
    name = unique("block")
    load(BLOCK.format(name=name, body=body), name)
    launch(name, grid, block, out)
    return out.tolist()


def test_barrier_reductions():
    out = torch.zeros(96, dtype=torch.int32)
    body = "setp.lt.u32 %p0, %r0, 40; bar.red.popc.u32 %r4, 0, %p0; bar.red.or.pred %p1, 0, %p0; "
    body += "barrier.sync.aligned 0; barrier.red.and.pred.aligned %p2, 0, %p0; "
    body += "selp.u32 %r5, 100, 0, %p1; selp.u32 %r6, 1000, 0, %p2; add.u32 %r4, %r4, %r5; add.u32 %r4, %r4, %r6; "
    assert run_block(body + "st.global.u32 [%w1], %r4;", 1, 96, out) == [140] * 96


def test_shared_memory_is_refilled_for_every_block():
    out = torch.zeros(4, dtype=torch.int32)
    with machine.options(races=False):
        assert run_block("ld.shared.u32 %r4, [tile]; st.shared.u32 [tile], 1; st.global.u32 [%w1], %r4;", 4, 1, out) == [-1] * 4


def test_order_of_warps_and_blocks():
    for warps, blocks in itertools.product((False, True), repeat=2):
        turn = torch.zeros(1 + 4 * 64, dtype=torch.int32)
        with machine.options(reverse_warps=warps, reverse_blocks=blocks):
            run_block("atom.global.add.u32 %r4, [%w0], 1; st.global.u32 [%w1+4], %r4;", 4, 64, turn)
        turns = turn[1:].view(4, 2, 32)
        expected = torch.arange(256).view(4, 2, 32)
        expected = expected.flip(0) if blocks else expected
        assert torch.equal(turns, (expected.flip(1) if warps else expected).int())


def test_indices():
    name = unique("indices")
    specials = ["tid", "ntid", "ctaid", "nctaid"]
    body = "".join(f"mov.u32 %r{k}, %{s}.{x}; " for k, (s, x) in enumerate(itertools.product(specials, "xyz")))
    # (block in the grid) * threads + thread
    body += "mad.lo.u32 %r12, %r8, %r10, %r7; mad.lo.u32 %r12, %r12, %r9, %r6; mul.lo.u32 %r13, %r3, %r4; "
    body += "mul.lo.u32 %r13, %r13, %r5; mad.lo.u32 %r14, %r2, %r4, %r1; mad.lo.u32 %r14, %r14, %r3, %r0; "
    body += "mad.lo.u32 %r14, %r12, %r13, %r14; mad.wide.u32 %w1, %r14, 4, %w0; red.global.add.u32 [%w1], 1; "
    load(BLOCK.format(name=name, body=body), name)
    for grid, block in (((1, 1, 1), (1, 1, 1)), ((2, 3, 4), (5, 3, 2)), ((7, 1, 2), (1, 33, 1)), ((1, 2, 1), (64, 1, 9))):
        out = torch.zeros(math.prod(grid) * math.prod(block), dtype=torch.int32)
        machine.launch(name, grid, block, [out.data_ptr().to_bytes(8, "little")])
        assert out.tolist() == [1] * len(out)


ATOMICS = {
    "add.u32": lambda old, b: old + b, "add.s32": lambda old, b: old + b, "min.u32": min, "max.u32": max,
    "and.b32": lambda old, b: old & b, "or.b32": lambda old, b: old | b, "xor.b32": lambda old, b: old ^ b,
    "exch.b32": lambda old, b: b, "inc.u32": lambda old, b: 0 if old >= b else old + 1,
    "dec.u32": lambda old, b: b if old == 0 or old > b else old - 1,
    "min.s32": lambda old, b: min(old, b, key=lambda x: signed(x, 32)),
    "max.s32": lambda old, b: max(old, b, key=lambda x: signed(x, 32)),
}  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, space):
    operands = [0xFFFFFFF0 + k if k % 3 else k + 2 for k in range(16)]
    out = torch.zeros(40, dtype=torch.int32)
    out[16] = 7
    out[17:33] = torch.tensor([signed(x, 32) for x in operands], dtype=torch.int32)
    place = "%w0+64" if space == "global" else "tile"
    body = "ld.global.u32 %r4, [%w1+68]; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [tile], 7; bar.sync 0; "
    body += f"atom.{space}.{name} %r5, [{place}], %r4; st.global.u32 [%w1], %r5; bar.sync 0; "
    body += f"ld.{space}.u32 %r6, [{place}]; @%p0 st.global.u32 [%w0+132], %r6;"
    got = [x % 2**32 for x in run_block(body, 1, 16, out)]
    old, seen = 7, []
    for b in operands:
        seen.append(old)
        old = ATOMICS[name](old, b) % 2**32
    assert got[:16] == seen and got[33] == old


def test_other_atomics():
    out = torch.zeros(64, dtype=torch.float64)
    add = "mov.f64 %w2, 0d3FE0000000000000; red.global.add.f64 [%w0], %w2; mov.f32 %r4, 0f3E800000; "
    add += "red.global.add.f32 [%w0+8], %r4; mov.u64 %w3, 0x100000000; red.global.add.u64 [%w0+16], %w3; "
    run_block(add + "atom.global.cas.b64 %w4, [%w0+24], 0, 5;", 2, 64, out)
    assert out[0] == 64 and out[1:2].view(torch.float32)[0] == 32
    assert out[2:4].view(torch.int64).tolist() == [128 << 32, 5]


def test_cp_async():
    out = torch.zeros(64 + 64, dtype=torch.int32)
    out[64:] = torch.arange(64, dtype=torch.int32)
    body = "mov.u32 %r4, tile; mad.lo.u32 %r4, %r0, 16, %r4; mad.wide.u32 %w2, %r0, 16, %w0; "
    body += "cp.async.cg.shared.global [%r4], [%w2+256], 16; setp.eq.u32 %p0, %r0, 3; selp.u32 %r6, 0, 4, %p0; "
    body += "cp.async.ca.shared.global [%r4+512], [%w2+260], 4, %r6; cp.async.commit_group; cp.async.wait_group 0; "
    body += "bar.sync 0; xor.b32 %r5, %r0, 15; mad.lo.u32 %r5, %r5, 16, 0; ld.shared.v2.u32 {%r6, %r7}, [%r5+8]; "
    body += "mad.lo.u32 %r9, %r0, 16, 512; ld.shared.u32 %r8, [%r9]; mad.wide.u32 %w3, %r0, 12, %w0; "
    body += "st.global.u32 [%w3], %r6; st.global.u32 [%w3+4], %r7; st.global.u32 [%w3+8], %r8;"
    got = torch.tensor(run_block(body, 1, 16, out)[:48]).view(16, 3)
    expected = [[4 * (15 - k) + 2, 4 * (15 - k) + 3, 0 if k == 3 else 4 * k + 1] for k in range(16)]
    assert got.tolist() == expected


def test_cp_async_before_its_wait():
    body = "mov.u32 %r4, tile; cp.async.ca.shared.global [%r4], [%w0], 4; cp.async.commit_group; "
    with pytest.raises(RuntimeError, match="nobody has written"):
        run_block(body + "ld.shared.u32 %r5, [tile]; st.global.u32 [%w1+4], %r5;", 1, 1, torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(transposed):
    out = torch.zeros(128 + 128, dtype=torch.int32)
    matrices = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    out[128:] = matrices.flatten().view(torch.int32)
    trans = ".trans" if transposed else ""
    body = "mad.wide.u32 %w2, %r0, 16, %w0; ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%w2+512]; shl.b32 %r8, %r0, 4; "
    body += "st.shared.v4.u32 [%r8], {%r4, %r5, %r6, %r7}; bar.sync 0; "
    body += f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r8]; bar.warp.sync -1; "
    body += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r8], {%r7, %r6, %r5, %r4}; bar.sync 0; "
    body += "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r8]; st.global.v4.u32 [%w2], {%r4, %r5, %r6, %r7};"
    run_block(body, 1, 32, out)
    got = out[:128].view(torch.int16).view(4, 8, 8)
    expected = matrices.flip(0)
    assert torch.equal(got, expected.transpose(1, 2) if transposed else expected)


# ---- Matrix products.

MMA = {  # shape, type of the elements, type of the sums
    ("m16n8k8", "bf16", "f32"), ("m16n8k16", "bf16", "f32"), ("m16n8k8", "f16", "f32"), ("m16n8k16", "f16", "f32"),
    ("m16n8k16", "f16", "f16"), ("m16n8k4", "tf32", "f32"), ("m16n8k8", "tf32", "f32"), ("m8n8k4", "f64", "f64"),
    ("m16n8k4", "f64", "f64"), ("m16n8k8", "f64", "f64"), ("m16n8k16", "f64", "f64"),
}  # fmt: skip


def fragment_places(kind: str, m: int, k: int) -> tuple[list, list, list]:
    """Of each lane the places of its elements in A, B and C, in the order of its registers, as the ISA lists them."""
    a, b, c = [], [], []
    for lane in range(32):
        group, within = lane // 4, lane % 4
        rows = [group + 8 * r for r in range(m // 8)]
        if kind in ("f16", "bf16"):
            columns = [[8 * block + 2 * within + h for h in (0, 1)] for block in range(k // 8)]
        else:
            columns = [[4 * block + within] for block in range(k // 4)]
        a.append([(row, column) for pair in columns for row in rows for column in pair])
        b.append([(column, group) for pair in columns for column in pair])
        c.append([(row, 2 * within + h) for row in rows for h in (0, 1)])
    return a, b, c


@pytest.mark.parametrize(("shape", "kind", "sums"), sorted(MMA))
def test_mma(shape, kind, sums):
    m, k = int(shape[1 : shape.index("n")]), int(shape[shape.index("k") + 1 :])
    generator = torch.Generator().manual_seed(k)
    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "f32": torch.float32, "f64": torch.float64}
    A, B, C = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtypes[d])
               for s, d in (((m, k), kind), ((k, 8), kind), ((m, 8), sums)))  # fmt: skip
    if kind == "tf32":
        A, B = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (A, B))
    places = fragment_places(kind, m, k)
    fragments = [
        torch.stack([torch.stack([matrix[at] for at in lane]) for lane in where])
        for matrix, where in zip((A, B, C), places, strict=True)
    ]
    width = 8 if kind == "f64" else 4
    words = [f.contiguous().view(torch.uint8).view(32, -1, width) for f in fragments]
    counts = [w.shape[1] for w in words]
    memory = torch.cat([w.flatten() for w in words] + [torch.zeros(32 * counts[2] * width, dtype=torch.uint8)])
    bits, register, lines, base = 8 * width, "%w" if width == 8 else "%r", [], 0
    names, number = [], 4
    for count in counts:
        names.append([f"{register}{number + j}" for j in range(count)])
        number += count
        lines.append(f"mad.wide.u32 %w1, %r0, {count * width}, %w0;")
        lines += [f"ld.global.b{bits} {name}, [%w1+{base + j * width}];" for j, name in enumerate(names[-1])]
        base += 32 * count * width
    results = [f"{register}{number + j}" for j in range(counts[2])]
    lists = ", ".join("{" + ", ".join(group) + "}" for group in (results, *names))
    lines.append(f"mma.sync.aligned.{shape}.row.col.{sums}.{kind}.{kind}.{sums} {lists};")
    lines.append(f"mad.wide.u32 %w1, %r0, {counts[2] * width}, %w0;")
    lines += [f"st.global.b{bits} [%w1+{base + j * width}], {name};" for j, name in enumerate(results)]
    name = unique("mma")
    text = BLOCK.format(name=name, body=" ".join(lines)).replace("%r<16>", "%r<64>").replace("%w<8>", "%w<64>")
    load(text, name)
    launch(name, 1, 32, memory)
    got = memory[base:].view(dtypes[sums]).view(32, -1).double()
    truth = A.double() @ B.double() + C.double()
    expected = torch.stack([torch.stack([truth[at] for at in lane]) for lane in places[2]])
    tolerance = {"f32": 2e-6, "f64": 1e-14, "f16": 6e-3}[sums]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# ---- Options.

APPROXIMATE = {  # instruction: truth, relative error, absolute error
    "ex2.approx.ftz.f32": (np.exp2, 2.0**-22, 0), "lg2.approx.ftz.f32": (np.log2, 2.0**-22, 2.0**-22),
    "sin.approx.ftz.f32": (np.sin, 0, 2.0**-20.5), "cos.approx.ftz.f32": (np.cos, 0, 2.0**-20.5),
    "sqrt.approx.ftz.f32": (np.sqrt, 2.0**-23, 0), "rcp.approx.ftz.f32": (lambda x: 1 / x, 2.0**-23, 0),
    "rsqrt.approx.ftz.f32": (lambda x: 1 / np.sqrt(x), 2.0**-22.4, 0), "tanh.approx.f32": (np.tanh, 2.0**-11, 0),
    "div.full.f32": (lambda x: 3 / x, 2.0**-22, 0), "div.approx.f32": (lambda x: 3 / x, 2.0**-22, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_instructions(name):
    truth, relative, absolute = APPROXIMATE[name]
    a = np.random.default_rng(3).uniform(0.1, 4, 2048).astype(np.float32)
    exact = truth(a.astype(np.float64))
    operands = "0f40400000, %a" if "div" in name else "%a"
    bound = relative * np.abs(exact) + absolute + 2.0**-24 * np.abs(exact)
    errors = {}
    for approximate in machine.APPROXIMATE:
        with machine.options(approximate=approximate):
            errors[approximate] = evaluate(f"{name} %d, {operands};", 32, a).view(np.float32) - exact
        assert (np.abs(errors[approximate]) <= bound * 1.01).all()
    assert np.abs(errors["exact"]).max() < np.abs(errors["plus"]).max()
    signs = np.sign(errors["random"])
    assert 0.4 < (signs > 0).mean() < 0.6
    # A relative error goes away from 0, or towards it.
    by_size = (a <= 0.5) | (a >= 2) if "lg2" in name else absolute == 0
    direction = np.where(by_size, np.sign(exact), 1)
    assert (errors["plus"] * direction > 0).mean() > 0.9 and (errors["minus"] * direction < 0).mean() > 0.9


def test_what_cannot_be_executed():
    with pytest.raises(RuntimeError, match=r"snippet_\d+\.ptx:\d+: cannot execute tcgen05\.alloc\.b32 in snippet_"):
        evaluate("tcgen05.alloc.b32 %d, %a;", 32, LANES)
    with pytest.raises(RuntimeError, match="cannot execute add.cc.u32"):
        evaluate("add.cc.u32 %d, %a, %a;", 32, LANES)
    with pytest.raises(RuntimeError, match="cannot execute bar.sync"):
        evaluate("bar.sync 1; mov.u32 %d, 0;", 32, LANES)
    with pytest.raises(RuntimeError, match="too few operands"):
        evaluate("shfl.sync.idx.b32 %d, %a, 0;", 32, LANES)
    with pytest.raises(RuntimeError, match="unknown symbol nowhere"):
        evaluate("ld.global.u32 %d, [nowhere];", 32, LANES)


def test_statistics_and_sample():
    out = torch.zeros(64 * 10, dtype=torch.int32)
    machine.statistics(clear=True)
    with machine.options(statistics=2, sampled=2):
        run_block("st.global.u32 [%w1], 1; setp.gt.u32 %p0, %r0, 99; @%p0 bra AWAY; AWAY: ", 10, 64, out)
    assert out.view(10, 64)[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    counts = machine.statistics(clear=True)
    (kernel,) = counts["kernels"].values()
    assert counts["launches"] == kernel["launches"] == 1 and kernel["blocks"] == 10
    assert kernel["instructions"] == 2 * 4 * (kernel["static"] - 1) and kernel["lanes"] == 32 * kernel["instructions"]
    assert kernel["requests"] == 8 and kernel["sectors"] == kernel["ideal"] == 8 * 4
    assert machine.statistics()["kernels"] == {}
