"""Int8MultiheadAttention: what it computes, beside torch's attention and beside its parts."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import Int8Linear, Int8MultiheadAttention, quantize_  # noqa: E402

N, L, S, E, H = 3, 5, 7, 32, 4
CONFIGS = [octavo.Int8Dynamic()]
if hasattr(octavo.Int8Dynamic, "symmetric"):
    CONFIGS.append(octavo.Int8Dynamic(symmetric=False))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.compiler.reset()


def attention(**options):
    layer = nn.MultiheadAttention(E, H, **options).eval()
    for name in ("in_proj_bias", "out_proj.bias"):
        if options.get("bias", True):
            nn.init.normal_(layer.get_parameter(name), std=0.1)
    return layer


def inputs(batch_first=False, kdim=E, vdim=E, dtype=torch.float32):
    made = [torch.randn(N, length, k) for length, k in ((L, E), (S, kdim), (S, vdim))]
    return [(x if batch_first else x.transpose(0, 1).contiguous()).to(dtype) for x in made]


def close(actual, expected, share=0.03):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < share * expected.norm()


def manual(layer, query, key, value, mask=None, causal=False):
    """The output of a layer [N, L, E] with batch_first, from its parts."""
    q, k, v = layer.q_proj(query), layer.k_proj(key), layer.v_proj(value)
    q, k, v = (x.view(N, -1, H, E // H).transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    return layer.out_proj(y.transpose(1, 2).reshape(N, L, E))


def float_form(layer):
    """torch's attention with the weights that an int8 layer stands for."""
    back = nn.MultiheadAttention(E, H, batch_first=layer.batch_first).eval()
    parts = [layer.q_proj, layer.k_proj, layer.v_proj]
    with torch.no_grad():
        back.in_proj_weight.copy_(torch.cat([p.weight_int8 * p.weight_scale for p in parts]))
        back.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        back.out_proj.weight.copy_(layer.out_proj.weight_int8 * layer.out_proj.weight_scale)
        back.out_proj.bias.copy_(layer.out_proj.bias)
    return back


@torch.no_grad()
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bias": False},
        {"kdim": 24, "vdim": 40, "batch_first": True},
        {"kdim": 24},
    ],
    ids=str,
)
def test_cross_attention_is_close_to_torch(options, average, need_weights):
    source = attention(**options)
    layer = Int8MultiheadAttention.from_float(source)
    sizes = {name: options.get(name, E) for name in ("kdim", "vdim")}
    x = inputs(options.get("batch_first", False), **sizes)
    masks = {
        "attn_mask": torch.randn(N * H, L, S),
        "key_padding_mask": torch.zeros(N, S).masked_fill(
            torch.arange(S) >= torch.tensor([[7], [5], [6]]), float("-inf")
        ),
    }
    for given in ({}, masks):
        arguments = {"need_weights": need_weights, "average_attn_weights": average, **given}
        y, weights = layer(*x, **arguments)
        expected, expected_weights = source(*x, **arguments)
        close(y, expected)
        if need_weights:
            close(weights, expected_weights)
        else:
            assert weights is None
            assert expected_weights is None


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_self_attention_without_a_batch(need_weights, batch_first):
    source = attention(batch_first=batch_first)
    layer = Int8MultiheadAttention.from_float(source)
    x = torch.randn(L, E)
    padding = torch.arange(L) >= 4
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": torch.eye(L).bool().logical_not()}):
        y, weights = layer(x, x, x, need_weights=need_weights, **masks)
        expected, expected_weights = source(x, x, x, need_weights=need_weights, **masks)
        close(y, expected)
        if need_weights:
            close(weights, expected_weights)
    y, weights = layer(x, x, x, average_attn_weights=False)
    close(weights, source(x, x, x, average_attn_weights=False)[1])


