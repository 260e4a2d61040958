"""The transforms of torch.func, and dual tensors: what octavo computes under them is right, or refused.

Forward mode is refused wherever a tensor with a tangent comes: torch would drop the tangent, and say nothing.
"""

from __future__ import annotations

import contextlib
from functools import partial

import pytest

import octavo

torch = pytest.importorskip("torch")

import torch.autograd.forward_ad as fw  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

import test_opcheck  # noqa: E402
from octavo import Int8Dynamic, Int8Static, Int8WeightOnly  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),  # of torch.func.jvp itself
]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def refused(name):
    return pytest.raises(
        NotImplementedError, match=rf"octavo\.{name}: expected tensors without a tangent, got one"
    )


# ---- operations in forward mode ----


def places(arguments):
    """Where the float tensors of a call are: (index, None), or (index, index in a list)."""
    for i, each in enumerate(arguments):
        for j, x in enumerate(each) if isinstance(each, list) else ((None, each),):
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel():
                yield i, j


def called(op, arguments, keywords, place, x):
    """The call with x, or what becomes of its copy, in this place."""
    (i, j), new = place, list(arguments)
    new[i] = x.clone() if j is None else [*new[i][:j], x.clone(), *new[i][j + 1 :]]
    return op(*new, **keywords)


def at(arguments, place):
    i, j = place
    return (arguments[i] if j is None else arguments[i][j]).detach().clone()


@pytest.mark.parametrize("name", test_opcheck.OPS)
def test_every_operation_refuses_every_tangent(name):
    op, count = getattr(torch.ops.octavo, name), 0
    for arguments, keywords in test_opcheck.calls(name):
        for place in places(arguments):
            call = partial(called, op, arguments, keywords, place)
            x, count = at(arguments, place), count + 1
            with refused(name):
                jvp(call, (x,), (torch.ones_like(x),))
            with fw.dual_level(), refused(name):
                call(fw.make_dual(x, torch.ones_like(x)))
    integers = {"int_mm", "pack_mask", "pack_weight", "unpack_conv_weight", "unpack_mask", "unpack_weight"}
    assert bool(count) != (name in integers)


@pytest.mark.parametrize("name", sorted(test_opcheck.OPS.keys() - {"prune_"}))
def test_without_a_tangent_operations_run_beside_one(name):
    op = getattr(torch.ops.octavo, name)
    for arguments, keywords in test_opcheck.calls(name):
        with torch.no_grad():
            expected = op(*arguments, **keywords)
        found = []

        def beside(t, arguments=arguments, keywords=keywords, found=found):
            found.append(op(*arguments, **keywords))
            return t * 2

        _, tangent = jvp(beside, (torch.ones(3),), (torch.ones(3),))
        with fw.dual_level():
            beside(fw.make_dual(torch.ones(3), torch.ones(3)))
        assert torch.equal(tangent, torch.full((3,), 2.0))
        for each in found:
            torch.testing.assert_close(each, expected, rtol=0, atol=0, equal_nan=True)


def functions():
    """Every function of octavo that takes a float tensor, eager: (what refuses, the function of it)."""
    w, packed = torch.randn(12, 16), octavo.pack_weight(torch.randn(12, 16))
    conv, image = octavo.pack_conv_weight(torch.randn(4, 3, 2, 2)), torch.randn(1, 3, 5, 5)
    data, scale, _ = octavo.quantize(w)
    yield "quantize", octavo.quantize, w
    yield "quantize", lambda s: octavo.quantize(w, granularity="tensor", scale=s), torch.tensor(0.1)
    yield "dequantize", lambda s: octavo.dequantize(data, s), scale
    yield "norm_quantize", octavo.rms_norm_quantize, w
    yield "norm_quantize", lambda g: octavo.layer_norm_quantize(w, g), torch.randn(16)
    yield "norm_quantize", lambda r: octavo.rms_norm_quantize(w, residual=r), w
    yield "int8_linear", lambda x: octavo.int8_linear(x, packed), w
    yield "int8_linear", lambda b: octavo.int8_linear(w, packed, b), torch.randn(12)
    yield "pack_weight", lambda v: octavo.int8_linear(w, v), w
    yield "int8_linears", lambda x: octavo.int8_linear(x, [packed, packed]), w
    yield "int8_linears", lambda b: octavo.int8_linear(w, [packed, packed], [None, b]), torch.randn(12)
    yield "weight_only_linear", lambda x: octavo.weight_only_linear(x, packed), w
    yield "weight_only_linear", lambda s: octavo.weight_only_linear(w, packed, weight_scale=s), scale
    yield "scaled_int_mm", lambda s: octavo.scaled_int_mm(data, s, packed), scale
    yield "int8_conv2d", lambda x: octavo.int8_conv2d(x, conv), image
    yield "pack_weight", octavo.pack_weight, w
    yield "pack_weight", lambda s: octavo.pack_weight(data, s), scale
    yield "PackedWeight", lambda s: octavo.PackedWeight.from_buffer(packed.buffer, s), scale
    yield "pack_conv_weight", octavo.pack_conv_weight, torch.randn(4, 3, 2, 2)
    yield "int8_embedding", lambda s: octavo.int8_embedding(torch.arange(3), data, s), scale
    yield "prune_mask", lambda v: octavo.prune_mask(v, sparsity=0.5), w
    yield "prune_masks", lambda v: octavo.prune_mask([w, v], sparsity=0.5), w
    yield "prune", lambda v: octavo.prune(v, sparsity=0.5), w
    yield "prune_masks", lambda v: octavo.prune([v, w], sparsity=0.5), w
    yield "prune_", lambda v: octavo.prune_(v.clone(), sparsity=0.5), w
    yield "prune_quantize", lambda v: octavo.prune_quantize(v, sparsity=0.5), w
    yield "magnitude_threshold", lambda v: octavo.magnitude_threshold(v, 0.5), w


