"""What `import octavo` loads, what the environment chooses, and life without the native module."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import octavo
from strategies import isas, needs_torch, run_script, succeed

# Stands before a script: the native module is there and does not load.
BROKEN = """
import importlib.machinery
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "octavo._core":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError("broken by the test")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Broken())
"""


@pytest.fixture(scope="module")
def missing(tmp_path_factory) -> str:
    """Where a copy of the package lies that was never compiled."""
    target = tmp_path_factory.mktemp("pure")
    source = Path(octavo.__file__).parent
    shutil.copytree(source, target / "octavo", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return str(target)


def test_import_loads_no_framework():
    isas()
    done = succeed(
        """
import sys
import octavo
heavy = {"torch", "cupy", "ml_dtypes", "scipy", "pandas", "hypothesis", "octavo.nn", "octavo.torch_ops"}
print(sorted(heavy & set(sys.modules)))
assert "nn" in dir(octavo) and "quantize_" in octavo.__all__
import numpy as np
octavo.quantize(np.ones((2, 3), np.float32))
octavo.show_config()
print(sorted(heavy & set(sys.modules)))
"""
    )
    assert done.stdout.startswith("[]\n")
    assert done.stdout.rstrip().endswith("[]")
    assert done.stderr == ""


def test_everything_that_is_public_exists():
    torch_names = {"nn", *octavo._LAZY}
    for name in octavo.__all__:
        if name not in torch_names:
            assert getattr(octavo, name) is not None
            assert getattr(getattr(octavo, name), "__doc__", None) or name == "__version__"
    assert set(octavo.__all__) <= set(dir(octavo))
    with pytest.raises(AttributeError, match="no_such_name"):
        octavo.no_such_name  # noqa: B018


@needs_torch
def test_the_torch_names_are_loaded_when_asked_for():
    succeed(
        """
import sys
import octavo
assert "torch" not in sys.modules
config = octavo.Int8Dynamic()
assert "torch" in sys.modules
assert octavo.quantize_ is octavo.nn.quantize_ and octavo.prune_model_ is octavo.nn.prune_model_
"""
    )


WORK = """
import numpy as np
x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
w = np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32)
q = octavo.quantize(x)
octavo.quantize(x, symmetric=False, rounding="stochastic", seed=1)
octavo.dequantize(*q)
octavo.layer_norm_quantize(x, w[0], w[1], residual=x)
packed = octavo.pack_weight(w)
y = octavo.int8_linear(x, packed, activation="gelu")
octavo.scaled_int_mm(q.data, q.scale, packed)
octavo.int_mm(q.data, packed)
octavo.prune_quantize(w, sparsity=0.5)
octavo.prune(w, pattern="2:4")
octavo.prune_mask([w, x], ratio=0.5)
octavo.prune_mask(w, pattern="block1x4", sparsity=0.5)
octavo.magnitude_threshold(w, 0.5)
octavo.unpack_mask(octavo.pack_mask(w > 0), w.shape)
octavo.explain(packed)
config = octavo.show_config()
print(float(np.abs(y).sum()))
"""


def assert_one_warning(stderr: str, reason: str) -> None:
    warnings = [line for line in stderr.splitlines() if "Warning" in line]
    assert len(warnings) == 1, stderr
    for part in ("RuntimeWarning", "native", reason, "OCTAVO_REQUIRE", "show_config"):
        assert part in warnings[0]


def test_without_the_native_module_one_warning_and_the_same_numbers(missing):
    isas()
    done = succeed("import octavo\nimport octavo.ops\n" + WORK, missing)
    assert_one_warning(done.stderr, "not built")
    assert "the native module is missing: not built" in done.stdout  # explain
    native = succeed("import octavo\n" + WORK)
    assert native.stderr == ""
    assert abs(float(done.stdout.splitlines()[-1]) - float(native.stdout.splitlines()[-1])) < 1e-3


def test_a_native_module_that_does_not_load_is_missing_too():
    done = succeed(BROKEN + "import octavo\n" + WORK)
    assert_one_warning(done.stderr, "broken by the test")
    done = run_script(BROKEN + "import octavo", OCTAVO_REQUIRE="native")
    assert "ImportError" in done.stderr
    assert "broken by the test" in done.stderr


def test_without_the_native_module_show_config_says_so(missing):
    succeed(
        """
