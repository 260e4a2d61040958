"""Models of transformers as they are: int8, copied, generating, fused; zoo/checks.py says what holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from zoo import mixed, sound, text, vision  # noqa: E402
from zoo.checks import check_fuse, check_int8  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and of torch.export
TABLE = {**text.TABLE, **vision.TABLE, **sound.TABLE, **mixed.TABLE}
# All take a quarter of an hour: the gate has one of three.
CHOSEN = TABLE if os.environ.get("OCTAVO_TEST_DEEP") == "1" else dict(list(TABLE.items())[::3])


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


def test_the_zoo_is_large():
    kinds = {getattr(transformers, name).config_class.model_type for name in CHOSEN}
    assert len(kinds) >= 80


@pytest.mark.parametrize("name", CHOSEN)
def test_int8(name: str, tmp_path: Path, record_property):
    check_int8(CHOSEN[name], tmp_path, record_property)


@pytest.mark.parametrize("name", CHOSEN)
def test_fuse(name: str, record_property):
    check_fuse(CHOSEN[name], record_property)
