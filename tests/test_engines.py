"""Which kernels arrays on a device would run, and what is said where there are none. No GPU is needed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import octavo
from cuda_parity import packed_rows
from octavo.runtime import backends
from strategies import assert_same, needs_torch, run_script, succeed, to_torch
from test_import import BROKEN

UNPROVEN = dict.fromkeys(("quantize", "norm", "select", "prune", "linear"), False)


class FakeModule:
    """What octavo asks octavo._cuda before it runs anything."""

    devices, sm, families = 1, 90, UNPROVEN

    def device_count(self):
        return self.devices

    def capability(self, device):
        return self.sm

    def kernels(self):
        return self.families


@pytest.fixture
def built(monkeypatch):
    module = FakeModule()
    monkeypatch.setattr(backends, "cuda", lambda: (module, ""))
    monkeypatch.setattr(backends, "cuda_unproven", False)
    backends.why_not_cuda.cache_clear()
    yield module
    backends.why_not_cuda.cache_clear()


def test_unproven_kernels_need_a_switch(built, monkeypatch):
    assert "have not passed their tests on a GPU" in backends.why_not_cuda(0, ("quantize",))
    monkeypatch.setattr(backends, "cuda_unproven", True)
    backends.why_not_cuda.cache_clear()
    assert backends.why_not_cuda(0, ("quantize", "linear")) == ""


def test_a_call_needs_every_family_proven(built):
    built.families = {**UNPROVEN, "select": True}
    assert backends.why_not_cuda(0, ("select",)) == ""
    assert "have not passed" in backends.why_not_cuda(0, ("select", "prune"))


def test_old_devices_and_drivers_have_no_kernels(built, monkeypatch):
    monkeypatch.setattr(backends, "cuda_unproven", True)
    assert "no such device" in backends.why_not_cuda(1, ("quantize",))
    built.sm = 75
    assert "need sm_80 or newer, and this device is sm_75" in backends.why_not_cuda(0, ("quantize",))


def test_the_cuda_module_is_imported_when_it_is_needed():
    done = succeed(
        """
import sys
import numpy as np
import octavo
x = np.ones((2, 4), np.float32)
octavo.int8_linear(x, octavo.pack_weight(x))
octavo.prune_(x, sparsity=0.5)
assert "octavo._cuda" not in sys.modules
config = octavo.show_config()
assert config["cuda_built"] is ("octavo._cuda" in sys.modules)
assert config["cuda_built"] or config["cuda_kernels"] == "this build has no CUDA kernels"
"""
    )
    assert done.stderr == ""


def test_a_cuda_module_that_does_not_load_is_missing():
    broken = BROKEN.replace("octavo._core", "octavo._cuda")
    done = succeed(
        broken + "import octavo\nconfig = octavo.show_config()\nassert config['cuda_built'] is False"
    )
    assert "broken by the test" in done.stdout


def test_the_module_imports_without_a_driver():
    try:
        from octavo import _cuda
    except ImportError:
        pytest.skip("this build has no CUDA kernels")
    assert _cuda.device_count() >= 0
    assert _cuda.kernels().keys() == UNPROVEN.keys()


def test_the_switch_is_one_or_nothing():
    done = run_script("import octavo", OCTAVO_CUDA_UNPROVEN="yes")
    assert "ValueError: OCTAVO_CUDA_UNPROVEN: expected '1' or nothing, got 'yes'" in done.stderr
    for value in ("", "0", "1"):
        assert succeed("import octavo", OCTAVO_CUDA_UNPROVEN=value).stderr == ""


@pytest.fixture
def there():
    """A tensor on CUDA, without its elements."""
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield lambda *shape, **more: torch.empty(*shape, device="cuda", **more)


@needs_torch
def test_tensors_on_a_device_fall_back_with_one_warning(there, built, monkeypatch):
    from octavo.reference import torch as torch_reference
    from octavo.runtime import routing

    x = there(4, 8)
    monkeypatch.setattr(backends, "_warned", set())
    assert routing.native_for(x, "quantize") is None
    with pytest.warns(
        RuntimeWarning, match="not passed.*OCTAVO_CUDA_UNPROVEN=1; .* run on the torch reference"
    ):
        assert routing.reference_for(x, "quantize") is torch_reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routing.reference_for(x, "linear")
        with octavo.use_backend("reference"):  # who asks for it needs no warning
            backends._warned.clear()
            assert routing.native_for(x, "quantize") is None
            assert routing.reference_for(x, "quantize") is torch_reference


@needs_torch
def test_layers_on_a_device_pack_only_rows_that_kernels_cannot_read(there):
    from octavo.nn import Int8Linear

    for k, dims in ((48, 2), (40, 1)):
        layer = Int8Linear(k, 24, device="cuda")
        assert layer._stored.dim() == dims
        assert layer._stored.device.type == "cuda"
        assert layer.weight.shape == (24, k)
        assert layer.state_dict()["weight_int8"].shape == (24, k)
        assert layer(there(3, k)).shape == (3, 24)


@needs_torch
def test_the_torch_reference_packs_as_the_kernels_do():
    from octavo.reference import torch as torch_reference

    for n, k in ((0, 0), (1, 1), (16, 64), (17, 65), (40, 0), (0, 40)):
        weight = np.arange(n * k).astype(np.int8).reshape(n, k)
        packed = torch_reference.pack_weight(to_torch(weight), "rows")
        assert_same(packed, packed_rows(weight))
        assert_same(torch_reference.unpack_weight(packed, n, k, "rows"), weight)
