#include "dispatch.h"

#include <atomic>

#include "check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace octavo {
namespace {

struct Machine {
  bool avx2 = false, avxvnni = false, avx512vnni = false, avx512vbmi2 = false, amx = false;
  bool neondot = false, neoni8mm = false;
};

#if defined(__x86_64__)

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

constexpr int kTileData = 18;  // the number of the tile registers among the processor's states

// Whether Linux would give them.
bool tiles_supported() {
#if defined(__linux__)
  uint64_t states = 0;
  return syscall(SYS_arch_prctl, 0x1021, &states) == 0 &&
         ((states >> kTileData) & 1u);  // ARCH_GET_XCOMP_SUPP
#else
  return false;
#endif
}

// Linux gives the tile registers only to processes that ask. A process that has them needs larger alternate signal
// stacks, so it is asked for only when AMX is chosen; one with a small signal stack already is refused.
[[maybe_unused]] bool request_tiles() {  // a build without AMX never asks
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, kTileData) == 0;  // ARCH_REQ_XCOMP_PERM
#else
  return false;
#endif
}

// CPUID says what the processor has, XGETBV which registers the operating system saves.
Machine detect() {
  Machine machine;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return machine;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), f16c = bit(c, 29);
  if (!osxsave) return machine;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm_saved = (low & 0x6u) == 0x6u, zmm_saved = (low & 0xE6u) == 0xE6u;
  const bool tiles_saved = (low & 0x60000u) == 0x60000u;
  unsigned b7 = 0, c7 = 0, d7 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return machine;
  machine.avx2 = ymm_saved && fma && f16c && bit(b7, 5) && bit(b7, 8);  // AVX2, BMI2
  unsigned a71 = 0;
  if (a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d)) machine.avxvnni = machine.avx2 && bit(a71, 4);
  const bool avx512 = bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);  // F, DQ, BW, VL
  machine.avx512vnni = machine.avx2 && zmm_saved && avx512 && bit(c7, 11);
  machine.avx512vbmi2 = machine.avx512vnni && bit(c7, 6);
  machine.amx = machine.avx512vbmi2 && tiles_saved && bit(d7, 24) && bit(d7, 25) && tiles_supported();
  return machine;
}

#elif defined(__linux__) && defined(__aarch64__)

// The numbers are the kernel's: HWCAP_ASIMDDP and HWCAP2_I8MM, which older C libraries do not name.
Machine detect() {
  Machine machine;
  machine.neondot = (getauxval(AT_HWCAP) >> 20) & 1u;
  machine.neoni8mm = machine.neondot && ((getauxval(AT_HWCAP2) >> 13) & 1u);
  return machine;
}

#else

Machine detect() { return {}; }

#endif

// In the order of Kernels.
#define OCTAVO_VECTOR_KERNELS(Unit) \
  &kQuantize##Unit, &kPrune##Unit, &kNorm##Unit, &kDepthwise##Unit, &kEmbedding##Unit, &kWeightOnly##Unit

std::vector<Kernels> build_table() {
  [[maybe_unused]] const Machine machine = detect();
  return {
      {"scalar", true, nullptr, OCTAVO_VECTOR_KERNELS(Scalar), &kGemmScalar, &kSparseScalar},
#ifdef OCTAVO_HAVE_AVX2
      {"avx2", machine.avx2, nullptr, OCTAVO_VECTOR_KERNELS(Avx2), &kGemmAvx2, &kSparseAvx2},
#endif
#ifdef OCTAVO_HAVE_AVXVNNI
      {"avxvnni", machine.avxvnni, nullptr, OCTAVO_VECTOR_KERNELS(Avx2), &kGemmAvxVnni, &kSparseAvx2},
#endif
#ifdef OCTAVO_HAVE_AVX512VNNI
      {"avx512vnni", machine.avx512vnni, nullptr, OCTAVO_VECTOR_KERNELS(Avx512Vnni), &kGemmAvx512Vnni,
       machine.avx512vbmi2 ? &kSparseAvx512Vbmi2 : &kSparseAvx2},
#endif
#ifdef OCTAVO_HAVE_AMX
      {"amx", machine.amx, request_tiles, OCTAVO_VECTOR_KERNELS(Avx512Vnni), &kGemmAmx, &kSparseAmx},
#endif
#ifdef OCTAVO_HAVE_NEON
      {"neon", true, nullptr, OCTAVO_VECTOR_KERNELS(Neon), &kGemmNeon, &kSparseScalar},
#endif
#ifdef OCTAVO_HAVE_NEONDOT
      {"neondot", machine.neondot, nullptr, OCTAVO_VECTOR_KERNELS(Neon), &kGemmNeonDot, &kSparseScalar},
#endif
#ifdef OCTAVO_HAVE_NEONI8MM
      {"neoni8mm", machine.neoni8mm, nullptr, OCTAVO_VECTOR_KERNELS(Neon), &kGemmNeonI8mm, &kSparseScalar},
#endif
  };
}

bool usable(const Kernels& k) { return k.available && (!k.enable || k.enable()); }

const Kernels* best_of(const std::vector<Kernels>& table) {
  const Kernels* best = &table.back();
  while (!usable(*best)) --best;  // scalar, the first, always is
  return best;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{best_of(all_kernels())};
  return kernels;
}

}  // namespace

const std::vector<Kernels>& all_kernels() {
  static const std::vector<Kernels> table = build_table();
  return table;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_acquire); }

void set_isa(const std::string& name) {
  if (name.empty()) return chosen().store(best_of(all_kernels()));
  std::string available;
  for (const Kernels& k : all_kernels()) {
    if (name == k.isa && usable(k)) return chosen().store(&k);
    if (k.available) available += (available.empty() ? "" : ", ") + std::string(k.isa);
  }
  fail("isa", "one of " + available, name);
}

}  // namespace octavo
