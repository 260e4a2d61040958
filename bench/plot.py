"""A run's cases drawn from the JSON that it writes: under the machine's roofline, one panel per ISA; or the
time of pruning over the share that goes."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import optional

Document = dict[str, Any]
OURS, PEER, MORE, ROOF = "#0b5fa5", "#c2410c", "#7c2d92", "#555555"
STYLES = ("-", "--", ":", "-.")


def panels(document: Document) -> dict[str, list[Document]]:
    """ISA -> its cases that have a place in the plot and a number of octavo's, by rising intensity."""
    by_isa: dict[str, list[Document]] = {}
    for case in document["cases"]:
        isa = case["environment"].get("OCTAVO_ISA", document["host"]["isa"])
        if case["traffic"] and octavo_row(case) is not None:
            by_isa.setdefault(isa, []).append(case)
    return {isa: sorted(cases, key=intensity) for isa, cases in by_isa.items()}


def intensity(case: Document) -> float:
    return float(case["operations"] / case["traffic"])


def gops(case: Document, row: Document) -> float:
    return float(case["operations"] / row["time"]["median"] / 1e9)


def octavo_row(case: Document) -> Document | None:
    """The first of octavo's rows stands for it, as in the table."""
    return next((row for row in case["rows"] if row["ours"] and row["time"]), None)


def best_peer(case: Document) -> Document | None:
    rows = [row for row in case["rows"] if not row["ours"] and row["time"]]
    return min(rows, key=lambda row: float(row["time"]["median"]), default=None)


def roof(cases: Sequence[Document], name: str) -> float | None:
    """From the samples taken beside the contenders where there are such, else from before and after."""
    beside = [case["limit"]["median"] for case in cases if case["limit_name"] == name and case["limit"]]
    around = [case[when][name] for case in cases for when in ("before", "after")]
    known = beside or [value for value in around if value is not None]
    return statistics.median(known) if known else None


def show(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def key_line(number: int, case: Document) -> str:
    ours, peer = octavo_row(case), best_peer(case)
    assert ours is not None
    what = case["label"].split(",")[0].replace(" -> dynamic int8 -> f32 + bias", " linear")
    text = f"{number:2} {case['id']:3} {what:32} {show(gops(case, ours)):>8}"
    return text if peer is None else f"{text}  {show(gops(case, peer)):>8}  {peer['name']}"


def draw_panel(axes: Any, key: Any, isa: str, cases: Sequence[Document]) -> None:
    low, high = intensity(cases[0]) / 1.6, intensity(cases[-1]) * 1.6
    ticker = optional("matplotlib.ticker")
    peak, read = roof(cases, "peak"), roof(cases, "read")
    if peak is not None and read is not None:
        ridge = peak / read
        low, high = min(low, ridge / 4), max(high, ridge * 2)  # both roofs are always to be seen
        xs = [low, ridge, high]
        axes.plot(xs, [min(peak, x * read) for x in xs], color=ROOF, lw=1.2)
        align = "left" if ridge * ridge < low * high else "right"
        axes.text(ridge, peak, f"peak {peak:,.0f} GOP/s", color=ROOF, ha=align, va="bottom", fontsize=8)
        axes.text(low, low * read, f"  read {read:,.0f} GB/s", color=ROOF, ha="left", va="top", fontsize=8)
    for number, case in enumerate(cases, start=1):
        x, ours, peer = intensity(case), octavo_row(case), best_peer(case)
        assert ours is not None
        y = gops(case, ours)
        if peer is not None:
            axes.plot([x, x], [y, gops(case, peer)], color="#bbbbbb", lw=0.8, zorder=1)
            axes.plot(x, gops(case, peer), "o", mfc="white", mec=PEER, ms=5, zorder=2)
        axes.plot(x, y, "o", color=OURS, ms=5, zorder=3)
        side = -1 if number % 2 else 1  # neighbours may stand close: their numbers on alternate sides
        place = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 7}
        axes.annotate(str(number), (x, y), (6 * side, 0), **place)
    axes.set(xscale="log", yscale="log", title=isa, xlabel="operations per byte", ylabel="GOP/s")
    axes.set_xlim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(which="major", color="#e5e5e5", lw=0.6)
    head = f"{'':6} {'case':32} {'octavo':>8}  {'peer':>8}  best peer, GOP/s"
    lines = [head, *(key_line(number, case) for number, case in enumerate(cases, start=1))]
    key.axis("off")
    key.text(0, 1, "\n".join(lines), family="monospace", fontsize=7, va="top", linespacing=1.5)


