"""torch.nn.TransformerEncoder with padding: 0 where the float model gives 0, its values elsewhere."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import quantize_  # noqa: E402

N, L, E = 3, 5, 32
LEFT = torch.arange(L) >= torch.tensor([[5], [2], [4]])
NOT_LEFT = torch.arange(L) < torch.tensor([[1], [0], [2]])

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning", "ignore:enable_nested_tensor is True:UserWarning"
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.compiler.reset()


def encoder(layers=2, *, norm=False, nested=True, heads=4, **options):
    layer = nn.TransformerEncoderLayer(E, heads, 64, 0.0, **{"batch_first": True} | options)
    m = nn.TransformerEncoder(layer, layers, nn.LayerNorm(E) if norm else None, nested)
    if norm:
        nn.init.normal_(m.norm.bias)
    return m


def check(m, quantized, *args, padding=LEFT, batch_first=True, **options):
    """The same zeros, and the values of the float model, kept and padded ones each."""
    x = torch.randn(N, L, E) if batch_first else torch.randn(L, N, E)
    given = {"src_key_padding_mask": padding, **options}
    expected, actual = m(x, *args, **given), quantized(x, *args, **given)
    padded = padding.bool() if batch_first else padding.bool().T
    assert actual.shape == expected.shape
    assert torch.equal(actual == 0, expected == 0)
    for where in (padded, ~padded):
        assert (actual[where] - expected[where]).norm() <= 0.03 * expected[where].norm()
    return bool((actual[padded] == 0).all())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_encoders_of_every_kind(nested, norm, batch_first, norm_first):
    m = encoder(norm=norm, nested=nested, batch_first=batch_first, norm_first=norm_first)
    zeros = nested and batch_first and not norm_first and not norm
    for training, grad in product((False, True), (False, True)):
        quantized = quantize_(copy.deepcopy(m.train(training)))
        with torch.set_grad_enabled(grad):
            found = check(m, quantized, batch_first=batch_first)
        assert found == (zeros and not training and not grad)


@torch.no_grad()
def test_masks_of_every_kind():
    m = encoder().eval()
    quantized = quantize_(copy.deepcopy(m))
    causal = nn.Transformer.generate_square_subsequent_mask(L)
    additive = torch.zeros(N, L).masked_fill(LEFT, -torch.inf)
    assert check(m, quantized)
    assert check(m, quantized, padding=additive)
    assert check(m, quantized, None)
    assert not check(m, quantized, padding=NOT_LEFT)
    assert not check(m, quantized, causal, is_causal=True, padding=additive)
    assert not check(m, quantized, mask=causal.isinf())
    empty = torch.arange(L) >= torch.tensor([[5], [0], [4]])
    assert check(m, quantized, padding=empty)
    for each in (m, quantized):
        each.mask_check = False
    assert check(m, quantized)
    x = torch.randn(N, L, E)
    assert not (quantized(x) == 0).any()
    assert not (quantized(x[0], src_key_padding_mask=LEFT[1]) == 0).any()


@torch.no_grad()
def test_what_else_keeps_torch_from_its_nested_path():
    m = encoder().eval()
    quantized = quantize_(copy.deepcopy(m))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert not check(m, quantized)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    m.layers[0].train()
    quantized.layers[0].train()
    assert not check(m, quantized)
    with torch.enable_grad():
        for each in (m.eval(), quantized.eval()):
            each.requires_grad_(False)
        assert check(m, quantized)


@torch.no_grad()
@pytest.mark.parametrize("padding", [LEFT, NOT_LEFT])
def test_compiled_exported_and_fused_as_eager(padding):
    """Unlike torch's own, which leaves the path of nested tensors when it is compiled."""
    quantized = quantize_(encoder(1, norm=True).eval())
    given = {"src": torch.randn(N, L, E), "src_key_padding_mask": padding}
    expected = quantized(**given)
    compiled = torch.compile(quantized, backend="eager", fullgraph=True)
    exported = torch.export.export(quantized, (), given).module()
    fused = octavo.fuse_(copy.deepcopy(quantized), (given["src"], None, padding))
    for each in (compiled(**given), exported(**given), fused(given["src"], None, padding)):
        torch.testing.assert_close(each, expected)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("chosen", ["*", "layers.0.*", "*.linear1", "*.self_attn"])
def test_some_layers_and_copies(chosen, layers, tmp_path):
    m = encoder(layers).eval()
    quantized = quantize_(copy.deepcopy(m), {chosen: octavo.Int8Dynamic()})
    octavo.save(quantized, tmp_path / "saved")
    loaded = octavo.load(lambda: encoder(layers), tmp_path / "saved").eval()
    for each in (quantized, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), loaded):
        assert check(m, each)
        assert len(each._forward_hooks) == 1
    if layers > 1 and chosen != "*":
        quantize_(quantized)
        assert check(m, quantized)
        assert len(quantized._forward_hooks) == 1


@torch.no_grad()
def test_hooks_see_what_the_float_model_gives():
    m = encoder(norm=True).eval()
    seen = []
    m.register_forward_hook(lambda module, args, y: seen.append(y))
    m.norm.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    quantized = quantize_(copy.deepcopy(m))
    check(m, quantized)
    assert len(seen) == 4
    assert seen[0] == seen[2] == (N, L, E)
    assert torch.equal((seen[1] - seen[3])[LEFT], torch.zeros_like(seen[1][LEFT]))


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_whole_transformers_and_single_layers(training):
    m = nn.Transformer(E, 4, 2, 1, 64, 0.0, batch_first=True).train(training)
    quantized = quantize_(copy.deepcopy(m))
    source, target = torch.randn(N, L, E), torch.randn(N, 4, E)
    given = {"src_key_padding_mask": LEFT}  # the decoder sees the padding
    expected, actual = m(source, target, **given), quantized(source, target, **given)
    assert (actual - expected).norm() < 0.03 * expected.norm()
    layer = encoder(1).layers[0].train(training)
    assert not check(layer, quantize_(copy.deepcopy(layer)))


@torch.no_grad()
def test_layers_prepared_to_train():
    m = encoder().eval()
    prepared = octavo.prepare_qat_(copy.deepcopy(m))
    assert check(m, prepared)
    assert check(m, octavo.convert_qat_(prepared))
