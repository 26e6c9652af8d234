"""The elementary functions of the kernels in float32 and float64.

FAST (a constexpr of every kernel that needs it) selects the approximate instructions of NVIDIA GPUs; their users state
the errors. Without FAST, the functions use polynomials and plain arithmetic, which run on any target and in the
interpreter. The polynomials are those of csrc/math.h.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def scalar(value, C: tl.constexpr):
    """Convert a number argument to the arithmetic dtype. It is float64 on a GPU, a Python float in the interpreter."""
    return tl.full((), value, C)


@triton.jit
def rounded_product(a, b):
    """Return a b for a sum over threads, at the cost of a multiplication.

    The compiler contracts a plain product and the first addition behind it to one operation without the rounding
    between. In a sum over threads, each thread then rounds another operand, and the threads that share the sum differ
    in its last bit.
    """
    return tl.fma(a, b, tl.zeros_like(a))


@triton.jit
def split(x):
    """Return (mantissa, int32 exponent) with x = mantissa 2^exponent and |mantissa| in [1, 2), also for subnormal x.

    For 0, infinity and NaN the mantissa is x and the exponent 0.
    """
    if x.dtype == tl.float64:
        subnormal = tl.abs(x) < 2.2250738585072014e-308
        word = tl.where(subnormal, x * 4503599627370496.0, x).to(tl.int64, bitcast=True)
        field = (word >> 52) & 0x7FF
        special = (field == 0) | (field == 0x7FF)
        mantissa = ((word & -0x7FF0000000000001) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
        exponent = (field - 1023).to(tl.int32) - tl.where(subnormal, 52, 0)
    else:
        subnormal = tl.abs(x) < 1.17549435e-38
        word = tl.where(subnormal, x * 8388608.0, x).to(tl.int32, bitcast=True)
        field = (word >> 23) & 0xFF
        special = (field == 0) | (field == 0xFF)
        mantissa = ((word & -0x7F800001) | 0x3F800000).to(tl.float32, bitcast=True)
        exponent = (field - 127) - tl.where(subnormal, 23, 0)
    return tl.where(special, x, mantissa), tl.where(special, 0, exponent)


@triton.jit
def scale(x, exponent):
    """Return x 2^exponent for |x| near 1. In two steps, both factors are finite and subnormal results are correct."""
    if x.dtype == tl.float64:
        whole = tl.minimum(tl.maximum(exponent, -2044), 2046)
        half = whole >> 1
        one = ((half + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
        other = ((whole - half + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        whole = tl.minimum(tl.maximum(exponent, -252), 254)
        half = whole >> 1
        one = ((half + 127) << 23).to(tl.float32, bitcast=True)
        other = ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
    return x * one * other


@triton.jit
def split_quotient(a, b):
    """Split a / b, which may leave the range, into two factors near the square root of |a / b|.

    For x and y of similar size, no intermediate result of (x first) (y second) overflows or underflows unless the
    product does.
    """
    numerator, numerator_exponent = split(a)
    denominator, denominator_exponent = split(b)
    # If a is 0, the second factor must be 1: x times a large power of 2 could overflow, and 0 * inf is NaN.
    exponent = tl.where(a == 0.0, 0, numerator_exponent - denominator_exponent)
    return scale(numerator / denominator, exponent >> 1), scale(
        tl.zeros_like(numerator) + 1.0, exponent - (exponent >> 1)
    )


@triton.jit
def exponential(x, SMALLEST: tl.constexpr = True):
    """exp(x) within 4 ulp, as 2^n 2^f. exp2 alone would lose as many digits as x log2(e) has before the point.

    Without SMALLEST, results below 1.7e-38 are 0 on a GPU, which saves registers.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    # 2^n is computed as 2^(n - 1) 2, because 2^128 overflows while the result for n = 128 may not; for negative n as
    # 2^(n + 1) / 2, because a GPU flushes 2^-127 to 0 while the result for n = -126 is a normal number.
    bounded = tl.where(x > 100.0, 100.0, x)
    bounded = tl.where(bounded < -150.0, -150.0, bounded)
    # Adding 1.5 * 2^23 rounds to the nearest integer.
    n = (bounded * 1.4426950408889634 + 12582912.0) - 12582912.0
    r = (bounded - n * 0.693359375) + n * 2.12194440e-4
    one = tl.where(n < 0.0, -1.0, 1.0) if SMALLEST else 1.0
    return tl.exp2(r * 1.4426950408889634 + one) * tl.exp2(n - one)


