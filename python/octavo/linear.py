"""pack_weight and int8_linear: what they check, allocate and call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import backends
from .arrays import (
    DTYPE_CODES,
    FLOAT_CODES,
    FLOATS,
    Array,
    as_dtype_name,
    as_rows,
    check_dtype,
    check_outs,
    contiguous,
    copy_contiguous,
    dtype_name,
    empty,
    float_code,
    is_plain,
    is_torch,
    kind_of,
    mark_written,
    needs_dispatcher,
    on_cuda,
    plain_address,
    pointer,
    pointer_of,
    store,
    writable_rows,
)
from .backends import _core
from .engines import Engine, native_for, reference_for
from .packed import (
    LAYOUTS,
    MAX_K,
    MAX_K_UNSIGNED,
    PackedWeight,
    aligned,
    check_home,
    check_scale,
    pack,
    pack_buffer,
    packed_nbytes,
    read_header,
    unpack_buffer,
)
from .quantization import Quantized, quantize

_ACTIVATION_NAMES = ("relu", "gelu", "gelu_tanh", "silu")
CUDA_ROW = 16  # bytes: what rows have to begin at for CUDA kernels to read them as they are
ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
_OUT_DTYPES = ("float32", "float16", "bfloat16", "int32")


def pack_weight(weight: Array, scale: Array | None = None, *, layout: str = "auto") -> PackedWeight:
    """Packs a weight for int_mm, int8_linear and scaled_int_mm. Do it once: it costs a pass over the weight.

    weight: [N, K], any strides: float (quantized per row here, as quantize does) or int8; K <= 131,071.
    scale: float32 [N] or [N, 1] for an int8 weight (None: for int_mm only); None for a float weight.
    layout: how zeros are stored; results are the same to the bit.
        "dense": as any other weight.
        "bitmask": a bit for each weight, and those that are not zero.
        "block": tiles of 4 rows x 16 columns ("block4x16" of prune_mask); those with zeros only are left out.
        "auto": the smallest of those that are faster than "dense" for the share of zeros here and the
            instruction set in use; else, in traced code and without native kernels, "dense". A weight on a
            device is always "dense": ValueError for the other two.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout: expected 'auto', 'dense', 'bitmask' or 'block', got {layout!r}")
    kind_of(weight=weight, scale=scale)
    if weight.ndim != 2:
        raise ValueError(f"weight: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    if is_torch(weight):
        weight, scale = weight.detach(), None if scale is None else scale.detach()
    if dtype_name(weight.dtype) in FLOATS:
        if scale is not None:
            raise ValueError("scale: expected None with a float weight, which is quantized here, got a scale")
        weight, scale, _ = quantize(weight)
    elif dtype_name(weight.dtype) == "int8":
        check_scale(scale, "scale", n)
        scale = None if scale is None else copy_contiguous(scale).reshape(n)
    else:
        raise TypeError(f"weight: expected dtype int8 or a float dtype, got {dtype_name(weight.dtype)}")
    if needs_dispatcher(weight):
        from . import torch_ops

        layout = "dense" if layout == "auto" else layout
        return PackedWeight.trusted(torch_ops.pack_weight(weight, layout), scale, (n, k), layout)
    buffer, layout = pack(weight, layout)
    return PackedWeight.trusted(buffer, scale, (n, k), layout)


def int8_linear(
    x: Array,
    weight: PackedWeight | Quantized | Array | Sequence[PackedWeight | Quantized | Array],
    bias: Array | Sequence[Array | None] | None = None,
    *,
    activation: str | Sequence[str | None] | None = None,
    symmetric: bool = True,
    out_dtype: Any = None,
    out: Array | Sequence[Array] | None = None,
) -> Any:
    """y = activation(x @ weight.T + bias), with x quantized to int8 per row on the fly and exact integer
    sums.

    x: float32, float16, bfloat16 or float64 [..., K]; a copy is made only where its leading dimensions don't
        collapse into one stride. weight: a PackedWeight of shape (N, K) with a scale; a Quantized (symmetric,
        per row) or a float [N, K] is packed on every call, which costs passes over it: pack_weight does that
        once; or a list or tuple of them, see below.
    bias: float [N] of any float dtype. activation: None, "relu", "gelu", "gelu_tanh" or "silu".
    symmetric: False gives each row of x a zero point, so that a row that is not centered on 0 (what follows a
        GELU, an outlier of one sign) loses fewer of its 256 steps: more accurate, a little slower, and
        K <= 65,793.
    out_dtype: "float32", "float16" or "bfloat16" (or NumPy's or torch's name for it; "int32": the sums
        themselves); x's own by default, float32 for float64. A row's result depends on nothing but that row.
    out: [..., N] of that dtype to fill; one whose rows are not contiguous or don't collapse costs a
        temporary.

    Layers that share their input (q, k and v; gate and up) can share its quantization: with a list of weights
    [N_i, K], of one K, x is read and quantized once, and the result is a list of arrays [..., N_i], each with
    the bits of a call of its own. bias and out are then None or a list with one for each weight (a bias may
    be None); activation is one for all or such a list; out_dtype is one for all. ValueError for an empty
    list, or for lists of other lengths.
    """
    if type(weight) is not PackedWeight:
        if isinstance(weight, (list, tuple)) and not isinstance(weight, Quantized):
            return _shared_int8_linear(x, weight, bias, activation, symmetric, out_dtype, out)
        weight = _pack_operand(weight)
    if type(x) is not np.ndarray and needs_dispatcher(x, bias):
        from . import torch_ops

        arguments: dict[str, Any] = {"bias": bias, "activation": activation, "out": out}
        return torch_ops.int8_linear(x, weight, **arguments, symmetric=symmetric, out_dtype=out_dtype)
    return _int8_linear(x, weight, None, bias, activation, out_dtype, out, symmetric)


def _int8_linear(
    x: Array,
    weight: Any,
    weight_scale: Array | None = None,
    bias: Array | None = None,
    activation: Any = None,
    out_dtype: Any = None,
    out: Array | None = None,
    symmetric: bool = True,
) -> Array:
    """int8_linear, without torch's dispatcher; weight: also a packed buffer or int8 [N, K], with scale."""
    packed = type(weight) is PackedWeight
    operands = weight.operands if packed else _operand(weight, weight_scale, x)
    if out_dtype is None and backends.native and (packed or weight.ndim == 1):
        result = _tiny_int8_linear(x, operands, bias, activation, symmetric, out, weight if packed else None)
        if result is not None:
            return result
    outs = None if out is None else [out]
    return _linears(x, [operands], [bias], [activation], [""], symmetric, out_dtype, outs)[0]


def _tiny_int8_linear(
    x: Array,
    operands: tuple[int, int, Array, Array | None],
    bias: Array | None,
    activation: str | None,
    symmetric: bool,
    out: Array | None = None,
    packed: PackedWeight | None = None,
) -> Array:
    """What _int8_linear does for contiguous arrays of the usual dtypes, or None where x is anything else.

    It repeats the checks of _int8_linear without its function calls, which cost more than a tiny product.
    """
    n, k, buffer, scale = operands
    x_address = plain_address(x, buffer)
    if not x_address or scale is None or (activation is not None and activation not in _ACTIVATION_NAMES):
        return None
    shape, code = tuple(x.shape), FLOAT_CODES.get(x.dtype, 3)  # a slice of a torch.Size costs 0.3 us
    if not shape or shape[-1] != k or code == 3 or not (symmetric or k <= MAX_K_UNSIGNED):
        return None
    lead = shape[:-1]
    rows = math.prod(lead)
    bias_address = bias_code = 0
    if bias is not None:
        bias_address = plain_address(bias, buffer)
        bias_code = FLOAT_CODES.get(bias.dtype, -1) if bias_address else -1
        if bias_code < 0 or bias.shape != (n,):
            return None
    if out is not None and type(out) is not type(x):
        return None
    if type(x) is np.ndarray:
        at = _core.address
        result = np.empty((*lead, n), x.dtype) if out is None else out
        weight_address, scale_address, address = at(buffer), at(scale), at(result)
    elif buffer.is_cpu:
        result = x.new_empty(*lead, n) if out is None else out
        weight_address, scale_address, address = buffer.data_ptr(), scale.data_ptr(), result.data_ptr()
    else:
        return None
    if out is not None:
        if out.dtype != x.dtype or out.shape != (*lead, n) or not plain_address(out, buffer):
            return None
        if not (out.flags.writeable if type(x) is np.ndarray else not out.requires_grad):
            return None
        end = address + rows * n * x.itemsize
        bias_end = bias_address if bias is None else bias_address + n * bias.itemsize
        if (
            (x_address < end and address < x_address + rows * k * x.itemsize)
            or (weight_address < end and address < weight_address + buffer.shape[0])
            or (scale_address < end and address < scale_address + 4 * n)
            or (bias_address < end and address < bias_end)
        ):
            return None
    checked: tuple[int, Any] = (0, None) if packed is None else packed._native
    if checked[0] != weight_address:  # not yet, or torch has moved it: share_memory_ does
        checked = weight_address, _core.Weight(weight_address, nbytes=buffer.shape[0], n=n, k=k)
        if packed is not None:
            packed._native = checked
    target = _core.Target(
        checked[1],
        scale=scale_address,
        bias=bias_address,
        bias_dtype=bias_code,
        activation=ACTIVATIONS[activation],
        out=address,
        out_dtype=code,
        out_row_stride=n,
    )
    _core.int8_linears(
        _core.FloatRows(x_address, dtype=code, rows=rows, cols=k, row_stride=k, col_stride=1),
        targets=[target],
        symmetric=symmetric,
        where=backends.get_num_threads(),
    )
    if out is not None:
        mark_written(out)
    return result


def _shared_int8_linear(
    x: Array, weight: Sequence[Any], bias: Any, activation: Any, symmetric: bool, out_dtype: Any, out: Any
) -> list[Array]:
    """int8_linear with a list of weights."""
    count = len(weight)
    if not count:
        raise ValueError("weight: expected a weight or a list of one or more, got an empty list")
    weights = [
        w if type(w) is PackedWeight else _pack_operand(w, f"weight[{i}]") for i, w in enumerate(weight)
    ]
    biases = _one_for_each(bias, "bias", count)
    one = activation is None or isinstance(activation, str)
    activations = [activation] * count if one else _one_for_each(activation, "activation", count)
    outs = None if out is None else _one_for_each(out, "out", count)
    if type(x) is not np.ndarray and needs_dispatcher(x, *biases):
        from . import torch_ops

        return torch_ops.int8_linears(x, weights, biases, activations, symmetric, out_dtype, outs)
    return _int8_linears(x, weights, None, biases, activations, out_dtype, outs, symmetric)


def _one_for_each(value: Any, name: str, count: int) -> list[Any]:
    if value is None:
        return [None] * count
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name}: expected a list with one for each of {count} weights, got {type(value).__name__}"
        )
    if len(value) != count:
        raise ValueError(f"{name}: expected one for each of {count} weights, got {len(value)}")
    return list(value)


