"""octavo on one NVIDIA GPU against its peers: G1 to G10, parity first, everybody in turns, in CUDA graphs.

python bench/bench_cuda.py --json gpu.json        # under 8 minutes
python bench/bench_cuda.py --quick --only G7      # small shapes: does it run?
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Kernels that have not passed parity on a GPU yet are not chosen otherwise, and here is where they pass it:
# who fails gets no number. Read when octavo is imported.
if __name__ == "__main__":
    os.environ["OCTAVO_CUDA_UNPROVEN"] = "1"

import gpu
import peers
import targets
from cli import select
from common import (
    RESULT_SAMPLES,
    Case,
    Result,
    Settings,
    run_case,
    show_rate,
    show_time,
    table,
    to_json,
    write_json,
)
from goals_cuda import NOT_YET, Goal, make_goals
from machine import optional
from targets import Verdict

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


def run(
    goals: Sequence[Goal],
    settings: Settings,
    measure: Callable[[Case], Result],
    facts: dict[str, Any],
    seconds: float,
    json_path: Path | None = None,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Measures and prints case by case. The exit status: 1 if octavo failed somewhere, 2 if time ran out."""
    start, status = now(), 0
    results: list[Result] = []
    judged: list[list[Verdict]] = []
    for done, goal in enumerate(goals, start=1):
        title = f"[{done}/{len(goals)}, {now() - start:.0f} s] {goal.case.id} {goal.case.label}"
        if now() - start > seconds:
            print(f"\n{title}: out of time", flush=True)
            status = status or 2
            continue
        print(f"\n{title} ...", flush=True)
        try:
            result = measure(goal.case)
        except (
            Exception
        ) as error:  # a case's own failure (memory, a driver's error) leaves the others their turn
            print(f"  failed: {type(error).__name__}: {error}"[:300], flush=True)
            status = 1
            continue
        results.append(result)
        judged.append([bound.judge(result) for bound in goal.bounds])
        print(table(result))
        print(*(f"  target {targets.show(verdict)}" for verdict in judged[-1]), sep="\n", flush=True)
        if any(row.ours and row.time is None and row.status != NOT_YET for row in result.rows):
            status = 1
        if json_path is not None:
            document = to_json("cuda", facts, settings, results)
            for case, verdicts in zip(document["cases"], judged, strict=True):
                case["targets"] = [asdict(verdict) for verdict in verdicts]
            write_json(document, json_path)
    print("\n" + summary(results, judged))
    return status


def summary(results: Sequence[Result], judged: Sequence[Sequence[Verdict]]) -> str:
    lines = []
    for result, verdicts in zip(results, judged, strict=True):
        row = next(row for row in result.rows if row.ours)
        cells = [row.status]
        if row.time is not None and row.rate is not None:
            cells = [show_time(row.time.median), f"{show_rate(row.rate)} {result.unit}"]
            cells += [] if row.of_limit is None else [f"{row.of_limit:.1%} of {result.limit_name}"]
            cells += [] if row.ratio is None else [f"{row.ratio:.2f}x best peer"]
        lines.append(f"{result.id} {result.label}: {', '.join([*cells, *map(targets.show, verdicts)])}")
    return "\n".join(lines)


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

    return run(goals, settings, measure, facts, args.seconds, args.json)


if __name__ == "__main__":
    sys.exit(main())
