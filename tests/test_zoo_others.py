"""Models of timm and diffusers as they are; `make test-zoo` runs it, with what they need in build/zoo."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if find_spec("timm") is None:
    pytest.skip("make test-zoo runs this, with timm and diffusers", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from zoo import others
from zoo.checks import check_fuse, check_int8  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of theirs and of torch.export
TABLE = others.DEEP_TABLE if os.environ.get("OCTAVO_TEST_DEEP") == "1" else others.TABLE


@pytest.mark.parametrize("name", TABLE)
def test_int8(name: str, tmp_path: Path, record_property):
    check_int8(TABLE[name], tmp_path, record_property)


@pytest.mark.parametrize("name", TABLE)
def test_fuse(name: str, record_property):
    check_fuse(TABLE[name], record_property)
