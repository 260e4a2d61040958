"""octavo on a GPU: what cuda_parity checks, for torch tensors and CuPy arrays, and what only a device shows.

Expected are the bits of the CPU, activations included. `make test-cuda` sets OCTAVO_TEST_CUDA=1: then a
missing GPU, module or CuPy is a failure, elsewhere a skip.
"""

from __future__ import annotations

import ctypes
import itertools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuda_parity
import octavo
from cuda_parity import Adapter
from octavo.runtime import backends
from strategies import BF16, FLOATS, assert_same, cast, fill, to_numpy, to_torch

torch = pytest.importorskip("torch")

# Of warnings only octavo's own are errors: torch and CuPy warn of much on a device.
pytestmark = pytest.mark.filterwarnings("default", "error:octavo")

DEVICE = "cuda"
REQUIRED = os.environ.get("OCTAVO_TEST_CUDA") == "1"
FAMILIES = ("quantize", "norm", "select", "prune", "linear")
EXAMPLES = int(os.environ.get("OCTAVO_TEST_EXAMPLES", "150"))
MAX_ELEMENTS = 1 << 16
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
ROWS = range(1, 34)
# N, K: one element, none a multiple of 16, one row tile and its neighbours, K beyond a chunk
SHAPES = ((1, 1), (7, 129), (33, 31), (128, 64), (130, 260), (257, 48), (15, 1030))


def missing(what: str) -> None:
    (pytest.fail if REQUIRED else pytest.skip)(what)


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        missing("there is no GPU, or torch does not see it")
    why = backends.why_not_cuda(torch.cuda.current_device(), FAMILIES)
    if why:
        missing(why)


def floats(*shape, dtype="bfloat16", flavour="normal", seed=0):
    """A tensor on the CPU."""
    x = fill(np.random.default_rng(seed), flavour, int(np.prod(shape))).reshape(shape)
    return to_torch(cast(x, dtype))


def ints(*shape, dtype=torch.int8, seed=0):
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)


def there(x):
    """The same on the device: tensors, and what holds them."""
    if isinstance(x, torch.Tensor):
        return x.to(DEVICE)
    return type(x)(map(there, x)) if isinstance(x, list | tuple) else x


def flat(result) -> list:
    """The tensors and numbers of a result."""
    if isinstance(result, list | tuple):
        return [part for each in result for part in flat(each)]
    return [] if result is None else [result]


def assert_equal(actual, expected, label="") -> None:
    for i, (got, want) in enumerate(zip(flat(actual), flat(expected), strict=True)):
        if isinstance(want, torch.Tensor):
            assert got.device.type == torch.device(DEVICE).type, label
            got, want = got.cpu(), to_numpy(want)
        assert_same(got, want, f"{label} [{i}]")


def assert_as_on_the_cpu(call, *arguments, label="") -> None:
    assert_equal(call(*there(arguments)), call(*arguments), label)


# ---- parity ----


def put_torch(x: np.ndarray):
    """The same strides, at an address that need not be aligned to more than one element."""
    t = to_torch(x)
    if not t.numel():
        return t.to(DEVICE)
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    offset = extent % 4
    memory = torch.empty(offset + extent, dtype=t.dtype, device=DEVICE)
    memory[offset:] = t.as_strided((extent,), (1,))
    return memory.as_strided(t.shape, t.stride(), offset)


def put_cupy(x: np.ndarray):
    """The same strides, negative ones too."""
    import cupy

    x = np.asarray(x)
    if not x.size:
        return cupy.empty(x.shape, x.dtype)
    low, high = np.lib.array_utils.byte_bounds(x)
    first = x.__array_interface__["data"][0]
    memory = cupy.asarray(np.frombuffer(ctypes.string_at(low, high - low), np.uint8))
    return cupy.ndarray(x.shape, x.dtype, memory.data + (first - low), strides=x.strides)


@pytest.fixture(params=["torch", "cupy"])
def on(request):
    if request.param == "cupy":
        cupy = pytest.importorskip("cupy") if not REQUIRED else __import__("cupy")
        dtypes = tuple(d for d in FLOATS if d != "bfloat16") if not holds_bfloat16(cupy) else FLOATS
        yield Adapter(put_cupy, lambda x: x.get(), MAX_ELEMENTS, dtypes)
        return
    # Memory that nobody wrote is full of NaN or the largest integer.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield Adapter(put_torch, lambda x: to_numpy(x.cpu()), MAX_ELEMENTS)
    torch.use_deterministic_algorithms(before)


