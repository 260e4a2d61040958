"""Everybody else: torch and onnxruntime at the same work. A peer that is not installed is a row that says so.

Each peer gets what its users would give it at their best: weights packed ahead where it can, outputs written
into buffers that exist where it has a way to, and everybody's thread count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import Contender, Parity, check_close, check_equal, check_steps
from machine import optional

Array = np.ndarray[Any, Any]

torch = optional("torch")
ort = optional("onnxruntime")
onnx = optional("onnx")
pruning = optional("torch.nn.utils.prune")

INT8_ERROR = 0.05  # dynamic int8 with one scale per tensor and 7 bits (torch's reduce_range) is near 0.03
BF16_ERROR = 0.01
F32_ERROR = 1e-5


def prepare() -> None:
    if torch is not None:
        torch.set_grad_enabled(False)


def given(array: Array) -> Any:
    """The array as torch's users have it: a tensor on the same memory, or NumPy's own without torch."""
    return array if torch is None else torch.from_numpy(array)


def peer(name: str, build: Callable[..., Contender], *arguments: Any, needs: Sequence[Any]) -> Contender:
    """build(name, *arguments), or the row that says why there is none: nothing of a peer's stops a run."""
    if any(module is None for module in needs):
        return Contender(name, why_not="not installed")
    try:
        return build(name, *arguments)
    except Exception as error:
        return Contender(name, why_not=f"failed: {type(error).__name__}: {error}".splitlines()[0][:100])


# ---- integer products


@dataclass(frozen=True)
class Product:
    a: Array  # s8 [M, K]
    weight: Array  # s8 [N, K]
    expected: Array  # s32 [M, N]


def int_products(p: Product, threads: int) -> list[Contender]:
    return [
        peer("torch._int_mm, [N,K]^T", torch_int_mm, p, True, needs=[torch]),
        peer("torch._int_mm, [K,N]", torch_int_mm, p, False, needs=[torch]),
        peer("torch oneDNN static, packed", torch_static, p, needs=[torch]),
        peer("onnxruntime MatMulInteger u8s8", ort_matmul_integer, p, threads, needs=[ort, onnx]),
    ]


def torch_int_mm(name: str, p: Product, transposed: bool) -> Contender:
    a, b = torch.from_numpy(p.a), torch.from_numpy(p.weight).t()
    b = b if transposed else b.contiguous()
    out = torch.empty(p.expected.shape, dtype=torch.int32)

    def call(_: int) -> Any:
        return torch._int_mm(a, b, out=out)

    return Contender(name, call, lambda: check_equal(call(0), p.expected))


def torch_static(name: str, p: Product) -> Contender:
    """oneDNN with a packed weight. It has no s32 output: unit scales, and one rounding of the sum to f32."""
    n = p.weight.shape[0]
    a = torch.from_numpy(p.a)
    packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(p.weight), list(a.shape))
    scale, zero = torch.ones(n), torch.zeros(n, dtype=torch.int64)
    linear, f32 = torch.ops.onednn.qlinear_pointwise, torch.float32

    def call(_: int) -> Any:
        return linear(a, 1.0, 0, packed, scale, zero, None, 1.0, 0, f32, "none", [], "")

    return Contender(name, call, lambda: check_equal(call(0), p.expected.astype(np.float32)))


def ort_matmul_integer(name: str, p: Product, threads: int) -> Contender:
    """Activations as u8 = q + 128 with that zero point: its fast kernels, the same product."""
    a = (p.a.astype(np.int16) + 128).astype(np.uint8)
    out = np.empty(p.expected.shape, np.int32)
    constants = {"b": np.ascontiguousarray(p.weight.T), "zero": np.uint8(128)}
    node = onnx.helper.make_node("MatMulInteger", ["a", "b", "zero"], ["y"])
    run = ort_session([node], constants, [({"a": a}, {"y": out})], threads)

    def check() -> Parity:
        run(0)
        return check_equal(out, p.expected)

    return Contender(name, run, check)


# ---- linear layers with dynamic quantization


@dataclass(frozen=True)
class Layer:
    """One input through several weights in turn, each followed by the same bias."""

    x: Array  # f32 [M, K]
    weights: Sequence[Array]  # f32 [N, K]
    bias: Array  # f32 [N]
    expected: Sequence[Array]  # f64 [M, N], the product without quantization
    memory_bound: bool  # the case counts the bytes of the weight, one byte each

    def bytes_of(self, itemsize: int) -> float | None:
        return float(self.weights[0].size * itemsize) if self.memory_bound else None


def linears(layer: Layer, threads: int) -> list[Contender]:
    return [
        peer("torch quantize_dynamic, onednn", torch_dynamic, "onednn", layer, needs=[torch]),
        peer("torch quantize_dynamic, x86", torch_dynamic, "x86", layer, needs=[torch]),
        peer("onnxruntime DynamicQuantizeMatMul", ort_dynamic, layer, threads, needs=[ort, onnx]),
        peer("torch bf16 Linear", torch_linear, "bfloat16", layer, BF16_ERROR, needs=[torch]),
        peer("torch f32 Linear", torch_linear, "float32", layer, F32_ERROR, needs=[torch]),
    ]


