"""Native CUDA kernels: the functions and records of `_core` for arrays on a device, with the same codes and
units.

Callers have validated everything. Work is put on the stream, in order, and the functions return at once,
except where "waits" is said. `where` is (device, stream, allocate): allocate(nbytes) returns the address of
device memory, aligned to 256 bytes, that stays valid until the function returns. A failing CUDA call is a
RuntimeError that names it.
"""

from collections.abc import Callable
from typing import TypeAlias

Where: TypeAlias = tuple[int, int, Callable[[int], int]]

SELECTION_NBYTES: int  # what a selection on the device takes
ROW_BYTES: int  # what the rows of a weight that is not packed have to begin at

def device_count() -> int: ...  # 0 without a driver
def capability(device: int) -> int: ...  # 90 for sm_90
def kernels() -> dict[str, bool]: ...  # the families, and whether each has passed on a GPU

# ---- records ----

class FloatRows:
    """A 2-D view of float elements, any strides."""

    def __init__(
        self, address: int, *, dtype: int, rows: int, cols: int, row_stride: int, col_stride: int
    ) -> None: ...

class IntRows:
    """A 2-D view of int8 elements, or uint8 where it is not signed; any strides."""

    def __init__(
        self, address: int, *, signed: bool, rows: int, cols: int, row_stride: int, col_stride: int
    ) -> None: ...

class Scales:
    """The float32 scales of quantized rows and their int32 zero points (0: symmetric): one for each of
    `groups` groups of group_size elements of a row, or one for everything if per_tensor."""

    def __init__(
        self, address: int, *, zero_point: int, groups: int, group_size: int, per_tensor: bool
    ) -> None: ...

class Segment:
    """A contiguous tensor, of a list that is treated as one, and where its mask and its pruned values go:
    either may be 0, and pruned may be address."""

    def __init__(self, address: int, *, dtype: int, n: int, mask: int, pruned: int) -> None: ...

class UnitGrid:
    """A matrix of whole units."""

    def __init__(self, rows: int, *, cols: int, unit_rows: int, unit_cols: int) -> None: ...

class Selection:
    """Elements with a larger key are kept; of those with this key, the ones from an index of the whole list
    on."""

    def __init__(self, key: int, *, keep_equal_from: int) -> None: ...

def selection_at(address: int) -> Selection:
    """The one that is on the device when it is needed."""

class Weight:
    """A packed weight [n, k], or with n * k bytes and k divisible by ROW_BYTES contiguous int8 rows. Only its
    size is checked: a look at its header would wait for the device."""

    def __init__(self, address: int, *, nbytes: int, n: int, k: int) -> None: ...

class Target:
    """One weight of a product, and where its result goes. scale: float32 [n], not read where out_dtype is
    int32; bias: [n]."""

    def __init__(
        self,
        weight: Weight,
        *,
        scale: int,
        bias: int,
        bias_dtype: int,
        activation: int,
        out: int,
        out_dtype: int,
        out_row_stride: int,
    ) -> None: ...

# ---- kernels ----

def quantize(
    x: FloatRows,
    *,
    scales: Scales,
    mask: int,
    data: int,
    data_row_stride: int,
    given: bool,
    stochastic: bool,
    seed: int,
    where: Where,
) -> None:
    """Writes data, and scales unless they are given. mask: bool, contiguous, like x; x reads as 0 where it is
    False."""

def dequantize(
    data: IntRows, *, scales: Scales, out: int, out_dtype: int, out_row_stride: int, where: Where
) -> None: ...
def count_nonfinite(x: FloatRows, *, where: Where) -> tuple[int, int]:
    """How many are not finite, and the row-major index of the first, or -1. Waits."""

def norm_quantize(
    x: FloatRows,
    *,
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
) -> None:
    """All but x are contiguous. sum: where x + residual goes. zero_point and normed: 0."""

def magnitude_select(segments: list[Segment], *, k: int, where: Where) -> tuple[int, int]:
    """key and keep_equal_from of the Selection that keeps all but the k smallest. Waits."""

def magnitude_select_to(segments: list[Segment], *, k: int, selection: int, where: Where) -> None:
    """Writes SELECTION_NBYTES to the device address `selection`."""

def ratio_select_to(segments: list[Segment], *, ratio_bits: int, selection: int, where: Where) -> None:
    """Likewise; ratio_bits: those of a float32, which a caller that flushes denormals would lose."""

def prune(segments: list[Segment], *, selection: Selection, where: Where) -> None: ...
def prune_quantize(
    w: FloatRows, *, selection: Selection, mask: int, data: int, scale: int, where: Where
) -> None:
    """w has to be contiguous."""

def prune_nm(segment: Segment, *, n: int, m: int, where: Where) -> None:
    """The n largest of each m stay."""

def unit_scores(segment: Segment, *, grid: UnitGrid, scores: int, where: Where) -> None:
    """scores: float64, one for each unit."""

def unit_select(scores: int, *, count: int, k: int, keep: int, where: Where) -> None:
    """keep: bool [count], True for all but the k smallest scores."""

def unit_threshold(scores: int, *, count: int, limit: float, is_ratio: bool, keep: int, where: Where) -> None:
    """keep: True for those not <= limit, with is_ratio limit * the largest finite one."""

def prune_units(segment: Segment, *, grid: UnitGrid, keep: int, where: Where) -> None:
    """keep: bool, one for each unit."""

def pack_mask(mask: int, *, rows: int, cols: int, bits: int, where: Where) -> None: ...
def unpack_mask(bits: int, *, rows: int, cols: int, mask: int, where: Where) -> None: ...
def pack_weight(w: IntRows, *, buffer: int, nbytes: int, where: Where) -> None:
    """buffer: rows for CUDA (csrc/layouts.h), aligned to 16 bytes."""

def unpack_weight(weight: Weight, *, w: int, where: Where) -> None:
    """w: int8, contiguous [n, k]."""

def int8_linears(x: FloatRows, *, targets: list[Target], symmetric: bool, where: Where) -> None:
    """x is quantized once for all targets."""

def scaled_int_mm(a: IntRows, *, a_scale: int, a_zero_point: int, target: Target, where: Where) -> None:
    """a_scale: float32 [rows]; a_zero_point: int32 [rows]. With one, or uint8 a,
    the weight has to be packed."""
