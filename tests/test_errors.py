"""Every wrong argument is a TypeError or ValueError that names it, what was expected and what came."""
# ruff: noqa: E501  (one case, one line)

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

import emulated_cupy
import octavo
from octavo.runtime import arrays, backends
from strategies import needs_torch, to_torch

f32, i8 = np.float32, np.int8
X = np.ones((4, 8), f32)
DATA = np.ones((4, 8), i8)
SCALE = np.ones(4, f32)
ZERO = np.zeros(4, np.int32)
WEIGHT = np.ones((3, 8), i8)
PACKED = octavo.pack_weight(WEIGHT, np.ones(3, f32))
UNSCALED = octavo.pack_weight(WEIGHT)
BIG = octavo.pack_weight(np.zeros((1, 70_000), i8), np.ones(1, f32))
BUFFER = PACKED.buffer
IMAGE = np.ones((2, 2, 3, 3), f32)
CONV = octavo.pack_conv_weight(np.ones((3, 2, 3, 3), i8), np.ones(3, f32))


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def changed(at: int, value: int):
    buffer = BUFFER.copy()
    buffer[at] = value
    return buffer


SELF = np.zeros((8, 16), f32)
SHARED = np.ones(256, np.uint8)  # as float32 it is 2.4e-38
SHARED[128:] = 0