@torch.no_grad()
def test_masks_are_those_of_torch():
    """Beside torch's attention on the very weights, quantization of the inputs is all that differs; a wrong
    mask would be far off."""
    layer = Int8MultiheadAttention.from_float(attention(batch_first=True))
    source = float_form(layer)
    x = torch.randn(N, L, E)
    causal = nn.Transformer.generate_square_subsequent_mask(L)
    padding = torch.arange(L) >= torch.tensor([[5], [2], [4]])
    for masks in (
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": causal.isinf()},
        {"attn_mask": causal.isinf(), "is_causal": True, "key_padding_mask": padding},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(N * H, L, L)},
    ):
        for need_weights in (False, True):
            close(
                layer(x, x, x, need_weights=need_weights, **masks)[0],
                source(x, x, x, need_weights=need_weights, **masks)[0],
            )


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_that_of_the_parts(dtype, config):
    layer = Int8MultiheadAttention.from_float(attention(batch_first=True).to(dtype), config)
    assert [type(child) for child in layer.children()] == [Int8Linear] * 4
    query, key, value = inputs(batch_first=True, dtype=dtype)
    for q, k, v in ((query, query, query), (query, key, key), (query, key, value)):
        y = layer(q, k, v, need_weights=False)[0]
        assert y.dtype == dtype
        assert torch.equal(y, manual(layer, q, k, v))
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=dtype)
    y = layer(query, query, query, attn_mask=causal, is_causal=True, need_weights=False)[0]
    assert torch.equal(y, manual(layer, query, query, query, causal=True))
    mask = torch.randn(N, H, L, S).to(dtype)
    y = layer(query, key, key, attn_mask=mask.view(N * H, L, S), need_weights=False)[0]
    assert torch.equal(y, manual(layer, query, key, key, mask))


def test_dropout_in_training_only():
    layer = Int8MultiheadAttention.from_float(attention(dropout=0.5, batch_first=True).train())
    assert layer.training
    x = torch.randn(N, L, E)
    for need_weights in (False, True):
        once = layer(x, x, x, need_weights=need_weights)[0]
        assert not torch.equal(once, layer(x, x, x, need_weights=need_weights)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_gradients_reach_the_inputs():
    layer = Int8MultiheadAttention.from_float(attention(batch_first=True))
    source = float_form(layer)
    x = torch.randn(N, L, E, requires_grad=True)
    y = torch.randn(N, S, E, requires_grad=True)
    z = torch.randn(N, S, E, requires_grad=True)
    for qkv, leaves in (((x, x, x), [x]), ((x, y, y), [x, y]), ((x, y, z), [x, y, z])):
        wanted = torch.autograd.grad(source(*qkv)[0].square().sum(), leaves)
        found = torch.autograd.grad(layer(*qkv)[0].square().sum(), leaves)
        for grad, expected in zip(found, wanted, strict=True):
            close(grad, expected)


def test_state_dict_round_trip():
    layer = Int8MultiheadAttention.from_float(attention(kdim=24, batch_first=True))
    state = layer.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        f"{name}_proj.{key}": shape
        for name, k in (("q", E), ("k", 24), ("v", E), ("out", E))
        for key, shape in (
            ("bias", (E,)),
            ("weight", (0,)),
            ("weight_int8", (E, k)),
            ("weight_scale", (E, 1)),
        )
    }
    other = Int8MultiheadAttention(E, H, kdim=24, batch_first=True)
    other.load_state_dict(state)
    x = inputs(batch_first=True, kdim=24)
    expected = layer(*x)[0]
    assert torch.equal(other(*x)[0], expected)
    assert torch.equal(copy.deepcopy(layer)(*x)[0], expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*x)[0], expected)
    assert "embed_dim=32, num_heads=4" in repr(layer)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"stays float: .*add_bias_kv"):
        Int8MultiheadAttention.from_float(attention(add_bias_kv=True))
    with pytest.raises(ValueError, match=r"stays float: .*add_zero_attn"):
        Int8MultiheadAttention.from_float(attention(add_zero_attn=True))
    with pytest.raises(TypeError, match=r"attention: expected a torch.nn.MultiheadAttention, got Linear"):
        Int8MultiheadAttention.from_float(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"config: expected an octavo.Int8Dynamic"):
        Int8MultiheadAttention.from_float(attention(), octavo.Int8Static([]))
    with pytest.raises(ValueError, match="embed_dim, num_heads: expected a multiple"):
        Int8MultiheadAttention(30, 4)
    layer = Int8MultiheadAttention.from_float(attention())
    x = torch.randn(L, N, E)
    for match, arguments in (
        (r"query, key, value: expected three", {"query": x[0, 0]}),
        (r"query, key, value: expected three", {"key": x[0]}),
        (r"attn_mask: expected the causal mask", {"is_causal": True}),
        (r"attn_mask: expected shape \(5, 5\) or \(12, 5, 5\), got", {"attn_mask": torch.zeros(5, 4)}),
        (r"key_padding_mask: expected shape \(3, 5\), got", {"key_padding_mask": torch.zeros(5, 3)}),
    ):
        with pytest.raises(ValueError, match=match):
            layer(**{"query": x, "key": x, "value": x, **arguments})
    with pytest.raises(TypeError, match="attn_mask: expected a bool or a float mask"):
        layer(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.int64))


