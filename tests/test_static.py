"""Int8Static: what calibration observes, and what layers with fixed scales compute."""

from __future__ import annotations

import builtins
import copy
import io
import sys
import types

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import octavo  # noqa: E402
from octavo.nn import Int8Linear, Int8MultiheadAttention, Int8Static, Int8StaticLinear, quantize_  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.compiler.reset()


def model():
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 24, bias=False)).eval()


def static_layer(low, high, symmetric=False, **options):
    config = Int8Static([], symmetric=symmetric)
    return Int8StaticLinear.from_float(nn.Linear(40, 24), config, input_range=(low, high), **options)


# ---- the layer ----


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_forward_is_quantize_then_scaled_int_mm(symmetric, dtype, activation, backend):
    x = (torch.randn(2, 3, 40) * 2).to(dtype)  # some of it beyond the range
    with octavo.use_backend(backend):
        layer = static_layer(-1.0, 3.0, symmetric, activation=activation).to(dtype)
        ends = octavo.quantize(torch.tensor([-1.0, 3.0]), granularity="tensor", symmetric=symmetric)
        assert torch.equal(layer.input_scale, ends.scale)
        assert layer.input_scale.dtype == torch.float32
        assert (layer.input_zero_point is None) == symmetric
        data = octavo.quantize(
            x, granularity="tensor", symmetric=symmetric, scale=ends.scale, zero_point=ends.zero_point
        ).data
        expected = octavo.scaled_int_mm(
            data,
            ends.scale,
            octavo.pack_weight(layer.weight_int8, layer.weight_scale),
            layer.bias.detach(),
            a_zero_point=ends.zero_point,
            activation=activation,
            out_dtype="float32" if dtype == torch.float64 else dtype,
        )
        assert layer(x).dtype == dtype
        assert torch.equal(layer(x).detach(), expected.to(dtype))


def test_a_row_does_not_change_the_scale_of_others():
    layer = static_layer(-3.0, 3.0)
    x = torch.randn(2, 40)
    alone = layer(x[:1])
    x[1] *= 1000
    assert torch.equal(layer(x)[:1], alone)
    assert torch.equal(layer(1000 * x), layer(1e6 * x))  # what is cut off is the range's end


@pytest.mark.parametrize("symmetric", [False, True])
def test_state_dict_round_trip_and_copies(symmetric):
    layer = static_layer(-1.0, 3.0, symmetric)
    state = layer.state_dict()
    names = {"weight", "weight_int8", "weight_scale", "bias", "input_scale"} | (
        set() if symmetric else {"input_zero_point"}
    )
    assert set(state) == names
    x = torch.randn(3, 40)
    other = Int8StaticLinear(40, 24, symmetric=symmetric)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(state)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for each in (other, copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(each(x), layer(x))
    with pytest.raises(RuntimeError, match="input_zero_point"):
        Int8StaticLinear(40, 24, symmetric=not symmetric).load_state_dict(state)
    half = copy.deepcopy(layer).half()
    assert half.input_scale.dtype == half.weight_scale.dtype == torch.float32
    assert torch.equal(half.input_scale, layer.input_scale)
    assert ("symmetric=False" in repr(layer)) is not symmetric


@torch.no_grad()
def test_compile():
    m = nn.Sequential(static_layer(-3.0, 3.0), nn.ReLU())
    x = torch.randn(5, 40)
    assert torch.equal(torch.compile(m, fullgraph=True, backend="aot_eager")(x), m(x))


def test_export():
    layer = static_layer(-3.0, 3.0)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(5, 40),), dynamic_shapes=({0: batch},))
    for n in (1, 32):
        x = torch.randn(n, 40)
        assert torch.equal(program.module()(x), layer(x))


def test_more_inputs_than_a_zero_point_allows():
    linear = nn.Linear(65_794, 1)
    with pytest.raises(ValueError, match="linear: expected K <= 65793 with symmetric=False, got 65794"):
        Int8StaticLinear.from_float(linear, Int8Static([]), input_range=(0.0, 1.0))
    config = Int8Static([], symmetric=True)
    Int8StaticLinear.from_float(linear, config, input_range=(0.0, 1.0))


# ---- calibration ----


def scales(m):
    return {
        name: (
            layer.input_scale.item(),
            None if layer.input_zero_point is None else layer.input_zero_point.item(),
        )
        for name, layer in m.named_modules()
        if isinstance(layer, Int8StaticLinear)
    }


def expected_scale(x, symmetric=False):
    _, scale, zero_point = octavo.quantize(x.detach(), granularity="tensor", symmetric=symmetric)
    return numbers(scale, zero_point)


def numbers(scale, zero_point):
    return scale.item(), None if zero_point is None else zero_point.item()


