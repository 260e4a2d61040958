// Memory beside the operands. No standard library here: files compiled for one instruction set include this, and an inline
// function of theirs that the linker picked for all would crash older machines.
#pragma once

#include <cstdint>

namespace octavo {

// Per-thread memory that grows to what was needed and stays: a fresh large allocation costs more in page faults than
// the kernels that use it. Slots never alias. Aligned to 64 bytes.
enum class Slot {
  rows,
  row_scales,
  bias,
  panels,
  grouped_rows,
  image,
  image_scales,
  sample_tops,
  sample_steps,
  planes,
  out_tile,
  taps,
  count  // how many there are
};
void* scratch(Slot slot, int64_t bytes);

}  // namespace octavo