def holds_bfloat16(cupy) -> bool:
    try:
        cupy.empty(1, BF16)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("check", cuda_parity.CHECKS, ids=lambda check: check.__name__[6:])
def test_parity(check, on):
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def example(data):
        check(on, data)

    example()


@pytest.mark.parametrize("m", ROWS)
def test_products_of_any_shape(m):
    rng = np.random.default_rng(m)
    for i, (n, k) in enumerate(SHAPES):
        x, weight, bias = floats(m, k, seed=m), ints(n, k, seed=n), floats(n, dtype="float32", seed=k)
        scale, a_scale = (to_torch(rng.random(size, np.float32) + np.float32(0.01)) for size in (n, m))
        zero = to_torch(rng.integers(-128, 128, m).astype(np.int32))
        packed, packed_there = (
            octavo.pack_weight(w, s) for w, s in ((weight, scale), there((weight, scale)))
        )
        activation, dtype = ACTIVATIONS[(m + i) % 5], ("float32", "bfloat16", "float16")[(m + i) % 3]
        label = f"{m}x{n}x{k} {activation} {dtype}"
        for kind in (torch.int8, torch.uint8):
            a = ints(m, k, dtype=kind, seed=m + k)
            assert_equal(octavo.int_mm(there(a), packed_there), octavo.int_mm(a, packed), label)
            assert_equal(
                octavo.int_mm(*there((a, weight.t()))), octavo.int_mm(a, packed), f"{label} not packed"
            )
            how = {"activation": activation, "out_dtype": dtype}
            for z in (None, zero if kind == torch.int8 else zero + 128):
                expected = octavo.scaled_int_mm(a, a_scale, packed, bias, a_zero_point=z, **how)
                given = there((a, a_scale)), there((bias,))
                actual = octavo.scaled_int_mm(
                    *given[0], packed_there, *given[1], a_zero_point=there(z), **how
                )
                assert_equal(actual, expected, f"{label} scaled, {kind}")
        expected = octavo.int8_linear(x, packed, bias, activation=activation)
        assert_equal(
            octavo.int8_linear(there(x), packed_there, there(bias), activation=activation), expected, label
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [3, 200])
def test_a_row_does_not_depend_on_the_others(m, activation):
    """Each kernel takes another number of rows; split along K or not, the sums are the same integers."""
    x, weight = floats(m, 2048, dtype="float32", flavour="wide"), floats(96, 2048, dtype="float32", seed=1)
    packed = octavo.pack_weight(there(weight))
    whole = octavo.int8_linear(there(x), packed, activation=activation)
    for i in {0, 1, m - 1}:
        alone = octavo.int8_linear(there(x[i : i + 1]), packed, activation=activation)
        assert torch.equal(alone[0].view(torch.int32), whole[i].view(torch.int32))


@pytest.mark.parametrize("cols", [1, 2, 31, 64, 129, 768, 1024, 4096, 8192, 8200, 20000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norms(cols, dtype):
    weight, bias = (floats(cols, dtype=dtype, seed=seed) for seed in (1, 2))
    norms = ((octavo.rms_norm_quantize, (weight,)), (octavo.layer_norm_quantize, (weight, bias)))
    for norm, parameters in norms:
        for rows, flavour in ((1, "normal"), (5, "wide"), (67, "normal"), (4, "special")):
            x = floats(rows, cols, dtype=dtype, flavour=flavour, seed=cols)
            residual = floats(rows, cols, dtype=dtype, seed=3)
            label = f"{norm.__name__} {rows}x{cols} {dtype} {flavour}"
            assert_as_on_the_cpu(norm, x, label=label)
            expected = norm(x, *parameters, residual=residual)
            assert_equal(norm(*there((x, *parameters)), residual=there(residual)), expected, label)


def test_half_of_a_large_tensor():
    """Every digit of the radix selection, many ties, several blocks; and a list, in whose order ties go."""
    for dtype in ("float32", "bfloat16", "float16"):
        w = floats(1500, 1001, dtype=dtype, seed=3)
        for sparsity in (0.0, 0.001, 0.5, 0.9, 1.0):
            assert_as_on_the_cpu(lambda w, s=sparsity: octavo.prune_mask(w, sparsity=s), w, label=dtype)
        halves = [w[:700], w[700:]]
        assert_as_on_the_cpu(lambda ws: octavo.prune_mask(ws, sparsity=0.5), halves, label=dtype)
        assert_as_on_the_cpu(lambda w: octavo.prune_quantize(w, sparsity=0.5), w, label=dtype)
        assert_as_on_the_cpu(lambda w: octavo.prune(w, pattern="block4x7", sparsity=0.3), w, label=dtype)
    ones = torch.ones(123_457)
    assert_as_on_the_cpu(lambda w: octavo.prune_mask(w, sparsity=0.3), ones, label="all equal")


# ---- models ----


def make_model():
    torch.manual_seed(0)
    sizes = (96, 200, 64, 40, 7)
    layers = [torch.nn.Linear(k, n) for k, n in itertools.pairwise(sizes)]
    return torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))


