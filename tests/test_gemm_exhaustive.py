"""Every number of rows around every tile, on every ISA and thread count: nothing is drawn here.

Without activation, bit for bit against the reference; with gelu against one ISA on one thread, which stays
within 4 ulp of the reference. A row does not depend on the others, so one result of the most rows serves all.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import octavo
from octavo.reference import numpy as reference
from strategies import THREADS, assert_close_ulp, isas, lay_out, running

ROWS = (*range(1, 71), 191, 192, 193, 257)
LAYOUTS = ("contiguous", "transposed", "padded rows")


def every_number_of_rows(n, k, threads, layouts):
    """layouts: those of x for m rows."""
    rng = np.random.default_rng(n * 10_000 + k)
    x = rng.standard_normal((ROWS[-1], k)).astype(np.float32)
    a = rng.integers(-128, 128, x.shape).astype(np.int8)
    weight, scale = (
        rng.integers(-128, 128, (n, k)).astype(np.int8),
        rng.uniform(0.01, 1, n).astype(np.float32),
    )
    bias = rng.standard_normal(n).astype(np.float32)
    packed = octavo.pack_weight(weight, scale)
    linear, sums = reference.int8_linear(x, weight, scale, bias), reference.int_mm(a, weight.T)
    with running("scalar"):
        gelu = octavo.int8_linear(x, packed, bias, activation="gelu")
    assert_close_ulp(gelu, reference._activate(linear, "gelu"), 4)
    cases = [(m, layout) for m in ROWS for layout in layouts(m)]
    inputs = [(m, layout, lay_out(x[:m], layout), lay_out(a[:m], layout)) for m, layout in cases]
    wrong = []
    for isa, count in itertools.product(isas(), threads):
        with running(isa, count):
            for m, layout, xs, integers in inputs:
                results = (
                    octavo.int8_linear(xs, packed, bias),
                    octavo.int8_linear(xs, packed, bias, activation="gelu"),
                    octavo.int_mm(integers, packed),
                )
                for result, expected in zip(results, (linear, gelu, sums), strict=True):
                    if result.tobytes() != expected[:m].tobytes():
                        wrong.append((isa, count, m, layout))
    assert not wrong


@pytest.mark.parametrize("k", [1, 3, 63, 64, 65, 200])
@pytest.mark.parametrize("n", [1, 15, 17, 67, 130])
def test_every_number_of_rows(n, k):
    every_number_of_rows(n, k, THREADS[-1:], lambda m: LAYOUTS)  # too little work for a second thread


def test_every_number_of_rows_on_every_number_of_threads():
    every_number_of_rows(130, 2000, THREADS, lambda m: [LAYOUTS[m % 3]])
