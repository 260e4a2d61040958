"""Quantization against torch and onnxruntime: C6 row quantize; Q1 one scale, Q2 dequantize, Q3 RMSNorm. Sets
of buffers are used in turn, together more than the last-level cache holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import peers
from buffers import STEPS, inputs, ours, outputs
from cli import main
from common import Case, Contender, Parity, check_all, check_equal, check_steps
from machine import optional, rotation

octavo = optional("octavo")
reference = optional("octavo.reference")


def row_case(rows: int, cols: int, dtype: str, symmetric: bool, compiled: bool) -> Case:
    n, size = rows * cols, 2 if dtype == "bfloat16" else 4
    moved = n * (size + 1) + rows * (4 if symmetric else 8)
    how = "symmetric" if symmetric else "asymmetric"
    label = f"quantize {rows}x{cols} {dtype}, per row, {how}, out="

    def contenders() -> list[Contender]:
        xs = inputs(rows, cols, rotation(moved))
        given = [peers.given(x) for x in xs]
        expected_x = xs[0]
        if dtype == "bfloat16":
            if peers.torch is None:
                return [Contender(name, why_not="needs torch") for name in ("octavo", "torch")]
            given = [x.bfloat16() for x in given]
            expected_x = given[0].float().numpy()
        kinds: list[tuple[Any, bool]] = [(np.int8, True), (np.float32, False), (np.int32, False)]
        outs = outputs(xs, *(kinds[:2] if symmetric else kinds))
        expected = reference.quantize(expected_x, symmetric=symmetric)
        count = len(xs)

        def call(i: int) -> Any:
            return octavo.quantize(given[i % count], symmetric=symmetric, out=outs[i % count])

        def check() -> Parity:
            return check_all(*(check_equal(got, e) for got, e in zip(outs[0], expected, strict=False)))

        def arguments(i: int) -> tuple[Any, ...]:
            return (given[i % count], *outs[i % count])

        work = peers.quantize_rows if symmetric else peers.quantize_rows_asymmetric
        near = lambda: check_steps(outs[0][0], expected[0], STEPS)  # noqa: E731
        return [ours("octavo quantize", call, check), *peers.torch_pair(work, arguments, near, compiled)]

    return Case("C6", label, float(moved), "GB/s", "copy", contenders)


def tensor_case(rows: int, cols: int, threads: int, compiled: bool) -> Case:
    """Where onnxruntime has the same op: asymmetric, one scale. The range needs a read of its own."""
    moved = rows * cols * (4 + 4 + 1)
    label = f"quantize {rows}x{cols} float32, whole tensor, asymmetric, out="

    def contenders() -> list[Contender]:
        xs = inputs(rows, cols, rotation(moved))
        given = [peers.given(x) for x in xs]
        outs = [
            (data, scale[0], zero[0])
            for data, scale, zero in outputs(xs, (np.int8, True), (np.float32, False), (np.int32, False))
        ]
        if peers.torch is None:
            outs = [(data, np.zeros((), np.float32), np.zeros((), np.int32)) for data, _, _ in outs]
        expected = reference.quantize(xs[0], "tensor", symmetric=False)
        count = len(xs)

        def call(i: int) -> Any:
            x, out = given[i % count], outs[i % count]
            return octavo.quantize(x, granularity="tensor", symmetric=False, out=out)

        def check() -> Parity:
            return check_all(*(check_equal(got, e) for got, e in zip(outs[0], expected, strict=True)))

        def arguments(i: int) -> tuple[Any, ...]:
            x, (data, scale, zero) = given[i % count], outs[i % count]
            return x.view(1, -1), data.view(1, -1), scale.view(1), zero.view(1)

        def near() -> Parity:
            return check_steps(outs[0][0], expected[0], STEPS)

        return [
            ours("octavo quantize", call, check),
            *peers.quantizers_of_tensors(xs, expected[0], threads),
            *peers.torch_pair(peers.quantize_rows_asymmetric, arguments, near, compiled),
        ]

    return Case("Q1", label, float(moved), "GB/s", "copy", contenders)


def dequantize_case(rows: int, cols: int, threads: int, compiled: bool) -> Case:
    moved = rows * cols * (1 + 4) + rows * 4
    label = f"dequantize {rows}x{cols} -> float32, per row, out="

    def contenders() -> list[Contender]:
        rng = np.random.default_rng(rows + cols)
        datas = [rng.integers(-127, 128, (rows, cols), dtype=np.int8) for _ in range(rotation(moved))]
        scale = rng.random(rows, dtype=np.float32) + np.float32(0.5)
        given, given_scale = [peers.given(data) for data in datas], peers.given(scale)
        outs = [out for (out,) in outputs(datas, (np.float32, True))]
        expected = reference.dequantize(datas[0], scale)
        count = len(datas)

        def call(i: int) -> Any:
            return octavo.dequantize(given[i % count], given_scale, out=outs[i % count])

        def check() -> Parity:
            return check_equal(outs[0], expected)

        def arguments(i: int) -> tuple[Any, ...]:
            return given[i % count], given_scale, outs[i % count]

        return [
            ours("octavo dequantize", call, check),
            *peers.dequantizers(datas, scale, expected, threads),
            *peers.torch_pair(peers.dequantize_rows, arguments, check, compiled),
        ]

    return Case("Q2", label, float(moved), "GB/s", "copy", contenders)


def norm_case(rows: int, cols: int, dtype: str, compiled: bool) -> Case:
    """torch's users have one more way than the pair: torch's own RMSNorm, and octavo's quantize after it."""
    n, size = rows * cols, 2 if dtype == "bfloat16" else 4
    moved = n * (size + 1) + rows * 4
    label = f"RMSNorm + quantize {rows}x{cols} {dtype}, per row, symmetric, out="

    def contenders() -> list[Contender]:
        xs = inputs(rows, cols, rotation(moved))
        given, weight = (
            [peers.given(x) for x in xs],
            peers.given(np.linspace(0.5, 2.0, cols, dtype=np.float32)),
        )
        expected_x, expected_weight = xs[0], np.asarray(weight)
        if dtype == "bfloat16":
            if peers.torch is None:
                return [Contender(name, why_not="needs torch") for name in ("octavo", "torch")]
            given, weight = [x.bfloat16() for x in given], weight.bfloat16()
            expected_x, expected_weight = given[0].float().numpy(), weight.float().numpy()
        outs = outputs(xs, (np.int8, True), (np.float32, False))
        expected = reference.norm_quantize(expected_x, expected_weight)
        count = len(xs)

        def call(i: int) -> Any:
            return octavo.rms_norm_quantize(given[i % count], weight, out=outs[i % count])

        def check() -> Parity:
            return check_all(*(check_equal(got, e) for got, e in zip(outs[0], expected, strict=False)))

        def arguments(i: int) -> tuple[Any, ...]:
            return (given[i % count], weight, *outs[i % count])

        def near() -> Parity:
            # torch rounds to bfloat16 between norm and quantization
            return check_steps(outs[0][0], expected[0], STEPS if dtype == "float32" else 0.1)

        def then_quantize(x: Any, weight: Any, data: Any, scale: Any) -> None:
            octavo.quantize(
                peers.torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6), out=(data, scale)
            )

        name = "torch rms_norm, octavo quantize"
        half_ours = peers.peer(name, peers.torch_filling, then_quantize, arguments, near, needs=[peers.torch])
        pair = peers.torch_pair(peers.rms_norm_rows, arguments, near, compiled)
        return [ours("octavo rms_norm_quantize", call, check), half_ours, *pair]

    return Case("Q3", label, float(moved), "GB/s", "copy", contenders)


def make_cases(quick: bool, threads: int) -> Sequence[Case]:
    rows, cols, compiled = (512, 4096, False) if quick else (4096, 4096, True)
    return [
        row_case(rows, cols, "float32", True, compiled=True),
        row_case(rows, cols, "bfloat16", True, compiled),
        row_case(rows, cols, "float32", False, compiled),
        tensor_case(rows, cols, threads, compiled),
        dequantize_case(rows, cols, threads, compiled),
        norm_case(rows, cols, "float32", compiled),
        norm_case(rows, cols, "bfloat16", compiled),
    ]


if __name__ == "__main__":
    peers.prepare()
    sys.exit(main("quantization", make_cases))