def roofline(document: Document, path: Path) -> None:
    chosen = panels(document)
    if not chosen:
        raise SystemExit("--plot: no case of this run has a place under the roofline")
    figure_class = optional("matplotlib.figure").Figure  # no pyplot: no display is needed
    figure = figure_class(figsize=(13, 3.6 * len(chosen)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(1, 1))
    for (isa, cases), (left, right) in zip(chosen.items(), axes, strict=True):
        draw_panel(left, right, isa, cases)
    legend = [
        left.plot([], [], "o", color=OURS, label="octavo")[0],
        left.plot([], [], "o", mfc="white", mec=PEER, label="best peer")[0],
    ]
    axes[0][0].legend(handles=legend, loc="upper left", fontsize=8)
    figure.suptitle(headline(document), fontsize=10)
    figure.savefig(path, dpi=150)


def series(document: Document) -> dict[str, list[tuple[float, float]]]:
    """Contender -> (sparsity, seconds) of the cases that have a place over sparsity, by rising sparsity."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in sorted(placed(document), key=lambda case: float(case["sparsity"])):
        for row in case["rows"]:
            if row["time"]:
                lines.setdefault(row["name"], []).append((case["sparsity"], row["time"]["median"]))
    return lines


def placed(document: Document) -> list[Document]:
    return [case for case in document["cases"] if case.get("sparsity") is not None]


def over_sparsity(document: Document, path: Path) -> None:
    """The time of every contender over the share that goes, above that of reading the tensor once."""
    cases, lines = placed(document), series(document)
    if not lines:
        raise SystemExit("--plot: no case of this run has a place over sparsity")
    our_names = {row["name"] for case in cases for row in case["rows"] if row["ours"]}
    figure = optional("matplotlib.figure").Figure(figsize=(9, 5.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    drawn = {True: 0, False: 0}
    for name, points in lines.items():
        ours = name in our_names
        turn, style = divmod(drawn[ours], 4)
        drawn[ours] += 1
        xs, ys = [100 * x for x, _ in points], [1e3 * y for _, y in points]
        color = OURS if ours else (PEER, MORE)[turn % 2]
        axes.plot(xs, ys, STYLES[style], marker="os^v"[style], ms=4, lw=1.2, color=color, label=name)
    name = cases[0]["limit_name"]
    limit = roof(cases, name)
    if limit is not None:
        row = next(row for row in cases[0]["rows"] if row["time"])
        once = 1e3 * row["rate"] * row["time"]["median"] / limit
        for times, text in ((1, "one read of the tensor"), (4, "four reads")):
            axes.axhline(times * once, color=ROOF, lw=0.8)
            axes.text(50, times * once, f"{text} at {limit:,.0f} GB/s", color=ROOF, va="bottom", fontsize=8)
    axes.set(yscale="log", xlabel="pruned, %", ylabel="ms", title=cases[0]["label"].split(" of ", 1)[-1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(which="major", color="#e5e5e5", lw=0.6)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.suptitle(headline(document), fontsize=10)
    figure.savefig(path, dpi=150)


def headline(document: Document) -> str:
    host = document["host"]
    title = f"{document['bench']}: {host['cpu']}, {host['threads']} threads"
    return title if document["is_result"] else f"{title} (too few samples for a result)"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: plot.py RUN.json OUT.png")
    run: Document = json.loads(Path(sys.argv[1]).read_text())
    (over_sparsity if placed(run) else roofline)(run, Path(sys.argv[2]))
