"""Native CPU kernels. Pointers are integers, strides count elements, counts are int64.

Callers (`octavo.ops`) have validated everything; these functions release the GIL, split the work over
`threads` threads and only check what would otherwise be undefined behaviour. Dtype codes: 0 float32,
1 float16, 2 bfloat16, 3 float64, 4 int32. Activation codes: 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 silu. A
pointer of 0 means "absent".
"""

PACKED_VERSION: int

def isas_built() -> list[str]: ...
def isas_available() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def default_threads() -> int: ...
def threads_info() -> dict[str, str]: ...
def compiler() -> str: ...
def address(array: object) -> int: ...
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
    threads: int,
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
    threads: int,
) -> None: ...
def count_nonfinite(
    x: int, x_dtype: int, rows: int, cols: int, row_stride: int, col_stride: int, threads: int
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
    threads: int,
) -> None: ...
def magnitude_select(segments: list[tuple[int, int, int]], k: int, threads: int) -> tuple[int, int]: ...
def max_key(segments: list[tuple[int, int, int]], threads: int) -> int: ...

# w, dtype, n, mask, pruned; either of the last two may be 0, and pruned may be w
def prune(
    segments: list[tuple[int, int, int, int, int]], key: int, keep_equal_from: int, threads: int
) -> None: ...
def prune_quantize(
    w: int,
    dtype: int,
    rows: int,
    cols: int,
    key: int,
    keep_equal_from: int,
    mask: int,
    data: int,
    scale: int,
    threads: int,
) -> None: ...
def prune_nm(
    w: int, dtype: int, groups: int, n: int, m: int, mask: int, pruned: int, threads: int
) -> None: ...
def unit_scores(
    w: int, dtype: int, rows: int, cols: int, unit_rows: int, unit_cols: int, scores: int, threads: int
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
    threads: int,
) -> None: ...
def pack_mask(mask: int, rows: int, cols: int, bits: int, threads: int) -> None: ...
def unpack_mask(bits: int, rows: int, cols: int, mask: int, threads: int) -> None: ...

# kept: int64 [pairs of panels]; tiles: int64 [padded N / 4]
def count_weight(
    w: int, n: int, k: int, n_stride: int, k_stride: int, kept: int, tiles: int, threads: int
) -> None: ...

# layout: 0 dense, 1 bitmask, 2 block; counts: what count_weight wrote for it, 0 for dense
def pack_weight(
    w: int,
    n: int,
    k: int,
    n_stride: int,
    k_stride: int,
    layout: int,
    counts: int,
    buffer: int,
    threads: int,
) -> None: ...
def unpack_weight(buffer: int, nbytes: int, w: int, threads: int) -> None: ...
def sparse_pays() -> tuple[float, float]: ...
def packed_shape(buffer: int, nbytes: int) -> tuple[int, int]: ...
def int8_linear(
    x: int,
    x_dtype: int,
    m: int,
    n: int,
    k: int,
    row_stride: int,
    col_stride: int,
    symmetric: bool,
    buffer: int,
    nbytes: int,
    w_scale: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_row_stride: int,
    threads: int,
) -> None: ...
def int8_linears(
    x: int,
    x_dtype: int,
    m: int,
    k: int,
    row_stride: int,
    col_stride: int,
    symmetric: bool,
    # n, buffer, nbytes, w_scale, bias, bias_dtype, activation, out, out_row_stride
    targets: list[tuple[int, int, int, int, int, int, int, int, int]],
    out_dtype: int,
    threads: int,
) -> None: ...
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
    buffer: int,
    nbytes: int,
    w_scale: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_row_stride: int,
    threads: int,
) -> None: ...
def int8_conv2d(
    x: int,
    x_dtype: int,
    shape: tuple[int, ...],  # batch, channels, height, width
    strides: tuple[int, ...],
    kernel: tuple[int, ...],  # height, width; padding at the top and at the left
    window: tuple[int, ...],  # stride and dilation, both vertical and horizontal
    groups: int,
    n: int,
    weight: int,
    nbytes: int,
    w_scale: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_height: int,
    out_width: int,
    channels_last: bool,
    threads: int,
) -> None: ...
def weight_only_linear(
    x: int,
    x_dtype: int,
    m: int,
    n: int,
    k: int,
    row_stride: int,
    col_stride: int,
    buffer: int,
    nbytes: int,
    scale: int,
    groups: int,
    bias: int,
    bias_dtype: int,
    activation: int,
    out: int,
    out_dtype: int,
    out_row_stride: int,
    threads: int,
) -> None: ...

# Both return where the first index outside [0, entries) is, and write nothing then; else -1.
def embedding(
    data: int,
    scale: int,
    entries: int,
    dim: int,
    indices: int,
    wide: bool,
    count: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> int: ...
def embedding_bag(
    data: int,
    scale: int,
    entries: int,
    dim: int,
    indices: int,
    wide: bool,
    count: int,
    ends: int,
    bags: int,
    weights: int,
    padding: int,
    mode: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> int: ...
def probe_peak(milliseconds: float, threads: int) -> float: ...
def probe_read(buffer: int, nbytes: int, threads: int) -> int: ...
def probe_copy(source: int, target: int, nbytes: int, threads: int) -> None: ...
