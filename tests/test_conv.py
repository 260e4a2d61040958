"""int8 convolution: every ISA and thread count against the reference and against exact integers; the torch
operator, and Int8Conv2d."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import octavo
from octavo.ops.conv import as_window
from octavo.ops.conv_weight import bundle_of, is_depthwise
from octavo.reference import numpy as reference
from strategies import (
    FLOATS,
    PEAK_MEMORY,
    assert_close_ulp,
    assert_same,
    cases,
    cast,
    dtype_of,
    float_arrays,
    int8_arrays,
    isas,
    needs_proc,
    on_every_isa,
    running,
    scales,
    succeed,
    to_numpy,
    to_torch,
)

try:
    import torch

    from octavo import torch_ops  # noqa: F401 (torch.ops.octavo)
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def channels_innermost(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@st.composite
def convolutions(draw):
    """(x, weight, scale, bias, groups, window arguments): every kind of weight that packing tells apart."""
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "narrow groups", "depthwise", "pointwise"]))
    groups = 1 if kind in ("dense", "pointwise") else draw(st.sampled_from([2, 3, 6]))
    c, n = draw(st.sampled_from([1, 3, 5, 8, 17])), draw(st.sampled_from([1, 7, 16, 33]))
    if kind == "narrow groups":
        c, n = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    if kind == "depthwise":
        groups, c, n = draw(st.sampled_from([1, 3, 16, 31, 33, 70])), 1, 1
    kernel = (1, 1) if kind == "pointwise" else draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, dilation = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = draw(st.sampled_from([0, 1, (0, 3), (2, 1), "same", "valid"]))
    if padding == "same" or (kind == "pointwise" and draw(st.booleans())):
        stride = (1, 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [r + draw(st.sampled_from([0, 1, 4, 9])) for r in reach]
    x = draw(float_arrays(shape=(draw(st.integers(0, 3)), c * groups, *size)))
    if draw(st.booleans()):
        x = channels_innermost(x)
    weight = draw(int8_arrays((n * groups, c, *kernel)))
    bias = draw(st.one_of(st.none(), float_arrays(shape=(n * groups,), flavours=["normal"])))
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return x, weight, draw(scales(n * groups)), bias, groups, window


def expected_of(x, weight, scale, bias, groups, window, activation=None, out_dtype=None):
    name = out_dtype or ("float32" if x.dtype == np.float64 else x.dtype.name)
    placed = as_window(**window, kernel=weight.shape[2:])
    return reference.int8_conv2d(x, weight, scale, bias, *placed, groups, activation, name)


@cases(40)
@given(case=convolutions())
def test_every_isa_equals_the_reference(case):
    x, weight, scale, bias, groups, window = case
    expected = expected_of(*case)
    packed = octavo.pack_conv_weight(weight, scale, groups=groups)
    assert_same(packed.unpack()[1], scale)
    for label, back in on_every_isa(lambda: packed.unpack()[0], (1, 2)):
        assert_same(back, np.ascontiguousarray(weight), label)
    for label, y in on_every_isa(lambda: octavo.int8_conv2d(x, packed, bias, **window)):
        assert_same(y, expected, label)
        innermost = not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous
        assert (y.transpose(0, 2, 3, 1) if innermost else y).flags.c_contiguous


@cases(15)
@given(
    case=convolutions(), out=st.sampled_from(FLOATS[:3]), activation=st.sampled_from(["relu", "gelu", "silu"])
)
def test_activations_and_output_dtypes(case, out, activation):
    x, weight, scale, bias, groups, window = case
    pre = expected_of(*case, activation=activation, out_dtype="float32")
    packed = octavo.pack_conv_weight(weight, scale, groups=groups)
    with running("scalar"):
        first = octavo.int8_conv2d(x, packed, bias, **window, activation=activation, out_dtype=out)
    assert first.dtype == dtype_of(out)
    if activation != "relu":
        assert_close_ulp(first, pre, 4)
    else:
        assert_same(first, cast(pre, out))
    for label, y in on_every_isa(
        lambda: octavo.int8_conv2d(x, packed, bias, **window, activation=activation, out_dtype=out), (2,)
    ):
        assert_same(y, first, label)


# Sizes that split into several bands of rows, blocks of pixels, chunks of samples and spans of panels.
LARGE = [
    ((2, 40, 29, 31), (300, 40, 3, 3), 1, {"padding": 1}),
    ((5, 70, 7, 7), (520, 70, 2, 2), 1, {}),
    ((1, 3, 150, 131), (24, 3, 7, 7), 1, {"stride": 2, "padding": 3}),
    ((2, 96, 60, 50), (96, 1, 3, 3), 96, {"stride": 2, "padding": 1}),
    ((40, 64, 16, 17), (32, 64, 1, 1), 1, {}),
    ((3, 64, 33, 20), (96, 2, 3, 3), 32, {"dilation": 2}),
]


@pytest.mark.parametrize(("shape", "weight", "groups", "window"), LARGE)
@pytest.mark.parametrize("innermost", [False, True])
def test_large_images(shape, weight, groups, window, innermost):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.integers(-128, 128, weight).astype(np.int8)
    x = channels_innermost(x) if innermost else x
    scale, bias = rng.random(weight[0], np.float32), rng.standard_normal(weight[0]).astype(np.float32)
    expected = expected_of(x, w, scale, bias, groups, {"stride": 1, "padding": 0, "dilation": 1, **window})
    packed = octavo.pack_conv_weight(w, scale, groups=groups)
    for isa in [name for name in isas() if name != "scalar"]:
        with running(isa, 2):
            assert_same(octavo.int8_conv2d(x, packed, bias, **window), expected, isa)


@needs_torch
@cases(20)
@given(case=convolutions(), seed=st.integers(0, 1000))
def test_the_sums_are_exact(case, seed):
    """With 127 in every sample the scale is 1: the result is the convolution of integers."""
    x, weight, _, _, groups, window = case
    q = np.random.default_rng(seed).integers(-127, 128, x.shape).astype(np.float32)
    q[:, :1, :1, :1] = 127
    stride, (top, bottom, left, right), dilation = as_window(**window, kernel=weight.shape[2:])
    framed = torch.nn.functional.pad(torch.from_numpy(q).double(), (left, right, top, bottom))
    integers = to_torch(np.array(weight)).double()
    sums = torch.nn.functional.conv2d(framed, integers, None, stride, 0, dilation, groups).long()  # no -0.0
    packed = octavo.pack_conv_weight(weight, np.ones(len(weight), np.float32), groups=groups)
    for label, y in on_every_isa(lambda: octavo.int8_conv2d(q, packed, **window), (1,)):
        assert_same(y, sums.numpy().astype(np.float32), label)
    with octavo.use_backend("reference"):
        assert_same(octavo.int8_conv2d(q, packed, **window), sums.numpy().astype(np.float32))


def test_the_largest_sums():
    """127 * -128 for as many terms as int32 and the floats of depthwise kernels hold."""
    dense = np.full((2, 1820, 8, 9), -128, np.int8)  # 131,040 terms
    taps = np.full((3, 1, 32, 32), -128, np.int8)
    for weight, groups in ((dense, 1), (taps, 3)):
        c = weight.shape[1] * groups
        x = np.full((1, c, *weight.shape[2:]), 127, np.float32)
        packed = octavo.pack_conv_weight(weight, np.ones(len(weight), np.float32), groups=groups)
        expected = np.float32(-127 * 128 * weight[0].size)
        for label, y in on_every_isa(lambda x=x, p=packed: octavo.int8_conv2d(x, p), (1,)):
            assert (y == expected).all(), label


def test_more_taps_than_floats_sum_exactly():
    rng = np.random.default_rng(0)
    for channels in (2, 17):
        weight = rng.integers(-128, 128, (channels, 1, 25, 41)).astype(np.int8)
        assert not is_depthwise(weight.shape, channels)
        x = rng.standard_normal((1, channels, 26, 41)).astype(np.float32)
        scale = np.ones(channels, np.float32)
        window = {"stride": 1, "padding": 0, "dilation": 1}
        packed = octavo.pack_conv_weight(weight, scale, groups=channels)
        assert_same(octavo.int8_conv2d(x, packed), expected_of(x, weight, scale, None, channels, window))


def test_a_sample_depends_on_nothing_else():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((9, 6, 10, 11)).astype(np.float32) * np.float32(10.0) ** np.arange(9)[
        :, None, None, None
    ].astype(np.float32)
    for groups in (1, 2, 6):
        weight = rng.standard_normal((12 if groups < 6 else 6, 6 // groups, 3, 3)).astype(np.float32)
        packed = octavo.pack_conv_weight(weight, groups=groups)
        together = octavo.int8_conv2d(x, packed, padding=1)
        for i in range(9):
            assert_same(octavo.int8_conv2d(x[i : i + 1], packed, padding=1), together[i : i + 1])


@needs_proc
def test_a_wide_padding_is_not_in_memory_for_all_samples():
    """The framed images of these 256 samples are 1 MB each; a few at a time are."""
    script = """
