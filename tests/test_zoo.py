"""Models of transformers as they are: int8, copied, generating, fused; zoo/checks.py says what holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import octavo  # noqa: E402
from zoo import mixed, sound, text, vision  # noqa: E402
from zoo.checks import check_copies, check_fused, check_generate, check_near  # noqa: E402
from zoo.entry import Entry  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and of torch.export
TABLE = {**text.TABLE, **vision.TABLE, **sound.TABLE, **mixed.TABLE}
# All take a quarter of an hour: the gate has one of three.
DEEP = os.environ.get("OCTAVO_TEST_DEEP") == "1"
CHOSEN = TABLE if DEEP else dict(list(TABLE.items())[::3])


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    transformers.logging.set_verbosity_error()


def test_the_zoo_is_large():
    kinds = {type(getattr(transformers, name).config_class()).model_type for name in CHOSEN}
    assert len(kinds) >= 80


@pytest.mark.parametrize("name", CHOSEN)
def test_int8(name: str, tmp_path: Path, record_property):
    entry: Entry = CHOSEN[name]
    call = entry.call()
    record_property("zoo", "tried")
    model = octavo.quantize_(entry.make())
    check_near(entry, model, call)
    check_copies(entry, model, call, tmp_path)
    if entry.generates and hasattr(model, "can_generate") and model.can_generate():
        check_generate(entry, model, call)
    record_property("zoo", "int8")


@pytest.mark.parametrize("name", CHOSEN)
def test_fuse(name: str, record_property):
    entry: Entry = CHOSEN[name]
    model = octavo.quantize_(entry.make())
    record_property("zoo", "tried to fuse")
    try:
        check_fused(entry, model, entry.call())
    except ValueError as refusal:
        if not str(refusal).startswith("model: expected"):
            raise
        record_property("zoo", f"not fused: {_reason(refusal)}")
    else:
        record_property("zoo", "fused")


def _reason(refusal: ValueError) -> str:
    """Of all refusals of a kind the same."""
    return re.sub(r"for \w+ it says: |\(.*|\b[us]?\d+\b", "", str(refusal)).strip()[:90]
