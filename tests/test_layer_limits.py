"""Limits of operations where layers are made: what every forward would refuse, no layer is made of."""

from __future__ import annotations

import copy

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from octavo import Int8Dynamic, Int8Static, Int8WeightOnly, prepare_qat_, quantize_  # noqa: E402
from octavo.nn import (  # noqa: E402
    Int8Conv2d,
    Int8Linear,
    Int8MultiheadAttention,
    Int8StaticLinear,
    Int8WeightOnlyLinear,
)

SIGNED, UNSIGNED = 131_071, 65_793  # 128 * 128 * K and 255 * 128 * K fit int32
ASYMMETRIC = Int8Dynamic(symmetric=False)


def static(k, symmetric):
    return Int8Static([torch.ones(1, k)], symmetric=symmetric)


def attention(k):
    return nn.MultiheadAttention(4, 2, kdim=k, vdim=k, batch_first=True)


def cut(layer, n, k):
    """As libraries that prune structures do it: another parameter, and the sizes as they were."""
    layer.weight = nn.Parameter(layer.weight.detach()[:n, :k].clone())
    layer.bias = nn.Parameter(layer.bias.detach()[:n].clone())
    return layer


def biased(layer, bias):
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


# (the layer, its config, what the error says)
REFUSED = {
    "dynamic": (lambda: nn.Linear(SIGNED + 1, 1), Int8Dynamic(), "K <= 131071"),
    "asymmetric": (lambda: nn.Linear(UNSIGNED + 1, 1), ASYMMETRIC, "K <= 65793 with symmetric=False"),
    "weight only": (lambda: nn.Linear(SIGNED + 1, 1), Int8WeightOnly(), "K <= 131071"),
    "grouped": (lambda: nn.Linear(SIGNED + 1, 1), Int8WeightOnly(4), "K <= 131071"),
    "groups that do not fit": (
        lambda: nn.Linear(6, 4),
        Int8WeightOnly(4),
        "group_size: expected a positive div",
    ),
    "groups of nothing": (
        lambda: nn.Linear(0, 4),
        Int8WeightOnly(4),
        "group_size: expected a positive divisor",
    ),
    "static": (
        lambda: nn.Linear(UNSIGNED + 1, 1),
        static(UNSIGNED + 1, False),
        "K <= 65793 with symmetric=False",
    ),
    "symmetric static": (lambda: nn.Linear(SIGNED + 1, 1), static(SIGNED + 1, True), "K <= 131071"),
    "conv": (
        lambda: nn.Conv2d(SIGNED + 1, 1, 1),
        Int8Dynamic(),
        "<= 131071, for exact int32 sums, got 131072",
    ),
    "kernel": (lambda: nn.Conv2d(14_564, 1, 3), Int8Dynamic(), "<= 131071, for exact int32 sums, got 131076"),
    "empty kernel": (
        lambda: nn.Conv2d(2, 2, 0),
        Int8Dynamic(),
        "kernel_size: expected two numbers of at least 1",
    ),
    "attention": (lambda: attention(SIGNED + 1), Int8Dynamic(), "K <= 131071"),
    "asymmetric attention": (lambda: attention(UNSIGNED + 1), ASYMMETRIC, "K <= 65793"),
    "bias": (lambda: biased(nn.Linear(4, 3), torch.zeros(1)), Int8Dynamic(), r"bias: expected shape \(3,\)"),
    "bias of integers": (
        lambda: biased(nn.Linear(4, 3), torch.zeros(3).int()),
        ASYMMETRIC,
        "bias: expected dtype",
    ),
    "bias of a conv": (
        lambda: biased(nn.Conv2d(1, 3, 1), torch.zeros(1)),
        Int8Dynamic(),
        "bias: expected shape",
    ),
}
FITS = {
    "dynamic": (lambda: nn.Linear(SIGNED, 1), Int8Dynamic(), (1, SIGNED)),
    "asymmetric": (lambda: nn.Linear(UNSIGNED, 1), ASYMMETRIC, (1, UNSIGNED)),
    "weight only": (lambda: nn.Linear(SIGNED, 1), Int8WeightOnly(), (1, SIGNED)),
    "static": (lambda: nn.Linear(UNSIGNED, 1), static(UNSIGNED, False), (1, UNSIGNED)),
    "symmetric static": (lambda: nn.Linear(SIGNED, 1), static(SIGNED, True), (1, SIGNED)),
    "kernel": (lambda: nn.Conv2d(14_563, 1, 3), Int8Dynamic(), (1, 14_563, 3, 3)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), Int8Dynamic(), (1, 6, 3, 3)),
    "depthwise of many taps": (lambda: nn.Conv2d(2, 2, 40, groups=2), Int8Dynamic(), (1, 2, 40, 40)),
    "no inputs": (lambda: nn.Linear(0, 3), ASYMMETRIC, (2, 0)),
    "no inputs of weights": (lambda: nn.Linear(0, 3), Int8WeightOnly(), (2, 0)),
    "no outputs": (lambda: nn.Linear(4, 0), Int8WeightOnly(4), (2, 4)),
    "no outputs of static": (lambda: nn.Linear(4, 0), static(4, False), (2, 4)),
    "cut": (lambda: cut(nn.Linear(12, 6), 3, 8), Int8Dynamic(), (2, 8)),
    "cut, asymmetric": (lambda: cut(nn.Linear(12, 6), 3, 8), ASYMMETRIC, (2, 8)),
    "cut, weights": (lambda: cut(nn.Linear(12, 6), 3, 8), Int8WeightOnly(4), (2, 8)),
    "cut conv": (lambda: cut(nn.Conv2d(4, 8, 3), 5, 2), Int8Dynamic(), (1, 2, 5, 5)),
}


