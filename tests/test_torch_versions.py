"""The tests of torch.ops.octavo and octavo.nn once more, on another torch: one build of octavo serves all.

`make test` sets up the oldest torch that octavo takes in .venv-oldest; OCTAVO_TEST_TORCH names the
interpreter of that environment, or of another, and makes its absence a failure.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import octavo

torch = pytest.importorskip("torch")

HERE = Path(__file__).parent
TESTS = (
    "test_opcheck.py", "test_torch_ops.py", "test_torch_compile.py", "test_nn.py", "test_conv.py",
    "test_embedding.py", "test_weight_only.py", "test_static.py", "test_attention_module.py",
    "test_quantize_model.py", "test_fusion.py", "test_fused_calls.py",
    "test_fused_models.py", "test_training.py",
)  # fmt: skip
# what takes longest, and asks of torch what others of them ask too
LEFT_OUT = (
    "test_fusion and (dtype1 or dtype2) or test_fused_models and backend or test_training and test_opcheck"
)


@pytest.fixture
def run(tmp_path):
    """Runs that interpreter with this octavo, native module included, and nothing else from here."""
    named = os.environ.get("OCTAVO_TEST_TORCH")
    interpreter = Path(named or HERE.parent / ".venv-oldest/bin/python")
    if not interpreter.exists():
        (pytest.fail if named else pytest.skip)(
            f"no other torch: {interpreter} is missing; make test sets it up"
        )
    (tmp_path / "octavo").symlink_to(Path(octavo.__file__).parent)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OCTAVO_REQUIRE": "native"}
        command = [interpreter, *arguments]
        return subprocess.run(
            command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return run


def test_it_is_another_torch(run):
    done = run("-W", "error", "-c", "import torch, octavo._core; print(torch.__version__)")
    assert done.returncode == 0, done.stdout
    assert done.stdout.split(".")[:2] != torch.__version__.split(".")[:2]


@pytest.mark.parametrize("tests", TESTS)
def test_torch_tests_pass_there(run, tests):
    options = ("-q", "-p", "no:cacheprovider", "--show-capture=no", "-k", f"not ({LEFT_OUT})")
    done = run("-m", "pytest", *options, tests)
    assert done.returncode == 0, done.stdout
