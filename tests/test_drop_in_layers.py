"""What other code finds on a layer and does with it: parametrizations, attributes, members, calls by name."""

from __future__ import annotations

import copy
import inspect

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import utils  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import quantize_  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Layer:
    """A float layer, inputs, and what it makes of them."""

    def __init__(self, make, *inputs, weight="weight"):
        self.make, self.inputs, self.weight = make, inputs, weight

    def __call__(self, layer):
        y = layer(*self.inputs)
        return y[0] if isinstance(y, tuple) else y


X, QUERY, KEY = torch.randn(3, 16), torch.randn(2, 5, 16), torch.randn(2, 7, 8)
LAYERS = {
    "Linear": Layer(lambda: nn.Linear(16, 16), X),
    "Conv2d": Layer(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 8, 8)),
    "Embedding": Layer(lambda: nn.Embedding(9, 4), torch.tensor([2, 8])),
    "EmbeddingBag": Layer(lambda: nn.EmbeddingBag(9, 4), torch.tensor([[2, 8], [1, 1]])),
    "attention": Layer(
        lambda: nn.MultiheadAttention(16, 2, batch_first=True), QUERY, QUERY, QUERY, weight="in_proj_weight"
    ),
    "cross": Layer(
        lambda: nn.MultiheadAttention(16, 2, batch_first=True, kdim=8, vdim=8),
        QUERY,
        KEY,
        KEY,
        weight="k_proj_weight",
    ),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def close(actual, expected, share=0.03):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < share * expected.norm()


def why(m, name="0"):
    return next(row.why for row in octavo.explain(m) if row.name == name)


def stays_float(layer, *words):
    """quantize_ leaves the layer as it is and says why; a neighbour becomes int8."""
    m = nn.Sequential(layer, nn.Linear(2, 2))
    held, state = dict(vars(layer)), copy.deepcopy(layer.state_dict())
    quantize_(m)
    assert m[0] is layer
    for word in ("float: ", *words):
        assert word in why(m)
    assert {name: value for name, value in vars(layer).items() if name != "_octavo_float"} == held
    for name, value in layer.state_dict().items():
        assert value == state[name] if isinstance(value, int) else torch.equal(value, state[name]), name


# ---- parametrizations ----


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


class Product(nn.Module):
    """A weight of two tensors."""

    def forward(self, a, b):
        return (a * b).reshape(a.shape)

    def right_inverse(self, w):
        return w.abs().sqrt(), w.sign() * w.abs().sqrt()


class Noisy(nn.Module):
    """Random in train mode."""

    def forward(self, w):
        return F.dropout(w, 0.5, self.training)


def register(make, name):
    return lambda layer, weight=None: parametrize.register_parametrization(layer, weight or name, make())


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "doubled": register(Doubled, "weight"),
    "two tensors": register(Product, "weight"),
    "random": register(Noisy, "weight"),
    "in a row": lambda layer, name: parametrizations.spectral_norm(
        parametrizations.weight_norm(layer, name), name
    ),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
@each_layer
def test_parametrized_weights(layer, change, training):
    m = nn.Sequential(layer.make()).eval()
    change(m[0], layer.weight)
    with torch.no_grad():
        expected = layer(m[0])
        m.train(training)
        state = {name: value.clone() for name, value in m.state_dict().items()}
        octavo.explain(m)
        old = m[0]
        quantize_(m)
        assert m[0] is not old
        for name, value in old.state_dict().items():  # reading changed none of spectral_norm's buffers
            assert torch.equal(value, state[f"0.{name}"])
        assert [each.training for each in (old, *old.modules())] == [training] * (1 + len([*old.modules()]))
        assert m[0].training == training
        close(layer(m[0].eval()), expected)
    assert not parametrize.is_parametrized(m[0])


