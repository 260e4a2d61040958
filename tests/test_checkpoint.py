"""octavo.save and octavo.load: what comes back, where it lies in memory, and what a file holds."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import octavo
from checkpoints import MANIFEST, TENSORS, Model, quantized, refused, same_state, stored
from strategies import cases

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from octavo.nn import Int8Linear  # noqa: E402
from octavo.nn.layers import INT8_LAYERS  # noqa: E402
from octavo.storage import files  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- what comes back ----


UNSTRUCTURED = [("unstructured", k, n) for k in (1, 9, 264) for n in (1, 24, 256)]


@cases(25)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.99, 1.0]),
    pattern=st.sampled_from([("row", 9, 24), ("block4x16", 256, 272), *UNSTRUCTURED]),
    into=st.sampled_from(["factory", "float", "quantized"]),
)
def test_round_trip_is_exact(tmp_path_factory, dtype, sparsity, pattern, into):
    pattern, k, n = pattern
    directory = tmp_path_factory.mktemp("round") / "trip"
    float_model = Model(k, n).to(dtype).eval()
    octavo.prune_model_(float_model, sparsity=sparsity, pattern=pattern, scope="layer")
    model = octavo.quantize_(float_model)
    octavo.save(model, directory)
    other = {
        "factory": lambda: Model(k, n).to(dtype).eval(),
        "float": Model(k, n).to(dtype).eval(),
        "quantized": octavo.quantize_(Model(k, n).to(dtype).eval()),
    }[into]
    loaded = octavo.load(other, directory)
    assert (loaded is other) == (into != "factory")
    same_state(model, loaded)
    if dtype != torch.float16:  # torch has no batch norm for it on the CPU
        x = torch.tensor([0, 3, 6])
        assert torch.equal(model(x), loaded(x))
    again = directory.with_name("again")
    octavo.save(loaded, again)
    for name in (TENSORS, MANIFEST):
        assert (directory / name).read_bytes() == (again / name).read_bytes()


def test_every_bit_of_a_float_is_kept(tmp_path):
    model = nn.ParameterDict({"x": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])})
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("many", torch.arange(6).reshape(2, 3).T)
    model.register_buffer("wide", torch.tensor(1 + 2j).conj())
    octavo.save(model, tmp_path / "x")
    fresh = nn.ParameterDict({"x": torch.zeros(4)})
    for name, value in model.named_buffers():
        fresh.register_buffer(name, torch.zeros_like(value))
    same_state(model, octavo.load(fresh, tmp_path / "x"))


def test_a_layer_alone_comes_back_as_a_new_one(tmp_path):
    layer = Int8Linear.from_float(nn.Linear(8, 4), activation="gelu").eval()
    octavo.save(layer, tmp_path)
    source = nn.Linear(8, 4).train()
    loaded = octavo.load(source, tmp_path)
    assert type(loaded) is Int8Linear
    assert loaded.activation == "gelu"
    assert loaded.training  # as what it replaces
    same_state(layer, loaded)


def test_a_loaded_encoder_layer_calls_its_int8_layers(tmp_path):
    def make():
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()

    model = octavo.quantize_(make())
    octavo.save(model, tmp_path)
    x = torch.randn(2, 3, 16)
    with torch.inference_mode():
        assert torch.equal(octavo.load(make, tmp_path)(x), model(x))


def test_tied_weights_and_shared_modules_are_stored_once_and_stay_tied(tmp_path):
    def make(tie=True):
        layer, head = nn.Linear(16, 16), nn.Linear(16, 9, bias=False)
        model = nn.ModuleDict({"embed": nn.Embedding(9, 16), "a": layer, "c": nn.LayerNorm(16)})
        model["b"], model["d"] = (layer, model["c"]) if tie else (nn.Linear(16, 16), nn.LayerNorm(16))
        model["head"] = head
        if tie:
            head.weight = model["embed"].weight
        return model

    model = octavo.quantize_(make(), filter_fn=lambda _, name: name not in ("embed", "head"))
    octavo.save(model, tmp_path)
    assert {name for name in stored(tmp_path) if name[0] in "bdh"} == set()
    for other in (make, make(), make(tie=False)):
        loaded = octavo.load(other, tmp_path)
        same_state(model, loaded)
        assert loaded["a"] is loaded["b"]
        assert loaded["head"].weight is loaded["embed"].weight
        assert loaded["d"].weight is loaded["c"].weight
        assert loaded["embed"].weight.requires_grad


ATTENTION = partial(nn.MultiheadAttention, 32, 4, batch_first=True)
WITH_RANGES = octavo.Int8Static([torch.randn(2, 5, 32)], forward=lambda m, x: m[0](*(x,) * inputs_of(m[0])))


def inputs_of(layer):
    return 3 if hasattr(layer, "out_proj") else 1


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (partial(nn.Linear, 32, 6), octavo.Int8Dynamic()),
        (partial(nn.Linear, 32, 6), octavo.Int8Dynamic(symmetric=False)),
        (partial(nn.Linear, 32, 6, bias=False), octavo.Int8WeightOnly()),
        (partial(nn.Linear, 32, 6), octavo.Int8WeightOnly(group_size=8)),
        (partial(nn.Linear, 32, 6), WITH_RANGES),
        (partial(nn.Linear, 32, 6), replace(WITH_RANGES, symmetric=True)),
        (partial(nn.Conv2d, 4, 6, (3, 2), (2, 1), "valid", groups=2), octavo.Int8Dynamic()),
        (partial(nn.Conv2d, 4, 6, 3, padding=(1, 2), padding_mode="reflect"), octavo.Int8Dynamic()),
        (partial(nn.Embedding, 9, 12, padding_idx=2), octavo.Int8Dynamic()),
        (partial(nn.EmbeddingBag, 9, 12, mode="max"), octavo.Int8WeightOnly()),
        (ATTENTION, octavo.Int8Dynamic()),
        (ATTENTION, octavo.Int8Dynamic(symmetric=False)),
        (partial(ATTENTION, bias=False), octavo.Int8WeightOnly(group_size=8)),
        (ATTENTION, WITH_RANGES),
    ],
    ids=lambda each: re.sub(" at 0x[0-9a-f]+", "", str(each)),  # the same in every process
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_int8_layer_comes_back(tmp_path, make, config, dtype):
    def model():
        return nn.Sequential(make(dtype=dtype)).eval()

    if isinstance(config, octavo.Int8Static):
        config = replace(config, data=[x.to(dtype) for x in config.data])
    x = torch.randint(0, 9, (3, 5)) if hasattr(model()[0], "num_embeddings") else torch.randn(2, 4, 8, 32)
    x = x.to(dtype) if x.is_floating_point() else x
    x = x[0] if isinstance(model()[0], nn.MultiheadAttention) else x
    saved = octavo.quantize_(model(), config)
    octavo.save(saved, tmp_path)
    for other in (model(), model):
        loaded = octavo.load(other, tmp_path)
        same_state(saved, loaded)
        assert repr(loaded) == repr(saved)
        results = [m[0](*(x,) * inputs_of(m[0])) for m in (saved, loaded)]
        results = [y[0] if isinstance(y, tuple) else y for y in results]
        assert results[0].dtype == results[1].dtype == dtype
        assert torch.equal(*results)


def test_every_kind_of_int8_layer_is_tested_above():
    (mark,) = (m for m in test_every_int8_layer_comes_back.pytestmark if m.args[0] == ("make", "config"))
    seen = {type(m) for make, config in mark.args[1] for m in octavo.quantize_(nn.Sequential(make()), config)}
    assert set(INT8_LAYERS.values()) == seen


def test_parts_of_an_attention_layer_must_be_int8(tmp_path):
    model = octavo.quantize_(nn.Sequential(ATTENTION()))
    model[0].q_proj = nn.Linear(32, 32)
    with pytest.raises(TypeError, match=r"layer '0': q_proj: expected an int8 layer .* got Linear"):
        octavo.save(model, tmp_path)


def test_int8_tables_that_share_their_memory_do_so_again(tmp_path):
    def make():
        model = nn.ModuleList([nn.Embedding(9, 16), nn.Embedding(9, 16), nn.Linear(16, 9)]).eval()
        model[1].weight = model[2].weight = model[0].weight
        return model

    model = octavo.quantize_(make())
    octavo.save(model, tmp_path)
    assert "1.weight_int8" not in stored(tmp_path)
    loaded = octavo.load(make, tmp_path)
    same_state(model, loaded)
    assert loaded[0].weight_int8 is loaded[1].weight_int8
    assert loaded[2]._stored is not loaded[0]._stored


def test_views_of_one_memory_are_stored_each(tmp_path):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.arange(10.0)
            self.register_buffer("a", flat[:6])
            self.register_buffer("b", flat[4:])
            self.register_buffer("c", flat[::2])

    octavo.save(Views(), tmp_path)
    loaded = octavo.load(Views, tmp_path)
    assert loaded.b.tolist() == [4, 5, 6, 7, 8, 9]
    loaded.a.zero_()
    assert loaded.b[0] == 4
    assert loaded.c.tolist() == [0, 2, 4, 6, 8]


def test_masks_of_pruned_models_travel(tmp_path):
    model = octavo.prune_model_(Model(), sparsity=0.5, keep_masks=True)
    octavo.save(model, tmp_path)
    other = octavo.prune_model_(Model(), sparsity=0.0, keep_masks=True)
    same_state(model, octavo.load(other, tmp_path))
    assert parametrize.is_parametrized(other.up, "weight")
    assert torch.equal(other.up.weight, model.up.weight)
    refused("keep_masks=True", Model(), tmp_path)


# ---- memory ----


def test_the_parameters_of_a_factory_take_no_memory(tmp_path):
    model = quantized()
    octavo.save(model, tmp_path)
    seen = []

    def factory():
        thread = threading.Thread(target=lambda: seen.append(nn.Linear(2, 2).weight.is_meta))
        thread.start()
        thread.join()
        made = Model()
        seen.append([p.is_meta for p in made.parameters()])
        return made.eval()

    loaded = octavo.load(factory, tmp_path)
    assert seen == [False, [True] * 6]
    same_state(model, loaded)
    assert torch.equal(loaded.inverse, model.inverse)  # no state dict has it
    assert not nn.Linear(2, 2).weight.is_meta
    with torch.device("meta"):
        made = Model()
    refused(r"\['inverse'\] on the meta device", made, tmp_path)


MAKES = {
    "on its device": lambda w: torch.ones(8, device=w.device),
    "of its dtype": lambda w: torch.arange(8, dtype=w.dtype, device=w.device),
    "like it": lambda w: torch.full_like(w, 3.0),
    "new": lambda w: w.new_zeros(8) + 1,
    "from its values": lambda w: w.detach() * 2 + 1,  # a LayerNorm begins with ones
    "a number of it": lambda w: torch.full((8,), w.sum().item()),
    "in NumPy": lambda w: torch.from_numpy(w.detach().numpy() + 1),
}
PUTS = {
    "buffer": lambda m, t: m.register_buffer("mask", t),
    "buffer beside the state": lambda m, t: m.register_buffer("mask", t, persistent=False),
    "attribute": lambda m, t: setattr(m, "mask", t),
    "list": lambda m, t: setattr(m, "masks", [0, {"mask": t}]),
}


class Window(nn.Module):
    def __init__(self, make, put):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(8), nn.Linear(8, 8)
        put(self, make(self.norm.weight))

    def forward(self, x):
        mask = self.masks[1]["mask"] if hasattr(self, "masks") else self.mask
        return self.proj(self.norm(x) * mask.to(x.device))


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("make", MAKES)
def test_a_factory_may_make_tensors_where_its_parameters_are(make, put, tmp_path):
    def factory():
        return nn.ModuleDict({"a": nn.Sequential(Window(MAKES[make], PUTS[put]))}).eval()

    model = octavo.quantize_(factory())
    octavo.save(model, tmp_path)
    loaded = octavo.load(factory, tmp_path)
    same_state(model, loaded)
    x = torch.randn(2, 8)
    assert torch.equal(loaded["a"](x), model["a"](x))


def test_a_factory_may_quantize_and_may_fail(tmp_path):
    runs = []

    def factory():
        runs.append(0)
        return octavo.quantize_(Model().eval())

    model = factory()
    octavo.save(model, tmp_path)
    same_state(model, octavo.load(factory, tmp_path))
    assert len(runs) == 2  # its weights took no memory

    def failing():
        raise KeyError("a name")

    with pytest.raises(KeyError, match="a name"):
        octavo.load(failing, tmp_path)


def test_floats_are_mapped_and_training_leaves_the_file_alone(tmp_path):
    model = octavo.quantize_(Model().eval(), {nn.Linear: octavo.Int8Dynamic()})
    octavo.save(model, tmp_path)
    before = (tmp_path / TENSORS).read_bytes()
    a, b = octavo.load(Model, tmp_path), octavo.load(Model, tmp_path)
    address = a.embed.weight.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        [int(n, 16) for n in line[0].split("-")] for line in maps if line[-1] == str(tmp_path / TENSORS)
    ]
    assert any(start <= address < end for start, end in ranges)
    a.train()(torch.tensor([0, 3, 6])).square().sum().backward()
    torch.optim.SGD(a.parameters(), lr=1.0).step()
    assert not torch.equal(a.embed.weight, b.embed.weight)
    assert (tmp_path / TENSORS).read_bytes() == before
    octavo.save(a, tmp_path)  # replaces what both have mapped
    same_state(b, model)
    same_state(octavo.load(Model, tmp_path), a)


# ---- what a file holds ----


def test_a_sparse_weight_is_stored_without_its_zeros(tmp_path):
    layer = Int8Linear(20, 6)
    weight = torch.zeros(6, 20, dtype=torch.int8)
    weight[1, 3], weight[5, 19], weight[5, 0] = -128, 127, 1
    layer.load_state_dict(layer.state_dict() | {"weight": weight})
    octavo.save(layer, tmp_path)
    held = stored(tmp_path)
    assert set(held) == {"weight", "weight_int8.mask_bits", "weight_int8.values", "weight_scale", "bias"}
    assert held["weight_int8.mask_bits"].shape == (6, 3)
    assert held["weight_int8.mask_bits"][1].tolist() == [1 << 3, 0, 0]
    assert held["weight_int8.values"].tolist() == [-128, 1, 127]
    assert torch.equal(octavo.load(nn.Linear(20, 6), tmp_path).weight_int8, weight)


@pytest.mark.parametrize(("kept", "sparse"), [(101, True), (102, False)])
def test_a_weight_is_stored_in_the_smaller_form(tmp_path, kept, sparse):
    weight = torch.ones(6, 20, dtype=torch.int8).flatten()  # its mask has 18 bytes
    weight[kept:] = 0
    layer = Int8Linear(20, 6)
    layer.load_state_dict(layer.state_dict() | {"weight": weight.reshape(6, 20)})
    octavo.save(layer, tmp_path)
    assert ("weight_int8.values" in stored(tmp_path)) == sparse
    assert torch.equal(octavo.load(nn.Linear(20, 6), tmp_path).weight_int8.flatten(), weight)


def test_what_the_manifest_says(tmp_path):
    octavo.save(quantized(), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    settings = {"in_features": 40, "out_features": 24, "bias": True, "activation": None, "symmetric": True}
    assert manifest["modules"]["up"] == {"kind": "Int8Linear", "settings": settings}
    assert manifest["file"] == {
        "nbytes": (tmp_path / TENSORS).stat().st_size,
        "sha256": files.sha256(tmp_path / TENSORS),
    }
    assert (manifest["format"], manifest["octavo"]) == ("octavo", octavo.__version__)
    assert sorted(manifest["tensors"]) == sorted(stored(tmp_path))
    assert sorted(each.name for each in tmp_path.iterdir()) == [TENSORS, MANIFEST]


def test_a_module_is_rebuilt_from_its_constructor_arguments(tmp_path, monkeypatch):
    class Int8Toy(nn.Module):
        def __init__(self, size, bias=True, *, stride=(1, 1), mode="zeros", device=None, dtype=None):
            super().__init__()
            self.size, self.stride, self.mode = size, stride, mode
            self.weight = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(1, device=device)) if bias else None
            self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)

        @property
        def dtype(self):
            return self._like.dtype

    monkeypatch.setitem(INT8_LAYERS, "Int8Toy", Int8Toy)
    model = nn.ModuleList([Int8Toy(3, False, stride=(2, 5), mode="circular", dtype=torch.bfloat16)])
    octavo.save(model, tmp_path)
    (loaded,) = octavo.load(nn.ModuleList([nn.PReLU(3).bfloat16()]), tmp_path)
    assert type(loaded) is Int8Toy
    assert (loaded.size, loaded.stride, loaded.mode, loaded.bias) == (3, (2, 5), "circular", None)
    assert loaded.weight.dtype == torch.bfloat16
    assert (loaded._like.device.type, loaded.dtype) == ("cpu", torch.bfloat16)
    monkeypatch.undo()
    refused("kind: expected one of .*Int8Linear.*, got 'Int8Toy'", nn.ModuleList([nn.PReLU(3)]), tmp_path)


def test_save_refuses_what_it_cannot_keep(tmp_path, monkeypatch):
    class Mine(Int8Linear):
        pass

    class Stateful(nn.Module):
        def get_extra_state(self):
            return {"step": 3}

    class Int8Odd(nn.Module):
        def __init__(self, size):
            super().__init__()

    monkeypatch.setitem(INT8_LAYERS, "Int8Odd", Int8Odd)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.mode = Int8Linear(2, 2)
            self.mode.activation = lambda x: x

    for model, match in (
        (nn.Sequential(Mine(2, 2)), "layer '0': expected a class of octavo.nn, got the subclass Mine"),
        (nn.Sequential(Stateful()), "0._extra_state: expected a strided torch.Tensor.*'step': 3"),
        (Odd(), "layer 'mode': activation: expected a number, a string, None, a dtype"),
        (nn.Sequential(Int8Odd(2)), "layer '0': size: expected an attribute, as an argument of Int8Odd"),
        (nn.Linear(2, 2, device="meta"), "weight: expected .* with values, got Tensor on meta"),
        (3, "model: expected a torch.nn.Module, got int"),
    ):
        with pytest.raises(TypeError, match=match):
            octavo.save(model, tmp_path / "x")

    class Taken(nn.Module):
        def state_dict(self):
            return {"w": torch.zeros(8, 64, dtype=torch.int8), "w.values": torch.zeros(3)}

    with pytest.raises(ValueError, match=r"expected no tensor .*'w\.values': .*'w'"):
        octavo.save(Taken(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