def check_each(call: Callable[[int], Any], layer: Layer, tolerance: float) -> Parity:
    """Every weight, and the worst of them in the report."""
    parities = [check_close(call(i), e, tolerance) for i, e in enumerate(layer.expected)]
    failed = [p for p in parities if not p.ok]
    return failed[0] if failed else max(parities, key=lambda p: float(p.detail.split()[-1]))


def torch_modules(layer: Layer) -> list[Any]:
    modules = []
    for weight in layer.weights:
        module = torch.nn.utils.skip_init(torch.nn.Linear, weight.shape[1], weight.shape[0])
        module.weight = torch.nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        module.bias = torch.nn.Parameter(torch.from_numpy(layer.bias), requires_grad=False)
        modules.append(module)
    return modules


def torch_linear(name: str, dtype: str, layer: Layer, tolerance: float) -> Contender:
    kind = getattr(torch, dtype)
    x = torch.from_numpy(layer.x).to(kind)
    modules = [module.to(kind) for module in torch_modules(layer)]
    count = len(modules)

    def call(i: int) -> Any:
        return modules[i % count](x)

    work = layer.bytes_of(kind.itemsize)
    return Contender(name, call, lambda: check_each(call, layer, tolerance), work=work)


def torch_dynamic(name: str, engine: str, layer: Layer) -> Contender:
    if engine not in torch.backends.quantized.supported_engines:
        return Contender(name, why_not="not in this torch")
    quantization = torch.ao.quantization
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine  # chosen when the weight is packed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            config = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
            container = torch.nn.Sequential(*torch_modules(layer))
            modules = list(quantization.quantize_dynamic(container, config, inplace=True))
    finally:
        torch.backends.quantized.engine = before
    x, count = torch.from_numpy(layer.x), len(modules)

    def call(i: int) -> Any:
        return modules[i % count](x)

    return Contender(name, call, lambda: check_each(call, layer, INT8_ERROR))


def ort_dynamic(name: str, layer: Layer, threads: int) -> Contender:
    """All weights in one graph: a session per weight would bring its own thread pool each."""
    constants: dict[str, Any] = {"bias": layer.bias}
    outputs: dict[str, Array] = {}
    nodes = []
    for i, weight in enumerate(layer.weights):
        scale = np.abs(weight).max(axis=1) / np.float32(127)
        q = np.rint(weight / scale[:, None]).astype(np.int8)
        constants |= {f"b{i}": np.ascontiguousarray(q.T), f"s{i}": scale}
        outputs[f"y{i}"] = np.empty((layer.x.shape[0], weight.shape[0]), np.float32)
        names = ["x", f"b{i}", f"s{i}", "", "bias"]
        nodes.append(onnx.helper.make_node("DynamicQuantizeMatMul", names, [f"y{i}"], domain="com.microsoft"))
    run = ort_session(nodes, constants, [({"x": layer.x}, outputs)], threads)

    def check() -> Parity:
        run(0)
        return check_each(lambda i: outputs[f"y{i}"], layer, INT8_ERROR)

    return Contender(name, run, check, units=len(layer.weights))


