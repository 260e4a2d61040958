"""Python to kernels for arrays on a device, without one: octavo._cuda on the emulator, tests/cuda/emulator.h.

CuPy arrays are played by emulated_cupy; torch tensors by those of the CPU, which octavo is told are on CUDA.
`make test-cpp` builds the module; OCTAVO_TEST_CUDA_EMULATED says where it lies, and makes its absence a
failure.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuda_parity
import emulated_cupy
import octavo
from cuda_parity import Adapter
from octavo.ops import operand
from octavo.ops.op import OPS
from octavo.runtime import arrays, backends, routing
from strategies import assert_same, cases, needs_torch, to_numpy, to_torch, torch

BUILD = Path(__file__).parent.parent / "build/cpp-tests"
MAX_ELEMENTS = 1 << 11  # the emulator is slow
f32, i8 = np.float32, np.int8


@pytest.fixture(scope="module")
def kernels():
    folder = os.environ.get("OCTAVO_TEST_CUDA_EMULATED")
    found = sorted(Path(folder or BUILD).glob("_cuda_emulated*.so"))
    if not found:
        (pytest.fail if folder else pytest.skip)(f"no emulated CUDA module in {folder or BUILD}")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cuda(kernels, monkeypatch):
    """octavo with the emulated module in the place of its own, and its unproven kernels allowed."""
    monkeypatch.setattr(backends, "cuda", lambda: (kernels, ""))
    monkeypatch.setattr(backends, "cuda_unproven", True)
    forget = backends.why_not_cuda.cache_clear
    forget()
    yield kernels
    forget()


@pytest.fixture
def cupy(cuda, monkeypatch):
    module = emulated_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    yield module
    arrays._kinds.pop(module.ndarray, None)


@pytest.fixture
def on_cupy(cupy) -> Adapter:
    return Adapter(cupy.asarray, lambda x: x.host, MAX_ELEMENTS)


@pytest.fixture
def on_torch(cuda, monkeypatch) -> Adapter:
    def where(x):
        held = []

        def allocate(nbytes):
            held.append(x.new_empty(nbytes, dtype=torch.uint8))
            return held[-1].data_ptr()

        return 0, 0, allocate

    for name, module in list(sys.modules.items()):
        if name.startswith("octavo.") and hasattr(module, "on_cuda"):
            monkeypatch.setattr(module, "on_cuda", lambda x: isinstance(x, torch.Tensor))
    monkeypatch.setattr(routing, "_where", where)
    monkeypatch.setattr(backends, "why_not_cuda", lambda device, families: "")
    for op in OPS.values():
        monkeypatch.setattr(op, "tiny", None)
    return Adapter(to_torch, to_numpy, MAX_ELEMENTS)


def run(check, adapter, examples):
    @cases(examples)
    @given(st.data())
    def example(data):
        check(adapter, data)

    example()


@pytest.mark.parametrize("check", cuda_parity.CHECKS, ids=lambda check: check.__name__[6:])
def test_cupy(check, on_cupy):
    run(check, on_cupy, 20)


@needs_torch
@pytest.mark.parametrize("check", cuda_parity.CHECKS, ids=lambda check: check.__name__[6:])
def test_torch(check, on_torch):
    run(check, on_torch, 8)


# ---- torch.ops, layers ----


@needs_torch
def test_torch_ops_take_buffers_and_rows_without_looking_at_them(on_torch, monkeypatch):
    """A packed buffer is 1-D: N and K come from the other arguments, and the header is not read."""
    import octavo.torch_ops

    rng = np.random.default_rng(3)
    op = torch.ops.octavo
    for n, k in ((5, 40), (16, 64), (33, 48)):
        x = rng.standard_normal((3, k)).astype(f32)
        weight, scale, _ = octavo.quantize(rng.standard_normal((n, k)).astype(f32))
        expected = octavo.reference.int8_linear(x, weight, scale, None, None, "float32")
        args = to_torch(x), to_torch(weight), to_torch(scale)
        buffer = op.pack_weight(args[1])
        assert_same(buffer, cuda_parity.packed_rows(weight))
        assert_same(op.unpack_weight(buffer, n, k), weight)
        with monkeypatch.context() as patch:
            patch.setattr(operand, "read_header", None)
            for stored in (args[1], buffer):
                assert_same(op.int8_linear(args[0], stored, args[2]), expected)
                assert_same(op.int8_linear(args[0], stored, args[2].unsqueeze(-1)), expected)
                (y,) = op.int8_linears(args[0], [stored], [args[2]], [args[0].new_empty(0)], [""])
                assert_same(y, expected)
                a, a_scale, _ = op.quantize(args[0])
                assert_same(op.scaled_int_mm(a, a_scale, stored, args[2]), expected)
            for wrong in (buffer[:-16], octavo.reference.pack_weight(weight)):
                with pytest.raises(ValueError, match=r"^weight: expected the \d+ bytes .*CUDA, got \d+"):
                    op.int8_linear(args[0], torch.as_tensor(wrong), args[2])


@needs_torch
def test_layers_store_what_the_kernels_read(on_torch, monkeypatch):
    from octavo import nn

    monkeypatch.setattr(nn.layers.linear, "needs_dispatcher", lambda *_: True)  # as on a device
    for k, packed in ((48, False), (40, True)):
        source = torch.nn.Linear(k, 24)
        layer = nn.Int8Linear.from_float(source)
        data, scale, _ = octavo.reference.quantize(to_numpy(source.weight))
        assert layer._stored.dim() == (1 if packed else 2)
        assert_same(layer.weight_int8, data)
        x = torch.randn(3, k)
        expected = octavo.reference.int8_linear(
            to_numpy(x), data, scale, to_numpy(source.bias), None, "float32"
        )
        assert_same(layer(x), expected)
        other = nn.Int8Linear(k, 24)
        other.load_state_dict(layer.state_dict())
        assert_same(other(x), expected)


@needs_torch
def test_a_layer_unpacks_what_another_device_packed(on_torch):
    """What Int8Linear does when it moves: the buffer comes along as it is."""
    from octavo.ops import pack as packed

    weight = np.arange(-60, 60, dtype=i8).reshape(6, 20)
    for layout in ("dense", "bitmask", "block"):
        moved = to_torch(octavo.reference.pack_weight(weight, layout))
        assert_same(packed.unpack_matrix(moved, 6, 20), weight, layout)
        with pytest.raises(ValueError, match=r"^buffer: expected one packed for ISA 1 \(CUDA\).*got .*ISA 0"):
            octavo.PackedWeight.from_buffer(moved)


# ---- what is not parity ----


def test_nothing_waits_for_the_device(cupy, kernels, monkeypatch):
    """Only what has to give a number to the host does."""

    def refuse(*_, **__):
        raise AssertionError("waits")

    waiting = {"count_nonfinite": refuse, "magnitude_select": refuse}
    lazy = type("Lazy", (), {**waiting, "__getattr__": lambda self, name: getattr(kernels, name)})
    for name in waiting:
        setattr(lazy, name, staticmethod(refuse))
    monkeypatch.setattr(backends, "cuda", lambda: (lazy(), ""))
    monkeypatch.setattr(cupy.ndarray, "get", refuse)
    monkeypatch.setattr(cupy.ndarray, "__int__", refuse)
    put = cupy.asarray
    w, scale = put(np.ones((8, 32), f32)), put(np.ones(8, f32))
    q = octavo.quantize(w, scale=scale)
    octavo.quantize(w, symmetric=False, scale=scale, zero_point=put(np.zeros(8, np.int32)))
    octavo.dequantize(*q)
    packed = octavo.pack_weight(q.data, q.scale)
    octavo.int8_linear(w, [packed, packed])
    octavo.scaled_int_mm(q.data, q.scale, packed, a_zero_point=put(np.zeros(8, np.int32)))
    octavo.int_mm(q.data, packed)
    for how in ({"sparsity": 0.5}, {"ratio": 0.5}, {"threshold": 0.5}):
        for pattern in ("unstructured", "row", "column", "block4x16"):
            octavo.prune_([w], pattern=pattern, **how)
        octavo.prune_quantize(w, **how)
    octavo.unpack_mask(octavo.pack_mask(octavo.prune_mask(w, pattern="2:4")), w.shape)
    for call in (
        lambda: octavo.magnitude_threshold(w, 0.5),
        lambda: octavo.quantize(w, nonfinite="raise"),
    ):
        with pytest.raises(AssertionError, match="waits"):
            call()


def test_weights_have_one_form_on_a_device(cupy):
    weight = np.ones((6, 20), i8)
    there, scale = cupy.asarray(weight), cupy.asarray(np.ones(6, f32))
    for layout in ("bitmask", "block"):
        with pytest.raises(ValueError, match=r"^layout: expected 'auto' or 'dense' on a device, got "):
            octavo.pack_weight(there, scale, layout=layout)
    packed = octavo.pack_weight(there, scale)
    with pytest.raises(ValueError, match=r"^buffer: expected one packed for ISA 0 \(any CPU\).*got .*ISA 1"):
        octavo.PackedWeight.from_buffer(packed.buffer.get())
    here = octavo.pack_weight(weight, np.ones(6, f32))
    with pytest.raises(ValueError, match=r"^buffer: expected one packed for ISA 1 \(CUDA\).*got .*ISA 0"):
        octavo.PackedWeight.from_buffer(cupy.asarray(here.buffer))
    x = np.ones((2, 20), f32)
    with pytest.raises(TypeError, match=r"^weight: expected cupy.ndarray like x, got numpy.ndarray"):
        octavo.int8_linear(cupy.asarray(x), here)
    with pytest.raises(TypeError, match=r"^weight: expected numpy.ndarray like x, got cupy.ndarray"):
        octavo.int8_linear(x, packed)


def test_arrays_of_two_devices_are_refused(cupy):
    x = cupy.asarray(np.ones((4, 8), f32))
    other = emulated_cupy.ndarray(np.ones(4, f32), 1)
    with pytest.raises(
        TypeError, match=r"^scale: expected device <CUDA Device 0> like \w+, got <CUDA Device 1"
    ):
        octavo.quantize(x, scale=other)
    with pytest.raises(TypeError, match=r"^out: expected cupy.ndarray like w, got numpy.ndarray"):
        octavo.prune_mask(x, sparsity=0.5, out=np.ones((4, 8), bool))
    with pytest.raises(ValueError, match=r"^out: expected memory apart from w"):
        octavo.prune(x, sparsity=0.5, out=x)


def test_a_failing_call_names_itself(kernels):
    def no_memory(nbytes):
        raise MemoryError(f"{nbytes} bytes")

    w = np.ones(5000, f32)
    segments = [kernels.Segment(w.ctypes.data, dtype=0, n=w.size, mask=0, pruned=0)]
    with pytest.raises(MemoryError, match="bytes"):
        kernels.magnitude_select(segments, k=10, where=(0, 0, no_memory))
    with pytest.raises(ValueError, match=r"^k: expected between 1 and 5000, got 5001"):
        kernels.magnitude_select(segments, k=5001, where=(0, 0, no_memory))


def test_config_and_explain_say_what_is_proven(cupy, kernels, monkeypatch, capsys):
    families = {"quantize", "norm", "select", "prune", "linear"}
    assert kernels.device_count() == 1
    assert kernels.kernels() == dict.fromkeys(families, False)
    packed = octavo.pack_weight(cupy.asarray(np.ones((6, 20), f32)))
    (row,) = octavo.explain(packed)
    assert row.kernel == f"int8_linear cuda sm_{kernels.capability(0)}"
    assert (row.layout, row.density) == ("dense", 1.0)
    assert "unproven" in row.why
    config = octavo.show_config()
    assert config["cuda_built"] is True
    assert set(config["cuda_kernels"].values()) == {"unproven on a GPU: run by OCTAVO_CUDA_UNPROVEN=1"}
    monkeypatch.setattr(backends, "cuda_unproven", False)
    backends.why_not_cuda.cache_clear()
    capsys.readouterr()
    octavo.show_config()
    assert "unproven on a GPU: off without OCTAVO_CUDA_UNPROVEN=1" in capsys.readouterr().out
    x = cupy.asarray(np.ones((4, 8), f32))
    with pytest.raises(
        RuntimeError, match=r"no reference.*not passed their tests on a GPU.*OCTAVO_CUDA_UNPROVEN=1"
    ):
        octavo.quantize(x)


def test_families_are_proven_one_by_one(cupy, kernels, monkeypatch):
    proven = {**kernels.kernels(), "quantize": True, "linear": True}
    partly = type("Partly", (), {"__getattr__": lambda self, name: getattr(kernels, name)})()
    partly.kernels = lambda: proven
    monkeypatch.setattr(backends, "cuda", lambda: (partly, ""))
    monkeypatch.setattr(backends, "cuda_unproven", False)
    backends.why_not_cuda.cache_clear()
    x = cupy.asarray(np.ones((4, 8), f32))
    octavo.int8_linear(octavo.dequantize(*octavo.quantize(x)), x)
    with pytest.raises(RuntimeError, match="not passed"):
        octavo.prune_mask(x, sparsity=0.5)
    monkeypatch.setattr(partly, "capability", lambda device: 75, raising=False)
    backends.why_not_cuda.cache_clear()
    with pytest.raises(RuntimeError, match="need sm_80 or newer, and this device is sm_75"):
        octavo.quantize(x)
    monkeypatch.setattr(partly, "device_count", lambda: 0, raising=False)
    backends.why_not_cuda.cache_clear()
    with pytest.raises(RuntimeError, match="find no such device; the driver"):
        octavo.quantize(x)


def test_the_reference_backend_has_nothing_for_cupy(cupy):
    x = cupy.asarray(np.ones((4, 8), f32))
    with octavo.use_backend("reference"):
        for call in (octavo.quantize, octavo.pack_weight, lambda w: octavo.prune_mask(w, sparsity=0.5)):
            with pytest.raises(
                RuntimeError, match="no reference, got none: the reference, forced by use_back"
            ):
                call(x)
    octavo.quantize(x)
