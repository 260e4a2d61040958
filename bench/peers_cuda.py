"""The peers of bench_cuda.py: what users of a GPU string together today.

cuBLASLt's int8 product is the one behind torch._int_mm; it has no epilogue for the scales of rows and
columns, so a compiled kernel of torch follows it. torch._int_mm refuses up to 16 rows: there the peers get
32, padded before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpu
import peers
from common import Contender, Parity
from gpu import check_near, check_share
from machine import optional
from peers import peer, torch

triton_kernels = optional("peers_triton")
torchao = optional("torchao")
bitsandbytes = optional("bitsandbytes")

LEAST_ROWS = 32  # torch._int_mm refuses 16 and fewer
PEER_ERROR = 0.01  # roundings to bfloat16, erf by another polynomial
INT8_ERROR = 0.05  # against a product without quantization
TIES = 0.01  # of a bfloat16 tensor, that have the k-th magnitude
STEPS = 1e-3  # of the integers: a reciprocal where the definition divides


# ---- products


@dataclass(frozen=True)
class Operands:
    """One set of buffers: x [M, K] bfloat16 and as int8 rows, the weight [N, K] as int8 rows, the result."""

    x: Any
    a: Any
    a_scale: Any
    weight: Any
    weight_scale: Any
    bias: Any  # bfloat16 [N], or None
    out: Any  # bfloat16 [M, N]


@dataclass(frozen=True)
class Product:
    m: int
    n: int
    k: int
    gelu: bool
    sets: Sequence[Operands]

    def at(self, i: int) -> Operands:
        return self.sets[i % len(self.sets)]

    @property
    def outs(self) -> list[Any]:
        return [operands.out for operands in self.sets]


def make_product(m: int, n: int, k: int, gelu: bool, count: int) -> Product:
    """Quantized Gaussians, other ones in every set; a bias comes with the activation."""

    def operands(i: int) -> Operands:
        x, w = (gpu.gaussian(rows, k, 2 * i + j) for j, rows in enumerate((m, n)))
        bias = gpu.gaussian(1, n, 2 * i + 1000)[0] if gelu else None
        out = gpu.empty(torch.bfloat16, m, n)
        return Operands(x, *gpu.quantized(x), *gpu.quantized(w / k**0.5), bias, out)

    return Product(m, n, k, gelu, [operands(i) for i in range(count)])


def padded(a: Any) -> Any:
    rows = max(LEAST_ROWS, a.shape[0])
    return torch.cat([a, a.new_zeros(rows - a.shape[0], a.shape[1])])


def sums(a: Any, weight: Any) -> Any:
    """The exact int32 product by the library."""
    return torch._int_mm(padded(a), weight.t())[: a.shape[0]]


def dequantize(acc: Any, a_scale: Any, weight_scale: Any, bias: Any, gelu: bool, out: Any) -> None:
    """octavo's epilogue, operation by operation."""
    y = (acc.float() * weight_scale) * a_scale.unsqueeze(-1)
    if bias is not None:
        y = y + bias.float()
    out.copy_(torch.nn.functional.gelu(y) if gelu else y)


def expected(s: Operands, gelu: bool) -> Any:
    """What octavo has to give: exact without an activation, which is taken in float64 here."""
    out = torch.empty_like(s.out, dtype=torch.float32)
    dequantize(sums(s.a, s.weight), s.a_scale, s.weight_scale, s.bias, False, out)
    if gelu:
        z = out.double()
        out = (0.5 * z * torch.erfc(-z / 2**0.5)).float()
    return out.bfloat16()


def check_product(p: Product) -> Parity:
    return check_near(p.at(0).out, expected(p.at(0), p.gelu), PEER_ERROR)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    done: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return done


def products(p: Product, quick: bool, make: Callable[..., Contender] = gpu.contender) -> list[Contender]:
    """Of int8 operands that exist."""
    rows = "" if p.m >= LEAST_ROWS else f", {LEAST_ROWS} rows"
    return [
        compiled_peer(f"cuBLASLt (torch._int_mm{rows}) + compiled dequantize", int_mm, p, make, quick=quick),
        peer("Triton, tuned", triton_gemm, p, make, needs=[torch, triton_kernels]),
        peer(f"torchao int_scaled_matmul{rows}", torchao_matmul, p, make, needs=[torch, torchao]),
        compiled_peer(
            "bitsandbytes int8_linear_matmul + compiled dequantize",
            bitsandbytes_matmul,
            p,
            make,
            quick=quick,
            needs=[bitsandbytes],
        ),
    ]


def linears(p: Product, quick: bool, make: Callable[..., Contender] = gpu.contender) -> list[Contender]:
    """Of a bfloat16 input, quantized on the way or not at all."""
    return [
        compiled_peer(
            "torch.compile: quantize, torch._int_mm, dequantize", dynamic_linear, p, make, quick=quick
        ),
        peer("torch bf16 linear", bf16_linear, p, make, needs=[torch]),
    ]


def compiled_peer(
    name: str, build: Callable[..., Contender], *arguments: Any, quick: bool, needs: Sequence[Any] = ()
) -> Contender:
    if quick:
        return Contender(name, why_not="not with --quick")
    return peer(name, build, *arguments, needs=[torch, *needs])


def product_contender(
    name: str, p: Product, make: Callable[..., Contender], call: Callable[[Operands], object], **more: Any
) -> Contender:
    return make(name, lambda i: call(p.at(i)), p.outs, lambda: check_product(p), len(p.sets), **more)


