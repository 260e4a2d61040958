"""The harness behind every number: contenders interleaved, parity first, machine limits in the same run.

A `Case` is one piece of work and the contenders that do it. `run_case` refuses contenders that fail parity,
warms the rest up, then takes one sample of each in turn (A B C A B C ...) and one of the machine's own limit,
round by round, so that a throttled second hits everybody. A run that lost over 5 % of its CPU time to other
guests of the machine or to other processes, or whose limits moved, is marked noisy and repeated.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from machine import Clock, Limits, Prober, Rates, host_line, lost_shares, optional

UNITS = {"GOP/s": 1e9, "GB/s": 1e9, "TOPS": 1e12, "TB/s": 1e12}
LIMIT_UNITS = {
    "peak": "GOP/s",
    "read": "GB/s",
    "copy": "GB/s",
    "int8 GEMM": "TOPS",  # this and the next: of a GPU
    "device copy": "TB/s",
}
MAX_LOST = 0.05
MAX_DRIFT = 0.20
RESULT_SAMPLES = 15


# ---- what is measured


@dataclass(frozen=True)
class Parity:
    ok: bool
    detail: str  # "exact", a relative error, or where it differs
    figures: dict[str, float] = field(default_factory=dict)  # what else was measured on the way, for the JSON


@dataclass(frozen=True)
class Contender:
    """One side. `call(i)` does `units` units of the case's work on the i-th set of rotated buffers."""

    name: str
    call: Callable[[int], object] | None = None
    check: Callable[[], Parity] | None = None
    ours: bool = False
    units: int = 1
    work: float | None = None  # where this side moves other bytes than the case says (a float weight)
    why_not: str = ""  # the reason that there is no call, such as "not installed"


@dataclass(frozen=True)
class Case:
    id: str
    label: str
    work: float  # operations or bytes of one unit
    unit: str  # one of UNITS
    limit: str  # one of LIMIT_UNITS
    contenders: Callable[[], Sequence[Contender]]  # built when the case runs, freed after it
    operations: float = 0.0  # of one unit; and bytes to and from memory: its place under the roofline
    traffic: float = 0.0
    sparsity: float | None = None  # the share that goes: its place in the plot over sparsity
    environment: dict[str, str] = field(default_factory=dict)  # that holds every contender to one ISA


@dataclass(frozen=True)
class Settings:
    samples: int = 21
    min_sample_s: float = 0.008  # short calls are timed in groups at least this long
    warmup_s: float = 0.15
    warmup_calls: int = 2
    repeats: int = 2  # further attempts at a noisy case
    probes: int = 3  # of each limit, before and after; the best counts
    longest_s: float | None = None  # a contender that was timed for that long takes no further samples
    quick: bool = False


QUICK = Settings(5, min_sample_s=0.003, warmup_s=0.02, warmup_calls=1, repeats=0, probes=1, quick=True)


# ---- statistics and parity


@dataclass(frozen=True)
class Spread:
    median: float
    p10: float
    p90: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    if not values:
        raise ValueError("values: expected at least one sample, got none")
    p10, median, p90 = (float(v) for v in np.percentile(np.asarray(values, np.float64), (10, 50, 90)))
    return Spread(median, p10, p90, len(values))


def as_numpy(array: Any) -> np.ndarray[Any, Any]:
    """NumPy view or copy of a NumPy array or torch tensor; bfloat16 widens to float32."""
    if isinstance(array, np.ndarray):
        return array
    return np.asarray(array.detach().float() if str(array.dtype) == "torch.bfloat16" else array.detach())