@pytest.mark.parametrize("i", range(len(list(functions()))))
def test_every_function_refuses_tangents(i):
    name, function, x = list(functions())[i]
    with refused(name):
        jvp(function, (x,), (torch.ones_like(x),))
    with fw.dual_level(), refused(name):
        function(fw.make_dual(x, torch.ones_like(x)))
    with fw.dual_level():
        function(x)  # and the level is over for the next
    function(x)


# ---- layers ----


def attend(weights):
    return lambda layer: lambda x: layer(x, x, x, need_weights=weights)[0]


def made(layer, config=Int8Dynamic()):  # noqa: B008
    return lambda: octavo.quantize_(nn.Sequential(layer()), config)[0].eval()


def linear():
    return nn.Linear(6, 4)


LAYERS = {
    "dynamic": (made(linear), (3, 6)),
    "asymmetric": (made(linear, Int8Dynamic(symmetric=False)), (3, 6)),
    "activation": (lambda: octavo.nn.Int8Linear.from_float(nn.Linear(6, 4), activation="gelu"), (3, 6)),
    "weights": (made(linear, Int8WeightOnly()), (3, 6)),
    "groups": (made(lambda: nn.Linear(8, 4), Int8WeightOnly(4)), (3, 8)),
    "conv": (made(lambda: nn.Conv2d(2, 3, 2, padding=1, groups=1)), (2, 2, 3, 3)),
    "attention": (
        lambda: attend(False)(made(lambda: nn.MultiheadAttention(4, 2, batch_first=True))()),
        (1, 3, 4),
    ),
    "attention and weights": (
        lambda: attend(True)(made(lambda: nn.MultiheadAttention(4, 2, batch_first=True))()),
        (1, 3, 4),
    ),
    "fused weight": (lambda: (lambda layer: lambda x: x @ layer.weight.T)(made(linear)()), (3, 6)),
}
STATIC = (made(linear, Int8Static([torch.linspace(-2, 2, 6)])), (3, 6))
TABLES = {
    "embedding": made(lambda: nn.Embedding(9, 4)),
    "bag": made(lambda: nn.EmbeddingBag(9, 4)),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).square().sum(), x)[0]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_vmap_is_a_loop(layer):
    f, x = layer
    batch = torch.stack([x, x.flip(0) * 2, x + 1])
    expected = torch.stack([f(each) for each in batch])
    close(vmap(f)(batch), expected)
    close(vmap(f, in_dims=1, out_dims=1)(batch.transpose(0, 1)), expected.transpose(0, 1))
    close(
        vmap(grad(lambda x: f(x).square().sum()))(batch), torch.stack([gradient(f, each) for each in batch])
    )


def test_reverse_mode_is_that_of_autograd(layer):
    f, x = layer
    close(grad(lambda x: f(x).square().sum())(x), gradient(f, x))
    y, back = vjp(f, x)
    close(back(2 * y)[0], gradient(f, x))
    close(jacrev(f)(x), torch.autograd.functional.jacobian(f, x))
    with sdpa_kernel(SDPBackend.MATH):  # the others of torch have no second derivatives
        check_second_derivatives(f, x)


