// The CUDA kernels run on the host, thread by thread, under ASan and UBSan (emulator.h), against the CPU's drivers: equal to
// the bit, in whatever order blocks and threads run. test_cuda_emulated [seed]
#include "test_linear.h"
#include "test_norm.h"
#include "test_prune.h"
#include "test_quantize.h"
#include "test_select.h"

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(atoi(argv[1])) : 1;
  emulated::random.seed(seed);
  octavo::test::Harness t(seed);
  octavo::test::test_quantize(t);
  octavo::test::test_norm(t);
  octavo::test::test_select(t);
  octavo::test::test_prune(t);
  octavo::test::test_linear(t);
  return t.report();
}