@triton.jit
def exponential_of_half(x, FAST: tl.constexpr):
    """exp(x / 2). FAST uses ex2.approx (error 2^-22) and corrects the rounding error of x log2(e) / 2."""
    if FAST and x.dtype == tl.float32:
        t = x * 0.7213475108146667
        # log2(e) / 2 is 0.7213475108146667 + 9.629815e-9. The minimum replaces the NaN of inf - inf by a number.
        lost = tl.minimum(tl.fma(x, 0.7213475108146667, -t) + x * 9.6298151675e-9, 0.001)
        return rounded_product(tl.exp2(t), lost * 0.6931471805599453 + 1.0)
    else:
        return exponential(x * 0.5)


@triton.jit
def _log1p_reduced(f):
    """log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1] with a relative error of 1e-7, also near 0."""
    z = f * f
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    return f + z * (p * f - 0.5)


@triton.jit
def _split_exponent(x):
    """Return (exponent, fraction) with x = 2^exponent (1 + fraction) and 1 + fraction in [sqrt(1/2), sqrt(2))."""
    # 0x3f3504f3 are the bits of sqrt(1/2).
    shifted = x.to(tl.int32, bitcast=True) - 0x3F3504F3
    fraction = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    return shifted >> 23, fraction


@triton.jit
def logarithm(x):
    """log(x) of any number, including subnormal float32: -inf at 0 and NaN below 0."""
    if x.dtype == tl.float64:
        y = tl.log(x)
    else:
        subnormal = x < 1.17549435e-38
        exponent, fraction = _split_exponent(tl.where(subnormal, x * 33554432.0, x))
        power = exponent.to(tl.float32) - tl.where(subnormal, 25.0, 0.0)
        y = _log1p_reduced(fraction) + power * 0.6931471805599453
    y = tl.where(x == 0.0, -INFINITY, y)
    y = tl.where(x < 0.0, float("nan"), y)
    # Infinity and NaN are returned unchanged.
    return tl.where(x < INFINITY, y, x)


@triton.jit
def sincos_reduced(a):
    """Sine and cosine of an angle in [-pi/4, pi/4]. The float64 polynomials are those of fdlibm."""
    z = a * a
    if a.dtype == tl.float64:
        s = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-8
        s = z * s + 2.75573137070700676789e-6
        s = z * s - 1.98412698298579493134e-4
        s = z * s + 8.33333333332248946124e-3
        s = z * s - 1.66666666666666324348e-1
        c = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-9
        c = z * c - 2.75573143513906633035e-7
        c = z * c + 2.48015872894767294178e-5
        c = z * c - 1.38888888888741095749e-3
        c = z * c + 4.16666666666666019037e-2
    else:
        s = (z * -1.9515295891e-4 + 8.3321608736e-3) * z - 1.6666654611e-1
        c = (z * 2.443315711809948e-5 - 1.388731625493765e-3) * z + 4.166664568298827e-2
    return a + a * (z * s), (c * z - 0.5) * z + 1.0


@triton.jit
def fast_log2(x):
    """lg2.approx. Its error is at most 2^-22 for x in (1/2, 2) and two units in the last place elsewhere."""
    return libdevice.fast_log2f(x)


@triton.jit
def fast_sincos(a):
    """sin.approx and cos.approx. Their error is at most 2^-21.19 for a in [-pi, pi] (CUDA C++ Programming Guide)."""
    return libdevice.fast_sinf(a), libdevice.fast_cosf(a)
