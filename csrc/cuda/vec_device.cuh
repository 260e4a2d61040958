// One lane of float on the device: those words of cpu/vec_*.h that cpu/activation.inl speaks, so that its functions are
// compiled for the device as they are, and give the same bits.
#pragma once

#include "numerics.h"
#include "runtime.h"

#define OCTAVO_LANES_FN __device__ inline

namespace octavo {
namespace {

using F32 = float;
using Mask = bool;

OCTAVO_LANES_FN F32 set1(float v) { return v; }
OCTAVO_LANES_FN F32 add(F32 a, F32 b) { return __fadd_rn(a, b); }
OCTAVO_LANES_FN F32 sub(F32 a, F32 b) { return __fsub_rn(a, b); }
OCTAVO_LANES_FN F32 mul(F32 a, F32 b) { return __fmul_rn(a, b); }
OCTAVO_LANES_FN F32 div(F32 a, F32 b) { return __fdiv_rn(a, b); }
OCTAVO_LANES_FN F32 fma(F32 a, F32 b, F32 c) { return __fmaf_rn(a, b, c); }
OCTAVO_LANES_FN F32 min(F32 a, F32 b) { return a < b ? a : b; }  // b if either is NaN
OCTAVO_LANES_FN F32 max(F32 a, F32 b) { return a > b ? a : b; }
OCTAVO_LANES_FN F32 abs(F32 v) { return float_of(bits_of(v) & 0x7FFFFFFFu); }
OCTAVO_LANES_FN Mask less_equal(F32 a, F32 b) { return a <= b; }
OCTAVO_LANES_FN F32 keep(Mask m, F32 v) { return m ? v : 0.0f; }
OCTAVO_LANES_FN F32 bits_to_exponent(F32 v) { return float_of(bits_of(v) << 23); }

}  // namespace
}  // namespace octavo
