"""Native CUDA kernels: the functions of `_core` for arrays on a device, with the same codes and units.

Callers have validated everything. Work is put on the stream, in order, and the functions return at once,
except where "waits" is said. `where` is (device, stream, allocate): allocate(nbytes) returns the address of
device memory, aligned to 256 bytes, that stays valid until the function returns. A failing CUDA call is a
RuntimeError that names it.
"""

from collections.abc import Callable
from typing import TypeAlias

Where: TypeAlias = tuple[int, int, Callable[[int], int]]

SELECTION_NBYTES: int  # what a selection on the device takes

def device_count() -> int: ...  # 0 without a driver
def capability(device: int) -> int: ...  # 90 for sm_90
def kernels() -> dict[str, bool]: ...  # the families, and whether each has passed on a GPU
def quantize(
    x: int,
    x_dtype: int,
    rows: int,
    groups: int,
    group_size: int,
    row_stride: int,
    col_stride: int,
    mask: int,
    data: int,
    data_row_stride: int,
    scale: int,
    zero_point: int,
    per_tensor: bool,
    given: bool,
    stochastic: bool,
    seed: int,
    where: Where,
) -> None: ...
def dequantize(
    data: int,
    rows: int,
    groups: int,
    group_size: int,
    row_stride: int,
    col_stride: int,
    scale: int,
    zero_point: int,
    per_tensor: bool,
    out: int,
    out_dtype: int,
    out_row_stride: int,
    where: Where,
) -> None: ...

# waits
def count_nonfinite(
    x: int, x_dtype: int, rows: int, cols: int, row_stride: int, col_stride: int, where: Where
) -> tuple[int, int]: ...
def norm_quantize(
    x: int,
    x_dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    col_stride: int,
    residual: int,
    sum: int,
    weight: int,
    bias: int,
    eps: float,
    centered: bool,
    data: int,
    scale: int,
    zero_point: int,
    normed: int,
    where: Where,
) -> None: ...

# waits
def magnitude_select(segments: list[tuple[int, int, int]], k: int, where: Where) -> tuple[int, int]: ...

# These two write SELECTION_NBYTES to the device address `selection`, for prune and prune_quantize to read.
# ratio_bits: those of a float32, which a caller that flushes denormals would lose.
def magnitude_select_to(
    segments: list[tuple[int, int, int]], k: int, selection: int, where: Where
) -> None: ...
def ratio_select_to(
    segments: list[tuple[int, int, int]], ratio_bits: int, selection: int, where: Where
) -> None: ...

# key and keep_equal_from are read if selection is 0
def prune(
    segments: list[tuple[int, int, int, int, int]],
    key: int,
    keep_equal_from: int,
    selection: int,
    where: Where,
) -> None: ...
def prune_quantize(
    w: int,
    dtype: int,
    rows: int,
    cols: int,
    key: int,
    keep_equal_from: int,
    selection: int,
    mask: int,
    data: int,
    scale: int,
    where: Where,
) -> None: ...
def prune_nm(
    w: int, dtype: int, groups: int, n: int, m: int, mask: int, pruned: int, where: Where
) -> None: ...
def unit_scores(
    w: int, dtype: int, rows: int, cols: int, unit_rows: int, unit_cols: int, scores: int, where: Where
) -> None: ...

# keep: bool [count]: all but the k smallest scores; or those not <= limit, with is_ratio limit * the largest
# finite one
def unit_select(scores: int, count: int, k: int, keep: int, where: Where) -> None: ...
def unit_threshold(
    scores: int, count: int, limit: float, is_ratio: bool, keep: int, where: Where
) -> None: ...
def prune_units(
    rows: int,
    cols: int,
    unit_rows: int,
    unit_cols: int,
    keep: int,
    w: int,
    dtype: int,
    mask: int,
    pruned: int,
    where: Where,
) -> None: ...
def pack_mask(mask: int, rows: int, cols: int, bits: int, where: Where) -> None: ...
def unpack_mask(bits: int, rows: int, cols: int, mask: int, where: Where) -> None: ...

# buffer: rows for CUDA (csrc/layouts.h), aligned to 16 bytes
def pack_weight(
    w: int, n: int, k: int, n_stride: int, k_stride: int, buffer: int, nbytes: int, where: Where
) -> None: ...
def unpack_weight(buffer: int, nbytes: int, n: int, k: int, w: int, where: Where) -> None: ...

# A weight is a packed buffer or, with n * k bytes and k divisible by 16, contiguous int8 rows.
def int8_linears(
    x: int,
    x_dtype: int,
    m: int,
    k: int,
    row_stride: int,
    col_stride: int,
    symmetric: bool,
    # n, weight, nbytes, w_scale, bias, bias_dtype, activation, out, out_row_stride
    targets: list[tuple[int, int, int, int, int, int, int, int, int]],
    out_dtype: int,
    where: Where,
) -> None: ...

# uint8 activations and zero points need a packed weight
def scaled_int_mm(
    a: int,
    a_signed: bool,
    m: int,
    n: int,
    k: int,
    row_stride: int,
    col_stride: int,
    a_scale: int,
    a_zero_point: int,
    weight: int,
    nbytes: int,
    w_scale: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_row_stride: int,
    where: Where,
) -> None: ...
