"""Training in int8's numbers: what fake-quantized layers compute, their gradients, and what they become."""

from __future__ import annotations

import copy

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from octavo.nn import (  # noqa: E402
    FakeQuantizedConv2d,
    FakeQuantizedLinear,
    Int8Dynamic,
    Int8Linear,
    convert_qat_,
    prepare_qat_,
)

op = torch.ops.octavo
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CONVS = [
    {},
    {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False},
    {"groups": 2, "padding": "same", "dilation": 2},
    {"groups": 6, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 1, "stride": 3, "padding": "valid"},
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.compiler.reset()


def linear(k=40, n=24, bias=True, dtype=torch.float32):
    """A layer whose int8 steps are wide, so that W' is far from W."""
    layer = nn.Linear(k, n, bias=bias)
    with torch.no_grad():
        layer.weight[:, 0] = 5.0
    return layer.to(dtype)


def conv(kernel_size=3, dtype=torch.float32, **options):
    layer = nn.Conv2d(6, 12, kernel_size, **options)
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = 5.0
    return layer.to(dtype)


def images(batch=2, dtype=torch.float32):
    x = torch.randn(batch, 6, 9, 8)
    x[:, 0, 0, 0] = torch.arange(batch) * 10.0 + 20.0  # to each sample a scale of its own
    return x.to(dtype)


def prepared(layer, **options):
    return prepare_qat_(copy.deepcopy(layer), **options)


def dequantized(t):
    """float64 of what the int8 values of t, with one scale for each t[i], stand for."""
    data, scale, _ = octavo.quantize(t.detach().flatten(1))
    return (data.double() * scale.double().unsqueeze(-1)).reshape(t.shape)


def model():
    return nn.Sequential(linear(40, 64), nn.GELU(), linear(64, 24, bias=False), nn.LayerNorm(24))


# ---- what the layers compute ----


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_linear_computes_what_it_is_converted_to(dtype, bias, backend):
    with octavo.use_backend(backend):
        layer = prepared(linear(bias=bias, dtype=dtype))
        int8 = convert_qat_(copy.deepcopy(layer))
        assert type(int8) is Int8Linear
        special = torch.randn(4, 40)
        special[0, 3], special[1, 4], special[2] = float("nan"), float("-inf"), 0.0
        strided = torch.randn(40, 2, 3).permute(2, 1, 0)
        for x in (torch.randn(2, 3, 40), torch.randn(40), torch.randn(0, 40), special, strided):
            for training in (False, True):
                y, expected = layer.train(training)(x.to(dtype)), int8.train(training)(x.to(dtype))
                assert y.requires_grad
                assert y.dtype == dtype
                assert torch.equal(y, expected)


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_conv_computes_the_definition(dtype, options):
    source = conv(dtype=dtype, **options)
    layer, x = prepared(source), images(dtype=dtype)
    data, x_scale, _ = octavo.quantize(x.flatten(1))
    exact = copy.deepcopy(source).double()  # sums of integers
    exact.bias = None
    weight, w_scale, _ = octavo.quantize(source.weight.detach().flatten(1))
    exact.weight.data = weight.double().reshape(source.weight.shape)
    sums = exact(data.double().reshape(x.shape)).detach().float()
    y = sums * w_scale.reshape(-1, 1, 1) * x_scale.reshape(-1, 1, 1, 1)
    if source.bias is not None:
        y = y + source.bias.detach().float().reshape(-1, 1, 1)
    expected = y.to(dtype)
    assert layer(x).dtype == expected.dtype
    for training in (False, True):
        assert torch.equal(layer.train(training)(x), expected)
        assert torch.equal(layer(x[1]), expected[1])
    assert layer(x[:0]).shape == (0, *expected.shape[1:])
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_conv_computes_what_it_is_converted_to(dtype, options):
    pytest.importorskip("octavo.nn.layers.conv", reason="Int8Conv2d is not there yet")
    layer, x = prepared(conv(dtype=dtype, **options)), images(dtype=dtype)
    int8 = convert_qat_(copy.deepcopy(layer))
    for training in (False, True):
        assert torch.equal(layer.train(training)(x), int8.train(training)(x))


@pytest.mark.parametrize("make", [linear, conv])
def test_a_weight_that_has_diverged_is_an_error(make):
    layer = prepared(make())
    x = torch.randn(2, 40) if make is linear else images()
    with torch.no_grad():
        layer.weight.view(-1)[7] = float("nan")
    with pytest.raises(ValueError, match="weight: expected finite values, got 1 that are not"):
        layer(x)


# ---- gradients ----


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_a_linear_are_straight_through(dtype, bias):
    layer = prepared(linear(bias=bias, dtype=dtype))
    x = torch.randn(2, 3, 40)
    x[..., 1] = 30.0  # wide steps, so that x' is far from x
    x = x.to(dtype).requires_grad_()
    y = layer(x)
    grad = torch.randn(3, 2, 24).transpose(0, 1).to(y.dtype)  # not contiguous
    y.backward(grad)
    g, rows = grad.double(), grad.double().reshape(-1, 24)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if y.dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}

    def check(actual, expected, wrong):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, **tolerance)
        with pytest.raises(AssertionError):  # the float weight or input would not do
            torch.testing.assert_close(actual.double(), wrong, **tolerance)

    used, x_used = dequantized(layer.weight), dequantized(x.reshape(-1, 40))
    check(x.grad, g @ used, g @ layer.weight.detach().double())
    check(layer.weight.grad, rows.t() @ x_used, rows.t() @ x.detach().reshape(-1, 40).double())
    if bias:
        torch.testing.assert_close(layer.bias.grad.double(), rows.sum(0), **tolerance)


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_conv_are_straight_through(dtype, options):
    source = conv(dtype=dtype, **options)
    layer, x = prepared(source), images(dtype=dtype).requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y).transpose(2, 3).contiguous().transpose(2, 3)
    y.backward(grad)
    exact, used = copy.deepcopy(source).double(), dequantized(x).requires_grad_()
    exact.weight.data = dequantized(source.weight)
    exact(used).backward(grad.double())
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    for name, actual, expected in (
        ("x", x.grad, used.grad),
        *((name, p.grad, exact.get_parameter(name).grad) for name, p in layer.named_parameters()),
    ):
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.double(), expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    if dtype != torch.float32:
        return
    exact.zero_grad()
    unrounded = x.detach().double().requires_grad_()
    exact.weight.data = source.weight.detach().double()
    exact(unrounded).backward(grad.double())
    for actual, wrong in ((x.grad, unrounded.grad), (layer.weight.grad, exact.weight.grad)):
        with pytest.raises(AssertionError):  # the float weight or input would not do
            torch.testing.assert_close(actual.double(), wrong, **tolerance)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_gradients_come_where_they_are_wanted(wanted):
    for layer, x in ((prepared(linear()), torch.randn(3, 40)), (prepared(conv()), images())):
        tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
        for name, t in tensors.items():
            t.requires_grad_(name == wanted)
        layer(x).sum().backward()  # its gradient is expanded from one number
        assert [name for name, t in tensors.items() if t.grad is not None] == [wanted]
        layer(x[:0]).sum().backward()


