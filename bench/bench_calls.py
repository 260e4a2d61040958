"""Tiny calls, which cost what surrounds the kernel: this build against another one, in turns.

    python bench/bench_calls.py --against OTHER/.venv/bin/python

Each build answers from a process of its own, on one thread and one CPU, in short blocks that alternate: this,
against, this again. The third is a second process of this build: what lies between it and the first is noise.
Processes are started anew a few times, because where one's memory happens to lie moves a call by percents.
Times are the thread's CPU time, which other processes lengthen less than the clock's. Parity first: a case
whose results differ between the builds in one bit gets no number.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from common import inner_calls, show_time
from machine import cpu_model, lost_shares, optional, read_cpu_time

BLOCK_S = 0.002

# ---- one side: the calls, and what answers the pipe


def make_calls() -> dict[str, Callable[[], Any]]:
    import numpy as np

    import octavo

    random = np.random.default_rng(0)
    shapes = [(1, 64), (64,), (64, 64), (64, 64), (64, 64), (1, 8, 6, 6), (8, 8, 3, 3)]
    arrays = [*(random.standard_normal(shape, np.float32) for shape in shapes), np.array([3])]
    calls = _functions(octavo, "numpy", *arrays)
    torch = optional("torch")
    if torch is None:
        return calls
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, image = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[5])
    calls |= _functions(octavo, "torch", *map(torch.from_numpy, arrays))
    linear, conv = torch.nn.Linear(64, 64), torch.nn.Conv2d(8, 8, 3)
    dynamic = octavo.nn.Int8Linear.from_float(linear)
    weight_only = octavo.nn.Int8WeightOnlyLinear.from_float(linear)
    int8_conv = octavo.nn.Int8Conv2d.from_float(conv)
    return calls | {
        "Int8Linear 1x64x64": lambda: dynamic(x),
        "Int8WeightOnlyLinear 1x64x64": lambda: weight_only(x),
        "Int8Conv2d 8x8x3x3": lambda: int8_conv(image),
    }


def _functions(octavo: Any, kind: str, *arrays: Any) -> dict[str, Callable[[], Any]]:
    x, bias, *ws, image, taps, index = arrays
    packed, conv = [octavo.pack_weight(w) for w in ws], octavo.pack_conv_weight(taps)
    rows, scale, _ = octavo.quantize(ws[0])
    calls: dict[str, Callable[[], Any]] = {
        "int8_linear 1x64x64": lambda: octavo.int8_linear(x, packed[0], bias),
        "int8_linear of 3 weights": lambda: octavo.int8_linear(x, packed),
        "weight_only_linear 1x64x64": lambda: octavo.weight_only_linear(x, packed[0], bias),
        "quantize 1x64": lambda: octavo.quantize(x),
        "rms_norm_quantize 1x64": lambda: octavo.rms_norm_quantize(x, bias),
        "prune_mask 64": lambda: octavo.prune_mask(bias, sparsity=0.5),
        "int8_embedding of 1": lambda: octavo.int8_embedding(index, rows, scale),
        "int8_conv2d 8x8x3x3": lambda: octavo.int8_conv2d(image, conv),
    }
    return {f"{name} {kind}": call for name, call in calls.items()}


def digest(result: Any) -> str:
    """Of kind, dtype, shape and bits."""
    if isinstance(result, (list, tuple)):
        return sha256(" ".join(map(digest, result)).encode()).hexdigest()
    if result is None:
        return "None"
    array = result if type(result).__module__ == "numpy" else result.detach().numpy()
    said = f"{type(result).__name__} {array.dtype} {array.shape} ".encode()
    return sha256(said + array.tobytes()).hexdigest()


def answer() -> int:
    """A line of JSON for each line that comes in: [name, calls]; 0 calls ask for the result's digest."""
    import octavo

    octavo.set_num_threads(1)
    calls = make_calls()
    gc.collect()
    gc.disable()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(json.dumps([octavo.get_isa(), *calls]), flush=True)
    for line in sys.stdin:
        name, count = json.loads(line)
        call = calls[name]
        for _ in range(count // 4):  # untimed: the other side's block has filled the caches
            call()
        start = time.thread_time()
        for _ in range(count):
            call()
        seconds = time.thread_time() - start
        print(json.dumps(seconds if count else digest(call())), flush=True)
    return 0


# ---- both sides


class Side:
    def __init__(self, python: str) -> None:
        command = [python, os.path.abspath(__file__), "--answer"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.isa, *self.names = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, name: str, calls: int) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, calls]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.communicate()


def blocks(sides: Sequence[Any], name: str, rounds: int) -> list[list[float]]:
    """Seconds per call of each side, in turns."""
    calls = inner_calls(min(side.ask(name, 20) / 20 for side in sides), BLOCK_S)
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, seconds in zip(sides, taken, strict=True):
            seconds.append(side.ask(name, calls) / calls)
    return taken


def paired(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def row(name: str, starts: Sequence[Sequence[Sequence[float]]]) -> str:
    """Medians over all starts; the least and the greatest ratio of a start, and of this build to itself."""
    this, against = (statistics.median(t for taken in starts for t in taken[i]) for i in (0, 1))
    ratios = [paired([*taken[0], *taken[2]], [*taken[1], *taken[1]]) for taken in starts]
    itself = [paired(taken[0], taken[2]) for taken in starts]
    spans = [f"{min(each):.3f} - {max(each):.3f}" for each in (ratios, itself)]
    middle = statistics.median(ratios)
    return f"{name:32} {show_time(this):>9} {show_time(against):>9} {middle:7.3f}  {spans[0]}  {spans[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", metavar="PYTHON", required=True, help="interpreter of the other build")
    parser.add_argument("--only", metavar="REGEX", default="", help="only the cases that match")
    parser.add_argument("--starts", type=int, default=5, help="how often processes are started")
    parser.add_argument("--rounds", type=int, default=21, help="blocks of each side, for each start")
    args = parser.parse_args(argv)
    taken: dict[str, list[list[list[float]]]] = {}
    refused: set[str] = set()
    before, isas = read_cpu_time(), [""]
    for _ in range(args.starts):
        sides = [Side(python) for python in (sys.executable, args.against, sys.executable)]
        isas = [side.isa for side in sides[:2]]
        for name in filter(re.compile(args.only).search, sides[0].names):
            known = name in sides[1].names and name not in refused
            if known and len({side.ask(name, 0) for side in sides}) == 1:
                taken.setdefault(name, []).append(blocks(sides, name, args.rounds))
            else:
                refused.add(name)
        for side in sides:
            side.close()
    steal = lost_shares(before, read_cpu_time())[0]
    lost = "unknown" if steal is None else f"{steal:.1%}"
    print(f"{cpu_model()}, ISA {isas[0]} against {isas[1]}, one thread; stolen by other guests: {lost}")
    print(f"{'':32} {'this':>9} {'against':>9} {'ratio':>7}  of each start  this to itself")
    for name, starts in taken.items():
        if name not in refused:
            print(row(name, starts))
    for name in sorted(refused):
        print(f"{name:32} refused: not there, or its results differ from those of {args.against}")
    return 1 if refused or not taken else 0


if __name__ == "__main__":
    sys.exit(answer() if sys.argv[1:] == ["--answer"] else main())