def ort_session(
    nodes: Sequence[Any],
    constants: dict[str, Any],
    buffers: Sequence[tuple[dict[str, Array], dict[str, Array]]],
    threads: int,
) -> Callable[[int], None]:
    """A call that runs the graph from and into the i-th of these (inputs, outputs), in turn."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    def info(arrays: dict[str, Array]) -> list[Any]:
        kind = helper.np_dtype_to_tensor_dtype
        return [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in arrays.items()]

    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(list(nodes), "bench", *map(info, buffers[0]), held)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    bindings = []
    for inputs, outputs in buffers:
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        bindings.append((binding, inputs, outputs))  # the binding holds bare pointers: keep the arrays

    def run(i: int) -> None:
        session.run_with_iobinding(bindings[i % len(bindings)][0])

    return run


# ---- elementwise work, written as torch's users write it; every function fills tensors that exist


def quantize_rows(x: Any, data: Any, scale: Any) -> None:
    x = x.float()
    amax = x.abs().amax(-1)
    scale.copy_(amax / 127)
    data.copy_((x * (127 / amax).unsqueeze(-1)).round().clamp(-127, 127))


def quantize_rows_asymmetric(x: Any, data: Any, scale: Any, zero_point: Any) -> None:
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    inverse = 255 / (high - low)
    zero = (-128 - low * inverse).round().clamp(-128, 127)
    scale.copy_((high - low) / 255)
    zero_point.copy_(zero)
    data.copy_(((x * inverse.unsqueeze(-1)).round() + zero.unsqueeze(-1)).clamp(-128, 127))


def dequantize_rows(data: Any, scale: Any, out: Any) -> None:
    out.copy_(data.float() * scale.unsqueeze(-1))


def prune_quantize_rows(x: Any, threshold: float, data: Any, scale: Any, mask: Any) -> None:
    keep = x.abs() > threshold
    mask.copy_(keep)
    quantize_rows(x.where(keep, 0.0), data, scale)


def quantizers_of_tensors(xs: Sequence[Array], expected: Array, threads: int) -> list[Contender]:
    name = "onnxruntime DynamicQuantizeLinear"
    return [peer(name, ort_dynamic_quantize, xs, expected, threads, needs=[ort, onnx])]


def dequantizers(datas: Sequence[Array], scale: Array, expected: Array, threads: int) -> list[Contender]:
    name = "onnxruntime DequantizeLinear"
    return [peer(name, ort_dequantize, datas, scale, expected, threads, needs=[ort, onnx])]


def torch_pair(
    work: Callable[..., None],
    arguments: Callable[[int], tuple[Any, ...]],
    check: Callable[[], Parity],
    compiled: bool,
) -> list[Contender]:
    """The function as it is and through torch.compile. `check` judges what the call on set 0 has written."""
    eager = peer("torch eager", torch_filling, work, arguments, check, needs=[torch])
    if torch is not None and not compiled:
        return [eager, Contender("torch.compile", why_not="not with --quick")]
    return [eager, peer("torch.compile", torch_compiled, work, arguments, check, needs=[torch])]


def torch_filling(
    name: str,
    work: Callable[..., None],
    arguments: Callable[[int], tuple[Any, ...]],
    check: Callable[[], Parity],
) -> Contender:
    def call(i: int) -> None:
        work(*arguments(i))

    def checked() -> Parity:
        call(0)
        return check()

    return Contender(name, call, checked)


def torch_compiled(name: str, work: Callable[..., None], *more: Any) -> Contender:
    return torch_filling(name, torch.compile(work, fullgraph=True, dynamic=False), *more)


def ort_dynamic_quantize(name: str, xs: Sequence[Array], expected: Array, threads: int) -> Contender:
    """Whole tensor, u8; q - 128 is the int8 of everybody else."""
    kinds: dict[str, Any] = {"y": np.uint8, "s": np.float32, "z": np.uint8}
    outs = [{n: np.empty(x.shape if n == "y" else (), kind) for n, kind in kinds.items()} for x in xs]
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    run = ort_session([node], {}, [({"x": x}, out) for x, out in zip(xs, outs, strict=True)], threads)

    def check() -> Parity:
        run(0)
        return check_steps(outs[0]["y"].astype(np.int16) - 128, expected, share=1e-3)

    return Contender(name, run, check)


def ort_dequantize(
    name: str, datas: Sequence[Array], scale: Array, expected: Array, threads: int
) -> Contender:
    outs = [{"y": np.empty(data.shape, np.float32)} for data in datas]
    node = onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0)
    buffers = [({"q": data, "s": scale}, out) for data, out in zip(datas, outs, strict=True)]
    run = ort_session([node], {}, buffers, threads)

    def check() -> Parity:
        run(0)
        return check_equal(outs[0]["y"], expected)

    return Contender(name, run, check)


# ---- half of the weights, exactly


def halvings(ws: Sequence[Array], mask: Array) -> list[Contender]:
    return [
        peer("torch.nn.utils.prune L1Unstructured", l1_unstructured, ws, mask, needs=[torch, pruning]),
        peer("torch kthvalue, then where", torch_kthvalue, ws, mask, needs=[torch]),
        peer("NumPy partition, 1 thread", numpy_partition, ws, mask, needs=[]),
    ]


def check_pruned(pruned: Any, w: Array, mask: Array, ties: float) -> Parity:
    """Zero where the mask is False; `ties`: the share that may differ where equal magnitudes met the cut."""
    kept = np.asarray(pruned) != 0
    wrong = np.count_nonzero(kept != mask) / mask.size
    if wrong > ties or not np.array_equal(np.asarray(pruned)[kept], w[kept]):
        return Parity(False, f"{wrong:.1e} of the mask differs")
    return Parity(True, "exact" if not wrong else f"{wrong:.1e} off at ties")


def l1_unstructured(name: str, ws: Sequence[Array], mask: Array) -> Contender:
    tensors = [torch.from_numpy(w) for w in ws]
    method = pruning.L1Unstructured(0.5)

    def call(i: int) -> Any:
        return method.prune(tensors[i % len(tensors)])

    return Contender(name, call, lambda: check_pruned(call(0), ws[0], mask, ties=1e-5))


def torch_kthvalue(name: str, ws: Sequence[Array], mask: Array) -> Contender:
    tensors = [torch.from_numpy(w) for w in ws]

    def call(i: int) -> Any:
        w = tensors[i % len(tensors)]
        magnitude = w.abs()
        return w.where(magnitude > magnitude.view(-1).kthvalue(round(0.5 * w.numel())).values, 0.0)

    return Contender(name, call, lambda: check_pruned(call(0), ws[0], mask, ties=1e-5))


def numpy_partition(name: str, ws: Sequence[Array], mask: Array) -> Contender:
    def call(i: int) -> Array:
        w = ws[i % len(ws)]
        magnitude, k = np.abs(w), round(0.5 * w.size)
        cut = np.partition(magnitude.reshape(-1), k - 1)[k - 1]
        return np.where(magnitude > cut, w, np.float32(0))

    return Contender(name, call, lambda: check_pruned(call(0), ws[0], mask, ties=1e-5))
