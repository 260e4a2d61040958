"""What the benchmarks need to know of the machine: limits, caches, stolen time, threads and versions."""

from __future__ import annotations

import importlib
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Rates = dict[str, "float | None"]


def optional(name: str) -> Any:
    """The module, or None when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@dataclass(frozen=True)
class CpuTime:
    """Seconds of all CPUs since boot: busy for anybody here, stolen by other guests, used by this process."""

    busy: float
    steal: float
    own: float


def read_cpu_time(stat: Path = Path("/proc/stat")) -> CpuTime | None:
    """None where the system does not say."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    ticks = [float(f) for f in fields[1:9]]  # user nice system idle iowait irq softirq steal
    if fields[0] != "cpu" or len(ticks) < 8:
        return None
    hertz = os.sysconf("SC_CLK_TCK")
    busy = sum(ticks) - ticks[3] - ticks[4] - ticks[7]
    return CpuTime(busy / hertz, ticks[7] / hertz, time.process_time())


def lost_shares(before: CpuTime | None, after: CpuTime | None) -> tuple[float | None, float | None]:
    """Of the CPU time that was wanted: the share stolen by other guests, and the share that other processes
    here used. Idle CPUs must not dilute them."""
    if before is None or after is None:
        return None, None
    steal, busy, own = after.steal - before.steal, after.busy - before.busy, after.own - before.own
    wanted = steal + max(busy, own)
    return (steal / wanted, max(busy - own, 0.0) / wanted) if wanted > 0 else (0.0, 0.0)


def llc_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the last-level cache; 64 MiB where the system does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for size in caches.glob("index*/size"):
        text = size.read_text().strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0))
    return max(sizes) or 64 << 20


def rotation(bytes_per_set: int, llc: int | None = None) -> int:
    """How many sets of buffers make a round trip over them at least twice the last-level cache."""
    return max(2, math.ceil(2 * (llc_bytes() if llc is None else llc) / max(bytes_per_set, 1)))


def settle(
    cpu: Callable[[], float] = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
    step: float = 0.002,
    longest: float = 0.3,
) -> None:
    """Wait until this process uses no CPU: the workers of one runtime spin on after a call, on the cores that
    the next one needs."""
    for _ in range(round(longest / step)):
        used = cpu()
        sleep(step)
        if cpu() - used < 0.1 * step:
            return


@dataclass(frozen=True)
class Clock:
    """The machine as the harness sees it; tests pass a fake."""

    now: Callable[[], float] = time.perf_counter
    settle: Callable[[], None] = settle
    cpu_time: Callable[[], CpuTime | None] = read_cpu_time


class Prober(Protocol):
    """Tells the limits of what is measured: now, and the best of several times."""

    def sample(self, name: str) -> float | None: ...

    def probe(self, times: int) -> Rates: ...


class Limits:
    """The machine's own limits: register-only int8 peak in GOP/s, read and copy bandwidth in GB/s (a copy
    counts the bytes read and the bytes written)."""

    names = ("peak", "read", "copy")

    def __init__(self, core: Any, threads: int, clock: Clock, nbytes: int | None = None) -> None:
        self.core, self.threads, self.clock = core, threads, clock
        self.nbytes = nbytes or max(512 << 20, 4 * llc_bytes()) >> 20 << 20  # whole pieces of the probes
        self._buffers: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None

    def sample(self, name: str) -> float | None:
        if self.core is None:
            return None
        self.clock.settle()
        if name == "peak":
            return float(self.core.probe_peak(20.0, threads=self.threads))
        if self._buffers is None:  # filled: untouched pages would all read one zero page from the cache
            self._buffers = np.full(self.nbytes, 1, np.uint8), np.full(self.nbytes, 2, np.uint8)
        source, target = (int(b.ctypes.data) for b in self._buffers)
        start = self.clock.now()
        if name == "read":
            self.core.probe_read(source, nbytes=self.nbytes, threads=self.threads)
        else:
            self.core.probe_copy(source, target=target, nbytes=self.nbytes, threads=self.threads)
        return (1 if name == "read" else 2) * self.nbytes / (self.clock.now() - start) / 1e9

    def probe(self, times: int) -> Rates:
        """The best of a few samples of each: what the machine could do just now."""
        best: Rates = {}
        for name in self.names:
            values = [v for v in (self.sample(name) for _ in range(times)) if v is not None]
            best[name] = max(values, default=None)
        return best


def set_threads(threads: int) -> None:
    """The same number for every runtime that is loaded; sessions of onnxruntime get it when they are made."""
    octavo, torch = optional("octavo"), optional("torch")
    for module in (octavo, torch):
        if module is not None:
            module.set_num_threads(threads)
            if module.get_num_threads() != threads:
                got = module.get_num_threads()
                raise RuntimeError(f"threads: {module.__name__} expected {threads}, got {got}")


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def resident(key: str, status: Path = Path("/proc/self/status")) -> int:
    """VmRSS of this process in bytes, or VmHWM: its peak."""
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[key].split()[0]) * 1024


def host_facts(threads: int) -> dict[str, Any]:
    octavo, torch, ort = optional("octavo"), optional("torch"), optional("onnxruntime")
    native = optional("octavo._core") is not None
    return {
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "threads": threads,
        "llc_bytes": llc_bytes(),
        "isa": octavo.get_isa() if native else "reference",
        "octavo": getattr(octavo, "__version__", None),
        "torch": getattr(torch, "__version__", None),
        "torch_isa": None if torch is None else torch.backends.cpu.get_cpu_capability(),
        "onnxruntime": getattr(ort, "__version__", None),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def host_line(facts: dict[str, Any]) -> str:
    names = ("octavo", "torch", "onnxruntime", "python")
    versions = ", ".join(f"{n} {facts[n] or 'not installed'}" for n in names)
    return (
        f"{facts['cpu']}, {facts['threads']} threads on {facts['cpus']} CPUs, "
        f"LLC {facts['llc_bytes'] >> 20} MiB, ISA {facts['isa']} (torch: {facts['torch_isa']}); {versions}"
    )