import numpy as np
import octavo
x = np.ones((256, 1, 1, 1), np.float32)
packed = octavo.pack_conv_weight(np.ones((1, 1, 1, 1), np.float32))
octavo.int8_conv2d(x, packed)
before = peak_memory()
y = octavo.int8_conv2d(x, packed, stride=512, padding=512)
grown = peak_memory() - before
assert y.shape == (256, 1, 3, 3) and (y[:, :, 1, 1] == 1).all() and y.sum() == 256
assert grown < 64 << 20, grown
"""
    isas()  # the native module is there
    succeed(PEAK_MEMORY + script)


def test_float_weights_are_quantized_per_output_channel():
    weight = np.random.default_rng(2).standard_normal((6, 4, 3, 3)).astype(np.float32)
    packed = octavo.pack_conv_weight(weight, groups=2)
    data, scale, _ = octavo.quantize(weight.reshape(6, 36))
    assert_same(packed.unpack()[0], data.reshape(6, 4, 3, 3))
    assert_same(packed.unpack()[1], scale)
    assert (packed.shape, packed.groups) == ((6, 4, 3, 3), 2)
    assert packed.nbytes == packed.buffer.nbytes + 24


def test_narrow_groups_share_a_matrix():
    assert bundle_of((128, 4, 3, 3), 32) == 4  # 16 columns are a panel
    assert bundle_of((96, 4, 3, 3), 6) == 1
    assert bundle_of((6, 1, 3, 3), 3) == 3
    assert bundle_of((4, 40_000, 1, 1), 4) == 2  # 131,071 terms are all


@pytest.mark.parametrize("groups", [1, 2, 18])
def test_packed_weights_pickle_and_refuse_what_is_damaged(groups):
    weight = np.random.default_rng(3).standard_normal((18, 18 // groups, 3, 3)).astype(np.float32)
    packed = octavo.pack_conv_weight(weight, groups=groups)
    again = pickle.loads(pickle.dumps(packed))
    assert_same(again.unpack()[0], packed.unpack()[0])
    make = octavo.PackedConvWeight
    with pytest.raises(ValueError, match="buffer: expected"):
        make(packed.buffer[:-1], packed.scale, packed.shape, groups)
    with pytest.raises(ValueError, match="buffer: expected"):
        make(packed.buffer, packed.scale, (18, 18 // groups, 3, 4), groups)
    with pytest.raises(ValueError, match="scale: expected shape"):
        make(packed.buffer, packed.scale[1:], packed.shape, groups)
    with pytest.raises(TypeError, match="scale: expected a float32 array, got None"):
        make(packed.buffer, None, packed.shape, groups)
    if packed.buffer.ndim == 1:
        bad = packed.buffer.copy()
        bad[-len(bad) * bundle_of(packed.shape, groups) // groups] ^= 1  # the magic number of the last matrix
        with pytest.raises(ValueError, match="buffer: expected a packed weight with magic"):
            make(bad, packed.scale, packed.shape, groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_weight_damaged_since_is_not_unpacked(groups):
    weight = np.zeros((64, 64, 1, 1), np.int8)
    part = octavo.pack_weight(weight[: 64 // groups, :, 0, 0], layout="bitmask").buffer
    packed = octavo.PackedConvWeight(np.tile(part, groups), np.ones(64, np.float32), (64, 64, 1, 1), groups)
    assert_same(packed.unpack()[0], weight)
    packed.buffer[64 + 4 * 64 // groups + 8] = 200  # an offset
    with pytest.raises(ValueError, match="buffer: expected the parts of a bitmask layout"):
        packed.unpack()


def test_errors():
    weight = np.ones((4, 2, 3, 3), np.float32)
    packed = octavo.pack_conv_weight(weight, groups=2)
    x = np.ones((1, 4, 5, 5), np.float32)

    def refuses(error, match, *arguments, **options):
        with pytest.raises(error, match=match):
            octavo.int8_conv2d(*(arguments or (x, packed)), **options)

    refuses(TypeError, "weight: expected a PackedConvWeight", x, weight)
    refuses(TypeError, "x: expected dtype", x.astype(np.int32), packed)
    refuses(TypeError, "x: expected a numpy.ndarray", [1.0], packed)
    refuses(ValueError, r"x: expected shape \(B, 4, H, W\), got \(1, 3, 5, 5\)", x[:, :3], packed)
    refuses(ValueError, r"x: expected shape \(B, 4, H, W\), got \(5, 5\)", x[0, 0], packed)
    refuses(ValueError, "x: expected an image that holds the kernel", x[:, :, :2], packed)
    refuses(ValueError, "bias: expected shape", x, packed, np.ones(3, np.float32))
    refuses(TypeError, "bias: expected dtype", x, packed, np.ones(4, np.int32))
    refuses(TypeError, "stride: expected a number or a pair", stride=1.5)
    refuses(ValueError, "stride: expected two numbers of at least 1", stride=0)
    refuses(ValueError, "dilation: expected two numbers of at least 1", dilation=(1, 0))
    refuses(ValueError, "padding: expected two numbers of at least 0", padding=(1, 1, 1))
    refuses(ValueError, "padding: expected a number, a pair, 'valid' or 'same'", padding="full")
    refuses(ValueError, "padding: expected no 'same' with a stride", padding="same", stride=2)
    refuses(ValueError, "activation: expected", activation="tanh")
    refuses(TypeError, "out_dtype: expected", out_dtype="int32")
    for match, bad, options in (
        ("groups: expected a divisor of the 4 output channels, got 3", weight, {"groups": 3}),
        ("groups: expected a divisor", weight, {"groups": 0}),
        (r"weight: expected shape \(N, C / groups, kh, kw\)", weight[0], {}),
        (r"weight: expected C / groups \* kh \* kw <= 131071", np.ones((1, 70000, 1, 2), np.float32), {}),
        ("scale: expected None with a float weight", weight, {"scale": np.ones(4, np.float32)}),
        ("scale: expected a float32", weight.astype(np.int8), {}),
    ):
        with pytest.raises(ValueError, match=match):
            octavo.pack_conv_weight(bad, **options)
    with pytest.raises(TypeError, match="weight: expected dtype"):
        octavo.pack_conv_weight(weight.astype(np.int32))
    with pytest.raises(TypeError, match="groups: expected a number"):
        octavo.pack_conv_weight(weight, groups="2")


# ---- torch ----


@needs_torch
@cases(15)
@given(case=convolutions())
@example(
    case=(
        channels_innermost(np.ones((1, 2, 3, 3), np.float32)),
        np.ones((1, 2, 1, 1), np.int8),
        np.ones(1, np.float32),
        None,
        1,
        {"stride": 1, "padding": 0, "dilation": 1},
    )
)
def test_tensors_equal_arrays_in_every_form_of_the_weight(case):
    x, weight, scale, bias, groups, window = case
    expected = expected_of(*case)
    tx, tbias = to_torch(x), None if bias is None else to_torch(bias)
    packed = octavo.pack_conv_weight(to_torch(np.array(weight)), torch.from_numpy(scale), groups=groups)
    y = octavo.int8_conv2d(tx, packed, tbias, **window)
    assert_same(to_numpy(y), np.ascontiguousarray(expected))
    last = not tx.is_contiguous() and tx.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with octavo.use_backend("reference"):
        again = octavo.int8_conv2d(tx, packed, tbias, **window)
    assert torch.equal(again, y) or np.isnan(expected.astype(np.float32)).any()
    assert again.stride() == y.stride()
    placed = as_window(**window, kernel=weight.shape[2:])
    plain = torch.ops.octavo.int8_conv2d(
        tx, to_torch(np.array(weight)), torch.from_numpy(scale), tbias, *placed, groups
    )
    assert_same(to_numpy(plain), np.ascontiguousarray(expected))


def layer(groups=1, **options):
    torch.manual_seed(0)
    return torch.nn.Conv2d(6, 12 if groups < 6 else 6, 3, groups=groups, **options)


def int8(groups=1, activation=None, **options):
    from octavo.nn import Int8Conv2d

    return Int8Conv2d.from_float(layer(groups, **options), activation=activation)


@needs_torch
@pytest.mark.parametrize(("groups", "last"), [(1, False), (2, True), (6, False)])
def test_opcheck(groups, last):
    conv, op = int8(groups), torch.ops.octavo.int8_conv2d
    x = torch.randn(2, 6, 7, 8)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    scale, bias = conv.weight_scale.clone().requires_grad_(), conv.bias.detach().clone().requires_grad_()
    torch.library.opcheck(
        op, (x, conv.weight_int8, scale, bias, [2, 1], [1, 0, 2, 2], [1, 2], groups), {"activation": "gelu"}
    )
    torch.library.opcheck(
        op,
        (x.detach(), conv._stored, scale.detach(), None, [1, 1], [0] * 4, [1, 1], groups),
        {"kernel_size": [3, 3], "out_dtype": torch.bfloat16},
    )


@needs_torch
def test_the_operator_refuses_what_does_not_fit_the_packed_weight():
    x, packed = torch.zeros(1, 4, 5, 5), octavo.pack_conv_weight(torch.ones(4, 1, 2, 3), groups=4)
    for groups, kernel_size, name in [
        (0, (2, 3), "groups"),
        (4, None, "kernel_size"),
        (4, (6,), "kernel_size"),
        (4, (-2, -3), "kernel_size"),
        (4, (1, 3), "weight"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            torch.ops.octavo.int8_conv2d(
                x, packed.buffer, packed.scale, groups=groups, kernel_size=kernel_size
            )


@needs_torch
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
def test_gradients_are_those_of_the_float_convolution(groups, activation):
    conv = int8(groups, activation, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    x = (torch.randn(2, 6, 9, 8)).requires_grad_()
    scale, bias = conv.weight_scale.clone().requires_grad_(), conv.bias.detach().clone().requires_grad_()
    window = as_window((2, 1), (1, 2), (1, 2), (3, 3))
    y = torch.ops.octavo.int8_conv2d(x, conv.weight_int8, scale, bias, *window, groups, activation=activation)
    steps = torch.randn(y.shape)
    (y * steps).sum().backward()
    fx = octavo.dequantize(*octavo.quantize(x.detach().reshape(2, -1))[:2]).reshape(x.shape).requires_grad_()
    fs, fb = scale.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    z = torch.nn.functional.conv2d(fx, conv.weight_int8.float() * fs, fb, (2, 1), (1, 2), (1, 2), groups)
    act = {None: lambda v: v, "relu": torch.relu}.get(
        activation, lambda v: torch.nn.functional.gelu(v, approximate="tanh")
    )
    (act(z) * steps).sum().backward()
    torch.testing.assert_close(x.grad, fx.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias.grad, fb.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale.grad, fs.grad, rtol=1e-4, atol=1e-4 * float(fs.grad.abs().max()))


@needs_torch
def test_compiled_once_for_all_batches():
    from torch._dynamo.testing import CompileCounter

    model = torch.nn.Sequential(int8(padding=1), torch.nn.ReLU(inplace=True))
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 6, 9, 8), (3, 6, 11, 7), (5, 6, 12, 12)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), model(x))
    assert counter.frame_count == 1


@needs_torch
def test_exported():
    model = int8(2, stride=2, padding=1)
    dim = torch.export.Dim
    sizes = ({0: dim("batch"), 2: dim("height", min=3), 3: dim("width", min=3)},)
    program = torch.export.export(model, (torch.randn(2, 6, 9, 8),), dynamic_shapes=sizes)
    x = torch.randn(4, 6, 15, 21)
    assert torch.equal(program.module()(x), model(x))


# ---- Int8Conv2d ----

LAYERS = [
    {},
    {"stride": 2, "padding": (1, 2), "dilation": (2, 1), "groups": 2, "bias": False},
    {"padding": "same", "groups": 6},
]
MODES = [{"padding": (2, 1), "padding_mode": mode} for mode in ("reflect", "replicate", "circular")]


@needs_torch
@pytest.mark.parametrize("options", LAYERS + MODES)
def test_a_layer_is_near_the_float_one(options):
    source, conv = layer(**options), int8(**options)
    x = torch.randn(3, 6, 12, 11)
    expected = source(x)
    assert (conv(x) - expected).abs().max() < 0.05 * expected.abs().max()
    assert conv.weight_int8.dtype == torch.int8
    assert conv.weight_int8.shape == source.weight.shape
    if "padding_mode" in options:
        framed = torch.nn.functional.pad(x, (1, 1, 2, 2), mode=options["padding_mode"])
        assert torch.equal(conv(x), int8()(framed))
    else:
        packed = octavo.pack_conv_weight(source.weight, groups=source.groups)
        more = {key: options[key] for key in ("stride", "padding", "dilation") if key in options}
        bias = None if source.bias is None else source.bias.detach()
        assert torch.equal(conv(x), octavo.int8_conv2d(x, packed, bias, **more))


@needs_torch
@pytest.mark.parametrize("options", LAYERS)
def test_a_layer_travels(options):
    conv = int8(activation="relu", **options)
    x = torch.randn(2, 6, 9, 9)
    expected, state = conv(x), conv.state_dict()
    shapes = {key: (value.dtype, tuple(value.shape)) for key, value in state.items()}
    n, c = conv.out_channels, 6 // conv.groups
    assert shapes.pop("bias", None) == (None if conv.bias is None else (torch.float32, (n,)))
    assert shapes == {
        "weight": (torch.float32, (0,)),
        "weight_int8": (torch.int8, (n, c, 3, 3)),
        "weight_scale": (torch.float32, (n, 1, 1, 1)),
    }
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    for other in (
        copy.deepcopy(conv),
        pickle.loads(pickle.dumps(conv)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(x), expected)
        assert repr(other) == repr(conv)

    def fresh(**more):
        from octavo.nn import Int8Conv2d

        return Int8Conv2d(6, n, 3, **options, activation="relu", **more)

    for other in (fresh(), fresh(device="meta").to_empty(device="cpu")):
        other(x)
        assert other.load_state_dict(state) == ([], [])
        assert torch.equal(other(x), expected)
    other = fresh(device="meta")
    assert other.weight.is_meta
    other.load_state_dict(state, assign=True)
    assert torch.equal(other(x), expected)
    half = copy.deepcopy(conv).bfloat16()
    assert half.weight_scale.dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16
    del state["weight_int8"]
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        fresh().load_state_dict(state)
    state["weight_int8"] = torch.zeros(n, c, 3, 2, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="weight_int8: expected int8"):
        other.load_state_dict(state)
    assert torch.equal(other(x), expected)


@needs_torch
def test_a_layer_keeps_the_memory_format_and_sees_changes():
    conv = int8(padding=1)
    x = torch.randn(2, 6, 5, 5)
    y = conv(x)
    last = conv(x.to(memory_format=torch.channels_last))
    assert torch.equal(last, y)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous()
    conv.bias = None
    conv.weight_scale.mul_(2)
    zero = int8(padding=1)
    zero.bias = None
    assert torch.equal(conv(x), 2 * zero(x))
    conv(x.requires_grad_()).sum().backward()
    assert x.grad.shape == x.shape


@needs_torch
@pytest.mark.parametrize("options", [{"padding": 1}, {"groups": 6, "bias": False}, MODES[0]])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own
def test_one_sample_is_a_batch_of_one(options):
    conv, x = int8(activation="gelu", **options), torch.randn(6, 7, 8)
    expected = conv(x[None])[0]
    program = torch.export.export(conv, (x,))
    for run in (conv, torch.compile(conv, fullgraph=True, backend="aot_eager"), program.module()):
        assert torch.equal(run(x), expected)
    wanting, batch = x.clone().requires_grad_(), x[None].clone().requires_grad_()
    conv(wanting).sum().backward()
    conv(batch).sum().backward()
    assert torch.equal(wanting.grad, batch.grad[0])
    x = channels_innermost(x[None].numpy())[0]
    packed = octavo.pack_conv_weight(conv.weight_int8, conv.weight_scale.flatten(), groups=conv.groups)
    arrays = octavo.pack_conv_weight(*map(to_numpy, packed.unpack()), groups=conv.groups)
    expected = octavo.int8_conv2d(x[None], arrays, stride=2)[0]
    assert_same(octavo.int8_conv2d(x, arrays, stride=2), expected)
    for tensor in (to_torch(x), to_torch(x).requires_grad_()):
        assert_same(to_numpy(octavo.int8_conv2d(tensor, packed, stride=2).detach()), expected)


@needs_torch
def test_errors_of_a_layer():
    from octavo.nn import Int8Conv2d

    with pytest.raises(ValueError, match="groups: expected a divisor"):
        Int8Conv2d(6, 4, 3, groups=4)
    with pytest.raises(ValueError, match="activation: expected"):
        Int8Conv2d(6, 4, 3, activation="tanh")
    with pytest.raises(ValueError, match="padding_mode: expected"):
        Int8Conv2d(6, 4, 3, padding_mode="mirror")
    with pytest.raises(TypeError, match=r"conv: expected a torch.nn.Conv2d, got Linear"):
        Int8Conv2d.from_float(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="config: expected"):
        Int8Conv2d.from_float(layer(), "int8")
    source = layer()
    source.weight.data[3, 4, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="expected finite values, got 1"):
        Int8Conv2d.from_float(source)
    op = torch.ops.octavo.int8_conv2d
    x, weight, scale = torch.ones(1, 6, 5, 5), torch.ones(4, 6, 3, 3, dtype=torch.int8), torch.ones(4)
    with pytest.raises(ValueError, match="stride, padding, dilation: expected at least"):
        op(x, weight, scale, None, [0, 1])
    with pytest.raises(ValueError, match="kernel_size: expected two numbers"):
        op(x, torch.zeros(64, dtype=torch.uint8), scale)
    with pytest.raises(ValueError, match="weight_scale: expected one for each of 4"):
        op(x, weight, scale[1:])
    with pytest.raises(TypeError, match="weight: expected dtype int8"):
        op(x, weight.float(), scale)
    with pytest.raises(ValueError, match="packed weight: expected"):
        op(x, torch.zeros(64, dtype=torch.uint8), scale, kernel_size=[3, 3])


def test_casts_of_half_inputs_are_exact():
    """float16 widens: the result is that of the float32 array with the same values, rounded once."""
    x = cast(np.random.default_rng(5).standard_normal((2, 4, 6, 6)), "float16")
    packed = octavo.pack_conv_weight(np.random.default_rng(6).standard_normal((3, 4, 3, 3)))
    y = octavo.int8_conv2d(x, packed)
    assert_same(y, octavo.int8_conv2d(x.astype(np.float32), packed).astype(np.float16))
