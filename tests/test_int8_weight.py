"""`weight` of int8 layers is the float weight to other code: octavo.nn.Int8Weight."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
from octavo.nn import Int8Conv2d, Int8Embedding, Int8Linear, Int8Weight, Int8WeightOnlyLinear  # noqa: E402
from octavo.storage.describe import describe, rebuild  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def static(linear):
    return octavo.nn.Int8StaticLinear.from_float(linear, octavo.Int8Static([]), input_range=(-3.0, 3.0))


def pruned(linear):
    octavo.prune_(linear.weight.detach(), sparsity=0.9)
    return Int8Linear.from_float(linear)


# every kind of layer and of scales, in memory packed dense, packed sparse, and plain
LAYERS = {
    "linear": lambda: Int8Linear.from_float(nn.Linear(24, 12)),
    "no bias": lambda: Int8Linear.from_float(nn.Linear(23, 11, bias=False)),
    "asymmetric": lambda: Int8Linear.from_float(nn.Linear(24, 12), octavo.Int8Dynamic(symmetric=False)),
    "sparse": lambda: pruned(nn.Linear(512, 256)),
    "static": lambda: static(nn.Linear(24, 12)),
    "weight only": lambda: Int8WeightOnlyLinear.from_float(nn.Linear(24, 12)),
    "groups": lambda: Int8WeightOnlyLinear.from_float(nn.Linear(24, 12), octavo.Int8WeightOnly(8)),
    "conv": lambda: Int8Conv2d.from_float(nn.Conv2d(4, 6, 3)),
    "conv of groups": lambda: Int8Conv2d.from_float(nn.Conv2d(4, 6, (3, 2), groups=2)),
    "depthwise": lambda: Int8Conv2d.from_float(nn.Conv2d(4, 4, 3, groups=4)),
    "embedding": lambda: Int8Embedding.from_float(nn.Embedding(12, 24)),
    "bag": lambda: octavo.nn.Int8EmbeddingBag.from_float(nn.EmbeddingBag(12, 24)),
    "projection": lambda: (
        octavo.nn.Int8MultiheadAttention.from_float(nn.MultiheadAttention(16, 2, kdim=8)).k_proj
    ),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def values_of(layer):
    """What the int8 values stand for, by another way."""
    data, scale = layer.weight_int8, layer.weight_scale
    groups = scale.flatten(1).shape[1]
    rows = data.flatten(1).unflatten(1, (groups, -1)) * scale.flatten(1).unsqueeze(-1)
    return rows.reshape(data.shape).to(layer.dtype)


def nearest(layer, values):
    """The layer with the int8 weight that is quantized from these values."""
    new = copy.deepcopy(layer)
    new.weight = values
    return new


def same_weight(a, b):
    assert torch.equal(a.weight_int8, b.weight_int8)
    assert torch.equal(a.weight_scale, b.weight_scale)


# ---- what it looks like ----


@every_layer
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_a_float_parameter_with_the_values_of_the_layer(kind, dtype):
    layer = LAYERS[kind]().to(dtype)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    assert type(weight) is Int8Weight
    assert layer.weight is weight
    assert (weight.dtype, weight.device, tuple(weight.shape)) == (dtype, torch.device("cpu"), layer._shape)
    assert (weight.dim(), weight.numel(), len(weight)) == (len(layer._shape), weight.numel(), layer._shape[0])
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert weight.grad is None
    assert torch.equal(weight, values_of(layer))
    assert layer.weight_int8.dtype == torch.int8


@every_layer
def test_metadata_unpacks_nothing(kind, monkeypatch):
    layer = LAYERS[kind]()
    monkeypatch.setattr(type(layer), "_float_weight", lambda *_: pytest.fail("unpacked"))
    weight = layer.weight
    for same in (weight.data, weight.detach(), weight.to(weight.dtype), weight.to("cpu"), weight.float()):
        assert same is weight
    assert weight.contiguous() is weight.requires_grad_(False) is weight.type_as(weight) is weight
    assert isinstance(weight.size(0) + weight.stride(0) + weight.element_size() + weight.nbytes, int)
    assert weight.shape == weight.size()
    assert (weight.is_cuda, weight.is_meta, weight.is_leaf, weight.layout) == (
        False,
        False,
        True,
        torch.strided,
    )


READS = {
    "clone": lambda w: w.clone(),
    "arithmetic": lambda w: (2 * w - w / 3) ** 2,
    "sum": lambda w: w.sum(),
    "norm": lambda w: torch.linalg.vector_norm(w, dim=-1),
    "cast": lambda w: w.to(torch.bfloat16),
    "einsum": lambda w: torch.einsum("i...,j...->ij", w, w),
    "cat": lambda w: torch.cat([w, w]),
    "rows": lambda w: w[1:3],
    "mask": lambda w: w[w > 0],
    "view": lambda w: w.view(-1),
    "chunks": lambda w: torch.cat(torch.chunk(w, 2)),
    "unbind": lambda w: torch.stack(w.unbind(0)),
    "comparison": lambda w: w > 0,
    "like": lambda w: torch.zeros_like(w),
    "numpy": lambda w: torch.from_numpy(w.numpy().copy()),
    "list": lambda w: torch.tensor(w.tolist()),
    "turned": lambda w: w.transpose(0, 1).contiguous(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "gather": lambda w: w.index_select(0, torch.tensor([2, 0])),
    "dispatcher": lambda w: torch.ops.aten.mul.Tensor(w, 2),
    "foreach": lambda w: torch._foreach_mul([w], 2.0)[0],
    "vector": lambda w: nn.utils.parameters_to_vector([w]),
}


@every_layer
@pytest.mark.parametrize("read", READS)
def test_other_code_reads_the_values(kind, read):
    layer = LAYERS[kind]()
    before = copy.deepcopy(layer)
    assert torch.equal(READS[read](layer.weight), READS[read](values_of(layer)))
    same_weight(layer, before)


def test_copies_are_plain_tensors():
    weight = LAYERS["linear"]().weight
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    for copied in (weight.clone(), weight.half(), weight + 0):
        assert type(copied) is torch.Tensor
    for copied in (copy.deepcopy(weight), torch.load(file), pickle.loads(pickle.dumps(weight))):
        assert type(copied) is nn.Parameter
        assert torch.equal(copied, weight)
    holder = nn.Linear(24, 12)
    holder.weight = weight
    assert type(copy.deepcopy(holder).weight) is nn.Parameter


def test_it_has_no_memory_to_point_at():
    weight = LAYERS["linear"]().weight
    for ask in (weight.data_ptr, weight.untyped_storage, weight[0].data_ptr):
        with pytest.raises(RuntimeError, match="expected a tensor with memory of its own"):
            ask()


def test_gradients_go_through_it():
    layer = Int8Linear.from_float(nn.Linear(24, 12))
    x = torch.randn(3, 24, requires_grad=True)
    for y in (F.linear(x, layer.weight), x @ layer.weight.T, (x * layer.weight[0]).sum()):
        assert torch.autograd.grad(y.sum(), x)[0].any()


# ---- products ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["linear", "asymmetric", "sparse", "static", "weight only", "groups"])
def test_products_are_those_of_the_layer(kind, dtype):
    layer = LAYERS[kind]().to(dtype)
    x = torch.randn(2, 5, layer.in_features).clamp(-3, 3).to(dtype)
    expected = layer(x)
    bias, weight = layer.bias, layer.weight
    assert torch.equal(F.linear(x, weight, bias), expected)
    assert torch.equal(F.linear(x[0], weight=weight, bias=bias), expected[0])
    product = F.linear(x, weight)
    turned = (
        weight.T, weight.t(), weight.mT, weight.transpose(0, 1), weight.transpose(-1, -2),
        weight.permute(1, 0), weight.swapaxes(1, 0), torch.t(weight), torch.transpose(weight, dim0=0, dim1=1),
        weight.data.t(), weight.detach().to(dtype).T, weight.T.T.T,
    )  # fmt: skip
    for each in turned:
        assert torch.equal(x @ each, product)
        assert torch.equal(torch.matmul(x, each), product)
    assert torch.equal(weight @ x.mT, product.mT)
    assert torch.equal(weight @ x[0, 0], product[0, 0])
    assert torch.equal(torch.mm(x[0], weight.t()), product[0])
    torch.testing.assert_close(x @ weight.clone().T, product, rtol=0.05, atol=0.1)
    assert product.dtype == dtype


@pytest.mark.parametrize("kind", ["embedding", "bag"])
def test_a_table_is_a_tied_head_and_a_lookup(kind):
    layer = LAYERS[kind]()
    head = Int8Linear(24, 12, bias=False)
    head.weight = layer.weight
    same_weight(head, layer)
    x = torch.randn(3, 24)
    assert torch.equal(x @ layer.weight.T, head(x))
    assert torch.equal(F.linear(x, layer.weight, torch.ones(12)), head(x) + 1)
    indices = torch.tensor([[0, 11], [3, 3]])
    assert torch.equal(F.embedding(indices, layer.weight), values_of(layer)[indices])
    assert torch.equal(layer.weight[indices], values_of(layer)[indices])
    assert torch.equal(layer.weight[indices - 12], values_of(layer)[indices])
    with pytest.raises((ValueError, IndexError), match="12"):
        F.embedding(indices + 1, layer.weight)
    layer.bfloat16()
    assert F.embedding(indices, layer.weight).dtype == torch.bfloat16


def test_lookups_in_a_linear_layer():
    layer = LAYERS["linear"]()
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(F.embedding(indices, layer.weight), values_of(layer)[indices])


@pytest.mark.parametrize("kind", ["conv", "conv of groups", "depthwise"])
def test_convolutions_are_those_of_the_layer(kind):
    layer = LAYERS[kind]()
    x = torch.randn(2, 4, 9, 8)
    assert torch.equal(F.conv2d(x, layer.weight, layer.bias, groups=layer.groups), layer(x))
    y = F.conv2d(x, layer.weight, None, stride=2, padding=(1, 0), groups=layer.groups)
    z = F.conv2d(x, values_of(layer), None, stride=2, padding=(1, 0), groups=layer.groups)
    torch.testing.assert_close(y, z, rtol=0.05, atol=0.05)
    assert torch.equal(torch.conv2d(x[0], layer.weight, groups=layer.groups, stride=2, padding=(1, 0)), y[0])


def test_products_run_no_float_weight(monkeypatch):
    layers = {kind: make() for kind, make in LAYERS.items()}
    for layer in layers.values():
        monkeypatch.setattr(type(layer), "_float_weight", lambda *_: pytest.fail("dequantized"))
    x = torch.randn(2, 24)
    for kind in ("linear", "asymmetric", "static", "weight only", "groups", "embedding", "bag"):
        F.linear(x, layers[kind].weight)
        x @ layers[kind].weight.t()
    F.conv2d(torch.randn(1, 4, 5, 5), layers["conv"].weight)
    F.embedding(torch.tensor([1]), layers["embedding"].weight)


# ---- changes ----

CHANGES = {
    "mul_": lambda w: w.mul_(1.5),
    "+=": lambda w: w.__iadd__(0.25),
    "data +=": lambda w: setattr(w, "data", w.data + 0.25),
    "data.add_": lambda w: w.data.add_(0.25),
    "copy_": lambda w: w.copy_(torch.linspace(-1, 1, w.numel()).view(w.shape)),
    "item": lambda w: w.__setitem__(2, 1.0),
    "slice": lambda w: w.__setitem__((slice(None), slice(0, 2)), 0.5),
    "mask": lambda w: w.__setitem__(w > 0, 0.0),
    "fill_": lambda w: w.fill_(0.5),
    "zero_": lambda w: w.zero_(),
    "init": lambda w: nn.init.constant_(w, -0.5),
    "index_fill_": lambda w: w.index_fill_(0, torch.tensor([1]), 0.5),
    "clamp_": lambda w: torch.clamp_(w, -0.01, 0.01),
    "out": lambda w: torch.mul(w.clone(), 2.0, out=w),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
    "dispatcher": lambda w: torch.ops.aten.mul_.Tensor(w, torch.tensor(2.0)),
    "turned": lambda w: w.transpose(0, 1).mul_(1.5),
}


@every_layer
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_changes_in_place_reach_the_layer(kind, change, mode):
    if change == "turned" and "conv" in kind + "conv" * (kind == "depthwise"):
        pytest.skip("a view of four dimensions")
    with mode():
        layer = LAYERS[kind]()
        values = values_of(layer)
        CHANGES[change](values)
        expected = nearest(layer, values)
        weight = layer.weight
        CHANGES[change](weight)
        same_weight(layer, expected)
        assert layer.weight is weight
        assert torch.equal(weight, values_of(expected))


@every_layer
def test_augmented_assignment_to_the_attribute(kind):
    layer = LAYERS[kind]()
    expected = nearest(layer, values_of(layer) + 0.5)
    layer.weight += 0.5
    same_weight(layer, expected)
    expected = nearest(layer, values_of(layer) * 3)
    layer.weight.data *= 3
    same_weight(layer, expected)


@every_layer
@pytest.mark.parametrize("parameter", [False, True])
def test_assignment_quantizes(kind, parameter):
    layer, other = LAYERS[kind](), LAYERS[kind]()
    old, before = layer.weight, values_of(layer)
    new = torch.randn(layer._shape, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(new) if parameter else new
    other.weight.data.copy_(new)
    same_weight(layer, other)
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(old, before), "who holds the old weight keeps its values"
    layer.weight = old
    assert torch.equal(layer.weight, before)


@every_layer
def test_changes_that_would_be_lost_are_refused(kind):
    layer = LAYERS[kind]()
    before, weight = copy.deepcopy(layer), layer.weight
    for change in (
        lambda: weight[0].zero_(),
        lambda: weight.view(-1).add_(1),
        lambda: weight.chunk(2)[0].mul_(2),
        lambda: weight.data[1].fill_(3),
        lambda: weight.flatten().__setitem__(0, 1.0),
        lambda: nn.utils.vector_to_parameters(torch.ones(weight.numel()), [weight[0]]),
        lambda: nn.init.zeros_(weight[:1]),
    ):
        with pytest.raises(RuntimeError, match="no change in place of a view of an int8 weight"):
            change()
    with pytest.raises(ValueError, match="read-only"):
        weight.numpy()[:] = 0
    for want in (lambda: weight.requires_grad_(), lambda: setattr(weight, "requires_grad", True)):
        with pytest.raises(RuntimeError, match=r"requires_grad=False of an int8 weight.*prepare_qat_"):
            want()
    other = torch.zeros(weight.shape)
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        other.data = weight  # torch asks nobody
    assert not other.any()
    same_weight(layer, before)


@every_layer
def test_what_cannot_be_a_weight_is_refused(kind):
    layer = LAYERS[kind]()
    before = copy.deepcopy(layer)
    shape = layer._shape
    nan = torch.zeros(shape)
    nan[0] = float("nan")
    for value, error, match in (
        (torch.zeros(3), ValueError, r"weight: expected shape .* got \(3,\)"),
        (torch.zeros(shape, dtype=torch.int8), TypeError, "weight: expected a float dtype, got torch.int8"),
        (None, TypeError, "weight: expected a float torch.Tensor, got NoneType"),
        (nn.Parameter(torch.zeros((*shape[::-1], 1))), ValueError, "weight: expected shape"),
        (nan, ValueError, "expected finite values"),
    ):
        with pytest.raises(error, match=match):
            layer.weight = value
        same_weight(layer, before)
    with pytest.raises(ValueError, match="expected finite values"):
        layer.weight.copy_(nan)
    with pytest.raises(ValueError, match="weight_int8: expected"):
        layer.weight_int8 = torch.zeros(shape)
    same_weight(layer, before)


@every_layer
def test_int8_values_are_replaced_under_their_own_name(kind):
    layer = LAYERS[kind]()
    data = torch.randint(-127, 128, layer._shape, dtype=torch.int8)
    layer.weight_int8 = data
    assert torch.equal(layer.weight_int8, data)
    assert torch.equal(layer.weight, values_of(layer))


def test_a_weight_that_layers_share_is_not_changed_in_place():
    model = nn.Sequential(nn.Embedding(12, 24), nn.Linear(24, 12, bias=False))
    model[1].weight = model[0].weight
    octavo.quantize_(model)
    for layer in model:
        with pytest.raises(RuntimeError, match="another layer shares"):
            layer.weight.mul_(2)
        layer.weight = torch.ones(12, 24)
        layer.weight.mul_(2)
        assert (layer.weight == 2).all()


# ---- life ----


def test_a_layer_and_its_weight_are_no_ring():
    layer = LAYERS["linear"]()
    gone = weakref.ref(layer)
    weight, values = layer.weight, values_of(layer)
    gc.disable()
    try:
        del layer
        assert gone() is None
        assert torch.equal(weight, values)
        gone = weakref.ref(weight)
        del weight
        assert gone() is None
    finally:
        gc.enable()


@every_layer
def test_it_follows_the_layer(kind):
    layer, other = LAYERS[kind](), LAYERS[kind]()
    weight = layer.weight
    layer.load_state_dict(other.state_dict())
    assert layer.weight is weight
    assert torch.equal(weight, values_of(other))
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.weight.dtype == torch.bfloat16
        again.weight.zero_()
        assert not again.weight_int8.any()
    assert layer.weight_int8.any()
    assert layer.to("meta").weight.is_meta


@every_layer
def test_a_rebuilt_layer_has_its_dtype(kind):
    layer = LAYERS[kind]().bfloat16()
    fresh = rebuild(describe(layer))
    fresh.load_state_dict(layer.state_dict(), assign=True)
    assert fresh.weight.dtype == torch.bfloat16


@every_layer
def test_a_model_without_biases_has_a_device_and_a_dtype(kind, tmp_path):
    model = nn.Sequential(LAYERS[kind]())
    model[0].bias = None
    if not list(model.parameters()):
        model[0]._add_like("cpu")
    state = model.state_dict()
    octavo.save(model, tmp_path)
    for each in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        octavo.load(copy.deepcopy(model), tmp_path),
    ):
        (like,) = each.parameters()
        assert (like.dtype, like.device.type, like.numel()) == (torch.float32, "cpu", 0)
        assert next(each.bfloat16().parameters()).dtype == torch.bfloat16
        each.load_state_dict(state, assign=True)
        assert next(each.parameters()).dtype == torch.float32
        each[0].weight = torch.ones(model[0]._shape, dtype=torch.float16)
        assert next(each.parameters()).dtype == torch.float16
        assert each.state_dict().keys() == state.keys()
        assert next(each.to("meta").parameters()).is_meta


def test_a_float_layer_can_hold_it():
    table = LAYERS["embedding"]()
    head = nn.Linear(24, 12, bias=False)
    head.weight = table.weight
    x = torch.randn(3, 24)
    assert torch.equal(head(x), x @ table.weight.T)
    table.weight.zero_()
    assert not head(x).any()


# ---- state dicts, tracers ----


class Reads(nn.Module):
    """Code that asks layers for their weights, as vision models, T5, Whisper and BEiT do."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 48), nn.Linear(16, 24)
        self.table, self.conv = nn.Embedding(12, 24), nn.Conv2d(3, 4, 3)
        self.register_buffer("one", torch.tensor([1]))

    def forward(self, x, image):
        image = F.conv2d(image.to(self.conv.weight.dtype), self.conv.weight, self.conv.bias)
        q, k, v = F.linear(x.to(self.qkv.weight.dtype), self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return self.out(q + k * v) @ self.table.weight.to(x.dtype).t(), image, self.table(self.one)


def readers():
    model = Reads().eval()
    return model, octavo.quantize_(copy.deepcopy(model)), (torch.randn(5, 24), torch.randn(1, 3, 6, 6))


def near(found, expected, tolerance=0.05):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def test_models_that_read_weights():
    model, quantized, inputs = readers()
    with torch.no_grad():
        near(quantized(*inputs), model(*inputs))
        for dtype in DTYPES[1:]:
            cast = [each.to(dtype) for each in inputs]
            found = copy.deepcopy(quantized).to(dtype)(*cast)
            assert {each.dtype for each in found} == {dtype}
            near(found, model(*inputs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.trace's own
def test_models_that_read_weights_are_traced():
    _, quantized, inputs = readers()
    with torch.no_grad():
        expected = quantized(*inputs)
        for traced in (
            torch.jit.trace(quantized, inputs, check_trace=False),
            torch.fx.experimental.proxy_tensor.make_fx(quantized)(*inputs),
        ):
            for a, b in zip(traced(*inputs), expected, strict=True):
                assert torch.equal(a, b)
        near(torch.compile(quantized, backend="eager", fullgraph=True)(*inputs), expected)
        near(torch.export.export(quantized, inputs).module()(*inputs), expected)


def test_functional_call_puts_weights_in_place_and_takes_them_out():
    _, quantized, inputs = readers()
    other, other_quantized, _ = readers()
    before = copy.deepcopy(quantized.state_dict())
    with torch.no_grad():
        call = torch.func.functional_call
        for state, expected in (
            (quantized.state_dict(), quantized),
            (dict(quantized.named_parameters()) | dict(quantized.named_buffers()), quantized),
            (other_quantized.state_dict(), other_quantized),
            (other.state_dict(), other_quantized),
        ):
            for a, b in zip(call(quantized, state, inputs), expected(*inputs), strict=True):
                assert torch.equal(a, b)
            after = quantized.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())


@every_layer
def test_a_float_layer_refuses_an_int8_state_dict(kind):
    layer = LAYERS[kind]()
    state = layer.state_dict()
    assert all(value.dtype != torch.int8 for name, value in state.items() if name != "weight_int8")
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.randn(layer._shape))
    before = holder.weight.clone()
    for assign in (False, True):
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            holder.load_state_dict(state, strict=False, assign=assign)
    with pytest.raises(RuntimeError):
        holder.weight.data.copy_(state["weight"])
    assert torch.equal(holder.weight, before)


@every_layer
def test_state_dicts_of_octavo_0_1_load(kind):
    layer, fresh = LAYERS[kind](), LAYERS[kind]()
    state = layer.state_dict()
    state["weight"] = state.pop("weight_int8")
    for assign in (False, True):
        assert fresh.load_state_dict(state, assign=assign) == ([], [])
        same_weight(fresh, layer)
        assert fresh.dtype == layer.dtype
    with pytest.raises(RuntimeError, match=r"weight: expected int8 .*, got torch.float32"):
        fresh.load_state_dict(state | {"weight": values_of(layer)})
    same_weight(fresh, layer)


def test_symbolic_trace_takes_layers_as_leaves():
    layers = {
        kind: make() for kind, make in LAYERS.items() if kind not in ("sparse", "no bias", "projection")
    }
    layers["attention"] = octavo.nn.Int8MultiheadAttention.from_float(nn.MultiheadAttention(24, 2))
    x, image, indices = torch.randn(2, 24), torch.randn(1, 4, 6, 6), torch.tensor([[1, 2], [0, 3]])
    for kind, layer in layers.items():
        inputs = (
            image if isinstance(layer, Int8Conv2d) else indices if "embedding" in kind or kind == "bag" else x
        )
        model = nn.Sequential(layer)
        if kind == "attention":
            model = Attends(layer)
        traced = torch.fx.symbolic_trace(model)
        assert [node.op for node in traced.graph.nodes].count("call_module") == 1
        assert torch.equal(traced(inputs), model(inputs)), kind
        assert traced.state_dict().keys() == model.state_dict().keys()


class Attends(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]