@pytest.mark.parametrize("symmetric", [False, True])
def test_calibration_observes_the_inputs_of_the_float_model(symmetric):
    m = model()
    data = torch.randn(32, 40)
    hidden = m[:2](data)
    expected = m(data)
    loader = DataLoader(TensorDataset(data), batch_size=10)
    assert quantize_(m, Int8Static(loader, symmetric=symmetric)) is m
    assert [type(each) for each in m] == [Int8StaticLinear, nn.ReLU, Int8StaticLinear]
    assert scales(m) == {"0": expected_scale(data, symmetric), "2": expected_scale(hidden, symmetric)}
    assert (m(data) - expected).norm() < 0.03 * expected.norm()


def test_only_finite_values_count():
    data = torch.randn(4, 40)
    odd = data.clone()
    odd[0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 50.0])
    m = quantize_(
        model()[:1], Int8Static([data[1:], torch.full((2, 40), float("nan")), torch.zeros(0, 40), odd])
    )
    assert scales(m) == {"0": expected_scale(odd)}  # quantize too looks at finite values only


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x, x), None),
        (lambda x: [x, x], None),
        (lambda x: {"b": x, "a": x}, None),
        (lambda x: types.MappingProxyType({"a": x}), None),
        (lambda x: {"text": x, "label": 3}, lambda m, batch: m(batch["text"])),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping", "forward"],
)
def test_forms_of_batches(batch, forward):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(40, 24)

        def forward(self, a, b=None):
            return self.fc(input=a if b is None else a + b)  # by keyword

    m = Named()
    data = torch.randn(4, 40)
    shared = batch(data)
    doubled = not isinstance(shared, torch.Tensor) and len(shared) == 2 and forward is None
    quantize_(m, Int8Static([shared], forward=forward))
    assert scales(m) == {"fc": expected_scale(2 * data if doubled else data)}


def test_steps_end_calibration():
    data = [torch.full((1, 40), float(i)) for i in (1, 2, 4)]
    for steps, largest in ((1, 1.0), (2, 2.0), (None, 4.0), (9, 4.0)):
        m = quantize_(model()[:1], Int8Static(iter(data), steps=steps))
        assert scales(m)["0"] == expected_scale(torch.tensor([0.0, largest]))


def test_the_model_runs_in_eval_mode_without_gradients_and_gets_its_modes_back():
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.drop, self.norm = nn.Linear(40, 40), nn.Dropout(0.5), nn.BatchNorm1d(40)

        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            assert not torch.backends.mha.get_fastpath_enabled()
            return self.norm(self.drop(self.fc(x)))

    m = Watched().train()
    m.norm.eval()
    mean = m.norm.running_mean.clone()
    quantize_(m, Int8Static([torch.randn(8, 40)]))
    assert (m.training, m.fc.training, m.drop.training, m.norm.training) == (True, True, True, False)
    assert torch.equal(m.norm.running_mean, mean)
    assert torch.backends.mha.get_fastpath_enabled()
    assert not m.fc._forward_pre_hooks


def test_a_layer_that_saw_no_data_stays_float_and_says_so():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(40, 40), nn.Linear(40, 40)
            self.attention = nn.MultiheadAttention(40, 4)

        def forward(self, x):
            return self.used(x)

    m = quantize_(Partly(), Int8Static([torch.randn(3, 40)]))
    assert type(m.used) is Int8StaticLinear
    assert type(m.unused) is nn.Linear
    assert type(m.attention) is nn.MultiheadAttention
    rows = {row.name: row for row in octavo.explain(m)}
    for name in ("unused", "attention"):
        assert rows[name].why == "float: its input was never seen in calibration"
    assert "scaled_int_mm" in rows["used"].kernel
    assert "Int8StaticLinear: " in rows["used"].why
    with pytest.raises(ValueError, match=r"float: its input was never seen"):
        quantize_(m, {"unused": Int8Static([torch.randn(3, 40)])})


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_attention_and_the_fused_path_of_torch_are_calibrated(padded):
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    m = nn.TransformerEncoder(layer, 2).train()
    x = torch.randn(3, 7, 32)
    batch = {"src": x}
    if padded:
        batch["src_key_padding_mask"] = torch.arange(7) >= torch.tensor([[7], [5], [6]])
    plain = copy.deepcopy(m)
    quantize_(m, Int8Static([batch]))
    assert m.training
    m.eval()
    first = m.layers[0]
    assert type(first.self_attn) is Int8MultiheadAttention
    assert len(scales(m)) == 12
    for name in ("q", "k", "v"):
        assert scales(m)[f"layers.0.self_attn.{name}_proj"] == expected_scale(x)
    expected = plain.train().eval()(**batch) if not padded else None
    if expected is not None:
        assert (m(**batch) - expected).norm() < 0.05 * expected.norm()