def check_equal(got: Any, expected: Any) -> Parity:
    """Same shape, dtype and values, to the bit."""
    g, e = as_numpy(got), as_numpy(expected)
    if g.shape != e.shape or g.dtype != e.dtype:
        return Parity(False, f"expected {e.dtype} {e.shape}, got {g.dtype} {g.shape}")
    bits = f"u{g.dtype.itemsize}"  # as integers: NaN equals itself, -0.0 is not +0.0
    wrong = np.flatnonzero(np.ascontiguousarray(g).view(bits) != np.ascontiguousarray(e).view(bits))
    if wrong.size:
        at = tuple(int(i) for i in np.unravel_index(wrong[0], g.shape))
        return Parity(False, f"{wrong.size} of {g.size} differ, first at {at}: expected {e[at]}, got {g[at]}")
    return Parity(True, "exact")


def check_close(got: Any, expected: Any, tolerance: float) -> Parity:
    """Relative error in the Frobenius norm; a non-finite value fails."""
    g, e = as_numpy(got).astype(np.float64), as_numpy(expected).astype(np.float64)
    if g.shape != e.shape:
        return Parity(False, f"expected shape {e.shape}, got {g.shape}")
    error = float(np.linalg.norm(g - e) / (np.linalg.norm(e) or 1.0))
    return Parity(error <= tolerance, f"err {error:.1e}")


def check_steps(got: Any, expected: Any, share: float) -> Parity:
    """Integers that may differ by one step (another rounding of a tie) on at most `share` of the elements."""
    g, e = as_numpy(got).astype(np.int64), as_numpy(expected).astype(np.int64)
    if g.shape != e.shape:
        return Parity(False, f"expected shape {e.shape}, got {g.shape}")
    off = np.abs(g - e)
    differs = np.count_nonzero(off) / max(off.size, 1)
    ok = bool(off.max(initial=0) <= 1 and differs <= share)
    return Parity(ok, "exact" if not differs else f"{differs:.1e} off by {int(off.max())}")


def check_all(*parities: Parity) -> Parity:
    failed = [p for p in parities if not p.ok]
    return failed[0] if failed else Parity(True, ", ".join(dict.fromkeys(p.detail for p in parities)))


# ---- measuring


@dataclass
class Row:
    name: str
    ours: bool
    status: str  # "ok", "refused" (failed parity), "failed" (raised), or why it is absent
    parity: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # per unit of work
    time: Spread | None = None
    rate: float | None = None
    of_limit: float | None = None
    ratio: float | None = None  # best peer's median / this median


@dataclass
class Result:
    id: str
    label: str
    unit: str
    limit_name: str
    limit: Spread | None
    before: Rates
    after: Rates
    steal: float | None
    others: float | None
    noisy: list[str]
    attempts: int
    rows: list[Row]
    operations: float
    traffic: float
    sparsity: float | None
    environment: dict[str, str]


def inner_calls(seconds_per_call: float, min_sample_s: float) -> int:
    return max(1, min(10_000, math.ceil(min_sample_s / max(seconds_per_call, 1e-9))))