def shared(dtype, shape, at=0):
    """Arrays of one piece of memory."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return SHARED[at : at + n].view(dtype).reshape(shape)


class Subclass:
    """Not an array."""


o = octavo
T, V = TypeError, ValueError
CASES = [
    # quantize
    ("x list", T, "x", lambda: o.quantize([[1.0]])),
    ("x None", T, "x", lambda: o.quantize(None)),
    ("x object", T, "x", lambda: o.quantize(Subclass())),
    ("x int32", T, "x", lambda: o.quantize(ZERO)),
    ("x int8", T, "x", lambda: o.quantize(DATA)),
    ("x bool", T, "x", lambda: o.quantize(X > 0)),
    ("x complex", T, "x", lambda: o.quantize(X.astype(np.complex64))),
    ("x object dtype", T, "x", lambda: o.quantize(X.astype(object))),
    ("x swapped", T, "x", lambda: o.quantize(X.astype(">f4"))),
    ("x longdouble", T, "x", lambda: o.quantize(X.astype(np.longdouble))),
    ("x structured", T, "x", lambda: o.quantize(np.zeros(3, [("a", "f4")]))),
    ("x masked", T, "x", lambda: o.quantize(np.ma.masked_array(X, X > 0))),
    ("x 0-d row", V, "x", lambda: o.quantize(np.float32(1)[...])),
    ("granularity", V, "granularity", lambda: o.quantize(X, granularity="column")),
    ("granularity None", V, "granularity", lambda: o.quantize(X, granularity=None)),
    ("group_size missing", T, "group_size", lambda: o.quantize(X, granularity="group")),
    ("group_size float", T, "group_size", lambda: o.quantize(X, granularity="group", group_size=4.0)),
    ("group_size 0", V, "group_size", lambda: o.quantize(X, granularity="group", group_size=0)),
    ("group_size negative", V, "group_size", lambda: o.quantize(X, granularity="group", group_size=-4)),
    ("group_size no divisor", V, "group_size", lambda: o.quantize(X, granularity="group", group_size=3)),
    ("group_size unused", V, "group_size", lambda: o.quantize(X, group_size=4)),
    ("rounding", V, "rounding", lambda: o.quantize(X, rounding="up")),
    ("seed missing", V, "seed", lambda: o.quantize(X, rounding="stochastic")),
    ("seed float", T, "seed", lambda: o.quantize(X, rounding="stochastic", seed=1.5)),
    ("nonfinite", V, "nonfinite", lambda: o.quantize(X, nonfinite="keep")),
    ("nonfinite raise", V, "x", lambda: o.quantize(X * np.nan, nonfinite="raise")),
    ("scale dtype", T, "scale", lambda: o.quantize(X, scale=SCALE.astype(np.float64))),
    ("scale shape", V, "scale", lambda: o.quantize(X, scale=np.ones(3, f32))),
    ("scale number", V, "scale", lambda: o.quantize(X, scale=0.5)),
    ("scale list", T, "scale", lambda: o.quantize(X, scale=[1.0] * 4)),
    ("scale 0", V, "scale", lambda: o.quantize(X, scale=SCALE * 0)),
    ("scale negative", V, "scale", lambda: o.quantize(X, scale=-SCALE)),
    ("scale nan", V, "scale", lambda: o.quantize(X, scale=SCALE * np.nan)),
    ("scale inf", V, "scale", lambda: o.quantize(X, scale=SCALE * np.inf)),
    ("scale without reciprocal", V, "scale", lambda: o.quantize(X, scale=SCALE * f32(1e-39))),
    ("zero_point alone", V, "scale", lambda: o.quantize(X, symmetric=False, zero_point=ZERO)),
    ("zero_point symmetric", V, "zero_point", lambda: o.quantize(X, scale=SCALE, zero_point=ZERO)),
    ("zero_point missing", V, "zero_point", lambda: o.quantize(X, symmetric=False, scale=SCALE)),
    ("zero_point dtype", T, "zero_point", lambda: o.quantize(X, symmetric=False, scale=SCALE, zero_point=ZERO.astype(i8))),
    ("zero_point range", V, "zero_point", lambda: o.quantize(X, symmetric=False, scale=SCALE, zero_point=ZERO + 128)),
    ("out not tuple", T, "out", lambda: o.quantize(X, out="data")),
    ("out data dtype", T, "out", lambda: o.quantize(X, out=X.copy())),
    ("out one", T, "out", lambda: o.quantize(X, out=(DATA.copy(),))),
    ("out dtype", T, "out[0]", lambda: o.quantize(X, out=(DATA.astype(np.uint8), SCALE.copy()))),
    ("out shape", V, "out[0]", lambda: o.quantize(X, out=(np.ones((8, 4), i8), SCALE.copy()))),
    ("out scale dtype", T, "out[1]", lambda: o.quantize(X, out=(DATA.copy(), SCALE.astype(np.float64)))),
    ("out scale shape", V, "out[1]", lambda: o.quantize(X, out=(DATA.copy(), np.ones((4, 1), f32)))),
    ("out read-only", V, "out[0]", lambda: o.quantize(X, out=(read_only(DATA), SCALE.copy()))),
    ("out zero_point", T, "out", lambda: o.quantize(X, symmetric=False, out=(DATA.copy(), SCALE.copy()))),
    ("out zero stride", V, "out[0]", lambda: o.quantize(X, out=(np.lib.stride_tricks.as_strided(DATA.copy(), (4, 8), (0, 1)), SCALE.copy()))),
    ("out overlaps x", V, "out[0]", lambda: o.quantize(shared(f32, (4, 8)), out=(shared(i8, (4, 8), 96), SCALE.copy()))),
    ("outs overlap", V, "out[1]", lambda: o.quantize(X, out=(shared(i8, (4, 8)), shared(f32, (4,), 16)))),
    ("out overlaps scale", V, "out[0]", lambda: o.quantize(X, scale=shared(f32, (4,), 16), out=(shared(i8, (4, 8)), SCALE.copy()))),
    # dequantize
    ("data dtype", T, "data", lambda: o.dequantize(X, SCALE)),
    ("data uint8", T, "data", lambda: o.dequantize(DATA.astype(np.uint8), SCALE)),
    ("dequantize scale dtype", T, "scale", lambda: o.dequantize(DATA, SCALE.astype(np.float16))),
    ("dequantize scale shape", V, "scale", lambda: o.dequantize(DATA, np.ones(8, f32))),
    ("dequantize groups", V, "scale", lambda: o.dequantize(DATA, np.ones((4, 3), f32))),
    ("dequantize zero_point shape", V, "zero_point", lambda: o.dequantize(DATA, SCALE, ZERO[:1])),
    ("dequantize zero_point dtype", T, "zero_point", lambda: o.dequantize(DATA, SCALE, ZERO.astype(np.int64))),
    ("dequantize dtype", T, "dtype", lambda: o.dequantize(DATA, SCALE, dtype="int8")),
    ("dequantize dtype unknown", T, "dtype", lambda: o.dequantize(DATA, SCALE, dtype="float8")),
    ("dequantize dtype None", T, "dtype", lambda: o.dequantize(DATA, SCALE, dtype=None)),
    ("dequantize out dtype", T, "out", lambda: o.dequantize(DATA, SCALE, out=X.astype(np.float64))),
    ("dequantize out shape", V, "out", lambda: o.dequantize(DATA, SCALE, out=X[:2].copy())),
    ("dequantize out read-only", V, "out", lambda: o.dequantize(DATA, SCALE, out=read_only(X))),
    ("dequantize out overlaps", V, "out", lambda: o.dequantize(shared(i8, (4, 8), 64), SCALE, out=shared(f32, (4, 8)))),
    # int_mm
    ("a dtype", T, "a", lambda: o.int_mm(X, WEIGHT.T)),
    ("a int32", T, "a", lambda: o.int_mm(DATA.astype(np.int32), WEIGHT.T)),
    ("a bool", T, "a", lambda: o.int_mm(DATA > 0, WEIGHT.T)),
    ("b dtype", T, "b", lambda: o.int_mm(DATA, WEIGHT.T.astype(np.uint8))),
    ("b list", T, "b", lambda: o.int_mm(DATA, [[1]])),
    ("b 1-d", V, "b", lambda: o.int_mm(DATA, WEIGHT[0])),
    ("a 1-d", V, "a", lambda: o.int_mm(DATA[0], WEIGHT.T)),
    ("a 3-d", V, "a", lambda: o.int_mm(DATA[None], WEIGHT.T)),
    ("a and b", V, "a", lambda: o.int_mm(DATA, WEIGHT)),
    ("a and packed", V, "a", lambda: o.int_mm(DATA[:, :7], PACKED)),
    ("K too large", V, "a", lambda: o.int_mm(np.zeros((1, 131_072), i8), np.zeros((131_072, 1), i8))),
    ("K too large for uint8", V, "a", lambda: o.int_mm(np.zeros((1, 65_794), np.uint8), np.zeros((65_794, 1), i8))),
    ("int_mm out dtype", T, "out", lambda: o.int_mm(DATA, WEIGHT.T, out=np.zeros((4, 3), np.int64))),
    ("int_mm out shape", V, "out", lambda: o.int_mm(DATA, WEIGHT.T, out=np.zeros((3, 4), np.int32))),
    ("int_mm out overlaps", V, "out", lambda: o.int_mm(shared(i8, (4, 8)), WEIGHT.T, out=shared(np.int32, (4, 3)))),
    ("int_mm out over packed", V, "out", lambda: o.int_mm(DATA, PACKED, out=BUFFER[64 : 64 + 48].view(np.int32).reshape(4, 3))),
    # pack_weight
    ("weight dtype", T, "weight", lambda: o.pack_weight(WEIGHT.astype(np.int32))),
    ("weight uint8", T, "weight", lambda: o.pack_weight(WEIGHT.astype(np.uint8))),
    ("weight list", T, "weight", lambda: o.pack_weight([[1]])),
    ("weight 1-d", V, "weight", lambda: o.pack_weight(WEIGHT[0])),
    ("weight 3-d", V, "weight", lambda: o.pack_weight(WEIGHT[None])),
    ("weight K", V, "weight", lambda: o.pack_weight(np.zeros((1, 131_072), i8))),
    ("weight scale shape", V, "scale", lambda: o.pack_weight(WEIGHT, np.ones(8, f32))),
    ("weight scale dtype", T, "scale", lambda: o.pack_weight(WEIGHT, np.ones(3))),
    ("float weight with scale", V, "scale", lambda: o.pack_weight(X, SCALE)),
    ("layout", V, "layout", lambda: o.pack_weight(WEIGHT, layout="sparse")),
    ("layout None", V, "layout", lambda: o.pack_weight(WEIGHT, layout=None)),
    ("buffer dtype", T, "buffer", lambda: o.PackedWeight.from_buffer(BUFFER.view(i8))),
    ("buffer short", V, "buffer", lambda: o.PackedWeight.from_buffer(BUFFER[:10])),
    ("buffer cut", V, "buffer", lambda: o.PackedWeight.from_buffer(BUFFER[:-64])),
    ("buffer magic", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(0, 0))),
    ("buffer version", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(4, 2))),
    ("buffer layout", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(8, 3))),
    ("buffer of dense as bitmask", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(8, 1))),
    ("buffer of dense as block", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(8, 2))),
    ("buffer count", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(32, 1))),
    ("buffer isa", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(12, 1))),
    ("buffer n", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(18, 255))),
    ("buffer n negative", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(23, 128))),
    ("buffer k", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(24, 65))),
    ("buffer k huge", V, "buffer", lambda: o.PackedWeight.from_buffer(changed(30, 127))),
    ("buffer scale", V, "scale", lambda: o.PackedWeight.from_buffer(BUFFER, np.ones(4, f32))),
    # int8_linear
    ("linear x dtype", T, "x", lambda: o.int8_linear(DATA, PACKED)),
    ("linear x shape", V, "x", lambda: o.int8_linear(X[:, :7], PACKED)),
    ("linear x 0-d", V, "x", lambda: o.int8_linear(np.ones((), f32), PACKED)),
    ("linear weight int8", T, "weight", lambda: o.int8_linear(X, WEIGHT)),
    ("linear weight no scale", V, "weight", lambda: o.int8_linear(X, UNSCALED)),
    ("linear weight asymmetric", V, "weight", lambda: o.int8_linear(X, o.quantize(X, symmetric=False))),
    ("bias dtype", T, "bias", lambda: o.int8_linear(X, PACKED, np.ones(3, np.int32))),
    ("bias shape", V, "bias", lambda: o.int8_linear(X, PACKED, np.ones(4, f32))),
    ("bias 2-d", V, "bias", lambda: o.int8_linear(X, PACKED, np.ones((1, 3), f32))),
    ("bias list", T, "bias", lambda: o.int8_linear(X, PACKED, [1.0] * 3)),
    ("activation", V, "activation", lambda: o.int8_linear(X, PACKED, activation="tanh")),
    ("activation type", V, "activation", lambda: o.int8_linear(X, PACKED, activation=3)),
    ("activation list", V, "activation", lambda: o.int8_linear(X, PACKED, activation=["relu"])),
    ("out_dtype", T, "out_dtype", lambda: o.int8_linear(X, PACKED, out_dtype="float64")),
    ("out_dtype int8", T, "out_dtype", lambda: o.int8_linear(X, PACKED, out_dtype=np.int8)),
    ("linear out shape", V, "out", lambda: o.int8_linear(X, PACKED, out=np.zeros((4, 4), f32))),
    ("linear out dtype", T, "out", lambda: o.int8_linear(X, PACKED, out=np.zeros((4, 3)))),
    ("linear out list", T, "out", lambda: o.int8_linear(X, PACKED, out=[np.zeros((4, 3), f32)])),
    ("linear out str", T, "out", lambda: o.int8_linear(X, PACKED, out="out")),
    ("linear out read-only", V, "out", lambda: o.int8_linear(X, PACKED, out=read_only(np.zeros((4, 3), f32)))),
    ("linear out overlaps x", V, "out", lambda: o.int8_linear(shared(f32, (4, 8)), PACKED, out=shared(f32, (4, 3)))),
    ("linear out overlaps bias", V, "out", lambda: o.int8_linear(X, PACKED, shared(f32, (3,)), out=shared(f32, (4, 3)))),
    ("linear out overlaps weight", V, "out", lambda: o.int8_linear(X, PACKED, out=BUFFER[:48].view(f32).reshape(4, 3))),
    # int8_linear with several weights
    ("weights empty", V, "weight", lambda: o.int8_linear(X, [])),
    ("weights list", T, "weight[0]", lambda: o.int8_linear(X, [[1.0]])),
    ("weights None", T, "weight[1]", lambda: o.int8_linear(X, [PACKED, None])),
    ("weights int8", T, "weight[1]", lambda: o.int8_linear(X, [PACKED, WEIGHT])),
    ("weights 1-d", V, "weight[1]", lambda: o.int8_linear(X, [PACKED, X[0]])),
    ("weights asymmetric", V, "weight[1]", lambda: o.int8_linear(X, [PACKED, o.quantize(X, symmetric=False)])),
    ("weights no scale", V, "weight[1]", lambda: o.int8_linear(X, [PACKED, UNSCALED])),
    ("weights K", V, "weight[1]", lambda: o.int8_linear(X, [PACKED, X[:, :7]])),
    ("weights x dtype", T, "x", lambda: o.int8_linear(DATA, [PACKED, PACKED])),
    ("weights x shape", V, "x", lambda: o.int8_linear(X[:, :7], [PACKED, PACKED])),
    ("weights x None", T, "x", lambda: o.int8_linear(None, [PACKED])),
    ("biases array", T, "bias", lambda: o.int8_linear(X, [PACKED, PACKED], SCALE)),
    ("biases length", V, "bias", lambda: o.int8_linear(X, [PACKED, PACKED], [None])),
    ("biases shape", V, "bias[1]", lambda: o.int8_linear(X, [PACKED, PACKED], [None, SCALE])),
    ("biases dtype", T, "bias[1]", lambda: o.int8_linear(X, [PACKED, PACKED], [None, ZERO[:3]])),
    ("biases number", T, "bias[1]", lambda: o.int8_linear(X, [PACKED, PACKED], [None, 1.0])),
    ("activations length", V, "activation", lambda: o.int8_linear(X, [PACKED, PACKED], activation=["relu"])),
    ("activations type", T, "activation", lambda: o.int8_linear(X, [PACKED, PACKED], activation=3)),
    ("activations name", V, "activation[0]", lambda: o.int8_linear(X, [PACKED, PACKED], activation="tanh")),
    ("activations names", V, "activation[1]", lambda: o.int8_linear(X, [PACKED, PACKED], activation=["relu", "tanh"])),
    ("weights out_dtype", T, "out_dtype", lambda: o.int8_linear(X, [PACKED, PACKED], out_dtype="float64")),
    ("weights out_dtype list", T, "out_dtype", lambda: o.int8_linear(X, [PACKED], out_dtype=["float32"])),
    ("outs array", T, "out", lambda: o.int8_linear(X, [PACKED, PACKED], out=X.copy())),
    ("outs length", V, "out", lambda: o.int8_linear(X, [PACKED, PACKED], out=[np.zeros((4, 3), f32)])),
    ("outs None", T, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[np.zeros((4, 3), f32), None])),
    ("outs shape", V, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[np.zeros((4, 3), f32), X.copy()])),
    ("outs same", V, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[shared(f32, (4, 3))] * 2)),
    ("outs overlap each other", V, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[shared(f32, (4, 3)), shared(f32, (4, 3), 44)])),
    ("outs overlap in columns", V, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[shared(f32, (4, 5))[:, :3], shared(f32, (4, 5))[:, 2:]])),
    ("outs overlap across rows", V, "out[1]", lambda: o.int8_linear(X, [PACKED, PACKED], out=[shared(f32, (4, 5))[:, :3], shared(f32, (4, 5), 16)[:, :3]])),
    ("outs overlap x", V, "out[1]", lambda: o.int8_linear(shared(f32, (4, 8)), [PACKED, PACKED], out=[np.zeros((4, 3), f32), shared(f32, (4, 3))])),
    ("outs overlap a scale", V, "out[0]", lambda: o.int8_linear(X, [PACKED, o.PackedWeight.from_buffer(BUFFER, shared(f32, (3,)))], out=[shared(f32, (4, 3)), np.zeros((4, 3), f32)])),
    # scaled_int_mm
    ("scaled a dtype", T, "a", lambda: o.scaled_int_mm(X, SCALE, PACKED)),
    ("scaled a shape", V, "a", lambda: o.scaled_int_mm(DATA[:, 1:], SCALE, PACKED)),
    ("a_scale dtype", T, "a_scale", lambda: o.scaled_int_mm(DATA, SCALE.astype(np.float64), PACKED)),
    ("a_scale shape", V, "a_scale", lambda: o.scaled_int_mm(DATA, np.ones(3, f32), PACKED)),
    ("a_scale list", T, "a_scale", lambda: o.scaled_int_mm(DATA, [1.0] * 4, PACKED)),
    ("a_zero_point dtype", T, "a_zero_point", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, a_zero_point=SCALE)),
    ("a_zero_point shape", V, "a_zero_point", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, a_zero_point=ZERO[:2])),
    ("a_zero_point range", V, "a_zero_point", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, a_zero_point=ZERO + 128)),
    ("a_zero_point uint8", V, "a_zero_point", lambda: o.scaled_int_mm(DATA.view(np.uint8), SCALE, PACKED, a_zero_point=ZERO - 1)),
    ("scaled no scale", V, "weight", lambda: o.scaled_int_mm(DATA, SCALE, UNSCALED)),
    ("scaled int32 bias", V, "out_dtype", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, np.ones(3, f32), out_dtype="int32")),
    ("scaled int32 relu", V, "out_dtype", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, activation="relu", out_dtype="int32")),
    ("scaled K zero point", V, "a", lambda: o.scaled_int_mm(np.zeros((1, 70_000), i8), SCALE[:1], BIG, a_zero_point=ZERO[:1])),
    ("scaled K uint8", V, "a", lambda: o.scaled_int_mm(np.zeros((1, 70_000), np.uint8), SCALE[:1], BIG)),
    ("scaled out overlaps a_scale", V, "out", lambda: o.scaled_int_mm(DATA, shared(f32, (4,)), PACKED, out=shared(f32, (4, 3)))),
    ("scaled out overlaps a_zero_point", V, "out", lambda: o.scaled_int_mm(DATA, SCALE, PACKED, a_zero_point=shared(np.int32, (4,), 128), out=shared(f32, (4, 3), 128))),
    # pruning
    ("w dtype", T, "w", lambda: o.prune_mask(DATA, sparsity=0.5)),
    ("w None", T, "w", lambda: o.prune_mask(None, sparsity=0.5)),
    ("ws None", T, "w[1]", lambda: o.prune_mask([X, None], sparsity=0.5)),
    ("data None", T, "data", lambda: o.dequantize(None, SCALE)),
    ("scale None", T, "scale", lambda: o.dequantize(DATA, None)),
    ("a None", T, "a", lambda: o.int_mm(None, PACKED)),
    ("a_scale None", T, "a_scale", lambda: o.scaled_int_mm(DATA, None, PACKED)),
    ("weight None", T, "weight", lambda: o.pack_weight(None)),
    ("linear weight None", T, "weight", lambda: o.int8_linear(X, None)),
    ("linear x None", T, "x", lambda: o.int8_linear(None, PACKED)),
    ("b None", T, "b", lambda: o.int_mm(DATA, None)),
    ("ws dtype", T, "w[1]", lambda: o.prune_mask([X, DATA], sparsity=0.5)),
    ("none of three", V, None, lambda: o.prune_mask(X)),
    ("two of three", V, None, lambda: o.prune_mask(X, sparsity=0.5, threshold=1.0)),
    ("n:m with sparsity", V, "sparsity", lambda: o.prune_mask(X, sparsity=0.5, pattern="2:4")),
    ("threshold nan", V, "threshold", lambda: o.prune_mask(X, threshold=float("nan"))),
    ("threshold type", T, "threshold", lambda: o.prune_mask(X, threshold="1")),
    ("ratio negative", V, "ratio", lambda: o.prune_mask(X, ratio=-0.1)),
    ("ratio inf", V, "ratio", lambda: o.prune_mask(X, ratio=float("inf"))),
    ("ratio nan", V, "ratio", lambda: o.prune_mask(X, ratio=float("nan"))),
    ("ratio beyond f32", V, "ratio", lambda: o.prune_mask(X, ratio=1e300)),
    ("sparsity above 1", V, "sparsity", lambda: o.prune_mask(X, sparsity=1.1)),
    ("sparsity negative", V, "sparsity", lambda: o.prune_mask(X, sparsity=-0.1)),
    ("sparsity nan", V, "sparsity", lambda: o.prune_mask(X, sparsity=float("nan"))),
    ("sparsity type", T, "sparsity", lambda: o.prune_mask(X, sparsity=X)),
    ("sparsity bool", T, "sparsity", lambda: o.prune_mask(X, sparsity=True)),
    ("pattern", V, "pattern", lambda: o.prune_mask(X, sparsity=0.5, pattern="rows")),
    ("pattern None", V, "pattern", lambda: o.prune_mask(X, sparsity=0.5, pattern=None)),
    ("pattern 4:4", V, "pattern", lambda: o.prune_mask(X, pattern="4:4")),
    ("pattern 0:4", V, "pattern", lambda: o.prune_mask(X, pattern="0:4")),
    ("pattern 2:64", V, "pattern", lambda: o.prune_mask(X, pattern="2:64")),
    ("pattern -1:4", V, "pattern", lambda: o.prune_mask(X, pattern="-1:4")),
    ("pattern block0x4", V, "pattern", lambda: o.prune_mask(X, sparsity=0.5, pattern="block0x4")),
    ("pattern block4", V, "pattern", lambda: o.prune_mask(X, sparsity=0.5, pattern="block4")),
    ("n:m last axis", V, "w", lambda: o.prune_mask(X[:, :6], pattern="2:4")),
    ("block rows", V, "w", lambda: o.prune_mask(X, sparsity=0.5, pattern="block3x4")),
    ("block columns", V, "w", lambda: o.prune_mask(X, sparsity=0.5, pattern="block2x3")),
    ("prune nonfinite", V, "nonfinite", lambda: o.prune_mask(X, sparsity=0.5, nonfinite="clamp")),
    ("prune nonfinite raise", V, "w", lambda: o.prune_mask(X * np.inf, sparsity=0.5, nonfinite="raise")),
    ("prune nonfinite raise of many", V, "w[1]", lambda: o.prune_mask([X, X * np.inf], sparsity=0.5, nonfinite="raise")),
    ("mask out dtype", T, "out", lambda: o.prune_mask(X, sparsity=0.5, out=DATA.copy())),
    ("mask out shape", V, "out", lambda: o.prune_mask(X, sparsity=0.5, out=np.zeros((8, 4), bool))),
    ("mask out read-only", V, "out", lambda: o.prune_mask(X, sparsity=0.5, out=read_only(X > 0))),
    ("mask out overlaps", V, "out", lambda: o.prune_mask(shared(f32, (4, 8)), sparsity=0.5, out=shared(bool, (4, 8)))),
    ("mask outs number", T, "out", lambda: o.prune_mask([X, X], sparsity=0.5, out=[X > 0])),
    ("mask outs None", T, "out[1]", lambda: o.prune_mask([X, X], sparsity=0.5, out=[DATA > 0, None])),
    ("mask outs overlap", V, "out[1]", lambda: o.prune_mask([X, X.copy()], sparsity=0.5, out=[shared(bool, (4, 8)), shared(bool, (4, 8), 8)])),
    ("prune out dtype", T, "out", lambda: o.prune(X, sparsity=0.5, out=X > 0)),
    ("prune out shape", V, "out", lambda: o.prune(X, sparsity=0.5, out=X[:2].copy())),
    ("prune out read-only", V, "out", lambda: o.prune(X, sparsity=0.5, out=read_only(X))),
    ("prune out is w", V, "out", lambda: o.prune(X, sparsity=0.5, out=X)),
    ("prune out kind", T, "out", lambda: o.prune(X, sparsity=0.5, out=X.tolist())),
    ("prune outs no list", T, "out", lambda: o.prune([X, X], sparsity=0.5, out=X.copy())),
    ("prune outs number", T, "out", lambda: o.prune([X, X], sparsity=0.5, out=[X.copy()])),
    ("prune outs dtype", T, "out[1]", lambda: o.prune([X, X], sparsity=0.5, out=[X.copy(), X > 0])),
    ("prune outs dtypes", T, "out[1]", lambda: o.prune([X, X.astype(np.float16)], sparsity=0.5, out=[X.copy(), X.copy()])),
    ("prune outs overlap", V, "out[1]", lambda: o.prune([X, X.copy()], sparsity=0.5, out=[shared(f32, (4, 8)), shared(f32, (4, 8), 64)])),
    ("prune outs of dtypes overlap", V, "out[1]", lambda: o.prune([X, X.astype(np.float16)], sparsity=0.5, out=[shared(f32, (4, 8)), shared(np.float16, (4, 8), 64)])),
    ("prune argument", T, None, lambda: o.prune(X, sparsity=0.5, amount=1)),
    ("prune_ out dtype", T, "out", lambda: o.prune_(X.copy(), sparsity=0.5, out=DATA.copy())),
    ("prune_ out shape", V, "out", lambda: o.prune_(X.copy(), sparsity=0.5, out=X[:2] > 0)),
    ("prune_ out overlaps", V, "out", lambda: o.prune_(shared(f32, (4, 8)), sparsity=0.5, out=shared(bool, (4, 8)))),
    ("prune_ outs number", T, "out", lambda: o.prune_([X.copy(), X.copy()], sparsity=0.5, out=[X > 0])),
    ("prune_ read-only", V, "w", lambda: o.prune_(read_only(X), sparsity=0.5)),
    ("prune_ dtype", T, "w", lambda: o.prune_(DATA.copy(), sparsity=0.5)),
    ("prune_ overlapping", V, "w", lambda: o.prune_(np.lib.stride_tricks.as_strided(SELF, (4, 8), (0, 4)), sparsity=0.5)),
    ("magnitude_threshold dtype", T, "w", lambda: o.magnitude_threshold(DATA, 0.5)),
    ("magnitude_threshold sparsity", V, "sparsity", lambda: o.magnitude_threshold(X, 2)),
    ("magnitude_threshold nan", V, "sparsity", lambda: o.magnitude_threshold(X, float("nan"))),
    ("prune_quantize granularity", V, "granularity", lambda: o.prune_quantize(X, granularity="x", sparsity=0.5)),
    ("prune_quantize out", T, "out", lambda: o.prune_quantize(X, sparsity=0.5, out=(DATA.copy(), SCALE.copy()))),
    ("prune_quantize out data", T, "out[0]", lambda: o.prune_quantize(X, sparsity=0.5, out=(X.copy(), SCALE.copy(), X > 0))),
    ("prune_quantize out scale", V, "out[1]", lambda: o.prune_quantize(X, sparsity=0.5, out=(DATA.copy(), SCALE[:1].copy(), X > 0))),
    ("prune_quantize out mask", T, "out[2]", lambda: o.prune_quantize(X, sparsity=0.5, out=(DATA.copy(), SCALE.copy(), DATA.copy()))),
    ("prune_quantize outs overlap", V, "out[2]", lambda: o.prune_quantize(X, sparsity=0.5, out=(shared(i8, (4, 8)), SCALE.copy(), shared(bool, (4, 8), 31)))),
    # normalization
    ("norm x list", T, "x", lambda: o.rms_norm_quantize([[1.0]])),
    ("norm x dtype", T, "x", lambda: o.rms_norm_quantize(DATA)),
    ("norm x 0-d", V, "x", lambda: o.layer_norm_quantize(np.array(1.0, f32))),
    ("norm weight shape", V, "weight", lambda: o.rms_norm_quantize(X, SCALE)),
    ("norm weight dtype", T, "weight", lambda: o.rms_norm_quantize(X, DATA[0])),
    ("norm weight list", T, "weight", lambda: o.rms_norm_quantize(X, [1.0] * 8)),
    ("norm bias shape", V, "bias", lambda: o.layer_norm_quantize(X, X[0], X)),
    ("norm bias dtype", T, "bias", lambda: o.layer_norm_quantize(X, None, ZERO)),
    ("norm eps None", T, "eps", lambda: o.rms_norm_quantize(X, eps=None)),
    ("norm eps bool", T, "eps", lambda: o.rms_norm_quantize(X, eps=True)),
    ("norm eps negative", V, "eps", lambda: o.rms_norm_quantize(X, eps=-1e-6)),
    ("norm eps denormal", V, "eps", lambda: o.rms_norm_quantize(X, eps=1e-40)),
    ("norm eps nan", V, "eps", lambda: o.layer_norm_quantize(X, eps=float("nan"))),
    ("norm eps huge", V, "eps", lambda: o.layer_norm_quantize(X, eps=1e39)),
    ("norm residual dtype", T, "residual", lambda: o.rms_norm_quantize(X, residual=X.astype(np.float16))),
    ("norm residual shape", V, "residual", lambda: o.rms_norm_quantize(X, residual=X[:1])),
    ("norm out array", T, "out", lambda: o.rms_norm_quantize(X, out=DATA.copy())),
    ("norm out number", T, "out", lambda: o.rms_norm_quantize(X, residual=X, out=(DATA.copy(), SCALE.copy()))),
    ("norm out sum unasked", T, "out", lambda: o.rms_norm_quantize(X, out=(DATA.copy(), SCALE.copy(), X.copy()))),
    ("norm out None", T, "out[2]", lambda: o.rms_norm_quantize(X, residual=X, out=(DATA.copy(), SCALE.copy(), None))),
    ("norm out dtype", T, "out[0]", lambda: o.rms_norm_quantize(X, out=(X.copy(), SCALE.copy()))),
    ("norm out shape", V, "out[1]", lambda: o.rms_norm_quantize(X, out=(DATA.copy(), SCALE[:1].copy()))),
    ("norm out read-only", V, "out[1]", lambda: o.rms_norm_quantize(X, out=(DATA.copy(), read_only(SCALE)))),
    ("norm out is x", V, "out[2]", lambda: o.rms_norm_quantize(SELF, residual=SELF.copy(), out=(np.ones((8, 16), i8), np.ones(8, f32), SELF))),
    ("norm sum overlaps", V, "out[2]", lambda: o.rms_norm_quantize(X, residual=shared(f32, (4, 8), 64), out=(DATA.copy(), SCALE.copy(), shared(f32, (4, 8))))),
    ("norm data is residual", V, "out[0]", lambda: o.rms_norm_quantize(X, residual=shared(f32, (4, 8)), out=(shared(i8, (4, 8)), SCALE.copy(), X.copy()))),
    ("norm data in sum", V, "out[2]", lambda: o.rms_norm_quantize(X, residual=X, out=(shared(i8, (4, 8)), SCALE.copy(), shared(f32, (4, 8))))),
    ("pack_mask dtype", T, "mask", lambda: o.pack_mask(DATA)),
    ("pack_mask 0-d", V, "mask", lambda: o.pack_mask(np.array(True))),
    ("unpack_mask dtype", T, "bits", lambda: o.unpack_mask(DATA, (4, 64))),
    ("unpack_mask shape", V, "bits", lambda: o.unpack_mask(DATA.view(np.uint8), (4, 65))),
    ("unpack_mask negative", V, "shape", lambda: o.unpack_mask(DATA.view(np.uint8), (4, -1))),
    # convolution
    ("conv x list", T, "x", lambda: o.int8_conv2d([[1.0]], CONV)),
    ("conv x dtype", T, "x", lambda: o.int8_conv2d(IMAGE.astype(i8), CONV)),
    ("conv x channels", V, "x", lambda: o.int8_conv2d(IMAGE[:, :1], CONV)),
    ("conv x 2-D", V, "x", lambda: o.int8_conv2d(X, CONV)),
    ("conv x small", V, "x", lambda: o.int8_conv2d(IMAGE[..., :2], CONV)),
    ("conv weight", T, "weight", lambda: o.int8_conv2d(IMAGE, WEIGHT)),
    ("conv bias shape", V, "bias", lambda: o.int8_conv2d(IMAGE, CONV, SCALE)),
    ("conv bias dtype", T, "bias", lambda: o.int8_conv2d(IMAGE, CONV, ZERO[:3])),
    ("conv activation", V, "activation", lambda: o.int8_conv2d(IMAGE, CONV, activation="tanh")),
    ("conv stride", V, "stride", lambda: o.int8_conv2d(IMAGE, CONV, stride=0)),
    ("conv padding", V, "padding", lambda: o.int8_conv2d(IMAGE, CONV, padding="full")),
    ("conv dilation type", T, "dilation", lambda: o.int8_conv2d(IMAGE, CONV, dilation=1.5)),
    ("conv out_dtype", T, "out_dtype", lambda: o.int8_conv2d(IMAGE, CONV, out_dtype="int32")),
    # embeddings
    ("embedding indices", T, "indices", lambda: o.int8_embedding(SCALE, DATA, SCALE)),
    ("embedding weight", T, "weight", lambda: o.int8_embedding(ZERO, X, SCALE)),
    ("embedding weight 1-D", V, "weight", lambda: o.int8_embedding(ZERO, DATA[0], SCALE)),
    ("embedding scale None", T, "weight_scale", lambda: o.int8_embedding(ZERO, DATA, None)),
    ("embedding scale shape", V, "weight_scale", lambda: o.int8_embedding(ZERO, DATA, SCALE[:3])),
    ("embedding scale dtype", T, "weight_scale", lambda: o.int8_embedding(ZERO, DATA, SCALE.astype(np.float64))),
    ("embedding out_dtype", T, "out_dtype", lambda: o.int8_embedding(ZERO, DATA, SCALE, out_dtype="int8")),
    ("bag mode", V, "mode", lambda: o.int8_embedding_bag(ZERO[None], DATA, SCALE, mode="prod")),
    ("bag offsets and 2-D", V, "offsets", lambda: o.int8_embedding_bag(ZERO[None], DATA, SCALE, ZERO)),
    ("bag offsets missing", V, "offsets", lambda: o.int8_embedding_bag(ZERO, DATA, SCALE)),
    ("bag offsets dtype", T, "offsets", lambda: o.int8_embedding_bag(ZERO, DATA, SCALE, SCALE)),
    ("bag offsets values", V, "offsets", lambda: o.int8_embedding_bag(ZERO, DATA, SCALE, ZERO[:2] + 1)),
    ("bag weights mode", V, "per_sample_weights", lambda: o.int8_embedding_bag(ZERO[None], DATA, SCALE, per_sample_weights=SCALE[None])),
    ("bag weights shape", V, "per_sample_weights", lambda: o.int8_embedding_bag(ZERO[None], DATA, SCALE, mode="sum", per_sample_weights=SCALE)),
    ("bag padding_idx", V, "padding_idx", lambda: o.int8_embedding_bag(ZERO[None], DATA, SCALE, padding_idx=4)),
    # weight-only products
    ("weight-only x dtype", T, "x", lambda: o.weight_only_linear(DATA, PACKED)),
    ("weight-only x shape", V, "x", lambda: o.weight_only_linear(X[:, :7], PACKED)),
    ("weight-only weight", T, "weight", lambda: o.weight_only_linear(X, WEIGHT)),
    ("weight-only no scale", V, "weight_scale", lambda: o.weight_only_linear(X, UNSCALED)),
    ("weight-only scale shape", V, "weight_scale", lambda: o.weight_only_linear(X, PACKED, weight_scale=np.ones((3, 3), f32))),
    ("weight-only scale dtype", T, "weight_scale", lambda: o.weight_only_linear(X, PACKED, weight_scale=np.ones((3, 2)))),
    ("weight-only bias", V, "bias", lambda: o.weight_only_linear(X, PACKED, SCALE)),
    ("weight-only activation", V, "activation", lambda: o.weight_only_linear(X, PACKED, activation=["relu"])),
    ("weight-only out_dtype", T, "out_dtype", lambda: o.weight_only_linear(X, PACKED, out_dtype="int32")),
    # settings
    ("force_isa", V, "name", lambda: o.force_isa("sse9")),
    ("force_isa empty", V, "name", lambda: o.force_isa("")),
    ("force_isa None", V, "name", lambda: o.force_isa(None)),
    ("use_backend", V, "name", lambda: o.use_backend("gpu")),
    ("set_num_threads 0", V, "n", lambda: o.set_num_threads(0)),
    ("set_num_threads negative", V, "n", lambda: o.set_num_threads(-1)),
    ("set_num_threads str", T, "n", lambda: o.set_num_threads("2")),
    ("set_num_threads float", T, "n", lambda: o.set_num_threads(1.5)),
]  # fmt: skip


def assert_explains(error: BaseException, argument: str | None) -> None:
    message = str(error)
    if argument is not None:
        assert re.match(rf"{re.escape(argument)}: ", message), message
    assert "expected " in message, message
    assert re.search(r"\bgot\b", message), message


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("kind", "argument", "call"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_wrong_arguments_are_explained(kind, argument, call, backend):
    with octavo.use_backend(backend), pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert_explains(caught.value, argument)
    assert caught.type is kind, caught.value


def test_errors_change_nothing():
    """A refused call leaves its out alone."""
    data, scale = np.full((4, 8), 7, i8), np.full(4, 7, f32)
    with pytest.raises(ValueError, match=r"^x: "):
        octavo.quantize(X * np.nan, nonfinite="raise", out=(data, scale))
    assert (data == 7).all()
    assert (scale == 7).all()
    mask = np.ones((4, 8), bool)
    with pytest.raises(ValueError, match=r"^w: "):
        octavo.prune_mask(X * np.nan, sparsity=1.0, nonfinite="raise", out=mask)
    assert mask.all()


def test_cupy_arrays_need_native_kernels(monkeypatch):
    """Without them there is nothing to fall back on, and the error says why."""
    module = emulated_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(backends, "cuda", lambda: (None, "this build has no CUDA kernels"))
    backends.why_not_cuda.cache_clear()
    try:
        for call in (octavo.quantize, octavo.pack_weight, lambda x: octavo.prune_mask(x, sparsity=0.5)):
            with pytest.raises(
                RuntimeError, match=r"expected native kernels for a cupy.*got none: .*no CUDA"
            ):
                call(module.asarray(X))
        with pytest.raises(TypeError, match=r"^weight: expected cupy.ndarray like x, got numpy.ndarray"):
            octavo.int8_linear(module.asarray(X), PACKED)
    finally:
        backends.why_not_cuda.cache_clear()
        arrays._kinds.pop(module.ndarray, None)


# ---- torch ----

TORCH_CASES = [
    ("mixed kinds", T, "scale", lambda t: o.quantize(t(X), scale=SCALE)),
    ("numpy with torch", T, "scale", lambda t: o.dequantize(DATA, t(SCALE))),
    ("bias kind", T, "bias", lambda t: o.int8_linear(X, PACKED, t(np.ones(3, f32)))),
    ("weight kind", T, "weight", lambda t: o.int8_linear(t(X), PACKED)),
    ("b kind", T, "b", lambda t: o.int_mm(t(DATA), PACKED)),
    ("out kind", T, "out", lambda t: o.dequantize(t(DATA), t(SCALE), out=X.copy())),
    ("ws kinds", T, "w[1]", lambda t: o.prune_mask([t(X), X], sparsity=0.5)),
    ("x dtype", T, "x", lambda t: o.quantize(t(DATA))),
    ("x int64", T, "x", lambda t: o.quantize(t(DATA).long())),
    ("x complex", T, "x", lambda t: o.quantize(t(X).to(dtype=__import__("torch").complex64))),
    ("x sparse", T, "x", lambda t: o.quantize(t(X).to_sparse())),
    ("group_size", V, "group_size", lambda t: o.quantize(t(X), granularity="group", group_size=3)),
    ("seed", V, "seed", lambda t: o.quantize(t(X), rounding="stochastic")),
    ("nonfinite", V, "x", lambda t: o.quantize(t(X) * float("nan"), nonfinite="raise")),
    ("scale dtype", T, "scale", lambda t: o.quantize(t(X), scale=t(SCALE).double())),
    ("scale shape", V, "scale", lambda t: o.quantize(t(X), scale=t(SCALE)[:3])),
    ("scale value", V, "scale", lambda t: o.quantize(t(X), scale=t(SCALE) * 0)),
    ("zero_point range", V, "zero_point", lambda t: o.quantize(t(X), symmetric=False, scale=t(SCALE), zero_point=t(ZERO + 200))),
    ("out dtype", T, "out[0]", lambda t: o.quantize(t(X), out=(t(X), t(SCALE)))),
    ("out expanded", V, "out[0]", lambda t: o.quantize(t(X), out=(t(DATA)[:1].expand(4, 8), t(SCALE)))),
    ("out overlaps", V, "out", lambda t: overlapping(t)),
    ("data dtype", T, "data", lambda t: o.dequantize(t(X), t(SCALE))),
    ("dtype", T, "dtype", lambda t: o.dequantize(t(DATA), t(SCALE), dtype=__import__("torch").int8)),
    ("a dtype", T, "a", lambda t: o.int_mm(t(X), t(WEIGHT).T)),
    ("a shape", V, "a", lambda t: o.int_mm(t(DATA), t(WEIGHT))),
    ("K too large", V, "a", lambda t: o.int_mm(t(np.zeros((1, 131_072), i8)), t(np.zeros((131_072, 1), i8)))),
    ("x shape", V, "x", lambda t: o.int8_linear(t(X)[:, :7], torch_packed(t))),
    ("bias shape", V, "bias", lambda t: o.int8_linear(t(X), torch_packed(t), t(SCALE))),
    ("activation", V, "activation", lambda t: o.int8_linear(t(X), torch_packed(t), activation="tanh")),
    ("out_dtype", T, "out_dtype", lambda t: o.int8_linear(t(X), torch_packed(t), out_dtype=__import__("torch").float64)),
    ("weights K", V, "weight[1]", lambda t: o.int8_linear(t(X), [torch_packed(t), t(X)[:, :7]])),
    ("weights kind", T, "weight[1]", lambda t: o.int8_linear(t(X), [torch_packed(t), PACKED])),
    ("biases kind", T, "bias[1]", lambda t: o.int8_linear(t(X), [torch_packed(t)] * 2, [None, SCALE[:3]])),
    ("outs same", V, "out[1]", lambda t: o.int8_linear(t(X), [torch_packed(t)] * 2, out=[t(np.zeros((4, 3), f32))] * 2)),
    ("a_scale", V, "a_scale", lambda t: o.scaled_int_mm(t(DATA), t(SCALE)[:2], torch_packed(t))),
    ("weight dtype", T, "weight", lambda t: o.pack_weight(t(WEIGHT).int())),
    ("buffer", V, "buffer", lambda t: o.PackedWeight.from_buffer(t(BUFFER)[:-1])),
    ("w dtype", T, "w", lambda t: o.prune_mask(t(DATA), sparsity=0.5)),
    ("sparsity", V, "sparsity", lambda t: o.prune_mask(t(X), sparsity=1.5)),
    ("pattern", V, "pattern", lambda t: o.prune_mask(t(X), sparsity=0.5, pattern="x")),
    ("prune_ expanded", V, "w", lambda t: o.prune_(t(X)[:1].expand(4, 8), sparsity=0.5)),
    ("mask dtype", T, "mask", lambda t: o.pack_mask(t(DATA))),
    ("norm weight kind", T, "weight", lambda t: o.rms_norm_quantize(t(X), X[0])),
    ("norm residual dtype", T, "residual", lambda t: o.rms_norm_quantize(t(X), residual=t(X).double())),
    ("norm 0-d", V, "x", lambda t: o.layer_norm_quantize(t(X)[0, 0])),
    ("norm out expanded", V, "out[0]", lambda t: o.rms_norm_quantize(t(X), out=(t(DATA)[:1].expand(4, 8), t(SCALE)))),
    ("norm out kind", T, "out[2]", lambda t: o.rms_norm_quantize(t(X), residual=t(X), out=(t(DATA), t(SCALE), X.copy()))),
]  # fmt: skip


def torch_packed(t):
    return octavo.pack_weight(t(WEIGHT), t(np.ones(3, f32)))


def overlapping(t):
    memory = t(np.zeros(64, f32))
    return octavo.dequantize(
        memory.view(dtype=t(DATA).dtype)[:32].reshape(4, 8), t(SCALE), out=memory[:32].reshape(4, 8)
    )


@needs_torch
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("kind", "argument", "call"), [c[1:] for c in TORCH_CASES], ids=[c[0] for c in TORCH_CASES]
)
def test_wrong_torch_arguments_are_explained(kind, argument, call, backend):
    with octavo.use_backend(backend), pytest.raises((TypeError, ValueError)) as caught:
        call(to_torch)
    assert_explains(caught.value, argument)
    assert caught.type is kind, caught.value


@needs_torch
def test_mixed_devices_are_refused():
    import torch

    x, scale = torch.ones(4, 8), torch.ones(4, device="meta")
    with pytest.raises(TypeError, match=r"^scale: expected device cpu.*got meta"):
        octavo.dequantize(x.to(torch.int8), scale)
