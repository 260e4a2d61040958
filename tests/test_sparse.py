"""Weights without their zeros: the bits of the dense layout on every ISA, the choice of "auto", damage.

The format itself is tested in test_reference.py, and that packing writes it to the byte in test_gemm.py.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guard
import octavo
from octavo.ops import layouts as packing
from octavo.reference import numpy as reference
from octavo.runtime import backends
from strategies import (
    LAYOUTS as MEMORY,
)
from strategies import (
    THREADS,
    assert_same,
    cases,
    cast,
    float_arrays,
    int8_arrays,
    isas,
    lay_out,
    on_every_isa,
    poisoned,
    running,
    scales,
    untouched,
)

LAYOUTS = ("dense", "bitmask", "block")
SPARSE = LAYOUTS[1:]
# One row, those that kernels have tiles for and their neighbours, 16-row tiles, and rows enough to be split.
ROWS = (0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 31, 32, 33, 48, 49, 65, 130, 300, 520)
COLUMNS = (0, 1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 97, 130)
TERMS = (0, 1, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 100, 127, 128, 129, 192, 257)
ZEROS = ("all", "most", "half", "none", "tiles", "rows", "columns", "panels", "but the first", "but the last")


def zeroed(weight: np.ndarray, zeros: str, rng: np.random.Generator) -> np.ndarray:
    """The weight [N, K] with zeros by class; elsewhere it has none."""
    weight = np.where(weight == 0, np.int8(-128), weight)
    n, k = weight.shape
    if zeros in ("but the first", "but the last"):
        keep = np.zeros(n * k, bool)
        keep[(0 if zeros == "but the first" else -1) :][:1] = True
        keep = keep.reshape(n, k)
    else:
        unit = {"tiles": (4, 16), "rows": (1, max(k, 1)), "columns": (max(n, 1), 1), "panels": (16, 64)}
        r, c = unit.get(zeros, (1, 1))
        share = {"all": 0.0, "most": 0.05, "none": 1.0}.get(zeros, 0.5)
        units = rng.random((-(-n // r), -(-k // c))) < share
        keep = np.repeat(np.repeat(units, r, axis=0), c, axis=1)[:n, :k]
    return np.where(keep, weight, np.int8(0))


@st.composite
def weights(draw, n: int, k: int, memory=MEMORY):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.choice([-128, 127], (n, k)) if draw(st.booleans()) else rng.integers(-128, 128, (n, k))
    weight = zeroed(weight.astype(np.int8), draw(st.sampled_from(ZEROS)), rng)
    return lay_out(weight, draw(st.sampled_from(memory)))


@st.composite
def sizes(draw):
    """M, N, K; few columns and terms for many rows."""
    m = draw(st.sampled_from(ROWS))
    n, k = draw(st.sampled_from(COLUMNS)), draw(st.sampled_from(TERMS))
    return m, n, k if m * n * k < 1 << 21 else draw(st.sampled_from([0, 1, 17, 64, 65]))


def pack_all(weight, scale=None):
    return [octavo.pack_weight(weight, scale, layout=layout) for layout in LAYOUTS]


def exact(a: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sums of a product, through float64, which holds them."""
    return (a.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.int32)


# ---- what a packed weight holds ----


@cases(200)
@given(st.data())
def test_what_was_packed_comes_back(data):
    n, k = data.draw(st.sampled_from(COLUMNS)), data.draw(st.sampled_from(TERMS))
    weight = data.draw(weights(n, k))
    scale = data.draw(st.none() | scales(n))
    plain = np.ascontiguousarray(weight)
    layout = data.draw(st.sampled_from(SPARSE))
    for label, packed in on_every_isa(lambda: octavo.pack_weight(weight, scale, layout=layout), (1, 3)):
        share = np.count_nonzero(plain) / plain.size if plain.size else 1.0
        again = pickle.loads(pickle.dumps(packed))
        moved = np.zeros(packed.buffer.size + 1, np.uint8)[1:]  # not aligned: copied
        moved[:] = packed.buffer
        taken = octavo.PackedWeight.from_buffer(moved, scale)
        same = octavo.PackedWeight.from_buffer(packed.buffer, scale)
        assert same.buffer is packed.buffer, label
        for each in (packed, again, taken, same):
            assert (each.shape, each.layout) == ((n, k), layout), label
            assert each.density == pytest.approx(share, rel=1e-12), label
            assert each.nbytes == each.buffer.nbytes + (0 if scale is None else scale.nbytes), label
            back, back_scale = each.unpack()
            assert_same(back, plain, label)
            assert_same(back_scale, scale, label)


