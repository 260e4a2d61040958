"""octavo.fuse_ and the backend "octavo": what is fused, what must not be, and the bits."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
import octavo.nn  # noqa: E402
from octavo.nn import fusion_patterns, fusion_run  # noqa: E402
from octavo.nn.dynamo import backend  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's and inductor's own
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def int8(model, dtype=torch.float32, *, symmetric=True):
    """In eval mode, with norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | WrittenRMSNorm) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            if getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias)
    return octavo.quantize_(model.to(dtype).eval(), octavo.Int8Dynamic(symmetric))


def linear(layer, x, activation=None):
    """The unfused octavo operation."""
    packed = octavo.pack_weight(layer.weight, layer.weight_scale)
    return octavo.int8_linear(x, packed, layer.bias, activation=activation, symmetric=layer.symmetric)


def product(layer, quantized, dtype, activation=None):
    packed = octavo.pack_weight(layer.weight, layer.weight_scale)
    more = {"a_zero_point": quantized.zero_point, "activation": activation, "out_dtype": dtype}
    return octavo.scaled_int_mm(quantized.data, quantized.scale, packed, layer.bias, **more)


def rewritten_by_dynamo(model, found):
    """torch.compile with the same rewriting, and no inductor after it."""

    def eager(module, inputs):
        found.extend(fusion_patterns.fuse_graph(module.graph))
        module.recompile()
        return module.forward

    return torch.compile(model, backend=eager, dynamic=True)


def by_both_entries(model, *args):
    """(kinds of fusions, result) of fuse_ and of dynamo."""
    fused = octavo.fuse_(copy.deepcopy(model), args)
    calls = count_graph_calls(fused)
    yield [each.kind for each in octavo.nn.fusions(fused)], fused(*args)
    assert calls == [1]
    torch._dynamo.reset()
    found = []
    result = rewritten_by_dynamo(model, found)(*args)
    yield [each.kind for each in found], result


def count_graph_calls(fused):
    """A list of one number: how often the graph has run."""
    calls, run = [0], fused.forward._run

    def counted(*values):
        calls[0] += 1
        return run(*values)

    fused.forward._run = counted
    return calls


def kinds(model, *args):
    """What is fused in a model that may have nothing to fuse."""
    program = torch.export.export(model, args)
    return [each.kind for each in fusion_patterns.fuse_graph(program.graph)]


# ---- patterns ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_moves_into_the_epilogue(name, dtype):
    model = int8(nn.Sequential(nn.Linear(24, 40), ACTIVATIONS[name], nn.Linear(40, 8)), dtype)
    x = torch.randn(5, 24, dtype=dtype)
    expected = linear(model[2], linear(model[0], x, name.removesuffix(" in place")))
    if name.startswith("relu"):
        assert torch.equal(expected, model(x))
    torch.testing.assert_close(expected, model(x), rtol=0.05, atol=0.05)
    for found, y in by_both_entries(model, x):
        assert found == ["activation"]
        assert torch.equal(y, expected)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.gate = nn.Linear(24, 40), nn.Linear(24, 8, bias=False), nn.Linear(24, 40)

    def forward(self, x):
        q = self.q(x)
        return q, self.k(x) * 2, F.silu(self.gate(x)) * q


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_on_one_input_share_its_quantization(dtype, symmetric):
    model = int8(Shared(), dtype, symmetric=symmetric)
    x = torch.randn(2, 5, 24, dtype=dtype) + 1
    q = linear(model.q, x)
    expected = q, linear(model.k, x) * 2, linear(model.gate, x, "silu") * q
    for found, results in by_both_entries(model, x):
        assert found == ["activation", "shared input"]
        for y, wanted in zip(results, expected, strict=True):
            assert torch.equal(y, wanted)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_fused_does_not_go_through_the_dispatcher(symmetric):
    model = int8(nn.Sequential(nn.Linear(24, 24), nn.ReLU(), Shared()), symmetric=symmetric)
    graph = octavo.fuse_(model, torch.randn(5, 24)).forward._run.__self__.graph
    assert not [node for node in graph.nodes if str(node.target).startswith("octavo.")]
    assert sum(node.target in (fusion_run._linear, fusion_run._linears) for node in graph.nodes) == 2


class WrittenRMSNorm(nn.Module):
    """As in transformers' models."""

    def __init__(self, k, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(k)), eps

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(dtype)


