"""Which kernels run, and who decides it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo.runtime import backends
from strategies import isas, needs_torch, running, succeed

KNOWN = ("scalar", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neondot", "neoni8mm")


def test_the_best_isa_is_chosen():
    available = isas()
    assert available[0] == "scalar"
    assert available == [isa for isa in KNOWN if isa in available]  # from plain to best
    assert set(available) <= set(backends._core.isas_built())
    assert octavo.get_isa() == available[-1]


def test_force_isa_and_its_undoing():
    best = octavo.get_isa()
    for isa in isas():
        with octavo.force_isa(isa):
            assert octavo.get_isa() == isa
            with octavo.force_isa("scalar"):
                assert octavo.get_isa() == "scalar"
            assert octavo.get_isa() == isa
        assert octavo.get_isa() == best
    with pytest.raises(KeyError), octavo.force_isa("scalar"):
        raise KeyError
    assert octavo.get_isa() == best
    undo = octavo.force_isa("scalar")  # without a with block it stays
    assert octavo.get_isa() == "scalar"
    with undo:
        pass
    assert octavo.get_isa() == best


def test_an_isa_that_is_not_here_is_refused():
    available = isas()
    for name in {*KNOWN, "sse2", ""} - set(available):
        with pytest.raises(ValueError, match=r"^name: expected an ISA of this machine \(scalar.*\), got "):
            octavo.force_isa(name)
    assert octavo.get_isa() == available[-1]


@pytest.mark.parametrize("backend", ["native", "reference", "auto"])
def test_use_backend(backend):
    isas()
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    before = octavo.show_config()["runs"]
    with octavo.use_backend(backend):
        config = octavo.show_config()
        assert config["backend"] == backend
        assert config["runs"].startswith("reference" if backend == "reference" else "native")
        assert octavo.quantize(x).data[2].tolist() == [92, 104, 115, 127]
    assert octavo.show_config()["runs"] == before


def test_the_reference_backend_runs_no_native_kernel(monkeypatch):
    isas()

    def refuse(*_, **__):
        raise AssertionError("a native kernel ran")

    stub = type("Stub", (), {"__getattr__": lambda self, name: refuse})()
    for name, module in list(sys.modules.items()):
        if name.startswith("octavo.") and name != "octavo.runtime.backends" and hasattr(module, "_core"):
            monkeypatch.setattr(module, "_core", stub)
    x = np.ones((4, 8), np.float32)
    with octavo.use_backend("reference"):
        octavo.dequantize(*octavo.quantize(x))
        octavo.int8_linear(x, x)
        for layout in ("auto", "dense", "bitmask", "block"):
            octavo.pack_weight(x, layout=layout).unpack()
        octavo.rms_norm_quantize(x, x[0], residual=x)
        octavo.prune_quantize(x, sparsity=0.5)
        octavo.prune_mask(x, pattern="row", threshold=1)
        octavo.magnitude_threshold(x, 0.5)
    with octavo.use_backend("native"), pytest.raises(AssertionError, match="a native kernel ran"):
        octavo.quantize(x)


def test_show_config_says_what_runs(capsys):
    available = isas()
    config = octavo.show_config()
    printed = capsys.readouterr().out
    assert config["octavo"] == octavo.__version__
    assert config["numpy"] == np.__version__
    assert config["isas_available"] == available
    assert config["isa"] == available[-1]
    assert config["threads"] == octavo.get_num_threads()
    assert config["native"].endswith(".so")
    for key in config:
        assert key in printed


def test_explain_names_the_kernel(capsys):
    packed = octavo.pack_weight(np.eye(8, dtype=np.float32))
    for isa in isas():
        with running(isa):
            (row,) = octavo.explain(packed)
        assert isa in row.kernel, row
        assert (row.shape, row.layout, row.density) == ((8, 8), "dense", 0.125)
        assert row.nbytes == packed.nbytes
        assert row.why
        assert isa in capsys.readouterr().out
    with octavo.use_backend("reference"):
        (row,) = octavo.explain(packed)
    assert "reference" in row.kernel
    with pytest.raises(TypeError, match=r"expected .*got "):
        octavo.explain(3)


def test_explain_says_why():
    isas()
    packed = octavo.pack_weight(np.eye(8, dtype=np.float32))
    (row,) = octavo.explain(packed)
    assert f"{octavo.get_isa()}, the best that was detected" in row.why
    bitmask_pays, block_pays = backends._core.sparse_pays()
    if bitmask_pays:
        shares = f"{bitmask_pays:.0%} kept weights or {block_pays:.0%} kept tiles"
        assert f"dense: large weights gain from {shares} on" in row.why
    with octavo.force_isa("scalar"):
        (row,) = octavo.explain(packed)
        assert row.kernel == "int8_linear scalar"
        assert "scalar, forced by force_isa" in row.why
        assert octavo.show_config()["reason"] in row.why
        assert "dense: without VBMI2, sparse layouts save memory but no time" in row.why
        with octavo.use_backend("reference"):
            (row,) = octavo.explain(np.ones((3, 5), np.int8))
            assert "the reference, forced by use_backend" in row.why
            assert "dense: " not in row.why
    assert "detected" in octavo.explain(packed)[0].why


@pytest.mark.parametrize(("isa", "other"), [("amx", "avx512vnni"), ("neoni8mm", "neondot")])
def test_explain_says_where_few_rows_run(isa, other):
    source = Path(__file__).parent.parent / f"csrc/cpu/gemm/gemm_{isa}.cpp"
    kernel = source.read_text()
    assert f"if (g.m <= kSmallM) return gemm_on::{other}.gemm(g);" in kernel
    assert f'{{kTileM, gemm, peak, kSmallM, "{other}"}}' in kernel
    if isa in isas():
        with running(isa):
            rows, where = backends._core.few_rows()
            (row,) = octavo.explain(np.ones((3, 5), np.float32))
        assert where == other
        assert row.kernel == f"int8_linear {isa} ({other} up to {rows} rows)"


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"OCTAVO_ISA": "scalar"}, "scalar, forced by OCTAVO_ISA"),
        ({"OCTAVO_BACKEND": "reference"}, "the reference, forced by OCTAVO_BACKEND"),
        ({"OCTAVO_BACKEND": "native"}, "the best that was detected"),
    ],
)
def test_explain_knows_the_environment(environment, why):
    isas()
    done = succeed("import octavo, numpy\noctavo.explain(numpy.eye(3))", **environment)
    assert why in done.stdout


@needs_torch
def test_explain_says_why_a_layer_stays_float():
    import torch

    import octavo.nn

    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x)

    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        torch.nn.Linear(4, 2),
        Own(2, 2),
        torch.nn.MultiheadAttention(2, 1),
        torch.nn.Bilinear(2, 2, 2),
    )
    assert {row.why for row in octavo.explain(model[:2])} == {"float: octavo.quantize_ was not called"}
    octavo.quantize_(model, filter_fn=lambda module, name: name == "0")
    rows = {row.name: row for row in octavo.explain(model)}
    assert "Int8Linear: " in rows["0"].why
    for name, reason in (
        ("1", "filter_fn left it out"),
        ("2", "Own has a forward"),
        ("3", "filter_fn left it out"),
        ("3.out_proj", "MultiheadAttention"),
        ("4", "no int8 form of Bilinear"),
    ):
        assert rows[name].kernel == "torch float32"
        assert reason in rows[name].why


def test_a_packed_weight_serves_every_isa():
    """Packed under one ISA or without the native module, multiplied under another: the same numbers."""
    rng = np.random.default_rng(2)
    weight, x = (
        rng.standard_normal((70, 90)).astype(np.float32),
        rng.standard_normal((9, 90)).astype(np.float32),
    )
    results = []
    for packing in isas():
        with running(packing):
            packed = octavo.pack_weight(weight)
        for isa in isas():
            with running(isa):
                results.append(octavo.int8_linear(x, packed))
    with octavo.use_backend("reference"):
        packed = octavo.pack_weight(weight)
        results.append(octavo.int8_linear(x, packed))
    results.append(octavo.int8_linear(x, packed))
    for result in results:
        assert result.tobytes() == results[0].tobytes()
