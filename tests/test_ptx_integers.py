"""The integer instructions of the PTX interpreter against Python's integers."""

import itertools

import numpy as np
import pytest

from .ptx.snippets import UNSIGNED, evaluate, pairs, signed, some_integers


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


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
    assert evaluate(f"shr.u{bits} %d, %a, %b;", bits, a, b).tolist() == [
        int(x) >> y for x, y in zip(a, by, strict=True)
    ]
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
