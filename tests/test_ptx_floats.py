"""The floating-point instructions of the PTX interpreter against Python's fractions, numpy and torch."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from .ptx.snippets import (
    EVERY_HALF,
    FLOATS,
    HALVES,
    as_halves,
    evaluate,
    float_pairs,
    pairs,
    rounded,
    rounded_half,
    same_floats,
    signed,
    some_floats,
)

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
    with np.errstate(over="ignore"):
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
            keyed = [choose((u, math.copysign(1, u)), (v, math.copysign(1, v)))[0] for u, v in zip(x, y, strict=True)]
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
