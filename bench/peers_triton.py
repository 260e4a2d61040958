"""Triton kernels as a careful user writes and tunes them: int8 product with octavo's epilogue, row quantize.

Imported only where Triton is installed (`machine.optional`). B is [N, K]: both operands of the product are
contiguous along K, which Hopper's int8 tensor cores ask for.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

# BLOCK_M, BLOCK_N, BLOCK_K, stages, warps: of those that fit, the tuner keeps the fastest for each shape.
MANY_ROWS = (
    (128, 256, 128, 3, 8),
    (256, 128, 128, 3, 8),
    (128, 256, 64, 4, 8),
    (128, 128, 128, 4, 8),
    (128, 128, 128, 4, 4),
    (64, 256, 128, 4, 4),
    (64, 128, 128, 4, 4),
)
FEW_ROWS = (
    (16, 32, 256, 6, 4),
    (16, 32, 512, 4, 4),
    (16, 64, 256, 5, 4),
    (16, 128, 256, 4, 4),
    (16, 64, 128, 8, 4),
)
MOST_FEW_ROWS = 32


def tilings(m: int, k: int) -> list[tuple[int, int, int, int, int]]:
    """Those that suit M rows and divide K, which the kernel loads without a mask."""
    return [t for t in (FEW_ROWS if m <= MOST_FEW_ROWS else MANY_ROWS) if k % t[2] == 0]


def _configs() -> list[Any]:
    return [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}, num_stages=stages, num_warps=warps
        )
        for m, n, k, stages, warps in MANY_ROWS + FEW_ROWS
    ]


def _fitting(configs: list[Any], arguments: dict[str, Any], **more: Any) -> list[Any]:
    wanted = {t[:3] for t in tilings(arguments["M"], arguments["K"])}
    sizes = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    return [c for c in configs if tuple(c.kwargs[size] for size in sizes) in wanted]


@triton.jit  # type: ignore[untyped-decorator]
def gemm_kernel(  # type: ignore[no-untyped-def]
    a, b, a_scale, b_scale, bias, out, M, N, K,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # In groups of GROUP_M rows of tiles: blocks that run together share their operands in the L2.
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    block = tl.program_id(0)
    first = block // (GROUP_M * tiles_n) * GROUP_M
    group = tl.minimum(tiles_m - first, GROUP_M)
    within = block % (GROUP_M * tiles_n)
    rows = (first + within % group) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = within // group * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)

    # Rows and columns beyond the ends read the first ones again: no masks in the loop.
    a_tile = a + (rows % M)[:, None] * K + depth[None, :]
    b_tile = b + (cols % N)[None, :] * K + depth[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for _ in range(0, K, BLOCK_K):
        acc = tl.dot(tl.load(a_tile), tl.load(b_tile), acc, out_dtype=tl.int32)
        a_tile += BLOCK_K
        b_tile += BLOCK_K

    in_rows, in_cols = rows < M, cols < N
    y = acc.to(tl.float32) * tl.load(b_scale + cols, in_cols)[None, :]
    y *= tl.load(a_scale + rows, in_rows)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + cols, in_cols)[None, :].to(tl.float32)
    if GELU:
        y = 0.5 * y * (1.0 + libdevice.erf(y * 0.7071067811865476))
    place = out + rows.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(place, y.to(out.dtype.element_ty), in_rows[:, None] & in_cols[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def quantize_kernel(x, data, scale, K, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    v = tl.load(x + row * K + cols, cols < K, 0.0).to(tl.float32)
    amax = tl.max(tl.abs(v), 0)
    tl.store(scale + row, tl.div_rn(amax, 127.0))
    q = libdevice.rint(v * tl.div_rn(127.0, amax))
    tl.store(data + row * K + cols, q.to(tl.int8), cols < K)


_tuned_gemm = triton.autotune(
    _configs(), key=["M", "N", "K"], prune_configs_by={"early_config_prune": _fitting}
)(gemm_kernel)
_tuned_quantize = triton.autotune([triton.Config({}, num_warps=w) for w in (4, 8, 16)], key=["K"])(
    quantize_kernel
)


def gemm(a: Any, b: Any, a_scale: Any, b_scale: Any, bias: Any, out: Any, gelu: bool) -> None:
    """out [M, N] = gelu?(a [M, K] @ b [N, K].T * scales + bias?)."""
    (m, k), n = a.shape, b.shape[0]
    if not tilings(m, k):
        raise ValueError(f"K: expected a multiple of 128, got {k}")

    def grid(tile: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)

    has_bias = bias is not None
    _tuned_gemm[grid](a, b, a_scale, b_scale, bias if has_bias else out, out, m, n, k, has_bias, gelu)


def quantize_rows(x: Any, data: Any, scale: Any) -> None:
    """Rows of zeros are not provided for."""
    rows, cols = x.shape
    _tuned_quantize[(rows,)](x, data, scale, cols, triton.next_power_of_2(cols))
