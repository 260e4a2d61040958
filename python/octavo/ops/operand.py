"""What a linear layer multiplies by and what it does after: weights in all their forms, epilogues."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..runtime import backends
from ..runtime.arrays import (
    DTYPE_CODES,
    FLOATS,
    Array,
    check_dtype,
    contiguous,
    dtype_name,
    float_code,
    is_array,
    is_plain,
    kind_of,
    on_cuda,
    pointer,
)
from ..runtime.backends import _core
from ..runtime.outputs import row_stride
from .layouts import aligned, check_home, check_k, check_scale, packed_nbytes, read_header
from .pack import PackedWeight, pack, pack_weight, unpack_matrix
from .quantize import Quantized

FLOAT_OUT = ("float32", "float16", "bfloat16")
OUT = (*FLOAT_OUT, "int32")
CUDA_ROW = 16  # bytes: what rows have to begin at for CUDA kernels to read them as they are
ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}

ACTIVATION_NAMES = tuple(ACTIVATIONS)  # what is not hashable is in no dictionary, and may be asked of a tuple


def default_out_dtype(x: Array) -> str:
    """x's own dtype; float32 for float64, which kernels take as float32."""
    name = FLOATS[float_code(x, "x")]
    return "float32" if name == "float64" else name


class Operand(NamedTuple):
    """A weight that multiplies: packed or int8 [N, K]; known: N and K are those of a header that was read."""

    n: int
    k: int
    weight: Array
    scale: Array | None
    known: bool = True


def operand_of(weight: Any, weight_scale: Array | None, x: Array, at: str = "") -> Operand:
    """The operand that a PackedWeight is, or a packed buffer or int8 [N, K] with its scale [N] or [N, 1].

    From shapes only: those of a packed buffer are what x and the scale want, until check_operand reads it.
    at: the index that errors give.
    """
    if type(weight) is PackedWeight:
        return Operand(*weight.operands)
    kind_of(**{"weight" + at: weight, "weight_scale" + at: weight_scale})
    if weight.ndim == 1:
        check_dtype(weight, "weight" + at, "uint8")
        n = weight_scale.shape[0] if weight_scale is not None and weight_scale.ndim else 0
        k = x.shape[-1] if x.ndim else 1
        if on_cuda(weight) and weight.shape[0] != packed_nbytes(n, k, "rows"):
            raise ValueError(
                f"weight{at}: expected the {packed_nbytes(n, k, 'rows')} bytes of a weight {(n, k)} packed "
                f"for CUDA, got {weight.shape[0]}; a buffer of the CPU has to be unpacked there and packed "
                "anew"
            )
        return Operand(n, k, weight, weight_scale, known=False)
    check_dtype(weight, "weight" + at, "int8")
    if weight.ndim != 2:
        raise ValueError(f"weight{at}: expected two dimensions [N, K], got shape {tuple(weight.shape)}")
    n, k = weight.shape
    check_k(k, "weight" + at)
    check_scale(weight_scale, "weight_scale" + at, n)
    return Operand(n, k, weight, weight_scale)


def check_operand(operand: Operand, x: Array, x_name: str = "x", at: str = "") -> None:
    """Holds a packed buffer's header to what x and the scale want. On a device that would wait for it: there
    no weight for the CPU has the size of one for CUDA, which operand_of has looked at."""
    if operand.known or on_cuda(operand.weight):
        return
    buffer = aligned(operand.weight)
    if backends.native:
        n, k = _core.packed_shape(pointer(buffer), nbytes=buffer.shape[0])
    else:
        header = read_header(buffer)
        check_home(buffer, header)
        n, k = header[:2]
    check_scale(operand.scale, "weight_scale" + at, n)
    check_fits(x, n, k, x_name)


def check_fits(x: Array, n: int, k: int, name: str = "x") -> None:
    if hasattr(x, "shape") and (not x.ndim or x.shape[-1] != k):
        raise ValueError(
            f"{name}: expected shape (..., {k}) for a weight of shape {(n, k)}, got {tuple(x.shape)}"
        )


def scale_of(weight: PackedWeight, at: str = "") -> Array:
    if weight.scale is None:
        raise ValueError(f"weight{at}: expected a weight with a scale, got one without")
    return weight.scale


def is_empty(bias: Array | None) -> bool:
    return is_array(bias) and tuple(bias.shape) == (0,)  # type: ignore[union-attr]


def unpacked(operand: Operand) -> Array:
    """int8 [N, K]."""
    n, k, weight = operand[:3]
    return unpack_matrix(weight, n, k) if weight.ndim == 1 else weight


def packed_for_kernels(weight: Array, needs_sums: bool = False) -> Array:
    """What the kernels multiply by: a packed buffer as it is; int8 [N, K] packed, but for rows on a device
    that its kernels can read, unless they need the sums of columns that a packed weight carries."""
    if weight.ndim == 1:
        return aligned(weight)
    readable = on_cuda(weight) and not needs_sums and is_plain(weight)
    if readable and weight.shape[1] % CUDA_ROW == 0 and pointer(weight) % CUDA_ROW == 0:
        return weight
    return pack(weight, "dense")[0]


def as_packed_weight(weight: Any, name: str = "weight") -> PackedWeight:
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


def check_epilogue(
    n: int, scale: Array | None, bias: Array | None, activation: str | None, out_dtype: str, at: str = ""
) -> None:
    """Checks scale, bias and activation against the out dtype. at: their index, for errors."""
    if activation not in ACTIVATION_NAMES:
        raise ValueError(
            f"activation{at}: expected None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {activation!r}"
        )
    if out_dtype == "int32":
        if bias is not None or activation is not None:
            raise ValueError("out_dtype: expected a float dtype with a bias or an activation, got int32")
    elif scale is None:
        raise ValueError(f"weight{at}: expected a weight with a scale, got one without")
    if bias is not None:
        if bias.shape != (n,):
            raise ValueError(f"bias{at}: expected shape {(n,)}, got {tuple(bias.shape)}")
        float_code(bias, "bias" + at)


def target_of(
    kernels: Any,
    operand: Operand,
    bias: Array | None,
    activation: str | None,
    result: Array,
    needs_sums: bool = False,
    scaled: bool = True,
) -> tuple[Any, Any]:
    """A weight and where its result goes, as the record Target, and what has to live as long as that.
    scaled: whether the kernel reads one scale for each row."""
    buffer = packed_for_kernels(operand.weight, needs_sums)
    name = dtype_name(result.dtype)
    scale = contiguous(operand.scale) if scaled and operand.scale is not None and name != "int32" else None
    added = None if bias is None else contiguous(bias)
    target = kernels.Target(
        kernels.Weight(pointer(buffer), nbytes=buffer.nbytes, n=operand.n, k=operand.k),
        scale=0 if scale is None else pointer(scale),
        bias=0 if added is None else pointer(added),
        bias_dtype=0 if added is None else float_code(added, "bias"),
        activation=ACTIVATIONS[activation],
        out=pointer(result),
        out_dtype=DTYPE_CODES[name],
        out_row_stride=row_stride(result),
    )
    return target, (buffer, scale, added)
