"""What a pruned int8 weight gains in time and in bytes when its zeros are left out: C4 unstructured zeros, C5
blocks of 4x16, S1 the share of zeros from which it pays.

octavo's own dense layout of the same weight is a peer here: "x best peer" is its time over a sparse layout's,
unless somebody else is faster still."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

import peers
import peers_sparse
from cli import main
from common import Case, Contender, Parity, as_numpy, check_all, check_equal
from held import ENVIRONMENTS
from machine import optional, rotation
from peers import Array
from plot import BASELINE, over_layouts, sparse_row_name

octavo = optional("octavo")
reference = optional("octavo.reference")

BLOCKS = "block4x16"
WEIGHTS = 24  # in turn, or more where they would fit the caches
ROWS = (1, 4, 16, 256)
SPARSITIES = (0.5, 0.7, 0.9)
BLOCK_ROWS = (1, 128)
BLOCK_SPARSITIES = (0.75, 0.9)
CROSSOVER_ROWS = (1, 256)
CROSSOVER = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
DECODE_ROWS = 16  # up to here reading the weight is the bound


@dataclass(frozen=True)
class Pruned:
    """A pruned [size, size] weight, and what its users hold of it: made once for every number of rows."""

    size: int
    sparsity: float
    pattern: str
    turns: int | None  # how many packed weights; None: more than the caches hold

    @cached_property
    def values(self) -> Array:
        pruned: Array = octavo.prune(random_weight(self.size), sparsity=self.sparsity, pattern=self.pattern)
        return pruned

    @cached_property
    def quantized(self) -> tuple[Array, Array]:
        data, scale, _ = reference.quantize(self.values)
        return data, scale

    @cached_property
    def rows(self) -> peers_sparse.Rows:
        return peers_sparse.rows_of(self.values)

    @cached_property
    def auto(self) -> str:
        return str(self.pack("auto").layout)

    @cached_property
    def _packed(self) -> dict[str, list[Any]]:
        return {}

    def pack(self, layout: str) -> Any:
        return octavo.pack_weight(*map(peers.given, self.quantized), layout=layout)

    def packed(self, layout: str) -> list[Any]:
        """Each packed for itself: a copy of the buffer would not have its huge pages."""
        if layout not in self._packed:
            first = self.pack(layout)
            turns = self.turns or max(WEIGHTS, rotation(first.nbytes))
            self._packed[layout] = [first, *(self.pack(layout) for _ in range(turns - 1))]
        return self._packed[layout]


@lru_cache(maxsize=1)
def random_weight(size: int) -> Array:
    rng = np.random.default_rng(size)
    weight: Array = rng.standard_normal((size, size), dtype=np.float32) / np.float32(size**0.5)
    return weight


@lru_cache(maxsize=2)  # S1 takes two patterns at once; cases of one weight follow each other
def pruned(size: int, sparsity: float, pattern: str, turns: int | None) -> Pruned:
    return Pruned(size, sparsity, pattern, turns)


@dataclass(frozen=True)
class Input:
    x: Array  # f32 [M, K]
    bias: Array  # f32 [N]

    @property
    def decode(self) -> bool:
        return len(self.x) <= DECODE_ROWS


def make_input(m: int, size: int) -> Input:
    rng = np.random.default_rng(m + size)
    return Input(
        rng.standard_normal((m, size), dtype=np.float32), rng.standard_normal(size, dtype=np.float32)
    )


def layouts(weight: Pruned, given: Input, *names: str) -> list[Contender]:
    """The sparse layouts, which have to give what the dense one and the reference give, to the bit."""
    expected = reference.int8_linear(given.x, *weight.quantized, given.bias)
    dense = side(BASELINE, "dense", weight, given, expected)
    assert dense.call is not None
    same = as_numpy(dense.call(0)).copy()
    check = check_equal(same, expected)
    sparse = [
        side(sparse_row_name(name, weight.auto), name, weight, given, same, check, ours=True)
        for name in names
    ]
    return [*sparse, dense]


def side(
    name: str, layout: str, weight: Pruned, given: Input, expected: Array, *before: Parity, ours: bool = False
) -> Contender:
    packed = weight.packed(layout)
    x, bias, count = peers.given(given.x), peers.given(given.bias), len(packed)
    out = peers.given(np.empty((given.x.shape[0], given.bias.size), np.float32))

    def call(i: int) -> Any:
        return octavo.int8_linear(x, packed[i % count], bias, out=out)

    def check() -> Parity:
        if any(each.layout != layout for each in packed):
            return Parity(False, f"expected layout {layout}, got another")
        return check_all(*before, *(check_equal(call(i), expected) for i in (0, count - 1)))

    work = float(packed[0].nbytes) if given.decode else None
    return Contender(name, call, check, ours=ours, work=work)


def case(id: str, m: int, size: int, what: str, contenders: Any, sparsity: float | None = None) -> Case:
    """GB/s counts the bytes that a side reads; GOP/s the operations of the dense product, zeros included: a
    layout that leaves them out may stand above the peak."""
    label = f"{m}x{size}x{size} f32 -> dynamic int8 -> f32 + bias, {what}, weights in turn"
    if m <= DECODE_ROWS:
        return Case(id, label, float(size * size), "GB/s", "read", contenders, sparsity=sparsity)
    return Case(id, label, 2.0 * m * size * size, "GOP/s", "peak", contenders, sparsity=sparsity)


def gain_case(id: str, m: int, size: int, sparsity: float, pattern: str, turns: int | None) -> Case:
    blocks = pattern == BLOCKS

    def contenders() -> list[Contender]:
        weight, given = pruned(size, sparsity, pattern, turns), make_input(m, size)
        names = ("block", "bitmask") if blocks else ("bitmask",)
        floats = peers_sparse.SparseLayer(given.x, weight.values, weight.rows, given.bias, given.decode)
        return [*layouts(weight, given, *names), *peers_sparse.floats(floats)]

    return case(id, m, size, f"{sparsity:.0%} pruned{' in 4x16 blocks' if blocks else ''}", contenders)


def crossover_case(m: int, size: int, sparsity: float, turns: int | None) -> Case:
    """Two weights of one sparsity, without a structure and in blocks. The dense layout takes the same time
    for both and is timed with the first."""

    def contenders() -> list[Contender]:
        given = make_input(m, size)
        free, blocks = (pruned(size, sparsity, pattern, turns) for pattern in ("unstructured", BLOCKS))
        bitmask, dense = layouts(free, given, "bitmask")
        return [bitmask, layouts(blocks, given, "block")[0], dense]

    return case("S1", m, size, f"{sparsity:.0%} pruned, free and in blocks", contenders, sparsity)


def gains(quick: bool) -> list[Case]:
    if quick:
        free = [gain_case("C4", m, 1024, s, "unstructured", 8) for s in (0.5, 0.9) for m in (1, 256)]
        return [*free, *(gain_case("C5", m, 1024, 0.9, BLOCKS, 8) for m in BLOCK_ROWS)]
    return [
        *(gain_case("C4", m, 4096, s, "unstructured", None) for s in SPARSITIES for m in ROWS),
        *(gain_case("C5", m, 4096, s, BLOCKS, None) for s in BLOCK_SPARSITIES for m in BLOCK_ROWS),
    ]


def make_cases(quick: bool, threads: int) -> Sequence[Case]:
    size, shares, turns = (1024, (0.1, 0.9), 8) if quick else (4096, CROSSOVER, None)
    crossover = [crossover_case(m, size, s, turns) for s in shares for m in CROSSOVER_ROWS]
    return [*gains(quick), *crossover]


def held_cases(quick: bool, threads: int, isa: str) -> Sequence[Case]:
    """C4 and C5 on the AVX-512 kernels, where the machine would run many rows on AMX."""
    core = optional("octavo._core")
    if isa != "avx512vnni" or core is None or "amx" not in core.isas_available():
        return []
    environment = ENVIRONMENTS[isa]
    return [replace(c, label=f"{c.label}, on {isa}", environment=environment) for c in gains(quick)]


if __name__ == "__main__":
    peers.prepare()
    sys.exit(main("pruned int8 weights", make_cases, held_cases, draw=over_layouts))