def _int8_linears(
    x: Array,
    weights: Sequence[Any],
    weight_scales: Sequence[Array] | None,
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    out_dtype: Any = None,
    outs: Sequence[Array] | None = None,
    symmetric: bool = True,
) -> list[Array]:
    """int8_linear with lists of one length, without torch's dispatcher; weights: packed ones, or packed
    buffers or int8 [N, K] with scales."""
    if weight_scales is None:
        operands = [w.operands for w in weights]
    else:
        operands = [
            _operand(w, s, x, f"[{i}]") for i, (w, s) in enumerate(zip(weights, weight_scales, strict=True))
        ]
    if not operands:
        return []
    if out_dtype is None and outs is None and backends.native:
        tiny = _tiny_int8_linears(x, operands, biases, activations, symmetric)
        if tiny is not None:
            return tiny
    names = [f"[{i}]" for i in range(len(weights))]
    return _linears(x, operands, biases, activations, names, symmetric, out_dtype, outs)


def _linears(
    x: Array,
    operands: list[tuple[int, int, Array, Array | None]],
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    names: Sequence[str],
    symmetric: bool,
    out_dtype: Any,
    outs: Sequence[Array] | None,
) -> list[Array]:
    """Checks everything, then runs natively or on the reference; names: what errors append to an argument."""
    n, k = operands[0][:2]
    arrays = {"x": x}
    for i, (operand, bias) in enumerate(zip(operands, biases, strict=True)):
        arrays["weight" + names[i]], arrays["bias" + names[i]] = operand[2], bias
        if operand[1] != k:
            raise ValueError(f"weight{names[i]}: expected shape (N, {k}) like weight[0], got {operand[:2]}")
    kind_of(**arrays)
    x_code = float_code(x, "x")
    shape = tuple(x.shape)
    if not shape or shape[-1] != k:
        raise ValueError(f"x: expected shape (..., {k}) for a weight of shape {(n, k)}, got {shape}")
    if not symmetric and k > MAX_K_UNSIGNED:
        raise ValueError(f"x: expected K <= {MAX_K_UNSIGNED} with zero points, for exact int32 sums, got {k}")
    name = FLOATS[x_code % 3] if out_dtype is None else _out_dtype(out_dtype)  # float32 for float64
    codes = [
        _check_epilogue(operand[0], operand[3], bias, activation, name, at)
        for operand, bias, activation, at in zip(operands, biases, activations, names, strict=True)
    ]
    if outs is not None:
        arrays.update({"weight_scale" + at: operand[3] for at, operand in zip(names, operands, strict=True)})
        lead = shape[:-1]
        written = [(o, "out" + at, (*lead, n)) for o, at, (n, *_) in zip(outs, names, operands, strict=True)]
        check_outs(written, x, name, arrays)
    engine = native_for(x, "linear")
    if engine is None:
        reference = reference_for(x, "linear")
        results = []
        for (n, k, weight, scale), bias, activation in zip(operands, biases, activations, strict=True):
            plain = unpack_buffer(weight, n, k) if weight.ndim == 1 else weight
            results.append(reference.int8_linear(x, plain, scale, bias, activation, name, symmetric))
    else:
        results = _native_linears(engine, x, x_code, operands, biases, codes, symmetric, name, outs)
    return results if outs is None else [store(o, r) for o, r in zip(outs, results, strict=True)]


