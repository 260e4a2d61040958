"""octavo.save and octavo.load: what comes back, what a file holds, what is refused, what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from strategies import succeed

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from octavo import files  # noqa: E402
from octavo.nn import Int8Linear  # noqa: E402

TENSORS, MANIFEST = "model.safetensors", "octavo.json"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Model(nn.Module):
    """Float and int8 parameters, buffers in the state dict and beside it."""

    def __init__(self, k=40, n=24):
        super().__init__()
        self.embed = nn.Embedding(7, k)
        self.up = nn.Linear(k, n)
        self.down = nn.Linear(n, k, bias=False)
        self.norm = nn.BatchNorm1d(k)
        self.register_buffer("inverse", torch.arange(k) + 0.5, persistent=False)

    def forward(self, x):
        return self.norm(self.down(nn.functional.gelu(self.up(self.embed(x) * self.inverse))))


def quantized(**sizes):
    return octavo.quantize_(Model(**sizes).eval())


def bits(tensor):
    return tensor.detach().resolve_conj().clone().contiguous().reshape(-1).view(torch.uint8)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
        assert torch.equal(bits(value), bits(b[name])), name


def stored(directory):
    return safe.load_file(directory / TENSORS)


def everything(model):
    """What an error must not change: which objects a model is made of, and what tensors hold."""
    modules = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return modules, [(name, id(tensor), None if tensor.is_meta else bits(tensor)) for name, tensor in tensors]


def refused(match, model, directory, **options):
    modules, tensors = everything(model)
    with pytest.raises(ValueError, match=match):
        octavo.load(model, directory, **options)
    now, values = everything(model)
    assert now == modules
    assert [each[:2] for each in values] == [each[:2] for each in tensors]
    assert all(a[2] is b[2] or torch.equal(a[2], b[2]) for a, b in zip(values, tensors, strict=True))


# ---- what comes back ----


UNSTRUCTURED = [("unstructured", k, n) for k in (1, 9, 264) for n in (1, 24, 256)]


@settings(max_examples=25)
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

    model = octavo.quantize_(make(), filter_fn=lambda _, name: name != "head")
    octavo.save(model, tmp_path)
    assert {name for name in stored(tmp_path) if name[0] in "bdh"} == set()
    for other in (make, make(), make(tie=False)):
        loaded = octavo.load(other, tmp_path)
        same_state(model, loaded)
        assert loaded["a"] is loaded["b"]
        assert loaded["head"].weight is loaded["embed"].weight
        assert loaded["d"].weight is loaded["c"].weight
        assert loaded["embed"].weight.requires_grad


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


def test_floats_are_mapped_and_training_leaves_the_file_alone(tmp_path):
    model = quantized()
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
    assert set(held) == {"weight.mask_bits", "weight.values", "weight_scale", "bias"}
    assert held["weight.mask_bits"].shape == (6, 3)
    assert held["weight.mask_bits"][1].tolist() == [1 << 3, 0, 0]
    assert held["weight.values"].tolist() == [-128, 1, 127]
    assert torch.equal(octavo.load(nn.Linear(20, 6), tmp_path).weight, weight)


@pytest.mark.parametrize(("kept", "sparse"), [(101, True), (102, False)])
def test_a_weight_is_stored_in_the_smaller_form(tmp_path, kept, sparse):
    weight = torch.ones(6, 20, dtype=torch.int8).flatten()  # its mask has 18 bytes
    weight[kept:] = 0
    layer = Int8Linear(20, 6)
    layer.load_state_dict(layer.state_dict() | {"weight": weight.reshape(6, 20)})
    octavo.save(layer, tmp_path)
    assert ("weight.values" in stored(tmp_path)) == sparse
    assert torch.equal(octavo.load(nn.Linear(20, 6), tmp_path).weight.flatten(), weight)


def test_what_the_manifest_says(tmp_path):
    octavo.save(quantized(), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    settings = {"in_features": 40, "out_features": 24, "bias": True, "activation": None}
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

    monkeypatch.setattr(octavo.nn, "Int8Toy", Int8Toy, raising=False)
    monkeypatch.setattr(octavo.nn, "__all__", [*octavo.nn.__all__, "Int8Toy"])
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

    monkeypatch.setattr(octavo.nn, "Int8Odd", Int8Odd, raising=False)
    monkeypatch.setattr(octavo.nn, "__all__", [*octavo.nn.__all__, "Int8Odd"])

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


# ---- what is refused ----


@pytest.fixture
def small(tmp_path):
    layer = nn.Linear(16, 4)
    octavo.prune_(layer.weight, sparsity=0.9)
    model = octavo.quantize_(nn.Sequential(layer, nn.LayerNorm(4)))
    octavo.save(model, tmp_path / "small")
    return tmp_path / "small"


def plain():
    return nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4))


def test_any_other_byte_is_refused(small):
    for name in (TENSORS, MANIFEST):
        path = small / name
        good = path.read_bytes()
        for i in range(0, len(good), 1 if name == MANIFEST else 5):
            changed = good[i] ^ (1 << i % 8)
            path.write_bytes(good[:i] + bytes([changed]) + good[i + 1 :])
            with pytest.raises(ValueError, match="expected"):
                octavo.load(plain, small)
            if good[i : i + 1].isspace():  # JSON that means the same
                path.write_bytes(good[:i] + b"\t" + good[i + 1 :])
                with pytest.raises(ValueError, match="expected"):
                    octavo.load(plain, small)
        path.write_bytes(good)
    octavo.load(plain, small)


@pytest.mark.parametrize("verify", [True, False])
def test_any_other_length_is_refused(small, verify):
    for name in (TENSORS, MANIFEST):
        path = small / name
        good = path.read_bytes()
        for length in (*range(0, len(good), 7), len(good) - 1):
            path.write_bytes(good[:length])
            with pytest.raises(ValueError, match=f"{name}: expected"):
                octavo.load(plain, small, verify=verify)
        path.write_bytes(good + b"\n")
        with pytest.raises(ValueError, match=f"{name}: expected"):
            octavo.load(plain, small, verify=verify)
        path.write_bytes(good)
    octavo.load(plain, small, verify=verify)


def test_files_of_two_checkpoints_do_not_mix(small, tmp_path):
    other = octavo.load(plain, small)
    with torch.no_grad():
        other[1].weight.add_(1)
    octavo.save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, small)
    refused(f"{TENSORS}: expected sha256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}", plain(), small)


def rewrite(directory, change):
    """Changes a manifest and gives it the checksum that belongs to it, as another writer would."""
    from octavo.checkpoint import _render

    manifest = json.loads((directory / MANIFEST).read_text())
    change(manifest)
    (directory / MANIFEST).write_text(_render(manifest))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m.update(format_version=2, octavo="9.0"),
            "format_version 1.*got 2, written by octavo '9.0'",
        ),
        (lambda m: m.update(format_version=0), "expected format_version 1.*got 0"),
        (lambda m: m.update(format="pt"), "expected format 'octavo', got 'pt'"),
        (lambda m: m["modules"]["0"].update(kind="Linear"), "kind: expected one of .*got 'Linear'"),
        (lambda m: m["modules"]["0"]["settings"].update(x=1), "settings: expected those of Int8Linear"),
        (lambda m: m["tensors"].pop("1.bias"), r"has \['1.bias'\] besides"),
        (lambda m: m["tensors"].update(x={"storage": "dense"}), r"lacks \['x'\]"),
        (
            lambda m: m["tensors"]["0.weight"].update(shape=[4, 15]),
            "0.weight.values: expected|size mismatch|got",
        ),
        (lambda m: m["modules"].update({"7": m["modules"].pop("0")}), "lacks .*0.weight_scale"),
    ],
)
def test_manifests_of_others_are_refused(small, change, match):
    rewrite(small, change)
    refused(match, plain(), small)


def test_directories_of_others_are_refused(small, tmp_path):
    (small / TENSORS).unlink()
    refused(f"{TENSORS}: expected a file of [0-9]+ bytes, got none", plain(), small)
    (small / MANIFEST).unlink()
    refused(rf"{MANIFEST}: expected this file.*got \[\]", plain(), small)
    for text in ("[1]", "3", '{"format": null}', "{", "[" * 100_000, '"\udcff"'):
        (small / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(f"{MANIFEST}: expected", plain(), small)
    with pytest.raises(FileNotFoundError, match=r"directory: expected a directory, got .*nowhere"):
        octavo.load(plain, tmp_path / "nowhere")
    octavo.save(plain(), tmp_path / "x")
    for model in (3, lambda: 3):
        with pytest.raises(TypeError, match=r"model_or_factory: expected a .*got (an? )?int"):
            octavo.load(model, tmp_path / "x")


def test_values_that_do_not_fit_their_mask_are_refused(small):
    good = stored(small)
    for name, value in (
        ("0.weight.values", good["0.weight.values"][:-1].clone()),
        ("0.weight.values", torch.zeros_like(good["0.weight.values"])),
        ("0.weight.values", good["0.weight.values"].to(torch.uint8)),
        ("0.weight.mask_bits", torch.zeros_like(good["0.weight.mask_bits"])),
        ("0.weight.mask_bits", good["0.weight.mask_bits"][:-1].clone()),
        ("0.weight_scale", torch.ones(5, 1)),
    ):
        path = small / TENSORS
        safe.save_file(good | {name: value}, path)
        sizes = {"nbytes": path.stat().st_size, "sha256": files.sha256(path)}
        rewrite(small, lambda m, sizes=sizes: m.update(file=sizes))
        refused("expected|size mismatch", plain(), small)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(16, 4)), "lacks .*1.bias"),
        (lambda: nn.Sequential(*plain(), nn.Linear(4, 4)), r"has \['2.bias', '2.weight'\] besides"),
        (lambda: nn.Sequential(nn.Linear(15, 4), nn.LayerNorm(4)), r"layer '0'.*\(4, 16\).*got \(4, 15\)"),
        (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), r"layer '0'.*\(4, 16\).*got \(\)"),
        (lambda: nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(5)), r"1.bias.*\(4,\) .*got \(5,\)|1.weight"),
        (lambda: nn.ModuleDict({"1": nn.LayerNorm(4)}), "expected a module '0'"),
    ],
)
def test_other_architectures_are_refused(small, model, match):
    refused(match, model(), small)


def test_other_dtypes_are_refused(small):
    for layer, dtype in ((0, "float64"), (1, "float16")):
        model = plain()
        model[layer].to(getattr(torch, dtype))
        refused(rf"{layer}\..*: expected torch.float32 as in the file, got torch.{dtype}", model, small)


def test_a_module_that_fails_to_load_leaves_the_model_unchanged(small):
    class Fails(nn.LayerNorm):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            raise ValueError("of its own")

    refused("of its own", nn.Sequential(nn.Linear(16, 4), Fails(4)), small)


# ---- how it is written ----


def broken_write(tensors, path, metadata):
    Path(path).write_bytes(b"\0" * 100)
    raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_what_was_there(small, tmp_path, monkeypatch):
    good = {name: (small / name).read_bytes() for name in (TENSORS, MANIFEST)}

    def fail(*_):
        raise OSError(28, "No space left on device")

    for owner, name, failure in (
        (safe, "save_file", broken_write),
        (os, "fsync", fail),
        (os, "rename", fail),
    ):
        for target in (small, tmp_path / "new"):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, failure)
                with pytest.raises(OSError, match="No space left"):
                    octavo.save(quantized(), target)
            assert [each.name for each in tmp_path.iterdir()] == ["small"]
            assert {each.name: each.read_bytes() for each in small.iterdir()} == good


def test_everything_is_flushed_before_it_is_seen(tmp_path, monkeypatch):
    events = []
    rename, fsync = os.rename, os.fsync

    def flushed(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(a, b):
        events.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    octavo.save(quantized(), tmp_path / "target")
    *files_, draft, renames, parent = events
    assert sorted(files_) == [TENSORS, MANIFEST]
    assert draft.startswith(".target.")
    assert (renames, parent) == ("rename", tmp_path.name)


@pytest.mark.parametrize("exchange", [True, False])
def test_an_earlier_checkpoint_is_replaced(small, tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    model = quantized()
    octavo.save(model, small)
    same_state(model, octavo.load(Model, small))
    assert [each.name for each in tmp_path.iterdir()] == ["small"]
    mode = small.stat().st_mode & 0o666
    assert {each.stat().st_mode & 0o777 for each in small.iterdir()} == {mode}


def test_without_exchange_a_failed_rename_brings_the_old_one_back(small, tmp_path, monkeypatch):
    good = (small / TENSORS).read_bytes()
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    rename, calls = os.rename, []

    def third_fails(a, b):
        calls.append(a)
        if len(calls) == 3:  # the first finds the target occupied, the second moves it away
            raise OSError(5, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", third_fails)
    with pytest.raises(OSError, match="Input/output"):
        octavo.save(quantized(), small)
    assert len(calls) == 4
    assert (small / TENSORS).read_bytes() == good
    assert [each.name for each in tmp_path.iterdir()] == ["small"]


def test_what_is_not_octavos_is_never_replaced(small, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / MANIFEST).write_text('{"format": "other"}')
    (small / "notes.txt").write_text("mine")
    for name, match in (
        ("file", "expected nothing, an empty directory or an octavo checkpoint.*'file'"),
        ("full", "expected format 'octavo', got 'other'"),
        ("small", r"got .*small' with \['notes.txt'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            octavo.save(quantized(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"
    assert (small / "notes.txt").read_text() == "mine"


def test_what_came_into_a_checkpoint_meanwhile_is_not_lost(small, monkeypatch):
    write = safe.save_file

    def slowly(*args, **options):
        write(*args, **options)
        (small / "notes.txt").write_text("mine")

    monkeypatch.setattr(safe, "save_file", slowly)
    with pytest.raises(ValueError, match=r"small' with \['notes.txt'\]"):
        octavo.save(quantized(), small)
    assert (small / "notes.txt").read_text() == "mine"


def test_a_link_to_a_checkpoint_stays_a_link(small, tmp_path):
    (tmp_path / "link").symlink_to(small)
    model = quantized()
    octavo.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    same_state(model, octavo.load(Model, small))
    (tmp_path / "empty").mkdir()
    octavo.save(model, tmp_path / "deep" / "er")
    octavo.save(model, tmp_path / "empty")
    same_state(model, octavo.load(Model, tmp_path / "empty"))


# Child processes save and die at every step, and save over each other: the directory holds one of the two
# models, whole, at any time.
CRASHES = """
import os, sys, tempfile, warnings
warnings.simplefilter("ignore")  # Python warns of fork beside threads; the children run no kernels
import torch
import octavo
from octavo import files

