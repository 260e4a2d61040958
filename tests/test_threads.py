"""Threads change nothing but the time: large work, concurrent callers, forks, torch at work beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import octavo
from octavo.reference import numpy as reference
from strategies import (
    assert_close_ulp,
    assert_same,
    isas,
    needs_torch,
    on_every_isa,
    running,
    succeed,
    to_torch,
)

THREADS = (1, 2, 3, 7)


def linear_case(m, n, k, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, k)).astype(np.float32)
    weight = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale, bias = rng.uniform(0.001, 0.01, n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    return x, weight, scale, bias


# Rows are split, panels are split, one panel, one row, more threads than work.
@pytest.mark.parametrize(
    ("m", "n", "k"), [(401, 130, 200), (40, 700, 300), (1, 2049, 2050), (3000, 1, 1500), (97, 64, 1000)]
)
def test_large_products(m, n, k):
    x, weight, scale, bias = linear_case(m, n, k)
    pre = reference.int8_linear(x, weight, scale, bias)
    gelu = reference._activate(pre, "gelu")
    packed = octavo.pack_weight(weight, scale)
    first = None
    for label, actual in on_every_isa(lambda: octavo.int8_linear(x, packed, bias), THREADS):
        assert_same(actual, pre, label)
    for label, actual in on_every_isa(
        lambda: octavo.int8_linear(x, packed, bias, activation="gelu"), THREADS
    ):
        first = actual if first is None else first
        assert_close_ulp(actual, gelu, 4, label)
        assert_same(actual, first, label)
    a = reference.quantize(x)[0]
    expected = reference.int_mm(a, weight.T)
    for label, actual in on_every_isa(lambda: octavo.int_mm(a, packed), THREADS):
        assert_same(actual, expected, label)


def test_large_weights_pack_and_unpack():
    weight = linear_case(1, 1030, 700)[1]
    expected = reference.pack_weight(weight)
    for label, packed in on_every_isa(lambda: octavo.pack_weight(weight), THREADS):
        assert_same(packed.buffer, expected, label)
    for label, back in on_every_isa(lambda: octavo.pack_weight(weight).unpack()[0], THREADS):
        assert_same(back, weight, label)


@pytest.mark.parametrize("shape", [(1, 400_000), (2, 300_001), (900, 513), (100_003, 3), (300_000, 1)])
def test_large_arrays_quantize(shape):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    x[0, 0], x[-1, -1] = np.nan, 9.0
    for args in ({}, {"granularity": "tensor"}, {"symmetric": False}, {"rounding": "stochastic", "seed": 5}):
        expected = reference.quantize(x, **args)
        for label, actual in on_every_isa(lambda a=args: octavo.quantize(x, **a), THREADS):
            for got, want in zip(actual, expected, strict=True):
                assert_same(got, want, f"{args}, {label}")
        back = reference.dequantize(*expected, "bfloat16")
        for label, actual in on_every_isa(
            lambda e=expected: octavo.dequantize(*e, dtype="bfloat16"), THREADS
        ):
            assert_same(actual, back, label)


def test_set_num_threads():
    default = octavo.get_num_threads()
    assert default >= 1
    octavo.set_num_threads(5)
    assert octavo.get_num_threads() == 5
    octavo.set_num_threads(None)
    assert octavo.get_num_threads() == default


@needs_torch
def test_the_default_is_that_of_torch():
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert octavo.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@needs_torch
@pytest.mark.parametrize("first", ["octavo", "torch"])
def test_there_is_one_openmp_runtime(first):
    """Two of them would fight for the cores."""
    isas()
    done = succeed(
        f"""
import {first}
import numpy as np
import octavo
octavo.set_num_threads(2)
x = np.ones((1000, 1000), np.float32)
octavo.quantize(x)
import torch
torch.nn.functional.gelu(torch.ones(1000, 1000))
octavo.quantize(x)
print(os.path.realpath(octavo.show_config()["threads_info"]["runtime"]))
with open("/proc/self/maps") as maps:
    print({{line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line or "libiomp" in line}})