def test_second_derivatives_are_refused():
    for layer, x in ((prepared(linear()), torch.randn(3, 40)), (prepared(conv()), images())):
        x.requires_grad_()
        with pytest.raises(RuntimeError, match="has no second derivatives"):
            torch.autograd.grad(layer(x).sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore:bitcount function is deprecated")  # of mpmath, under torch 2.8
@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype):
    x, layer = torch.randn(2, 3, 40, dtype=dtype, requires_grad=True), linear(dtype=dtype)
    torch.library.opcheck(op.fake_quantized_linear, (x, layer.weight, layer.bias))
    frozen = layer.weight.detach().t().contiguous().t()
    torch.library.opcheck(op.fake_quantized_linear, (x.detach().transpose(0, 1), frozen))
    torch.library.opcheck(op.fake_quantized_linear, (x.detach()[0, 0], frozen, layer.bias))
    x, layer = images(dtype=dtype).requires_grad_(), conv(groups=2, dtype=dtype)
    arguments = (layer.weight, layer.bias, (2, 1), (1, 0), (1, 2), 2)
    torch.library.opcheck(op.fake_quantized_conv2d, (x, *arguments))
    torch.library.opcheck(op.fake_quantized_conv2d, (x.detach(), conv(dtype=dtype).weight.detach()))


def test_wrong_shapes_are_errors():
    x, weight = torch.randn(3, 40), torch.randn(24, 40)
    for call in (
        lambda: op.fake_quantized_linear(x[:, :39], weight),
        lambda: op.fake_quantized_linear(x, weight, x[0]),
    ):
        with pytest.raises(ValueError, match="expected shape"):
            call()
        with pytest.raises(Exception, match="expected"):
            torch.compile(call, fullgraph=True, backend="eager")()