def make(value):
    model = octavo.quantize_(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16)))
    torch.nn.init.constant_(model[1].weight, value)
    return model

def held(target):
    model = octavo.load(lambda: torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16)), target)
    (value,) = set(model[1].weight.tolist())
    return value

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid

one, two = make(1.0), make(2.0)
parent = tempfile.mkdtemp()
target = os.path.join(parent, "target")
octavo.save(one, target)

def die_at(step):
    left = [step]
    def counted(function):
        def run(*args, **kwargs):
            if not left[0]:
                os._exit(1)
            left[0] -= 1
            return function(*args, **kwargs)
        return run
    import safetensors.torch as safe
    for owner, name in ((safe, "save_file"), (os, "fsync"), (os, "rename"), (files, "_exchange"),
                        (os, "rmdir"), (os, "unlink"), (files, "sha256")):
        setattr(owner, name, counted(getattr(owner, name)))
    octavo.save(two, target)

seen, step, status = [], 0, 1
while status:
    status = os.waitpid(child(lambda: die_at(step)), 0)[1]
    seen.append(held(target))
    step += 1
assert seen == sorted(seen) and set(seen) == {1.0, 2.0} and step > 8, seen

savers = [child(lambda model=model: [octavo.save(model, target) for _ in range(20)]) for model in (one, two)]
statuses = [os.waitpid(pid, 0)[1] for pid in savers]
assert statuses == [0, 0] and held(target) in (1.0, 2.0)
print("whole", step)
"""


def test_a_crash_or_a_race_leaves_a_whole_checkpoint():
    assert succeed(CRASHES).stdout.startswith("whole")
