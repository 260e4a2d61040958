"""Files that octavo 0.1.0 wrote load, and what is computed from them has the same bits: old_files.py."""

from __future__ import annotations

import copy
import pickle

import pytest

import octavo
from old_files import FOLDER, configs, outputs, read_arrays, read_torch
from strategies import needs_torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own


def expected(names):
    files = {name.partition("/")[0] for name in names}
    lines = (FOLDER / "outputs.txt").read_text().splitlines(keepends=True)
    return [line for line in lines if line.replace(" ", "/").partition("/")[0] in files]


def same(a, b):
    return list(outputs({"": a})) == list(outputs({"": b}))


def test_pickled_arrays():
    things = read_arrays(FOLDER)
    assert list(outputs(things)) == expected(things)
    for thing in things.values():
        assert same(pickle.loads(pickle.dumps(thing)), thing)


@pytest.fixture(scope="module")
def read():
    pytest.importorskip("safetensors")
    return read_torch(FOLDER)


@needs_torch
def test_everything_is_read(read):
    lines = [*expected(read_arrays(FOLDER)), *expected(read)]
    assert lines == (FOLDER / "outputs.txt").read_text().splitlines(keepends=True)
    files = {each.relative_to(FOLDER).parts[0] for each in FOLDER.iterdir()}
    assert files == {name.partition("/")[0] for name in [*read, "arrays.pkl", "configs.pkl", "outputs.txt"]}


@needs_torch
def test_modules_tensors_checkpoints_and_programs(read):
    assert list(outputs(read)) == expected(read)


@needs_torch
def test_copies_of_them(read):
    for name, thing in read.items():
        if name.startswith(("layers", "tensors", "saved")):
            assert same(copy.deepcopy(thing), thing), name
            assert same(pickle.loads(pickle.dumps(thing)), thing), name


@needs_torch
def test_configs():
    found = pickle.loads((FOLDER / "configs.pkl").read_bytes())
    now = configs()
    assert [type(each) for each in found] == [type(each) for each in now]
    assert [vars(each) for each in found] == [vars(each) for each in now]


@needs_torch
def test_their_classes_are_the_public_ones(read):
    layers = [layer for name, layer in read.items() if name.startswith("layers")]
    assert {type(each) for each in layers} == {getattr(octavo.nn, type(each).__name__) for each in layers}
    arrays = [*read_arrays(FOLDER).values(), *(read[name] for name in read if name.startswith("tensors"))]
    assert {type(each) for each in arrays} == {octavo.Quantized, octavo.PackedWeight, octavo.PackedConvWeight}