@torch.no_grad()
def test_other_parametrized_parameters():
    for layer in (LAYERS["Linear"], LAYERS["Conv2d"]):
        m = nn.Sequential(layer.make()).eval()
        register(Doubled, "bias")(m[0])
        expected = layer(m[0])
        close(layer(quantize_(m)[0]), expected)
    for name in ("weight", "bias"):
        layer = LAYERS["attention"]
        m = nn.Sequential(layer.make()).eval()
        nn.init.normal_(m[0].out_proj.bias)
        register(Doubled, name)(m[0].out_proj)
        expected = layer(m[0])
        close(layer(quantize_(m)[0]), expected)


@torch.no_grad()
def test_parametrized_conv1d():
    kind = pytest.importorskip("transformers.pytorch_utils").Conv1D
    for change in PARAMETRIZATIONS.values():
        m = nn.Sequential(kind(16, 16)).eval()
        change(m[0], "weight")
        expected = m(X)
        assert type(quantize_(m)[0]) is octavo.nn.Int8Linear
        close(m(X), expected)


@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_ties_by_their_originals_stay_ties(change):
    m = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)]).eval()
    for each in m:
        change(each, "weight")
    first, second = (each.parametrizations["weight"] for each in m[:2])
    for name in [name for name, _ in first.named_parameters(recurse=False)]:
        setattr(second, name, getattr(first, name))
    for name, buffer in first.named_buffers():
        parent, _, name = name.rpartition(".")
        setattr(second.get_submodule(parent), name, buffer)
    quantize_(m)
    assert m[0]._stored.data_ptr() == m[1]._stored.data_ptr() != m[2]._stored.data_ptr()


def test_tied_attention_shares_its_int8_weights():
    m = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(3)])
    m[1].in_proj_weight, m[1].out_proj.weight = m[0].in_proj_weight, m[0].out_proj.weight
    quantize_(m)
    parts = [[each._stored.data_ptr() for each in attention.children()] for attention in m]
    assert parts[0] == parts[1]
    assert len(set(parts[0] + parts[2])) == 8


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [utils.weight_norm, utils.spectral_norm], ids=lambda each: each.__name__)
@each_layer
def test_hooks_that_compute_weights_are_a_reason(layer, change):
    made = layer.make()
    change(made, layer.weight)
    stays_float(made)
    if isinstance(made, nn.MultiheadAttention):
        made = layer.make()
        change(made.out_proj)
        stays_float(made)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_parametrized_layers_train_and_calibrate(change, training):
    m = nn.Sequential(nn.Linear(16, 16), nn.Conv2d(3, 4, 3)).train(training)
    for each in m:
        change(each, "weight")
    fake = octavo.prepare_qat_(copy.deepcopy(m))
    assert parametrize.is_parametrized(fake[0])
    int8 = octavo.convert_qat_(copy.deepcopy(fake))
    for each, x in ((0, X), (1, torch.randn(2, 3, 8, 8))):
        assert torch.equal(int8[each](x), fake.eval()[each](x))
    static = quantize_(m, {"0": octavo.Int8Static([X], forward=lambda model, x: model[0](x))})
    close(static[0](X), fake[0](X), 0.06)


# ---- attributes ----


@each_layer
def test_attributes_go_on(layer, tmp_path):
    def make():
        made = nn.Sequential(layer.make())
        for each in (made[0], *made[0].children()):
            each.tag = 1
            each._is_hf_initialized = True
            each.table = torch.arange(3)
            each.friends = [nn.Linear(2, 2)]
        return made

    m = make()
    vars(m[0])["me"] = m
    m = quantize_(m)
    assert m[0].me is m
    octavo.save(m, tmp_path / "saved")
    for each in (m, copy.deepcopy(m), octavo.load(make, tmp_path / "saved")):
        kept = (
            [each[0], each[0].out_proj]
            if isinstance(each[0], octavo.nn.Int8MultiheadAttention)
            else [each[0]]
        )
        for found in kept:
            assert found.tag == 1
            assert found._is_hf_initialized
            assert torch.equal(found.table, torch.arange(3))
            assert type(found.friends[0]) is nn.Linear
            assert not [name for name in found.state_dict() if "table" in name or "friends" in name]


