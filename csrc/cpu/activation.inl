// relu, gelu (erf and tanh), silu on float32 lanes, equal to the bit on every instruction set: the same operations in the
// same order, fused multiply-adds where they are written. Within 4 ulp of the true value down into the denormals.
//
// Negative tails are products x * e^-a far below 1, so a relative error in them counts. Therefore (1) a is carried as
// hi + lo where its rounding would be amplified by e^a, (2) the power of two is kept 2^64 too large, and 2^-64 is multiplied
// last, so that only the final multiplication can round into a denormal.
#include "../octavo.h"

#ifndef OCTAVO_LANES_FN
#define OCTAVO_LANES_FN inline  // cuda/vec_device.cuh: for the device
#endif

namespace octavo {
namespace {

struct Exp {
  F32 over_one,
      scale;  // e^(hi + lo) = (1 + over_one) * scale * 2^-64; the sum is left to a fused multiply-add
};

// v * e^(hi + lo) without its power of two.
OCTAVO_LANES_FN F32 times_fraction(F32 v, const Exp& e) { return fma(v, e.over_one, v); }

OCTAVO_LANES_FN F32 times_scale(F32 v, F32 scale) { return mul(mul(v, scale), set1(0x1p-64f)); }

// hi in [-173, 1], |lo| small against it.
OCTAVO_LANES_FN Exp exp_parts(F32 hi, F32 lo) {
  // From 2^23 on a float's last bit is worth 1: adding 1.5 * 2^23 rounds to the integer n, and leaves it in the last bits.
  // 127 + 64 more, and they are the exponent of 2^(n + 64).
  const F32 magic = set1(12582912.0f + 191.0f);
  const F32 shifted = fma(hi, set1(0x1.715476p+0f), magic);  // 1 / ln 2
  const F32 n = sub(shifted, magic);
  F32 r = fma(n, set1(-0x1.62e400p-1f), hi);       // ln 2, upper bits: n times it is exact
  r = add(fma(n, set1(-0x1.7f7d1cp-20f), r), lo);  // ln 2, the rest
  F32 q = set1(0x1.6c6a06p-10f);
  q = fma(q, r, set1(0x1.120b5cp-7f));
  q = fma(q, r, set1(0x1.5555bap-5f));
  q = fma(q, r, set1(0x1.5554dep-3f));
  q = fma(q, r, set1(0.5f));
  return {fma(mul(r, r), q, r), bits_to_exponent(shifted)};
}

// The functions below look at |x| <= cut only. Beyond, x goes through and -x is gone; computing that would raise the
// processor's slow path for denormals in every lane.
OCTAVO_LANES_FN F32 beyond_cut(Mask within, F32 y, F32 x) { return select(within, y, max(set1(-0.0f), x)); }

// x / (1 + e^-a) where x >= 0, x * e^-a / (1 + e^-a) where x < 0; a = a_hi + a_lo >= 0.
OCTAVO_LANES_FN F32 times_sigmoid(F32 x, F32 a_hi, F32 a_lo) {
  const Exp e = exp_parts(sub(set1(0.0f), a_hi), sub(set1(0.0f), a_lo));
  const F32 one_plus = add(set1(1.0f), times_scale(times_fraction(set1(1.0f), e), e.scale));
  const Mask negative = is_negative(x);
  const F32 fraction = div(select(negative, times_fraction(x, e), x), one_plus);
  return times_scale(fraction, select(negative, e.scale, set1(0x1p+64f)));
}

OCTAVO_LANES_FN F32 silu(F32 x) {
  const Mask within = less_equal(abs(x), set1(120.0f));
  const F32 z = keep(within, x);
  return beyond_cut(within, times_sigmoid(z, abs(z), set1(0.0f)), x);
}

// x * sigmoid(2u), 2u = x * (c0 + c1 * x^2): Hendrycks and Gimpel, arXiv:1606.08415.
OCTAVO_LANES_FN F32 gelu_tanh(F32 x) {
  const Mask within = less_equal(abs(x), set1(11.5f));
  const F32 z = keep(within, x), magnitude = abs(z);
  const F32 c0 = set1(0x1.988454p+0f), c0_lo = set1(-0x1.857936p-25f);
  const F32 c1 = set1(0x1.2444f2p-4f), c1_lo = set1(0x1.49b16ap-29f);
  const F32 square = mul(z, z), square_lo = fma(z, z, sub(set1(0.0f), square));
  const F32 cubic = mul(c1, square), larger = max(cubic, c0), smaller = min(cubic, c0);
  const F32 w = add(larger, smaller);
  F32 w_lo = add(sub(smaller, sub(w, larger)), add(c0_lo, fma(c1, square, sub(set1(0.0f), cubic))));
  w_lo = fma(c1, square_lo, fma(c1_lo, square, w_lo));
  const F32 a = mul(magnitude, w), a_lo = fma(magnitude, w_lo, fma(magnitude, w, sub(set1(0.0f), a)));
  return beyond_cut(within, times_sigmoid(z, a, a_lo), x);
}

// x * Phi(x), Phi(-a) = e^(-a^2 / 2) * R(a). R(a) / t is a polynomial in t = 1 / (1 + 5/16 a), fitted for a in
// [0, 14.6] with a relative error of 5e-9; t is carried with its error because R amplifies that by 2.6 near 0.
OCTAVO_LANES_FN F32 gelu(F32 x) {
  const Mask within = less_equal(abs(x), set1(14.6f));
  const F32 z = keep(within, x), a = abs(z);
  const F32 d = fma(set1(0.3125f), a, set1(1.0f));
  const F32 d_lo = fma(set1(0.3125f), a, sub(set1(1.0f), d));
  const F32 t = div(set1(1.0f), d);
  const F32 t_lo = mul(t, sub(fma(sub(set1(0.0f), d), t, set1(1.0f)), mul(t, d_lo)));
  const F32 s = add(sub(t, set1(0.515625f)), t_lo);
  F32 p = set1(0x1.4518f2p-7f);
  p = fma(p, s, set1(-0x1.a2c44ep-6f));
  p = fma(p, s, set1(0x1.f27744p-11f));
  p = fma(p, s, set1(0x1.770720p-5f));
  p = fma(p, s, set1(-0x1.312714p-7f));
  p = fma(p, s, set1(-0x1.57dfecp-4f));
  p = fma(p, s, set1(-0x1.df72b2p-7f));
  p = fma(p, s, set1(0x1.7999a2p-3f));
  p = fma(p, s, set1(0x1.5d2510p-2f));
  p = fma(p, s, set1(0x1.606830p-2f));
  p = fma(p, s, set1(0x1.e1cfdap-3f));
  const F32 h = mul(a, set1(-0.5f)), power = mul(h, a), power_lo = fma(h, a, sub(set1(0.0f), power));
  const Exp e = exp_parts(power, power_lo);
  const F32 ratio = fma(t, p, mul(t_lo, p));
  const F32 tail = times_scale(mul(z, times_fraction(ratio, e)), e.scale);  // z * Phi(-a)
  return beyond_cut(within, select(is_negative(z), tail, sub(z, tail)), x);
}

template <Activation kActivation>
OCTAVO_LANES_FN F32 activate(F32 x) {
  switch (kActivation) {
    case Activation::relu: return max(set1(0.0f), x);  // the second operand if NaN
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh: return gelu_tanh(x);
    case Activation::silu: return silu(x);
    default: return x;
  }
}

}  // namespace
}  // namespace octavo