def check_second_derivatives(f, x):
    twice = torch.autograd.functional.hessian(lambda x: f(x).square().sum(), x)
    assert twice.any()
    close(jacrev(jacrev(lambda x: f(x).square().sum()))(x), twice)


def test_forward_mode_is_refused(layer):
    f, x = layer
    for transformed in (jacfwd(f), hessian(lambda x: f(x).square().sum()), lambda x: jvp(f, (x,), (x,))):
        with refused("[a-z0-9_]*"):
            transformed(x)
    with refused("[a-z0-9_]*"):
        jvp(grad(lambda x: f(x).square().sum()), (x,), (x,))
    with refused("[a-z0-9_]*"):
        grad(lambda y: jvp(f, (y,), (x,))[1].sum())(x)
    with fw.dual_level(), refused("[a-z0-9_]*"):
        f(fw.make_dual(x, x))


def test_a_function_whose_part_in_octavo_has_no_tangent(layer):
    f, x = layer
    fixed = f(x).detach()
    value, tangent = jvp(lambda t: t * f(x), (torch.tensor(3.0),), (torch.tensor(2.0),))
    close(value, 3 * fixed)
    close(tangent, 2 * fixed)
    close(jacfwd(lambda t: t * f(x))(torch.tensor(3.0)), fixed)
    close(jvp(lambda x: f(x.detach()) + x.sum(), (x,), (x,))[1], torch.full_like(fixed, float(x.sum())))
    with fw.dual_level():
        t = fw.make_dual(torch.tensor(3.0), torch.tensor(2.0))
        close(fw.unpack_dual(t * f(x)).tangent, 2 * fixed)


def test_a_static_layer_gives_its_input_no_gradient():
    make, shape = STATIC
    f, x = make(), torch.randn(shape)
    close(vmap(f)(torch.stack([x, 2 * x])), torch.stack([f(x), f(2 * x)]))
    assert not grad(lambda x: f(x).sum())(x).any()
    with refused("quantize"):
        jvp(f, (x,), (x,))


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    layer, indices = TABLES[name](), torch.randint(0, 9, (5, 3, 2))
    assert torch.equal(vmap(layer)(indices), torch.stack([layer(each) for each in indices]))
    fixed = layer(indices[0])
    close(jvp(lambda t: t * layer(indices[0]), (torch.tensor(3.0),), (torch.tensor(2.0),))[1], 2 * fixed)


@pytest.mark.parametrize("make", [linear, lambda: nn.Conv2d(2, 3, 2)])
def test_layers_that_train(make):
    layer = octavo.prepare_qat_(nn.Sequential(make()))[0]
    x = torch.randn((3, 6) if isinstance(layer, nn.Linear) else (2, 2, 3, 3))
    close(vmap(layer)(torch.stack([x, 2 * x])), torch.stack([layer(x), layer(2 * x)]))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def call(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))

    close(call(parameters, x), layer(x))
    for transform in (grad(lambda p: call(p, x).sum()), jacrev(lambda p: call(p, x))):
        with pytest.raises(RuntimeError, match=r"has no second derivatives; torch\.autograd\.grad"):
            transform(parameters)
    with refused("fake_quantized_.*"):
        jvp(call, (parameters, x), (parameters, x))


def test_a_fused_model_refuses_tangents_and_takes_vmap():
    model = octavo.quantize_(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval())
    x = torch.randn(3, 6)
    expected = model(x)
    octavo.fuse_(model, x)
    assert torch.equal(vmap(model)(x.unsqueeze(0)), expected.unsqueeze(0))
    with refused("int8_linear"):
        jvp(model, (x,), (x,))
    with fw.dual_level():
        with refused("int8_linear"):
            model(fw.make_dual(x, x))
        assert torch.equal(model(x), expected)


def test_masks_have_their_tangent():
    """PruningMask is torch's own where: right in forward mode too."""
    layer = octavo.prune_model_(nn.Sequential(nn.Linear(8, 4)), sparsity=0.5, keep_masks=True)[0]
    x, v = torch.randn(2, 8), torch.randn(2, 8)
    close(jvp(layer, (x,), (v,))[1], v @ layer.weight.T)


def test_a_level_that_ended_leaves_nothing_behind():
    with contextlib.suppress(ZeroDivisionError), fw.dual_level():
        raise ZeroDivisionError
    layer, x = made(linear)(), torch.randn(3, 6)
    assert not octavo.runtime.arrays.needs_dispatcher(x)
    assert torch.isfinite(layer(x)).all()
