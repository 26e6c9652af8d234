// mma, and ldmatrix and stmatrix, of whole warps.
#include "half.h"
#include "select.h"

namespace ptx {

namespace {

void whole_warp(Warp& w, const Instruction& i, uint32_t lanes) {
  if (lanes != ~0u) fail(w, i, first_lane(lanes), "a matrix instruction in a part of a warp");
}

// Values of a 16-bit type: two in a register. Others: one.
bool is_packed(Type t) { return t == F16 || t == BF16; }
double element(Warp& w, Type type, int offset, int lane, int k) {
  switch (type) {
    case F64: return row<double>(w, offset)[lane];
    case F32: return row<float>(w, offset)[lane];
    // The tensor cores read the upper 19 bits.
    case TF32: return from_bits<float>(row<uint32_t>(w, offset)[lane] & 0xffffe000u);
    case F16: return Half::widened(static_cast<uint16_t>(row<uint32_t>(w, offset)[lane] >> (16 * k)));
    default: return Bfloat::widened(static_cast<uint16_t>(row<uint32_t>(w, offset)[lane] >> (16 * k)));
  }
}

// D = A B + C, A of M x K, B of K x 8. With g = lane / 4 and t = lane % 4, register r of A holds row g + 8 (r % (M/8)),
// register r of B column g, and both hold, in groups of 4 or 8 columns or rows of K, one value or two beside each other
// at t; C and D hold row g + 8 (r / 2), column 2 t + r % 2.
struct Shape {
  int m, k, a, b, c;  // rows, depth, registers of A, of B, of C and D
};
Shape shape_of(int m, int k, Type elements, Type sums) {
  const int depth = is_packed(elements) ? 8 : 4;  // of a register, over the four lanes of a row
  return {m, k, m / 8 * k / depth, k / depth, is_packed(sums) ? m / 8 : m / 4};
}

// Returns the exponent of x. A subnormal number gets the exponent of the smallest normal number of its format.
int exponent(double x, int smallest) {
  uint64_t word;
  memcpy(&word, &x, 8);
  return word << 1 == 0 ? -4096 : std::max(static_cast<int>(word >> 52 & 0x7ff) - 1023, smallest);
}
float toward_zero(double x) {
  const float nearest = float(x);
  if (std::fabs(double(nearest)) <= std::fabs(x) || std::isinf(nearest)) return nearest;
  return std::nextafter(nearest, 0.0f);
}

// Computes a float32 sum as the tensor cores of an A100 do. The ISA does not define the order of additions nor their
// rounding. Fasi, Higham, Mikaitis and Pranesh (Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science
// 7:e330, 2021) measured both. A tensor core adds 8 products of 16-bit elements, or 4 of TF32, to the addend at once.
// It computes the products exactly. It aligns products and addend to the largest exponent among them; the exponent of a
// product is the sum of its factors' exponents. It truncates each to 25 bits, one more than a float32 has, and also
// truncates the sum. (A V100 keeps 24 bits. An H100 keeps 26 and adds twice as many products at once.)
constexpr int ALIGNED_BITS = 24;  // behind the leading one
float sum_of_products(float c, const double* a, const double* b, const int* a_exponent, const int* b_exponent, int n) {
  double exact = c, products[8];
  int largest = exponent(c, -126);
  for (int k = 0; k < n; ++k) {
    products[k] = a[k] * b[k];
    exact += products[k];
    largest = std::max(largest, a_exponent[k] + b_exponent[k]);
  }
  if (!std::isfinite(exact)) return float(exact);
  if (largest < -1000) return float(exact);  // all are zero
  const double unit = std::ldexp(1.0, largest - ALIGNED_BITS), inverse = std::ldexp(1.0, ALIGNED_BITS - largest);
  double sum = std::trunc(c * inverse);
  for (int k = 0; k < n; ++k) sum += std::trunc(products[k] * inverse);
  return toward_zero(sum * unit);
}

void multiply_as_hardware(const double (&A)[16][16], const double (&B)[16][8], double (&D)[16][8], const Shape& s,
                          Type elements) {
  const int at_once = std::min(elements == TF32 ? 4 : 8, s.k), smallest = elements == F16 ? -14 : -126;
  double columns[8][16];
  int rows_exponent[16][16], columns_exponent[8][16];
  for (int k = 0; k < s.k; ++k) {
    for (int y = 0; y < s.m; ++y) rows_exponent[y][k] = exponent(A[y][k], smallest);
    for (int x = 0; x < 8; ++x) {
      columns[x][k] = B[k][x];
      columns_exponent[x][k] = exponent(B[k][x], smallest);
    }
  }
  for (int y = 0; y < s.m; ++y)
    for (int x = 0; x < 8; ++x) {
      float sum = float(D[y][x]);
      for (int k = 0; k < s.k; k += at_once)
        sum = sum_of_products(sum, A[y] + k, columns[x] + k, rows_exponent[y] + k, columns_exponent[x] + k, at_once);
      D[y][x] = double(sum);
    }
}

void mma(Warp& w, const Instruction& i, uint32_t lanes) {
  whole_warp(w, i, lanes);
  const Type elements = i.from, sums = i.type;
  const Shape s = shape_of(static_cast<int>(i.immediate), i.mode, elements, sums);
  const int blocks = s.m / 8, at_once = is_packed(elements) ? 2 : 1, together = is_packed(sums) ? 2 : 1;
  w.f->counts.products += static_cast<uint64_t>(s.m * 8 * s.k * (elements == F64 ? 16 : elements == TF32 ? 2 : 1));
  const int *d = i.v, *a = d + s.c, *b = a + s.a, *c = b + s.b;
  double A[16][16], B[16][8], D[16][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int h = 0; h < at_once; ++h) {
      for (int r = 0; r < s.a; ++r)
        A[g + 8 * (r % blocks)][(r / blocks * 4 + t) * at_once + h] = element(w, elements, a[r], l, h);
      for (int r = 0; r < s.b; ++r) B[(r * 4 + t) * at_once + h][g] = element(w, elements, b[r], l, h);
    }
    for (int r = 0; r < s.m / 4; ++r)
      D[g + 8 * (r / 2)][2 * t + r % 2] = element(w, sums, c[r / together], l, r % together);
  }
  if (sums == F32) multiply_as_hardware(A, B, D, s, elements);
  else
    for (int y = 0; y < s.m; ++y)
      for (int x = 0; x < 8; ++x)
        for (int k = 0; k < s.k; ++k) D[y][x] = std::fma(A[y][k], B[k][x], D[y][x]);
  for (int l = 0; l < 32; ++l)
    for (int r = 0; r < s.m / 4; ++r) {
      const double value = D[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2];
      if (sums == F64) row<double>(w, d[r])[l] = canonical(value);
      else if (sums == F32) row<float>(w, d[r])[l] = canonical(float(value));
      else {
        uint32_t& pair = row<uint32_t>(w, d[r / 2])[l];
        const uint32_t half = Half::narrowed(float(value));
        pair = r % 2 ? (pair & 0xffff) | half << 16 : (pair & 0xffff0000u) | half;
      }
    }
}

// 8 x 8 matrices of 16-bit elements: lane 8 k + r has the address of row r of matrix k.
constexpr int ROW_BYTES = 16;
void addresses(Warp& w, const Instruction& i, int matrix, uint64_t* at) {
  Space space = Space::SHARED;
  for (int r = 0; r < 8; ++r) {
    const int lane = 8 * matrix + r;
    at[r] = resolve(w, i, lane, address_of(w, i, lane), ROW_BYTES, Access::READ, space);
  }
}
// Of the values of a lane the k-th.
uint64_t element_address(const Instruction& i, const uint64_t* at, int lane, int k) {
  const int t = 2 * (lane % 4) + k, g = lane / 4;
  return i.transposed ? at[t] + 2 * g : at[g] + 2 * t;
}
void ldmatrix(Warp& w, const Instruction& i, uint32_t lanes) {
  whole_warp(w, i, lanes);
  uint32_t values[4][32];
  for (int matrix = 0; matrix < i.vector; ++matrix) {
    uint64_t at[8];
    addresses(w, i, matrix, at);
    for (int l = 0; l < 32; ++l) {
      uint16_t half[2];
      for (int k = 0; k < 2; ++k) memcpy(&half[k], reinterpret_cast<void*>(element_address(i, at, l, k)), 2);
      values[matrix][l] = half[0] | uint32_t(half[1]) << 16;
    }
  }
  // The addresses may lie in a register that is written.
  for (int matrix = 0; matrix < i.vector; ++matrix) memcpy(row<uint32_t>(w, i.v[matrix]), values[matrix], 128);
}
// Row by row, so that copies of a row are told from other values that are written to one place.
void stmatrix(Warp& w, const Instruction& i, uint32_t lanes) {
  whole_warp(w, i, lanes);
  for (int matrix = 0; matrix < i.vector; ++matrix) {
    uint16_t rows[8][8];
    for (int l = 0; l < 32; ++l)
      for (int k = 0; k < 2; ++k) {
        const int t = 2 * (l % 4) + k, g = l / 4;
        (i.transposed ? rows[t][g] : rows[g][t]) = static_cast<uint16_t>(row<uint32_t>(w, i.v[matrix])[l] >> (16 * k));
      }
    for (int r = 0; r < 8; ++r) {
      const int lane = 8 * matrix + r;
      Space space = Space::SHARED;
      const uint64_t at = resolve(w, i, lane, address_of(w, i, lane), ROW_BYTES, Access::WRITE, space, rows[r]);
      memcpy(reinterpret_cast<void*>(at), rows[r], ROW_BYTES);
    }
  }
}

bool select_mma(Selector& s) {
  Instruction& i = s.i;
  static const struct {
    const char* name;
    int m, k;
  } shapes[] = {{"m8n8k4", 8, 4}, {"m16n8k4", 16, 4}, {"m16n8k8", 16, 8}, {"m16n8k16", 16, 16}};
  int m = 0, k = 0;
  for (const auto& shape : shapes)
    if (s.has(shape.name)) m = shape.m, k = shape.k;
  if (m == 0 || s.types.size() != 4 || !s.has("row") || !s.has("col")) return false;
  i.type = s.types[0];
  i.from = s.types[1];
  const bool known = (i.from == F64 && i.type == F64) || (i.from == TF32 && i.type == F32 && m == 16 && k <= 8) ||
                     (i.from == BF16 && i.type == F32 && m == 16 && k >= 8) ||
                     (i.from == F16 && (i.type == F32 || i.type == F16) && m == 16 && k >= 8);
  if (!known || s.types[2] != i.from || s.types[3] != i.type || s.has("satfinite")) return false;
  i.immediate = m;
  i.mode = k;
  const Shape shape = shape_of(m, k, i.from, i.type);
  const int counts[] = {shape.c, shape.a, shape.b, shape.c};
  int n = 0;
  for (int q = 0; q < 4; ++q) {
    const Operand& x = s.operand(q);
    const std::vector<Operand> parts = x.kind == Operand::VECTOR ? x.parts : std::vector<Operand>{x};
    if (static_cast<int>(parts.size()) != counts[q]) return false;
    for (const Operand& part : parts) i.v[n++] = s.use(part, i.from == F64 ? F64 : B32);
  }
  return s.together(s.rows.constant(~0u, 32), &mma);
}

}  // namespace

bool select_matrix(Selector& s) {
  if (s.name == "mma") return select_mma(s);
  Instruction& i = s.i;
  const bool load = s.name == "ldmatrix";
  if (!s.has("m8n8") || !s.has("b16")) return false;
  const Operand& values = s.operand(load ? 0 : 1);
  const std::vector<Operand> parts = values.kind == Operand::VECTOR ? values.parts : std::vector<Operand>{values};
  i.vector = static_cast<uint8_t>(parts.size());
  if (i.vector > 4) return false;
  for (int k = 0; k < i.vector; ++k) i.v[k] = s.use(parts[k], B32);
  i.transposed = s.has("trans");
  i.size = 4;
  i.space = Space::SHARED;
  s.use_address(s.operand(load ? 1 : 0));
  return s.together(s.rows.constant(~0u, 32), load ? &ldmatrix : &stmatrix);
}

}  // namespace ptx
