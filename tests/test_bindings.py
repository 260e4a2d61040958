"""The native modules take records and names: what would be read as something else is a TypeError."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo.ops import conv_weight, layouts, operand, weight_only
from octavo.runtime import backends
from strategies import needs_torch, torch
from test_cuda_emulated import kernels  # noqa: F401  (a fixture)

core = backends._core
pytestmark = pytest.mark.skipif(core is None, reason="needs the native module")
STUBS = Path(octavo.__file__).parent
FLOATS = {"dtype": 0, "rows": 3, "cols": 8, "row_stride": 8, "col_stride": 1}
X = np.ones((3, 8), np.float32)


def rows(x=X, **changed):
    return core.FloatRows(x.ctypes.data, **{**FLOATS, **changed})


def declared(stub):
    """The parameters of each function and record that a stub declares."""
    for node in ast.parse((STUBS / stub).read_text()).body:
        function = node.body[-1] if isinstance(node, ast.ClassDef) else node
        if isinstance(function, ast.FunctionDef):
            names = [a.arg for a in (*function.args.args, *function.args.kwonlyargs) if a.arg != "self"]
            yield node.name, names, len(names) - len(function.args.kwonlyargs)


def check_stub(module, stub):
    called = {name for name in dir(module) if callable(getattr(module, name)) and name[0] != "_"}
    found = {name: (names, positional) for name, names, positional in declared(stub)}
    assert called == set(found)
    for name, (names, positional) in found.items():
        if len(names) > 1:
            parameters = inspect.signature(getattr(module, name)).parameters
            assert list(parameters) == names, name
            kinds = [p.kind for p in parameters.values()]
            assert kinds.count(inspect.Parameter.KEYWORD_ONLY) == len(names) - 1 == len(names) - positional


def test_the_stub_says_what_the_module_takes():
    check_stub(core, "_core.pyi")


def test_the_stub_says_what_the_cuda_module_takes(kernels):  # noqa: F811
    check_stub(kernels, "_cuda.pyi")


def test_the_modules_are_twins(kernels):  # noqa: F811
    """What both have is called in one way; packing alone differs: layouts here, bytes there."""
    for name in set(dir(core)) & set(dir(kernels)) - {"pack_weight"}:
        if callable(getattr(core, name)) and name[0] != "_":
            assert inspect.signature(getattr(core, name)) == inspect.signature(getattr(kernels, name)), name
    assert kernels.ROW_BYTES == operand.CUDA_ROW


def test_only_the_first_argument_comes_by_position():
    with pytest.raises(TypeError, match=r"FloatRows\(\) takes 1 positional argument but 6 were given"):
        core.FloatRows(X.ctypes.data, *FLOATS.values())
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        core.count_nonfinite(rows(), 1)
    assert core.count_nonfinite(rows(), where=1) == (0, -1)
    assert core.count_nonfinite(where=1, x=rows()) == (0, -1)


def test_names_are_all_there_and_known():
    with pytest.raises(TypeError, match="is missing 'where'"):
        core.count_nonfinite(rows())
    with pytest.raises(TypeError, match="is missing 'x'"):
        core.count_nonfinite(where=1)
    with pytest.raises(TypeError, match="has no argument 'threads'"):
        core.count_nonfinite(rows(), threads=1)
    with pytest.raises(TypeError, match="got two of 'x'"):
        core.count_nonfinite(rows(), x=rows(), where=1)


def test_a_record_is_not_taken_for_another():
    scales = core.Scales(0, zero_point=0, groups=1, group_size=8, per_tensor=False)
    integers = core.IntRows(0, signed=True, rows=3, cols=8, row_stride=8, col_stride=1)
    more = {"mask": 0, "data": 0, "data_row_stride": 8, "given": False, "stochastic": False, "seed": 0}
    for x, second in ((scales, rows()), (integers, scales), (X.ctypes.data, scales), (rows(), None)):
        with pytest.raises(TypeError, match=r"^(x|scales): expected octavo._core.(FloatRows|Scales), got "):
            core.quantize(x, scales=second, **more, where=1)
    with pytest.raises(TypeError, match=r"^segments: expected a list, got "):
        core.max_key(rows(), where=1)
    with pytest.raises(TypeError, match=r"^segments: expected octavo._core.Segment, got "):
        core.max_key([rows()], where=1)


def test_numbers_are_numbers_that_fit():
    assert core.count_nonfinite(rows(rows=np.int64(2), cols=np.int32(8)), where=np.int8(1)) == (0, -1)
    for value in (1.0, "1", None, [1]):
        with pytest.raises(TypeError, match=r"^rows: expected an int, got "):
            rows(rows=value)
    for value in (2**63, -(2**63) - 1, 2**200):
        with pytest.raises(ValueError, match=r"^rows: expected an integer of 64 bits"):
            rows(rows=value)
    with pytest.raises(ValueError, match=r"^dtype: expected an integer of 32 bits"):
        rows(dtype=2**31)
    for value in (-1, 2**64):
        with pytest.raises(ValueError, match=r"^address: expected an integer of 64 bits"):
            core.FloatRows(value, **FLOATS)
    with pytest.raises(ValueError, match=r"^dtype: expected a float code from 0 to 3, got 4"):
        rows(dtype=4)
    with pytest.raises(TypeError, match=r"^signed: expected a bool, got "):
        core.IntRows(0, signed="yes", rows=3, cols=8, row_stride=8, col_stride=1)
    with pytest.raises(TypeError, match=r"^array: expected an array, got "):
        core.address([1])


def test_records_agree_with_each_other():
    scales = core.Scales(0, zero_point=0, groups=2, group_size=8, per_tensor=False)
    more = {"mask": 0, "data": 0, "data_row_stride": 8, "given": False, "stochastic": False, "seed": 0}
    with pytest.raises(ValueError, match=r"^scales: expected groups that are as long as a row, got 16"):
        core.quantize(rows(), scales=scales, **more, where=1)
    segment = core.Segment(X.ctypes.data, dtype=0, n=X.size, mask=0, pruned=0)
    grid = core.UnitGrid(4, cols=8, unit_rows=1, unit_cols=8)
    with pytest.raises(ValueError, match=r"^grid: expected as many elements as the segment has, got 32"):
        core.unit_scores(segment, grid=grid, scores=0, where=1)
    with pytest.raises(ValueError, match=r"^unit: expected at least one row and column, got 0"):
        core.UnitGrid(4, cols=8, unit_rows=0, unit_cols=8)
    with pytest.raises(ValueError, match=r"^m: expected between 1 and 32, got 0"):
        core.prune_nm(segment, n=0, m=0, where=1)


def test_a_packed_weight_is_checked_when_its_record_is_made():
    buffer = octavo.pack_weight(np.ones((16, 64), np.int8)).buffer
    shape = {"nbytes": buffer.size, "n": 16, "k": 64}
    weight = core.Weight(buffer.ctypes.data, **shape)
    w = np.empty((16, 64), np.int8)
    core.unpack_weight(weight, w=w.ctypes.data, where=1)
    assert (w == 1).all()
    for name in shape:
        with pytest.raises(ValueError, match=r"^(n|k|packed weight): expected .*got "):
            core.Weight(buffer.ctypes.data, **{**shape, name: shape[name] - 1})
    conv = core.ConvWeight(
        buffer.ctypes.data, nbytes=buffer.size, n=16, channels=64, kernel_h=1, kernel_w=1, groups=1
    )
    w[:] = 0
    core.unpack_conv_weight(conv, bundle=1, w=w.ctypes.data, where=1)
    assert (w == 1).all()
    for bundle in (0, -1, 3, 32):
        with pytest.raises(ValueError, match=r"^bundle: expected groups that divide a matrix, got"):
            core.unpack_conv_weight(conv, bundle=bundle, w=w.ctypes.data, where=1)
    taps = core.ConvWeight(w.ctypes.data, nbytes=64, n=64, channels=64, kernel_h=1, kernel_w=1, groups=64)
    with pytest.raises(ValueError, match=r"^weight: expected a packed one, got"):
        core.unpack_conv_weight(taps, bundle=1, w=w.ctypes.data, where=1)
    for i in range(16):
        damaged = buffer.copy()
        damaged[i] ^= 0x80
        with pytest.raises(ValueError, match=r"^packed weight: expected .*got "):
            core.Weight(damaged.ctypes.data, **shape)
    target = {"scale": 0, "bias": 0, "bias_dtype": 0, "activation": 0, "out": 0, "out_row_stride": 16}
    with pytest.raises(ValueError, match=r"^k: expected the packed weight's, got 8"):
        core.int8_linears(
            rows(), targets=[core.Target(weight, **target, out_dtype=0)], symmetric=True, where=1
        )
    for name, code in (("out_dtype", 3), ("activation", 5), ("bias_dtype", 4)):
        with pytest.raises(ValueError, match=r"expected a .*code.*got "):
            core.Target(weight, **{**target, "out_dtype": 0, name: code})


def test_python_knows_the_numbers_of_the_kernels():
    """They decide what files hold and what the reference refuses: Python has them without the module too."""
    assert core.MAX_K == layouts.MAX_K
    assert core.MAX_K_UNSIGNED == layouts.MAX_K_UNSIGNED
    assert core.MAX_TAPS == conv_weight.MAX_TAPS
    assert core.PANEL_COLUMNS == conv_weight._PANEL
    assert core.GROUP_TERMS == weight_only.GROUP_MULTIPLE
    assert layouts.padded(1, 1) == (core.PANEL_COLUMNS, core.PANEL_TERMS)


@needs_torch
def test_a_packed_weight_is_checked_once_and_again_where_torch_has_moved_it():
    w, x = torch.ones(16, 64), torch.ones(1, 64)
    weight = octavo.pack_weight(w)
    expected = octavo.int8_linear(x, weight)
    once = weight._native
    assert once[0] == weight.buffer.data_ptr()
    octavo.int8_linear(x, weight)
    assert weight._native is once
    weight.buffer.share_memory_()
    assert weight.buffer.data_ptr() != once[0]
    assert torch.equal(octavo.int8_linear(x, weight), expected)
    assert weight._native[0] == weight.buffer.data_ptr()
    assert pickle.loads(pickle.dumps(weight))._native == (0, None)