import octavo
config = octavo.show_config()
assert config["isas_available"] == [] and "reference" in config["runs"], config
assert "missing" in config["native"], config
assert octavo.get_isa() == "none"
refused = {RuntimeError: lambda: octavo.use_backend("native"), ValueError: lambda: octavo.force_isa("scalar")}
for kind, call in refused.items():
    try:
        call()
    except kind as error:
        assert "got" in str(error), error
    else:
        raise AssertionError
assert octavo.get_num_threads() >= 1
octavo.set_num_threads(2)
""",
        missing,
    )


@needs_torch
def test_without_the_native_module_torch_works(missing):
    done = succeed(
        """
import torch
import octavo
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
x = torch.randn(3, 16)
before = model(x)
octavo.prune_model_(model, sparsity=0.1)
octavo.quantize_(model)
assert (model(x) - before).abs().max() < 0.5
q = octavo.quantize(x)
assert torch.equal(torch.ops.octavo.quantize(x)[0], q.data)
octavo.prune_(x, sparsity=0.5)
""",
        missing,
    )
    assert_one_warning(done.stderr, "not built")


def test_bfloat16_in_numpy_needs_ml_dtypes():
    succeed(
        """
import sys
sys.modules["ml_dtypes"] = None  # not installed
import numpy as np
import octavo
x = np.ones((2, 4), np.float32)
q = octavo.quantize(x)
linear = lambda: octavo.int8_linear(x, x, out_dtype="bfloat16")
for call in (lambda: octavo.dequantize(*q, dtype="bfloat16"), linear):
    try:
        call()
    except TypeError as error:
        assert "ml_dtypes" in str(error) and "bfloat16" in str(error), error
    else:
        raise AssertionError
assert octavo.dequantize(*q, dtype="float16").dtype == np.float16
"""
    )


def test_require_native(missing):
    done = run_script("import octavo", missing, OCTAVO_REQUIRE="native")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "RuntimeWarning" not in done.stderr
    isas()
    assert succeed("import octavo", OCTAVO_REQUIRE="native").stderr == ""
    done = run_script("import octavo", OCTAVO_REQUIRE="cuda")
    assert "ValueError: OCTAVO_REQUIRE: expected" in done.stderr


def test_backend_from_the_environment(missing):
    script = "import octavo\nprint(octavo.show_config()['runs'])"
    done = succeed(script, missing, OCTAVO_BACKEND="reference")
    assert done.stderr == ""  # who asks for the reference needs no warning
    assert done.stdout.splitlines()[-1] == "reference"
    assert succeed(script, OCTAVO_BACKEND="reference").stdout.splitlines()[-1] == "reference"
    done = run_script(script, OCTAVO_BACKEND="gpu")
    assert "ValueError: OCTAVO_BACKEND: expected" in done.stderr
    assert "got 'gpu'" in done.stderr
    assert "ImportError" in run_script(script, missing, OCTAVO_BACKEND="native").stderr


def test_isa_from_the_environment():
    for isa in isas():
        assert succeed("import octavo\nprint(octavo.get_isa())", OCTAVO_ISA=isa).stdout.strip() == isa
    for bogus in ("bogus", "AVX2", "neon"):
        done = run_script("import octavo", OCTAVO_ISA=bogus)
        assert done.returncode != 0
        assert f"ValueError: OCTAVO_ISA: expected an ISA of this machine ({', '.join(isas())})" in done.stderr
        assert f"got {bogus!r}" in done.stderr


def test_threads_from_the_environment():
    isas()
    for n in ("1", "3"):
        done = succeed("import octavo\nprint(octavo.get_num_threads())", OMP_NUM_THREADS=n)
        assert done.stdout.strip() == n
