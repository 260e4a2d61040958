"""The command line of the benchmarks: which cases run, in which process, and what is kept of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import QUICK, RESULT_SAMPLES, Case, Result, Settings, run_all, to_json, write_json
from held import ENVIRONMENTS, held_isa
from machine import Clock, Limits, host_facts, optional, set_threads, usable_cpus

Document = dict[str, Any]
HeldCases = Callable[[bool, int, str], Sequence[Case]]
Draw = Callable[[Document, Path], object]


def parse_arguments(
    description: str, held: bool, argv: Sequence[str] | None = None, plots: bool = False
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small shapes and few samples: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and fact here")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="threads for every side")
    parser.add_argument("--samples", type=int, help=f"rounds per case; a result needs {RESULT_SAMPLES}")
    parser.add_argument("--only", metavar="TEXT", help="only cases with these whole words in id and label")
    parser.set_defaults(isa=None, plot=None)
    if held:
        parser.add_argument("--isa", choices=ENVIRONMENTS, help="only the cases that hold everybody to this")
    if plots:
        parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the cases")
    return parser.parse_args(argv)


def select(cases: Sequence[Case], only: str | None) -> list[Case]:
    """Whole words: C1 is not C10."""
    words = re.compile(rf"(?<!\w){re.escape(only or '')}(?!\w)" if only else "")
    return [case for case in cases if words.search(f"{case.id} {case.label}")]


def held_command(isa: str, json_path: Path, args: argparse.Namespace) -> list[str]:
    command = [sys.executable, sys.argv[0], "--isa", isa, "--json", str(json_path)]
    command += ["--threads", str(args.threads)]
    command += ["--quick"] if args.quick else []
    command += ["--samples", str(args.samples)] if args.samples else []
    return command + (["--only", args.only] if args.only else [])


def run_held(
    isa: str, args: argparse.Namespace, run: Callable[..., Any] = subprocess.run
) -> tuple[int, list[Document]]:
    """This script again, started with the environment that holds everybody to the ISA: its exit status and
    its cases. What it prints is passed through."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "held.json"
        sys.stdout.flush()
        status = run(held_command(isa, path, args), env={**os.environ, **ENVIRONMENTS[isa]}).returncode
        cases: list[Document] = json.loads(path.read_text())["cases"] if path.exists() else []
    if status and not cases:
        print(f"the run held to {isa} ended with status {status}")
    return status, cases


def report_missing(results: Sequence[Result]) -> int:
    wrong = [(r, row) for r in results for row in r.rows if row.ours and row.time is None]
    for result, row in wrong:
        print(f"no number for {result.id} {result.label}: {row.name} {row.status} {row.parity}")
    return 1 if wrong else 0


def main(
    description: str,
    make_cases: Callable[[bool, int], Sequence[Case]],
    held_cases: HeldCases | None = None,
    argv: Sequence[str] | None = None,
    draw: Draw | None = None,
) -> int:
    args = parse_arguments(description, held_cases is not None, argv, draw is not None)
    if optional("octavo") is None:
        raise SystemExit("octavo is not installed: pip install . first, or set PYTHONPATH=python")
    if args.plot is not None and optional("matplotlib") is None:
        raise SystemExit("--plot: needs matplotlib: pip install matplotlib, or '.[bench]'")
    cases: list[Case] = []
    held: dict[str, list[Case]] = {}
    if held_cases is not None and args.isa is not None and held_isa() == args.isa:
        cases = select(held_cases(args.quick, args.threads, args.isa), args.only)
    else:
        if args.isa is None:
            cases = select(make_cases(args.quick, args.threads), args.only)
        if held_cases is not None:
            isas = ENVIRONMENTS if args.isa is None else [args.isa]
            held = {isa: select(held_cases(args.quick, args.threads, isa), args.only) for isa in isas}
    if not cases and not any(held.values()):
        raise SystemExit(f"no such case: --only {args.only!r}, --isa {args.isa!r}")

    settings = QUICK if args.quick else Settings()
    if args.samples:
        settings = Settings(**{**asdict(settings), "samples": args.samples})
    set_threads(args.threads)
    core, clock, facts = optional("octavo._core"), Clock(), host_facts(args.threads)
    results: list[Result] = []
    if cases:
        limits = Limits(core, args.threads, clock)
        results = run_all(description, cases, settings, limits, facts, clock, args.json)
        del limits  # its buffers
    status = report_missing(results)
    document = to_json(description, facts, settings, results)
    available = [] if core is None else core.isas_available()
    for isa, chosen in held.items():
        if not chosen:
            continue
        ids = ", ".join(dict.fromkeys(case.id for case in chosen))
        if isa not in available:
            print(f"\n{ids} on {isa}: skipped, not on this machine or not in this build")
            continue
        print(f"\n{ids} on {isa}: octavo and its peers in a process held to it")
        code, more = run_held(isa, args)
        status = status or int(code != 0)
        document["cases"] += more
        if args.json is not None:
            write_json(document, args.json)
    if args.plot is not None and draw is not None:
        draw(document, args.plot)
        print(f"\nplot: {args.plot}")
    return status