@each_layer
def test_what_else_is_registered_is_a_reason(layer):
    for change in (
        lambda made: made.register_parameter("more", nn.Parameter(torch.ones(2))),
        lambda made: made.register_buffer("more", torch.ones(2)),
        lambda made: made.add_module("more", nn.LayerNorm(2)),
    ):
        made = layer.make()
        change(made)
        stays_float(made, "'more'")
    made = layer.make()
    made.more = nn.Parameter(torch.ones(2))
    register(Doubled, "more")(made)
    stays_float(made, "'more'")
    for register_hook in ("register_state_dict_pre_hook", "register_load_state_dict_post_hook"):
        made = layer.make()
        getattr(made, register_hook)(lambda *_: None)
        stays_float(made, "state dict")


def test_attributes_that_mean_something_else_are_a_reason():
    for name in ("activation", "symmetric", "kernel", "weight_scale", "weight_int8", "_stored"):
        made = nn.Linear(4, 4)
        setattr(made, name, "relu")
        stays_float(made, f"'{name}'")
    made = nn.Linear(4, 4)
    made.old_call = made.extra_repr
    stays_float(made, "'old_call' is a method")
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj.activation = "relu"
    stays_float(attention, "'activation'")


def test_weights_of_another_kind_are_a_reason():
    m = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(2, 2))
    assert type(quantize_(m)[0]) is nn.Linear
    made = nn.Linear(4, 4)
    made.weight = nn.Parameter(made.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    assert quantize_(nn.Sequential(made, nn.Linear(2, 2)))[0] is made

    class Tagged(torch.Tensor):
        pass

    made = nn.Linear(4, 4)
    made.weight = nn.Parameter(made.weight.detach().as_subclass(Tagged))
    m = quantize_(nn.Sequential(made, nn.Linear(2, 2)))
    assert m[0] is made
    assert "weight is a Tagged" in why(m)


def test_sizes_are_those_of_the_weight():
    """Not those of in_features and the like, which torch does not read."""
    narrow = nn.Linear(16, 8)
    narrow.weight, narrow.bias = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(6))
    conv = nn.Conv2d(4, 8, 3, groups=2)
    conv.weight, conv.bias = nn.Parameter(torch.randn(6, 1, 5, 3)), None
    table = nn.Embedding(3, 4)
    table.weight = nn.Parameter(torch.randn(9, 6))
    for made, x in ((narrow, X), (conv, torch.randn(2, 2, 8, 8)), (table, torch.tensor([8, 0]))):
        expected = made(x).detach()
        close(quantize_(made)(x).detach(), expected)


# ---- members ----

