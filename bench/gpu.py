"""What bench_cuda.py needs of the GPU: a clock, graphs, the card's limits, parity that stays on the device.

Time is the device's own, between two events. A contender's calls over all sets of buffers are captured in one
CUDA graph, so that neither Python nor the launches are in the numbers. Where the call as a user makes it is
the question, it is timed as it is: then the device waits for the host, and its time is the host's.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common import Contender, Parity
from machine import Clock, Rates, optional, rotation

torch = optional("torch")

Call = Callable[[int], object]
Check = Callable[[], Parity]

DEVICE = "cuda"
GRAPH_SECONDS = 2e-3  # of work in one graph: launching it is a hundredth of that
GRAPH_CALLS = 512  # in one graph, at most
LIMIT_CALLS = 4
MANY_L2 = 8
JUNK = 0xA5


class EventClock:
    """Seconds on the device. Only differences count, each taken between two events that follow one another:
    over a long time the float32 of milliseconds that an event gives is too coarse."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, self._event()

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return event

    def __call__(self) -> float:
        event = self._event()
        self.seconds += self.last.elapsed_time(event) / 1e3
        self.last = event
        return self.seconds


def clock() -> Clock:
    """No workers to let settle, and no stolen time that the host could know of."""
    return Clock(EventClock(), lambda: None, lambda: None)


def turns(nbytes: int, l2: int | None = None) -> int:
    """How many sets of buffers of this size have to take turns so that the L2 holds none of them. What is
    many times the L2 drives itself out."""
    l2 = torch.cuda.get_device_properties().L2_cache_size if l2 is None else l2
    return 1 if nbytes >= MANY_L2 * l2 else rotation(nbytes, l2)


# ---- contenders


def capture(call: Call, count: int) -> tuple[int, Callable[[], object]]:
    """The number of calls in a graph of whole round trips over `count` sets, and what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for i in range(2 * count):  # compiles, tunes and allocates
            call(i)
        now = EventClock()
        for i in range(count):
            call(i)
        trips = round(GRAPH_SECONDS / max(now(), 1e-9))
        calls = count * max(1, min(trips, GRAPH_CALLS // count))
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                call(i)
    torch.cuda.current_stream().wait_stream(stream)
    return calls, graph.replay


def contender(
    name: str,
    call: Call,
    outs: Sequence[Any],
    check: Check,
    count: int,
    *,
    ours: bool = False,
    work: float | None = None,
    graph: bool = True,
) -> Contender:
    """`call(i)` works on the i-th of `count` sets of buffers. Timed in a graph or call by call; checked is
    what came of it over junk in `outs`."""
    if graph:
        units, replay = capture(call, count)
        return Contender(
            name, lambda i: replay(), lambda: checked(replay, outs, check), ours, units=units, work=work
        )

    def all_sets() -> None:
        for i in range(count):
            call(i)

    return Contender(name, call, lambda: checked(all_sets, outs, check), ours, work=work)


def checked(run: Callable[[], object], outs: Sequence[Any], check: Check) -> Parity:
    for out in outs:
        out.view(torch.uint8).fill_(JUNK)
    run()
    torch.cuda.synchronize()
    return check()


# ---- parity


def check_same(got: Any, expected: Any) -> Parity:
    """Same shape, dtype and values, to the bit."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return Parity(
            False,
            f"expected {expected.dtype} {tuple(expected.shape)}, got {got.dtype} {tuple(got.shape)}",
        )
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    wrong = got.view(bits) != expected.view(bits)
    count = int(wrong.sum())
    if count:
        at = np.unravel_index(int(wrong.flatten().to(torch.uint8).argmax()), got.shape)
        place = tuple(int(i) for i in at)
        return Parity(
            False,
            f"{count} of {got.numel()} differ, such as at {place}: "
            f"expected {expected[place].item()}, got {got[place].item()}",
        )
    return Parity(True, "exact")


