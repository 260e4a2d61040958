"""What fuse_ and the backend "octavo" fuse, what must not be fused, and the bits."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
import octavo.nn  # noqa: E402
from fusing import (  # noqa: E402
    NORMS,
    Applied,
    PreNorm,
    WrittenRMSNorm,
    count_graph_calls,
    int8,
    linear,
    normalize,
    product,
)
from octavo.nn.fuse import patterns as fusion_patterns  # noqa: E402
from octavo.nn.fuse import run as fusion_run  # noqa: E402

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

    def __init__(self, count, between=lambda mask: None):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(32, 32) for _ in range(3)) for _ in range(count))
        self.between = between

    def forward(self, x, mask):
        x, mask = (x * 2).add_(1), mask[:, None]
        for layers in self.layers:
            q, k, v = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in layers)
            x = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
            self.between(mask)
        return x


@torch.library.custom_op("octavo_tests::flip", mutates_args=("mask",))
def flip(mask: torch.Tensor) -> None:
    mask.logical_not_()


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


CHANGES = {
    "method": lambda mask: mask.logical_not_(),
    "special method": lambda mask: mask.__ixor__(True),
    "custom operator": lambda mask: torch.ops.octavo_tests.flip(mask),
}


@pytest.mark.parametrize("name", CHANGES)
def test_masks_that_change_in_between(name):
    model, x, mask = int8(Attending(2, CHANGES[name])), torch.randn(2, 5, 32), torch.rand(2, 5, 5) > 0.4
    expected, found = model(x, mask.clone()), []
    torch._dynamo.reset()
    result = rewritten_by_dynamo(model, found)(x, mask.clone())
    assert [each.kind for each in found] == ["shared input"] * 2
    assert torch.equal(result, expected)


# ---- what must stay ----


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
