// Arithmetic of f16 and bf16, and of pairs of them: through float, and rounded once more, which is exact for add and
// sub; mul and fma through double.
#include "half.h"

#include "select.h"

namespace ptx {

namespace {

enum class Op { ADD, SUB, MUL, FMA, MIN, MAX, MIN_NAN, MAX_NAN, NEG, ABS, EX2, TANH };

// The exact sum x * y + z, rounded to odd in float, so that rounding it again does no harm.
inline float fma_to_odd(float x, float y, float z) {
  const double product = double(x) * double(y), sum = product + z;
  const double error = (product - (sum - (sum - product))) + (z - (sum - product));
  const float r = static_cast<float>(sum);
  if ((double(r) == sum && !(std::fabs(error) > 0)) || (to_bits(r) & 1) || !std::isfinite(r)) return r;
  const double left = sum - double(r) + error;
  return left > 0 ? std::nextafter(r, INFINITY) : left < 0 ? std::nextafter(r, -INFINITY) : r;
}
inline float smaller(float a, float b) {
  return a != a ? b : b != b ? a : a == b ? from_bits<float>(to_bits(a) | to_bits(b)) : a < b ? a : b;
}
inline float larger(float a, float b) {
  return a != a ? b : b != b ? a : a == b ? from_bits<float>(to_bits(a) & to_bits(b)) : a > b ? a : b;
}

template <class H, Op K>
inline uint16_t of(uint16_t a, uint16_t b, uint16_t c) {
  constexpr bool half = std::is_same_v<H, Half>;
  if (K == Op::NEG) return a ^ 0x8000;
  if (K == Op::ABS) return a & 0x7fff;
  const float x = H::widened(a), y = H::widened(b);
  switch (K) {
    case Op::ADD: return H::narrowed(x + y);
    case Op::SUB: return H::narrowed(x - y);
    case Op::MUL: return H::narrowed(fma_to_odd(x, y, -0.0f));
    case Op::FMA: return H::narrowed(fma_to_odd(x, y, H::widened(c)));
    case Op::MIN: return H::narrowed(smaller(x, y));
    case Op::MAX: return H::narrowed(larger(x, y));
    case Op::MIN_NAN: return H::narrowed(x != x ? x : y != y ? y : smaller(x, y));
    case Op::MAX_NAN: return H::narrowed(x != x ? x : y != y ? y : larger(x, y));
    // Relative errors of 2^-9.9 (f16) and 2^-7 (bf16, whose only form flushes).
    case Op::EX2:
      return half ? H::narrowed(approximated(std::exp2(x), 1.0467e-3, x, 11))
                  : H::narrowed(flushed(approximated(std::exp2(flushed(x)), 0x1p-7, x, 12)));
    // An absolute error of 2^-10.987 (f16), a relative one of 2^-8 (bf16).
    default: return H::narrowed(approximated(std::tanh(x), half ? 0x1p-11 : 0x1p-8, x, 13));
  }
}

template <class H, Op K, bool Pair>
void halves(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<uint32_t> a(w, i.a), b(w, i.b >= 0 ? i.b : i.a), c(w, i.c >= 0 ? i.c : i.a);
  auto at = [&](int l, int shift) {
    return uint32_t(of<H, K>(uint16_t(a[l] >> shift), uint16_t(b[l] >> shift), uint16_t(c[l] >> shift)));
  };
  each<uint32_t>(w, i.d, lanes, [&](int l) { return Pair ? at(l, 0) | at(l, 16) << 16 : at(l, 0); });
}

template <Op K>
Execute of_type(Type t) {
  switch (t) {
    case F16: return &halves<Half, K, false>;
    case BF16: return &halves<Bfloat, K, false>;
    case F16X2: return &halves<Half, K, true>;
    default: return &halves<Bfloat, K, true>;
  }
}

}  // namespace

bool select_half(Selector& s) {
  const std::string& name = s.name;
  const bool bfloat = s.type == BF16 || s.type == BF16X2, nan = s.has("NaN");
  if (s.has_any({"sat", "relu", "xorsign"}) || (s.has("ftz") && !(name == "ex2" && bfloat))) return false;
  s.use_all(s.type);
  if ((s.operands() == 4) != (name == "fma")) return false;
  if (name == "add") return s.with(of_type<Op::ADD>(s.type));
  if (name == "sub") return s.with(of_type<Op::SUB>(s.type));
  if (name == "mul") return s.with(of_type<Op::MUL>(s.type));
  if (name == "fma") return s.with(of_type<Op::FMA>(s.type));
  if (name == "min") return s.with(nan ? of_type<Op::MIN_NAN>(s.type) : of_type<Op::MIN>(s.type));
  if (name == "max") return s.with(nan ? of_type<Op::MAX_NAN>(s.type) : of_type<Op::MAX>(s.type));
  if (name == "neg") return s.with(of_type<Op::NEG>(s.type));
  if (name == "abs") return s.with(of_type<Op::ABS>(s.type));
  if (name == "ex2") return s.with(of_type<Op::EX2>(s.type));
  if (name == "tanh") return s.with(of_type<Op::TANH>(s.type));
  return false;
}

}  // namespace ptx
