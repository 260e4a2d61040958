"""torch.ops.octavo: tracing, gradients, devices and errors. What is computed is tested elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

import octavo
from cuda_parity import packed_rows
from octavo.reference import numpy as reference
from strategies import FLOATS, assert_close_ulp, assert_same, cast, fill, to_numpy, to_torch

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

import octavo.torch_ops  # noqa: E402

op = torch.ops.octavo
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quiet_cuda = pytest.mark.filterwarnings("ignore:octavo. .* run on the torch reference:RuntimeWarning")


def floats(*shape, dtype="float32", flavour="normal", seed=0):
    x = fill(np.random.default_rng(seed), flavour, int(np.prod(shape))).reshape(shape)
    return to_torch(cast(x, dtype))


def ints(*shape, dtype=torch.int8, seed=0):
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)


# ---- tracing ----


def functional(x, w, packed):
    """Every function of the functional API that takes a tensor, once."""
    quantized = octavo.quantize(x, granularity="group", group_size=8, symmetric=False)
    pruned, mask = octavo.prune_quantize(w, sparsity=0.5)
    return (
        octavo.dequantize(*quantized, dtype="bfloat16"),
        octavo.quantize(x, scale=torch.ones(x.shape[:-1]), rounding="stochastic", seed=2**64 - 1).data,
        octavo.int_mm(quantized.data, w.t().to(torch.int8)),
        octavo.int_mm(quantized.data, packed),
        octavo.int8_linear(x, packed, activation="gelu"),
        *octavo.int8_linear(x, [packed, w], [None, w[:, 0]], activation=["relu", None]),
        octavo.scaled_int_mm(quantized.data, 0.5, packed, out_dtype="float16"),
        *octavo.prune_mask([w, x], threshold=0.3),
        octavo.prune(w, pattern="2:4"),
        pruned.data,
        mask,
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_functions_equal_eager_ones(backend):
    x, w = floats(6, 32), floats(9, 32, seed=1)
    packed = octavo.pack_weight(w)
    expected = functional(x, w, packed)
    compiled = torch.compile(functional, fullgraph=True, backend=backend)
    for actual, wanted in zip(compiled(x, w, packed), expected, strict=True):
        assert_same(actual, to_numpy(wanted))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # where that is not torch's default yet
def test_compiled_weights_are_packed_in_the_graph_in_the_layout_that_is_named():
    weight = torch.where(torch.rand(70, 90) < 0.2, torch.randn(70, 90), torch.tensor(0.0))
    x = torch.randn(5, 90)

    def pack_and_multiply(x, weight, layout):
        packed = octavo.pack_weight(weight, layout=layout)
        return octavo.int8_linear(x, packed), *packed.unpack()

    expected = pack_and_multiply(x, weight, "dense")
    for layout in ("auto", "bitmask", "block"):
        compiled = torch.compile(pack_and_multiply, fullgraph=True, backend="aot_eager")
        for actual, wanted in zip(compiled(x, weight, layout), expected, strict=True):
            assert torch.equal(actual, wanted), layout


def test_sparse_packed_tensors_are_those_of_the_reference():
    weight = ints(70, 130)
    weight[torch.rand(70, 130) < 0.8] = 0
    scale = torch.rand(70)
    x = floats(5, 130)
    with torch.no_grad():
        expected = octavo.int8_linear(x, octavo.pack_weight(weight, scale, layout="dense"))
        for layout in ("dense", "bitmask", "block"):
            for backend in ("native", "reference"):
                with octavo.use_backend(backend):
                    packed = octavo.pack_weight(weight, scale, layout=layout)
                    assert_same(packed.buffer, reference.pack_weight(weight.numpy(), layout), backend)
                    assert torch.equal(packed.unpack()[0], weight)
                    assert packed.density == int(weight.count_nonzero()) / weight.numel()
                    assert torch.equal(octavo.int8_linear(x, packed), expected)
                    assert torch.equal(op.int8_linear(x, packed.buffer, scale), expected)
            taken = octavo.PackedWeight.from_buffer(packed.buffer.clone(), scale)
            assert (taken.layout, taken.shape) == (layout, (70, 130))
            if layout != "dense":
                damaged = packed.buffer.clone()
                damaged[64 + 4 * 80 + 8] += 1  # the second offset
                with pytest.raises(ValueError, match=r"^buffer: expected .*got damaged offsets"):
                    octavo.PackedWeight.from_buffer(damaged)


def test_compiled_weights_are_packed_in_the_graph():
    def run(x, w):
        return octavo.int8_linear(x, w, out_dtype=torch.float32)

    x, w = floats(3, 16), floats(5, 16, seed=1)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w), run(x, w))


def test_a_new_batch_size_does_not_recompile():
    counter = CompileCounterWithBackend("aot_eager")

    def run(x):
        data, scale, _ = octavo.quantize(x)
        return octavo.int8_linear(octavo.dequantize(data, scale), packed)

    packed = octavo.pack_weight(floats(5, 16))
    compiled = torch.compile(run, fullgraph=True, backend=counter, dynamic=True)
    for batch in (4, 2, 7, 64):
        x = floats(batch, 16, seed=batch)
        assert torch.equal(compiled(x), run(x))
    assert counter.frame_count == 1


def test_out_is_filled_in_a_compiled_function():
    def run(x, out, outs):
        return octavo.int8_linear(x, packed, out=out), *octavo.int8_linear(x, [packed] * 2, out=outs)

    x, packed = floats(3, 16), octavo.pack_weight(floats(5, 16))
    out, *outs = (torch.empty(3, 5) for _ in range(3))
    results = torch.compile(run, fullgraph=True, backend="aot_eager")(x, out, outs)
    for result, filled in zip(results, (out, *outs), strict=True):
        assert torch.equal(filled, octavo.int8_linear(x, packed))
        assert torch.equal(result, filled)


def test_errors_while_tracing_name_the_argument():
    x, packed = floats(4, 16), octavo.pack_weight(floats(5, 16))
    cases = [
        (lambda: octavo.quantize(x, granularity="rows"), "granularity: expected 'row'"),
        (
            lambda: octavo.quantize(x, granularity="group", group_size=5),
            "group_size: expected a positive divisor",
        ),
        (lambda: octavo.prune_mask(x, pattern="3:5"), "last axis divisible by 5"),
        (lambda: octavo.prune_mask(x), "exactly one of threshold, ratio and sparsity"),
        (lambda: octavo.int_mm(x, x), "expected shapes"),
        (lambda: octavo.int8_linear(x, packed, activation="tanh"), "activation: expected"),
        (lambda: octavo.int8_linear(x, packed, x[0]), "bias: expected shape"),
        (lambda: octavo.int8_linear(x, [packed] * 2, [None]), "bias: expected one for each of 2 weights"),
        (lambda: octavo.int8_linear(x, [packed] * 2, activation="tanh"), "activation: expected"),
    ]
    for call, message in cases:
        with pytest.raises(Exception, match=message):
            torch.compile(call, fullgraph=True, backend="eager")()


def test_fake_tensors_on_any_device():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            x = torch.empty(2, 3, 64, dtype=torch.bfloat16, device=device)
            data, scale, zero_point = octavo.quantize(x, granularity="group", group_size=16, symmetric=False)
            assert (data.shape, scale.shape, zero_point.shape) == ((2, 3, 64), (2, 3, 4), (2, 3, 4))
            assert {data.device.type, scale.device.type, zero_point.device.type} == {device}
            x = torch.empty(2, 3, 65, dtype=torch.bfloat16, device=device)
            packed = op.pack_weight(torch.empty(70, 65, dtype=torch.int8, device=device))
            sums = {"cpu": 64 + 4 * 80, "cuda": 512 + 256}[
                device
            ]  # CUDA's begin their rows at 256 and leave 256
            assert packed.shape == (sums + 80 * 128,)
            scales = torch.empty(70, 1, device=device)
            y = op.int8_linear(x, packed, scales)
            assert (y.shape, y.dtype, y.device.type) == ((2, 3, 70), torch.bfloat16, device)


# ---- gradients ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_int8_linear_passes_gradients_straight_through(activation, dtype, packed):
    weight, scale = ints(9, 32), torch.rand(9, 1) * 0.01
    x = floats(2, 3, 32).to(dtype).requires_grad_()
    bias = floats(9, seed=1).to(dtype).requires_grad_()
    scale.requires_grad_()
    grad = floats(2, 3, 9, seed=2).to(dtype)
    y = op.int8_linear(x, op.pack_weight(weight) if packed else weight, scale, bias, activation=activation)
    y.backward(grad)

    pre = op.int8_linear(x.detach(), weight, scale.detach(), bias.detach(), out_dtype=torch.float32)
    pre.requires_grad_()
    functional = torch.nn.functional
    {
        None: lambda t: t.clone(),
        "relu": torch.relu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda t: functional.gelu(t, approximate="tanh"),
        "silu": functional.silu,
    }[activation](pre).backward(grad.float())
    weight = weight.float()
    expected = (pre.grad @ (weight * scale)).to(dtype)
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(bias.grad, pre.grad.sum((0, 1)).to(dtype))
    used = octavo.dequantize(*octavo.quantize(x.detach()))
    expected = (pre.grad * (used @ weight.t())).sum((0, 1)).unsqueeze(-1)
    torch.testing.assert_close(scale.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_of_a_scale_is_that_of_the_result(shared, symmetric):
    weight, scale, grad = ints(9, 32), torch.rand(9) + 0.1, floats(2, 9, seed=1).double()
    x = floats(2, 32)
    x[:, 3] = 90.0  # wide steps: what x is quantized to is far from x

    def loss(scale):
        if shared:
            (y,) = op.int8_linears(x, [weight], [scale], [torch.empty(0)], [""], symmetric=symmetric)
        else:
            y = op.int8_linear(x, weight, scale, symmetric=symmetric)
        return (y.double() * grad).sum()

    (found,) = torch.autograd.grad(loss(wanting := scale.clone().requires_grad_()), wanting)
    for i, step in enumerate(torch.diag(scale / 2)):  # the result is linear in the scale: no step is too wide
        slope = (loss(scale + step) - loss(scale - step)) / scale[i]
        torch.testing.assert_close(found[i].double(), slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_share_an_input_add_up_their_gradients(dtype):
    packed = [octavo.pack_weight(floats(n, 32, seed=n)) for n in (9, 5, 1)]
    arguments = {"activation": ["gelu", None, "relu"]}
    grads = [floats(2, 3, n, seed=n + 1).to(dtype) for n in (9, 5, 1)]

    def leaves():
        wanting = floats(2, 3, 32).to(dtype).requires_grad_()
        return wanting, [floats(9).to(dtype).requires_grad_(), None, floats(1).to(dtype).requires_grad_()]

    x, biases = leaves()
    apart = [
        octavo.int8_linear(x, w, b, activation=a)
        for w, b, a in zip(packed, biases, arguments["activation"], strict=True)
    ]
    torch.autograd.backward(apart, grads)

    def run(x, biases):
        return octavo.int8_linear(x, packed, biases, **arguments)

    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        own, own_biases = leaves()
        shared = call(own, own_biases)
        for actual, expected in zip(shared, apart, strict=True):
            assert torch.equal(actual, expected)
        torch.autograd.backward(shared, grads)
        loose = (
            {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
        )  # apart, each of three is rounded
        torch.testing.assert_close(own.grad, x.grad, **loose)
        assert torch.equal(own_biases[0].grad, biases[0].grad)
        assert torch.equal(own_biases[2].grad, biases[2].grad)
    own, _ = leaves()
    octavo.int8_linear(own, packed)[1].sum().backward()  # the others are not used
    x.grad = None
    octavo.int8_linear(x, packed[1]).sum().backward()
    torch.testing.assert_close(own.grad, x.grad)


def test_gradients_in_a_compiled_function():
    weight, scale = ints(9, 32), torch.rand(9)
    x = floats(4, 32).requires_grad_()

    def run(x):
        return op.int8_linear(x, weight, scale, activation="gelu").sum()

    run(x).backward()
    expected, x.grad = x.grad, None
    torch.compile(run, fullgraph=True, backend="aot_eager")(x).backward()
    assert torch.equal(x.grad, expected)


def test_fake_quantize_is_the_identity_to_gradients():
    x = floats(4, 32).requires_grad_()
    y = op.fake_quantize(x, "group", 8)
    assert torch.equal(y, octavo.dequantize(*octavo.quantize(x.detach(), granularity="group", group_size=8)))
    grad = floats(4, 32, seed=1)
    y.backward(grad)
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
def test_dequantize_has_the_gradient_of_its_scale(granularity):
    quantized = octavo.quantize(
        floats(4, 32),
        granularity=granularity,
        group_size=8 if granularity == "group" else None,
        symmetric=False,
    )
    scale = quantized.scale.requires_grad_()
    grad = floats(4, 32, seed=1)
    octavo.dequantize(quantized.data, scale, quantized.zero_point).backward(grad)
    ones = torch.ones_like(scale)
    steps = grad * octavo.dequantize(quantized.data, ones.detach(), quantized.zero_point)
    expected = {
        "row": lambda: steps.sum(-1),
        "tensor": lambda: steps.sum(),
        "group": lambda: steps.reshape(4, 4, 8).sum(-1),
    }[granularity]()
    torch.testing.assert_close(scale.grad, expected)


def test_pruned_weights_get_no_gradient_where_they_are_zero():
    w = floats(8, 16).requires_grad_()
    pruned = octavo.prune(w, sparsity=0.5)
    pruned.sum().backward()
    assert torch.equal(w.grad.bool(), octavo.prune_mask(w, sparsity=0.5))
    assert torch.equal(pruned, octavo.prune(w.detach(), sparsity=0.5))


def test_pruning_ops_are_the_functions():
    w = floats(8, 16)
    w[0] = 0  # kept by a negative threshold, with its gradient, though the result is 0 too
    mask = octavo.prune_mask(w, sparsity=0.25)
    assert_same(op.prune(w, sparsity=0.25), to_numpy(octavo.prune(w, sparsity=0.25)))
    changed = w.clone()
    before = changed._version
    assert torch.equal(op.prune_(changed, sparsity=0.25), mask)
    assert changed._version > before
    assert torch.equal(changed, octavo.prune(w, sparsity=0.25))
    assert op.magnitude_threshold([w, w], 0.5).item() == octavo.magnitude_threshold([w, w], 0.5)
    assert octavo.magnitude_threshold(w.clone().requires_grad_(), 0.5) == octavo.magnitude_threshold(w, 0.5)
    assert torch.equal(op.pack_mask(mask), octavo.pack_mask(mask))
    assert torch.equal(op.unpack_mask(op.pack_mask(mask), mask.shape), mask)
    for selection, gradient in (({"sparsity": 0.25}, mask), ({"threshold": -1.0}, torch.ones_like(mask))):
        wanting = w.clone().requires_grad_()
        op.prune(wanting, **selection).sum().backward()
        assert torch.equal(wanting.grad, gradient.to(w.dtype))


def test_what_has_no_gradient_says_so():
    x = floats(4, 16).requires_grad_()
    for result in (*octavo.quantize(x)[:2], octavo.prune_mask(x, sparsity=0.5)):
        assert not result.requires_grad
    (data, scale, _), mask = octavo.prune_quantize(x, sparsity=0.5)
    assert not any(t.requires_grad for t in (data, scale, mask))
    scale = torch.ones((), requires_grad=True)
    packed = octavo.pack_weight(floats(3, 16))
    assert not octavo.scaled_int_mm(data, scale, packed).requires_grad
    with pytest.raises(ValueError, match="out: expected None where a gradient is wanted"):
        octavo.int8_linear(x, packed, out=torch.empty(4, 3))
    with pytest.raises(ValueError, match=r"out\[0\]: expected None where a gradient is wanted"):
        octavo.int8_linear(x, [packed], out=[torch.empty(4, 3)])


# ---- what takes the way through the dispatcher ----


class Wrapped(torch.Tensor):
    """A subclass that does nothing of its own."""


@pytest.mark.parametrize("how", ["grad", "subclass", "mode"])
def test_the_dispatcher_gives_the_same_bits(how):
    x, w = floats(6, 32), floats(9, 32, seed=1)
    packed = octavo.pack_weight(w)
    expected = functional(x, w, packed)
    if how == "mode":
        from torch.utils._python_dispatch import TorchDispatchMode

        class Nothing(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        with Nothing():
            actual = functional(x, w, packed)
    else:
        x = x.requires_grad_() if how == "grad" else x.as_subclass(Wrapped)
        actual = functional(x, w, packed)
    for a, e in zip(actual, expected, strict=True):
        assert_same(a.as_subclass(torch.Tensor), to_numpy(e))


def test_out_through_the_dispatcher():
    x = floats(6, 32)
    tracked = x.clone().requires_grad_()
    expected = octavo.quantize(x, symmetric=False)
    out = octavo.Quantized(*(torch.empty_like(t) for t in expected))
    result = octavo.quantize(tracked, symmetric=False, out=out)
    for a, b, c in zip(result, out, expected, strict=True):
        assert a is b
        assert torch.equal(a, c)
    mask = torch.empty(6, 32, dtype=torch.bool)
    assert octavo.prune_mask(tracked, sparsity=0.5, out=mask) is mask
    assert torch.equal(mask, octavo.prune_mask(x, sparsity=0.5))
    (masks,) = octavo.prune_mask([tracked], sparsity=0.5, out=[mask])
    assert masks is mask
    data, scale = torch.empty(6, 32, dtype=torch.int8), torch.empty(6)
    found, found_mask = octavo.prune_quantize(tracked, sparsity=0.5, out=(data, scale, mask))
    assert found.data is data
    assert found.scale is scale
    assert found_mask is mask
    assert torch.equal(data, octavo.prune_quantize(x, sparsity=0.5)[0].data)
    for bad, message in (
        (torch.empty(6, 33, dtype=torch.bool), "out: expected shape"),
        (torch.empty(6, 32), "out: expected dtype bool"),
        (mask.numpy(), r"out: expected.*torch.Tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            octavo.prune_mask(tracked, sparsity=0.5, out=bad)


def test_errors_through_the_dispatcher():
    x = floats(6, 32).requires_grad_()
    packed = octavo.pack_weight(floats(5, 32))
    cases = [
        (
            TypeError,
            r"scale: expected.*torch.Tensor",
            lambda: octavo.quantize(x, scale=np.ones(6, np.float32)),
        ),
        (ValueError, "seed: expected an int", lambda: octavo.quantize(x, rounding="stochastic")),
        (ValueError, "nonfinite", lambda: octavo.quantize(x, nonfinite="drop")),
        (TypeError, "sparsity: expected a number", lambda: octavo.prune_mask(x, sparsity="half")),
        (TypeError, "out_dtype: expected", lambda: octavo.int8_linear(x, packed, out_dtype="float64")),
        (ValueError, "activation: expected", lambda: octavo.int8_linear(x, packed, activation="tanh")),
        (ValueError, "x: expected shape", lambda: octavo.int8_linear(x[:, :31], packed)),
        (TypeError, r"bias: expected.*torch.Tensor", lambda: octavo.int8_linear(x, packed, np.ones(5))),
        (ValueError, "bias: expected shape", lambda: octavo.int8_linear(x, packed, torch.ones(6))),
        (ValueError, r"bias\[1\]: expected", lambda: octavo.int8_linear(x, [packed] * 2, [None, x[0]])),
        (ValueError, r"weight\[1\]: expected", lambda: octavo.int8_linear(x, [packed, x[:, :31]])),
        (
            ValueError,
            r"out\[1\]: expected memory apart",
            lambda: octavo.int8_linear(
                x.detach().as_subclass(Wrapped), [packed] * 2, out=[torch.empty(6, 5)] * 2
            ),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    with pytest.raises(ValueError, match="x: expected finite values, got 1"):
        octavo.quantize(torch.tensor([1.0, float("nan")], requires_grad=True), nonfinite="raise")


# ---- CUDA ----


@cuda
@quiet_cuda
@pytest.mark.parametrize("flavour", ["normal", "special", "ties", "wide", "halves"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_cuda_gives_the_bits_of_the_cpu(dtype, flavour):
    x, w = floats(33, 64, dtype=dtype, flavour=flavour), floats(70, 64, dtype=dtype, flavour=flavour, seed=1)
    for granularity, group_size in (("row", None), ("tensor", None), ("group", 16)):
        for symmetric in (True, False):
            more = {"granularity": granularity, "group_size": group_size, "symmetric": symmetric}
            for rounding in ({}, {"rounding": "stochastic", "seed": -7}):
                expected = octavo.quantize(x, **more, **rounding)
                actual = octavo.quantize(x.cuda(), **more, **rounding)
                for a, e in zip(actual, expected, strict=True):
                    assert_same(None if a is None else a.cpu(), None if e is None else to_numpy(e))
    weight, weight_scale, _ = octavo.quantize(w)
    bias = floats(70, dtype=dtype, seed=2)
    for activation in ACTIVATIONS:
        args = (x, weight, weight_scale, bias)
        pre = op.int8_linear(*args, activation=activation, out_dtype=torch.float32)
        actual = op.int8_linear(*(t.cuda() for t in args), activation=activation, out_dtype=torch.float32)
        if activation in (None, "relu"):
            assert_same(actual.cpu(), to_numpy(pre))
        else:
            assert_close_ulp(actual.cpu(), to_numpy(pre), 8)
    for pattern in ("unstructured", "row", "column", "block1x16"):
        for select in ({"sparsity": 0.5}, {"threshold": 0.5}, {"ratio": 0.25}):
            expected = octavo.prune_mask([x, w], pattern=pattern, **select)
            for a, e in zip(
                octavo.prune_mask([x.cuda(), w.cuda()], pattern=pattern, **select), expected, strict=True
            ):
                assert a.is_cuda
                assert_same(a.cpu(), to_numpy(e))
    assert_same(
        octavo.prune_mask(w.cuda(), pattern="2:4").cpu(), to_numpy(octavo.prune_mask(w, pattern="2:4"))
    )
    packed = op.pack_weight(weight.cuda())
    assert_same(packed.cpu(), packed_rows(weight.numpy()))
    assert_same(op.unpack_weight(packed, 70, 64).cpu(), weight.numpy())


def test_autograd_sees_what_is_written_to_out():
    x, weight, out = torch.ones(4, 8), octavo.pack_weight(torch.ones(3, 8)), torch.zeros(4, 3)
    before = out._version
    octavo.int8_linear(x, weight, out=out)
    assert out._version > before
    assert torch.equal(out, octavo.int8_linear(x, weight))