def test_a_lone_layer_is_calibrated():
    data = torch.randn(5, 40)
    layer = quantize_(nn.Linear(40, 24), Int8Static([data]))
    assert scales(layer) == {"": expected_scale(data)}
    source = nn.MultiheadAttention(40, 4)
    layer = quantize_(source, Int8Static([(data, data, data)]))
    assert type(layer) is Int8MultiheadAttention
    assert scales(layer)["q_proj"] == expected_scale(data)
    assert type(source.out_proj) is not Int8StaticLinear


def test_configs_mix():
    data = torch.randn(8, 40)
    near, far = Int8Static([data], symmetric=True), Int8Static([100 * data])
    m = model()
    hidden = m[:2](100 * data)
    quantize_(m, {"0": near, "2": far})
    assert scales(m) == {"0": expected_scale(data, True), "2": expected_scale(hidden)}
    m = quantize_(model(), {"0": near, nn.Linear: octavo.Int8Dynamic()})
    assert [type(each) for each in m] == [Int8StaticLinear, nn.ReLU, Int8Linear]


def test_a_failure_leaves_the_model_as_it_was():
    m = nn.ModuleDict({"attention": nn.MultiheadAttention(40, 4), "fc": nn.Linear(40, 40)})
    m["fc"].register_forward_pre_hook(lambda module, args: None)
    attention, hooks = m["attention"], dict(m["fc"]._forward_pre_hooks)
    m.train()

    def fail(module, batch):
        assert type(module["attention"]) is Int8MultiheadAttention
        raise OverflowError

    for error, config in (
        (OverflowError, Int8Static([0], forward=fail)),
        (ValueError, Int8Static([], forward=fail)),
    ):
        with pytest.raises(error):
            quantize_(m, config)
        assert m["attention"] is attention
        assert m["fc"]._forward_pre_hooks == hooks
        assert m.training
        assert m["fc"].training
        assert torch.backends.mha.get_fastpath_enabled()
        assert {row.why for row in octavo.explain(m)} >= {"float: octavo.quantize_ was not called"}


def test_errors_of_the_config():
    for data in (3, torch.zeros(3, 40), {"a": torch.zeros(1)}):
        with pytest.raises(TypeError, match="data: expected batches, such as a DataLoader or a list of them"):
            Int8Static(data)
    for wrong in ({"symmetric": 3}, {"progress": None}, {"forward": "x"}, {"steps": True}, {"steps": 1.5}):
        ((name, value),) = wrong.items()
        with pytest.raises(TypeError, match=f"^{name}: expected .*, got {value!r}$"):
            Int8Static([], **wrong)
    with pytest.raises(ValueError, match="steps: expected an int >= 1 or None, got 0"):
        Int8Static([], steps=0)
    with pytest.raises(ValueError, match="data: expected at least one batch, got none"):
        quantize_(model(), Int8Static([]))
    with pytest.raises(ValueError, match="expected a model with values, for calibration"):
        quantize_(model().to("meta"), Int8Static([torch.zeros(1, 40, device="meta")]))
    with pytest.raises(TypeError, match=r"config: expected an octavo.Int8Static, got Int8Dynamic"):
        Int8StaticLinear.from_float(nn.Linear(3, 3), octavo.Int8Dynamic(), input_range=(0.0, 1.0))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own
def test_fuse_names_the_layers_that_it_leaves_as_they_are():
    x, weight_only = torch.randn(4, 40), octavo.Int8WeightOnly()
    for config, got in (
        (Int8Static([x]), "only Int8StaticLinear, which fuse_ leaves as they are"),
        ({"0": weight_only, "2": Int8Static([x])}, "only Int8StaticLinear, Int8WeightOnlyLinear, which"),
        ({"0": weight_only, "2": octavo.Int8Dynamic()}, "none$"),
    ):
        m = quantize_(model(), config)
        with pytest.raises(ValueError, match=rf"expected layers of octavo.Int8Dynamic .* fused, got {got}"):
            octavo.fuse_(m, x)


# ---- progress ----


def test_a_bar_is_shown_if_tqdm_is_there(monkeypatch):
    shown = []

    def tqdm(batches, desc, total, unit, disable):
        shown.append((total, disable))
        return batches

    module = types.ModuleType("tqdm")
    module.tqdm = tqdm
    monkeypatch.setitem(sys.modules, "tqdm", module)
    data = [torch.randn(2, 40)] * 5
    quantize_(model(), Int8Static(data))
    quantize_(model(), Int8Static(data, steps=3))
    quantize_(model(), Int8Static(iter(data)))
    quantize_(model(), Int8Static(data, progress=False))
    assert shown == [(5, None), (3, None), (None, None)]  # None: not where stderr is no terminal


def test_without_tqdm_there_is_no_bar(monkeypatch, capfd):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "tqdm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    quantize_(model(), Int8Static([torch.randn(2, 40)]))
    assert capfd.readouterr() == ("", "")


def test_a_bar_needs_a_terminal(capfd):
    pytest.importorskip("tqdm")
    quantize_(model(), Int8Static([torch.randn(2, 40)]))
    assert capfd.readouterr() == ("", "")