""".replace("import numpy", "import os\nimport numpy")
    )
    used, mapped = done.stdout.splitlines()[-2:]
    assert mapped == repr({used}), done.stdout


# ---- concurrent and nested callers ----


def test_python_threads_may_call_at_the_same_time():
    isas()
    x, weight, scale, bias = linear_case(120, 200, 300)
    packed = octavo.pack_weight(weight, scale)
    expected = octavo.int8_linear(x, packed, bias, activation="silu")
    rows = octavo.quantize(x)
    mask = octavo.prune_mask(x, sparsity=0.5)

    def work(_):
        for _ in range(10):
            assert_same(octavo.int8_linear(x, packed, bias, activation="silu"), expected)
            assert_same(octavo.quantize(x).data, rows.data)
            assert_same(octavo.prune_mask(x, sparsity=0.5), mask)

    for threads in (1, 2):
        octavo.set_num_threads(threads)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    octavo.set_num_threads(None)


@needs_torch
def test_calls_beside_torch_at_work():
    import torch

    x, weight, scale, bias = (to_torch(v) for v in linear_case(200, 256, 512))
    packed = octavo.pack_weight(weight, scale)
    expected = octavo.int8_linear(x, packed, bias)
    stop = threading.Event()

    def torch_at_work():
        a = torch.randn(300, 300)
        while not stop.is_set():
            torch.nn.functional.layer_norm(a @ a, (300,))

    other = threading.Thread(target=torch_at_work)
    other.start()
    try:
        for _ in range(30):
            assert torch.equal(octavo.int8_linear(x, packed, bias), expected)
            torch.nn.functional.layer_norm(x, (512,))
    finally:
        stop.set()
        other.join()


# ---- forks ----

FORK = """
import os
import numpy as np
import octavo
octavo.set_num_threads(3)
rng = np.random.default_rng(0)
x = rng.standard_normal((500, 600)).astype(np.float32)
packed = octavo.pack_weight(rng.standard_normal((300, 600)).astype(np.float32))

def work():
    q = octavo.quantize(x)
    mask = octavo.prune_mask(x, sparsity=0.5)
    return octavo.int8_linear(x, packed, activation="gelu").tobytes() + q.data.tobytes() + mask.tobytes()

{before}
children = []
for _ in range(3):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            result = work()
            assert work() == result
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if work() == result else 1)
            assert os.waitpid(grandchild, 0)[1] == 0
            import hashlib
            os.write(write, hashlib.sha256(result).digest())
            status = 0
        finally:
            os._exit(status)
    children.append((pid, read))
import hashlib
expected = hashlib.sha256(work()).digest()
for pid, read in children:
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(read, 100) == expected
assert work() == work()
"""


def fork(before: str) -> None:
    """Children forked from a parent that did `before` compute the same, and finish: a hang is a failure."""
    isas()
    try:
        succeed(FORK.format(before=before))
    except subprocess.TimeoutExpired:
        pytest.fail("a forked child hung")


def test_fork_before_any_work():
    fork("")


def test_fork_after_the_parent_used_threads():
    fork("work()")


@needs_torch
def test_fork_with_torch_loaded():
    fork("import torch; work()")


@needs_torch
def test_fork_after_torch_used_threads():
    fork("import torch; a = torch.randn(2000, 2000); (a @ a).relu_(); torch.nn.functional.gelu(a); work()")


@needs_torch
def test_fork_after_torch_alone_used_threads():
    fork("import torch; a = torch.randn(2000, 2000); torch.nn.functional.gelu(a)")


def test_fork_by_multiprocessing():
    isas()
    succeed(
        """
import multiprocessing
import numpy as np
import octavo

def work(seed):
    x = np.random.default_rng(seed).standard_normal((300, 400)).astype(np.float32)
    return octavo.int8_linear(x, x[:50]).sum()

octavo.set_num_threads(2)
expected = [work(i) for i in range(6)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(6)) == expected
"""
    )


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_one_thread_starts_no_other():
    isas()
    done = succeed(
        """
import os
import numpy as np
import octavo
octavo.set_num_threads(1)
before = len(os.listdir("/proc/self/task"))
x = np.ones((2000, 1000), np.float32)
octavo.quantize(x)
octavo.int8_linear(x, x[:100])
octavo.prune_mask(x, sparsity=0.5)
print(len(os.listdir("/proc/self/task")) - before)
""",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.stdout.strip() == "0"


def test_a_caller_on_few_cores_gets_the_same():
    """The affinity mask changes who works, not what comes out."""
    x, weight, scale, bias = linear_case(300, 200, 400)
    packed = octavo.pack_weight(weight, scale)
    expected = octavo.int8_linear(x, packed, bias)
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        for isa in isas():
            with running(isa, 3):
                assert_same(octavo.int8_linear(x, packed, bias), expected, isa)
    finally:
        os.sched_setaffinity(0, cpus)
