"""Native CPU kernels. Addresses are integers, 0 where there is nothing; strides count elements, counts are
int64.

What belongs together comes as a record, everything else by name; only the first argument may come by
position. Callers (`octavo.ops`) have validated everything and keep the memory alive; these functions release
the GIL, split the work over `where` threads and only check what would otherwise be undefined behaviour.

Dtype codes: 0 float32, 1 float16, 2 bfloat16, 3 float64, 4 int32. Activation codes: 0 none, 1 relu, 2 gelu,
3 gelu_tanh, 4 silu.
"""

PACKED_VERSION: int
MAX_K: int  # of signed integers without zero points
MAX_K_UNSIGNED: int  # of others
MAX_TAPS: int  # of a depthwise convolution without a packed weight
PANEL_COLUMNS: int  # packed weights are padded to whole panels of so many columns and terms
PANEL_TERMS: int
GROUP_TERMS: int  # that stand beside each other in a packed weight

def isas_built() -> list[str]: ...
def isas_available() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def few_rows() -> tuple[int, str]:
    """Products of up to so many rows run on the kernels of another instruction set, and of which; (0, "") if
    none do."""

def default_threads() -> int: ...
def threads_info() -> dict[str, str]: ...
def compiler() -> str: ...
def address(array: object) -> int:
    """Of a NumPy array's elements."""

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

class Weight:
    """A packed weight [n, k]. ValueError where its header says anything else; it is not read again."""

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

class Image:
    """Float samples, any strides."""

    def __init__(
        self,
        address: int,
        *,
        dtype: int,
        batch: int,
        channels: int,
        height: int,
        width: int,
        batch_stride: int,
        channel_stride: int,
        row_stride: int,
        col_stride: int,
    ) -> None: ...

class Window:
    """How a kernel moves over an image; the padding below and at the right follows from the output's size."""

    def __init__(
        self, stride_h: int, *, stride_w: int, dilation_h: int, dilation_w: int, pad_top: int, pad_left: int
    ) -> None: ...

class ConvWeight:
    """A packed weight for each group, one after the other; or, where channels = groups = n, int8 taps
    [kernel_h * kernel_w, n]. channels: the image's. Checked as Weight is."""

    def __init__(
        self,
        address: int,
        *,
        nbytes: int,
        n: int,
        channels: int,
        kernel_h: int,
        kernel_w: int,
        groups: int,
    ) -> None: ...

class Table:
    """int8 [entries, dim], contiguous, with a float32 scale for each row."""

    def __init__(self, address: int, *, scale: int, entries: int, dim: int) -> None: ...

class Integers:
    """int64 if wide, else int32; contiguous."""

    def __init__(self, address: int, *, wide: bool, count: int) -> None: ...

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
    where: int,
) -> None:
    """Writes data, and scales unless they are given. mask: bool, contiguous, like x; x reads as 0 where it is
    False."""

def dequantize(
    data: IntRows, *, scales: Scales, out: int, out_dtype: int, out_row_stride: int, where: int
) -> None: ...
def count_nonfinite(x: FloatRows, *, where: int) -> tuple[int, int]:
    """How many are not finite, and the row-major index of the first, or -1."""

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
    where: int,
) -> None:
    """All but x are contiguous. sum: where x + residual goes."""

def magnitude_select(segments: list[Segment], *, k: int, where: int) -> tuple[int, int]:
    """key and keep_equal_from of the Selection that keeps all but the k smallest."""

def max_key(segments: list[Segment], *, where: int) -> int:
    """The largest key of the finite elements; 0 if there are none."""

def prune(segments: list[Segment], *, selection: Selection, where: int) -> None: ...
def prune_quantize(
    w: FloatRows, *, selection: Selection, mask: int, data: int, scale: int, where: int
) -> None:
    """w has to be contiguous."""

def prune_nm(segment: Segment, *, n: int, m: int, where: int) -> None:
    """The n largest of each m stay."""

def unit_scores(segment: Segment, *, grid: UnitGrid, scores: int, where: int) -> None:
    """scores: float64, one for each unit."""

def prune_units(segment: Segment, *, grid: UnitGrid, keep: int, where: int) -> None:
    """keep: bool, one for each unit."""

def pack_mask(mask: int, *, rows: int, cols: int, bits: int, where: int) -> None: ...
def unpack_mask(bits: int, *, rows: int, cols: int, mask: int, where: int) -> None: ...
def packed_shape(address: int, *, nbytes: int) -> tuple[int, int]:
    """n and k of a packed weight. ValueError where it is none."""

def count_weight(w: IntRows, *, kept: int, tiles: int, where: int) -> None:
    """What the sparse layouts would keep. kept: int64 [pairs of panels]; tiles: int64 [padded n / 4]."""

def pack_weight(w: IntRows, *, layout: int, counts: int, buffer: int, where: int) -> None:
    """layout: 0 dense, 1 bitmask, 2 block; counts: what count_weight wrote for it, 0 for dense."""

def unpack_weight(weight: Weight, *, w: int, where: int) -> None:
    """w: int8, contiguous [n, k]."""

def int8_linears(x: FloatRows, *, targets: list[Target], symmetric: bool, where: int) -> None:
    """x is quantized once for all targets."""

def scaled_int_mm(a: IntRows, *, a_scale: int, a_zero_point: int, target: Target, where: int) -> None:
    """a_scale: float32 [rows]; a_zero_point: int32 [rows]."""

def sparse_pays() -> tuple[float, float]:
    """The shares of kept weights and of kept tiles below which a layout is faster than dense."""

def weight_only_linear(x: FloatRows, *, target: Target, scale: int, groups: int, where: int) -> None:
    """scale: float32 [n, groups]; that of the target is not read."""

def unpack_conv_weight(weight: ConvWeight, *, bundle: int, w: int, where: int) -> None:
    """bundle: how many groups a packed matrix holds, as blocks in zeros; w: int8, contiguous [n, channels /
    (groups * bundle), kernel_h, kernel_w]."""

def int8_conv2d(
    x: Image,
    *,
    weight: ConvWeight,
    window: Window,
    scale: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_height: int,
    out_width: int,
    channels_last: bool,
    where: int,
) -> None: ...
def embedding(table: Table, *, indices: Integers, out: int, out_dtype: int, where: int) -> int:
    """Returns where the first index outside [0, entries) is, and writes nothing then; else -1."""

def embedding_bag(
    table: Table,
    *,
    indices: Integers,
    ends: int,
    bags: int,
    weights: int,
    padding: int,
    mode: int,
    out: int,
    out_dtype: int,
    where: int,
) -> int:
    """Returns what embedding does. mode: 0 sum, 1 mean, 2 max."""

def probe_peak(milliseconds: float, *, threads: int) -> float: ...
def probe_read(buffer: int, *, nbytes: int, threads: int) -> int: ...
def probe_copy(source: int, *, target: int, nbytes: int, threads: int) -> None: ...
