"""What bench_cuda.py and models.py are held to: bounds on time, rate, share of limit and ratio to a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from common import Result, Row, show_time


@dataclass(frozen=True)
class Verdict:
    bound: str
    value: str  # "" without a number
    met: bool | None  # None: not measured


@dataclass(frozen=True)
class Bound:
    """What a row of octavo's in a case has to be: the first one, or the one with this name."""

    text: str
    value: Callable[[Row, Result], float | None]
    show: Callable[[float], str]
    holds: Callable[[float], bool]
    row: str = ""

    def judge(self, result: Result) -> Verdict:
        row = next((row for row in result.rows if row.ours and self.row in ("", row.name)), None)
        if row is None or row.time is None:
            return Verdict(self.text, "" if row is None else row.status, None)
        value = self.value(row, result)
        if value is None:
            return Verdict(self.text, "no peer to compare with", None)
        return Verdict(self.text, self.show(value), self.holds(value))


def at_most(seconds: float) -> Bound:
    return Bound(f"<= {show_time(seconds)}", lambda row, _: median(row), show_time, lambda v: v <= seconds)


def at_least(rate: float, unit: str) -> Bound:
    return Bound(
        f">= {rate:,g} {unit}", lambda row, _: row.rate, lambda v: f"{v:,.2f} {unit}", lambda v: v >= rate
    )


def of_limit(share: float) -> Bound:
    return Bound(
        f">= {share:.0%} of the limit",
        lambda row, _: row.of_limit,
        lambda v: f"{v:.1%}",
        lambda v: v >= share,
    )


def times_best(ratio: float, peer: str = "") -> Bound:
    """Faster than the best peer, or than the fastest of those whose name begins with `peer`."""

    def value(row: Row, result: Result) -> float | None:
        others = [
            median(r) for r in result.rows if r.time is not None and not r.ours and r.name.startswith(peer)
        ]
        return min(others) / median(row) if others else None

    return Bound(
        f">= {ratio:g}x {peer or 'the best peer'}", value, lambda v: f"{v:.2f}x", lambda v: v >= ratio
    )


def exact() -> Bound:
    """Parity gates the time: who has one is exact."""
    return Bound("exact", lambda row, _: 1.0, lambda v: "exact", lambda v: True)


def median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def show(verdict: Verdict) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    value = f": {verdict.value}" if verdict.value else ""
    return f"{verdict.bound}{value}, {words[verdict.met]}"
