"""torch.set_default_dtype and set_default_device change nothing of what octavo computes and stores."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import test_opcheck  # noqa: E402
from octavo import Int8Dynamic, Int8Static, Int8WeightOnly  # noqa: E402
from octavo.nn import (  # noqa: E402
    Int8Conv2d,
    Int8Embedding,
    Int8EmbeddingBag,
    Int8Linear,
    Int8MultiheadAttention,
    Int8StaticLinear,
    Int8WeightOnlyLinear,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float64)
FACTORIES = {"empty", "full", "linspace", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"}


@contextlib.contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())


def test_every_new_tensor_says_its_dtype_and_device():
    lacking = []
    for path in Path(octavo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, keywords = node.func.value, {keyword.arg for keyword in node.keywords}
            if not isinstance(owner, ast.Name) or owner.id != "torch":
                continue
            wanted = {"dtype", "device"} if node.func.attr in FACTORIES else set()
            wanted = {"device"} if node.func.attr == "arange" else wanted  # of integers: int64
            lacking += [f"{path.name}:{node.lineno} {each}" for each in wanted - keywords]
    assert not lacking


# ---- operations ----


def flat(found):
    return [each for each in (found if isinstance(found, (tuple, list)) else [found]) if each is not None]


def results(name):
    """What the calls of test_opcheck return, and their gradients."""
    for arguments, keywords in test_opcheck.calls(name):
        tensors = [
            each
            for a in arguments
            for each in (a if isinstance(a, list) else [a])
            if isinstance(each, torch.Tensor)
        ]
        wanting = [each for each in tensors if each.requires_grad]
        found = flat(getattr(torch.ops.octavo, name)(*arguments, **keywords))
        yield found
        sums = [each.sum(dtype=torch.float32) for each in found if each.requires_grad]
        if sums:
            yield flat(torch.autograd.grad(sum(sums), wanting, allow_unused=True))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", test_opcheck.OPS)
def test_operations_compute_the_same(name, backend, monkeypatch):
    floats, rand = torch.randn, torch.rand  # test_opcheck's own samples take the default
    monkeypatch.setattr(torch, "randn", lambda *a, **k: floats(*a, dtype=torch.float32, **k))
    monkeypatch.setattr(torch, "rand", lambda *a, **k: rand(*a, dtype=torch.float32, **k))
    with octavo.use_backend(backend):
        expected = list(results(name))
        for dtype in DTYPES:
            with default(dtype):
                for a, b in zip(results(name), expected, strict=True):
                    same(a, b)


# ---- layers ----

MODELS = {
    "dynamic": (lambda: nn.Linear(16, 12), Int8Dynamic(), (3, 16)),
    "asymmetric": (lambda: nn.Linear(16, 12), Int8Dynamic(symmetric=False), (3, 16)),
    "weights": (lambda: nn.Linear(16, 12), Int8WeightOnly(), (3, 16)),
    "groups": (lambda: nn.Linear(16, 12), Int8WeightOnly(8), (3, 16)),
    "static": (
        lambda: nn.Linear(16, 12),
        Int8Static([torch.linspace(-1, 2, 16, dtype=torch.float32)]),
        (3, 16),
    ),
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), Int8Dynamic(), (2, 4, 5, 5)),
    "embedding": (lambda: nn.Embedding(9, 12), Int8Dynamic(), 9),
    "bag": (lambda: nn.EmbeddingBag(9, 12, mode="mean"), Int8Dynamic(), 9),
    "attention": (lambda: nn.MultiheadAttention(16, 2, batch_first=True), Int8Dynamic(), (2, 5, 16)),
}


def run(model, x):
    layer = model[0]
    if isinstance(layer, Int8MultiheadAttention):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return layer(x, x, x, attn_mask=mask)
    return (layer(x),)


def trip(name, directory):
    """Everything that a model goes through, as tensors."""
    make, config, shape = MODELS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make()).to(torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float32))
    if isinstance(shape, int):
        x = torch.arange(shape).reshape(3, -1)
    else:
        x = torch.randn(shape, generator=generator, dtype=torch.float32)
    found = []
    if isinstance(model[0], (nn.Linear, nn.Conv2d)) and isinstance(config, Int8Dynamic):
        trained = octavo.prepare_qat_(nn.Sequential(make()).to(torch.float32), config)
        trained.load_state_dict(model.state_dict())
        y = trained(x.requires_grad_())
        y.square().sum().backward()
        found += [y, *(p.grad for p in trained.parameters()), x.grad]
        x = x.detach()
    octavo.quantize_(model, config)
    found += run(model, x)
    state = model.state_dict()
    octavo.save(model, directory)
    loaded = octavo.load(lambda: nn.Sequential(make()).to(torch.float32), directory)
    other = octavo.quantize_(nn.Sequential(make()).to(torch.float32), config)
    other.load_state_dict(state)
    for each in (loaded, other):
        found += [*each.state_dict().values(), *run(each, x)]
    if not isinstance(shape, int) and name != "static":
        y = run(model, x.requires_grad_())[0]
        found += torch.autograd.grad(y.square().sum(), x)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_models_go_their_way_the_same(name, tmp_path):
    pytest.importorskip("safetensors")
    expected = trip(name, tmp_path)
    for dtype in DTYPES:
        with default(dtype):
            same(trip(name, tmp_path), expected)


@pytest.mark.parametrize("keep_masks", [False, True])
def test_pruning_is_the_same(keep_masks):
    def pruned():
        linear = nn.Linear(16, 12).to(torch.float32)
        with torch.no_grad():
            linear.weight.copy_(torch.arange(192).reshape(12, 16) % 37)
        octavo.prune_model_(nn.Sequential(linear), sparsity=0.5, keep_masks=keep_masks)
        return [linear.weight, *octavo.quantize_(linear).state_dict().values()]

    expected = [each for each in pruned() if each.shape != (12,)]
    for dtype in DTYPES:
        with default(dtype):
            same([each for each in pruned() if each.shape != (12,)], expected)


# ---- constructors ----

CONSTRUCTORS = {
    Int8Conv2d: lambda **d: Int8Conv2d(4, 8, 3, **d),
    Int8Embedding: lambda **d: Int8Embedding(9, 12, **d),
    Int8EmbeddingBag: lambda **d: Int8EmbeddingBag(9, 12, **d),
    Int8Linear: lambda **d: Int8Linear(16, 12, **d),
    Int8MultiheadAttention: lambda **d: Int8MultiheadAttention(16, 2, **d),
    Int8StaticLinear: lambda **d: Int8StaticLinear(16, 12, **d),
    Int8WeightOnlyLinear: lambda **d: Int8WeightOnlyLinear(16, 12, group_size=8, **d),
}


def test_every_layer_is_here():
    from octavo.nn.layers import INT8_LAYERS

    assert set(CONSTRUCTORS) == set(INT8_LAYERS.values())


@pytest.mark.parametrize("kind", CONSTRUCTORS)
def test_constructors_take_the_default_for_what_is_float_as_torch_does(kind):
    expected = {name: each.dtype for name, each in CONSTRUCTORS[kind]().state_dict().items()}
    for dtype in (*DTYPES, torch.float32):
        with default(dtype):
            made = CONSTRUCTORS[kind]().state_dict()
        for name, each in made.items():
            is_float = name.rpartition(".")[2] in ("weight", "bias")
            assert each.dtype == (dtype if is_float else expected[name]), name
            assert each.device.type == "cpu"
        with default(dtype):
            named = CONSTRUCTORS[kind](dtype=torch.float32).state_dict()
        assert {name: each.dtype for name, each in named.items()} == expected


@pytest.mark.parametrize("kind", CONSTRUCTORS)
def test_constructors_take_the_default_device(kind):
    try:
        torch.set_default_device("meta")
        made, named = CONSTRUCTORS[kind](), CONSTRUCTORS[kind](device="cpu")
    finally:
        torch.set_default_device(None)
    assert all(each.is_meta for each in (*made.buffers(), *made.parameters()))
    assert not any(each.is_meta for each in (*named.buffers(), *named.parameters()))


def test_loading_and_quantizing_leave_the_default_device_alone(tmp_path):
    pytest.importorskip("safetensors")
    model = nn.Sequential(nn.Linear(64, 48), nn.Embedding(9, 12))
    with torch.no_grad():
        model[0].weight[torch.rand(48, 64) < 0.9] = 0  # stored sparse
    torch.manual_seed(0)
    x = torch.randn(3, 64)
    try:
        torch.set_default_device("meta")
        octavo.quantize_(model)
        octavo.save(model, tmp_path)
        octavo.explain(model)
        loaded = octavo.load(model, tmp_path)
    finally:
        torch.set_default_device(None)
    assert not any(each.is_meta for each in loaded.state_dict().values())
    assert torch.isfinite(loaded[0](x)).all()