NORMS = {
    "LayerNorm": lambda k: nn.LayerNorm(k, eps=1e-3),
    "LayerNorm without weight": lambda k: nn.LayerNorm(k, elementwise_affine=False),
    "LayerNorm without bias": lambda k: nn.LayerNorm(k, bias=False),
    "RMSNorm": lambda k: nn.RMSNorm(k, eps=1e-3),
    "RMSNorm with torch's eps": nn.RMSNorm,
    "written RMSNorm": WrittenRMSNorm,
}


def normalize(norm, x, **options):
    if isinstance(norm, nn.LayerNorm):
        return octavo.layer_norm_quantize(x, norm.weight, norm.bias, eps=norm.eps, **options)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    return octavo.rms_norm_quantize(x, norm.weight, eps=eps, **options)


class PreNorm(nn.Module):
    """The sum goes on as the residual; the normalized row goes to linear layers only."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.up, self.gate, self.down = norm, *(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, residual):
        total = residual + x
        y = self.norm(total)
        return total + self.down(F.silu(self.gate(y)) * self.up(y))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_in_front(name, dtype, symmetric):
    model = int8(PreNorm(NORMS[name](32)), dtype, symmetric=symmetric)
    x, residual = torch.randn(2, 2, 3, 32, dtype=dtype)
    quantized, total = normalize(model.norm, residual, residual=x, symmetric=symmetric)
    gate, up = product(model.gate, quantized, dtype, "silu"), product(model.up, quantized, dtype)
    expected = total + linear(model.down, gate * up)
    torch.testing.assert_close(expected, model(x, residual), rtol=0.1, atol=0.1)
    for found, y in by_both_entries(model, x, residual):
        assert found == ["activation", "norm"]
        assert torch.equal(y, expected)


class PostNorm(nn.Module):
    """The normalized row is the residual too."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.up, self.down, self.last = (
            norm,
            nn.Linear(32, 40),
            nn.Linear(40, 32),
            NORMS["RMSNorm"](32),
        )
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, residual):
        y = self.norm(self.dropout(x) + residual)
        return self.last(y + self.down(F.gelu(self.up(y))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["LayerNorm", "written RMSNorm"])
def test_a_norm_behind(name, dtype):
    model = int8(PostNorm(NORMS[name](32)), dtype)
    x, residual = torch.randn(2, 2, 3, 32, dtype=dtype)
    quantized, _, normed = normalize(model.norm, x, residual=residual, normed=True)
    expected = model.last(normed + linear(model.down, product(model.up, quantized, dtype, "gelu")))
    torch.testing.assert_close(expected, model(x, residual), rtol=0.1, atol=0.1)
    for found, y in by_both_entries(model, x, residual):
        assert found == ["activation", "norm"]
        assert torch.equal(y, expected)


class Attending(nn.Module):
    """Attentions under one mask, that look at the same tokens."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(32, 32) for _ in range(3)) for _ in range(count))

    def forward(self, x, mask, between=False):
        mask = mask[:, None]
        for layers in self.layers:
            q, k, v = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in layers)
            x = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
            if between:
                mask.logical_not_()
        return x


@pytest.mark.parametrize("dtype", DTYPES)
def test_attentions_share_the_conversion_of_their_mask(dtype):
    model, x = int8(Attending(3), dtype), torch.randn(2, 5, 32, dtype=dtype)
    mask = torch.rand(2, 5, 5) > 0.4
    mask[0, 2] = False  # a token that sees nothing
    expected = model(x, mask)
    for found, y in by_both_entries(model, x, mask):
        assert found == ["shared input"] * 3 + ["mask"]
        assert torch.equal(y, expected)


def test_masks_that_stay():
    x, mask = torch.randn(2, 5, 32), torch.rand(2, 5, 5) > 0.4
    assert kinds(int8(Attending(1)), x, mask) == ["shared input"]  # there is nothing to share
    assert kinds(int8(Attending(2)), x, mask.float()) == ["shared input"] * 2
    assert kinds(int8(Attending(2)), x, mask, True) == ["shared input"] * 2  # it changes in between


# ---- what must stay ----


class Applied(nn.Module):
    """f(layers, x)"""

    def __init__(self, f, *layers):
        super().__init__()
        self.f, self.layers = f, nn.ModuleList(layers)

    def forward(self, *inputs):
        return self.f(self.layers, *inputs)


def shifted_in_between(layers, x):
    y = layers[0](x)
    x.add_(1)
    return y, layers[1](x)


def changed_before_its_activation(layers, x):
    y = layers[0](x)
    y.mul_(2)
    return F.relu(y)


def used_twice(layers, x):
    y = layers[0](x)
    return F.relu(y) + y


class AlmostRMSNorm(WrittenRMSNorm):
    def forward(self, x, axis=-1, power=2, shift=0, keepdim=True):
        mean = x.pow(power).mean(axis, keepdim=keepdim)
        return self.weight * ((x + shift if shift else x) * torch.rsqrt(mean + self.eps))


KEPT = {
    "a second user of the product": (used_twice, ()),
    "a change between product and activation": (changed_before_its_activation, ()),
    "a change between two products": (shifted_in_between, ()),
    "another activation": (lambda layers, x: torch.tanh(layers[0](x)), ()),
    "an activation of another dtype": (lambda layers, x: F.gelu(layers[0](x).double()), ()),
    "different inputs": (lambda layers, x: (layers[0](x), layers[1](x + 1)), ()),
    "a norm over two axes": (lambda layers, x: layers[0](F.layer_norm(x, x.shape[-2:])), ()),
    "a norm of another axis": (lambda layers, x: layers[0](layers[2](x, axis=0)), (AlmostRMSNorm(32),)),
    "a norm with a cube": (lambda layers, x: layers[0](layers[2](x, power=3)), (AlmostRMSNorm(32),)),
    "a norm by another's": (lambda layers, x: layers[0](layers[2](x, shift=1)), (AlmostRMSNorm(32),)),
    "a norm's sum": (lambda layers, x: layers[0](layers[2](x, keepdim=False)), (AlmostRMSNorm(32),)),
    "a norm without int8 layers": (lambda layers, x: layers[2](x), (nn.LayerNorm(32),)),
    "weights that are computed": (
        lambda layers, x: layers[0](F.layer_norm(x, (32,), layers[2].weight * 2)),
        (nn.LayerNorm(32),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name):
    f, more = KEPT[name]
    model = int8(Applied(f, nn.Linear(32, 32), nn.Linear(32, 32), *more))
    assert kinds(model, torch.randn(32, 32)) == []
    with pytest.raises(ValueError, match="model: expected"):
        octavo.fuse_(model, torch.randn(32, 32))
    assert "forward" not in model.__dict__


SUMS = {
    "scaled": lambda x, r: torch.add(x, r, alpha=2),
    "broadcast": lambda x, r: x + r[:1],
    "with a number": lambda x, r: x + 1.0,
    "of two dtypes": lambda x, r: x + r.half(),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_is_no_residuals_stays_beside_the_norm(name):
    model = int8(
        Applied(
            lambda layers, x, r: layers[0](layers[1](SUMS[name](x, r))), nn.Linear(32, 8), nn.LayerNorm(32)
        )
    )
    x, residual = torch.randn(2, 4, 32)
    quantized = normalize(model.layers[1], SUMS[name](x, residual))
    for found, y in by_both_entries(model, x, residual):
        assert found == ["norm"]
        assert torch.equal(y, product(model.layers[0], quantized, torch.float32))


def test_float64_norms_stay():
    model = int8(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8)), torch.float64)
    assert kinds(model, torch.randn(4, 32, dtype=torch.float64)) == []


# ---- calls ----


def block():
    return int8(PreNorm(nn.LayerNorm(32)))


def test_other_sizes_run_the_same_graph():
    model = block()
    fused = octavo.fuse_(copy.deepcopy(model), tuple(torch.randn(2, 2, 3, 32)))
    calls = count_graph_calls(fused)
    for i, shape in enumerate([(2, 3, 32), (5, 1, 32), (1, 7, 32), (1, 1, 32), (64, 9, 32)]):
        args = tuple(torch.randn(2, *shape))
        assert torch.equal(fused(*args), octavo.fuse_(copy.deepcopy(model), args)(*args))
        assert calls == [i + 1]


def test_calls_that_are_not_like_the_example_run_the_model_as_it_was():
    model = block()
    fused = octavo.fuse_(copy.deepcopy(model), tuple(torch.randn(2, 2, 3, 32)))
    calls = count_graph_calls(fused)
    x, r = torch.randn(2, 2, 3, 32)
    others = {
        "rank": (x[0], r[0]),
        "dtype": (x.bfloat16(), r.bfloat16()),
        "strides": (x.transpose(0, 1), r.transpose(0, 1)),
        "broadcast": (x, r[:1]),
    }
    for name, args in others.items():
        assert torch.equal(fused(*args), model(*args)), name
    assert torch.equal(fused(x, residual=r), model(x, r))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x, r), model(x, r))
    assert torch.equal(fused.train()(x, r), model(x, r))
    assert calls == [0]
    fused.eval()(x, r)
    assert calls == [1]
    with torch.enable_grad():
        y = fused(x.requires_grad_(), r)
        assert torch.autograd.grad(y.sum(), fused.norm.weight)[0].any()
    assert calls == [1]
    with pytest.raises(TypeError, match="residual"):
        fused(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x, options=None, scale=1.0):
        if x.shape[0] > 4:
            x = x * 2
        if x.shape[1] == 1:
            x = x + 1
        return {"a": self.a(x) * scale, "b": (self.b(x), options)}


def test_the_models_way_through_its_code_counts():
    model = int8(Branching())
    fused = octavo.fuse_(copy.deepcopy(model), {"x": torch.randn(2, 3, 32), "scale": 2.0})
    calls = count_graph_calls(fused)
    for ran, (shape, scale) in enumerate([((3, 5, 32), 2.0), ((4, 2, 32), 2.0)], 1):
        found, wanted = (m(x=torch.ones(shape), scale=scale) for m in (fused, model))
        assert torch.equal(found["a"], wanted["a"])
        assert torch.equal(found["b"][0], wanted["b"][0])
        assert found["b"][1] is None
        assert calls == [ran]
    for shape, scale in (((5, 3, 32), 2.0), ((2, 1, 32), 2.0), ((3, 5, 32), 3.0)):
        found, wanted = (m(x=torch.ones(shape), scale=scale) for m in (fused, model))
        assert torch.equal(found["a"], wanted["a"])
    assert calls == [2]


def test_nested_inputs():
    model = int8(
        Applied(
            lambda layers, xs: (layers[0](xs["x"][0]), layers[1](xs["x"][0])),
            *(nn.Linear(32, 8) for _ in range(2)),
        )
    )
    fused = octavo.fuse_(copy.deepcopy(model), ({"x": [torch.randn(4, 32)]},))
    calls = count_graph_calls(fused)
    x = torch.randn(7, 32)
    for found, wanted in zip(fused({"x": [x]}), model({"x": [x]}), strict=True):
        assert torch.equal(found, wanted)
    assert calls == [1]
    fused({"x": [x, x]})
    assert calls == [1]


def test_inference_mode():
    args = tuple(torch.randn(2, 2, 3, 32))
    fused = octavo.fuse_(block(), args)
    calls = count_graph_calls(fused)
    with torch.inference_mode():
        assert torch.equal(fused(*(each.clone() for each in args)), fused(*args))
    assert calls == [2]


# ---- the model stays itself ----


def test_parameters_stay_the_models_own():
    model = block()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = tuple(torch.randn(2, 2, 3, 32))
    fused = octavo.fuse_(model, args)
    assert fused is model
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = block()
    expected = octavo.fuse_(copy.deepcopy(other), args)(*args)
    assert not torch.equal(model(*args), expected)
    calls = count_graph_calls(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(*args), expected)
    assert calls == [1]
    model.to(torch.bfloat16)  # the graph is for float32
    inputs = [each.bfloat16() for each in args]
    assert torch.equal(model(*inputs), octavo.nn.unfuse_(copy.deepcopy(model))(*inputs))
    with pytest.raises(RuntimeError, match="dtype"):
        model(*args)
    assert calls == [1]


def test_a_forward_that_changes_buffers():
    model = int8(
        Applied(lambda layers, x: F.relu(layers[0](layers[1](x))), nn.Linear(32, 8), nn.BatchNorm1d(32))
    )
    model.layers[1].train()
    x = torch.randn(8, 32)
    fused = octavo.fuse_(copy.deepcopy(model), x)
    for _ in range(2):
        assert torch.equal(fused(x), model(x))
    for name, value in model.state_dict().items():
        assert torch.equal(fused.state_dict()[name], value), name


def test_a_copy_is_fused_and_its_own():
    args = tuple(torch.randn(2, 2, 3, 32))
    model = octavo.fuse_(block(), args)
    before = model(*args)
    other = copy.deepcopy(model)
    calls = count_graph_calls(other)
    assert torch.equal(other(*args), before)
    assert calls == [1]
    other.load_state_dict(block().state_dict())
    assert not torch.equal(other(*args), before)
    assert torch.equal(model(*args), before)


def test_pickling_says_what_to_do():
    model = octavo.fuse_(block(), tuple(torch.randn(2, 2, 3, 32)))
    with pytest.raises(TypeError, match=r"octavo\.nn\.unfuse_"):
        pickle.dumps(model)
    args = tuple(torch.randn(2, 2, 3, 32))
    again = pickle.loads(pickle.dumps(octavo.nn.unfuse_(model)))
    assert torch.equal(again(*args), model(*args))


def test_unfuse_and_fuse_again():
    model, args = block(), tuple(torch.randn(2, 2, 3, 32))
    plain = model(*args)
    fused = octavo.fuse_(model, args)(*args)
    assert torch.equal(octavo.fuse_(model, args)(*args), fused)
    found = octavo.nn.fusions(nn.Sequential(model))
    assert [(each.kind, each.layers) for each in found] == [
        ("activation", ("0.gate",)),
        ("norm", ("0.norm", "0.gate", "0.up")),
    ]
    assert "silu" in found[0].note
    assert octavo.nn.unfuse_(model) is model
    assert octavo.nn.fusions(model) == []
    assert torch.equal(model(*args), plain)
    with pytest.raises(ValueError, match=r"model: expected one that torch.export can capture; for PreNorm"):
        octavo.fuse_(octavo.fuse_(model, args), (args[0], args[1][..., :3]))
    assert torch.equal(model(*args), fused)  # as before the error


def test_errors():
    model, x = block(), torch.randn(2, 3, 32)
    for call in (lambda m: octavo.fuse_(m, x), octavo.nn.fusions, octavo.nn.unfuse_):
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
            call(3)
    with pytest.raises(TypeError, match="example: expected a tensor, a tuple or a dict"):
        octavo.fuse_(model, [x])
    with pytest.raises(ValueError, match="model: expected one in eval mode"):
        octavo.fuse_(model.train(), (x, x))
    model.eval().forward = lambda *args: None
    with pytest.raises(ValueError, match="forward"):
        octavo.fuse_(model, (x, x))
    data_dependent = int8(Applied(lambda layers, x: layers[0](x if x.sum() > 0 else -x), nn.Linear(32, 8)))
    with pytest.raises(ValueError, match="can capture; for Applied"):
        octavo.fuse_(data_dependent, x)


# ---- torch.compile ----


def test_the_backend(caplog):
    torch._dynamo.reset()
    model, args = block(), tuple(torch.randn(2, 4, 3, 32))
    fused = octavo.fuse_(copy.deepcopy(model), args)
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    with caplog.at_level(logging.INFO, "octavo"):
        y = compiled(*args)
    torch.testing.assert_close(y, fused(*args), rtol=1e-6, atol=1e-6)  # inductor's own arithmetic
    told = [record.args[:2] for record in caplog.records if record.name == "octavo"]
    assert list(dict.fromkeys(told)) == [
        ("activation", "gate"),
        ("norm", "norm, gate, up"),
    ]  # dynamo may restart
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(*torch.randn(2, 7, 5, 32))


def test_the_backend_leaves_graphs_with_gradients_alone(caplog, monkeypatch):
    torch._dynamo.reset()
    model, args = block(), tuple(torch.randn(2, 4, 3, 32))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda module, inputs, **_: module.forward)
    compiled = torch.compile(model, backend=backend)
    with caplog.at_level(logging.INFO, "octavo"), torch.enable_grad():
        y = compiled(*args)
        assert torch.autograd.grad(y.sum(), model.norm.weight)[0].any()
    assert not [record for record in caplog.records if record.name == "octavo"]


def test_the_backend_says_that_a_compiler_is_missing(monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(*_, **__):
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    with pytest.raises(RuntimeError, match=r"expected a C\+\+ compiler"):
        backend(torch.fx.symbolic_trace(nn.ReLU()), [])


# ---- transformers ----


def tokens(batch, length, **more):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(1, 60, (batch, length)), "attention_mask": mask, **more}


def compare(model, kinds, other=(1, 9)):
    fused = octavo.fuse_(copy.deepcopy(model), tokens(2, 11))
    assert [each.kind for each in octavo.nn.fusions(fused)] == kinds
    calls = count_graph_calls(fused)
    for i, shape in enumerate([(2, 11), (3, 7), other]):
        inputs = tokens(*shape)
        found, wanted = fused(**inputs), model(**inputs)
        assert type(found) is type(wanted)
        assert calls == [i + 1]
        torch.testing.assert_close(found[0], wanted[0], rtol=0.1, atol=0.1)


def test_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    compare(int8(transformers.BertModel(config)), ["activation"] * 2 + ["norm"] * 4 + ["mask"])


def test_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    model = int8(transformers.LlamaForCausalLM(config))
    compare(model, ["activation"] * 2 + ["norm"] * 5 + ["mask"], other=(4, 9))