@pytest.mark.parametrize("rows", [1, 5, 33, 300])
@torch.no_grad()
def test_a_model_quantized_on_the_cpu_gives_the_same_bits(rows):
    model = octavo.quantize_(make_model())
    x = floats(rows, 96, dtype="float32", seed=rows)
    expected = model(x)
    model.to(DEVICE)
    assert_equal(model(there(x)), expected, "moved")
    again = octavo.quantize_(make_model()).to(DEVICE)
    again.load_state_dict(model.state_dict())
    assert_equal(again(there(x)), expected, "loaded")
    on_the_device = octavo.quantize_(make_model().to(DEVICE))
    assert_equal(on_the_device(there(x)), expected, "quantized there")
    assert torch.equal(model.cpu()(x), expected)


@torch.no_grad()
def test_a_pruned_model_moves():
    model = make_model()
    octavo.prune_model_(model, sparsity=0.7)
    octavo.quantize_(model)
    x = floats(9, 96, dtype="float32")
    expected = model(x)
    assert_equal(model.to(DEVICE)(there(x)), expected)


# ---- streams and graphs ----


def work():
    """(name, call on x [64, 256] bfloat16 and a packed weight): all that has to run without the host."""
    return {
        "quantize": lambda x, w: octavo.quantize(x),
        "quantize asymmetric": lambda x, w: octavo.quantize(x, symmetric=False),
        "quantize tensor": lambda x, w: octavo.quantize(x, granularity="tensor"),
        "quantize group": lambda x, w: octavo.quantize(x, granularity="group", group_size=32),
        "dequantize": lambda x, w: octavo.dequantize(*octavo.quantize(x), dtype="bfloat16"),
        "int8_linear": lambda x, w: octavo.int8_linear(x, w, activation="gelu"),
        "int8_linear, one row": lambda x, w: octavo.int8_linear(x[:1], w),
        "int_mm": lambda x, w: octavo.int_mm(octavo.quantize(x).data, w),
        "prune_mask": lambda x, w: octavo.prune_mask(x, sparsity=0.5),
        "prune_mask ratio": lambda x, w: octavo.prune_mask(x, ratio=0.2),
        "prune_mask rows": lambda x, w: octavo.prune_mask(x, sparsity=0.5, pattern="row"),
        "prune_mask 2:4": lambda x, w: octavo.prune_mask(x, pattern="2:4"),
        "prune_quantize": lambda x, w: octavo.prune_quantize(x, sparsity=0.5),
        "pack_mask": lambda x, w: octavo.pack_mask(octavo.prune_mask(x, threshold=0.5)),
    }


WORK = work()


def operands(seed: int):
    return floats(64, 256, seed=seed), floats(80, 256, dtype="float32", seed=99)