class Runner:
    """One contender: its place in the rotation and how many calls one sample takes."""

    def __init__(self, contender: Contender, settings: Settings, clock: Clock) -> None:
        assert contender.call is not None
        self.contender, self.clock, self.calls, self.index = contender, clock, 1, 0
        self.call = contender.call
        self.timed_s, self.longest_s = 0.0, settings.longest_s
        clock.settle()
        per_call, end, done = math.inf, clock.now() + settings.warmup_s, 0
        while done < settings.warmup_calls or clock.now() < end:
            per_call, done = min(per_call, self._time(1)), done + 1
        self.calls = inner_calls(per_call, settings.min_sample_s)

    def _time(self, calls: int) -> float:
        call, first = self.call, self.index
        self.index += calls
        start = self.clock.now()
        for i in range(first, first + calls):
            call(i)
        return self.clock.now() - start

    def sample(self) -> float | None:
        if self.longest_s is not None and self.timed_s > self.longest_s:
            return None
        self.clock.settle()
        self._time(max(1, self.calls // 8))  # untimed: wakes this side's workers
        seconds = self._time(self.calls)
        self.timed_s += seconds
        return seconds / (self.calls * self.contender.units)


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleave(
    runners: Sequence[Runner], limit: Callable[[], float | None], samples: int, tick: Callable[[], object]
) -> tuple[list[list[float]], list[float]]:
    """`samples` rounds; in each, one sample of every runner in order and one of the machine's limit."""
    taken: list[list[float]] = [[] for _ in runners]
    limits: list[float] = []
    with no_gc():
        for _ in range(samples):
            for runner, seconds in zip(runners, taken, strict=True):
                sample = runner.sample()
                if sample is not None:
                    seconds.append(sample)
            value = limit()
            if value is not None:
                limits.append(value)
            tick()
    return taken, limits


def why_noisy(steal: float | None, others: float | None, before: Rates, after: Rates) -> list[str]:
    lost = {"steal": steal, "other processes": others}
    reasons = [
        f"{name} {share:.1%}" for name, share in lost.items() if share is not None and share > MAX_LOST
    ]
    for name, b in before.items():
        a = after[name]
        if a is not None and b is not None and abs(a - b) > MAX_DRIFT * max(a, b):
            reasons.append(f"{name} went from {b:.0f} to {a:.0f}")
    return reasons


def admit(contender: Contender) -> Row:
    """Parity first: who fails it gets no number."""
    row = Row(contender.name, contender.ours, "ok")
    if contender.call is None or contender.check is None:
        row.status = contender.why_not or "no parity check"
        return row
    try:
        parity = contender.check()
    except Exception as error:  # a peer's own failure is a row, not the end of the run
        row.status, row.parity = "failed", f"{type(error).__name__}: {error}".splitlines()[0][:100]
        return row
    row.parity, row.figures = parity.detail, parity.figures
    if not parity.ok:
        row.status = "refused"
    return row


def run_case(
    case: Case, limits: Prober, settings: Settings, clock: Clock, tick: Callable[[], object] = lambda: None
) -> Result:
    contenders = list(case.contenders())
    rows = [admit(c) for c in contenders]
    timed = [(c, r) for c, r in zip(contenders, rows, strict=True) if r.status == "ok"]
    tries: list[tuple[Result, list[list[float]]]] = []
    while len(tries) <= settings.repeats and (not tries or tries[-1][0].noisy):
        before, start = limits.probe(settings.probes), clock.cpu_time()
        runners = [Runner(c, settings, clock) for c, _ in timed]
        taken, machine = interleave(runners, lambda: limits.sample(case.limit), settings.samples, tick)
        steal, others = lost_shares(start, clock.cpu_time())
        after = limits.probe(settings.probes)
        result = Result(
            id=case.id,
            label=case.label,
            unit=case.unit,
            limit_name=case.limit,
            limit=spread(machine) if machine else None,
            before=before,
            after=after,
            steal=steal,
            others=others,
            noisy=why_noisy(steal, others, before, after),
            attempts=len(tries) + 1,
            rows=rows,
            operations=case.operations,
            traffic=case.traffic,
            sparsity=case.sparsity,
            environment=case.environment,
        )
        tries.append((result, taken))
    result, taken = min(tries, key=lambda t: (len(t[0].noisy), (t[0].steal or 0.0) + (t[0].others or 0.0)))
    result.attempts = len(tries)
    for (contender, row), seconds in zip(timed, taken, strict=True):
        row.seconds, row.time = seconds, spread(seconds)
        row.rate = (contender.work or case.work) / row.time.median / UNITS[case.unit]
        row.of_limit = row.rate / result.limit.median if result.limit else None
    peers = [row.time.median for row in rows if row.time is not None and not row.ours]
    for row in rows:
        if row.time is not None and peers:
            row.ratio = min(peers) / row.time.median
    return result


# ---- what is printed and written


def show_time(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def show_rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate >= 10 else f"{rate:.2f}"


def show_limits(values: Rates) -> str:
    return ", ".join(
        f"{n} {'-' if v is None else f'{show_rate(v)} {LIMIT_UNITS[n]}'}" for n, v in values.items()
    )


def table(result: Result) -> str:
    limit_name = f"of {result.limit_name}"
    head = ["contender", "median", "p10 - p90", result.unit, limit_name, "x best peer", "parity"]
    lines = [head]
    for row in result.rows:
        if row.time is None or row.rate is None:
            lines.append([row.name, row.status, "", "", "", "", row.parity])
            continue
        lines.append(
            [
                row.name,
                show_time(row.time.median),
                f"{show_time(row.time.p10)} - {show_time(row.time.p90)}",
                show_rate(row.rate),
                "-" if row.of_limit is None else f"{row.of_limit:.1%}",
                "-" if row.ratio is None else f"{row.ratio:.2f}x",
                row.parity,
            ]
        )
    if result.limit is not None:
        name = f"limit: {result.limit_name}"
        low, high = result.limit.p10, result.limit.p90
        lines.append(
            [
                name,
                "",
                f"{show_rate(low)} - {show_rate(high)}",
                show_rate(result.limit.median),
                "100.0%",
                "",
                "",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:], strict=True)]
        text.append(("  " + "  ".join([*cells, line[-1]])).rstrip())
    lost = {"steal": result.steal, "other processes": result.others}
    shares = ", ".join(f"{n} {'unknown' if v is None else f'{v:.1%}'}" for n, v in lost.items())
    noisy = f"  NOISY after {result.attempts} attempts: {'; '.join(result.noisy)}" if result.noisy else ""
    title = f"{result.id}  {result.label}{noisy}"
    note = f"  limits before: {show_limits(result.before)}; after: {show_limits(result.after)}; {shares}"
    return "\n".join([title, *text, note])


def to_json(
    title: str, facts: dict[str, Any], settings: Settings, results: Sequence[Result]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "bench": title,
        "is_result": settings.samples >= RESULT_SAMPLES and not settings.quick,
        "host": facts,
        "settings": asdict(settings),
        "cases": [asdict(result) for result in results],
    }


def write_json(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def first_ratio(result: Result) -> float | None:
    """The first of octavo's rows stands for it; further rows are variants."""
    return next((row.ratio for row in result.rows if row.ours), None)


def progress_bar(total: int) -> Any:
    tqdm = optional("tqdm")
    return None if tqdm is None else tqdm.tqdm(total=total, leave=False, unit="round", disable=None)


def run_all(
    title: str,
    cases: Sequence[Case],
    settings: Settings,
    limits: Limits,
    facts: dict[str, Any],
    clock: Clock,
    json_path: Path | None = None,
    say: Callable[[str], object] = print,
) -> list[Result]:
    say(host_line(facts))
    if limits.core is None:
        say("The native module is not built: octavo runs its reference, the machine's limits are unknown.")
    if settings.quick:
        say("--quick: small shapes and few samples; a check that everything runs, not a result.")
    bar = progress_bar(len(cases) * settings.samples)
    results: list[Result] = []
    for done, case in enumerate(cases, start=1):
        if bar is not None:
            bar.set_description(f"{case.id} {case.label}"[:60])
        result = run_case(case, limits, settings, clock, (lambda: None) if bar is None else bar.update)
        results.append(result)
        gc.collect()
        if bar is not None:
            bar.n = done * settings.samples  # a repeated case ticked more often
            bar.clear()
        say("\n" + table(result))
        if json_path is not None:  # after every case: an interrupted run keeps what it has
            write_json(to_json(title, facts, settings, results), json_path)
    if bar is not None:
        bar.close()
    ratios = [ratio for ratio in map(first_ratio, results) if ratio is not None]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        say(f"\noctavo against the best peer: geometric mean {mean:.2f}x, least {min(ratios):.2f}x")
    return results
