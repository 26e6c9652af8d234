// Approximate instructions: the C library's function, off by the error that the PTX ISA documents if
// options.approximate says so.
#include "select.h"

namespace ptx {

namespace {

// The random sign is a function of the argument, as an instruction's error is.
double sign(double x, unsigned salt) {
  if (options.approximate == Approximate::PLUS) return 1;
  if (options.approximate == Approximate::MINUS) return -1;
  uint64_t h = to_bits(x) ^ salt;
  h *= 0x9E3779B97F4A7C15ull;
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9ull;
  h ^= h >> 32;
  return (h & 1) ? 1 : -1;
}
bool exact() { return options.approximate == Approximate::EXACT; }
float relative(double y, double error, double x, unsigned salt) {
  return static_cast<float>(exact() ? y : y * (1 + sign(x, salt) * error));
}
float absolute(double y, double error, double x, unsigned salt) {
  return static_cast<float>(exact() ? y : y + sign(x, salt) * error);
}

// "2 ulp" over the full range: 2^-22 of the result.
struct Ex2 {
  static float f(float a) { return relative(exact() ? std::exp2(a) : std::exp2(double(a)), 0x1p-22, a, 1); }
};
// An absolute error of 2^-22 for arguments in (0.5, 2), a relative one of 2^-22 outside.
struct Lg2 {
  static float f(float a) {
    const double y = exact() ? std::log2(a) : std::log2(double(a));
    return a > 0.5f && a < 2.0f ? absolute(y, 0x1p-22, a, 2) : relative(y, 0x1p-22, a, 2);
  }
};
// An absolute error of 2^-20.5 in [-2 pi, 2 pi]; in [-pi, pi] 2^-21.41 and 2^-21.19 (CUDA C++ Programming Guide).
struct Sin {
  static float f(float a) {
    const double error = std::fabs(a) <= 3.1415927f ? 3.5893e-7 : 6.743e-7;
    return absolute(exact() ? std::sin(a) : std::sin(double(a)), error, a, 3);
  }
};
struct Cos {
  static float f(float a) {
    const double error = std::fabs(a) <= 3.1415927f ? 4.1803e-7 : 6.743e-7;
    return absolute(exact() ? std::cos(a) : std::cos(double(a)), error, a, 4);
  }
};
// A relative error of 2^-23.
struct Sqrt {
  static float f(float a) { return relative(std::sqrt(double(a)), 0x1p-23, a, 5); }
};
// 1 ulp: a relative error of 2^-23.
struct Rcp {
  static float f(float a) { return relative(1.0 / double(a), 0x1p-23, a, 6); }
};
// A relative error of 2^-22.9; of 2^-22.4 = 1.807e-7 in older editions, which is taken.
struct Rsqrt {
  static float f(float a) { return relative(1.0 / std::sqrt(double(a)), 1.807e-7, a, 7); }
};
// A relative error of 2^-11.
struct Tanh {
  static float f(float a) { return relative(std::tanh(a), 0x1p-11, a, 8); }
};

template <class O, bool Flush>
void function(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a), d(w, i.d);
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) d.set(l, canonical(maybe_flushed<Flush>(O::f(maybe_flushed<Flush>(a[l])))));
}
template <class O>
Execute function_of(bool flush) {
  return flush ? &function<O, true> : &function<O, false>;
}

// rcp and rsqrt .approx.ftz.f64: of the upper word of the argument alone, the lower word of the result is 0. The error
// is 2^-23 of the result.
template <bool Root>
void upper_word(Warp& w, const Instruction& i, uint32_t lanes) {
  constexpr double SMALLEST = 2.2250738585072014e-308;
  constexpr uint64_t UPPER = 0xffffffff00000000ull;
  Lanes<double> a(w, i.a);
  each<double>(w, i.d, lanes, [&](int l) {
    const double x = from_bits<double>(to_bits(a[l]) & UPPER);
    double y = x != x ? x : std::fabs(x) < SMALLEST ? std::copysign(INFINITY, x) : Root ? 1 / std::sqrt(x) : 1 / x;
    if (std::fabs(y) < SMALLEST) y = std::copysign(0.0, y);
    if (!exact()) y *= 1 + sign(x, 9) * 0x1p-23;
    return from_bits<double>(to_bits(y) & UPPER);
  });
}

// "2 ulp" for .full over the full range. .approx is a * (1 / b): 0 for 2^126 < |b| < 2^128, NaN there if a is infinite.
template <bool Full, bool Flush>
void div(Warp& w, const Instruction& i, uint32_t lanes) {
  Lanes<float> a(w, i.a), b(w, i.b);
  each<float>(w, i.d, lanes, [&](int l) {
    const float x = maybe_flushed<Flush>(a[l]), y = maybe_flushed<Flush>(b[l]);
    const double size = std::fabs(y), q = double(x) / double(y);
    if (!Full && size > 0x1p126 && size < 0x1p128) return canonical(x * std::copysign(0.0f, y));
    return canonical(maybe_flushed<Flush>(relative(q, 0x1p-22, q, 10)));
  });
}

}  // namespace

float approximated(double y, double error, double x, unsigned salt) { return relative(y, error, x, salt); }

bool select_approximate(Selector& s) {
  const bool flush = s.has("ftz");
  const std::string& name = s.name;
  s.use_all(s.type);
  if (s.type == F64) return s.with(name == "rcp" ? &upper_word<false> : name == "rsqrt" ? &upper_word<true> : nullptr);
  if (s.type != F32) return false;
  if (name == "ex2") return s.with(function_of<Ex2>(flush));
  if (name == "lg2") return s.with(function_of<Lg2>(flush));
  if (name == "sin") return s.with(function_of<Sin>(flush));
  if (name == "cos") return s.with(function_of<Cos>(flush));
  if (name == "sqrt") return s.with(function_of<Sqrt>(flush));
  if (name == "rcp") return s.with(function_of<Rcp>(flush));
  if (name == "rsqrt") return s.with(function_of<Rsqrt>(flush));
  if (name == "tanh") return s.with(function_of<Tanh>(false));
  if (name != "div") return false;
  if (s.has("full")) return s.with(flush ? &div<true, true> : &div<true, false>);
  return s.with(flush ? &div<false, true> : &div<false, false>);
}

}  // namespace ptx
