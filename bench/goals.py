"""Cases with something asked of octavo in each: measured, judged, printed and kept, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import targets
from common import Case, Result, Settings, show_rate, show_time, table, to_json, write_json
from targets import Bound, Verdict

NOT_YET = "not there yet"


@dataclass(frozen=True)
class Goal:
    case: Case
    bounds: Sequence[Bound]
    note: Callable[[Result], str] | None = None  # one more line below the table


def run(
    title: str,
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
        heading = f"[{done}/{len(goals)}, {now() - start:.0f} s] {goal.case.id} {goal.case.label}"
        if now() - start > seconds:
            print(f"\n{heading}: out of time", flush=True)
            status = status or 2
            continue
        print(f"\n{heading} ...", flush=True)
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
        if goal.note is not None:
            print(goal.note(result))
        print(*(f"  target {targets.show(verdict)}" for verdict in judged[-1]), sep="\n", flush=True)
        if any(row.ours and row.time is None and row.status != NOT_YET for row in result.rows):
            status = 1
        if json_path is not None:
            document = to_json(title, facts, settings, results)
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
