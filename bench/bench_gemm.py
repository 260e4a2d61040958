"""Int8 matrix products against torch and onnxruntime: C1 s8 x s8 -> s32, C2 dynamic linear, C3 decode, C9 one
tiny call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import peers
from common import Case, Contender, Parity, check_all, check_equal, main
from machine import optional, rotation

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
        product = peers.Product(a, weight, reference.int_mm(a, weight.T))
        return [octavo_product(product), *peers.int_products(product, threads)]

    return Case("C1", f"{m}x{k}x{n} s8 x s8 -> s32", 2.0 * m * k * n, "GOP/s", "peak", contenders)


def octavo_product(p: peers.Product) -> Contender:
    a, out = peers.given(p.a), peers.given(np.empty(p.expected.shape, np.int32))
    packed = octavo.pack_weight(peers.given(p.weight))

    def call(_: int) -> object:
        return octavo.int_mm(a, packed, out=out)

    def check() -> Parity:
        call(0)
        return check_equal(out, p.expected)

    return Contender("octavo int_mm, packed", call, check, ours=True)


def linear_case(id: str, m: int, k: int, n: int, count: int, threads: int) -> Case:
    """`count` weights in turn: 1 where arithmetic is the bound, more than the caches hold for decode."""
    memory_bound = count > 1
    turns = f", {count} weights in turn" if memory_bound else ""
    label = f"{m}x{k}x{n} f32 -> dynamic int8 -> f32 + bias{turns}"

    def contenders() -> list[Contender]:
        layer = make_layer(m, k, n, count, memory_bound)
        ours = [octavo_linear(layer, peers.torch is not None)]
        if id == "C9" and peers.torch is not None:
            ours.append(octavo_linear(layer, with_torch=False))
        return [*ours, *peers.linears(layer, threads)]

    if memory_bound:
        return Case(id, label, float(k * n), "GB/s", "read", contenders)
    return Case(id, label, 2.0 * m * k * n, "GOP/s", "peak", contenders)


def make_layer(m: int, k: int, n: int, count: int, memory_bound: bool) -> peers.Layer:
    """Weight i is the first one with its rows rolled by i: one exact product serves to check them all."""
    rng = np.random.default_rng(m + k + n)
    x = rng.standard_normal((m, k), dtype=np.float32)
    base = rng.standard_normal((n, k), dtype=np.float32) / np.float32(k**0.5)
    bias = rng.standard_normal(n, dtype=np.float32)
    weights = [np.roll(base, i, axis=0) for i in range(count)]
    exact = x.astype(np.float64) @ base.T.astype(np.float64)
    expected = [np.roll(exact, i, axis=1) + bias for i in range(count)]
    return peers.Layer(x, weights, bias, expected, memory_bound)


def octavo_linear(layer: peers.Layer, with_torch: bool) -> Contender:
    given = peers.given if with_torch else np.asarray
    x, bias = given(layer.x), given(layer.bias)
    out = given(np.empty(layer.expected[0].shape, np.float32))
    packed = [octavo.pack_weight(given(w)) for w in layer.weights]
    count = len(packed)

    def call(i: int) -> object:
        return octavo.int8_linear(x, packed[i % count], bias, out=out)

    def check() -> Parity:
        worst = peers.check_each(call, layer, peers.INT8_ERROR)
        last = count - 1
        call(last)
        data, scale, _ = reference.quantize(layer.weights[last])
        return check_all(check_equal(out, reference.int8_linear(layer.x, data, scale, layer.bias)), worst)

    return Contender(f"octavo int8_linear, {'torch' if with_torch else 'NumPy'}", call, check, ours=True)


def make_cases(quick: bool, threads: int) -> Sequence[Case]:
    if quick:
        decodes = [(1, 1024, 1024, 8), (16, 1024, 1024, 8)]
        return [
            product_case(512, 1024, 1024, threads),
            *(linear_case("C2", *shape, 1, threads) for shape in LINEARS[:2]),
            *(linear_case("C3", m, k, n, count, threads) for m, k, n, count in decodes),
            linear_case("C9", *TINY, 1, threads),
        ]
    cases = [product_case(*shape, threads) for shape in PRODUCTS]
    cases += [linear_case("C2", *shape, 1, threads) for shape in LINEARS]
    for m, k, n in DECODES:
        cases.append(linear_case("C3", m, k, n, max(DECODE_WEIGHTS, rotation(k * n)), threads))
    return [*cases, linear_case("C9", *TINY, 1, threads)]


if __name__ == "__main__":
    peers.prepare()
    sys.exit(main("int8 matrix products", make_cases))
