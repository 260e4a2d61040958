"""A run's cases drawn from the JSON that it writes: under the machine's roofline, one panel per ISA; the time
of pruning over the share that goes; what sparse layouts gain over it; everybody's time in a whole model."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from machine import optional

Document = dict[str, Any]
OURS, PEER, MORE, ROOF = "#0b5fa5", "#c2410c", "#7c2d92", "#555555"
STYLES = ("-", "--", ":", "-.")
BASELINE = "octavo dense (the baseline)"  # the row of a pruned weight with its zeros


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


class Gain(NamedTuple):
    """What a sparse layout has of the dense one's speed and bytes; chosen: it is what "auto" takes."""

    sparsity: float
    speed: float
    nbytes: float
    chosen: bool


def sparse_row_name(layout: str, auto: str) -> str:
    return f"octavo {layout} (auto: {auto})"


def gains(document: Document) -> dict[str, dict[tuple[str, str], list[Gain]]]:
    """ISA -> (layout, the limit that binds: "read" or "peak") -> gains, by rising sparsity. Only the decode
    cases know bytes: their rate counts what was read."""
    by_isa: dict[str, dict[tuple[str, str], list[Gain]]] = {}
    for case in sorted(placed(document), key=lambda case: float(case["sparsity"])):
        isa = case["environment"].get("OCTAVO_ISA", document["host"]["isa"])
        rows = [row for row in case["rows"] if row["time"]]
        dense = next((row for row in rows if row["name"] == BASELINE), None)
        for row in rows:
            named = re.fullmatch(r"octavo (\w+) \(auto: (\w+)\)", row["name"])  # as sparse_row_name has it
            if dense is None or named is None:
                continue
            times = dense["time"]["median"], row["time"]["median"]
            speed, nbytes = times[0] / times[1], row["rate"] * times[1] / (dense["rate"] * times[0])
            gain = Gain(case["sparsity"], speed, nbytes, named[1] == named[2])
            by_isa.setdefault(isa, {}).setdefault((named[1], case["limit_name"]), []).append(gain)
    return by_isa


def over_layouts(document: Document, path: Path) -> None:
    """Left, the speed of the sparse layouts over the share of zeros, right, their bytes; dense is 1 in both.
    Filled where "auto" takes the layout."""
    chosen = gains(document)
    if not chosen:
        raise SystemExit("--plot: no case of this run has sparse layouts over sparsity")
    size = (11, 4.4 * len(chosen))
    figure = optional("matplotlib.figure").Figure(figsize=size, layout="constrained", facecolor="white")
    axes, ticker = figure.subplots(len(chosen), 2, squeeze=False), optional("matplotlib.ticker")
    for (isa, lines), (left, right) in zip(chosen.items(), axes, strict=True):
        for (layout, limit), points in lines.items():
            color, bound = (OURS if layout == "bitmask" else PEER), limit == "read"
            label = f"{layout}, {'decode, M = 1' if bound else 'prefill, M = 256'}"
            style = "-" if bound else "--"
            draw_gains(left, points, [p.speed for p in points], color, style, label)
            if bound:
                draw_gains(right, points, [p.nbytes for p in points], color, "-", layout)
        left.set(yscale="log", ylabel="speed, dense = 1", title=f"{isa}: faster is higher")
        right.set(ylabel="bytes, dense = 1", title=f"{isa}: smaller is lower")
        low, high = left.get_ylim()
        left.set_ylim(min(low, 0.7), max(high, 1.5))  # the side where it does not pay is always to be seen
        right.set_ylim(0, max(right.get_ylim()[1], 1.2))
        left.axhspan(left.get_ylim()[0], 1, color="#f3e3e0", zorder=0)
        right.axhspan(1, right.get_ylim()[1], color="#f3e3e0", zorder=0)
        for axis in (left, right):
            axis.axhline(1, color=ROOF, lw=1)
            axis.set(xlabel="pruned, %")
            axis.grid(which="both", color="#e5e5e5", lw=0.6)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        left.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_minor_formatter(ticker.NullFormatter())
        left.legend(loc="upper left", fontsize=8)
        right.legend(loc="lower left", fontsize=8)
    figure.suptitle(f'{headline(document)}\nfilled: what layout="auto" takes', fontsize=10)
    figure.savefig(path, dpi=150)


def draw_gains(
    axes: Any, points: Sequence[Gain], ys: Sequence[float], color: str, style: str, label: str
) -> None:
    xs = [100 * p.sparsity for p in points]
    axes.plot(xs, ys, style, color=color, lw=1.2, label=label)
    for x, y, point in zip(xs, ys, points, strict=True):
        axes.plot(x, y, "o", ms=5, mec=color, mfc=color if point.chosen else "white")


def bars(document: Document, path: Path) -> None:
    """The time of every contender, a panel per case: whiskers from p10 to p90."""
    cases = [case for case in document["cases"] if any(row["time"] for row in case["rows"])]
    if not cases:
        raise SystemExit("--plot: no case of this run has a number")
    timed = [[row for row in case["rows"] if row["time"]] for case in cases]
    heights = [1.2 + 0.24 * len(rows) for rows in timed]
    size = (9, sum(heights))
    figure = optional("matplotlib.figure").Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)
    for (axis,), case, rows in zip(axes, cases, timed, strict=True):
        names = [row["name"] for row in rows]
        low, middle, high = ([1e3 * row["time"][q] for row in rows] for q in ("p10", "median", "p90"))
        around = [
            [m - v for m, v in zip(middle, low, strict=True)],
            [v - m for m, v in zip(middle, high, strict=True)],
        ]
        colors = [OURS if row["ours"] else PEER for row in rows]
        axis.barh(names, middle, color=colors, height=0.7, xerr=around, error_kw={"ecolor": ROOF, "lw": 0.8})
        for place, row in enumerate(rows):
            text = f"  {show(middle[place])} ms  {row['parity'].split(',')[0]}"
            axis.text(1e3 * row["time"]["p90"], place, text, color=ROOF, va="center", fontsize=7)
        axis.set_xlim(0, 1.3e3 * max(row["time"]["p90"] for row in rows))  # room for the text
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.set_title(f"{case['id']}: {case['label']}", loc="left", fontsize=9)
        axis.set(xlabel="ms")
        axis.set_axisbelow(True)
        axis.grid(axis="x", color="#e5e5e5", lw=0.6)
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
    models = run["bench"] == "models"
    draw = bars if models else over_layouts if gains(run) else over_sparsity if placed(run) else roofline
    draw(run, Path(sys.argv[2]))
