"""Everybody else: torch and onnxruntime at the same work. A peer that is not installed is a row that says so.

Each peer gets what its users would give it at their best: weights packed ahead where it can, outputs written
into buffers that exist where it has a way to, and everybody's thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common import Contender, Parity, check_equal, check_steps
from held import held_isa
from machine import optional

Array = np.ndarray[Any, Any]

torch = optional("torch")
ort = optional("onnxruntime")
onnx = optional("onnx")


def prepare() -> None:
    if torch is not None:
        torch.set_grad_enabled(False)


def given(array: Array) -> Any:
    """The array as torch's users have it: a tensor on the same memory, or NumPy's own without torch."""
    return array if torch is None else torch.from_numpy(array)


def peer(
    name: str,
    build: Callable[..., Contender],
    *arguments: Any,
    needs: Sequence[Any],
    can_be_held: bool = True,
) -> Contender:
    """build(name, *arguments), or the row that says why there is none: nothing of a peer's stops a run."""
    isa = held_isa()
    if isa is not None and not can_be_held:
        return Contender(name, why_not=f"not held to {isa}")
    if any(module is None for module in needs):
        return Contender(name, why_not="not installed")
    try:
        return build(name, *arguments)
    except Exception as error:
        return Contender(name, why_not=f"failed: {type(error).__name__}: {error}".splitlines()[0][:100])


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


def rms_norm_rows(x: Any, weight: Any, data: Any, scale: Any) -> None:
    quantize_rows(torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6), data, scale)


def quantize_rows_asymmetric(x: Any, data: Any, scale: Any, zero_point: Any) -> None:
    low, high = x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)
    inverse = 255 / (high - low)
    zero = (-128 - low * inverse).round().clamp(-128, 127)
    scale.copy_((high - low) / 255)
    zero_point.copy_(zero)
    data.copy_(((x * inverse.unsqueeze(-1)).round() + zero.unsqueeze(-1)).clamp(-128, 127))


def dequantize_rows(data: Any, scale: Any, out: Any) -> None:
    out.copy_(data.float() * scale.unsqueeze(-1))


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
