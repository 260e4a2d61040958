"""RMSNorm and LayerNorm to int8: every ISA and thread count against the reference, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guard
import octavo
from octavo.ops.norm import NORM_RESULTS
from octavo.reference import numpy as reference
from strategies import (
    BF16,
    FLOATS,
    assert_same,
    cases,
    cast,
    float_arrays,
    flushing_denormals,
    isas,
    lay_out,
    needs_torch,
    on_every_isa,
    poisoned,
    running,
    shapes,
    sizes,
    to_numpy,
    to_torch,
)

f32 = np.float32
# One block of lanes and its neighbours, parts of a second and of a fifth one.
lengths = st.one_of(sizes, st.sampled_from([511, 513, 1000, 1023, 1024, 1025, 1100, 2048, 2049, 4097, 5000]))
EPS = (0.0, 2.0**-126, 1e-12, 1e-6, 1e-5, 0.1, 1e30)


def normalize(x, weight=None, bias=None, residual=None, eps=1e-6, centered=False, symmetric=True,
              normed=False, out=None):  # fmt: skip
    """The public function: NORM_RESULTS as the reference gives them."""
    args = {"eps": eps, "residual": residual, "symmetric": symmetric, "normed": normed, "out": out}
    if centered:
        found = octavo.layer_norm_quantize(x, weight, bias, **args)
    else:
        assert bias is None
        found = octavo.rms_norm_quantize(x, weight, **args)
    quantized, *more = (found,) if isinstance(found, octavo.Quantized) else found
    assert isinstance(quantized, octavo.Quantized)
    total = more.pop(0) if residual is not None else None
    y = more.pop() if normed else None
    assert not more
    return *quantized, total, y


@st.composite
def norm_arguments(draw, shape=None, flavours=("normal", "special", "one special", "zeros", "constant",
                                               "huge", "tiny", "wide", "ties"), on_device=False):  # fmt: skip
    """x and the keyword arguments of reference.norm_quantize."""
    x = draw(float_arrays(shapes(last=lengths) if shape is None else shape, flavours=flavours))
    args = {"eps": draw(st.sampled_from(EPS)), "centered": draw(st.booleans())}
    parameter = float_arrays((x.shape[-1],), flavours=("normal", "normal", "special", "huge", "tiny"))
    if draw(st.booleans()):
        args["weight"] = draw(parameter)
    if args["centered"] and draw(st.booleans()):
        args["bias"] = draw(parameter)
    if draw(st.booleans()):
        args["residual"] = draw(float_arrays(x.shape, ["bfloat16" if x.dtype == BF16 else x.dtype.name]))
    if not on_device:
        args |= {"symmetric": draw(st.booleans()), "normed": draw(st.booleans())}
    return x, args


def assert_all_same(actual, expected, label=""):
    for name, got, want in zip(NORM_RESULTS, actual, expected, strict=True):
        assert_same(got, want, f"{name}, {label}")


# ---- the definition ----


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("k", [1, 2, 7, 1023, 1024, 1025, 2500])
def test_the_reference_is_the_definition(k, centered):
    """docs/numerics.md, one float32 number at a time."""
    rng = np.random.default_rng(k)
    x, residual = (rng.standard_normal((2, k)).astype(np.float16) for _ in range(2))
    weight, bias = (rng.standard_normal(k).astype(f32) for _ in range(2))
    data, scale, _, total, normed = reference.norm_quantize(
        x, weight, bias, residual, 1e-3, centered, normed=True
    )
    shifted = reference.norm_quantize(x, weight, bias, residual, 1e-3, centered, symmetric=False)

    def row_sum(values):
        lanes = [f32(0)] * 1024
        for i, v in enumerate(values):
            lanes[i % 1024] += v
        while len(lanes) > 1:
            lanes = [lanes[2 * j] + lanes[2 * j + 1] for j in range(len(lanes) // 2)]
        return lanes[0]

    for row in range(2):
        h = [np.float16(f32(a) + f32(b)) for a, b in zip(x[row], residual[row], strict=True)]
        assert total[row].tolist() == h
        h = [f32(v) for v in h]
        if centered:
            m = row_sum(h) / f32(k)
            h = [v - m for v in h]
        r = f32(1) / np.sqrt(row_sum([v * v for v in h]) / f32(k) + f32(1e-3))
        y = np.array([v * r * w + b for v, w, b in zip(h, weight, bias, strict=True)])
        assert y.dtype == f32
        expected = reference.quantize(y)
        assert_same(data[row], expected[0])
        assert_same(scale[row : row + 1], np.array([expected[1]]))
        assert_same(normed[row], y.astype(np.float16))
        for got, want in zip(shifted[:3], reference.quantize(y, symmetric=False), strict=True):
            assert_same(np.atleast_1d(got[row]), np.atleast_1d(want))


def test_by_hand():
    data, scale = octavo.rms_norm_quantize(np.array([[3.0, 4.0, -3.0, -4.0]], f32), eps=0.0)[:2]
    assert data.tolist() == [[95, 127, -95, -127]]
    assert scale == f32(4) * (f32(1) / np.sqrt(f32(12.5))) / f32(127)
    weight, bias = np.array([1, 1, 0, 2], f32), np.array([0, 0, 8, 0], f32)
    data, scale = octavo.layer_norm_quantize(np.array([9.0, 11, 9, 11], f32), weight, bias, eps=0.0)[:2]
    assert data.tolist() == [-16, 16, 127, 32]
    assert scale == f32(8) / f32(127)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [3, 768, 4096, 100_000])
def test_it_is_as_accurate_as_eight_bits_can_be(k, dtype, centered):
    rng = np.random.default_rng(k)
    x = cast(rng.standard_normal((4, k)) * 3 + 1, dtype)
    weight, bias = rng.uniform(0.5, 2, k).astype(f32), rng.standard_normal(k).astype(f32) * centered
    wide = x.astype(np.float64)
    if centered:
        wide = wide - wide.mean(-1, keepdims=True)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight + bias
    data, scale, *_ = normalize(x, weight, bias if centered else None, centered=centered)
    step = np.abs(exact).max(-1, keepdims=True) / 127
    assert np.abs(data * scale[:, None].astype(np.float64) - exact).max() <= 0.5002 * step.max()
    np.testing.assert_allclose(scale[:, None], step, rtol=2e-6)


# ---- every instruction set ----


@cases(600)
@given(norm_arguments())
def test_norm_quantize(arguments):
    x, args = arguments
    expected = reference.norm_quantize(x, **args)
    for label, actual in on_every_isa(lambda: normalize(x, **args)):
        assert_all_same(actual, expected, label)


@cases(150)
@given(norm_arguments(), st.sampled_from([0, 1, 5]), st.booleans())
def test_into_out(arguments, pad, in_place):
    x, args = arguments
    expected = reference.norm_quantize(x, **args)

    def into():
        outs = {
            name: poisoned(part.shape, part.dtype, pad * (part.ndim == x.ndim))
            for name, part in zip(NORM_RESULTS, expected, strict=True)
            if part is not None
        }
        given = dict(args)
        if "sum" in outs and in_place:
            given["residual"] = outs["sum"]
            outs["sum"][...] = args["residual"]
        found = dict(zip(NORM_RESULTS, normalize(x, **given, out=tuple(outs.values())), strict=True))
        return outs, found

    for label, (outs, returned) in on_every_isa(into, threads=(1, 2)):
        assert_all_same(returned.values(), expected, label)
        for name, out in outs.items():
            assert returned[name] is out, label


@cases(40)
@given(norm_arguments(st.tuples(st.integers(1, 5), lengths)))
def test_a_row_does_not_depend_on_the_others(arguments):
    x, args = arguments
    residual = args.pop("residual", None)
    for label, whole in on_every_isa(lambda: normalize(x, residual=residual, **args), threads=(1,)):
        for i in range(x.shape[0]):
            alone = normalize(
                x[i : i + 1], residual=None if residual is None else residual[i : i + 1], **args
            )
            for got, want in zip(alone, whole, strict=True):  # None for what is not there
                assert_same(got, want if want is None else want[i : i + 1], label)


@pytest.mark.parametrize("shape", [(8200, 1025), (100_003, 3), (2, 300_001), (1, 9_000_000)])
def test_large_arrays(shape):
    """Enough for several threads; the first and the last are written past the caches."""
    rng = np.random.default_rng(3)
    x, residual = rng.standard_normal((2, *shape), dtype=f32)
    x[0, 0], x[-1, -1] = np.nan, 99.0
    weight = rng.standard_normal(shape[-1], dtype=f32)
    more = {"residual": residual, "centered": True, "bias": weight, "symmetric": False, "normed": True}
    for args in ({"weight": weight}, more):
        expected = reference.norm_quantize(x, **args)
        for label, actual in on_every_isa(lambda a=args: normalize(x, **a), threads=(1, 3)):
            assert_all_same(actual, expected, label)


@needs_torch
@cases(100)
@given(norm_arguments(flavours=("tiny", "wide", "special", "normal", "huge")))
def test_the_callers_flush_to_zero_changes_nothing(arguments):
    x, args = arguments
    for name in ("weight", "bias"):  # NumPy's own conversion to float32 would flush
        if name in args and args[name].dtype == np.float64:
            args[name] = cast(args[name], "float32")
    expected = reference.norm_quantize(x, **args)
    for isa in isas():
        for threads in (1, 2):
            with running(isa, threads), flushing_denormals():
                actual = normalize(x, **args)
            assert_all_same(actual, expected, isa)


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_outside_the_arrays_is_touched(dtype, side):
    rng = np.random.default_rng(5)
    for cols in (*range(1, 36), 63, 64, 65, 127, 129, 1023, 1025, 4097):
        x, residual = (cast(rng.standard_normal((3, cols)), dtype) for _ in range(2))
        parameters = [rng.standard_normal(cols).astype(f32) for _ in range(2)]
        guarded = [guard.copy(x, side), guard.copy(x, side, row_pad=2), guard.copy(x[:, ::-1], side)[:, ::-1]]
        weight, bias = (guard.copy(p, side) for p in parameters)
        for centered in (False, True):
            args = {"weight": weight, "bias": bias if centered else None, "centered": centered}
            full = {"symmetric": False, "normed": True}
            expected = reference.norm_quantize(x, **args, residual=residual, **full)
            outs = [guard.empty(part.shape, part.dtype, side) for part in expected]
            for isa in isas():
                for source in guarded:
                    with running(isa):
                        actual = normalize(
                            source, **args, **full, residual=guard.copy(residual, side), out=tuple(outs)
                        )
                        assert_all_same(actual, expected, isa)
                        normalize(source, **args, out=tuple(outs[:2]))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("centered", [False, True])
def test_empty(shape, centered):
    x = np.zeros(shape, f32)
    more = {"residual": x, "centered": centered, "symmetric": False, "normed": True}
    for label, (data, scale, zero_point, total, y) in on_every_isa(lambda: normalize(x, **more)):
        assert_same(data, np.zeros(shape, np.int8), label)
        assert_same(np.asarray(scale), np.ones(shape[:-1], f32), label)
        assert_same(np.asarray(zero_point), np.zeros(shape[:-1], np.int32), label)
        assert_same(total, x, label)
        assert_same(y, x, label)


def test_a_row_that_is_not_finite_follows_from_the_arithmetic():
    x = np.ones((4, 40), f32)
    x[0, 7], x[1, 7], x[2] = np.inf, np.nan, 3e38  # the square of 3e38 is Inf, and r 0
    for label, (data, scale, *_) in on_every_isa(lambda: normalize(x)):
        assert not data[:3].any(), label
        assert scale[:3].tolist() == [1, 1, 1], label
        assert (data[3] == 127).all(), label


# ---- torch ----


@needs_torch
@cases(150)
@given(norm_arguments())
def test_torch_tensors_and_the_torch_reference_give_the_same_bits(arguments):
    from octavo.reference import torch as torch_reference

    x, args = arguments
    expected = reference.norm_quantize(x, **args)
    t, given = to_torch(x), {k: to_torch(v) if isinstance(v, np.ndarray) else v for k, v in args.items()}
    assert_all_same(torch_reference.norm_quantize(t, **given), expected, "torch reference")
    for label, actual in on_every_isa(lambda: normalize(t, **given), threads=(1, 3)):
        assert_all_same(actual, expected, label)
    with octavo.use_backend("reference"):
        assert_all_same(normalize(t, **given), expected, "reference backend")
        assert_all_same(normalize(x, **args), expected, "reference backend")


def tensors(*shape, dtype="float32", layout="contiguous"):
    """x, residual, weight, bias"""
    rng = np.random.default_rng(0)
    pair = [to_torch(lay_out(cast(rng.standard_normal(shape), dtype), layout)) for _ in range(2)]
    return *pair, *(to_torch(rng.standard_normal(shape[-1]).astype(f32)) for _ in range(2))


@needs_torch
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "repeated rows"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype, layout):
    import torch

    import octavo.torch_ops  # noqa: F401

    op = torch.ops.octavo.norm_quantize.default
    for shape in ((2, 3, 40), (0, 8), (3, 0), (16,)):
        x, residual, weight, bias = tensors(*shape, dtype=dtype, layout=layout)
        torch.library.opcheck(op, (x, weight, bias.to(x.dtype), residual, 1e-5, True))
        torch.library.opcheck(op, (x.requires_grad_(), weight.requires_grad_()))
        utils = ("test_schema", "test_autograd_registration", "test_faketensor")
        # test_aot_dispatch_dynamic adds what has a gradient to a sum of int8, in place, and fails at that
        torch.library.opcheck(op, (x, weight, None, residual), test_utils=utils)
        torch.library.opcheck(op, (x, weight), {"symmetric": False, "normed": True})
    assert torch.Tag.pt2_compliant_tag in op.tags


@needs_torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_functions_equal_eager_ones(backend):
    import torch

    def run(x, residual, weight, bias, data, scale):
        quantized, total = octavo.rms_norm_quantize(x, weight, residual=residual, eps=1e-5)
        other, _ = octavo.layer_norm_quantize(x, weight, bias, residual=residual, out=(data, scale, residual))
        third, y = octavo.rms_norm_quantize(x, symmetric=False, normed=True)
        return *octavo.rms_norm_quantize(x)[:2], *quantized[:2], total, *other[:2], *third, y

    x, residual, weight, bias = tensors(6, 40)
    outs = torch.empty(6, 40, dtype=torch.int8), torch.empty(6)
    expected = run(x, written := residual.clone(), weight, bias, *(out.clone() for out in outs))
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for actual, wanted in zip(compiled(x, residual, weight, bias, *outs), expected, strict=True):
        assert_same(actual, to_numpy(wanted))
    assert torch.equal(residual, written)
    assert torch.equal(outs[0], expected[5])


@needs_torch
def test_through_the_dispatcher():
    import torch

    x, residual, weight, bias = tensors(6, 40)
    (data, scale, _), total = octavo.layer_norm_quantize(x, weight, bias, residual=residual)
    outs = (torch.empty_like(data), torch.empty_like(scale), residual.clone())
    tracked = torch.nn.Parameter(weight)
    quantized, found = octavo.layer_norm_quantize(x, tracked, bias, residual=outs[2].view(6, 40), out=outs)
    assert quantized.data is outs[0]
    assert quantized.scale is outs[1]
    assert found is outs[2]
    for got, want in zip(outs, (data, scale, total), strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad
    for bad, message in (
        ((data, scale), r"out: expected \(data, scale, sum\), got 2 arrays"),
        ((data, scale, x), r"out\[2\]: expected memory apart from x"),
        ((data, scale, residual[:5]), r"out\[2\]: expected shape"),
        ((data, scale.double(), residual), r"out\[1\]: expected dtype float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            octavo.rms_norm_quantize(x, tracked, residual=residual, out=bad)


@needs_torch
def test_fake_tensors_on_any_device():
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            x = torch.empty(2, 3, 64, dtype=torch.bfloat16, device=device)
            weight = torch.empty(64, device=device)
            (data, scale, zero_point), total = octavo.layer_norm_quantize(x, weight, residual=x.clone())
            assert zero_point is None
            assert [(t.shape, t.dtype) for t in (data, scale, total)] == [
                ((2, 3, 64), torch.int8),
                ((2, 3), torch.float32),
                ((2, 3, 64), torch.bfloat16),
            ]
            assert {t.device.type for t in (data, scale, total)} == {device}
            with pytest.raises(ValueError, match="weight: expected shape"):
                octavo.rms_norm_quantize(x, x)


@needs_torch
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wants", [("x",), ("residual",), ("x", "residual")])
def test_the_sum_has_the_gradient_of_a_sum(wants, dtype):
    import torch

    x, residual, weight, bias = tensors(4, 8, dtype=dtype)
    leaves = {"x": x.requires_grad_("x" in wants), "residual": residual.requires_grad_("residual" in wants)}
    grad, weight = torch.randn(4, 8).to(x.dtype), torch.nn.Parameter(weight)
    runs = [octavo.rms_norm_quantize, partial(octavo.layer_norm_quantize, bias=bias)]
    if dtype == "float32":
        torch.compiler.reset()
        runs.append(torch.compile(octavo.rms_norm_quantize, fullgraph=True, backend="aot_eager"))
    for run in runs:
        quantized, total, normed = run(x, weight, residual=residual, normed=True)
        assert not any(each.requires_grad for each in (*quantized[:2], normed))
        total.backward(grad)
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) is (name in wants)
            assert leaf.grad is None or torch.equal(leaf.grad, grad)
            leaf.grad = None
    assert weight.grad is None
    total = octavo.rms_norm_quantize(x, residual=x)[1]
    assert total.requires_grad is ("x" in wants)
    if "x" in wants:
        total.backward(grad)
        assert torch.equal(x.grad, 2 * grad)
        with pytest.raises(ValueError, match=r"out\[2\]: expected None where a gradient is wanted"):
            octavo.rms_norm_quantize(x, residual=x, out=(*quantized[:2], torch.empty_like(total)))
    fixed = octavo.rms_norm_quantize(x.detach(), weight, residual=residual.detach())[1]
    assert not fixed.requires_grad  # whatever the weight wants


@needs_torch
def test_autograd_sees_what_is_written():
    x, residual, weight, _ = tensors(4, 8)
    outs = (*octavo.rms_norm_quantize(x)[:2], residual)
    before = [out._version for out in outs]
    octavo.rms_norm_quantize(x, weight, residual=residual, out=outs)
    assert all(out._version > version for out, version in zip(outs, before, strict=True))