# ---- other gradients of quantization ----


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_fake_quantize_passes_every_gradient(granularity, symmetric):
    x = torch.randn(4, 32)
    x[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    x.requires_grad_()
    size = 8 if granularity == "group" else None
    y = op.fake_quantize(x.t().contiguous().t(), granularity, size, symmetric)
    assert torch.isfinite(y).all()
    grad = torch.randn(32, 4).t()
    (first,) = torch.autograd.grad(y, x, grad)
    assert torch.equal(first, grad)
    y = op.fake_quantize(x, granularity, size, symmetric)
    (second,) = torch.autograd.grad(torch.autograd.grad((y**2).sum(), x, create_graph=True)[0].sum(), x)
    assert torch.equal(second, torch.full_like(x, 2.0))


def test_dequantize_has_a_gradient_where_there_is_nothing():
    for shape, scale in (((0, 8), (0,)), ((3, 0), (3,)), ((3, 0), (3, 0)), ((0, 8), (0, 2)), ((0,), ())):
        scales = torch.ones(scale, requires_grad=True)
        octavo.dequantize(torch.zeros(shape, dtype=torch.int8), scales).sum().backward()
        assert torch.equal(scales.grad, torch.zeros(scale))


def test_second_derivatives_pass_pruning():
    w = torch.randn(8, 16, requires_grad=True)
    (first,) = torch.autograd.grad((octavo.prune(w, pattern="2:4") ** 3).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    assert torch.equal(second, 6 * octavo.prune(w.detach(), pattern="2:4"))


# ---- training loops ----


def gradients(m, x, run=None):
    x = x.clone().requires_grad_()
    m.zero_grad()
    y = (m if run is None else run)(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in m.parameters())]


@pytest.mark.parametrize("layers", ["linear", "conv"])
def test_a_compiled_training_step_equals_an_eager_one(layers):
    m = nn.Sequential(linear(40, 64), nn.ReLU(), linear(64, 24)) if layers == "linear" else conv(padding=1)
    octavo.prune_model_(m, sparsity=0.5, keep_masks=True, filter_fn=lambda each, fqn: hasattr(each, "bias"))
    x = torch.randn(5, 40) if layers == "linear" else images(5)
    prepare_qat_(m)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(m, fullgraph=True, backend=counter, dynamic=True)
    for batch in (5, 3, 2):
        expected = gradients(m, x[:batch])
        for actual, wanted in zip(gradients(m, x[:batch], compiled), expected, strict=True):
            assert torch.equal(actual, wanted)
    assert counter.frame_count == 1  # for all batches


def test_checkpointing_changes_nothing():
    m = prepare_qat_(model())
    x = torch.randn(5, 40)
    expected = gradients(m, x)
    for reentrant in (False, True):
        run = lambda x, how=reentrant: checkpoint(m, x, use_reentrant=how)  # noqa: E731
        for actual, wanted in zip(gradients(m, x, run), expected, strict=True):
            assert torch.equal(actual, wanted)


def test_autocast_leaves_the_weight_as_it_is():
    m = prepare_qat_(nn.Sequential(linear(40, 64), nn.GELU(), linear(64, 24)))
    x = torch.randn(5, 40)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(m, x.bfloat16())
        expected = convert_qat_(copy.deepcopy(m))(x.bfloat16())
    assert torch.equal(actual[0], expected)
    assert [t.dtype for t in actual] == [torch.bfloat16] * 2 + [torch.float32] * 4
    reference = [t.float() for t in gradients(m, x)]
    for a, b in zip(actual[2:], reference[2:], strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_training_makes_up_for_what_int8_loses():
    # wide int8 steps, and features that depend on one another: other int8 weights than the nearest do better
    basis = torch.randn(4, 32)
    basis[:, 0] *= 0.01
    x, fresh = torch.randn(512, 4) @ basis, torch.randn(512, 4) @ basis
    exact = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    with torch.no_grad():
        exact[0].weight[:, 0] = 20.0
        target, expected = exact(x), exact(fresh)
    after = octavo.quantize_(copy.deepcopy(exact))
    m = prepare_qat_(exact)
    optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (m(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained = m(fresh)
    assert convert_qat_(m) is m
    assert torch.equal(m(fresh), trained)
    assert min(losses[-10:]) < 0.5 * losses[0]
    assert (trained - expected).square().mean() < 0.5 * (after(fresh) - expected).square().mean()


def test_a_convolutional_model_trains():
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)
    )
    m = prepare_qat_(m)
    assert [type(m[i]) for i in (0, 1, 4)] == [FakeQuantizedConv2d, nn.BatchNorm2d, FakeQuantizedLinear]
    x = torch.randn(64, 1, 6, 6)
    label = (x[:, 0, :, 1:] * x[:, 0, :, :-1]).sum((1, 2)) > 0  # do neighbours agree?
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(m(x), label.long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ---- masks ----


@pytest.mark.parametrize("prune_first", [True, False])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masks_stay_in_force(pattern, prune_first):
    m = nn.Sequential(linear(40, 64), nn.GELU(), linear(64, 24))
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
    before = [id(p) for p in m.parameters()]
    select = {} if pattern == "2:4" else {"sparsity": 0.5}
    steps = [
        lambda: octavo.prune_model_(m, pattern=pattern, **select, keep_masks=True),
        lambda: prepare_qat_(m),
    ]
    for step in steps if prune_first else reversed(steps):
        assert step() is m
    assert sorted(id(p) for p in m.parameters()) == sorted(before)
    masks = [m[i].parametrizations.weight[0].mask for i in (0, 2)]
    assert all(int(mask.sum()) * 2 == mask.numel() for mask in masks) or pattern == "unstructured"
    x = torch.randn(8, 40)
    held = [m[i].weight.detach().clone() for i in (0, 2)]
    for _ in range(3):
        optimizer.zero_grad()
        m(x).square().sum().backward()
        optimizer.step()
        for i, mask, old in zip((0, 2), masks, held, strict=True):
            assert not m[i].weight[~mask].any()
            assert (m[i].weight != old)[mask].all()
    twin = copy.deepcopy(m)
    y = m(x)
    convert_qat_(m)
    assert torch.equal(m(x), y)
    for i, mask in zip((0, 2), masks, strict=True):
        assert not m[i].weight[~mask].any()
        assert m[i].weight.any()
        parametrize.remove_parametrizations(twin[i], "weight")
        assert type(twin[i]) is FakeQuantizedLinear
    assert torch.equal(twin(x), y)
    assert torch.equal(convert_qat_(twin)(x), y)


def test_torchs_masks_stay_in_force():
    m = nn.Sequential(linear())
    octavo.nn.L1Unstructured.apply(m[0], "weight", amount=0.5)
    prepare_qat_(m)
    x, mask = torch.randn(8, 40), m[0].weight_mask.bool()
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1)
    m(x).square().sum().backward()
    optimizer.step()
    y = m(x)
    with pytest.raises(ValueError, match="'0': weight: expected a parameter, got one that a forward hook"):
        convert_qat_(m)
    assert type(m[0]) is FakeQuantizedLinear
    prune.remove(m[0], "weight")
    convert_qat_(m)
    assert torch.equal(m(x), y)
    assert not m[0].weight[~mask].any()


def test_other_parametrizations_stay():
    m = parametrizations.weight_norm(linear())
    prepare_qat_(m)
    assert isinstance(m, FakeQuantizedLinear)
    x = torch.randn(3, 40)
    y = m(x)
    y.sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    assert torch.equal(convert_qat_(m)(x), y)


# ---- prepare_qat_ and convert_qat_ ----


def test_prepare_changes_layers_in_place():
    m = model()
    m.add_module("embedding", nn.Embedding(4, 4))
    layers, state = list(m), m.state_dict()
    config = Int8Dynamic()
    assert prepare_qat_(m, config) is m
    assert list(m) == layers
    kinds = [FakeQuantizedLinear, nn.GELU, FakeQuantizedLinear, nn.LayerNorm, nn.Embedding]
    assert [type(each) for each in m] == kinds
    assert m[0].qat_config is config
    assert list(m.state_dict()) == list(state)
    assert all(m.state_dict()[key].data_ptr() == value.data_ptr() for key, value in state.items())
    assert repr(m[0]) == "FakeQuantizedLinear(in_features=40, out_features=64, bias=True)"
    made = FakeQuantizedLinear(40, 64)  # is one too
    made.load_state_dict(m[0].state_dict())
    x = torch.randn(3, 40)
    assert torch.equal(made(x), m[0](x))
    with pytest.raises(ValueError, match="expected at least one"):  # all are prepared
        prepare_qat_(m)


def test_prepare_filters_by_module_and_name():
    m = nn.ModuleDict({"body": model(), "head": linear(), "conv": conv()})
    seen = []
    prepare_qat_(m, filter_fn=lambda module, fqn: seen.append(fqn) or fqn != "head")
    assert seen == ["body.0", "body.2", "head", "conv"]
    assert type(m["head"]) is nn.Linear
    assert type(m["conv"]) is FakeQuantizedConv2d


def test_layers_with_a_way_of_their_own_stay():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Standardized(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight - weight.mean(), bias)

    m = nn.Sequential(Doubled(4, 4), Standardized(4, 4, 1), nn.MultiheadAttention(4, 1), nn.Linear(4, 4))
    prepare_qat_(m)
    assert [type(each) for each in (m[0], m[1], m[3])] == [Doubled, Standardized, FakeQuantizedLinear]
    assert not isinstance(m[2].out_proj, FakeQuantizedLinear)


def test_shared_layers_stay_shared():
    shared = linear(40, 40)
    m = prepare_qat_(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))
    assert m["a"] is m["b"][0] is shared
    convert_qat_(m)
    assert type(m["a"]) is Int8Linear
    assert m["a"] is m["b"][0]


def test_explain_says_what_makes_them_int8():
    m = octavo.prune_model_(nn.Sequential(conv(), linear()), sparsity=0.5, keep_masks=True)
    rows = octavo.explain(prepare_qat_(m))
    assert {row.why for row in rows} == {"float: fake-quantized; octavo.convert_qat_ makes it int8"}
    assert len(rows) == 2


def test_hooks_and_modes_stay():
    m = model().eval()
    m[0].train()
    calls = []
    m[0].register_forward_hook(lambda *_: calls.append(1))
    prepare_qat_(m)(torch.randn(2, 40))
    assert calls == [1]
    convert_qat_(m)
    assert [each.training for each in m] == [True, False, False, False]


def test_a_failure_leaves_the_model_as_it_was():
    m = nn.Sequential(linear(), conv())
    kinds = [nn.Linear, nn.Conv2d]
    with pytest.raises(TypeError, match=r"config: expected an octavo.Int8Dynamic, got 'int8'"):
        prepare_qat_(m, "int8")
    with pytest.raises(ValueError, match="that filter_fn accepts, got none"):
        prepare_qat_(m, filter_fn=lambda module, fqn: False)
    with pytest.raises(ValueError, match="expected at least one layer that prepare_qat_ has prepared"):
        convert_qat_(m)
    with torch.no_grad():
        m[1].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="model: layer '1': x: expected finite values, got 1"):
        prepare_qat_(m)
    assert [type(each) for each in m] == kinds
    m = prepare_qat_(nn.Sequential(linear(), linear()))
    with torch.no_grad():
        m[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model: layer '1': .*expected finite values, got 1"):
        convert_qat_(m)
    assert [type(each) for each in m] == [FakeQuantizedLinear] * 2


def test_models_on_the_meta_device_can_be_prepared():
    with torch.device("meta"):
        m = model()
    source = prepare_qat_(m).to_empty(device="cpu")
    source.load_state_dict(model().state_dict())
    assert torch.isfinite(source(torch.randn(2, 40))).all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_torch_transformers_leave_their_fused_path():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    m = prepare_qat_(nn.TransformerEncoder(layer, 2))
    x = torch.randn(3, 7, 32)
    with torch.no_grad():
        expected = m.eval()(x)
        assert torch.equal(convert_qat_(m)(x), expected)


def test_activations_with_zero_points():
    layer = prepare_qat_(linear(), Int8Dynamic(symmetric=False))
    x = (torch.randn(5, 40) + 3).requires_grad_()
    y = layer(x)
    assert torch.equal(y, convert_qat_(copy.deepcopy(layer))(x))
    assert not torch.equal(y, prepare_qat_(linear())(x))
    grad = torch.randn(5, 24)
    y.backward(grad)
    data, scale, zero_point = octavo.quantize(x.detach(), symmetric=False)
    used = (data.double() - zero_point.double().unsqueeze(-1)) * scale.double().unsqueeze(-1)
    torch.testing.assert_close(layer.weight.grad.double(), grad.double().t() @ used, rtol=1e-5, atol=1e-4)
    expected = grad.double() @ dequantized(layer.weight)
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-5, atol=1e-4)
