"""The functions related to the gamma function that the Dirichlet losses use, in float32 and float64. psi = (ln Gamma)'.

    KL(Dir(w) || Dir(1)) = sum_k r(w_k) - r(S) + (K - 1) (psi(S) - 1) - ln Gamma(K),   S = sum_k w_k
    r(x) = (x - 1) (psi(x) - 1) - ln Gamma(x)

r grows like ln x, while the terms of the textbook formula grow like S ln S and cancel. r is 0 at 1, the parameter of a
class without evidence. (csrc/gamma.h has r - 1.) The losses subtract such functions from each other, so some functions
here omit the part that would cancel: the logarithm from psi, 1 / x from psi'(x), and the limit 1 from r'(x) + 1 = (x -
1) psi'(x).

Asymptotic series (Abramowitz & Stegun 6.1.41, 6.3.18, 6.4.12) serve x >= 8. A smaller x is shifted to y = x + N with N
= 6 in float32 and 8 in float64. The recurrence then adds the terms

    q = x (x + 1) .. (x + N - 1),   sum_i 1 / (x + i),   sum_i 1 / (x + i)^2,

which are polynomials in t = x (x + N - 1) divided by 1, q and q^2. They come from the pairs (x + i) (x + N - 1 - i) = t
+ i (N - 1 - i).
"""

import triton
import triton.language as tl

from ._math import INFINITY, _log1p_reduced, _split_exponent