def int_mm(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    epilogue = compiled(dequantize)
    ready = {id(s): (padded(s.a), s.weight.t()) for s in p.sets}
    acc = gpu.empty(torch.int32, max(LEAST_ROWS, p.m), p.n)

    def call(s: Operands) -> None:
        torch._int_mm(*ready[id(s)], out=acc)
        epilogue(acc[: p.m], s.a_scale, s.weight_scale, s.bias, p.gelu, s.out)

    return product_contender(name, p, make, call)


def triton_gemm(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    def call(s: Operands) -> None:
        triton_kernels.gemm(s.a, s.weight, s.a_scale, s.weight_scale, s.bias, s.out, p.gelu)

    return product_contender(name, p, make, call)


def torchao_matmul(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    """It scales the rows; columns, bias and activation follow."""
    matmul = optional("torchao.kernel.intmm").int_scaled_matmul
    ready = {id(s): (padded(s.a), s.weight.t(), padded(s.a_scale.unsqueeze(-1))) for s in p.sets}

    def call(s: Operands) -> None:
        y = matmul(*ready[id(s)])[: p.m] * s.weight_scale
        y = y if s.bias is None else y + s.bias
        s.out.copy_(torch.nn.functional.gelu(y) if p.gelu else y)

    return product_contender(name, p, make, call)


def bitsandbytes_matmul(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    epilogue, matmul = compiled(dequantize), bitsandbytes.functional.int8_linear_matmul

    def call(s: Operands) -> None:
        epilogue(matmul(s.a, s.weight), s.a_scale, s.weight_scale, s.bias, p.gelu, s.out)

    return product_contender(name, p, make, call)


def quantize_and_multiply(x: Any, weight: Any, weight_scale: Any, bias: Any, gelu: bool, out: Any) -> None:
    v = x.float()
    amax = v.abs().amax(-1)
    a = (v * (127 / amax).unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    a = torch.nn.functional.pad(a, (0, 0, 0, max(0, LEAST_ROWS - x.shape[0])))
    acc = torch._int_mm(a, weight.t())[: x.shape[0]]
    dequantize(acc, amax / 127, weight_scale, bias, gelu, out)


def dynamic_linear(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    linear = compiled(quantize_and_multiply)

    def call(s: Operands) -> None:
        linear(s.x, s.weight, s.weight_scale, s.bias, p.gelu, s.out)

    return product_contender(name, p, make, call)


def bf16_linear(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    weights = {id(s): (s.weight * s.weight_scale.unsqueeze(-1)).bfloat16().t() for s in p.sets}

    def call(s: Operands) -> None:
        torch.mm(s.x, weights[id(s)], out=s.out)
        if p.gelu:
            s.out.copy_(torch.nn.functional.gelu(s.out + s.bias))

    def check() -> Parity:
        return check_near(p.at(0).out, expected(p.at(0), p.gelu), INT8_ERROR)

    work = 2.0 * p.n * p.k  # bytes: where the weight is the work, this one has two for each
    return make(name, lambda i: call(p.at(i)), p.outs, check, len(p.sets), work=work)


# ---- elementwise work; every function fills tensors that exist


def quantizers(
    xs: Sequence[Any], outs: Sequence[tuple[Any, Any]], check: Callable[[], Parity], quick: bool
) -> list[Contender]:
    def build(work: Callable[..., Any], name: str) -> Contender:
        return gpu.contender(
            name, lambda i: work(xs[i % len(xs)], *outs[i % len(xs)]), [*sum(outs, ())], check, len(xs)
        )

    return [
        peer("Triton", lambda name: build(triton_kernels.quantize_rows, name), needs=[torch, triton_kernels]),
        compiled_peer("torch.compile", lambda name: build(compiled(peers.quantize_rows), name), quick=quick),
        peer("torch eager", partial(build, peers.quantize_rows), needs=[torch]),
    ]


def mask_by_sort(w: Any, k: int, mask: Any) -> None:
    """Exact: lowest index first among equals."""
    order = w.abs().flatten().sort(stable=True).indices
    mask.fill_(True).view(-1).index_fill_(0, order[:k], False)


def mask_by_kthvalue(w: Any, k: int, mask: Any) -> None:
    """All that have the k-th magnitude go."""
    size = w.abs()
    torch.gt(size, size.flatten().kthvalue(k).values, out=mask)


def masks(w: Any, k: int, mask: Any, expected_mask: Any) -> list[Contender]:
    def build(work: Callable[..., None], share: float, name: str) -> Contender:
        return gpu.contender(
            name, lambda i: work(w, k, mask), [mask], lambda: check_share(mask, expected_mask, share), 1
        )

    return [
        peer("torch.sort", partial(build, mask_by_sort, 0.0), needs=[torch]),
        peer("torch.kthvalue", partial(build, mask_by_kthvalue, TIES), needs=[torch]),
    ]


def prune_2_4(w: Any, data: Any, scale: Any) -> None:
    size = w.abs().view(-1, 4)
    keep = torch.zeros_like(size, dtype=torch.bool).scatter_(1, size.topk(2, sorted=False).indices, True)
    peers.quantize_rows(w.masked_fill(~keep.view_as(w), 0), data, scale)


def packers_2_4(
    ws: Sequence[Any], outs: Sequence[tuple[Any, Any]], check: Callable[[], Parity]
) -> list[Contender]:
    """With cuSPARSELt's compressed layout, which it makes anew. Not in a graph: its library may wait."""

    def build(name: str) -> Contender:
        def call(i: int) -> object:
            data, scale = outs[i % len(ws)]
            prune_2_4(ws[i % len(ws)], data, scale)
            return torch._cslt_compress(data)

        return gpu.contender(name, call, [*sum(outs, ())], check, len(ws), graph=False)

    return [peer("torch eager + cuSPARSELt compress", build, needs=[torch])]
