// relu, gelu (erf and tanh), silu on float32 lanes, equal to the bit on every instruction set: the same operations in the
// same order, fused multiply-adds where they are written. Within 4 ulp of the true value down into the denormals.
//
// Negative tails are products x * e^-a far below 1, so a relative error in them counts. Therefore (1) a product in
// the exponent is rounded after its integer part is gone, since e^a would amplify that, (2) the power of two is kept 2^64 too
// large, and 2^-64 is multiplied last, so that only the final multiplication can round into a denormal.
#include "octavo.h"

#ifndef OCTAVO_LANES_FN
#define OCTAVO_LANES_FN inline  // cuda/vec_device.cuh: for the device
#endif

namespace octavo {
namespace {

// x = r + n ln 2, |r| <= 0.35
struct Reduced {
  F32 r, shifted;  // n is in the last bits of shifted
};

// Of factor * x, in [-131, 0] (below, the exponent would wrap), which is not rounded before most of it is taken away.
OCTAVO_LANES_FN Reduced reduce_product(F32 factor, F32 x) {
  // From 2^23 on a float's last bit is worth 1: adding 1.5 * 2^23 rounds to the integer n, and leaves it in the last bits.
  // 127 + 64 more, and they are the exponent of 2^(n + 64).
  const F32 magic = set1(12582912.0f + 191.0f);
  const F32 shifted = fma(mul(factor, set1(0x1.715476p+0f)), x, magic);  // 1 / ln 2
  const F32 n = sub(shifted, magic);
  const F32 r = fma(factor, x, mul(n, set1(-0x1.62e400p-1f)));  // ln 2, upper bits: n times it is exact
  return {fma(n, set1(-0x1.7f7d1cp-20f), r), shifted};          // ln 2, the rest
}

struct Exp {
  F32 over_one, scale;  // (1 + over_one) * scale * 2^-64; the sum is left to a fused multiply-add
};

OCTAVO_LANES_FN Exp exp_parts(const Reduced& x) {
  const F32 r = x.r;
  F32 q = set1(0x1.6c6a06p-10f);
  q = fma(q, r, set1(0x1.120b5cp-7f));
  q = fma(q, r, set1(0x1.5555bap-5f));
  q = fma(q, r, set1(0x1.5554dep-3f));
  q = fma(q, r, set1(0.5f));
  return {fma(mul(r, r), q, r), bits_to_exponent(x.shifted)};
}

// v * e without its power of two.
OCTAVO_LANES_FN F32 times_fraction(F32 v, const Exp& e) { return fma(v, e.over_one, v); }

OCTAVO_LANES_FN F32 times_scale(F32 v, F32 scale) { return mul(mul(v, scale), set1(0x1p-64f)); }

// All three are max(x, 0) - tail(|x|), where the negative tail is added: it is -0.0 at 0. Beyond cut it is gone and not
// computed, since denormals would take the processor's slow path. NaN goes through max.
OCTAVO_LANES_FN F32 magnitude_within(F32 x, float cut) {
  const F32 magnitude = abs(x);
  return keep(less_equal(magnitude, set1(cut)), magnitude);
}
OCTAVO_LANES_FN F32 with_tail(F32 x, F32 tail) { return add(max(set1(-0.0f), x), tail); }

// v * e / (1 + e)
OCTAVO_LANES_FN F32 times_sigmoid(F32 v, const Exp& e) {
  const F32 one_plus = add(set1(1.0f), times_scale(times_fraction(set1(1.0f), e), e.scale));
  return times_scale(div(times_fraction(v, e), one_plus), e.scale);
}

OCTAVO_LANES_FN F32 silu(F32 x) {
  const F32 v = mul(magnitude_within(x, 120.0f), set1(-1.0f));
  return with_tail(x, times_sigmoid(v, exp_parts(reduce_product(set1(1.0f), v))));
}

// x * sigmoid(2u), 2u = x * (c0 + c1 * x^2): Hendrycks and Gimpel, arXiv:1606.08415.
OCTAVO_LANES_FN F32 gelu_tanh(F32 x) {
  const F32 v = mul(magnitude_within(x, 11.5f), set1(-1.0f));
  const F32 c0 = set1(0x1.988454p+0f), c0_lo = set1(-0x1.857936p-25f);
  const F32 c1 = set1(0x1.2444f2p-4f), c1_lo = set1(0x1.49b16ap-29f);
  const F32 square = mul(v, v), square_lo = fma(v, v, sub(set1(0.0f), square));
  const F32 cubic = mul(c1, square), larger = max(cubic, c0), smaller = min(cubic, c0);
  const F32 w = add(larger, smaller);
  F32 w_lo = add(sub(smaller, sub(w, larger)), add(c0_lo, fma(c1, square, sub(set1(0.0f), cubic))));
  w_lo = fma(c1, square_lo, fma(c1_lo, square, w_lo));
  Reduced reduced = reduce_product(v, w);
  reduced.r = fma(v, w_lo, reduced.r);
  return with_tail(x, times_sigmoid(v, exp_parts(reduced)));
}

// x * Phi(x). The tail is -a * Phi(-a) = p * e^(-a^2 / 2) / (1 + a N(a) - c p), where p = -a P(a), c is near sqrt(2 pi), and
// P, N are fitted for a in [0, 14.62] to a relative error of 4e-8. All coefficients are positive, so nothing cancels; and
// what is wrong with p is wrong above and below the line, so its rounding counts less and less as a grows.
OCTAVO_LANES_FN F32 gelu(F32 x) {
  const F32 a = magnitude_within(x, 14.6f), minus_half = mul(a, set1(-0.5f));
  F32 p = set1(-0x1.3410a2p-8f);
  p = fma(p, a, set1(-0x1.6e1aa8p-5f));
  p = fma(p, a, set1(-0x1.904750p-3f));
  p = fma(p, a, set1(-0x1.d1f646p-2f));
  p = fma(p, mul(a, a), minus_half);  // exact where a is small
  F32 n = set1(0x1.80a04ap-7f);
  n = fma(n, a, set1(0x1.cef958p-4f));
  n = fma(n, a, set1(0x1.d18fbap-2f));
  const F32 over_one = fma(p, set1(-0x1.40d964p+1f), mul(a, n));
  const Exp e = exp_parts(reduce_product(minus_half, a));
  return with_tail(x, times_scale(div(times_fraction(p, e), add(set1(1.0f), over_one)), e.scale));
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
