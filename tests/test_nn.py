"""Int8Linear and quantize_: what they hold, save, compute and refuse."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest

import octavo
from octavo.runtime import backends

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from octavo.nn import Int8Dynamic, Int8Linear, quantize_  # noqa: E402

inductor = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quiet_cuda = pytest.mark.filterwarnings("ignore:octavo. .* run on the torch reference:RuntimeWarning")


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch.compiler.reset()  # how often a layer was compiled is counted by its class


def linear(k=40, n=24, bias=True, dtype=torch.float32):
    return nn.Linear(k, n, bias=bias).to(dtype)


def model():
    return nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24, bias=False), nn.LayerNorm(24)).eval()


def same_state(a, b):
    assert list(a) == list(b)
    for key, value in a.items():
        assert value.dtype == b[key].dtype, key
        assert torch.equal(value, b[key]), key


# ---- Int8Linear ----


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("bias", "symmetric"), [(False, True), (True, True), (True, False)])
def test_forward_is_int8_linear(bias, symmetric, dtype, activation, backend):
    source = linear(bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 40).to(dtype)
    with octavo.use_backend(backend):
        layer = Int8Linear.from_float(source, Int8Dynamic(symmetric=symmetric), activation=activation)
        packed = octavo.pack_weight(source.weight.detach())
        more = {"activation": activation, "symmetric": symmetric}
        expected = octavo.int8_linear(x, packed, source.bias, **more).detach()
        assert expected.dtype == (torch.float32 if dtype == torch.float64 else dtype)
        assert torch.equal(layer(x).detach(), expected)
        assert torch.equal(layer(x[0, 0]).detach(), expected[0, 0])


def test_what_a_layer_holds():
    source = linear(dtype=torch.bfloat16).train()
    layer = Int8Linear.from_float(source)
    data, scale, _ = octavo.quantize(source.weight.detach())
    assert torch.equal(layer.weight_int8, data)
    assert torch.equal(layer.weight_scale, scale.unsqueeze(-1))
    assert torch.equal(layer.bias, source.bias)
    assert layer.bias is not source.bias
    assert layer.bias.dtype == torch.bfloat16
    assert not layer.bias.requires_grad
    assert layer.training
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    held = sum(t.nbytes for t in layer.buffers())
    assert held < 1.1 * octavo.pack_weight(source.weight.detach()).nbytes
    assert repr(layer) == "Int8Linear(in_features=40, out_features=24, bias=True)"
    assert "activation='gelu'" in repr(Int8Linear(3, 2, activation="gelu"))
    assert torch.equal(Int8Linear(3, 2)(torch.ones(1, 3)), torch.zeros(1, 2))


def test_state_dict_holds_the_logical_values_and_loading_packs_them():
    layer = Int8Linear.from_float(linear())
    state = layer.state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "weight": (torch.float32, (0,)),
        "weight_int8": (torch.int8, (24, 40)),
        "weight_scale": (torch.float32, (24, 1)),
        "bias": (torch.float32, (24,)),
    }
    x = torch.randn(3, 40)
    for assign in (False, True):
        other = Int8Linear(40, 24)
        other(x)
        assert other.load_state_dict(state, assign=assign) == ([], [])
        assert torch.equal(other(x), layer(x))
        same_state(other.state_dict(), state)
    state["weight_int8"].zero_()
    assert layer.weight_int8.any()
    assert other.weight_int8.any()


def test_state_dict_of_a_model_round_trips_through_a_file():
    trained = quantize_(model())
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh = quantize_(model())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 40)
    assert torch.equal(fresh(x), trained(x))
    same_state(fresh.state_dict(), trained.state_dict())


def test_load_state_dict_refuses_what_does_not_fit():
    layer = Int8Linear(40, 24)
    state = layer.state_dict()
    for weight in (torch.zeros(24, 40), torch.zeros(24, 41, dtype=torch.int8)):
        with pytest.raises(RuntimeError, match=r"weight: expected int8 \(24, 40\), got"):
            layer.load_state_dict({**state, "weight": weight})
    del state["weight_int8"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight_int8"'):
        layer.load_state_dict(state)
    assert layer.load_state_dict(state, strict=False).missing_keys == ["weight_int8"]
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({**Int8Linear(40, 24).state_dict(), "other": torch.zeros(1)})


@pytest.mark.parametrize("used", [False, True])
def test_copies_are_independent_and_equal(used):
    layer = Int8Linear.from_float(linear(bias=False), activation="silu")
    x = torch.randn(3, 40)
    if used:
        layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    expected = layer(x)
    for each in copies:
        same_state(each.state_dict(), layer.state_dict())
        assert torch.equal(each(x), expected)
        each.weight_scale.zero_()
        assert not each(x).any()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_casts_change_the_bias_only(cast):
    layer = Int8Linear.from_float(linear())
    before = layer.state_dict()
    layer(torch.randn(1, 40))
    getattr(layer, cast)()
    after = layer.state_dict()
    assert torch.equal(after["weight_int8"], before["weight_int8"])
    assert torch.equal(after["weight_scale"], before["weight_scale"])
    assert after["weight_scale"].dtype == torch.float32
    assert after["bias"].dtype != torch.float32
    x = torch.randn(3, 40).to(after["bias"].dtype)
    assert layer(x).dtype == layer.weight.dtype == x.dtype


def test_meta_layers_come_to_life_when_loaded():
    state = Int8Linear.from_float(linear()).state_dict()
    with torch.device("meta"):
        layer = Int8Linear(40, 24)
    assert layer.weight.is_meta
    layer.to_empty(device="cpu").load_state_dict(state)
    same_state(layer.state_dict(), state)
    other = Int8Linear(40, 24, device="meta")
    other.load_state_dict(state, assign=True)
    x = torch.randn(2, 40)
    assert torch.equal(other(x), layer(x))


def test_changes_in_place_are_seen():
    layer = Int8Linear.from_float(linear(bias=False))
    x = torch.randn(2, 40)
    y = layer(x)
    layer.weight_scale.mul_(2)
    assert torch.equal(layer(x), 2 * y)
    layer.weight_scale = layer.weight_scale / 2
    assert torch.equal(layer(x), y)


def test_gradients_reach_the_input():
    layer = Int8Linear.from_float(linear())
    x = torch.randn(3, 40, requires_grad=True)
    layer(x).sum().backward()
    weight = layer.weight_int8.float() * layer.weight_scale
    torch.testing.assert_close(x.grad, torch.ones(3, 24) @ weight)
    assert layer.bias.grad is None


def test_errors_of_a_layer():
    with pytest.raises(ValueError, match="activation: expected"):
        Int8Linear(3, 2, activation="tanh")
    for kind in (Int8Dynamic, partial(Int8Linear, 3, 2), partial(octavo.nn.Int8StaticLinear, 3, 2)):
        with pytest.raises(TypeError, match="symmetric: expected True or False, got 3"):
            kind(symmetric=3)
    with pytest.raises(TypeError, match=r"linear: expected a torch.nn.Linear, got ReLU"):
        Int8Linear.from_float(nn.ReLU())
    with pytest.raises(TypeError, match=r"config: expected an octavo.Int8Dynamic.*, got 'int8'"):
        Int8Linear.from_float(linear(), "int8")
    source = linear()
    source.weight.data[3, 4] = float("inf")
    with pytest.raises(ValueError, match=r"expected finite values, got 1 .*first at \(3, 4\)"):
        Int8Linear.from_float(source)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 40\)"):
        Int8Linear(40, 24)(torch.zeros(2, 41))
    with pytest.raises(TypeError, match="x: expected dtype"):
        Int8Linear(40, 24)(torch.zeros(2, 40, dtype=torch.int64))


# ---- sparse layers ----


def pruned(n=512, k=512, pattern="unstructured", bias=True):
    """A layer with a twentieth of its weights, and the layout that the kernels here gain from."""
    source = nn.Linear(k, n, bias=bias)
    octavo.prune_(source.weight.detach(), sparsity=0.95, pattern=pattern)
    bitmask_pays, block_pays = backends._core.sparse_pays() if backends.native else (0, 0)
    paying = block_pays if pattern == "block4x16" else bitmask_pays
    return source, ("bitmask" if pattern == "unstructured" else "block") if paying > 0.05 else "dense"


def layout_of(layer):
    return octavo.PackedWeight.from_buffer(layer._stored).layout


@pytest.mark.parametrize("pattern", ["unstructured", "block4x16"])
def test_a_pruned_layer_is_stored_sparse_and_saved_plain(pattern):
    source, layout = pruned(pattern=pattern)
    layer = Int8Linear.from_float(source)
    assert layout_of(layer) == layout
    data, scale, _ = octavo.quantize(source.weight.detach())
    assert torch.equal(layer.weight_int8, data)
    if layout != "dense":
        assert layer._stored.nbytes < 0.35 * data.nbytes
    (row,) = octavo.explain(layer)
    assert row.layout == layout
    assert row.density == pytest.approx(0.05, abs=0.001)
    state = layer.state_dict()
    assert {key: (value.dtype, tuple(value.shape)) for key, value in state.items()} == {
        "weight": (torch.float32, (0,)),
        "weight_int8": (torch.int8, (512, 512)),
        "weight_scale": (torch.float32, (512, 1)),
        "bias": (torch.float32, (512,)),
    }
    assert torch.equal(state["weight_int8"], data)
    expected = octavo.int8_linear(
        torch.eye(512), octavo.pack_weight(data, scale, layout="dense"), source.bias.detach()
    )
    assert torch.equal(layer(torch.eye(512)), expected)
    x = torch.randn(3, 512)
    for assign in (False, True):
        fresh = Int8Linear(512, 512)
        fresh(x)
        assert fresh.load_state_dict(state, assign=assign) == ([], [])
        assert layout_of(fresh) == layout
        assert torch.equal(fresh(x), layer(x))
    dense = Int8Linear.from_float(nn.Linear(512, 512))
    dense_state = dense.state_dict()
    fresh.load_state_dict(dense_state)  # from sparse to dense
    assert layout_of(fresh) == "dense"
    assert torch.equal(fresh(x), dense(x))


@pytest.mark.parametrize("isa", backends._core.isas_available() if backends.native else [])
def test_a_sparse_layer_serves_every_isa(isa):
    source, _ = pruned()
    layer = Int8Linear.from_float(source)
    x = torch.randn(5, 512)
    expected = layer(x)
    with octavo.force_isa(isa):
        assert torch.equal(layer(x), expected)
        other = Int8Linear.from_float(source)
        assert layout_of(other) == pruned()[1]
        assert torch.equal(other(x), expected)
    with octavo.use_backend("reference"):
        assert torch.equal(layer(x), expected)
        assert layout_of(Int8Linear.from_float(source)) == "dense"


def test_copies_and_casts_of_a_sparse_layer():
    source, layout = pruned(bias=False)
    layer = Int8Linear.from_float(source)
    x = torch.randn(3, 512)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    copies.append(copy.deepcopy(layer).to(torch.bfloat16))
    for each in copies:
        assert layout_of(each) == layout
        assert torch.equal(each.weight_int8, layer.weight_int8)
        assert torch.equal(each.weight_scale, layer.weight_scale)
        assert torch.equal(each(x), expected)
        assert each._stored.data_ptr() != layer._stored.data_ptr()


@inductor
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_sparse_layers_equal_eager_ones(backend):
    m = nn.Sequential(pruned()[0], pruned(256, 512, "block4x16", bias=False)[0]).eval()
    quantize_(m)
    x = torch.randn(5, 512)
    with torch.no_grad():
        compiled = torch.compile(m, fullgraph=True, backend=backend)
        assert torch.equal(compiled(x), m(x))
        m.load_state_dict(
            nn.Sequential(
                *map(Int8Linear.from_float, (linear(512, 512), linear(512, 256, False)))
            ).state_dict()
        )
        assert torch.equal(compiled(x), m(x))  # now stored dense


def test_gradients_and_export_of_a_sparse_layer():
    layer = Int8Linear.from_float(pruned()[0])
    x = torch.randn(5, 512, requires_grad=True)
    layer(x).sum().backward()
    weight = layer.weight_int8.float() * layer.weight_scale
    torch.testing.assert_close(x.grad, torch.ones(5, 512) @ weight)
    x = x.detach()
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (5, 1, 32):
        x = torch.randn(n, 512)
        assert torch.equal(loaded(x), layer(x))


# ---- tracing ----


@inductor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_equal_eager_ones(backend, dtype):
    # without the float layers of model(), which inductor rounds differently
    small = nn.Sequential(linear(40, 64), linear(64, 24, bias=False)).eval().to(dtype)
    quantize_(small)
    x = torch.randn(5, 40).to(dtype)
    with torch.no_grad():
        compiled = torch.compile(small, fullgraph=True, backend=backend)
        assert torch.equal(compiled(x), small(x))


def test_compiled_models_take_any_batch_without_recompiling():
    counter = CompileCounterWithBackend("aot_eager")
    quantized = quantize_(model())
    compiled = torch.compile(quantized, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(4, 40))
        count = counter.frame_count  # 2: torch compiles a LayerNorm anew once it knows its eps
        for batch in (2, 33, 64):
            x = torch.randn(batch, 40)
            assert torch.equal(compiled(x), quantized(x))
    assert counter.frame_count == count


def test_compiled_training_step():
    quantized = quantize_(nn.Sequential(linear(40, 64), nn.GELU(), linear(64, 24)))
    x = torch.randn(5, 40, requires_grad=True)
    quantized(x).square().sum().backward()
    expected, x.grad = x.grad, None
    torch.compile(quantized, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    assert torch.equal(x.grad, expected)


def test_export_round_trip():
    quantized = quantize_(model())
    x = torch.randn(5, 40)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(quantized, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (5, 1, 32):
        x = torch.randn(n, 40)
        assert torch.equal(loaded(x), quantized(x))


# ---- quantize_ ----


def test_quantize_replaces_linears_in_place():
    m = model()
    x = torch.randn(16, 40)
    expected = m(x)
    assert quantize_(m, Int8Dynamic()) is m
    assert [type(child) for child in m] == [Int8Linear, nn.GELU, Int8Linear, nn.LayerNorm]
    assert not m[0].training
    assert torch.nn.functional.cosine_similarity(m(x), expected).min() > 0.999


def test_quantize_filters_by_module_and_name():
    m = nn.ModuleDict({"encoder": model(), "head": linear()})
    seen = []

    def keep_heads(module, fqn):
        seen.append(fqn)
        assert isinstance(module, nn.Linear)
        return fqn != "head"

    quantize_(m, filter_fn=keep_heads)
    assert seen == ["encoder.0", "encoder.2", "head"]
    assert type(m["head"]) is nn.Linear
    assert type(m["encoder"][0]) is Int8Linear


def test_shared_modules_stay_shared():
    shared = linear(40, 40)
    m = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(shared, linear(40, 40))})
    quantize_(m)
    assert type(m["a"]) is Int8Linear
    assert m["a"] is m["b"]
    assert m["a"] is m["c"][0]
    assert m["a"] is not m["c"][1]


def test_a_lone_linear_is_returned_new():
    source = linear()
    layer = quantize_(source)
    assert type(layer) is Int8Linear
    assert type(source) is nn.Linear


def test_nothing_to_quantize_is_an_error():
    for m in (nn.Sequential(nn.ReLU()), quantize_(model())):
        with pytest.raises(ValueError, match=r"model: expected at least one layer with an int8 form"):
            quantize_(m)
    with pytest.raises(ValueError, match=r"got none \(float: filter_fn left it out: "):
        quantize_(model(), filter_fn=lambda module, fqn: False)
    with pytest.raises(TypeError, match="config: expected"):
        quantize_(model(), "int8")


def test_a_failure_leaves_the_model_as_it_was():
    m = model()
    m[2].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="model: layer '2': x: expected finite values"):
        quantize_(m)
    assert [type(child) for child in m] == [nn.Linear, nn.GELU, nn.Linear, nn.LayerNorm]


def test_linears_with_a_forward_of_their_own_stay():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    m = nn.Sequential(Doubled(4, 4), Named(4, 4), nn.Linear(4, 4))
    m[2].forward = m[1].forward
    quantize_(m)
    assert [type(child) for child in m] == [Doubled, Int8Linear, nn.Linear]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of the float run
@pytest.mark.parametrize("padding", [False, True])
def test_torch_transformers_leave_their_fused_path(padding):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    m = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 7, 32)
    mask = torch.arange(7) >= torch.tensor([[7], [5], [6]]) if padding else None
    with torch.no_grad():
        expected = m(x, src_key_padding_mask=mask)
        quantize_(m)
        actual = m(x, src_key_padding_mask=mask)
        if padding:
            expected, actual = expected[~mask], actual[~mask]
    assert isinstance(m.layers[0].linear1, Int8Linear)
    assert torch.nn.functional.cosine_similarity(actual, expected, dim=-1).min() > 0.99


# ---- CUDA ----


@cuda
@quiet_cuda
def test_layers_move_to_cuda_and_back():
    layer = Int8Linear.from_float(linear())
    x = torch.randn(3, 40)
    state, expected = copy.deepcopy(layer.state_dict()), layer(x)
    layer.cuda()
    assert layer.weight.is_cuda
    assert torch.equal(layer(x.cuda()).cpu(), expected)
    layer.cpu()
    same_state(layer.state_dict(), state)
    assert torch.equal(layer(x), expected)
    moved = Int8Linear.from_float(linear().cuda())
    assert moved(x.cuda()).is_cuda