@torch.no_grad()
def test_compile_and_export():
    layer = Int8MultiheadAttention.from_float(attention(batch_first=True))
    query, key, _ = inputs(batch_first=True)
    expected = layer(query, key, key)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(query, key, key), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    program = torch.export.export(layer, (query, key, key)).module()
    for actual, wanted in zip(program(query, key, key), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


# ---- in torch's transformers ----


def encoder(batch_first, norm_first=False):
    layer = nn.TransformerEncoderLayer(E, H, 64, 0.0, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of the float run
@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_encoders(padded, batch_first, training):
    m = encoder(batch_first).train(training)
    x = torch.randn(N, L, E) if batch_first else torch.randn(L, N, E)
    padding = torch.arange(L) >= torch.tensor([[5], [2], [4]]) if padded else None
    expected = m(x, src_key_padding_mask=padding)
    quantize_(m)
    assert type(m.layers[1].self_attn) is Int8MultiheadAttention
    assert m.training == m.layers[0].self_attn.q_proj.training == training
    actual = m(x, src_key_padding_mask=padding)
    if padded:
        kept = ~padding if batch_first else ~padding.T
        actual, expected = actual[kept], expected[kept]
    close(actual, expected)


@torch.no_grad()
def test_an_encoder_layer_calls_its_int8_layers():
    """In eval mode torch would run one fused kernel on float weights."""
    m = encoder(batch_first=True).eval()
    quantize_(m)
    x, layer = torch.randn(N, L, E), m.layers[0]
    y = layer.norm1(x + manual(layer.self_attn, x, x, x))
    y = layer.norm2(y + layer.linear2(F.relu(layer.linear1(y))))
    assert torch.equal(layer(x), y)
    only = encoder(batch_first=True).eval()
    quantize_(only, {nn.Linear: octavo.Int8Dynamic()})
    layer = only.layers[0]
    y = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    close(layer(x), layer.norm2(y + layer.linear2(F.relu(layer.linear1(y)))), 1e-6)
    only = encoder(batch_first=True).eval()
    quantize_(only, {nn.MultiheadAttention: octavo.Int8Dynamic()})
    assert type(only.layers[0].linear1) is nn.Linear
    layer = only.layers[0]
    y = layer.norm1(x + manual(layer.self_attn, x, x, x))
    assert torch.equal(layer(x), layer.norm2(y + layer.linear2(F.relu(layer.linear1(y)))))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_whole_transformer(training):
    m = nn.Transformer(E, H, 1, 1, 64, 0.0, batch_first=True).train(training)
    source, target = torch.randn(N, S, E), torch.randn(N, L, E)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    arguments = {"tgt_mask": mask, "tgt_is_causal": True}
    expected = m(source, target, **arguments)
    quantize_(m)
    assert type(m.decoder.layers[0].multihead_attn) is Int8MultiheadAttention
    close(m(source, target, **arguments), expected)
