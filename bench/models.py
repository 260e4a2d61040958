"""octavo on whole models against its peers: sentence embeddings, a decoder and a convolutional network.

python bench/models.py --json models.json --plot models.png
python bench/models.py --only minilm                 # or llama, resnet, 8x128, prefill, decode
python bench/models.py --quick                       # small shapes and models: does it run?
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # read when torch is imported

import peers
import plot
from cli import parse_arguments, select
from common import QUICK, Case, Result, Settings, run_case
from goals import Goal, run
from machine import Clock, Limits, host_facts, host_line, optional, set_threads

Maker = Callable[[bool, int, Path], list[Goal]]

# A call takes milliseconds to seconds: one of them is a sample, and the slow sides get fewer of them.
FULL = Settings(samples=21, warmup_s=0.0, warmup_calls=2, repeats=1, longest_s=60.0)


def makers() -> list[Maker]:

    import models_llama
    import models_minilm
    import models_resnet

    return [models_minilm.make_goals, models_resnet.make_goals, models_llama.make_goals]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(__doc__.splitlines()[0], False, argv, plots=True)
    for name in ("octavo", "torch"):
        if optional(name) is None:
            raise SystemExit(f"models.py needs octavo and torch: {name} is not installed")
    if args.plot is not None and optional("matplotlib") is None:
        raise SystemExit("--plot: needs matplotlib: pip install matplotlib, or '.[bench]'")
    peers.prepare()
    set_threads(args.threads)
    settings = QUICK if args.quick else FULL
    settings = replace(settings, samples=args.samples or settings.samples)
    facts, clock = host_facts(args.threads), Clock()
    core = optional("octavo._core")
    with tempfile.TemporaryDirectory(prefix="octavo-models-") as folder:
        goals = [goal for make in makers() for goal in make(args.quick, args.threads, Path(folder))]
        chosen = {id(case) for case in select([goal.case for goal in goals], args.only)}
        goals = [goal for goal in goals if id(goal.case) in chosen]
        if not goals:
            raise SystemExit(f"no such case: --only {args.only!r}")
        print(host_line(facts))
        limits = Limits(core, args.threads, clock)

        def measure(case: Case) -> Result:
            try:
                return run_case(case, limits, settings, clock)
            finally:
                gc.collect()

        path = args.json or Path(folder) / "models.json"
        status = run("models", goals, settings, measure, facts, float("inf"), path)
        if args.plot is not None and path.exists():
            plot.bars(json.loads(path.read_text()), args.plot)
            print(f"\nplot: {args.plot}")
    return status


if __name__ == "__main__":
    sys.exit(main())
