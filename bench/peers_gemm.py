"""The peers of bench_gemm.py: integer products, and linear layers with dynamic quantization."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import Contender, Parity, check_close, check_equal
from machine import optional
from peers import Array, onnx, ort, ort_session, peer, torch

openvino = optional("openvino")

INT8_ERROR = 0.05  # dynamic int8 with one scale per tensor and 7 bits (torch's reduce_range) is near 0.03
BF16_ERROR = 0.01
F32_ERROR = 1e-5


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
        peer(
            "onnxruntime MatMulInteger u8s8",
            ort_matmul_integer,
            p,
            threads,
            needs=[ort, onnx],
            can_be_held=False,
        ),
        peer("torch bf16 mm", torch_mm, "bfloat16", p, BF16_ERROR, needs=[torch]),
        peer("torch f32 mm", torch_mm, "float32", p, F32_ERROR, needs=[torch]),
    ]


def torch_int_mm(name: str, p: Product, transposed: bool) -> Contender:
    a, b = torch.from_numpy(p.a), torch.from_numpy(p.weight).t()
    b = b if transposed else b.contiguous()
    out = torch.empty(p.expected.shape, dtype=torch.int32)

    def call(_: int) -> Any:
        return torch._int_mm(a, b, out=out)

    return Contender(name, call, lambda: check_equal(call(0), p.expected))


def torch_mm(name: str, dtype: str, p: Product, tolerance: float) -> Contender:
    kind = getattr(torch, dtype)
    a, b = torch.from_numpy(p.a).to(kind), torch.from_numpy(p.weight).to(kind).t()
    out = torch.empty(p.expected.shape, dtype=kind)

    def call(_: int) -> Any:
        return torch.mm(a, b, out=out)

    return Contender(name, call, lambda: check_close(call(0), p.expected, tolerance))


def as_u8(a: Array) -> Array:
    """q + 128, to be read with the zero point 128: the same integers in the type of the peers' fast kernels.
    oneDNN has signed activations on AMX alone, elsewhere it takes minutes on its reference."""
    return (a.astype(np.int16) + 128).astype(np.uint8)


def torch_static(name: str, p: Product) -> Contender:
    """oneDNN with a packed weight. It has no s32 output: unit scales, and one rounding of the sum to f32."""
    n = p.weight.shape[0]
    a = torch.from_numpy(as_u8(p.a))
    packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(p.weight), list(a.shape))
    scale, zero = torch.ones(n), torch.zeros(n, dtype=torch.int64)
    linear, f32 = torch.ops.onednn.qlinear_pointwise, torch.float32

    def call(_: int) -> Any:
        return linear(a, 1.0, 128, packed, scale, zero, None, 1.0, 0, f32, "none", [], "")

    return Contender(name, call, lambda: check_equal(call(0), p.expected.astype(np.float32)))


def ort_matmul_integer(name: str, p: Product, threads: int) -> Contender:
    a = as_u8(p.a)
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


def linears(layer: Layer, threads: int, compiled: bool) -> list[Contender]:
    return [
        peer("torch quantize_dynamic, onednn", torch_dynamic, "onednn", layer, needs=[torch]),
        peer("torch quantize_dynamic, x86", torch_dynamic, "x86", layer, needs=[torch]),
        *torch_qlinears(layer, compiled),
        peer(
            "onnxruntime DynamicQuantizeMatMul",
            ort_dynamic,
            layer,
            threads,
            needs=[ort, onnx],
            can_be_held=False,
        ),
        peer(
            "openvino int8 weights, dynamic",
            openvino_dynamic,
            layer,
            threads,
            needs=[openvino],
            can_be_held=False,
        ),
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


def quantize_weight(weight: Array) -> tuple[Array, Array]:
    """s8 [N, K] and one scale per output."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def quantize_tensor(x: Any) -> tuple[Any, Any, Any]:
    """u8, scale and zero point of the whole tensor, as torch's exported programs (PT2E) do it."""
    low, high = torch.aminmax(x)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round()
    data = (x / scale + zero).round().clamp(0, 255).to(torch.uint8)
    return data, scale.reshape(1), zero.to(torch.int64).reshape(1)


