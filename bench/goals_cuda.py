"""The cases of bench_cuda.py, G1 to G10: octavo's contenders, their parity, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gpu
import peers
import peers_cuda
from common import Case, Contender, Parity, check_all
from goals import NOT_YET, Goal
from gpu import check_near, check_same, check_share
from machine import optional
from peers_cuda import Operands, Product, make_product
from targets import Bound, at_least, at_most, exact, of_limit, times_best

octavo = optional("octavo")
torch = optional("torch")

Shape = tuple[int, ...]


def ours(name: str, build: Callable[..., Contender], *arguments: Any) -> Contender:
    """build(name, *arguments), or the row that says why it cannot."""
    try:
        require_kernels()
        return build(name, *arguments)
    except Exception as error:
        why = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
        return Contender(name, ours=True, why_not=why)


def require_kernels() -> None:
    """Without them octavo would run its torch reference, which is nobody's number."""
    why_not = octavo.runtime.backends.why_not_cuda(torch.cuda.current_device(), ())
    if why_not:
        raise RuntimeError(why_not)


# ---- G1 to G6: products


def product_contender(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    weights = {id(s): octavo.pack_weight(s.weight, s.weight_scale) for s in p.sets}
    activation = "gelu" if p.gelu else None

    def multiply(s: Operands) -> Any:
        return octavo.scaled_int_mm(
            s.a, s.a_scale, weights[id(s)], s.bias, activation=activation, out_dtype="bfloat16", out=s.out
        )

    def check() -> Parity:
        first = p.at(0)
        whole = [compare(s.out, peers_cuda.expected(s, p.gelu), p.gelu) for s in (first, p.at(-1))]
        integers = check_same(
            octavo.int_mm(first.a, weights[id(first)]), peers_cuda.sums(first.a, first.weight)
        )
        return check_all(check_rows(first, p.gelu), integers, *whole)

    return make(name, lambda i: multiply(p.at(i)), p.outs, check, len(p.sets), ours=True)


def compare(got: Any, wanted: Any, gelu: bool) -> Parity:
    """Exact; behind an activation the CPU has the bits (check_rows), and float64 must be near."""
    return check_near(got, wanted, 1e-3) if gelu else check_same(got, wanted)


def check_rows(s: Operands, gelu: bool) -> Parity:
    """Some rows to the bit: those of the reference, or with an activation those of the CPU's kernels."""
    rows = torch.linspace(0, s.a.shape[0] - 1, min(8, s.a.shape[0])).long().unique()
    a, a_scale, out = (t.cpu()[rows] for t in (s.a, s.a_scale, s.out))
    with octavo.use_backend("auto" if gelu else "reference"):
        wanted = octavo.scaled_int_mm(
            a,
            a_scale,
            octavo.pack_weight(s.weight.cpu(), s.weight_scale.cpu()),
            None if s.bias is None else s.bias.cpu(),
            activation="gelu" if gelu else None,
            out_dtype="bfloat16",
        )
    return check_same(out, wanted)


def linear_contender(name: str, p: Product, make: Callable[..., Contender]) -> Contender:
    """From bfloat16: quantized per row on the way."""
    weights = {id(s): octavo.pack_weight(s.weight, s.weight_scale) for s in p.sets}

    def call(s: Operands) -> Any:
        return octavo.int8_linear(s.x, weights[id(s)], s.bias, out_dtype="bfloat16", out=s.out)

    def check() -> Parity:  # the rows of x are those of a
        return check_all(*(check_same(s.out, peers_cuda.expected(s, False)) for s in (p.at(0), p.at(-1))))

    return make(name, lambda i: call(p.at(i)), p.outs, check, len(p.sets), ours=True)


def absent(name: str) -> Contender:
    return Contender(name, ours=True, why_not=NOT_YET)


def gemm_goal(
    id: str,
    shape: Shape,
    *bounds: Bound,
    gelu: bool = False,
    quick: bool = False,
    hopper: bool = False,
) -> Goal:
    m, n, k = shape

    def contenders() -> list[Contender]:
        p = make_product(m, n, k, gelu, gpu.turns(m * k + n * k + 2 * m * n))
        kernels = [ours("octavo scaled_int_mm", product_contender, p, gpu.contender)]
        if hopper:
            kernels = [absent("octavo scaled_int_mm, Hopper's own kernel"), *kernels]
        return [*kernels, *peers_cuda.products(p, quick)]

    label = f"{m}x{n}x{k} s8 x s8 -> bf16{' + bias + gelu' if gelu else ''}"
    operations, traffic = 2.0 * m * n * k, float(m * k + n * k + 2 * m * n)
    return Goal(Case(id, label, operations, "TOPS", "int8 GEMM", contenders, operations, traffic), bounds)


def decode_goal(id: str, shape: Shape, *bounds: Bound, quick: bool = False, graph: bool = True) -> Goal:
    """Few rows: the weight is read once, and that is the work. As calls, the input comes as a user has it."""
    m, n, k = shape

    def contenders() -> list[Contender]:
        p = make_product(m, n, k, False, gpu.turns(n * k))
        make = partial(gpu.contender, graph=graph)
        kernels = [
            ours("octavo scaled_int_mm", product_contender, p, make),
            ours("octavo int8_linear from bf16", linear_contender, p, make),
        ]
        kernels = kernels if graph else kernels[::-1]
        return [*kernels, *peers_cuda.products(p, quick, make), *peers_cuda.linears(p, quick, make)]

    label = f"{m}x{n}x{k} -> bf16{'' if graph else ', eager calls'}"
    work = float(n * k)
    return Goal(Case(id, label, work, "TB/s", "device copy", contenders, 2.0 * m * n * k, work), bounds)


# ---- G7 to G9: quantize and prune


def quantize_goal(shape: Shape, *bounds: Bound, quick: bool) -> Goal:
    rows, cols = shape
    moved = rows * cols * (2 + 1) + rows * 4

    def contenders() -> list[Contender]:
        count = gpu.turns(moved)
        xs = [gpu.gaussian(rows, cols, i) for i in range(count)]
        outs = [(torch.empty_like(x, dtype=torch.int8), gpu.empty(torch.float32, rows)) for x in xs]
        wanted = gpu.quantized(xs[0])

        def kernel(name: str) -> Contender:
            return gpu.contender(
                name,
                lambda i: octavo.quantize(xs[i % count], out=outs[i % count]),
                [*sum(outs, ())],
                check,
                count,
                ours=True,
            )

        def check() -> Parity:
            some = torch.arange(0, rows, max(1, rows // 64))
            with octavo.use_backend("reference"):
                definition = octavo.quantize(xs[0].cpu()[some])
            whole = [check_same(got, w) for got, w in zip(outs[0], wanted, strict=True)]
            parts = zip(outs[0], definition[:2], strict=True)
            return check_all(*whole, *(check_same(got.cpu()[some], d) for got, d in parts))

        near = lambda: check_share(outs[0][0], wanted[0], peers_cuda.STEPS)  # noqa: E731
        return [ours("octavo quantize", kernel), *peers_cuda.quantizers(xs, outs, near, quick)]

    label = f"quantize {rows}x{cols} bf16, per row, out="
    return Goal(Case("G7", label, float(moved), "TB/s", "device copy", contenders), bounds)


def mask_goal(shape: Shape, *bounds: Bound) -> Goal:
    rows, cols = shape
    n = rows * cols

    def contenders() -> list[Contender]:
        w = gpu.gaussian(rows, cols)
        mask = torch.empty_like(w, dtype=torch.bool)
        wanted = torch.empty_like(mask)
        peers_cuda.mask_by_sort(w, n // 2, wanted)

        def kernel(name: str) -> Contender:
            call = lambda i: octavo.prune_mask(w, sparsity=0.5, out=mask)  # noqa: E731
            return gpu.contender(name, call, [mask], check, 1, ours=True)

        def check() -> Parity:
            part = w[:64, :1000]
            with octavo.use_backend("reference"):
                definition = octavo.prune_mask(part.cpu(), sparsity=0.5)
            small = check_same(octavo.prune_mask(part, sparsity=0.5).cpu(), definition)
            return check_all(small, check_same(mask, wanted))

        return [ours("octavo prune_mask", kernel), *peers_cuda.masks(w, n // 2, mask, wanted)]

    label = f"exact 50 % mask of {rows}x{cols} bf16, out="
    return Goal(Case("G8", label, 3.0 * n, "TB/s", "device copy", contenders), bounds)


def pack_goal(shape: Shape, *bounds: Bound) -> Goal:
    """The work of the whole: the weight in, half of it as int8 and its places (2 bits each) out."""
    rows, cols = shape
    n = rows * cols
    moved = n * 2 + n // 2 + n // 8 + rows * 4

    def contenders() -> list[Contender]:
        count = gpu.turns(moved)
        ws = [gpu.gaussian(rows, cols, i) for i in range(count)]
        outs = [
            (
                torch.empty_like(w, dtype=torch.int8),
                gpu.empty(torch.float32, rows),
                torch.empty_like(w, dtype=torch.bool),
            )
            for w in ws
        ]
        some = torch.arange(0, rows, max(1, rows // 64))
        with octavo.use_backend("reference"):
            found, kept = octavo.prune_quantize(ws[0].cpu()[some], pattern="2:4")

        def kernel(name: str) -> Contender:
            call = lambda i: octavo.prune_quantize(ws[i % count], pattern="2:4", out=outs[i % count])  # noqa: E731
            return gpu.contender(name, call, [*sum(outs, ())], check, count, ours=True)

        def check() -> Parity:
            parts = zip(outs[0], (found.data, found.scale, kept), strict=True)
            return check_all(*(check_same(got.cpu()[some], wanted) for got, wanted in parts))

        return [
            absent("octavo prune 2:4, quantize, pack"),
            ours("octavo prune_quantize 2:4, data and mask, not packed", kernel),
            *peers_cuda.packers_2_4(
                ws,
                [out[:2] for out in outs],
                lambda: check_share(outs[0][0].cpu()[some], found.data, peers_cuda.TIES),
            ),
        ]

    label = f"prune 2:4 + quantize + pack {rows}x{cols} bf16"
    return Goal(Case("G9", label, float(moved), "TB/s", "device copy", contenders), bounds)


# ---- G10: any shape


def shapes_goal(quick: bool) -> Goal:
    """The time of one odd shape stands for none of the others; what counts is that all are exact."""
    ms = (1, 16, 17, 33) if quick else range(1, 34)
    m, n, k = 33, 4099, 4093
    operands = [(n, k)] if quick else [(n, k), (1, 1), (7, 129), (130, 4), (1003, 2047)]

    def contenders() -> list[Contender]:
        data = [
            (gpu.quantized(gpu.gaussian(m, k, 1))[0], gpu.quantized(gpu.gaussian(n, k, 2))[0])
            for n, k in operands
        ]
        out = gpu.empty(torch.int32, m, n)

        def kernel(name: str) -> Contender:
            packed = octavo.pack_weight(data[0][1])
            call = lambda i: octavo.int_mm(data[0][0], packed, out=out)  # noqa: E731
            return gpu.contender(name, call, [out], check, 1, ours=True)

        def check() -> Parity:
            found = [check_same(out, exact_sums(*data[0]))]
            for a, b in data:
                packed = octavo.pack_weight(b)
                found += [check_same(octavo.int_mm(a[:m], packed), exact_sums(a[:m], b)) for m in ms]
            worst = check_all(*found)
            return replace(worst, detail=f"{worst.detail}, {len(found) - 1} shapes") if worst.ok else worst

        return [
            ours("octavo int_mm, packed", kernel),
            peers.peer("torch._int_mm", refused, data[0], needs=[torch]),
        ]

    label = f"any shape: M = {ms[0]} to {ms[-1]}, odd N and K; timed {m}x{n}x{k} s8 -> s32"
    work = 2.0 * m * n * k
    return Goal(Case("G10", label, work, "TOPS", "int8 GEMM", contenders), [exact()])


def exact_sums(a: Any, b: Any) -> Any:
    """float64 holds every partial sum."""
    return (a.double() @ b.double().t()).to(torch.int32)


def refused(name: str, operands: tuple[Any, Any]) -> Contender:
    a, b = operands
    out = gpu.empty(torch.int32, a.shape[0], b.shape[0])
    call = lambda i: torch._int_mm(a, b.t(), out=out)  # noqa: E731
    return gpu.contender(name, call, [out], lambda: check_same(out, exact_sums(a, b)), 1)


# ---- all of them


def make_goals(quick: bool) -> list[Goal]:
    def small(*sizes: int) -> Shape:
        return tuple(max(256, size // 16 // 256 * 256) if quick and size > 256 else size for size in sizes)

    return [
        gemm_goal("G1", small(2048, 4096, 8192), times_best(1.05), quick=quick),
        gemm_goal("G2", small(4096, 7168, 16384), at_least(1400, "TOPS"), quick=quick, hopper=True),
        gemm_goal("G3", small(4096, 4096, 4096), times_best(1.3), gelu=True, quick=quick),
        gemm_goal("G4", small(128, 8192, 21760), times_best(1.08), quick=quick),
        decode_goal("G5", small(1, 8192, 21760), at_least(2.7, "TB/s"), quick=quick),
        decode_goal("G5", small(16, 8192, 21760), at_least(2.7, "TB/s"), quick=quick),
        decode_goal("G6", small(1, 4096, 4096), at_most(7.5e-6), quick=quick),
        decode_goal("G6", small(1, 4096, 4096), at_most(12e-6), quick=quick, graph=False),
        quantize_goal(small(8192, 8192), of_limit(0.9), times_best(1.0), quick=quick),
        mask_goal(small(16384, 16384), at_most(0.7e-3), times_best(20, "torch.sort")),
        pack_goal(small(8192, 8192), of_limit(0.8), times_best(8, "torch eager")),
        shapes_goal(quick),
    ]
