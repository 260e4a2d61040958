#!/bin/sh
# test_arm.sh [PROCESSOR...]: the kernels for aarch64, cross-compiled and held to the scalar table on emulated processors
# (make test-arm)
set -eu
cd "$(dirname "$0")/../.."

target=aarch64-linux-gnu
packages="g++-12-$target qemu-user-static"
build=build/arm-tests

fail() {
  echo "make test-arm: $*" >&2
  exit 1
}

missing() {
  for tool in $target-g++-12 $target-objdump qemu-aarch64-static; do
    command -v $tool >/dev/null || return 0
  done
  return 1
}
if missing && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $packages || true
fi
if missing; then fail "the cross compiler or the emulator is missing: apt-get install $packages"; fi

cmake -S . -B $build -G Ninja --log-level=WARNING -DOCTAVO_CPP_TESTS=ON \
  -DOCTAVO_WERROR="${WERROR:-OFF}" -DCMAKE_CXX_COMPILER=$target-g++-12 \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
cmake --build $build --target test_kernels

# The instruction that a kernel is for is in its object file, and in none that processors without it run.
for object in $(find $build/CMakeFiles/test_kernels.dir -name '*.o'); do
  case $object in
    */gemm_neondot.cpp.o) expected="sdot" ;;
    */gemm_neoni8mm.cpp.o) expected="usmmla" ;;
    *) expected="" ;;
  esac
  found=$($target-objdump -d "$object" | grep -Eo '[[:space:]][su]{1,2}(dot|mmla)[[:space:]]' | sort -u | xargs)
  [ "$found" = "$expected" ] || fail "$object: expected '$expected', got '$found'"
  [ -z "$expected" ] || echo "$(basename "$object" .o) holds $expected"
done

run() {  # processor, the instruction set that has to be chosen, tests
  cpu=$1 isa=$2 log=$build/$1.log
  shift 2
  echo "$cpu:"
  # The leak checker needs ptrace, which the emulator lacks.
  ASAN_OPTIONS=detect_leaks=0 \
    qemu-aarch64-static -cpu "$cpu" -L /usr/$target $build/test_kernels "$@" >"$log" || result=failed
  cat "$log"
  [ "${result:-}" != failed ] || fail "$cpu: the test failed"
  head -n 1 "$log" | grep -q "chosen: $isa\$" || fail "$cpu: expected $isa to be chosen"
}
# The processor with every instruction set runs the kernels of all of them. What the others add, a kernel that
# executes what its processor lacks, the object files have shown above: they run where they are asked for.
for cpu in ${*:-max}; do
  case $cpu in
    max) run max neoni8mm ;;
    neoverse-n1) run neoverse-n1 neondot "gemm kernels" ;;
    cortex-a72) run cortex-a72 neon ;;
    *) fail "$cpu: expected max, neoverse-n1 or cortex-a72" ;;
  esac
done
