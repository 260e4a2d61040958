// Which kernels run: an instruction set is used only if it was built and the machine has it, decided here alone.
#pragma once

#include <string>
#include <vector>

#include "octavo.h"

namespace octavo {

struct Kernels {
  const char* isa;
  bool available;    // the processor and the operating system have it
  bool (*enable)();  // what has to succeed before the first use, or nullptr
  // of the vector unit (OCTAVO_VECTOR_KERNELS in dispatch.cpp)
  const QuantizeKernels* quantize;
  const PruneKernels* prune;
  const NormKernels* norm;
  const DepthwiseKernels* depthwise;
  const EmbeddingKernels* embedding;
  const WeightOnlyKernels* weight_only;
  // of its integer products
  const GemmKernels* gemm;
  const SparseKernels* sparse;
};

const Kernels& kernels();                   // the chosen ones: the best available unless set_isa chose others
const std::vector<Kernels>& all_kernels();  // what was built, from plain to best
void set_isa(const std::string& name);      // "" goes back to the best; throws std::invalid_argument

}  // namespace octavo
