#!/bin/sh
# Everything that needs a GPU, in at most ten minutes, without a network and without root: build, tests, benchmark,
# sanitizers. Each step has its log in the folder that is named; the numbers are in its bench.json.
#
#     sh tests/cuda/run_gpu.sh FOLDER [build | test | bench | memcheck | racecheck ...]
#
# python3 has torch, CuPy, Triton, scikit-build-core, pybind11, cmake, ninja, pytest, hypothesis and ml_dtypes. What was
# built stays in build/gpu-site, for a later call without the first step.
set -u
cd "$(dirname "$0")/../.."
if [ $# -lt 1 ]; then
  sed -n '2,9s/^# \{0,1\}//p' tests/cuda/run_gpu.sh
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
steps=${*:-build test bench memcheck racecheck}
python=${PYTHON:-python3}
end=$(($(date +%s) + ${SECONDS_IN_ALL:-585}))

export PATH="$PATH:/usr/local/cuda/bin" PYTHONPATH="$PWD/build/gpu-site"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export OCTAVO_CUDA_UNPROVEN=1 OCTAVO_TEST_CUDA=1 OCTAVO_REQUIRE=native

wanted() {
  case " $steps " in *" $1 "*) true ;; *) false ;; esac
}

# step NAME SECONDS COMMAND...: for that long at most, and no longer than what is left of all. Interrupted, pytest still
# says what has failed.
step() {
  name=$1 limit=$2
  shift 2
  wanted "$name" || return 0
  left=$((end - $(date +%s)))
  [ "$left" -ge "$limit" ] || limit=$left
  started=$(date +%s)
  if [ "$limit" -ge 5 ]; then
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
  else
    echo "out of time" >"$out/$name.log"
    status=124
  fi
  [ $status -eq 0 ] || failed="$failed $name"
  echo "== $name: status $status after $(($(date +%s) - started)) s"
  tail -n "$shown" "$out/$name.log"
}
failed="" shown=15

step build 240 env CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" NVCC_APPEND_FLAGS=--threads=4 \
  "$python" -m pip install --no-build-isolation --no-deps --no-index --disable-pip-version-check --upgrade \
  --target build/gpu-site --config-settings=build-dir=build/gpu --config-settings=cmake.define.OCTAVO_CUDA=ON .
step test 200 env OCTAVO_TEST_EXAMPLES=100 "$python" -m pytest -W default -p no:cacheprovider -q tests/test_cuda.py

# The sanitizers come last, and a minute is kept for each; a case of the benchmark that has begun is not cut short.
reserve=0
for tool in memcheck racecheck; do
  if wanted $tool; then reserve=$((reserve + 60)); fi
done
left=$((end - $(date +%s) - reserve))
shown=50
step bench "$left" "$python" bench/bench_cuda.py --json "$out/bench.json" --seconds "$((left - 40))"
shown=15

# Without its caching allocator torch gives each tensor memory of its own: what lies behind it is nobody's.
step memcheck 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
  compute-sanitizer --tool memcheck --error-exitcode 9 "$python" tests/cuda/sanitize.py
step racecheck 120 compute-sanitizer --tool racecheck --error-exitcode 9 "$python" tests/cuda/sanitize.py
echo "== ${failed:+failed:}${failed:-all passed}"
[ -z "$failed" ]