def check_near(got: Any, expected: Any, tolerance: float) -> Parity:
    """Relative error in the Frobenius norm; a non-finite value fails."""
    if got.shape != expected.shape:
        return Parity(False, f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    e = expected.double()
    error = float((got.double() - e).norm() / e.norm().clamp(min=1e-300))
    return Parity(error <= tolerance, "exact" if error == 0 else f"err {error:.1e}")


def check_share(got: Any, expected: Any, share: float) -> Parity:
    """Integers or masks that may differ by one step on at most `share` of the elements."""
    if got.shape != expected.shape:
        return Parity(False, f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    off = (got.to(torch.int16) - expected.to(torch.int16)).abs()
    differs = float(off.count_nonzero() / off.numel())
    ok = differs <= share and int(off.max()) <= 1
    return Parity(ok, "exact" if not differs else f"{differs:.1e} off by {int(off.max())}")


# ---- the card


def gaussian(rows: int, cols: int, seed: int = 0) -> Any:
    """bfloat16 from the normal distribution."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, device=DEVICE, dtype=torch.bfloat16)


def empty(dtype: Any, *shape: int) -> Any:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def quantized(x: Any) -> tuple[Any, Any]:
    """Rows as int8 and their scales, as the definition has it. The divisor is a tensor: instead of dividing
    by a Python number, torch multiplies by its reciprocal on a GPU."""
    v = x.float()
    amax = v.abs().amax(-1)
    steps = torch.full_like(amax, 127)
    data = (v * (steps / amax).unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    return data, amax / steps


class GpuLimits:
    """The library's int8 product (cuBLASLt behind torch._int_mm, square, no epilogue) in TOPS, and a copy on
    the device in TB/s (bytes read and bytes written)."""

    names = ("int8 GEMM", "device copy")

    def __init__(self, clock: Clock, size: int, nbytes: int) -> None:
        self.clock = clock
        self.a, self.b = (quantized(gaussian(size, size, seed))[0] for seed in (1, 2))
        self.product = empty(torch.int32, size, size)
        self.source = empty(torch.uint8, nbytes).fill_(1)
        self.target = torch.empty_like(self.source)

    def sample(self, name: str) -> float | None:
        product = name == "int8 GEMM"
        work: float = 2.0 * (self.product.numel() * self.a.shape[1] if product else self.source.numel())
        start = self.clock.now()
        for _ in range(LIMIT_CALLS):
            if product:
                torch._int_mm(self.a, self.b.t(), out=self.product)
            else:
                self.target.copy_(self.source)
        return LIMIT_CALLS * work / (self.clock.now() - start) / 1e12

    def probe(self, times: int) -> Rates:
        """The best of a few samples of each."""
        best: Rates = {}
        for name in self.names:
            values = [v for v in (self.sample(name) for _ in range(times)) if v is not None]
            best[name] = max(values, default=None)
        return best


def driver(run: Callable[..., Any] = subprocess.run) -> dict[str, str]:
    """What nvidia-smi says of the card as it is found; nothing where it is not there."""
    names = ("driver_version", "clocks.sm", "clocks.mem", "power.limit", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        lines = run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return dict(zip(names, values, strict=False))


def facts() -> dict[str, Any]:
    card = torch.cuda.get_device_properties()
    modules = {name: optional(name) for name in ("octavo", "torch", "triton", "torchao", "bitsandbytes")}
    return {
        "gpu": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": card.L2_cache_size,
        "memory_bytes": card.total_memory,
        **driver(),
        "cuda": torch.version.cuda,
        **{name: getattr(module, "__version__", None) for name, module in modules.items()},
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def facts_line(values: dict[str, Any]) -> str:
    names = ("octavo", "torch", "cuda", "triton", "torchao", "bitsandbytes", "python")
    versions = ", ".join(f"{n} {values[n] or 'not installed'}" for n in names)
    return (
        f"{values['gpu']}, {values['multiprocessors']} multiprocessors, L2 {values['l2_bytes'] >> 20} MiB, "
        f"driver {values.get('driver_version', 'unknown')}; {versions}"
    )
