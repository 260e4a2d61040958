// What it takes to keep a tile's accumulators in registers. Checked in the disassembly of GCC 12: without these, they live
// in memory and a tile runs at half its speed.
#pragma once

// Before a loop over an array of vectors. The array becomes registers only if every loop over it is unrolled early.
#if defined(__clang__) || defined(__CUDACC__)
#define OCTAVO_UNROLL _Pragma("unroll")
#define OCTAVO_ROLLED _Pragma("unroll 1")
#else
#define OCTAVO_UNROLL _Pragma("GCC unroll 16")
#define OCTAVO_ROLLED _Pragma("GCC unroll 1")
#endif

// Before a tile of a product. Inlined into a caller that has other things in its registers, it copies accumulators from
// register to register in every iteration.
#define OCTAVO_NOINLINE __attribute__((noinline))

namespace octavo {
namespace {

// Hides an accumulator's value from what comes next. After the loop: otherwise the stores behind it are moved into it, one
// for each accumulator in every iteration. Between the parts of an iteration: otherwise they are interleaved until the
// registers run out.
template <class Vector>
inline void settle(Vector& v) {
#ifdef __aarch64__
  asm("" : "+w"(v));
#else
  asm("" : "+v"(v));
#endif
}

}  // namespace
}  // namespace octavo
