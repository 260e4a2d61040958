"""Traced calls refuse what eager calls refuse, in the same words: the fake kernel of an operator runs the
plan of the eager call. The wrong calls are those of test_errors.py, on tensors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import octavo
import test_errors
from octavo.ops.op import OPS
from strategies import needs_torch, to_torch, torch

pytestmark = needs_torch

# What a trace cannot know: the values of elements, and addresses. (A graph's results are copied into out.)
UNKNOWN = re.compile(
    "expected (finite values|positive finite values|values in|elements that do not overlap|0 first)"
)
# What the dispatcher refuses before any kernel sees it: arguments that are not of the schema's types.
NO_SUCH_TYPE = re.compile(r"octavo::\w+\(\) Expected a value of type")


class Tensors:
    """octavo, for calls with NumPy arrays: its functions get tensors instead."""

    def __init__(self, convert):
        self._convert = convert

    def __getattr__(self, name):
        found = getattr(octavo, name)
        if not callable(found) or isinstance(found, type):
            return found
        return lambda *args, **kwargs: found(
            *self._all(args), **dict(zip(kwargs, self._all(kwargs.values()), strict=True))
        )

    def _all(self, values):
        return [self._one(value) for value in values]

    def _one(self, value):
        if isinstance(value, octavo.Quantized):
            return octavo.Quantized(*self._all(value))
        if isinstance(value, (list, tuple)):
            return type(value)(self._all(value))
        if isinstance(value, octavo.PackedWeight):
            buffer, scale = self._all([value.buffer, value.scale])
            return octavo.PackedWeight.trusted(buffer, scale, value.shape, value.layout)
        if isinstance(value, octavo.PackedConvWeight):
            buffer, scale = self._all([value.buffer, value.scale])
            return octavo.PackedConvWeight.trusted(buffer, scale, value.shape, value.groups)
        return self._convert(value) if type(value) is np.ndarray else value


def refusal(call, convert, monkeypatch):
    """What the call raises; None for what a tensor cannot be, and where it goes through."""
    monkeypatch.setattr(test_errors, "o", Tensors(convert))
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return error
    return None


def as_tensor(array):
    try:
        return to_torch(array)
    except (AttributeError, TypeError, ValueError):
        pytest.skip("there is no such tensor")


CASES = [case for case in test_errors.CASES if not str(case[2]).startswith("out")]


@pytest.mark.parametrize("call", [case[3] for case in CASES], ids=[case[0] for case in CASES])
def test_a_trace_refuses_in_the_same_words(call, monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    eager = refusal(call, as_tensor, monkeypatch)
    if eager is None:
        pytest.skip("tensors go through")
    with FakeTensorMode() as mode:
        tensors = {}

        def as_fake(array):
            return tensors.setdefault(id(array), mode.from_tensor(as_tensor(array)))

        # as in a compiled function: nothing but the fake kernel checks
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        traced = refusal(call, as_fake, monkeypatch)
    if traced is None:
        assert UNKNOWN.search(str(eager)), eager
    elif not NO_SUCH_TYPE.match(str(traced)):
        text = str(traced).replace("FakeTensor", "Tensor")
        # numbers are floats in a schema
        assert (type(traced), text) in ((type(eager), str(eager)), (type(eager), f"{eager}.0"))


def test_every_operation_is_refused_something():
    called = {name for case in test_errors.CASES for name in case[3].__code__.co_names}
    shared = {"norm_quantize": "rms_norm_quantize", "prune_masks": "prune_mask"}
    shared |= {"int8_linears": "int8_linear", "unpack_weight": "pack_weight"}
    shared |= {"unpack_conv_weight": "int8_conv2d"}
    assert {shared.get(name, name) for name in OPS} <= called
