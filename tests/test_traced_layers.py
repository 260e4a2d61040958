"""Int8 layers in torch.jit.trace, torch.export and make_fx; and torch.jit.script, which they refuse."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import quantize_  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of checks of shapes
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.compiler.reset()


class Attention(nn.Module):
    """Self-attention, or attention to other keys, or to other keys and values."""

    def __init__(self, kind, masked=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.kind, self.options = kind, options
        if masked:
            self.options["attn_mask"] = torch.ones(3, 3).triu(1).bool()

    def forward(self, x, padding=None):
        key = x if self.kind == "self" else x.flip(1)
        value = 2 * x if self.kind == "three" else key
        y, weights = self.attention(x, key, value, key_padding_mask=padding, **self.options)
        return (y,) if weights is None else (y, weights)


def tokens(batch):
    return (torch.randn(batch, 3, 16),)


def padded(batch):
    return torch.randn(batch, 3, 16), torch.arange(3) >= torch.randint(1, 4, (batch, 1))


def image(batch):
    return (torch.randn(batch, 4, 8, 8),)


def bags(batch):
    return torch.randint(9, (3 * batch,)), torch.arange(batch) * 3


MODELS = {
    "linear": (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), tokens),
    "embedding": (nn.Embedding(9, 4), lambda batch: (torch.randint(9, (batch, 3)),)),
    "a row is a bag": (nn.EmbeddingBag(9, 4), lambda batch: (torch.randint(9, (batch, 3)),)),
    "encoder": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), tokens),
}
for _mode in ("sum", "mean", "max"):
    MODELS[f"bag {_mode}"] = nn.EmbeddingBag(9, 4, mode=_mode), bags
for _mode in ("zeros", "reflect", "replicate", "circular"):
    for _padding in (1, "same", (0, 2)):
        MODELS[f"conv {_mode} {_padding}"] = nn.Conv2d(4, 6, 3, padding=_padding, padding_mode=_mode), image
for _kind in ("self", "cross", "three"):
    for _need_weights in (False, True):
        _attention = Attention(_kind, need_weights=_need_weights)
        MODELS[f"attention {_kind} {_need_weights}"] = _attention, tokens
        MODELS[f"attention padded {_kind} {_need_weights}"] = _attention, padded
        MODELS[f"attention masked {_kind} {_need_weights}"] = (
            Attention(_kind, True, need_weights=_need_weights),
            tokens,
        )
CONFIGS = {
    "dynamic": lambda _: octavo.Int8Dynamic(),
    "asymmetric": lambda _: octavo.Int8Dynamic(symmetric=False),
    "weight only": lambda _: octavo.Int8WeightOnly(),
    "static": lambda inputs: octavo.Int8Static([inputs(2)]),
}

each_model = pytest.mark.parametrize(("model", "inputs"), MODELS.values(), ids=MODELS)
CASES = [(*MODELS[name], "dynamic") for name in MODELS]
CASES += [(*MODELS[name], config) for name in ("encoder", "attention three True") for config in CONFIGS]
each_case = pytest.mark.parametrize(("model", "inputs", "config"), CASES)


def int8(model, inputs, config):
    return quantize_(copy.deepcopy(model).eval(), CONFIGS[config](inputs))


def same(actual, expected):
    if isinstance(expected, torch.Tensor):
        actual, expected = (actual,), (expected,)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
@each_case
def test_jit_trace(model, inputs, config):
    m = int8(model, inputs, config)
    traced = torch.jit.trace(m, inputs(2))
    for batch in (2, 5):
        given = inputs(batch)
        same(traced(*given), m(*given))


@torch.no_grad()
@each_case
def test_make_fx(model, inputs, config):
    m = int8(model, inputs, config)
    graph = make_fx(m, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs(2))
    for batch in (2, 5):
        given = inputs(batch)
        same(graph(*given), m(*given))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["linear", "embedding", "bag sum", "conv zeros 1", "conv reflect same", "attention three True"]
)
def test_export_of_any_batch(name):
    model, inputs = MODELS[name]
    m = int8(model, inputs, "dynamic")
    given = inputs(3)
    dynamic = tuple({0: torch.export.Dim.AUTO} for _ in given)
    program = torch.export.export(m, given, dynamic_shapes=dynamic).module()
    for batch in (3, 5):
        given = inputs(batch)
        same(program(*given), m(*given))


@torch.no_grad()
def test_jit_trace_of_several_weights():
    weights = [octavo.pack_weight(torch.randn(8, 16)) for _ in range(3)]
    biases = [None, torch.randn(8), torch.randn(8).half()]

    def product(x):
        return tuple(octavo.int8_linear(x, weights, biases, activation=["relu", None, "gelu"]))

    traced = torch.jit.trace(product, torch.randn(2, 16))
    x = torch.randn(5, 16)
    same(traced(x), product(x))
    outs = [torch.empty(5, 8) for _ in weights]
    torch.jit.trace(lambda x: tuple(octavo.int8_linear(x, weights, biases, out=outs)), x)
    same(outs, octavo.int8_linear(x, weights, biases))


@each_model
def test_jit_script_is_refused(model, inputs):
    m = nn.Sequential(int8(model, inputs, "dynamic"))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script: expected .*, got octavo\.nn\.Int8"):
        torch.jit.script(m)
