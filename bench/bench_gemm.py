"""Int8 matrix products against torch, onnxruntime and OpenVINO: C1 s8 x s8 -> s32, C2 dynamic linear, C3
decode, C9 one tiny call, and C10: C1 and C2 in processes where everybody is held to an older ISA."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import peers
import peers_gemm
from cli import main
from common import Case, Contender, Parity, check_all, check_equal
from held import ENVIRONMENTS
from machine import optional, rotation
from plot import roofline

octavo = optional("octavo")
reference = optional("octavo.reference")

PRODUCTS = [(512, 4096, 4096), (2048, 2048, 2048), (1024, 1024, 1024)]  # M, K, N
LINEARS = [(128, 768, 768), (128, 3072, 768), (512, 4096, 4096), (1024, 1024, 1024)]
DECODES = [(1, 4096, 4096), (4, 4096, 4096), (16, 4096, 4096)]
TINY = (1, 64, 64)
DECODE_WEIGHTS = 24


def product_case(m: int, k: int, n: int, threads: int) -> Case:
    def contenders() -> list[Contender]:
        rng = np.random.default_rng(m + k + n)
        a = rng.integers(-128, 128, (m, k), dtype=np.int8)
        weight = rng.integers(-128, 128, (n, k), dtype=np.int8)
        product = peers_gemm.Product(a, weight, reference.int_mm(a, weight.T))
        return [octavo_product(product), *peers_gemm.int_products(product, threads)]

    operations, traffic = 2.0 * m * k * n, float(k * n + m * k + 4 * m * n)
    label = f"{m}x{k}x{n} s8 x s8 -> s32"
    return Case("C1", label, operations, "GOP/s", "peak", contenders, operations, traffic)


def octavo_product(p: peers_gemm.Product) -> Contender:
    a, out = peers.given(p.a), peers.given(np.empty(p.expected.shape, np.int32))
    packed = octavo.pack_weight(peers.given(p.weight))

    def call(_: int) -> object:
        return octavo.int_mm(a, packed, out=out)

    def check() -> Parity:
        call(0)
        return check_equal(out, p.expected)

    return Contender("octavo int_mm, packed", call, check, ours=True)


def linear_case(id: str, m: int, k: int, n: int, count: int, threads: int, compiled: bool) -> Case:
    """`count` weights in turn: 1 where arithmetic is the bound, more than the caches hold for decode."""
    memory_bound = count > 1
    turns = f", {count} weights in turn" if memory_bound else ""
    label = f"{m}x{k}x{n} f32 -> dynamic int8 -> f32 + bias{turns}"

    def contenders() -> list[Contender]:
        layer = make_layer(m, k, n, count, memory_bound)
        ours = [octavo_linear(layer, peers.torch is not None)]
        if id == "C9" and peers.torch is not None:
            ours.append(octavo_linear(layer, with_torch=False))
        return [*ours, *peers_gemm.linears(layer, threads, compiled)]

    operations, traffic = 2.0 * m * k * n, float(k * n + 4 * m * k + 4 * m * n)
    if memory_bound:
        return Case(id, label, float(k * n), "GB/s", "read", contenders, operations, traffic)
    return Case(id, label, operations, "GOP/s", "peak", contenders, operations, traffic)


def make_layer(m: int, k: int, n: int, count: int, memory_bound: bool) -> peers_gemm.Layer:
    """Weight i is the first one with its rows rolled by i: one exact product serves to check them all."""
    rng = np.random.default_rng(m + k + n)
    x = rng.standard_normal((m, k), dtype=np.float32)
    base = rng.standard_normal((n, k), dtype=np.float32) / np.float32(k**0.5)
    bias = rng.standard_normal(n, dtype=np.float32)
    weights = [np.roll(base, i, axis=0) for i in range(count)]
    exact = x.astype(np.float64) @ base.T.astype(np.float64)
    expected = [np.roll(exact, i, axis=1) + bias for i in range(count)]
    return peers_gemm.Layer(x, weights, bias, expected, memory_bound)


def octavo_linear(layer: peers_gemm.Layer, with_torch: bool) -> Contender:
    given = peers.given if with_torch else np.asarray
    x, bias = given(layer.x), given(layer.bias)
    out = given(np.empty(layer.expected[0].shape, np.float32))
    packed = [octavo.pack_weight(given(w)) for w in layer.weights]
    count = len(packed)

    def call(i: int) -> object:
        return octavo.int8_linear(x, packed[i % count], bias, out=out)

    def check() -> Parity:
        worst = peers_gemm.check_each(call, layer, peers_gemm.INT8_ERROR)
        last = count - 1
        call(last)
        data, scale, _ = reference.quantize(layer.weights[last])
        return check_all(check_equal(out, reference.int8_linear(layer.x, data, scale, layer.bias)), worst)

    return Contender(f"octavo int8_linear, {'torch' if with_torch else 'NumPy'}", call, check, ours=True)


def products(quick: bool, threads: int) -> list[Case]:
    shapes = [(512, 1024, 1024)] if quick else PRODUCTS
    return [product_case(*shape, threads) for shape in shapes]


def linears(quick: bool, threads: int) -> list[Case]:
    shapes = LINEARS[:2] if quick else LINEARS
    return [linear_case("C2", *shape, 1, threads, not quick) for shape in shapes]


def make_cases(quick: bool, threads: int) -> Sequence[Case]:
    decodes = [(m, k, n, max(DECODE_WEIGHTS, rotation(k * n))) for m, k, n in DECODES]
    if quick:
        decodes = [(1, 1024, 1024, 8), (16, 1024, 1024, 8)]
    return [
        *products(quick, threads),
        *linears(quick, threads),
        *(linear_case("C3", *shape, threads, not quick) for shape in decodes),
        linear_case("C9", *TINY, 1, threads, not quick),
    ]


def held_cases(quick: bool, threads: int, isa: str) -> Sequence[Case]:
    """C10; and C1 and C2 for the AVX-512 kernels, where the machine would run those on AMX."""
    core = optional("octavo._core")
    amx = core is not None and "amx" in core.isas_available()
    if isa == "avx512vnni" and not amx:
        return []
    return [
        replace(
            case,
            id=case.id if isa == "avx512vnni" else "C10",
            label=f"{case.label}, on {isa}",
            environment=ENVIRONMENTS[isa],
        )
        for case in (*products(quick, threads), *linears(quick, threads))
    ]


if __name__ == "__main__":
    peers.prepare()
    sys.exit(main("int8 matrix products", make_cases, held_cases, draw=roofline))
