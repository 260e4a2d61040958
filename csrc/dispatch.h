// Which kernels run: an instruction set is used only if it was built and the machine has it, decided here alone.
#pragma once

#include <string>
#include <vector>

#include "octavo.h"

namespace octavo {

// What runs on an instruction set: a table for each family (families.inc).
struct Kernels {
  const char* isa;
  bool available;    // the processor and the operating system have it
  bool (*enable)();  // what has to succeed before the first use, or nullptr
#define FAMILY(family, Table, files) const Table* family;
#include "families.inc"
};

const Kernels& kernels();                   // the chosen ones: the best available unless set_isa chose others
const std::vector<Kernels>& all_kernels();  // what was built, from plain to best
void set_isa(const std::string& name);      // "" goes back to the best; throws std::invalid_argument

}  // namespace octavo
