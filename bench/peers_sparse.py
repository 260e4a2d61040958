"""The peers of bench_sparse.py: a pruned layer in float, as sparse rows (CSR) and as if it were dense."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import peers_gemm
from common import Contender, check_close
from machine import optional, rotation
from peers import Array, peer, torch

scipy_sparse = optional("scipy.sparse")

MANY_ROWS = 16  # SciPy runs on one thread and takes seconds for more


@dataclass(frozen=True)
class Rows:
    """The weights that are not zero, row by row."""

    values: Array  # f32
    columns: Array  # s32: faster than torch's own s64
    starts: Array  # s32 [N + 1]
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.columns.nbytes + self.starts.nbytes

    @cached_property
    def copies(self) -> list[tuple[Array, Array, Array]]:
        """Together beyond the caches."""
        parts = self.values, self.columns, self.starts
        return [tuple(part.copy() for part in parts) for _ in range(rotation(self.nbytes))]


def rows_of(weight: Array) -> Rows:
    kept = weight != 0
    starts = np.concatenate(([0], np.cumsum(kept.sum(axis=1)))).astype(np.int32)
    return Rows(weight[kept], np.nonzero(kept)[1].astype(np.int32), starts, weight.shape)


@dataclass(frozen=True)
class SparseLayer:
    x: Array  # f32 [M, K]
    weight: Array  # f32 [N, K], pruned
    rows: Rows  # the same weight
    bias: Array  # f32 [N]
    memory_bound: bool  # the case counts the bytes that a side reads


def floats(layer: SparseLayer) -> list[Contender]:
    expected = layer.x.astype(np.float64) @ layer.weight.astype(np.float64).T + layer.bias
    count = rotation(2 * layer.weight.size)
    dense = peers_gemm.Layer(
        layer.x, [layer.weight] * count, layer.bias, [expected] * count, layer.memory_bound
    )
    name, many = "scipy CSR f32, one thread", layer.x.shape[0] > MANY_ROWS
    return [
        peer("torch CSR f32", torch_csr, layer, expected, needs=[torch]),
        Contender(name, why_not=f"not above {MANY_ROWS} rows")
        if many
        else peer(name, scipy_csr, layer, expected, needs=[scipy_sparse]),
        peer(
            "torch bf16 Linear",
            peers_gemm.torch_linear,
            "bfloat16",
            dense,
            peers_gemm.BF16_ERROR,
            needs=[torch],
        ),
    ]


def torch_csr(name: str, layer: SparseLayer, expected: Array) -> Contender:
    """The product is [N, M]; its transposed view is the layer's output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # CSR is in beta
        weights = [
            torch.sparse_csr_tensor(*map(torch.from_numpy, (starts, columns, values)), layer.rows.shape)
            for values, columns, starts in layer.rows.copies
        ]
    x, bias, count = torch.from_numpy(layer.x), torch.from_numpy(layer.bias), len(weights)
    columns, biases = x.t().contiguous(), bias[:, None].expand(-1, x.shape[0])

    def call(i: int) -> Any:
        if x.shape[0] == 1:
            return torch.addmv(bias, weights[i % count], x[0])[None]
        return torch.addmm(biases, weights[i % count], columns).t()

    return finished(name, call, layer, expected)


def scipy_csr(name: str, layer: SparseLayer, expected: Array) -> Contender:
    weights = [
        scipy_sparse.csr_array((values, columns, starts), shape=layer.rows.shape)
        for values, columns, starts in layer.rows.copies
    ]
    columns, count = np.ascontiguousarray(layer.x.T), len(weights)

    def call(i: int) -> Any:
        return (weights[i % count] @ columns).T + layer.bias

    return finished(name, call, layer, expected)


def finished(name: str, call: Any, layer: SparseLayer, expected: Array) -> Contender:
    work = float(layer.rows.nbytes) if layer.memory_bound else None
    return Contender(name, call, lambda: check_close(call(0), expected, peers_gemm.F32_ERROR), work=work)