def torch_qlinears(layer: Layer, compiled: bool) -> list[Contender]:
    name = "torch oneDNN qlinear, compiled quantize"
    eager = peer("torch oneDNN qlinear, eager quantize", torch_qlinear, layer, quantize_tensor, needs=[torch])
    if torch is None or not compiled:
        return [eager, Contender(name, why_not="not installed" if torch is None else "not with --quick")]
    quantize = torch.compile(quantize_tensor, fullgraph=True, dynamic=False)
    return [eager, peer(name, torch_qlinear, layer, quantize, needs=[torch], can_be_held=False)]


def torch_qlinear(name: str, layer: Layer, quantize: Callable[[Any], tuple[Any, Any, Any]]) -> Contender:
    x, bias, f32 = torch.from_numpy(layer.x), torch.from_numpy(layer.bias), torch.float32
    zero = torch.zeros(bias.shape, dtype=torch.int64)
    packed = []
    for weight in layer.weights:
        q, scale = map(torch.from_numpy, quantize_weight(weight))
        packed.append((torch.ops.onednn.qlinear_prepack(q, list(x.shape)), scale))
    linear, count = torch.ops.onednn.qlinear_pointwise.tensor, len(packed)

    def call(i: int) -> Any:
        weight, scale = packed[i % count]
        return linear(*quantize(x), weight, scale, zero, bias, 1.0, 0, f32, "none", [], "")

    return Contender(name, call, lambda: check_each(call, layer, INT8_ERROR))


def ort_dynamic(name: str, layer: Layer, threads: int) -> Contender:
    """All weights in one graph: a session per weight would bring its own thread pool each."""
    constants: dict[str, Any] = {"bias": layer.bias}
    outputs: dict[str, Array] = {}
    nodes = []
    for i, weight in enumerate(layer.weights):
        q, scale = quantize_weight(weight)
        constants |= {f"b{i}": np.ascontiguousarray(q.T), f"s{i}": scale}
        outputs[f"y{i}"] = np.empty((layer.x.shape[0], weight.shape[0]), np.float32)
        names = ["x", f"b{i}", f"s{i}", "", "bias"]
        nodes.append(onnx.helper.make_node("DynamicQuantizeMatMul", names, [f"y{i}"], domain="com.microsoft"))
    run = ort_session(nodes, constants, [({"x": layer.x}, outputs)], threads)

    def check() -> Parity:
        run(0)
        return check_each(lambda i: outputs[f"y{i}"], layer, INT8_ERROR)

    return Contender(name, run, check, units=len(layer.weights))


def openvino_dynamic(name: str, layer: Layer, threads: int) -> Contender:
    """All weights in one graph, as with onnxruntime. It chooses the groups of its activations' scales."""
    op = importlib.import_module("openvino.opset13")
    x = op.parameter(list(layer.x.shape), np.float32)
    nodes, outs = [], []
    for weight in layer.weights:
        q, scale = quantize_weight(weight)
        wide = op.multiply(op.convert(op.constant(q), "f32"), op.constant(scale[:, None]))
        nodes.append(op.add(op.matmul(x, wide, False, True), op.constant(layer.bias)))
        outs.append(np.empty((layer.x.shape[0], weight.shape[0]), np.float32))
    # AMX would otherwise make it bf16.
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    model = openvino.Core().compile_model(openvino.Model(nodes, [x]), "CPU", config)
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(layer.x, shared_memory=True))
    for i, out in enumerate(outs):
        request.set_output_tensor(i, openvino.Tensor(out, shared_memory=True))

    def run(_: int) -> None:
        request.infer()

    def check() -> Parity:
        run(0)
        return check_each(lambda i: outs[i], layer, INT8_ERROR)

    return Contender(name, run, check, units=len(layer.weights))