@pytest.mark.parametrize("layout", ["dense", *SPARSE])
@cases(60)
@given(st.data())
def test_every_isa_unpacks_what_was_packed(layout, data):
    n, k = data.draw(st.sampled_from(COLUMNS)), data.draw(st.sampled_from(TERMS))
    weight = data.draw(weights(n, k))
    packed = octavo.pack_weight(weight, layout=layout)
    for label, back in on_every_isa(lambda: packed.unpack()[0], (1, 2)):
        assert_same(back, np.ascontiguousarray(weight), label)


@cases(100)
@given(st.data())
def test_a_sparse_layout_takes_as_few_bytes_as_it_promises(data):
    n, k = data.draw(st.sampled_from(COLUMNS)), data.draw(st.sampled_from(TERMS))
    weight = np.ascontiguousarray(data.draw(weights(n, k)))
    rows, cols = -(-n // 16) * 16, -(-k // 64) * 64
    tiles = np.zeros((rows, cols), bool)
    tiles[:n, :k] = weight != 0
    kept = int(tiles.reshape(rows // 4, 4, cols // 16, 16).any(axis=(1, 3)).sum())
    small = 64 + 4 * rows + 8 * (rows // 4 + 1) + 3 * 64  # header, sums, offsets, padding
    bitmask, block = (octavo.pack_weight(weight, layout=layout).nbytes for layout in SPARSE)
    assert bitmask <= np.count_nonzero(weight) + (rows + 16) * cols // 8 + small
    assert block <= 66 * kept + small


@pytest.mark.parametrize("layout", SPARSE)
def test_float_weights_are_quantized_first(layout):
    rng = np.random.default_rng(1)
    weight = octavo.prune(rng.standard_normal((70, 90)).astype(np.float32), sparsity=0.8)
    data, scale, _ = reference.quantize(weight)
    for label, packed in on_every_isa(lambda: octavo.pack_weight(weight, layout=layout), (1, 2)):
        assert_same(packed.buffer, reference.pack_weight(data, layout), label)
        assert_same(packed.scale, scale, label)
        assert packed.density == np.count_nonzero(data) / data.size, label


# ---- products ----


@cases(300)
@given(st.data())
def test_int_mm(data):
    m, n, k = data.draw(sizes())
    a = data.draw(int8_arrays((m, k), data.draw(st.sampled_from(["int8", "uint8"]))))
    weight = data.draw(weights(n, k))
    expected = exact(a, weight)
    pad = data.draw(st.sampled_from([0, 3]))
    out = poisoned((m, n), np.int32, pad)
    for packed in pack_all(weight):
        for label, actual in on_every_isa(lambda p=packed: octavo.int_mm(a, p, out=out)):
            assert_same(actual, expected, f"{packed.layout}, {label}")
            assert untouched(out, pad), f"{packed.layout}, {label}"
            out.fill(-1)
    assert_same(exact(a, weight)[:3], reference.int_mm(a, weight.T)[:3])


@cases(200)
@given(st.data())
def test_int8_linear(data):
    m, n, k = data.draw(sizes())
    x = data.draw(float_arrays((m, k), flavours=("normal", "ties", "special", "wide")))
    weight, scale = data.draw(weights(n, k)), data.draw(scales(n))
    bias = data.draw(st.none() | float_arrays((n,), flavours=("normal", "special")))
    args = {
        "activation": data.draw(st.sampled_from((None, "relu", "gelu", "gelu_tanh", "silu"))),
        "out_dtype": data.draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    }
    dense, *sparse = pack_all(weight, scale)
    with running("scalar"):
        expected = octavo.int8_linear(x, dense, bias, **args)
    out = poisoned(expected.shape, expected.dtype, 1)
    for packed in (dense, *sparse):
        for label, actual in on_every_isa(lambda p=packed: octavo.int8_linear(x, p, bias, **args, out=out)):
            assert_same(np.ascontiguousarray(actual), expected, f"{packed.layout}, {label}")
            assert untouched(out, 1), f"{packed.layout}, {label}"
            out.fill(1)
    if args["activation"] in (None, "relu"):
        pre = reference.int8_linear(x, weight, scale, bias, **args)
        assert_same(expected, pre)
        with octavo.use_backend("reference"):
            for packed in sparse:
                assert_same(octavo.int8_linear(x, packed, bias, **args), pre, packed.layout)


@cases(150)
@given(st.data())
def test_scaled_int_mm(data):
    m, n, k = data.draw(sizes())
    dtype = data.draw(st.sampled_from(["int8", "uint8"]))
    a = data.draw(int8_arrays((m, k), dtype))
    info = np.iinfo(dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    zero_point = data.draw(st.none() | st.just(rng.integers(info.min, info.max + 1, m).astype(np.int32)))
    a_scale, scale = data.draw(scales(m)), data.draw(scales(n))
    bias = data.draw(st.none() | float_arrays((n,), flavours=("normal", "special")))
    weight = data.draw(weights(n, k))
    expected = reference.scaled_int_mm(a, a_scale, weight, scale, bias, zero_point)
    for packed in pack_all(weight, scale):
        for label, actual in on_every_isa(
            lambda p=packed: octavo.scaled_int_mm(a, a_scale, p, bias, a_zero_point=zero_point)
        ):
            assert_same(actual, expected, f"{packed.layout}, {label}")


@cases(100)
@given(st.data())
def test_weights_of_different_layouts_share_an_input(data):
    m, _, k = data.draw(sizes())
    x = data.draw(float_arrays((m, k), flavours=("normal", "ties", "special")))
    plain, packed, biases = [], [], []
    for n in data.draw(st.lists(st.sampled_from([0, 1, 17, 33, 64, 80, 129]), min_size=2, max_size=4)):
        weight, scale = data.draw(weights(n, k)), data.draw(scales(n))
        layout = data.draw(st.sampled_from(LAYOUTS))
        plain.append((weight, scale))
        packed.append(octavo.pack_weight(weight, scale, layout=layout))
        biases.append(data.draw(st.none() | float_arrays((n,), flavours=("normal",))))
    expected = [
        reference.int8_linear(x, weight, scale, bias, out_dtype="float32")
        for (weight, scale), bias in zip(plain, biases, strict=True)
    ]
    for label, shared in on_every_isa(lambda: octavo.int8_linear(x, packed, biases, out_dtype="float32")):
        for weight, actual, wanted in zip(packed, shared, expected, strict=True):
            assert_same(actual, wanted, f"{weight.layout}, {label}")


@pytest.mark.parametrize("m", ROWS)
def test_every_number_of_rows_of_a_large_weight(m):
    """Enough work for several threads, more panels than a strip or a span has, and an odd number of them."""
    rng = np.random.default_rng(m)
    n, k = 557, 1093 if m < 100 else 333
    a = rng.integers(-128, 128, (m, k)).astype(np.int8)
    for zeros in ("half", "most", "tiles"):
        weight = zeroed(rng.integers(-128, 128, (n, k)).astype(np.int8), zeros, rng)
        expected = exact(a, weight)
        for layout in SPARSE:
            packed = octavo.pack_weight(weight, layout=layout)
            for label, actual in on_every_isa(lambda p=packed: octavo.int_mm(a, p), threads=(1, 3)):
                assert_same(actual, expected, f"{zeros}, {layout}, {label}")


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("m", [1, 3, 16, 40])
def test_sums_are_exact_at_the_limit_of_k(layout, m):
    """The last tile's index is the largest, and the sums are those that just fit int32."""
    k = packing.MAX_K
    a = np.full((m, k), -128, np.int8)
    a[m // 2 :] = 127
    weight = np.full((3, k), -128, np.int8)
    weight[1] = 0
    weight[1, -1], weight[2, ::2] = 127, 0
    packed = octavo.pack_weight(weight, layout=layout)
    for label, actual in on_every_isa(lambda: octavo.int_mm(a, packed), threads=(1, 2)):
        assert_same(actual, exact(a, weight), label)
    assert_same(packed.unpack()[0], weight)


@pytest.mark.parametrize("layout", SPARSE)
def test_a_row_does_not_depend_on_the_others(layout):
    rng = np.random.default_rng(5)
    weight = octavo.prune(rng.standard_normal((200, 300)).astype(np.float32), sparsity=0.7)
    packed = octavo.pack_weight(weight, layout=layout)
    x = rng.standard_normal((530, 300)).astype(np.float32)
    for isa in isas():
        with running(isa, 2):
            whole = octavo.int8_linear(x, packed, activation="gelu")
            for begin, end in ((0, 1), (3, 5), (7, 20), (100, 150), (10, 525)):
                part = octavo.int8_linear(x[begin:end], packed, activation="gelu")
                assert_same(part, np.ascontiguousarray(whole[begin:end]), f"{isa}, rows {begin} to {end}")


# ---- "auto" ----


def kept_at_random(kept: int, shape=(256, 256)) -> np.ndarray:
    """`kept` weights that are not zero, in random places."""
    rng = np.random.default_rng(kept)
    weight = np.zeros(shape, np.int8)
    weight.reshape(-1)[rng.permutation(weight.size)[:kept]] = 3
    return weight


def kept_tiles(kept: int) -> np.ndarray:
    """`kept` full tiles of 4 x 16, of 1024."""
    units = kept_at_random(kept, (64, 16)) != 0
    return np.repeat(np.repeat(units, 4, axis=0), 16, axis=1).astype(np.int8) * np.int8(-5)


def auto_layout(weight) -> str:
    packed = octavo.pack_weight(weight)
    assert_same(packed.unpack()[0], np.ascontiguousarray(weight))
    named = octavo.pack_weight(weight, layout=packed.layout)
    assert_same(packed.buffer, np.array(named.buffer))
    a = np.arange(-100, 100, 1, np.int8)[:, None].repeat(weight.shape[1], axis=1)
    for rows in (a[:1], a[:7], a):
        assert_same(octavo.int_mm(rows, packed), exact(rows, weight), packed.layout)
    return packed.layout


def test_auto_takes_bitmask_where_few_enough_weights_are_kept():
    for isa in isas():
        with running(isa):
            pays, _ = backends._core.sparse_pays()
            size = 256 * 256
            assert auto_layout(kept_at_random(size)) == "dense", isa
            limit = int(pays * size)
            assert auto_layout(kept_at_random(limit + 100)) == "dense", isa
            if pays:
                assert auto_layout(kept_at_random(limit - 100)) == "bitmask", isa
                assert auto_layout(kept_at_random(size // 4)) == "bitmask", isa
                assert auto_layout(kept_at_random(size // 4).T) == "bitmask", isa
            else:
                assert auto_layout(kept_at_random(size // 100)) == "dense", isa


def test_auto_takes_block_where_few_enough_tiles_are_kept():
    for isa in isas():
        with running(isa):
            bitmask_pays, pays = backends._core.sparse_pays()
            limit = int(pays * 1024)
            if pays:
                assert auto_layout(kept_tiles(limit - 5)) == "block", isa
                assert auto_layout(kept_tiles(limit // 2)) == "block", isa
            above = limit + 5
            expected = "bitmask" if above / 1024 < bitmask_pays else "dense"
            assert auto_layout(kept_tiles(above)) == expected, isa
            zeros = np.zeros((256, 256), np.int8)
            assert auto_layout(zeros) == ("block" if pays else "dense"), isa


def test_auto_leaves_small_weights_dense():
    for isa in isas():
        with running(isa):
            small, large = np.zeros((255, 257), np.int8), np.zeros((256, 256), np.int8)
            assert octavo.pack_weight(small).layout == "dense"
            assert octavo.pack_weight(small, layout="bitmask").layout == "bitmask"
            expected = "dense" if backends._core.sparse_pays() == (0.0, 0.0) else "block"
            assert octavo.pack_weight(large).layout == expected, isa


def test_without_native_kernels_auto_is_dense_and_names_are_kept():
    isas()
    weight = kept_tiles(100)
    with octavo.use_backend("reference"):
        assert auto_layout(weight) == "dense"
        for layout in LAYOUTS:
            packed = octavo.pack_weight(weight, layout=layout)
            assert packed.layout == layout
            assert_same(packed.unpack()[0], weight)
            a = np.ones((3, 256), np.int8)
            assert_same(octavo.int_mm(a, packed), exact(a, weight))


def test_explain_shows_the_layout(capsys):
    rng = np.random.default_rng(6)
    weight = octavo.prune(rng.standard_normal((256, 320)).astype(np.float32), sparsity=0.9)
    for layout, word in (("dense", "dense: "), ("bitmask", "10% of weights"), ("block", "tiles of 4 x 16")):
        packed = octavo.pack_weight(weight, layout=layout)
        for isa in isas():
            with running(isa):
                (row,) = octavo.explain(packed)
            assert (row.layout, row.nbytes, row.shape) == (layout, packed.nbytes, (256, 320))
            assert row.density == pytest.approx(0.1, abs=0.001)
            assert word in row.why, isa
            printed = capsys.readouterr().out
            assert layout in printed
    (row,) = octavo.explain(weight)
    assert row.layout == octavo.pack_weight(weight).layout


# ---- damage ----


def parts_of(buffer) -> dict[str, slice]:
    header = packing.read_header(buffer)
    start, index, weight, _ = packing._parts(*header)
    rows = packing.padded(*header[:2])[0]
    units = packing.pairs(rows) if header.layout == "bitmask" else rows // 4
    used = weight - index if header.layout == "bitmask" else 2 * header.stored
    return {
        "count": slice(32, 40),
        "offsets": slice(start, start + 8 * (units + 1)),
        "index": slice(index, index + used),
    }


def with_part(packed, part: str, dtype: str, change):
    """A copy of the buffer in which change(part) was called."""
    buffer = packed.buffer.copy()
    change(buffer[parts_of(buffer)[part]].view(dtype))
    return buffer


def setting(at, value):
    def change(part):
        part[at] = value

    return change


def refused(buffer) -> None:
    with pytest.raises(ValueError, match=r"^buffer: expected .*got "):
        octavo.PackedWeight.from_buffer(buffer)


def example(layout: str):
    rng = np.random.default_rng(7)
    weight = zeroed(rng.integers(-128, 128, (150, 200)).astype(np.int8), "half", rng)
    weight[16:40, 20:] = 0  # tiles that are left out, so that an index has room to be wrong
    return weight, octavo.pack_weight(weight, layout=layout)


@pytest.mark.parametrize("layout", SPARSE)
def test_damaged_counts_and_offsets_are_refused(layout):
    _, packed = example(layout)
    count = packing.read_header(packed.buffer).stored
    for wrong in (0, count - 1, count + 1, count - 64, count + 64, -1, 2**62, -(2**63)):
        refused(with_part(packed, "count", "<i8", setting(0, wrong)))
    offsets = packed.buffer[parts_of(packed.buffer)["offsets"]].view("<i8")
    for at, wrong in (
        (0, 1),
        (0, -1),
        (1, -1),
        (1, int(offsets[2]) + 1),  # decreasing
        (1, count + 1),
        (2, 2**62),
        (2, -(2**63)),
        (-1, count - 1),
        (-1, count + 1),
        (-1, 0),
    ):
        refused(with_part(packed, "offsets", "<i8", setting(at, wrong)))
    # from one to the next by less than 2^63, if that is counted modulo 2^64
    around = [2**62, -(2**63), -(2**62), 0]
    refused(with_part(packed, "offsets", "<i8", setting(slice(1, 5), around)))
    buffer = np.array(packed.buffer)
    for other in (buffer[:-64], buffer[:-1], np.append(buffer, np.zeros(64, np.uint8)), buffer[:64]):
        refused(other)


@pytest.mark.parametrize("numpy_counts_bits", [True, False])
def test_damaged_masks_are_refused(numpy_counts_bits, monkeypatch):
    if not numpy_counts_bits:  # NumPy 1
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    _, packed = example("bitmask")
    for at in (0, 1, -1):
        masks = packed.buffer[parts_of(packed.buffer)["index"]].view("<u8")
        refused(with_part(packed, "index", "<u8", setting(at, 2**64 - 1 if masks[at] == 0 else 0)))
        refused(with_part(packed, "index", "<u8", setting(at, masks[at] ^ np.uint64(1))))

    def from_pair_to_pair(masks):  # the sum stays
        masks[0], masks[-2] = masks[-2], masks[0]

    refused(with_part(packed, "index", "<u8", from_pair_to_pair))

    def beyond_k(masks):  # the pair's sum stays
        masks[0], masks[2 * 51] = masks[2 * 51], masks[0]

    refused(with_part(packed, "index", "<u8", beyond_k))


def test_damaged_indices_are_refused():
    _, packed = example("block")
    index = packed.buffer[parts_of(packed.buffer)["index"]].view("<u2")
    for at, wrong in (
        (0, 16),
        (-1, 16),
        (-1, 13),
        (3, 2**16 - 1),
        (1, index[0]),
        (1, index[2]),
        (0, index[1]),
    ):
        refused(with_part(packed, "index", "<u2", setting(at, wrong)))

    def swap(part):
        part[0], part[1] = part[1], part[0]

    refused(with_part(packed, "index", "<u2", swap))


@pytest.mark.parametrize("layout", SPARSE)
@cases(150)
@given(st.data())
def test_damage_is_refused_or_harmless(layout, data):
    """Where it is not seen, the buffer holds another weight, one for all; nothing is read beyond its end."""
    _, packed = example(layout)
    buffer = packed.buffer.copy()
    part = buffer[parts_of(buffer)[data.draw(st.sampled_from(["count", "offsets", "index"]))]]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, part.size - 1))
        kind = data.draw(st.sampled_from(["bit", "byte", "move"]))
        if kind == "move":  # what counts does not change
            near = min(part.size - 1, at + data.draw(st.integers(1, 40)))
            part[at], part[near] = part[near], part[at]
        else:
            part[at] ^= 1 << data.draw(st.integers(0, 7)) if kind == "bit" else data.draw(st.integers(1, 255))
    buffer = guard.copy(buffer)
    try:
        taken = octavo.PackedWeight.from_buffer(buffer)
    except ValueError:
        return
    assert taken.buffer is buffer
    weight = reference.unpack_weight(np.array(buffer), 150, 200, layout)
    rng = np.random.default_rng(8)
    for m in (1, 16, 40):
        a = rng.integers(0, 256, (m, 200)).astype(
            np.uint8
        )  # unsigned: the sums of columns, not checked, are not read
        for label, actual in on_every_isa(lambda a=a: octavo.int_mm(a, taken), threads=(1,)):
            assert_same(actual, exact(a, weight), label)
    for label, back in on_every_isa(lambda: taken.unpack()[0], threads=(1,)):
        assert_same(back, weight, label)


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_weight_that_changes_between_counting_and_packing_is_refused(layout, more):
    """As another thread could change it; not a byte is written beyond the buffer."""
    core = backends._core
    isas()
    n, k = 2100, 200  # for three threads
    counted = np.zeros((n, k), np.int8)
    counted[::10, 16:96:16] = 1
    found = counted.copy()
    found[2090, 16 if more < 0 else 96] = more > 0  # the first tile is gone, or there is a sixth
    rows = packing.padded(n, k)[0]
    kept, tiles = np.empty(packing.pairs(rows), np.int64), np.empty(rows // 4, np.int64)
    at, to = (
        core.IntRows(w.ctypes.data, signed=True, rows=n, cols=k, row_stride=k, col_stride=1)
        for w in (counted, found)
    )
    core.count_weight(at, kept=kept.ctypes.data, tiles=tiles.ctypes.data, where=2)
    counts = kept if layout == "bitmask" else tiles
    nbytes = packing.packed_nbytes(n, k, layout, int(counts.sum()))
    for threads in THREADS:
        buffer = guard.empty((nbytes,), np.uint8)
        arguments = {
            "layout": LAYOUTS.index(layout),
            "counts": counts.ctypes.data,
            "buffer": buffer.ctypes.data,
            "where": threads,
        }
        core.pack_weight(at, **arguments)
        assert_same(np.array(buffer), reference.pack_weight(counted, layout))
        with pytest.raises(ValueError, match=r"^weight: expected to stay as it is .* got "):
            core.pack_weight(to, **arguments)


@pytest.mark.parametrize("side", guard.SIDES)
@pytest.mark.parametrize("layout", SPARSE)
def test_nothing_outside_the_arrays_is_touched(layout, side):
    rng = np.random.default_rng(9)
    shapes = [
        (m, n, k) for m in (1, 2, 4, 5, 9, 13, 17, 33) for n in (1, 17, 33, 65, 130) for k in (1, 31, 65)
    ]
    shapes += [(1, 300, 700), (20, 300, 700), (130, 48, 64), (520, 17, 64), (3, 5, 2049)]
    for i, (m, n, k) in enumerate(shapes):
        weight = zeroed(rng.integers(-128, 128, (n, k)).astype(np.int8), ZEROS[i % 5], rng)
        weight = guard.copy(weight, side, row_pad=i % 2)
        a = guard.copy(rng.integers(-128, 128, (m, k)).astype(np.int8), side, row_pad=i % 2)
        x = guard.copy(cast(rng.standard_normal((m, k)), "float32"), side, row_pad=i % 2)
        weight_scale = guard.copy(rng.uniform(0.1, 1, n).astype(np.float32), side)
        bias = guard.copy(cast(rng.standard_normal(n), "float32"), side)
        out = guard.empty((m, n), np.float32, side, row_pad=i % 3)
        sums = guard.empty((m, n), np.int32, side, row_pad=i % 3)
        # its size is a multiple of 64, so that it is aligned
        buffer = guard.copy(reference.pack_weight(weight, layout), "end")
        packed = octavo.PackedWeight.from_buffer(buffer, weight_scale)
        assert packed.buffer.ctypes.data == buffer.ctypes.data
        expected = reference.int8_linear(x, weight, weight_scale, bias)
        for isa in isas():
            with running(isa, 1 + i % 2):
                octavo.int8_linear(x, packed, bias, out=out)
                assert_same(np.ascontiguousarray(out), expected, isa)
                octavo.int_mm(a, packed, out=sums)
                assert_same(np.ascontiguousarray(sums), exact(a, weight), isa)
                assert_same(packed.unpack()[0], np.ascontiguousarray(weight), isa)
                assert_same(octavo.pack_weight(weight, layout=layout).buffer, np.array(buffer), isa)
