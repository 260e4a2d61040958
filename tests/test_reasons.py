"""Where nothing is found to change, the error gives the reasons: each once, with the first names."""

from __future__ import annotations

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from octavo.nn.kinds import listed  # noqa: E402


class Adapted(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Packed(nn.Module):
    """As other quantizers make them: no parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(2, 8, dtype=torch.int32))


def offloaded():
    """As accelerate's hooks leave a layer."""
    layer = nn.Linear(8, 8)
    layer.forward = layer.forward
    return layer


def masked():
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


# a layer that nothing changes, and why
LAYERS = {
    "offloaded": (offloaded, "float: Linear has a forward of its own, which int8 would not run"),
    "adapted": (lambda: Adapted(8, 8), "float: Adapted has a forward of its own, which int8 would not run"),
    "masked": (
        masked,
        "float: torch.nn.utils.prune or a hook computes its weight in every call: make it permanent",
    ),
    "max_norm": (
        lambda: nn.Embedding(8, 8, max_norm=1.0),
        "float: max_norm changes the weights in every forward pass",
    ),
    "max_norm of bags": (
        lambda: nn.EmbeddingBag(8, 8, max_norm=1.0),
        "float: max_norm changes the weights in every forward pass",
    ),
    "lazy": (lambda: nn.LazyLinear(8), "float: its weight is not initialized: run the model once"),
    "lazy conv": (lambda: nn.LazyConv2d(8, 3), "float: its weight is not initialized: run the model once"),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
        "float: octavo has no attention with add_bias_kv or add_zero_attn",
    ),
    "another kind": (lambda: nn.Conv1d(8, 8, 3), "float: octavo has no int8 form of Conv1d"),
    "of another quantizer": (Packed, "float: octavo has no int8 form of Packed"),
    "lstm": (lambda: nn.LSTM(8, 8), "float: octavo has no int8 form of LSTM"),
    "fake-quantized": (
        lambda: octavo.prepare_qat_(nn.Linear(8, 8)),
        "float: fake-quantized; octavo.convert_qat_ makes it int8",
    ),
}


def refusal(call, *args, **kwargs):
    with pytest.raises(ValueError, match=r"got none \(.*\)") as error:
        call(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("name", LAYERS)
def test_quantize_says_why(name):
    make, why = LAYERS[name]
    model = nn.Sequential(*[make() for _ in range(5)], nn.ReLU())
    kinds = list(map(type, model.modules()))
    assert f"{why}: '0', '1', '2' and 2 more" in refusal(octavo.quantize_, model)
    assert list(map(type, model.modules())) == kinds
    assert f"{why}: the model" in refusal(octavo.quantize_, make())


@pytest.mark.parametrize("name", LAYERS)
def test_explain_and_export_say_the_same(name, tmp_path):
    make, why = LAYERS[name]
    model = nn.Sequential(make())
    assert f"{why}: '0'" in refusal(octavo.export_compressed_tensors, model, tmp_path / "out")
    if name not in ("of another quantizer", "lazy", "lazy conv"):  # which have no float weight to explain
        assert why in str(octavo.explain(model))


def test_reasons_of_filters_and_configs_come_with_those_of_layers():
    model = nn.Sequential(nn.Linear(8, 8), Adapted(8, 8), nn.Linear(8, 8), nn.Conv2d(3, 3, 3))
    text = refusal(octavo.quantize_, model, filter_fn=lambda *_: False)
    assert "would not run: '1'; float: filter_fn left it out: '0', '2', '3')" in text
    text = refusal(octavo.quantize_, model, {nn.Conv2d: octavo.Int8WeightOnly()})
    assert "float: no key of config fits it: '0', '2'" in text
    assert "float: octavo has no int8 form of Conv2d with Int8WeightOnly: '3'" in text


def test_what_is_int8_says_so():
    model = octavo.quantize_(nn.Sequential(nn.Linear(8, 8)))
    for call in (octavo.quantize_, octavo.prepare_qat_, octavo.convert_qat_):
        assert refusal(call, model).endswith("got none (int8 already: '0')")


def test_training_says_why():
    model = nn.Sequential(nn.Linear(8, 8), Adapted(8, 8), nn.Embedding(8, 8))
    text = refusal(octavo.prepare_qat_, model, filter_fn=lambda *_: False)
    assert "would not run: '1'; float: filter_fn left it out: '0'; float: octavo trains no Embedding" in text
    prepared = octavo.prepare_qat_(nn.Sequential(nn.Linear(8, 8)))
    assert "octavo.convert_qat_ makes it int8: '0')" in refusal(octavo.prepare_qat_, prepared)
    assert "octavo.prepare_qat_ was not called for it: '0', '1'" in refusal(octavo.convert_qat_, model)


def test_fuse_says_why():
    x = torch.ones(2, 8)
    assert "would not run: '0')" in refusal(octavo.fuse_, nn.Sequential(offloaded()).eval(), x)
    text = refusal(octavo.fuse_, nn.Sequential(nn.Linear(8, 8)).eval(), x)
    assert text.endswith("got none (float: octavo.quantize_ was not called: '0')")


def test_each_reason_is_given_once_with_the_first_names():
    assert listed({}) == ""
    assert listed({"b": "x", "a": "y", "": "x"}) == " (x: 'b', the model; y: 'a')"
    assert listed({str(i): "x" for i in range(4)}) == " (x: '0', '1', '2' and 1 more)"
