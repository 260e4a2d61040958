"""octavo.fuse_ as a model's forward, the backend "octavo", and transformers' models."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
import octavo.nn  # noqa: E402
from fusing import Applied, PreNorm, count_graph_calls, int8  # noqa: E402
from octavo.nn.fuse.dynamo import backend  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's and inductor's own


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# ---- calls ----


def block():
    return int8(PreNorm(nn.LayerNorm(32)))


def test_other_sizes_run_the_same_graph():
    model = block()
    fused = octavo.fuse_(copy.deepcopy(model), tuple(torch.randn(2, 2, 3, 32)))
    calls = count_graph_calls(fused)
    for i, shape in enumerate([(2, 3, 32), (5, 1, 32), (1, 7, 32), (1, 1, 32), (64, 9, 32)]):
        args = tuple(torch.randn(2, *shape))
        assert torch.equal(fused(*args), octavo.fuse_(copy.deepcopy(model), args)(*args))
        assert calls == [i + 1]


def test_calls_that_are_not_like_the_example_run_the_model_as_it_was():
    model = block()
    fused = octavo.fuse_(copy.deepcopy(model), tuple(torch.randn(2, 2, 3, 32)))
    calls = count_graph_calls(fused)
    x, r = torch.randn(2, 2, 3, 32)
    others = {
        "rank": (x[0], r[0]),
        "dtype": (x.bfloat16(), r.bfloat16()),
        "strides": (x.transpose(0, 1), r.transpose(0, 1)),
        "broadcast": (x, r[:1]),
    }
    for name, args in others.items():
        assert torch.equal(fused(*args), model(*args)), name
    assert torch.equal(fused(x, residual=r), model(x, r))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x, r), model(x, r))
    assert torch.equal(fused.train()(x, r), model(x, r))
    assert calls == [0]
    fused.eval()(x, r)
    assert calls == [1]
    with torch.enable_grad():
        y = fused(x.requires_grad_(), r)
        assert torch.autograd.grad(y.sum(), fused.norm.weight)[0].any()
    assert calls == [1]
    with pytest.raises(TypeError, match="residual"):
        fused(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x, options=None, scale=1.0):
        if x.shape[0] > 4:
            x = x * 2
        if x.shape[1] == 1:
            x = x + 1
        return {"a": self.a(x) * scale, "b": (self.b(x), options)}


def test_the_models_way_through_its_code_counts():
    model = int8(Branching())
    fused = octavo.fuse_(copy.deepcopy(model), {"x": torch.randn(2, 3, 32), "scale": 2.0})
    calls = count_graph_calls(fused)
    for ran, (shape, scale) in enumerate([((3, 5, 32), 2.0), ((4, 2, 32), 2.0)], 1):
        found, wanted = (m(x=torch.ones(shape), scale=scale) for m in (fused, model))
        assert torch.equal(found["a"], wanted["a"])
        assert torch.equal(found["b"][0], wanted["b"][0])
        assert found["b"][1] is None
        assert calls == [ran]
    for shape, scale in (((5, 3, 32), 2.0), ((2, 1, 32), 2.0), ((3, 5, 32), 3.0)):
        found, wanted = (m(x=torch.ones(shape), scale=scale) for m in (fused, model))
        assert torch.equal(found["a"], wanted["a"])
    assert calls == [2]


def test_nested_inputs():
    model = int8(
        Applied(
            lambda layers, xs: (layers[0](xs["x"][0]), layers[1](xs["x"][0])),
            *(nn.Linear(32, 8) for _ in range(2)),
        )
    )
    fused = octavo.fuse_(copy.deepcopy(model), ({"x": [torch.randn(4, 32)]},))
    calls = count_graph_calls(fused)
    x = torch.randn(7, 32)
    for found, wanted in zip(fused({"x": [x]}), model({"x": [x]}), strict=True):
        assert torch.equal(found, wanted)
    assert calls == [1]
    fused({"x": [x, x]})
    assert calls == [1]


def test_inference_mode():
    args = tuple(torch.randn(2, 2, 3, 32))
    fused = octavo.fuse_(block(), args)
    calls = count_graph_calls(fused)
    with torch.inference_mode():
        assert torch.equal(fused(*(each.clone() for each in args)), fused(*args))
    assert calls == [2]


# ---- the model stays itself ----


def test_parameters_stay_the_models_own():
    model = block()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = tuple(torch.randn(2, 2, 3, 32))
    fused = octavo.fuse_(model, args)
    assert fused is model
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = block()
    expected = octavo.fuse_(copy.deepcopy(other), args)(*args)
    assert not torch.equal(model(*args), expected)
    calls = count_graph_calls(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(*args), expected)
    assert calls == [1]
    model.to(torch.bfloat16)  # the graph is for float32
    inputs = [each.bfloat16() for each in args]
    assert torch.equal(model(*inputs), octavo.nn.unfuse_(copy.deepcopy(model))(*inputs))
    with pytest.raises(RuntimeError, match="dtype"):
        model(*args)
    assert calls == [1]


def test_a_forward_that_changes_buffers():
    model = int8(
        Applied(lambda layers, x: F.relu(layers[0](layers[1](x))), nn.Linear(32, 8), nn.BatchNorm1d(32))
    )
    model.layers[1].train()
    x = torch.randn(8, 32)
    fused = octavo.fuse_(copy.deepcopy(model), x)
    for _ in range(2):
        assert torch.equal(fused(x), model(x))
    for name, value in model.state_dict().items():
        assert torch.equal(fused.state_dict()[name], value), name


def test_a_copy_is_fused_and_its_own():
    args = tuple(torch.randn(2, 2, 3, 32))
    model = octavo.fuse_(block(), args)
    before = model(*args)
    other = copy.deepcopy(model)
    calls = count_graph_calls(other)
    assert torch.equal(other(*args), before)
    assert calls == [1]
    other.load_state_dict(block().state_dict())
    assert not torch.equal(other(*args), before)
    assert torch.equal(model(*args), before)


def test_pickling_says_what_to_do():
    model = octavo.fuse_(block(), tuple(torch.randn(2, 2, 3, 32)))
    with pytest.raises(TypeError, match=r"octavo\.nn\.unfuse_"):
        pickle.dumps(model)
    args = tuple(torch.randn(2, 2, 3, 32))
    again = pickle.loads(pickle.dumps(octavo.nn.unfuse_(model)))
    assert torch.equal(again(*args), model(*args))


def test_unfuse_and_fuse_again():
    model, args = block(), tuple(torch.randn(2, 2, 3, 32))
    plain = model(*args)
    fused = octavo.fuse_(model, args)(*args)
    assert torch.equal(octavo.fuse_(model, args)(*args), fused)
    found = octavo.nn.fusions(nn.Sequential(model))
    assert [(each.kind, each.layers) for each in found] == [
        ("activation", ("0.gate",)),
        ("norm", ("0.norm", "0.gate", "0.up")),
    ]
    assert "silu" in found[0].note
    assert octavo.nn.unfuse_(model) is model
    assert octavo.nn.fusions(model) == []
    assert torch.equal(model(*args), plain)
    with pytest.raises(ValueError, match=r"model: expected one that torch.export can capture; for PreNorm"):
        octavo.fuse_(octavo.fuse_(model, args), (args[0], args[1][..., :3]))
    assert torch.equal(model(*args), fused)  # as before the error


def test_errors():
    model, x = block(), torch.randn(2, 3, 32)
    for call in (lambda m: octavo.fuse_(m, x), octavo.nn.fusions, octavo.nn.unfuse_):
        with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
            call(3)
    with pytest.raises(TypeError, match="example: expected a tensor, a tuple or a dict"):
        octavo.fuse_(model, [x])
    with pytest.raises(ValueError, match="model: expected one in eval mode"):
        octavo.fuse_(model.train(), (x, x))
    model.eval().forward = lambda *args: None
    with pytest.raises(ValueError, match="forward"):
        octavo.fuse_(model, (x, x))
    data_dependent = int8(Applied(lambda layers, x: layers[0](x if x.sum() > 0 else -x), nn.Linear(32, 8)))
    with pytest.raises(ValueError, match="can capture; for Applied"):
        octavo.fuse_(data_dependent, x)


# ---- torch.compile ----


def test_the_backend(caplog):
    torch._dynamo.reset()
    model, args = block(), tuple(torch.randn(2, 4, 3, 32))
    fused = octavo.fuse_(copy.deepcopy(model), args)
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    with caplog.at_level(logging.INFO, "octavo"):
        y = compiled(*args)
    torch.testing.assert_close(y, fused(*args), rtol=1e-6, atol=1e-6)  # inductor's own arithmetic
    told = [record.args[:2] for record in caplog.records if record.name == "octavo"]
    assert list(dict.fromkeys(told)) == [
        ("activation", "gate"),
        ("norm", "norm, gate, up"),
    ]  # dynamo may restart
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(*torch.randn(2, 7, 5, 32))


def test_the_backend_leaves_graphs_with_gradients_alone(caplog, monkeypatch):
    torch._dynamo.reset()
    model, args = block(), tuple(torch.randn(2, 4, 3, 32))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda module, inputs, **_: module.forward)
    compiled = torch.compile(model, backend=backend)
    with caplog.at_level(logging.INFO, "octavo"), torch.enable_grad():
        y = compiled(*args)
        assert torch.autograd.grad(y.sum(), model.norm.weight)[0].any()
    assert not [record for record in caplog.records if record.name == "octavo"]


def test_the_backend_says_that_a_compiler_is_missing(monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(*_, **__):
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    with pytest.raises(RuntimeError, match=r"expected a C\+\+ compiler"):
        backend(torch.fx.symbolic_trace(nn.ReLU()), [])


# ---- transformers ----


def tokens(batch, length, **more):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(1, 60, (batch, length)), "attention_mask": mask, **more}


def compare(model, kinds, other=(1, 9)):
    fused = octavo.fuse_(copy.deepcopy(model), tokens(2, 11))
    assert [each.kind for each in octavo.nn.fusions(fused)] == kinds
    calls = count_graph_calls(fused)
    for i, shape in enumerate([(2, 11), (3, 7), other]):
        inputs = tokens(*shape)
        found, wanted = fused(**inputs), model(**inputs)
        assert type(found) is type(wanted)
        assert calls == [i + 1]
        torch.testing.assert_close(found[0], wanted[0], rtol=0.1, atol=0.1)


def test_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    compare(int8(transformers.BertModel(config)), ["activation"] * 2 + ["norm"] * 4 + ["mask"])


def test_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    model = int8(transformers.LlamaForCausalLM(config))
    compare(model, ["activation"] * 2 + ["norm"] * 5 + ["mask"], other=(4, 9))


def plain(value):
    """The attributes of a result and of all in it, by name."""
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str | type):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return value
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [type(value), *map(plain, value)]
    return {"": type(value), **plain(vars(value))}


def assert_alike(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            assert_alike(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for each in zip(found, wanted, strict=True):
            assert_alike(*each)
    else:
        assert found == wanted


CACHED = {
    "Llama": {"num_key_value_heads": 2},
    "Bart": {"decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
             "decoder_attention_heads": 4, "encoder_attention_heads": 4, "d_model": 32},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames past_key_values
@pytest.mark.parametrize("name", CACHED)
def test_caches(name):
    transformers = pytest.importorskip("transformers")
    suffix = "ForCausalLM" if name == "Llama" else "ForConditionalGeneration"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **CACHED[name],
    )  # fmt: skip
    model = int8(getattr(transformers, name + suffix)(config))
    key = "input_ids" if name == "Llama" else "decoder_input_ids"

    def call(rows):
        ids = {"input_ids": torch.randint(3, 60, (rows, 7))}
        return ids if name == "Llama" else {**ids, key: torch.randint(3, 60, (rows, 5))}

    fused = octavo.fuse_(copy.deepcopy(model), call(2))
    calls = count_graph_calls(fused)
    for rows in (3, 2):
        inputs = call(rows)
        found, wanted = fused(**inputs), model(**inputs)
        assert_alike(plain(found), plain(wanted))
    assert calls == [2]
    before = plain(copy.deepcopy(found.past_key_values))
    other = fused(**inputs)
    step = {**inputs, key: torch.randint(3, 60, (2, 1))}
    results = [
        m(**step, past_key_values=each.past_key_values) for m, each in ((fused, found), (model, wanted))
    ]
    assert_alike(*map(plain, results))
    assert_alike(plain(other.past_key_values), before)  # the step has changed its own alone
    assert calls == [3]
    ids = call(2)["input_ids"]
    generated = [m.generate(ids, max_new_tokens=4, do_sample=False) for m in (fused, model)]
    assert generated[0].shape == generated[1].shape
