"""prune_model_, and what training does to pruned models, by whichever way they were pruned."""

from __future__ import annotations

import copy
import io

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

from octavo.nn import (  # noqa: E402
    L1SemiStructured,
    L1Unstructured,
    PruningMask,
    prune_model_,
    quantize_,
)

inductor = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _own_graphs():
    """torch counts the graphs of all modules against one limit: these must not use up that of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model():
    return nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 24, bias=False), nn.LayerNorm(24)).eval()


def pair():
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


# ---- training ----

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def train(m, optimizer, steps=40):
    """The losses of a regression that m can learn."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 16, generator=generator)
    y = torch.tanh(x @ torch.randn(16, 4, generator=generator))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(m(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def with_methods(m):
    L1Unstructured.apply(m[0], "weight", amount=0.5)
    L1SemiStructured.apply(m[2], "weight", "2:4")
    L1Unstructured.apply(m[2], "weight", amount=10)
    return m


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_pruned_by_the_methods_trains_and_stays_pruned(name):
    m = pair()
    optimizer = OPTIMIZERS[name](m.parameters())
    train(m, optimizer, 3)  # momentum, before there are masks
    with_methods(m)
    before = [m[i].weight.detach().clone() for i in (0, 2)]
    losses = train(m, optimizer)
    assert losses[-1] < 0.8 * losses[0]
    for i, old in zip((0, 2), before, strict=True):
        assert not m[i].weight_orig.grad[old == 0].any(), "the gradient is masked"
        assert m[i].weight_orig.grad[old != 0].any()
        m(torch.zeros(1, 16))  # torch computes the masked weight when the module is called
        assert not m[i].weight[old == 0].any()
        assert not torch.equal(m[i].weight, old)
        expected = m[i].weight.detach().clone()
        prune.remove(m[i], "weight")
        assert isinstance(m[i].weight, nn.Parameter)
        assert torch.equal(m[i].weight, expected)
        assert not m[i].weight[old == 0].any()
    assert not prune.is_pruned(m)
    x = torch.randn(5, 16)
    expected = m(x).detach()
    octavo.quantize_(m)
    assert not m[0].weight[before[0] == 0].any()
    assert torch.nn.functional.cosine_similarity(m(x), expected).min() > 0.99


@pytest.mark.usefixtures("_own_graphs")
def test_a_pruned_model_compiles_and_exports():
    x = torch.randn(3, 16)
    for m in (with_methods(pair()), prune_model_(pair(), sparsity=0.5, keep_masks=True)):
        expected = m(x)
        assert torch.equal(torch.compile(m, fullgraph=True, backend="aot_eager")(x), expected)
    with torch.no_grad():
        program = torch.export.export(m, (x,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(x), expected)


@inductor
@pytest.mark.usefixtures("_own_graphs")
def test_a_pruned_model_trains_compiled():
    m = prune_model_(pair(), sparsity=0.5, keep_masks=True)
    zero = m[0].weight == 0
    compiled = torch.compile(m, fullgraph=True, backend="inductor")
    losses = train(compiled, torch.optim.Adam(m.parameters(), 0.01), 20)
    assert losses[-1] < losses[0]
    assert not m[0].weight[zero].any()


def test_octavo_prune_masks_gradients_and_selects_anew_as_a_parametrization():
    w = torch.randn(8, 16, requires_grad=True)
    grad = torch.randn(8, 16)
    octavo.prune(w, sparsity=0.5).backward(grad)
    assert torch.equal(w.grad, octavo.prune(w.detach(), sparsity=0.5).bool() * grad)

    class Half(nn.Module):
        def forward(self, weight):
            return octavo.prune(weight, sparsity=0.5)

    m = pair()
    parametrize.register_parametrization(m[0], "weight", Half())
    losses = train(m, OPTIMIZERS["adam"](m.parameters()))
    assert losses[-1] < 0.8 * losses[0]
    assert m[0].weight.count_nonzero() == 256


# ---- prune_model_ ----


def linears(m):
    return [child.weight.detach().clone() for child in m.modules() if isinstance(child, nn.Linear)]


def test_prune_model_selects_over_all_weights_or_in_each():
    m = model()
    before = linears(m)
    norm = m[3].weight.detach().clone()
    assert prune_model_(m, sparsity=0.5) is m
    for after, expected in zip(linears(m), octavo.prune(before, sparsity=0.5), strict=True):
        assert torch.equal(after, expected)
    assert torch.equal(m[3].weight, norm)

    m = model()
    before = linears(m)
    prune_model_(m, sparsity=0.5, scope="layer")
    for after, expected in zip(linears(m), before, strict=True):
        assert torch.equal(after, octavo.prune(expected, sparsity=0.5))


@pytest.mark.parametrize("select", [{"pattern": "2:4"}, {"threshold": 0.1}, {"ratio": 0.5}])
def test_prune_model_passes_the_selection_on(select):
    m = model()
    before = linears(m)
    prune_model_(m, **select)
    for after, expected in zip(linears(m), octavo.prune(before, **select), strict=True):
        assert torch.equal(after, expected)


def test_prune_model_filters_and_prunes_shared_weights_once():
    m = nn.ModuleDict(
        {
            "conv": nn.Conv1d(4, 8, 3),
            "a": nn.Linear(40, 24),
            "b": nn.Linear(40, 24),
            "embedding": nn.Embedding(5, 4),
        }
    )
    m["b"].weight = m["a"].weight
    prune_model_(m, sparsity=0.5, scope="layer", filter_fn=lambda module, fqn: fqn != "embedding")
    assert m["conv"].weight.count_nonzero() == 48
    assert m["a"].weight.count_nonzero() == 480
    assert m["embedding"].weight.count_nonzero() == 20
    assert m["a"].weight.requires_grad


def test_errors_of_prune_model():
    with pytest.raises(ValueError, match="scope: expected 'global' or 'layer', got 'all'"):
        prune_model_(model(), sparsity=0.5, scope="all")
    with pytest.raises(ValueError, match="model: expected at least one module with a float weight"):
        prune_model_(quantize_(nn.Sequential(nn.Linear(40, 24))), sparsity=0.5)
    with pytest.raises(ValueError, match="exactly one of threshold, ratio and sparsity"):
        prune_model_(model())
    with pytest.raises(ValueError, match=r"pattern: expected .* got 24"):
        prune_model_(model(), pattern=24)


def test_pruned_then_quantized_weights_stay_zero():
    m = prune_model_(model(), sparsity=0.7)
    zero = m[0].weight == 0
    quantize_(m)
    assert not m[0].weight[zero].any()


def test_scope_global_takes_dtypes_together():
    m = nn.ModuleList([nn.Linear(8, 8).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)])
    with torch.no_grad():
        for i, child in enumerate(m):
            child.weight.fill_(i + 1)
    prune_model_(m, sparsity=0.5)
    assert [int(child.weight.count_nonzero()) for child in m] == [0, 32, 64]


def test_scope_global_wants_one_device():
    m = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta"))
    before = m[0].weight.detach().clone()
    expected = "layer '1': weight: expected device cpu like layer '0' with scope='global', got meta"
    with pytest.raises(TypeError, match=expected):
        prune_model_(m, sparsity=0.5)
    assert torch.equal(m[0].weight, before)
    prune_model_(m, sparsity=0.5, scope="layer")
    assert m[0].weight.count_nonzero() == 32


@pytest.mark.parametrize("keep_masks", [False, True])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(
    ("select", "match"),
    [
        (
            {"pattern": "2:4"},
            "layer '2': weight: expected a last axis divisible by 4 .*; filter_fn can",
        ),
        (
            {"pattern": "block4x16", "sparsity": 0.5},
            "layer '2': weight: expected a 2-D view of whole 4 x 16 blocks .* got 3 x 6",
        ),
    ],
)
def test_a_layer_that_does_not_fit_leaves_the_model_as_it_was(select, match, scope, keep_masks):
    m = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(6, 3), nn.Linear(32, 4))
    before = copy.deepcopy(m)
    with pytest.raises(ValueError, match=match):
        prune_model_(m, **select, scope=scope, keep_masks=keep_masks)
    assert list(m.state_dict()) == list(before.state_dict())
    for key, value in m.state_dict().items():
        assert torch.equal(value, before.state_dict()[key])
    prune_model_(m, **select, scope=scope, keep_masks=keep_masks, filter_fn=lambda _, fqn: fqn != "2")
    assert m[0].weight.count_nonzero() == m[0].weight.numel() / 2 or scope == "global"
    assert torch.equal(m[2].weight, before[2].weight)


def test_an_unknown_dtype_leaves_the_model_as_it_was():
    m = pair()
    m[2].weight = nn.Parameter(m[2].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    before = m[0].weight.detach().clone()
    for scope in ("global", "layer"):
        with pytest.raises(TypeError, match=r"layer '2': weight: expected dtype float32.*float8_e4m3fn"):
            prune_model_(m, sparsity=0.5, scope=scope)
        assert torch.equal(m[0].weight, before)


def test_weights_that_others_compute_are_an_error():
    m = pair()
    L1Unstructured.apply(m[0], "weight", amount=0.1)
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    for each in (m, normed):
        with pytest.raises(ValueError, match=r"layer '0': weight: expected a parameter, .*filter_fn"):
            prune_model_(each, sparsity=0.5)
        prune_model_(each, sparsity=0.5, filter_fn=lambda _, fqn: fqn != "0")


def test_without_masks_training_brings_weights_back():
    m = prune_model_(pair(), sparsity=0.5)
    assert not parametrize.is_parametrized(m[0])
    zero = m[0].weight == 0
    train(m, OPTIMIZERS["adam"](m.parameters()), 2)
    assert m[0].weight[zero].any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kept_masks_hold_through_training(name):
    m = pair()
    parameters = list(m.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    train(m, optimizer, 3)
    prune_model_(m, sparsity=0.5, keep_masks=True)
    assert {id(p) for p in m.parameters()} == {id(p) for p in parameters}, "the optimizer holds on to them"
    before = [m[i].weight.detach().clone() for i in (0, 2)]
    assert sum(int((w == 0).sum()) for w in before) == 320
    losses = train(m, optimizer)
    assert losses[-1] < 0.8 * losses[0]
    for i, old in zip((0, 2), before, strict=True):
        assert not m[i].weight[old == 0].any(), "also right after a step, without another call"
        assert not m[i].parametrizations.weight.original.grad[old == 0].any()
        assert not torch.equal(m[i].weight, old)
    x = torch.randn(5, 16)
    expected = m(x).detach()
    quantized = quantize_(copy.deepcopy(m))
    assert torch.equal(quantized[0].weight_int8, octavo.quantize(m[0].weight.detach()).data)
    assert not quantized[0].weight[before[0] == 0].any()
    for i in (0, 2):
        parametrize.remove_parametrizations(m[i], "weight")
        assert isinstance(m[i].weight, nn.Parameter)
        assert not m[i].weight[before[i == 2] == 0].any()
    assert torch.equal(m(x), expected)
    assert {id(p) for p in m.parameters()} == {id(p) for p in parameters}


def test_kept_masks_are_saved_and_combine():
    m = prune_model_(pair(), sparsity=0.5, scope="layer", keep_masks=True)
    assert isinstance(m[0].parametrizations.weight[0], PruningMask)
    state = copy.deepcopy(m.state_dict())
    fresh = prune_model_(pair(), sparsity=0.0, keep_masks=True)
    fresh.load_state_dict(state)
    assert torch.equal(fresh[0].weight, m[0].weight)
    first = m[0].weight == 0
    train(m, OPTIMIZERS["adam"](m.parameters()), 5)
    prune_model_(m, sparsity=0.75, scope="layer")  # its masks are there: keep_masks or not
    second = m[0].weight == 0
    assert int(second.sum()) == 384
    assert second[first].all()
    assert len(m[0].parametrizations.weight) == 1
    train(m, OPTIMIZERS["adam"](m.parameters()), 5)
    assert not m[0].weight[second].any()
    m[0].weight = torch.ones(32, 16)  # an assignment is masked too
    assert torch.equal(m[0].weight == 0, second)


def test_kept_masks_reach_every_place_of_a_shared_weight():
    m = nn.ModuleDict({"embedding": nn.Embedding(12, 8), "head": nn.Linear(8, 12, bias=False)})
    m["embedding"].weight = m["head"].weight
    prune_model_(m, sparsity=0.5, keep_masks=True, filter_fn=lambda _, fqn: fqn == "head")
    zero = m["head"].weight == 0
    assert int(zero.sum()) == 48
    assert len(list(m.parameters())) == 1
    optimizer = torch.optim.SGD(m.parameters(), 0.5)
    m["head"](m["embedding"](torch.arange(12))).square().sum().backward()
    optimizer.step()
    for child in m.values():
        assert not child.weight[zero].any()
        assert torch.equal(child.weight, m["head"].weight)
    prune_model_(m, sparsity=0.75, filter_fn=lambda _, fqn: fqn == "head")
    assert int((m["embedding"].weight == 0).sum()) == 72
    for child in m.values():
        parametrize.remove_parametrizations(child, "weight")
    assert m["embedding"].weight is m["head"].weight


def test_kept_masks_reach_attention_that_reads_its_weight():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    prune_model_(layer, sparsity=0.5, keep_masks=True)
    zero = layer.self_attn.out_proj.weight == 0
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.randn(2, 5, 16)).square().sum().backward()
    before = layer.self_attn.out_proj.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.self_attn.out_proj.weight, before)
    assert not layer.self_attn.out_proj.weight[zero].any()


# ---- what else holds a weight ----


class Held(nn.Module):
    """A weight under a name of its own, a parameter or a buffer."""

    def __init__(self, table):
        super().__init__()
        if isinstance(table, nn.Parameter):
            self.table = table
        else:
            self.register_buffer("table", table)


def as_embedding(weight):
    return nn.Embedding(*weight.shape, _weight=weight)


def with_weight(module, weight):
    module.weight = weight
    return module


TIES = {
    "embedding": lambda w: with_weight(as_embedding(w.detach()), w),
    "embedding with memory in common": lambda w: as_embedding(w.data),
    "masked embedding": lambda w: parametrize_(with_weight(as_embedding(w.detach()), w)),
    "bilinear": lambda w: with_weight(nn.Bilinear(1, 1, 1), w),
    "parameter of another name": Held,
    "buffer": lambda w: Held(w.detach()),
    "linear under another name": lambda w: with_table(nn.Linear(4, 4), w),
}


def parametrize_(module):
    parametrize.register_parametrization(module, "weight", PruningMask(torch.ones(24, 40, dtype=torch.bool)))
    return module


def with_table(module, weight):
    module.table = weight
    return module


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("keep_masks", [False, True])
@pytest.mark.parametrize("name", TIES)
def test_a_weight_that_something_else_holds_is_left_alone(name, keep_masks, first):
    head, body = nn.Linear(40, 24, bias=False), nn.Linear(16, 8)
    other = TIES[name](head.weight)
    each = {"other": other, "head": head} if first else {"head": head, "other": other}
    m = nn.ModuleDict({**each, "body": body})
    before = copy.deepcopy(m.state_dict())
    prune_model_(m, sparsity=0.5, keep_masks=keep_masks)
    assert body.weight.count_nonzero() < 128
    assert torch.equal(head.weight, before["head.weight"])
    only = nn.ModuleDict(each)
    if name != "linear under another name":
        with pytest.raises(ValueError, match=r"got none \(.*its weight is 'other\..* too, .*: 'head'"):
            prune_model_(only, sparsity=0.5, keep_masks=keep_masks)
        assert torch.equal(head.weight, before["head.weight"])
    prune_model_(only, sparsity=0.5, filter_fn=lambda module, fqn: module is head)
    assert head.weight.count_nonzero() == 480


def test_linears_that_share_a_weight_are_pruned_once():
    m = nn.Sequential(nn.Linear(40, 24), nn.Linear(40, 24))
    m[1].weight = m[0].weight
    prune_model_(m, sparsity=0.5, keep_masks=True)
    assert m[1].weight.count_nonzero() == 480
    prune_model_(m, sparsity=0.75)
    assert m[1].weight.count_nonzero() == 240


@pytest.mark.parametrize("keep_masks", [False, True])
@pytest.mark.parametrize(
    "select",
    [
        {"pattern": "2:4"},
        *({"pattern": p, "sparsity": 0.5} for p in ("block4x16", "row", "column", "unstructured")),
    ],
)
def test_transformers_conv1d_is_pruned_as_the_linear_that_it_is(select, keep_masks):
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer, linear = utils.Conv1D(24, 64), nn.Linear(64, 24)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(24, 64))
        layer.weight.copy_(linear.weight.t())
    m = prune_model_(nn.Sequential(layer), **select, keep_masks=keep_masks)
    prune_model_(linear, **select, keep_masks=keep_masks)
    assert 0 < linear.weight.count_nonzero() < linear.weight.numel()
    assert torch.equal(m[0].weight.t(), linear.weight)
    assert parametrize.is_parametrized(layer) == keep_masks
    if keep_masks:
        torch.optim.SGD(m.parameters(), 0.5).step(lambda: layer(torch.ones(2, 64)).sum().backward())
        assert torch.equal(layer.weight.t() == 0, linear.weight == 0)
        prune_model_(m, sparsity=0.9, keep_masks=True)
        assert not layer.weight.t()[linear.weight == 0].any()
    zero = layer.weight == 0
    assert not quantize_(m)[0].weight.t()[zero].any()


def test_why_there_is_nothing_to_prune():
    half = nn.Linear(4, 4)
    half.weight = nn.Parameter(half.weight.to(torch.int8), requires_grad=False)
    for m, match in (
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), "got none$"),
        (
            nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(5)]),
            r"got none \(Conv2d is pruned only where filter_fn accepts it: '0', '1', '2' and 2 more\)",
        ),
        (nn.Sequential(half), r"\(its weight is int8: '0'\)"),
        (nn.Sequential(nn.LazyLinear(4)), r"\(its weight is not initialized: run the model once: '0'\)"),
    ):
        with pytest.raises(ValueError, match=match):
            prune_model_(m, sparsity=0.5)
    with pytest.raises(ValueError, match=r"\(filter_fn left it out: '0', '2'\)"):
        prune_model_(pair(), sparsity=0.5, filter_fn=lambda *_: False)
