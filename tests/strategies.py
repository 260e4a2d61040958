"""What the property tests share: arrays by class of shape, value and memory layout; what "the same bits" is.

An array is drawn as a few small choices and a seed: examples stay cheap, and a failure names its classes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import octavo
from octavo.runtime import backends

try:
    import torch
except ImportError:  # the wheels are tested without it
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = ("float32", "float16", "bfloat16", "float64")
THREADS = (1, 2, 3)


def cases(n: int) -> settings:
    """n examples, and ten times as many in `make test-deep` (conftest.py)."""
    return settings(max_examples=n * settings().max_examples // 100)


# ---- backends ----


def isas() -> list[str]:
    """Every ISA of this machine. Without the native module: a failure, or a skip if OCTAVO_TEST_NATIVE=0."""
    if backends._core is None:
        if os.environ.get("OCTAVO_TEST_NATIVE") == "0":
            pytest.skip("the native module is missing, and OCTAVO_TEST_NATIVE=0 allows it")
        pytest.fail(f"the native module is missing: {backends.native_error}")
    return backends._core.isas_available()


@contextlib.contextmanager
def running(isa: str, threads: int = 1):
    with octavo.use_backend("native"), octavo.force_isa(isa):
        octavo.set_num_threads(threads)
        try:
            yield
        finally:
            octavo.set_num_threads(None)


def on_every_isa(call, threads=THREADS):
    """Yields (label, call()) for every ISA at every thread count."""
    for isa in isas():
        for n in threads:
            with running(isa, n):
                result = call()
            yield f"isa {isa}, {n} threads", result


@contextlib.contextmanager
def flushing_denormals():
    """The caller's thread flushes denormals to zero, as some audio and training code asks for."""
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# ---- other processes ----

# A new process's ru_maxrss begins with what its parent had: this does not.
PEAK_MEMORY = """
def peak_memory():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def run_script(
    script: str, package: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a new interpreter that finds this octavo and takes no settings from this process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OCTAVO_")}
    package = package or str(Path(octavo.__file__).parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(p for p in (package, env.get("PYTHONPATH", "")) if p)
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=120,  # a hang is a failure
    )


def succeed(script: str, package: str | None = None, **environment: str):
    done = run_script(script, package, **environment)
    assert done.returncode == 0, done.stderr
    return done


# ---- equality ----


def dtype_of(name: str) -> np.dtype:
    return BF16 if name == "bfloat16" else np.dtype(name)


def _bits(a: np.ndarray) -> np.ndarray:
    a = np.ascontiguousarray(a)
    words = a.view(f"u{a.itemsize}").copy()
    if a.dtype.kind in "fV":  # every NaN is one value, -0.0 is not 0.0
        words[np.isnan(a)] = np.iinfo(words.dtype).max
    return words


def assert_same(actual, expected, label: str = "") -> None:
    """Same kind of thing, shape, dtype and bits; all NaN are equal."""
    if expected is None or isinstance(expected, float):
        assert actual == expected or (actual != actual and expected != expected), label
        return
    actual = to_numpy(actual)
    assert isinstance(actual, np.ndarray), f"{label}: {type(actual)}"
    assert actual.dtype == expected.dtype, f"{label}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{label}: {actual.shape}, expected {expected.shape}"
    wrong = np.argwhere(_bits(actual) != _bits(expected))
    if wrong.size:
        at = tuple(wrong[0])
        raise AssertionError(
            f"{label}: {len(wrong)} of {expected.size} differ, "
            f"first at {at}: {actual[at]!r}, expected {expected[at]!r}"
        )


def _ordered(a: np.ndarray) -> np.ndarray:
    i = a.view(np.int32).astype(np.int64)
    return np.where(i < 0, -(i & 0x7FFFFFFF), i)


def assert_close_ulp(actual, pre: np.ndarray, ulp: int, label: str = "") -> None:
    """actual is some value within `ulp` f32 steps of the f32 array `pre`, rounded to actual's dtype."""
    actual = to_numpy(actual)
    assert actual.shape == pre.shape, label
    nan = np.isnan(pre)
    assert np.array_equal(np.isnan(actual), nan), f"{label}: NaN where none is expected, or none where one is"
    at = _ordered(np.where(nan, np.float32(0), pre))
    limit = 0x7F800000
    with np.errstate(all="ignore"):
        low, high = (_from_ordered(np.clip(at + d, -limit, limit)).astype(actual.dtype) for d in (-ulp, ulp))
    value = np.where(nan, np.zeros((), actual.dtype), actual).astype(np.float64)
    wrong = np.argwhere((value < low.astype(np.float64)) | (value > high.astype(np.float64)))
    if wrong.size:
        i = tuple(wrong[0])
        raise AssertionError(
            f"{label}: {len(wrong)} beyond {ulp} ulp, first at {i}: {actual[i]!r} for {pre[i]!r}"
        )