quiet = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")


@quiet
@pytest.mark.parametrize("name", REFUSED)
def test_quantize_refuses_by_name_and_changes_nothing(name):
    make, config, match = REFUSED[name]
    layer = make()
    model = nn.ModuleList([nn.Linear(4, 4), layer])
    if isinstance(config, Int8Static):
        model.forward = lambda x: (model[0](x[..., :4]), layer(x))
    before, kept = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises((TypeError, ValueError), match=rf"model: layer '1(\.k_proj)?': .*{match}"):
        quantize_(model, {"1": config})
    assert [a is b for a, b in zip(model.modules(), kept, strict=True)] == [True] * len(kept)
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())


@quiet
@pytest.mark.parametrize("name", FITS)
def test_what_is_made_runs_and_is_near_the_float_layer(name, tmp_path):
    make, config, shape = FITS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make())
    x = torch.rand(shape)
    expected = model(x)
    quantize_(model, config)
    y = model(x)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected, atol=0.05)
    pytest.importorskip("safetensors")
    octavo.save(model, tmp_path)
    assert torch.equal(octavo.load(lambda: nn.Sequential(make()), tmp_path)(x), y)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda **d: Int8Linear(SIGNED + 1, 1, **d), "in_features: expected K <= 131071, for exact int32"),
        (
            lambda **d: Int8Linear(UNSIGNED + 1, 1, symmetric=False, **d),
            "in_features: expected K <= 65793 with",
        ),
        (
            lambda **d: Int8StaticLinear(UNSIGNED + 1, 1, **d),
            "in_features: expected K <= 65793 with zero points",
        ),
        (lambda **d: Int8WeightOnlyLinear(SIGNED + 1, 1, **d), "in_features: expected K <= 131071"),
        (
            lambda **d: Int8WeightOnlyLinear(0, 1, group_size=4, **d),
            "group_size: expected a positive divisor",
        ),
        (lambda **d: Int8Conv2d(SIGNED + 1, 1, 1, **d), "<= 131071, for exact int32 sums"),
        (lambda **d: Int8Conv2d(2, 2, 0, **d), "kernel_size: expected two numbers of at least 1, got 0"),
        (lambda **d: Int8Conv2d(2, 2, (3,), **d), "kernel_size: expected two numbers"),
        (lambda **d: Int8MultiheadAttention(4, 2, kdim=SIGNED + 1, **d), "expected K <= 131071, for"),
    ],
)
def test_constructors_refuse_too(make, match, device):
    with pytest.raises(ValueError, match=match):
        make(device=device)


def test_training_refuses_what_its_layers_would():
    for layer, config, match in (
        (nn.Linear(UNSIGNED + 1, 1), ASYMMETRIC, "weight: expected K <= 65793 with zero points"),
        (nn.Linear(SIGNED + 1, 1), Int8Dynamic(), "weight: expected K <= 131071"),
        (nn.Conv2d(SIGNED + 1, 1, 1), Int8Dynamic(), "weight: expected C / groups"),
    ):
        model = nn.Sequential(nn.Linear(2, 2), layer)
        with pytest.raises(ValueError, match=f"model: layer '1': {match}"):
            prepare_qat_(model, config)
        assert type(model[0]) is nn.Linear
    model = prepare_qat_(nn.Sequential(nn.Linear(UNSIGNED, 1)), ASYMMETRIC)
    assert model(torch.rand(1, UNSIGNED)).shape == (1, 1)
