"""The benchmark of sparse layouts: its plot, its baseline, and peers that do the work they are timed for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import bench_sparse
import common
import peers_sparse
import plot
from common import Case, Contender
from test_bench_common import SETTINGS, FakeMachine, named

octavo = pytest.importorskip("octavo")

# ---- the plot


def crossover_document(fake: FakeMachine) -> dict[str, Any]:
    def sides(gain: float, auto: str) -> list[Contender]:
        return [
            fake.contender(plot.sparse_row_name("bitmask", auto), 4.0 / gain, ours=True, work=1e9 / gain),
            fake.contender(plot.sparse_row_name("block", auto), 2.0, ours=True, work=2e9),
            fake.contender(plot.BASELINE, 4.0, work=4e9),
            fake.contender("a faster peer", 1.0),
        ]

    points = ((0.9, 8.0, "block"), (0.1, 0.5, "dense"))
    cases = [
        Case("S1", "layers", 4e9, "GB/s", "read", lambda g=gain, a=auto: sides(g, a), sparsity=sparsity)
        for sparsity, gain, auto in points
    ]
    results = [common.run_case(case, fake.limits(), SETTINGS, fake.clock) for case in cases]
    results += [common.run_case(named("C4", "no place"), fake.limits(), SETTINGS, fake.clock)]
    facts = {"isa": "amx", "cpu": "a processor", "threads": 2}
    document: dict[str, Any] = json.loads(json.dumps(common.to_json("t", facts, SETTINGS, results)))
    return document


def test_gains_are_against_the_dense_layout() -> None:
    gains = plot.gains(crossover_document(FakeMachine()))
    assert set(gains) == {"amx"}
    assert set(gains["amx"]) == {("bitmask", "read"), ("block", "read")}
    bitmask, block = gains["amx"]["bitmask", "read"], gains["amx"]["block", "read"]
    assert [point.sparsity for point in bitmask] == [0.1, 0.9]
    assert [point.speed for point in bitmask] == pytest.approx([0.5, 8.0])
    assert [point.nbytes for point in bitmask] == pytest.approx([0.5, 1 / 32])
    assert [point.chosen for point in bitmask] == [False, False]
    assert [point.nbytes for point in block] == pytest.approx([0.5, 0.5])
    assert [point.chosen for point in block] == [False, True]


def test_gains_are_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = crossover_document(FakeMachine())
    plot.over_layouts(document, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="no case"):
        plot.over_layouts({**document, "cases": []}, tmp_path / "none.png")


# ---- the contenders


@pytest.mark.parametrize("rows", [1, 32])
def test_layouts_are_checked_to_the_bit_and_dense_is_the_peer(rows: int) -> None:
    weight = bench_sparse.Pruned(64, 0.75, "block4x16", turns=2)
    sides = bench_sparse.layouts(weight, bench_sparse.make_input(rows, 64), "block", "bitmask")
    assert [(row.name, row.ours, row.status, row.parity) for row in map(common.admit, sides)] == [
        ("octavo block (auto: dense)", True, "ok", "exact"),
        ("octavo bitmask (auto: dense)", True, "ok", "exact"),
        (plot.BASELINE, False, "ok", "exact"),
    ]
    sizes = [weight.pack(layout).nbytes for layout in ("block", "bitmask", "dense")]
    assert [side.work for side in sides] == (sizes if rows == 1 else [None] * 3)


def test_a_wrong_dense_layout_refuses_the_sparse_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Any, data: Any, *more: Any) -> Any:
        return np.zeros((len(x), len(data)), np.float32)

    monkeypatch.setattr(bench_sparse.reference, "int8_linear", wrong)
    weight = bench_sparse.Pruned(64, 0.5, "unstructured", turns=2)
    sides = bench_sparse.layouts(weight, bench_sparse.make_input(1, 64), "bitmask")
    assert [common.admit(side).status for side in sides] == ["refused", "refused"]


def test_rows_are_the_weight() -> None:
    weight = np.array([[0, 1.5, 0], [0, 0, 0], [2.5, 0, -1]], np.float32)
    rows = peers_sparse.rows_of(weight)
    assert (rows.values.tolist(), rows.columns.tolist()) == ([1.5, 2.5, -1], [1, 0, 2])
    assert (rows.starts.tolist(), rows.nbytes) == ([0, 1, 1, 3], 4 * (3 + 3 + 4))


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_peers_of_sparse_layers_do_the_work(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(peers_sparse, "rotation", lambda nbytes: 2)
    weight, given = bench_sparse.Pruned(64, 0.5, "unstructured", 2), bench_sparse.make_input(rows, 64)
    layer = peers_sparse.SparseLayer(given.x, weight.values, weight.rows, given.bias, given.decode)
    with torch.no_grad():  # as peers.prepare has it for a whole run
        sides = peers_sparse.floats(layer)
        found = {row.name: (row.status, row.ours) for row in map(common.admit, sides)}
    assert found["torch CSR f32"] == found["torch bf16 Linear"] == ("ok", False)
    assert found["scipy CSR f32, one thread"][0] in ("ok", "not installed", "not above 16 rows")


def test_a_dense_product_counts_with_its_zeros() -> None:
    decode, prefill = (bench_sparse.gain_case("C4", m, 64, 0.5, "unstructured", 2) for m in (1, 256))
    assert (decode.work, decode.unit, decode.limit) == (64 * 64, "GB/s", "read")
    assert (prefill.work, prefill.unit, prefill.limit) == (2 * 256 * 64 * 64, "GOP/s", "peak")
