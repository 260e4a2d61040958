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

// From plain to best, those of each architecture.
enum class Isa {
#define ISA(name) name,
#include "families.inc"
};

constexpr bool is_built(Isa isa) {
  for (const Isa built : {OCTAVO_BUILT}) {  // CMakeLists.txt
    if (isa == built) return true;
  }
  return false;
}

// What the processor and the operating system have.
struct Machine {
#define ISA(name) bool name = false;
#include "families.inc"
};

constexpr int kTileData = 18;  // the number of AMX's tile registers among the processor's states

// Linux gives the tile registers only to processes that ask. A process that has them needs larger alternate signal
// stacks, so it is asked for only when AMX is chosen; one with a small signal stack already is refused.
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  return syscall(SYS_arch_prctl, 0x1023, kTileData) == 0;  // ARCH_REQ_XCOMP_PERM
#else
  return false;
#endif
}

#if defined(__x86_64__)

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

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

// The kernels of an instruction set: of each family the best ones up to it that are built and that the machine can run.
Kernels kernels_of(Isa isa, const Machine& machine) {
  Kernels chosen = {};
  // VBMI2 is not chosen by name: it is the part of AVX-512 that sparse kernels run on where the machine has it.
  const Isa last = isa == Isa::avx512vnni ? Isa::avx512vbmi2 : isa;
#define FAMILY(family, Table, files)    \
  {                                     \
    using namespace family##_on;        \
    const Table*& best = chosen.family; \
    files                               \
  }
#define ON(name) \
  if constexpr (is_built(Isa::name)) best = Isa::name <= last && machine.name ? &name : best;
#include "families.inc"
  return chosen;
}

std::vector<Kernels> build_table() {
  Machine machine = detect();
  machine.scalar = machine.neon = true;  // wherever they are built
  std::vector<Kernels> table;
#define ISA(name)                                                          \
  if (is_built(Isa::name) && Isa::name != Isa::avx512vbmi2) {              \
    table.push_back(kernels_of(Isa::name, machine));                       \
    table.back().isa = #name;                                              \
    table.back().available = machine.name;                                 \
    table.back().enable = Isa::name == Isa::amx ? request_tiles : nullptr; \
  }
#include "families.inc"
  return table;
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