def _from_ordered(i: np.ndarray) -> np.ndarray:
    return np.where(i < 0, (-i) | 0x80000000, i).astype(np.uint32).view(np.float32)


# ---- torch ----


def to_torch(a: np.ndarray):
    """A tensor of the same values and strides (torch has no negative ones: such arrays are copied)."""
    dtype = torch.bfloat16 if a.dtype == BF16 else getattr(torch, a.dtype.name)
    if a.size == 0 or any(s < 0 or s % a.itemsize for s in a.strides):
        return torch.from_numpy(_raw(np.ascontiguousarray(a)).copy()).view(dtype).reshape(a.shape)
    extent = a.itemsize + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True))
    memory = np.lib.stride_tricks.as_strided(a, (extent // a.itemsize,), (a.itemsize,))
    base = torch.from_numpy(_raw(np.ascontiguousarray(memory)).copy()).view(dtype)
    return base.as_strided(a.shape, [s // a.itemsize for s in a.strides])


def _raw(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1).view(np.uint8 if a.itemsize == 1 else f"i{a.itemsize}")


def to_numpy(t):
    if torch is None or not isinstance(t, torch.Tensor):
        return t
    t = t.detach().contiguous()
    return t.view(torch.int16).numpy().view(BF16) if t.dtype == torch.bfloat16 else t.numpy()


# ---- shapes ----

# 0, 1, powers of two and their neighbours, multiples of vectors and tiles and their neighbours
SIZES = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    33,
    47,
    63,
    64,
    65,
    96,
    127,
    128,
    129,
    200,
    255,
    256,
    257,
)
sizes = st.sampled_from(SIZES)
small_sizes = st.sampled_from([n for n in SIZES if n <= 33])


@st.composite
def shapes(draw, max_dims=3, last=sizes, max_elements=1 << 14):
    dims = draw(st.integers(1, max_dims))
    shape = [draw(last)]
    for _ in range(dims - 1):
        room = max_elements // max(1, int(np.prod(shape)))
        shape.insert(0, draw(st.sampled_from([n for n in SIZES if n <= room])))
    return tuple(shape)


@st.composite
def mnk(draw):
    """Products by class: square-ish, deep, narrow, GEMV, a row tile and its neighbours, something empty."""
    kind = draw(st.sampled_from(["tiles", "deep", "narrow", "gemv", "wide", "empty"]))
    tiny = st.sampled_from([1, 2, 3, 5, 6, 7])
    if kind == "deep":
        return draw(tiny), draw(small_sizes), draw(st.sampled_from([511, 1024, 2049]))
    if kind == "narrow":
        return draw(sizes), draw(tiny), draw(sizes)
    if kind == "gemv":
        return 1, draw(sizes), draw(sizes)
    if kind == "wide":
        return draw(tiny), draw(st.sampled_from([191, 256, 321, 513])), draw(small_sizes)
    if kind == "empty":
        m, n, k = draw(st.permutations([0, 3, 65]))
        return m, n, k
    tile = st.sampled_from([1, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])
    return draw(tile), draw(tile), draw(tile)


# ---- values ----

F32_MAX, F32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-40, -3e-39, F32_TINY, -F32_TINY, F32_MAX, -F32_MAX,
     1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 127.0, -128.0, 1e-30, -1e30, 65504.0, 65520.0, 6e-8]
)  # fmt: skip
FLAVOURS = ("normal", "ties", "special", "one special", "zeros", "constant", "huge", "tiny", "wide", "halves")


def fill(rng: np.random.Generator, flavour: str, n: int) -> np.ndarray:
    x = rng.standard_normal(n)
    if flavour == "ties":
        return rng.integers(-3, 4, n) * 0.5
    if flavour == "special":
        return rng.choice(SPECIAL, n)
    if flavour == "one special":
        if n:
            x[rng.integers(n)] = rng.choice(SPECIAL)
        return x
    if flavour == "zeros":
        return rng.choice([0.0, -0.0], n)
    if flavour == "constant":
        return np.full(n, rng.choice(SPECIAL))
    if flavour == "huge":
        return x * 1e38
    if flavour == "tiny":  # around the smallest normal scale and below
        return x * 10.0 ** rng.integers(-45, -34)
    if flavour == "wide":
        return x * 10.0 ** rng.integers(-44, 38, n)
    if flavour == "halves":  # amax 127: every x.5 is a tie of rint
        x = rng.integers(-254, 255, n) * 0.5
        if n:
            x[rng.integers(n)] = 127.0
        return x
    return x


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return x.astype(dtype_of(dtype))


@st.composite
def float_arrays(draw, shape=None, dtypes=FLOATS, flavours=FLAVOURS, layouts=None):
    """Rows may have different flavours; the memory layout is drawn too."""
    shape = draw(shapes() if shape is None else shape) if not isinstance(shape, tuple) else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mix = draw(st.lists(st.sampled_from(flavours), min_size=1, max_size=3))
    x = np.zeros(shape)
    cols = shape[-1] if shape else 1
    for i, row in enumerate(x.reshape(x.size // cols if cols else 0, cols)):
        row[:] = fill(rng, mix[i % len(mix)], cols)
    x = cast(x, draw(st.sampled_from(dtypes)))
    return lay_out(x, draw(st.sampled_from(layouts or LAYOUTS)))


@st.composite
def int8_arrays(draw, shape, dtype="int8", layouts=None):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    info = np.iinfo(dtype)
    kind = draw(st.sampled_from(["any", "extremes", "minimum", "zeros"]))
    if kind == "extremes":
        x = rng.choice([info.min, info.min + 1, 0, info.max], shape)
    elif kind == "minimum":  # -128 * -128 everywhere: the largest sums there are
        x = np.full(shape, info.min if dtype == "int8" else info.max)
    elif kind == "zeros":
        x = np.zeros(shape)
    else:
        x = rng.integers(info.min, info.max + 1, shape)
    return lay_out(x.astype(dtype), draw(st.sampled_from(layouts or LAYOUTS)))


@st.composite
def scales(draw, n: int):
    """Positive scales as quantize makes them, over many magnitudes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 2.0, 12.0]))
    return (10.0 ** rng.uniform(-spread, spread, n) * rng.uniform(0.5, 1.0, n)).astype(np.float32)


# ---- memory ----

LAYOUTS = (
    "contiguous", "contiguous", "read-only", "unaligned", "padded rows", "strided", "reversed",
    "reversed rows", "transposed", "repeated rows", "repeated columns", "size-1 strides",
)  # fmt: skip


def lay_out(x: np.ndarray, layout: str) -> np.ndarray:
    """x in another place: the same values, but the repeated ones are the first row (column) everywhere."""
    x = np.ascontiguousarray(x).reshape(x.shape)
    if x.ndim == 0 or layout == "contiguous":
        return x
    if layout == "read-only":
        x = x.copy()
        x.flags.writeable = False
    elif layout == "unaligned":
        memory = np.zeros(x.nbytes + 1, np.uint8)
        memory[1:] = x.reshape(-1).view(np.uint8)
        x = memory[1:].view(x.dtype).reshape(x.shape)
    elif layout == "padded rows":
        x = np.concatenate([x, np.ones((*x.shape[:-1], 3), x.dtype)], axis=-1)[..., : x.shape[-1]]
    elif layout == "strided":
        x = np.repeat(x, 3, axis=-1)[..., 1::3] if x.size else x
    elif layout == "reversed":
        x = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    elif layout == "reversed rows":
        x = np.ascontiguousarray(x[::-1])[::-1]
    elif layout == "transposed":
        x = np.asfortranarray(x)
    elif layout == "repeated rows" and x.shape[0]:
        x = np.broadcast_to(x[:1].copy(), x.shape)
    elif layout == "repeated columns" and x.shape[-1]:
        x = np.broadcast_to(x[..., :1].copy(), x.shape)
    elif layout == "size-1 strides":
        strides = [s if n > 1 else 12345 * x.itemsize for n, s in zip(x.shape, x.strides, strict=True)]
        x = np.lib.stride_tricks.as_strided(x, x.shape, strides) if x.size else x
    return x


def poisoned(shape, dtype, row_pad: int = 0) -> np.ndarray:
    """An out array of junk; with row_pad its rows lie apart, and untouched() sees whether the gaps stayed."""
    lead, cols = tuple(shape[:-1]), shape[-1] if shape else 1
    memory = np.full((*lead, (cols + row_pad) * np.dtype(dtype).itemsize), 0xA5, np.uint8)
    return memory.view(dtype)[..., :cols].reshape(shape) if not row_pad else memory.view(dtype)[..., :cols]


def untouched(out: np.ndarray, row_pad: int) -> bool:
    memory = out.base
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    gaps = memory.view(np.uint8)[..., memory.shape[-1] - row_pad * out.itemsize :]
    return bool((gaps == 0xA5).all())