@triton.jit
def _reciprocal(x):
    """1 / x for x > 0. In float64, two Newton steps refine the float32 reciprocal.

    A float64 division calls a routine for its rare cases, for which the compiler then spilled registers.
    """
    if x.dtype == tl.float64:
        # x may exceed the range of float32, so Newton's method processes its mantissa. 2046 - field is the exponent
        # field of 2^-exponent.
        field = (x.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        power = ((2046 - field) << 52).to(tl.float64, bitcast=True)
        mantissa = x * power
        r = (1.0 / mantissa.to(tl.float32)).to(tl.float64)
        r = r * (2.0 - mantissa * r)
        r = r * (2.0 - mantissa * r)
        return tl.where(x < INFINITY, r * power, 0.0)
    else:
        return 1.0 / x


@triton.jit
def _shifted(x):
    """Return (whether x is shifted, y, 1 / y, t, 1 / q, sum_i 1 / (x + i)); the last three only hold for shifted x."""
    small = x < 8.0
    if x.dtype == tl.float64:
        y = tl.where(small, x + 8.0, x)
        t = x * (x + 7.0)
        q = t * (t + 6.0) * ((t + 22.0) * t + 120.0)
        numerator = (x + x + 7.0) * (((t * 4.0 + 84.0) * t + 504.0) * t + 720.0)
    else:
        y = tl.where(small, x + 6.0, x)
        t = x * (x + 5.0)
        q = t * ((t + 10.0) * t + 24.0)
        numerator = (x + x + 5.0) * ((t * 3.0 + 20.0) * t + 24.0)
    q = tl.where(small, q, 1.0)
    # One division yields both reciprocals.
    both = _reciprocal(y * q)
    inverse = both * y
    return small, y, both * q, t, inverse, numerator * inverse


@triton.jit
def _log_gap(v):
    """ln y - psi(y) for y = 1 / v with y >= 8 in float64 and y >= 6 in float32."""
    z = v * v
    if v.dtype == tl.float64:
        s = z * 0.083333333333333333 - 0.021092796092796093
        s = s * z + 0.0075757575757575758
        s = s * z - 0.0041666666666666667
        s = s * z + 0.0039682539682539683
        s = s * z - 0.0083333333333333333
        s = s * z + 0.083333333333333333
    else:
        s = z * 3.968254e-3 - 8.3333333e-3
        s = s * z + 8.3333333e-2
    return z * s + v * 0.5


@triton.jit
def _log(y):
    """ln y for a normal number y > 0, infinity or NaN."""
    if y.dtype == tl.float64:
        return tl.log(y)
    else:
        exponent, fraction = _split_exponent(y)
        return tl.where(y < INFINITY, _log1p_reduced(fraction) + exponent.to(tl.float32) * 0.6931471805599453, y)


@triton.jit
def digamma(x, replaced, argument):
    """psi(x) in float64 with an error below 2e-15 max(1, |psi|) for x > 0, NaN elsewhere.

    Where `replaced` is true, x must be >= 8, and the function uses the logarithm of `argument` instead of that of x.
    """
    small, y, v, _, _, reciprocals = _shifted(x)
    value = _log(tl.where(replaced, argument, y)) - _log_gap(v) - tl.where(small, reciprocals, 0.0)
    return tl.where(x > 0.0, value, float("nan"))


@triton.jit
def trigamma(x):
    """Return (psi'(x), psi'(x) minus 1 / x where x >= 8, 1 - (x - 1) psi'(x)) for x > 0, NaN elsewhere.

    The relative errors are 3e-15 in float64 and 4e-7 in float32; for the last value this holds where x >= 8.
    """
    small, _, v, t, inverse, _ = _shifted(x)
    z = v * v
    if x.dtype == tl.float64:
        s = z * -7.0921568627450980 + 1.1666666666666667
        s = s * z - 0.25311355311355311
        s = s * z + 0.075757575757575758
        s = s * z - 0.033333333333333333
        s = s * z + 0.023809523809523810
        s = s * z - 0.033333333333333333
        s = s * z + 0.16666666666666667
        squares = ((t * 8.0 + 476.0) * t + 11928.0) * t + 163560.0
        squares = (((squares * t + 1334592.0) * t + 6586272.0) * t + 18817920.0) * t + 25401600.0
    else:
        s = (z * 2.3809524e-2 - 3.3333333e-2) * z + 1.6666667e-1
        squares = ((((t * 6.0 + 135.0) * t + 1208.0) * t + 5480.0) * t + 13152.0) * t + 14400.0
    half = s * v + 0.5
    value = half * z + v + tl.where(small, squares * inverse * inverse, 0.0)
    value = tl.where(x > 0.0, value, float("nan"))
    one_minus_slope = tl.where(small, 1.0 - (x - 1.0) * value, v * (1.0 - (1.0 - v) * half))
    return value, tl.where(small, value, half * z), one_minus_slope


@triton.jit
def dirichlet_term(x):
    """r(x) for x > 0, NaN elsewhere. For x >= 1 its error is below 1.5e-6 in float32 and 4e-15 in float64; r(1) is
    exactly 0.

    r(y) = -ln(y) / 2 + (1 - ln(2 pi)) / 2 + a series in v = 1 / y, and after the shift by N

        r(x) = r(y) + N (1 - psi(y)) - (x - 1) sum_i 1 / (x + i) + ln q.

    The logarithms combine to one, ln(y (y^N / q)^2) / 2. A constant moves from it to the other terms, so that less
    cancels.
    """
    small, y, v, _, inverse, reciprocals = _shifted(x)
    y2 = y * y
    if x.dtype == tl.float64:
        s = v * -0.44325980392156863 + 0.47281045751633987
        s = s * v + 0.083333333333333333
        s = s * v - 0.089743589743589744
        s = s * v - 0.021092796092796093
        s = s * v + 0.023010323010323010
        s = s * v + 0.0075757575757575758
        s = s * v - 0.0084175084175084175
        s = s * v - 0.0041666666666666667
        s = s * v + 0.0047619047619047619
        s = s * v + 0.0039682539682539683
        s = s * v - 0.0047619047619047619
        s = s * v - 0.0083333333333333333
        s = s * v + 0.011111111111111111
        s = s * v + 0.083333333333333333
        s = s * v + 0.33333333333333333
        # The constant is 2^-16 inside the logarithm and 8 ln 2 outside.
        ratio = (y2 * y2) * (y2 * y2) * (inverse * 0.00390625)
        shifted = _log_gap(v) * 8.0 + (2.4548225555204376 - (x - 1.0) * reciprocals)
    else:
        s = v * 3.968254e-3 - 4.7619048e-3
        s = s * v - 8.3333333e-3
        s = s * v + 1.1111111e-2
        s = s * v + 8.3333333e-2
        s = s * v + 3.3333333e-1
        # The constant is 2^-12 inside the logarithm and 6 ln 2 outside.
        ratio = y2 * y2 * y2 * (inverse * 0.015625)
        shifted = _log_gap(v) * 6.0 + (1.8411169166403281 - (x - 1.0) * reciprocals)
    series = s * v - 0.41893853320467274
    log = _log(y * tl.where(small, ratio * ratio, 1.0))
    value = tl.where(small, series + shifted, series) - log * 0.5
    value = tl.where(x > 0.0, value, float("nan"))
    return tl.where(x == 1.0, 0.0, value)


@triton.jit
def dirichlet_slope(e, offset, one_minus_offset):
    """r'(x) + 1 - offset at x = 1 + e > 0.

    For large x both terms approach 1, so the result is then computed from `one_minus_offset` = 1 - offset.
    """
    x = e + 1.0
    value, _, one_minus_slope = trigamma(x)
    return tl.where(x < 8.0, e * value - offset, one_minus_offset - one_minus_slope)
