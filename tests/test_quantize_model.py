"""quantize_ on whole models: what it takes, by which config, what layers share, and what explain says."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import Int8Dynamic, Int8Linear, Int8MultiheadAttention, Int8Static, quantize_  # noqa: E402
from octavo.nn.convert import replaceable as table  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model():
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
            "attention": nn.MultiheadAttention(8, 2),
            "head": nn.Linear(8, 4),
        }
    )


def kinds(m):
    """The classes of what quantize_ could replace, by name."""
    layers = nn.Linear | nn.MultiheadAttention | Int8Linear | Int8MultiheadAttention
    return {
        name: type(each).__name__
        for name, each in m.named_modules()
        if isinstance(each, layers) and not name.endswith("_proj")
    }


def whys(m):
    return {row.name: row.why for row in octavo.explain(m)}


# ---- which layers ----


def test_by_default_every_layer_with_an_int8_form():
    m = quantize_(model())
    assert set(kinds(m).values()) == {"Int8Linear", "Int8MultiheadAttention"}
    assert not any(why.startswith("float") for why in whys(m).values())
    assert {"attention.q_proj", "attention.out_proj"} < set(whys(m))


def test_filter_fn_sees_each_layer_once_under_its_first_name():
    m = model()
    m["again"] = m["head"]
    seen = []
    quantize_(m, filter_fn=lambda module, name: seen.append((type(module), name)) or name != "attention")
    assert seen == [
        (nn.Linear, "encoder.0"),
        (nn.Linear, "encoder.2"),
        (nn.MultiheadAttention, "attention"),
        (nn.Linear, "head"),
    ]
    assert type(m["attention"]) is nn.MultiheadAttention
    assert m["again"] is m["head"]
    assert type(m["head"]) is Int8Linear


def test_a_mapping_gives_layers_their_configs():
    data = torch.randn(3, 8)
    static = Int8Static([data], forward=lambda m, x: m["encoder"](x))
    m = quantize_(model(), {"head": None, "encoder.*": static, nn.Linear: Int8Dynamic()})
    assert kinds(m) == {
        "encoder.0": "Int8StaticLinear",
        "encoder.2": "Int8StaticLinear",
        "attention": "MultiheadAttention",
        "head": "Linear",
    }
    assert whys(m)["head"] == "float: config has None for it, with the key 'head'"
    assert whys(m)["attention"] == "float: no key of config fits it"
    # the first key that fits decides
    m = quantize_(model(), {nn.Module: Int8Dynamic(), "head": None})
    assert type(m["head"]) is Int8Linear
    m = quantize_(model(), {"*ea*": None, "*": Int8Dynamic()}, filter_fn=lambda _, name: name != "attention")
    assert kinds(m) == {
        "encoder.0": "Int8Linear",
        "encoder.2": "Int8Linear",
        "attention": "MultiheadAttention",
        "head": "Linear",
    }


def test_errors_of_a_mapping():
    for config in ({3: Int8Dynamic()}, {int: Int8Dynamic()}):
        with pytest.raises(TypeError, match="config: expected names and types of modules as keys, got"):
            quantize_(model(), config)
    for config in ({"head": "int8"}, None):
        with pytest.raises(TypeError, match=r"config: expected an octavo\.Int8Dynamic or octavo\.Int8W"):
            quantize_(model(), config)
    with pytest.raises(ValueError, match=r"config: expected names of layers .*, got \['encoder', 'haed'\]"):
        quantize_(model(), {"haed": None, "encoder": None, nn.Linear: Int8Dynamic()})
    with pytest.raises(ValueError, match=r"got none \(float: config has None for it, .*; float: no key"):
        quantize_(model(), {"head": None})
    with pytest.raises(ValueError, match=r"got none$"):
        quantize_(nn.ReLU())
    for change in (quantize_, octavo.prepare_qat_, octavo.convert_qat_):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
            change(3)


def test_a_config_without_a_form_leaves_layers_float(monkeypatch):
    monkeypatch.setitem(table.FORMS, nn.Linear, {Int8Dynamic: Int8Linear})
    m = model()
    quantize_(m, {"head": Int8Static([torch.zeros(1)]), "encoder.0": Int8Dynamic()})
    assert whys(m)["head"] == "float: octavo has no int8 form of Linear with Int8Static"


class Int8Rows(nn.Module):
    """What the table expects of an int8 layer: from_float, weight, buffers."""

    kernel = "int8_embedding"

    @classmethod
    def from_float(cls, layer, config):
        new = cls()
        data, scale, _ = octavo.quantize(layer.weight.detach(), nonfinite="raise")
        new.register_buffer("weight", data)
        new.register_buffer("weight_scale", scale.unsqueeze(-1))
        return new.train(layer.training)

    def forward(self, index):
        return self.weight[index] * self.weight_scale[index]


class Int8Halves(Int8Rows):
    @classmethod
    def from_float(cls, layer, config):
        new = super().from_float(layer, config)
        new.weight //= 2
        return new


@pytest.fixture
def embeddings(monkeypatch):
    monkeypatch.setitem(table.FORMS, nn.Embedding, {Int8Dynamic: Int8Rows, Int8Static: Int8Rows})


def test_another_kind_of_layer_is_one_line_of_the_table(embeddings):
    m = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4), nn.Conv1d(1, 1, 1))
    index = torch.tensor([1, 3])
    expected = m[1](m[0](index))
    quantize_(m)
    assert [type(each) for each in m] == [Int8Rows, Int8Linear, nn.Conv1d]
    assert (m[1](m[0](index)) - expected).norm() < 0.02 * expected.norm()
    rows = octavo.explain(m)
    assert rows[0].shape == (10, 8)
    assert rows[0].kernel.startswith(("int8_embedding", "reference"))
    assert rows[0].nbytes == 10 * 8 + 4 * 10
    assert rows[0].why.startswith("Int8Rows: ")
    assert rows[2].why == "float: octavo has no int8 form of Conv1d"


# ---- what stays float, and why ----


class Own(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_explain_gives_each_layer_its_reason():
    m = model()
    m["own"] = Own(8, 2)
    m["bias_kv"] = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    m["patched"] = nn.Linear(8, 8)
    m["patched"].forward = m["head"].forward
    m["lstm"] = nn.LSTM(8, 8)
    m["norm"] = nn.LayerNorm(8)
    assert set(whys(m).values()) >= {"float: octavo.quantize_ was not called"}
    quantize_(m, filter_fn=lambda module, name: name != "head")
    expected = {
        "head": "float: filter_fn left it out",
        "own": "float: Own has a forward of its own, which int8 would not run",
        "bias_kv": "float: octavo has no attention with add_bias_kv or add_zero_attn",
        "patched": "float: Linear has a forward of its own, which int8 would not run",
        "lstm": "float: octavo has no int8 form of LSTM",
    }
    for each in (m, copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        found = whys(each)
        assert {name: found[name] for name in expected} == expected
        assert found["own.out_proj"].startswith("float: torch.nn.MultiheadAttention reads")
        assert "norm" not in found
    rows = {row.name: row for row in octavo.explain(m)}
    assert rows["own"].shape == (24, 8)
    assert rows["lstm"].nbytes == 2 * 4 * 8 * 8 * 4
    quantize_(m)
    assert type(m["head"]) is Int8Linear
    assert whys(m)["own"] == expected["own"]


def test_a_weight_that_a_hook_computes_stays_until_it_is_permanent():
    m = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    prune.l1_unstructured(m[0], "weight", 0.5)
    quantize_(m)
    assert type(m[0]) is nn.Linear
    assert whys(m)["0"].startswith("float: torch.nn.utils.prune or a hook computes its weight")
    prune.remove(m[0], "weight")
    quantize_(m)
    assert (m[0].weight == 0).float().mean() >= 0.5


def test_parametrized_layers_are_taken_as_they_compute():
    m = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8))
    octavo.prune_model_(m, sparsity=0.5, keep_masks=True)
    assert [row.shape for row in octavo.explain(m)] == [(8, 16), (8, 8)]
    assert octavo.explain(m)[0].density == pytest.approx((m[0].weight != 0).float().mean().item())
    expected = octavo.quantize(m[0].weight.detach()).data
    quantize_(m)
    assert type(m[0]) is Int8Linear
    assert torch.equal(m[0].weight_int8, expected)


# ---- how ----


def test_hooks_go_on():
    m = model()
    x = torch.randn(3, 8)
    calls = []
    handles = [
        m["head"].register_forward_hook(lambda module, args, y: calls.append(type(module))),
        m["head"].register_forward_pre_hook(lambda module, args: (2 * args[0],)),
        m["attention"].register_forward_hook(lambda module, args, y: calls.append(type(module))),
        m["head"].register_full_backward_hook(lambda module, g, h: calls.append("backward")),
    ]
    quantize_(m)
    expected = octavo.int8_linear(
        2 * x, octavo.pack_weight(m["head"].weight_int8, m["head"].weight_scale), m["head"].bias.detach()
    )
    y = m["head"](x.requires_grad_())
    assert torch.equal(y.detach(), expected)
    y.sum().backward()
    m["attention"](x, x, x)
    assert calls == [Int8Linear, "backward", Int8MultiheadAttention]
    for handle in handles:
        handle.remove()
    assert not torch.equal(m["head"](x).detach(), expected)
    assert len(calls) == 3


def test_tied_linears_share_their_int8_weight():
    m = nn.ModuleList([nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(32, 64)])
    m[1].weight = m[0].weight
    alike = copy.deepcopy(m)
    quantize_(m)
    for each in (m, copy.deepcopy(m), m.half()):
        assert each[0]._stored.data_ptr() == each[1]._stored.data_ptr() != each[2]._stored.data_ptr()
        assert each[0].weight_scale is not each[1].weight_scale
        assert each[0].bias is not each[1].bias
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded[0]._stored.data_ptr() == loaded[1]._stored.data_ptr()
    data = torch.randn(2, 32)
    configs = Int8Static([data], forward=lambda each, x: [layer(x) for layer in each])
    quantize_(alike, {"0": Int8Dynamic(), "*": configs})
    assert alike[0]._stored.data_ptr() == alike[1]._stored.data_ptr()
    untied = quantize_(nn.ModuleList([nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(32, 64)]))
    m.float().load_state_dict(untied.state_dict())
    for ours, theirs in zip(m, untied, strict=True):
        assert torch.equal(ours(data), theirs(data))


def test_tied_embedding_and_head_both_convert(embeddings, monkeypatch):
    monkeypatch.setitem(table.FORMS, nn.EmbeddingBag, {Int8Dynamic: Int8Halves})
    m = nn.ModuleDict({"embedding": nn.Embedding(32, 16), "head": nn.Linear(16, 32, bias=False)})
    m["other"] = nn.Embedding(32, 16)
    m["bag"] = nn.EmbeddingBag(32, 16)
    m["head"].weight = m["other"].weight = m["bag"].weight = m["embedding"].weight
    octavo.prune_model_(m, sparsity=0.5, keep_masks=True, filter_fn=lambda _, name: True)
    quantize_(m)
    assert torch.equal(m["embedding"].weight, m["head"].weight_int8)
    assert m["embedding"].weight is m["other"].weight
    assert not torch.equal(m["embedding"].weight, m["bag"].weight)
    names = {f"{name}.{key}" for name in m for key in ("weight", "weight_scale")}
    assert set(m.state_dict()) == names | {"head.weight_int8"}


def test_meta_models_get_their_values_later():
    filled = quantize_(model())
    empty = quantize_(model().to("meta"))
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    empty.to_empty(device="cpu").load_state_dict(filled.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(empty["attention"](x, x, x)[0], filled["attention"](x, x, x)[0])


def test_modes_are_kept_and_a_second_call_takes_the_rest():
    m = model().train()
    m["head"].eval()
    quantize_(m, {"head": Int8Dynamic(), nn.MultiheadAttention: Int8Dynamic()})
    assert not m["head"].training
    assert m["attention"].training
    assert m["attention"].q_proj.training
    kept = m["head"]
    quantize_(m)
    assert m["head"] is kept
    assert type(m["encoder"][0]) is Int8Linear
    with pytest.raises(ValueError, match="model: expected at least one layer"):
        quantize_(m)


def test_a_failure_leaves_everything_as_it_was():
    m = model()
    m["head"].weight.data[0, 0] = float("nan")
    before = list(m.modules())
    names = [set(vars(module)) for module in before]
    with pytest.raises(ValueError, match="model: layer 'head': x: expected finite values"):
        quantize_(m)
    attention = nn.MultiheadAttention(8, 2)
    attention.in_proj_weight.data[9, 0] = float("inf")
    m["attention"] = attention
    with pytest.raises(ValueError, match=r"model: layer 'attention\.k_proj': x: expected finite values"):
        quantize_(m, filter_fn=lambda module, name: name != "head")
    m["attention"] = before[5]
    assert all(a is b for a, b in zip(m.modules(), before, strict=True))
    assert [set(vars(module)) for module in before] == names


# ---- transformers ----


def test_conv1d_becomes_a_linear_layer():
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(24, 40)  # 40 inputs
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 40)
    expected = octavo.int8_linear(x, octavo.pack_weight(layer.weight.detach().t()), layer.bias.detach())
    m = nn.Sequential(layer).train()
    assert whys(m) == {"0": "float: octavo.quantize_ was not called"}
    quantize_(m)
    assert type(m[0]) is Int8Linear
    assert m[0].training
    assert torch.equal(m[0](x).detach(), expected)
    assert tuple(m.state_dict()["0.weight_int8"].shape) == (24, 40)
    static = quantize_(nn.Sequential(layer), Int8Static([x]))
    assert type(static[0]).__name__ == "Int8StaticLinear"
    assert torch.equal(static[0].weight_int8, m[0].weight_int8)

    class Own(utils.Conv1D):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="got none"):
        quantize_(Own(3, 4))
    octavo.prune_model_(m := nn.Sequential(layer), sparsity=0.5, keep_masks=True, filter_fn=lambda *_: True)
    expected = m[0].weight.detach().t() != 0
    assert torch.equal(quantize_(m)[0].weight_int8 != 0, expected)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_language_models(name, static, embeddings):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "Bert": transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
        "GPT2": transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4),
    }[name]
    sizes.vocab_size = 96
    kind = {"Bert": transformers.BertForMaskedLM, "GPT2": transformers.GPT2LMHeadModel}[name]
    m = kind(sizes).eval()
    embedding, head = m.get_input_embeddings(), m.get_output_embeddings()
    assert head.weight is embedding.weight
    batch = {"input_ids": torch.randint(0, 96, (2, 12)), "attention_mask": torch.ones(2, 12).long()}
    expected = m(**batch).logits
    config = Int8Static([batch]) if static else Int8Dynamic()
    quantize_(m, config)
    linears = [each for each in m.modules() if isinstance(each, Int8Linear)]
    assert len(linears) == {"Bert": 2 * 6 + 2, "GPT2": 2 * 4 + 1}[name]
    assert not [row for row in octavo.explain(m) if row.why.startswith("float")]
    actual = m(**batch).logits
    assert (actual - expected).norm() < 0.05 * expected.norm()
    assert torch.equal(m.get_input_embeddings().weight, m.get_output_embeddings().weight_int8)
    state = m.state_dict()
    again = kind(sizes).eval()
    quantize_(again, config)
    again.load_state_dict(state)
    assert torch.equal(again(**batch).logits, actual)
