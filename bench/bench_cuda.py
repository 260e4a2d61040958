"""octavo on one NVIDIA GPU against its peers: G1 to G10, parity first, everybody in turns, in CUDA graphs.

python bench/bench_cuda.py --json gpu.json        # under 8 minutes
python bench/bench_cuda.py --quick --only G7      # small shapes: does it run?
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Kernels that have not passed parity on a GPU yet are not chosen otherwise, and here is where they pass it:
# who fails gets no number. Read when octavo is imported.
if __name__ == "__main__":
    os.environ["OCTAVO_CUDA_UNPROVEN"] = "1"

import gpu
import peers
from cli import select
from common import RESULT_SAMPLES, Case, Result, Settings, run_case
from goals import run
from goals_cuda import make_goals
from machine import optional

octavo = optional("octavo")
torch = optional("torch")

FULL = Settings(samples=21, min_sample_s=0.006, warmup_s=0.05, repeats=1, longest_s=10.0)
QUICK = Settings(5, min_sample_s=0.001, warmup_s=0.01, warmup_calls=1, repeats=0, probes=1, quick=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="octavo on one NVIDIA GPU against its peers")
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and fact here")
    parser.add_argument("--samples", type=int, help=f"rounds per case; a result needs {RESULT_SAMPLES}")
    parser.add_argument("--only", metavar="TEXT", help="only cases with these whole words in id and label")
    parser.add_argument("--seconds", type=float, default=450.0, help="start no case after that time (450)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if octavo is None:
        raise SystemExit("octavo is not installed: pip install . first, or set PYTHONPATH=python")
    if torch is None or not torch.cuda.is_available():
        raise SystemExit("bench_cuda.py needs torch and an NVIDIA GPU that it sees")
    goals = make_goals(args.quick)
    chosen = {id(case) for case in select([goal.case for goal in goals], args.only)}
    goals = [goal for goal in goals if id(goal.case) in chosen]
    if not goals:
        raise SystemExit(f"no such case: --only {args.only!r}")
    peers.prepare()
    settings = QUICK if args.quick else FULL
    settings = replace(settings, samples=args.samples or settings.samples)
    facts, clock = gpu.facts(), gpu.clock()
    print(gpu.facts_line(facts))
    limits = gpu.GpuLimits(clock, *((1024, 64 << 20) if args.quick else (8192, 1 << 30)))

    def measure(case: Case) -> Result:
        try:
            return run_case(case, limits, settings, clock)
        finally:  # this case's graphs and buffers; torch compiles one function for a few shapes only
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()

    return run("cuda", goals, settings, measure, facts, args.seconds, args.json)


if __name__ == "__main__":
    sys.exit(main())