OWN = {
    "a method": {"scale": lambda self: 3},
    "a property": {"scale": property(lambda self: 3)},
    "a class attribute": {"scale": 3},
    "a class method": {"scale": classmethod(lambda cls: 3)},
    "a call of its own": {"__call__": lambda self, *args: 3},
    "a state of its own": {"get_extra_state": lambda self: 3, "set_extra_state": lambda self, state: None},
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("mixed_in", [False, True])
@each_layer
def test_members_of_a_subclass_are_a_reason(layer, mixed_in, own):
    made = layer.make()
    base = type(made)
    if mixed_in:
        made.__class__ = type("Own", (type("Mixin", (), own), base), {})
    else:
        made.__class__ = type("Own", (base,), own)
    stays_float(made, "Own has ", next(iter(own)), "of its own")


@each_layer
def test_a_subclass_without_members_goes(layer):
    base = type(layer.make())

    class Own(base):
        """With what every class has."""

        note: int

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.rank = 3

        def reset_parameters(self):
            super().reset_parameters()

        def _reset_parameters(self):
            super()._reset_parameters()

        def extra_repr(self):
            return "own"

    made = layer.make()
    made.__class__, made.rank = Own, 3
    if "reset_parameters" not in dir(base):
        del Own.reset_parameters
    else:
        del Own._reset_parameters
    m = quantize_(nn.Sequential(made))
    assert type(m[0]).__name__.startswith("Int8")
    assert m[0].rank == 3


def test_layers_with_members_of_their_own_are_not_prepared():
    own = type("Own", (nn.Linear,), {"scale": lambda self: 3})(4, 4)
    m = octavo.prepare_qat_(nn.Sequential(own, nn.Linear(4, 4)))
    assert type(m[0]) is type(own)
    m[1].tag = 1
    m = octavo.convert_qat_(m)
    assert m[1].tag == 1
    assert not hasattr(m[1], "qat_config")
    m = octavo.prepare_qat_(nn.Sequential(nn.Linear(4, 4)))
    m[0].register_buffer("more", torch.ones(2))
    with pytest.raises(ValueError, match=r"model: layer '0': expected a layer .* it holds 'more' beside"):
        octavo.convert_qat_(m)


# ---- what a float layer has ----

LACKS = {
    "__constants__": "is for TorchScript",
    "from_pretrained": "makes float layers",
    "merge_masks": "is for the fused float path",
    "_reset_parameters": "is for the constructor of torch's class",
}


@each_layer
def test_int8_layers_have_the_members_of_float_ones(layer):
    made = layer.make()
    int8 = quantize_(copy.deepcopy(made))
    names = {*dir(made), *made._parameters, *made._buffers, *made._modules}
    lacks = {name for name in names if not hasattr(int8, name)}
    assert lacks <= set(LACKS)
    for name in sorted(vars(made).keys() - vars(nn.Module()).keys()):
        if name not in ("_qkv_same_embed_dim", "_reversed_padding_repeated_twice"):
            assert getattr(int8, name) == getattr(made, name), name
    assert {name for name in dir(type(made)) if not hasattr(type(int8), name)} <= set(LACKS)
    fresh = type(int8)(*(2,) * (3 if isinstance(made, nn.Conv2d) else 2))
    assert {name for name in names if not hasattr(fresh, name)} <= set(LACKS)


@pytest.mark.parametrize("padding", [1, (0, 2), "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@torch.no_grad()
def test_attributes_of_convolutions_are_read_in_every_call(mode, padding):
    conv = nn.Conv2d(4, 6, (3, 5), padding=padding, padding_mode=mode)
    int8, x = quantize_(copy.deepcopy(conv)), torch.randn(2, 4, 16, 16)
    assert int8._reversed_padding_repeated_twice == list(conv._reversed_padding_repeated_twice)
    close(int8._conv_forward(x, int8.weight, int8.bias), conv(x))
    close(int8._conv_forward(x, conv.weight, conv.bias), conv(x))
    for made in (conv, int8):
        made.dilation = (2, 1)
        made.stride = (1, 1) if padding == "same" else (2, 3)
        if mode == "zeros" and padding != "same":
            made.padding = 3
    close(int8(x), conv(x))


@each_layer
def test_calls_by_the_names_of_float_layers(layer):
    m = nn.Sequential(layer.make())
    names = list(inspect.signature(m[0].forward).parameters)
    quantize_(m)
    assert list(inspect.signature(m[0].forward).parameters) == names
    with torch.no_grad():
        y = m[0](**dict(zip(names, layer.inputs, strict=False)))
        assert torch.equal(y[0] if isinstance(y, tuple) else y, layer(m[0]))


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_attention_reads_as_torchs_with_separate_weights(bias):
    layer = quantize_(nn.MultiheadAttention(16, 2, kdim=8, vdim=8, bias=bias).eval())
    if bias:
        for part in layer.children():
            nn.init.normal_(part.bias)
    query, key = QUERY.transpose(0, 1), KEY.transpose(0, 1)
    y, weights = F.multi_head_attention_forward(
        query,
        key,
        key,
        layer.embed_dim,
        layer.num_heads,
        layer.in_proj_weight,
        layer.in_proj_bias,
        layer.bias_k,
        layer.bias_v,
        layer.add_zero_attn,
        0.0,
        layer.out_proj.weight,
        layer.out_proj.bias,
        training=layer.training,
        use_separate_proj_weight=not layer._qkv_same_embed_dim,
        q_proj_weight=layer.q_proj_weight,
        k_proj_weight=layer.k_proj_weight,
        v_proj_weight=layer.v_proj_weight,
    )
    expected = layer(query, key, key)
    close(y, expected[0])
    close(weights, expected[1])


def test_parameters_can_be_reset():
    for layer in list(LAYERS.values())[:4]:
        int8 = quantize_(layer.make())
        before = int8.weight.clone()
        int8.reset_parameters()
        assert not torch.equal(int8.weight, before)
        bound = layer.make().weight.abs().max()
        assert 0.5 * bound < int8.weight.abs().max() < 2 * bound
    assert not int8_padding(quantize_(nn.Embedding(9, 4, padding_idx=1))).any()


def int8_padding(table):
    table.reset_parameters()
    return table.weight[table.padding_idx]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("config", [octavo.Int8Dynamic(), octavo.Int8WeightOnly(), octavo.Int8Static([X])])
@torch.no_grad()
def test_type_casts_what_to_casts(config, dtype):
    """nn.Module.type casts every tensor, integers too."""
    m = quantize_(nn.Sequential(nn.Linear(16, 8)), config)
    cast = copy.deepcopy(m).type(dtype)
    assert torch.equal(cast(X.to(dtype)), m.to(dtype)(X.to(dtype)))
    assert {name: each.dtype for name, each in cast.named_buffers()} == {
        name: each.dtype for name, each in m.named_buffers()
    }


# ---- where else a model has its layers ----


class Listing(nn.Module):
    """Its forward goes through what `keep` makes of its layers, as Mask2Former's heads go through a list."""

    def __init__(self, keep):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        vars(self)["kept"] = keep(self.a, self.b)

    def forward(self, x):
        def through(kept, x):
            if isinstance(kept, dict):
                kept = list(kept.values())
            if isinstance(kept, list | tuple):
                for each in kept:
                    x = through(each, x)
                return x
            return kept(x)

        return through(self.kept, x)


KEEP = {
    "attribute": lambda a, b: b,
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"first": a, "then": b},
    "nested": lambda a, b: [(a, {"one": [b]}), (a,)],
    "twice": lambda a, b: [(one := [a, b]), one],
}


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)
def test_layers_that_a_model_keeps_elsewhere_too(keep, tmp_path):
    x = torch.randn(3, 16)
    model = Listing(keep)
    wanted = Listing(keep)
    wanted.load_state_dict(model.state_dict())
    for name in ("a", "b"):  # int8 one by one, and kept afterwards
        setattr(wanted, name, octavo.quantize_(getattr(wanted, name)))
    vars(wanted)["kept"] = keep(wanted.a, wanted.b)
    octavo.quantize_(model)
    assert torch.equal(model(x), wanted(x))
    assert torch.equal(copy.deepcopy(model)(x), wanted(x))
    octavo.save(model, tmp_path / "int8")
    for into in (lambda: Listing(keep), Listing(keep), octavo.quantize_(Listing(keep))):
        assert torch.equal(octavo.load(into, tmp_path / "int8")(x), wanted(x))


def test_calibration_goes_through_lists():
    x = torch.randn(3, 16)
    model = octavo.quantize_(Listing(KEEP["list"]), octavo.Int8Static([x]))
    assert all(type(each) is octavo.nn.Int8StaticLinear for each in (model.a, model.b, *model.kept))