@pytest.mark.parametrize("name", WORK)
@torch.no_grad()
def test_graphs_replay_with_other_inputs(name):
    call = WORK[name]
    x, weight = operands(0)
    packed, packed_there = octavo.pack_weight(weight), octavo.pack_weight(there(weight))
    held = there(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(held, packed_there)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(held, packed_there)
    for seed in range(1, 4):
        x = operands(seed)[0]
        held.copy_(x)
        graph.replay()
        assert_equal(result, call(x, packed), f"replay {seed}")


@pytest.mark.parametrize("name", WORK)
@torch.no_grad()
def test_nothing_waits(name):
    x, weight = operands(0)
    held, packed = there(x), octavo.pack_weight(there(weight))
    WORK[name](held, packed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        WORK[name](held, packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_two_streams_at_once():
    """Each call has its own workspace, and follows what its stream has queued before it."""
    _, weight = operands(0)
    packed, packed_there = octavo.pack_weight(weight), octavo.pack_weight(there(weight))
    inputs = [operands(seed)[0] for seed in range(2)]
    sources, held = there(inputs), [torch.zeros_like(x, device=DEVICE) for x in inputs]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    results: list[list] = [[], []]
    for _ in range(5):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                held[i].zero_()
                torch.cuda._sleep(200_000)
                held[i].copy_(sources[i])
                results[i].append([call(held[i], packed_there) for call in WORK.values()])
    torch.cuda.synchronize()
    for x, found in zip(inputs, results, strict=True):
        expected = [call(x, packed) for call in WORK.values()]
        for each in found:
            assert_equal(each, expected)


@torch.no_grad()
def test_memory_is_given_back():
    x, weight = there(operands(0))
    packed = octavo.pack_weight(weight)
    for repeat in range(3):
        for call in WORK.values():
            call(x, packed)
        if repeat == 0:
            before = torch.cuda.memory_allocated()
    assert torch.cuda.memory_allocated() == before


def test_cupy_runs_on_its_current_stream():
    cupy = pytest.importorskip("cupy")
    x = np.random.default_rng(0).standard_normal((300, 1000), np.float32)
    expected = octavo.quantize(x)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        held = cupy.zeros(x.shape, np.float32)
        source = cupy.asarray(x)
        for _ in range(20):
            held[...] = 0
            held[...] = source
            found = octavo.quantize(held)
        stream.synchronize()
    assert_same(found.data.get(), expected.data)
    assert_same(found.scale.get(), expected.scale)


# ---- size ----


def room_for(gib: float) -> None:
    free = torch.cuda.mem_get_info()[0] / (1 << 30)
    if free < gib:
        pytest.skip(f"needs {gib} GiB of device memory, {free:.1f} are free")


def test_more_than_two_to_the_31_elements():
    room_for(24)
    rows, cols = 65_540, 32_771
    x = torch.randn(rows, cols, dtype=torch.bfloat16, device=DEVICE)
    found = octavo.quantize(x)
    for some in (slice(0, 3), slice(rows // 2, rows // 2 + 3), slice(rows - 3, rows)):
        expected = octavo.quantize(x[some].cpu())
        assert_equal((found.data[some], found.scale[some]), expected[:2], str(some))
    back = octavo.dequantize(found.data, found.scale, dtype="bfloat16")
    expected = octavo.dequantize(found.data[-3:].cpu(), found.scale[-3:].cpu(), dtype="bfloat16")
    assert_equal(back[-3:], expected)
    del found, back
    mask = octavo.prune_mask(x, sparsity=0.5)
    kept, n = int(mask.count_nonzero()), x.numel()
    assert kept == n - round(0.5 * n)
    threshold = octavo.magnitude_threshold(x, 0.5)
    for some in (slice(0, 3), slice(rows - 3, rows)):
        magnitude = x[some].abs().float()
        assert bool((mask[some] >= (magnitude > threshold)).all())
        assert bool((mask[some] <= (magnitude >= threshold)).all())


def test_a_product_of_more_than_two_to_the_31_elements():
    room_for(12)
    m, n, k = 66_000, 33_000, 32
    a, weight = ints(m, k), ints(n, k, seed=1)
    packed = octavo.pack_weight(there(weight))
    found = octavo.int_mm(there(a), packed)
    for some in (slice(0, 2), slice(m - 2, m)):
        assert_equal(found[some], octavo.int_mm(a[some], weight.t()))


@pytest.mark.parametrize(("m", "n", "k"), [(4, 8192, 11008), (16, 8192, 11008), (16, 8192, 8192)])
def test_blocks_that_nearly_need_more_shared_memory_than_is_free(m, n, k):
    """48 KiB are free, static and dynamic together; of these shapes the dynamic part alone is less."""
    a, weight = ints(m, k), ints(n, k, seed=1)
    assert_equal(octavo.int_mm(there(a), octavo.pack_weight(there(weight))), octavo.int_mm(a, weight.t()))


@torch.no_grad()
def test_out_is_filled_without_a_temporary():
    x = there(floats(2048, 2048))
    data, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(2048, dtype=torch.float32)
    mask = torch.empty_like(x, dtype=torch.bool)
    for call in (
        lambda: octavo.quantize(x, out=(data, scale)),
        lambda: octavo.prune_mask(x, threshold=0.5, out=mask),
    ):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        assert torch.cuda.max_memory_allocated() - before < 1 << 20


def test_a_deep_product():
    """The largest K that there may be, at the extremes of the sums."""
    k = 131_071
    for value in (-128, 127):
        a, weight = torch.full((2, k), value, dtype=torch.int8), torch.full((3, k), -128, dtype=torch.int8)
        assert_as_on_the_cpu(lambda a, w: octavo.int_mm(a, w.t()), a, weight)


# ---- torch ----


@pytest.mark.parametrize("name", [name for name in WORK if name != "pack_mask"])
@torch.no_grad()
def test_compiled_without_a_break(name):
    call = WORK[name]
    x, weight = operands(1)
    packed, packed_there = octavo.pack_weight(weight), octavo.pack_weight(there(weight))
    torch._dynamo.reset()  # torch compiles one function for a few shapes or closures only
    compiled = torch.compile(lambda x: call(x, packed_there), fullgraph=True, backend="aot_eager")
    assert_equal(compiled(there(x)), call(x, packed))


@torch.no_grad()
def test_a_compiled_model():
    model = octavo.quantize_(make_model())
    x = floats(12, 96, dtype="float32")
    expected = model(x)
    model.to(DEVICE)
    assert_equal(torch.compile(model, fullgraph=True)(there(x)), expected)


def test_opcheck():
    op = torch.ops.octavo
    x = there(floats(6, 48)).requires_grad_()
    weight, scale, bias = there((ints(9, 48), torch.rand(9), torch.rand(9)))
    check = torch.library.opcheck
    check(op.quantize, (x,))
    check(op.quantize, (x, "group", 16, False), {"rounding": "stochastic", "seed": 5})
    data, found, zero_point = op.quantize(x.detach(), "row", None, False)
    check(op.dequantize, (data, found, zero_point), {"dtype": torch.bfloat16})
    check(op.int8_linear, (x, weight, scale, bias), {"activation": "gelu"})
    check(op.int8_linear, (x.detach(), op.pack_weight(weight), scale))
    check(op.int_mm, (data, weight.t()))
    check(op.scaled_int_mm, (data, found, weight, scale, bias), {"a_zero_point": zero_point})
    check(op.prune_mask, (x,), {"sparsity": 0.5})
    check(op.prune_masks, ([x.detach(), x.detach()],), {"sparsity": 0.5})
    check(op.prune_quantize, (x,), {"sparsity": 0.5})


def test_gradients_reach_the_input():
    x, weight, scale = floats(5, 48, dtype="float32"), ints(9, 48), torch.rand(9)
    gradients = []
    for move in (lambda t: t, there):
        leaf = move(x).requires_grad_()
        octavo.int8_linear(leaf, octavo.Quantized(move(weight), move(scale), None)).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[1].cpu(), gradients[0], rtol=1e-5)


# ---- errors ----


def test_arrays_of_two_devices_are_refused():
    x, weight = floats(4, 32), octavo.pack_weight(floats(8, 32))
    with pytest.raises(TypeError, match=r"^weight: "):
        octavo.int8_linear(there(x), weight)
    with pytest.raises(TypeError, match=r"^out: "):
        octavo.quantize(there(x), out=torch.empty(4, 32, dtype=torch.int8))
    with pytest.raises(TypeError, match=r"^scale: "):
        octavo.quantize(there(x), scale=torch.rand(4))


def test_values_that_are_not_finite_are_told():
    x = floats(300, 1000)
    x[7, 900] = x[250, 3] = float("inf")
    with pytest.raises(ValueError, match=r"got 2 .*\(7, 900\)"):
        octavo.quantize(there(x), nonfinite="raise")
    with pytest.raises(ValueError, match=r"K|131"):
        octavo.int_mm(*there((ints(2, 131_072), ints(131_072, 2))))


def test_a_call_after_an_error_is_right():
    x = floats(4, 32)
    with pytest.raises(ValueError, match=r"^group_size: "):
        octavo.quantize(there(x), granularity="group", group_size=7)
    assert_as_on_the_cpu(octavo.quantize, x)


def test_a_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x, weight = operands(0)
    packed = octavo.pack_weight(weight)
    other = octavo.pack_weight(weight.to("cuda:1"))
    for name, call in WORK.items():
        result = call(x.to("cuda:1"), other)
        assert all(part.device.index == 1 for part in flat(result)), name
        assert_equal(result, call(x, packed), name)
    assert torch.cuda.current_device() == 0


def test_config_says_what_runs():
    config = octavo.show_config()
    assert config["cuda_built"] is True
    assert config["cuda_devices"]
    assert set(config["cuda_kernels"]) == set(FAMILIES)