def _tiny_int8_linears(
    x: Array,
    operands: list[tuple[int, int, Array, Array | None]],
    biases: Sequence[Array | None],
    activations: Sequence[str | None],
    symmetric: bool,
) -> list[Array] | None:
    """_tiny_int8_linear with a list of weights."""
    x_address = plain_address(x, operands[0][2])
    code = FLOAT_CODES.get(x.dtype, 3) if x_address else 3
    if code == 3 or not x.shape or not (symmetric or x.shape[-1] <= MAX_K_UNSIGNED):
        return None
    lead, cols = x.shape[:-1], x.shape[-1]
    rows = math.prod(lead)
    in_numpy = type(x) is np.ndarray
    at = pointer_of(x)
    results, targets = [], []
    for (n, k, buffer, scale), bias, activation in zip(operands, biases, activations, strict=True):
        if scale is None or k != cols or (activation is not None and activation not in _ACTIVATION_NAMES):
            return None
        if (
            (type(buffer) is np.ndarray) is not in_numpy
            or buffer.ndim != 1
            or not (in_numpy or buffer.is_cpu)
        ):
            return None
        bias_address = bias_code = 0
        if bias is not None:
            bias_address = plain_address(bias, buffer)
            bias_code = FLOAT_CODES.get(bias.dtype, -1) if bias_address else -1
            if bias_code < 0 or bias.shape != (n,):
                return None
        result = np.empty((*lead, n), x.dtype) if in_numpy else x.new_empty(*lead, n)
        results.append(result)
        targets.append(
            _core.Target(
                _core.Weight(at(buffer), nbytes=buffer.shape[0], n=n, k=k),
                scale=at(scale),
                bias=bias_address,
                bias_dtype=bias_code,
                activation=ACTIVATIONS[activation],
                out=at(result),
                out_dtype=code,
                out_row_stride=n,
            )
        )
    _core.int8_linears(
        _core.FloatRows(x_address, dtype=code, rows=rows, cols=cols, row_stride=cols, col_stride=1),
        targets=targets,
        symmetric=symmetric,
        where=backends.get_num_threads(),
    )
    return results


