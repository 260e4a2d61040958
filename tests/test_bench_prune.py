"""The benchmark of pruning: its plot, and peers that do the work they are timed for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import cli
import common
import peers_prune
import plot
from common import Case, Contender, Parity
from test_bench_common import SETTINGS, FakeMachine, named

# ---- plots


def test_who_draws_nothing_has_no_plot(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse_arguments("test", True, ["--plot", "p.png"])
    assert "unrecognized arguments: --plot" in capsys.readouterr().err


def test_a_run_draws_what_it_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(cli, "optional", {"octavo": object(), "matplotlib": object()}.get)
    monkeypatch.setattr(cli, "set_threads", lambda threads: None)
    monkeypatch.setattr(cli, "run_all", lambda *more: [])
    sides = [named("P1", "work", sparsity=0.5)]
    path = tmp_path / "p.png"
    flags = ["--threads", "1", "--plot", str(path)]
    cli.main("t", lambda q, t: sides, None, flags, lambda *more: drawn.append(more))
    ((document, target),) = drawn
    assert (document["bench"], target) == ("t", path)


# ---- time over sparsity


def sparsity_document(fake: FakeMachine) -> dict[str, Any]:
    missing = Contender("x", why_not="not installed")
    cases = [
        Case(
            "P1",
            "some of 8x8",
            2e9,
            "GB/s",
            "read",
            lambda s=share: [fake.contender("octavo", 1 + s, ours=True), fake.contender("a", 4.0), missing],
            sparsity=share,
        )
        for share in (0.9, 0.1)
    ]
    results = [common.run_case(case, fake.limits(), SETTINGS, fake.clock) for case in cases]
    results += [common.run_case(named("C8", "no place"), fake.limits(), SETTINGS, fake.clock)]
    facts = {"isa": "amx", "cpu": "a processor", "threads": 2}
    document: dict[str, Any] = json.loads(json.dumps(common.to_json("t", facts, SETTINGS, results)))
    return document


def test_times_over_sparsity() -> None:
    document = sparsity_document(FakeMachine())
    assert plot.series(document) == {
        "octavo": [(0.1, pytest.approx(1.1)), (0.9, pytest.approx(1.9))],
        "a": [(0.1, pytest.approx(4.0)), (0.9, pytest.approx(4.0))],
    }
    assert [case["id"] for case in plot.placed(document)] == ["P1", "P1"]


def test_times_over_sparsity_are_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = sparsity_document(FakeMachine())
    plot.over_sparsity(document, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="no case"):
        plot.over_sparsity({**document, "cases": []}, tmp_path / "none.png")


# ---- the peers of pruning


def test_masks_of_peers_may_differ_at_ties_only() -> None:
    w = np.arange(1, 1001, dtype=np.float32).reshape(10, 100)
    mask = w > 500
    pruned = np.where(mask, w, np.float32(0))
    assert peers_prune.check_pruned(pruned, w, mask) == Parity(True, "exact")
    assert not peers_prune.check_pruned(2 * pruned, w, mask).ok
    assert not peers_prune.check_pruned(w, w, mask).ok
    swapped = mask.copy()
    swapped[4, 99], swapped[5, 0] = True, False
    assert peers_prune.check_mask(swapped, mask, 0.002) == Parity(True, "2.0e-03 off at ties")
    assert not peers_prune.check_mask(swapped, mask, 0.001).ok
    assert peers_prune.check_each(list(pruned), list(w), list(mask)).ok


def test_peers_of_pruning_do_the_work() -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("octavo.reference")
    rng = np.random.default_rng(0)
    ws = [rng.standard_normal((16, 64), dtype=np.float32) for _ in range(2)]
    (mask,) = reference.prune_masks(ws[:1], sparsity=0.75)
    masks = reference.prune_masks(ws, sparsity=0.5)
    with torch.no_grad():  # as peers.prepare has it for a whole run
        sides = peers_prune.exact_shares(ws, mask, 0.75, compiled=False)
        sides += peers_prune.global_shares([ws, ws], masks, 1024)
        for dim, pattern in enumerate(("row", "column")):
            expected = reference.prune_masks(ws[:1], sparsity=0.5, pattern=pattern)[0]
            sides.append(peers_prune.ln_structured(ws, expected, 0.5, dim))
        rows = [common.admit(side) for side in sides]
    assert {(row.status, row.parity) for row in rows} == {("ok", "exact"), ("not with --quick", "")}
    assert not any(row.ours for row in rows)
