#!/bin/sh
# Runs the CUDA compiler and keeps what it said beside the object, so that a build which compiles a few files anew still
# has the report of all. Warnings are shown.
previous="" object=""
for argument; do
  [ "$previous" != -o ] || object=$argument
  previous=$argument
done
"$@" >"$object.report" 2>&1
status=$?
grep -v -e '^ptxas info' -e '^    [0-9]* bytes stack frame' "$object.report"
exit $status
