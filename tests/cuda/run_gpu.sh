#!/bin/sh
# Everything that needs a GPU, in at most ten minutes, without a network and without root: build, tests, sanitizers,
# benchmark. Each step has its time and its log in the folder that is named; the numbers are in its bench.json.
#
#     sh tests/cuda/run_gpu.sh FOLDER [build | test | memcheck | racecheck | bench ...]
#
# python3 has torch, CuPy, Triton, scikit-build-core, pybind11, cmake, ninja, pytest, hypothesis and ml_dtypes. What was
# built stays in build/gpu-site, for a next call without the step.
set -u
cd "$(dirname "$0")/../.."
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
steps=${*:-build test memcheck racecheck bench}
python=${PYTHON:-python3}
end=$(($(date +%s) + ${SECONDS_IN_ALL:-585}))

export PYTHONPATH="$PWD/build/gpu-site" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export OCTAVO_CUDA_UNPROVEN=1 OCTAVO_TEST_CUDA=1 OCTAVO_REQUIRE=native

failed=""
# step NAME SECONDS COMMAND...: no longer than that, nor than what is left of all
step() {
  name=$1 limit=$2
  shift 2
  case " $steps " in *" $name "*) ;; *) return ;; esac
  left=$((end - $(date +%s)))
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "== $name: out of time"
    failed="$failed $name"
    return
  fi
  started=$(date +%s)
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed="$failed $name"
  echo "== $name: status $status after $(($(date +%s) - started)) s"
  tail -n "$([ "$name" = bench ] && echo 60 || echo 15)" "$out/$name.log"
}

# shellcheck disable=SC2016
step build 240 env CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" NVCC_APPEND_FLAGS=--threads=4 \
  "$python" -m pip install --no-build-isolation --no-deps --no-index --disable-pip-version-check --upgrade \
  --target build/gpu-site --config-settings=build-dir=build/gpu --config-settings=cmake.define.OCTAVO_CUDA=ON .
step test 200 "$python" -m pytest -p no:cacheprovider -q tests/test_cuda.py
# Without its caching allocator torch gives each tensor memory of its own, so that what is behind it is known.
step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
  compute-sanitizer --tool memcheck --error-exitcode 9 "$python" tests/cuda/sanitize.py
step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$python" tests/cuda/sanitize.py
left=$((end - $(date +%s) - 40))
step bench 480 "$python" bench/bench_cuda.py --json "$out/bench.json" --seconds "$left"
echo "== ${failed:+failed:$failed}${failed:-all passed}"
[ -z "$failed" ]