def _native_linears(
    engine: Engine,
    x: Array,
    x_code: int,
    operands: list[tuple[int, int, Array, Array | None]],
    biases: Sequence[Array | None],
    codes: list[tuple[int, int]],
    symmetric: bool,
    name: str,
    outs: Sequence[Array] | None,
) -> list[Array]:
    kernels, where = engine
    rows, cols, row_stride, col_stride, base = as_rows(x)
    at = pointer_of(x)
    lead = tuple(x.shape[:-1])
    results, targets, alive = [], [], []
    for i, (n, k, weight, scale) in enumerate(operands):
        buffer = as_operand(weight, not symmetric)
        bias = biases[i]
        if bias is not None:
            bias = contiguous(bias)
        if outs is None:
            stride, result = n, empty((*lead, n), name, x)
        else:
            stride, result = writable_rows(outs[i], name)
        results.append(result)
        alive.append((buffer, bias))
        activation, bias_code = codes[i]
        targets.append(
            kernels.Target(
                kernels.Weight(at(buffer), nbytes=buffer.nbytes, n=n, k=k),
                scale=0 if scale is None or name == "int32" else at(scale),
                bias=0 if bias is None else at(bias),
                bias_dtype=bias_code,
                activation=activation,
                out=at(result),
                out_dtype=DTYPE_CODES[name],
                out_row_stride=stride,
            )
        )
    kernels.int8_linears(
        kernels.FloatRows(
            at(base), dtype=x_code, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
        ),
        targets=targets,
        symmetric=symmetric,
        where=where,
    )
    return results


