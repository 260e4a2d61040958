#!/bin/sh
# test_emulator.sh BUILD: the emulator and its sanitizers find the faults that test_emulator.cpp plants, and nothing where
# there is none.
set -eu
build=$1

expect() { # expect PROGRAM FAULT 0|1
  if "$build/$1" "$2" >/dev/null 2>&1; then found=0; else found=1; fi
  [ "$found" = "$3" ] || { echo "$1 $2: expected $3, got $found" >&2; exit 1; }
}
for program in test_emulator_address test_emulator_thread; do
  expect $program none 0
  for fault in unwaited unequal_lanes lost_lane; do expect $program $fault 1; done
done
expect test_emulator_address outside 1
for fault in no_barrier no_release no_acquire block_order; do expect test_emulator_thread $fault 1; done
echo "the emulator finds every planted fault"