def as_operand(weight: Array, needs_sums: bool = False) -> Array:
    """What the kernels multiply by: a packed buffer as it is; int8 [N, K] packed, but for rows on a device
    that its kernels can read, unless they need the sums of columns that a packed weight carries."""
    if weight.ndim == 1:
        return weight
    readable = on_cuda(weight) and not needs_sums and is_plain(weight)
    if readable and weight.shape[1] % CUDA_ROW == 0 and pointer(weight) % CUDA_ROW == 0:
        return weight
    return pack_buffer(weight)


def _operand(
    weight: Any, weight_scale: Array | None, x: Array, at: str = ""
) -> tuple[int, int, Array, Array | None]:
    """(N, K, packed buffer or int8 [N, K], scale [N]) of a weight that multiplies x; at: its index, for
    errors."""
    if isinstance(weight, PackedWeight):
        return weight.operands
    kind_of(**{"weight" + at: weight, "weight_scale" + at: weight_scale})
    if weight.ndim == 1:
        check_dtype(weight, "weight" + at, "uint8")
        weight = aligned(weight)
        if on_cuda(weight):
            n, k = _shape_on_device(weight, weight_scale, x, at)
        elif backends.native:
            n, k = _core.packed_shape(pointer(weight), nbytes=weight.shape[0])
        else:
            header = read_header(weight)
            check_home(weight, header)
            n, k = header[:2]
    else:
        check_dtype(weight, "weight" + at, "int8")
        if weight.ndim != 2:
            raise ValueError(f"weight{at}: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
        n, k = weight.shape
        if k > MAX_K:
            raise ValueError(f"weight{at}: expected K <= {MAX_K}, for exact int32 sums, got {k}")
    check_scale(weight_scale, "weight_scale" + at, n)
    return n, k, weight, None if weight_scale is None else contiguous(weight_scale)


def _shape_on_device(weight: Array, scale: Array | None, x: Array, at: str) -> tuple[int, int]:
    """(N, K) of a packed weight, without a look at its header, which would wait for the device: no weight for
    the CPU has the size of one for CUDA."""
    n, k = 0 if scale is None else scale.shape[0], x.shape[-1] if x.ndim else 1
    if weight.shape[0] != packed_nbytes(n, k, "rows"):
        raise ValueError(
            f"weight{at}: expected the {packed_nbytes(n, k, 'rows')} bytes of a weight {(n, k)} packed for "
            f"CUDA, got {weight.shape[0]}; a buffer of the CPU has to be unpacked there and packed anew"
        )
    return n, k


def _pack_operand(weight: Any, name: str = "weight") -> PackedWeight:
    if isinstance(weight, Quantized):
        if weight.zero_point is not None:
            raise ValueError(f"{name}: expected a symmetric Quantized, got one with a zero_point")
        return pack_weight(weight.data, weight.scale)
    if isinstance(weight, PackedWeight):
        return weight
    kind_of(**{name: weight})
    if dtype_name(weight.dtype) not in FLOATS:
        raise TypeError(
            f"{name}: expected a PackedWeight, a Quantized or a float array, "
            f"got dtype {dtype_name(weight.dtype)}"
        )
    if weight.ndim != 2:
        raise ValueError(f"{name}: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    return pack_weight(weight)


def _out_dtype(out_dtype: Any) -> str:
    return as_dtype_name(out_dtype, "out_dtype", _OUT_DTYPES)


def _check_epilogue(
    n: int, scale: Array | None, bias: Array | None, activation: str | None, out_dtype: str, at: str = ""
) -> tuple[int, int]:
    """Checks scale, bias and activation against the out dtype; returns the codes of activation and bias. at:
    their index, for errors."""
    if activation is not None and activation not in _ACTIVATION_NAMES:
        raise ValueError(
            f"activation{at}: expected None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {activation!r}"
        )
    if out_dtype == "int32":
        if bias is not None or activation is not None:
            raise ValueError("out_dtype: expected a float dtype with a bias or an activation, got int32")
    elif scale is None:
        raise ValueError(f"weight{at}: expected a weight with a scale, got one without")
    if bias is None:
        return ACTIVATIONS[activation], 0
    if bias.shape != (n,):
        raise ValueError(f"bias{at}: expected shape {(n,)}, got {tuple(bias.shape)}")
    return ACTIVATIONS[activation], float_code(bias, "bias" + at)
