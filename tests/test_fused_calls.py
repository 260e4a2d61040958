"""What calls of a fused model return, and which of them run the model as it was."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import enum
import sys
import threading
import types
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
F, nn = torch.nn.functional, torch.nn

import octavo  # noqa: E402
import octavo.nn  # noqa: E402
from fusing import count_graph_calls, int8  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.export's own


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Model(nn.Module):
    """y = gelu(linear(x)), and f(self, y)"""

    def __init__(self, f, **attributes):
        super().__init__()
        self.linear, self.dropout, self.f = nn.Linear(32, 16), nn.Dropout(0.5), f
        vars(self).update(attributes)

    def forward(self, x):
        return self.f(self, F.gelu(self.dropout(self.linear(x))))


# ---- results ----


class Slotted:
    __slots__ = ("__private", "empty", "value")

    def __init__(self, value):
        self.value = self.__private = value


class Plain:
    kind = "plain"

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Cache(Plain):
    """As a cache of transformers: it grows by what it is given."""

    def update(self, y):
        self.layers.append(y)
        return self


class Pair(NamedTuple):
    a: Any
    b: Any


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    y: Any
    names: dict


class Output(collections.OrderedDict):
    """As a ModelOutput: its items are attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    __setattr__ = __setitem__


def cyclic(y):
    parent = Plain(y=y, children=[])
    parent.children.append(Plain(parent=parent))
    return parent


RESULTS = {
    "a tensor": lambda y: y,
    "nothing": lambda y: (y, None, (), [], {}),
    "containers": lambda y: [{"a": (y, 1), "b": [y.sum()]}, (True, "c", 1.5, 2j, b"d"), {1, 2}],
    "named tuple": lambda y: Pair(y, Pair(1, y * 2)),
    "return type": lambda y: y.max(-1),
    "sizes": lambda y: (y.shape, y.shape[0], y.numel(), y),
    "dataclass": lambda y: Frozen(y, {"rows": y.shape[0]}),
    "slots": lambda y: Slotted(y),
    "cache": lambda y: Cache(layers=[y], dtype=y.dtype, device=y.device, size=y.shape[0]),
    "ordered": lambda y: Output(hidden=y, more=(y + 1,)),
    "default": lambda y: collections.defaultdict(list, a=[y]),
    "names": lambda y: (y, Color.RED, torch.float32, Plain, len, types.SimpleNamespace(y=y)),
    "cycle": cyclic,
}


def parts(value, seen):
    """What a result is made of, in one order; what has been seen is its number."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, torch.Tensor):
        seen[id(value)] = f"tensor {len(seen)}"
        return [value]
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum | type):
        return value
    if isinstance(value, torch.dtype | torch.device | set | types.BuiltinFunctionType):
        return value
    if not (isinstance(value, tuple) and not value):
        seen[id(value)] = f"seen {len(seen)}"
    found = [type(value)]
    if isinstance(value, dict):
        found += [(key, parts(each, seen)) for key, each in dict.items(value)]
    elif isinstance(value, list | tuple):
        found += [parts(each, seen) for each in value]
    names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
    names = [name.replace("__private", "_Slotted__private") for name in names]
    return [*found, *((name, parts(getattr(value, name), seen)) for name in names if hasattr(value, name))]


def assert_alike(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_alike(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_made_anew_in_every_call(name):
    model = int8(Model(lambda _, y: RESULTS[name](y)))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls = count_graph_calls(fused)
    results = []
    for rows in (4, 7):
        x = torch.randn(rows, 32)
        found = fused(x)
        assert_alike(parts(found, {}), parts(model(x), {}))
        results.append(found)
    assert calls == [2]
    if isinstance(results[0], Cache):
        results[0].update(1)
        assert [len(each.layers) for each in (*results, fused(x))] == [2, 1, 1]


def test_what_is_one_object_stays_one():
    shared = {"options": [1]}
    model = Model(lambda m, y: ([y, Plain(y=y)], m.shared, m.weight), shared=shared)
    model.weight = nn.Parameter(torch.ones(3))
    fused = octavo.fuse_(int8(model), torch.randn(4, 32))
    calls = count_graph_calls(fused)
    (y, plain), options, weight = fused(torch.randn(2, 32))
    assert plain.y is y
    assert options is shared
    assert weight is model.weight
    assert calls == [1]
    model = int8(nn.Sequential(nn.Linear(32, 16), nn.ReLU()))
    echo = octavo.fuse_(int8(Echo()), {"x": torch.randn(4, 32), "tag": "a"})
    x = torch.randn(3, 32)
    result = echo(x=x, tag="a")
    assert result["x"] is x
    assert result["tag"] == "a"


class Echo(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 8)

    def forward(self, x, tag):
        return {"x": x, "tag": tag, "y": F.relu(self.linear(x))}


NOT_RESULTS = {
    "a lock": lambda m, y: Plain(y=y, lock=threading.Lock()),
    "a file": lambda m, y: [y, {"file": sys.stderr}],
    "a module": lambda m, y: (y, nn.Identity()),
    "its own": lambda m, y: (y, m.linear),
    "a generator": lambda m, y: (each for each in [y]),
    "a closure": lambda m, y: Plain(f=lambda: y),
    "a key": lambda m, y: {Plain(): y},
}


@pytest.mark.parametrize("name", NOT_RESULTS)
def test_results_that_cannot_be_made_anew(name):
    model = int8(Model(NOT_RESULTS[name]))
    with pytest.raises(ValueError, match=r"model: expected a result of tensors, .* got a .* result"):
        octavo.fuse_(model, torch.randn(4, 32))
    assert "forward" not in vars(model)


# ---- what Python reads ----


class Config:
    def __init__(self):
        self.scale, self.layers, self.inner = 1.0, [1, 2], Plain(deep=(1,))


def scaled(m, y):
    y = y * m.scale * m.config.scale * m.factors["a"] * len(m.config.layers) * m.config.inner.deep[0]
    if m.on and "b" in m.names and getattr(m, "extra", None) is None:
        y = m.helper(y) + 1
    return m.inner(y) if m.inner is not None else y


class Scaled(Model):
    bonus = 0

    def __init__(self):
        super().__init__(
            scaled, scale=1.0, on=True, names=["b"], factors={"a": 1}, config=Config(), inner=None
        )
        self.block = nn.Sequential(nn.ReLU())
        self.register_parameter("gain", None)

    def helper(self, y):
        y = self.block(y) + self.bonus
        return y if self.gain is None else y * self.gain


CHANGES = {
    "a number": lambda m: setattr(m, "scale", 2.0),
    "a flag": lambda m: setattr(m, "on", False),
    "a list": lambda m: m.names.clear(),
    "another list": lambda m: setattr(m, "names", []),
    "a dictionary": lambda m: m.factors.update(a=3),
    "a configuration": lambda m: setattr(m.config, "scale", 2.0),
    "a list of it": lambda m: m.config.layers.append(3),
    "an object in it": lambda m: setattr(m.config.inner, "deep", (5,)),
    "another configuration": lambda m: setattr(m, "config", Plain(**{**vars(Config()), "scale": 3})),
    "a function": lambda m: setattr(m, "f", lambda _, y: y * 3),
    "what was not there": lambda m: setattr(m, "extra", 1),
    "a method": lambda m: setattr(m, "helper", lambda y: y * 7),
    "over the class's": lambda m: setattr(m, "bonus", 3),
    "the class's": lambda m: setattr(Scaled, "bonus", 3),
    "a child": lambda m: m.block.__setitem__(0, nn.Tanh()),
    "another child": lambda m: m.block.append(nn.Tanh()),
    "a new child": lambda m: m.add_module("extra", nn.Tanh()),
    "a child's forward": lambda m: setattr(m.block[0], "forward", torch.tanh),
    "a child's class": lambda m: setattr(m.block[0], "__class__", nn.Tanh),
    "a parameter": lambda m: setattr(m, "gain", nn.Parameter(torch.full((16,), 2.0))),
    "a mode": lambda m: m.dropout.train(),
    "a hook": lambda m: m.block[0].register_forward_hook(lambda module, args, y: y * 2),
    "a pre-hook": lambda m: m.linear.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_calls_where_python_goes_another_way_run_the_model_as_it_was(name, monkeypatch):
    monkeypatch.setattr(Scaled, "bonus", 0)
    model = int8(Scaled())
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls, x = count_graph_calls(fused), torch.randn(3, 32)
    before = fused(x)
    torch.testing.assert_close(before, model(x), rtol=1e-4, atol=1e-4)
    for each in (fused, model):
        CHANGES[name](each)
    torch.manual_seed(1)
    found = fused(x)
    torch.manual_seed(1)
    assert torch.equal(found, model(x))
    assert not torch.equal(found, before)
    assert calls == [1]


def test_what_does_not_matter_and_what_comes_back():
    fused = octavo.fuse_(int8(Scaled()), torch.randn(4, 32))
    calls, x = count_graph_calls(fused), torch.randn(3, 32)
    fused.unread, fused.scale, fused.names, fused.config.layers = 1, float("1"), ["b"], [3, 4]
    fused.config.layers = [1, 2]
    fused.linear.bias.add_(0)
    fused(x)
    assert calls == [1]
    fused.scale = 2.0
    handle = fused.block.register_forward_hook(lambda *_: None)
    fused(x)
    fused.scale = 1.0
    fused(x)
    assert calls == [1]
    handle.remove()
    fused(x)
    assert calls == [2]
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        fused(x)
    finally:
        handle.remove()
    assert calls == [2]
    other = copy.deepcopy(fused)
    calls = count_graph_calls(other)
    other(x)
    assert calls == [1]
    fused.scale = 2.0
    other(x)
    assert calls == [2]
    other.block[0] = nn.Tanh()
    other(x)
    assert calls == [2]


def test_hooks_that_are_there_are_a_reason_not_to_fuse():
    model, seen = int8(Scaled()), []
    handle = model.block.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(ValueError, match=r"model: expected no hooks on its modules, .* 'block'"):
        octavo.fuse_(model, torch.randn(4, 32))
    assert seen == []
    handle.remove()
    model.register_forward_hook(lambda *_: seen.append(1))  # outside of the graph
    octavo.fuse_(model, torch.randn(4, 32))(torch.randn(2, 32))
    assert seen == [1]


def test_nothing_of_the_recording_is_left():
    for f in (lambda _, y: y, lambda m, y: m.nothing):
        model = int8(Model(f))
        before = dict(vars(nn.Module))
        with contextlib.suppress(ValueError):
            octavo.fuse_(model, torch.randn(4, 32))
        assert vars(nn.Module) == before


# ---- what a forward writes ----


def counting(m, y):
    m.calls += 1
    m.linear.last = y
    m.seen = [y, {"rows": y.shape[0]}]
    return y * 2


def test_attributes_that_the_forward_sets():
    model = int8(Model(counting, calls=5))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    assert fused.calls == 5
    assert not hasattr(fused.linear, "last")
    calls = count_graph_calls(fused)
    for rows in (3, 6):
        x = torch.randn(rows, 32)
        y, _ = fused(x), model(x)
        assert fused.calls == model.calls
        assert type(fused.calls) is int
        assert fused.linear.last is fused.seen[0]
        assert fused.seen[1] == {"rows": rows}
        torch.testing.assert_close(fused.linear.last * 2, y)
    assert calls == [2]
    fused.calls = 100
    fused(x)
    assert (fused.calls, calls) == (101, [3])


def recurrent(m, y):
    m.state = y + m.state
    m.total = m.total + y.sum()
    return m.state


def test_tensors_that_the_forward_reads_and_sets():
    model = Model(recurrent, state=torch.zeros(4, 16))
    model.register_buffer("total", torch.zeros(()))
    model = int8(model)
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls = count_graph_calls(fused)
    for _ in range(3):
        x = torch.randn(4, 32)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused.total, model.total, rtol=1e-4, atol=1e-4)
    assert fused._buffers["total"] is fused.total
    assert calls == [3]


def warming_up(m, y):
    m.calls += 1
    return y * 2 if m.calls > 3 else y


def test_a_count_that_the_forward_asks():
    model = int8(Model(warming_up, calls=0))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls, x = count_graph_calls(fused), torch.randn(4, 32)
    for _ in range(6):
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert fused.calls == model.calls == 6
    assert calls == [3]


def cached(m, y):
    if m.table is None or m.table.shape[0] < y.shape[0]:
        m.table = torch.arange(2.0 * y.shape[0])[:, None]
    return y + m.table[: y.shape[0]]


def test_a_cache_that_the_first_call_fills():
    model = int8(Model(cached, table=None))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls = count_graph_calls(fused)
    for rows in (3, 5, 30):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert calls == [2]
    assert not hasattr(fused.table, "fake_mode")


def toggled(m):
    m.on = not m.on
    return 1 + m.on


UNSETTLED = {
    "log": lambda m, y: m.log.append(y) or y,
    "stats": lambda m, y: m.stats.update(y) or y,
    "on": lambda m, y: toggled(m) * y,
}


@pytest.mark.parametrize("name", UNSETTLED)
def test_a_forward_that_changes_what_no_graph_can(name):
    model = int8(Model(UNSETTLED[name], log=[], stats=Cache(layers=[]), on=True))
    with pytest.raises(ValueError, match=f"model: expected a forward that leaves alone .* changes {name}"):
        octavo.fuse_(model, torch.randn(4, 32))
    assert (model.log, model.stats.layers, model.on) == ([], [], True)


# ---- inputs ----


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(16, 16), {4: 2.0, 5: 3.0}

    def forward(self, x, y, by_size=False):
        x = F.gelu(self.linear(x)) * (self.table[x.shape[0]] if by_size else 1)
        return x + y * (2 if x is y else 1)


def test_one_tensor_in_two_places():
    model = int8(Three())
    one, other = torch.randn(2, 4, 16)
    for example in ((one, one), (one, other)):
        fused = octavo.fuse_(copy.deepcopy(model), example)
        calls = count_graph_calls(fused)
        for args in ((one, one), (one, other), (other, one)):
            torch.testing.assert_close(fused(*args), model(*args), rtol=1e-4, atol=1e-4)
        assert calls == [1 if example[0] is example[1] else 2]


def test_sizes_that_cannot_stay_open():
    model = int8(Three())
    fused = octavo.fuse_(copy.deepcopy(model), (*torch.randn(2, 4, 16), True))
    assert [each.kind for each in octavo.nn.fusions(fused)] == ["activation", "sizes"]
    calls = count_graph_calls(fused)
    for rows in (4, 5, 4):
        args = (*torch.randn(2, rows, 16), True)
        torch.testing.assert_close(fused(*args), model(*args), rtol=1e-4, atol=1e-4)
    assert calls == [2]


def test_equal_sizes_of_the_example_need_not_be_equal():
    fused = octavo.fuse_(int8(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), torch.randn(3, 3, 8))
    calls = count_graph_calls(fused)
    fused(torch.randn(2, 5, 8))
    assert calls == [1]


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, batch):
        batch["y"] = F.relu(self.linear(batch["x"]))
        return batch


def test_arguments_that_cannot_be_a_graphs():
    model = int8(Changing())
    with pytest.raises(ValueError, match="model: expected a forward that leaves its arguments alone"):
        octavo.fuse_(model, ({"x": torch.randn(4, 16)},))
    with pytest.raises(ValueError, match=r"example: expected tensors, numbers, strings .*, got Plain"):
        octavo.fuse_(model, ({"x": Plain()},))


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model = int8(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU()))
        octavo.fuse_(model, torch.randn(4, 16))
        calls = count_graph_calls(model)
        model(torch.randn(2, 16))
    assert calls == [1]
    assert model[1].weight.requires_grad


@pytest.mark.parametrize("name", ["captured", "digits"])
def test_code_that_computes_something_else_while_it_is_captured(name):
    f = {
        "captured": lambda m, y: y * 2 if torch.compiler.is_compiling() else y,
        "digits": lambda m, y: y * len(str(y.shape[0])),
    }[name]
    model = int8(Model(f))
    with pytest.raises(
        ValueError, match="model: expected a forward that computes the same while it is captured"
    ):
        octavo.fuse_(model, torch.randn(4, 32))
    model = int8(Model(lambda m, y: F.dropout(y, 0.5, training=True)))  # random, but the same
    octavo.fuse_(model, torch.randn(4, 32))


def vmapped(m, y):
    return torch.vmap(lambda row: torch.where(row > row.mean(), row, 0))(y)


@pytest.mark.skipif(torch.__version__ < (2, 9), reason="torch.export of torch 2.8 does not take this vmap")
def test_vmap_in_a_forward():
    model = int8(Model(vmapped))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls, x = count_graph_calls(fused), torch.randn(7, 32)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert calls == [1]


# ---- weights that are read ----

READS = {
    "linear": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "bias": lambda layer, x: F.linear(x, layer.weight, torch.cat([layer.bias[:8], layer.bias[8:]])),
    "no bias": lambda layer, x: F.linear(x, layer.weight),
    "t": lambda layer, x: x @ layer.weight.t() + layer.bias,
    "T": lambda layer, x: torch.matmul(x, layer.weight.T),
    "mT": lambda layer, x: x @ layer.weight.mT,
    "transpose": lambda layer, x: x @ layer.weight.transpose(-1, -2),
    "permute": lambda layer, x: x @ layer.weight.permute(1, 0),
    "mm": lambda layer, x: torch.mm(x, layer.weight.t()),
}


class Reading(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f, self.up, self.down = f, nn.Linear(32, 16), nn.Linear(16, 8)

    def forward(self, x):
        return F.relu(self.down(self.f(self.up, x.to(self.up.weight.dtype))))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", READS)
def test_products_with_a_weight_that_is_read_are_the_layers(name, symmetric):
    model = int8(Reading(READS[name]), symmetric=symmetric)
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    names = [node.name for node in fused.forward._run.__self__.graph.nodes]
    assert not [each for each in names if "dequantize" in each or "unpack" in each]
    calls, x = count_graph_calls(fused), torch.randn(3, 32)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    assert calls == [1]


def test_weights_that_are_read_for_more_keep_their_values():
    for f in (
        lambda layer, x: layer(x) * layer.weight.abs().sum(),
        lambda layer, x: x[:, :16] @ layer.weight,
    ):
        model = int8(Reading(lambda layer, x, f=f: f(layer, x)[:, :16]))
        fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
        calls, x = count_graph_calls(fused), torch.randn(3, 32)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-2, atol=1e-2)
        assert calls == [1]


# ---- adapters ----


class Lora(nn.Module):
    """As PEFT's: what it does is in plain attributes, behind properties."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self._disabled, self._active = base, False, ["a"]
        self.scaling = {"a": 2.0, "b": 3.0}
        self.down, self.up = (
            nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name in "ab"})
            for shape in ((32, 4), (4, 32))
        )

    @property
    def active(self):
        return self._active

    def forward(self, x):
        y = self.base_layer(x)
        for name in () if self._disabled else self.active:
            y = y + self.up[name](self.down[name](x)) * self.scaling[name]
        return y


ADAPTED = {
    "off": lambda lora: setattr(lora, "_disabled", True),
    "another": lambda lora: setattr(lora, "_active", ["b"]),
    "one more": lambda lora: lora._active.append("b"),
    "scaled": lambda lora: lora.scaling.update(a=0.5),
    "merged": lambda lora: setattr(lora, "_active", []),
    "replaced": lambda lora: lora.up.update({"a": nn.Linear(4, 32, bias=False)}),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_are_switched(name):
    model = int8(nn.Sequential(Lora(nn.Linear(32, 32)), nn.GELU(), nn.Linear(32, 32), nn.ReLU()))
    fused = octavo.fuse_(copy.deepcopy(model), torch.randn(4, 32))
    calls, x = count_graph_calls(fused), torch.randn(3, 32)
    before = fused(x)
    for each in (fused, model):
        torch.manual_seed(1)
        ADAPTED[name](each[0])
    assert torch.equal(fused(x), model(x))
    assert not torch.equal(fused(x), before)
    assert calls == [1]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what peft asks of transformers
def test_peft():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora).eval()
    octavo.quantize_(model, filter_fn=lambda module, fqn: "lora_" not in fqn)
    call = {"input_ids": torch.randint(3, 60, (2, 9))}
    with model.disable_adapter():
        base = model(**call).logits
    octavo.fuse_(model.base_model.model, call)
    calls = count_graph_calls(model.base_model.model)
    model(**call)
    assert calls == [1]
    with model.disable_adapter():
        assert torch.equal(model(**call).logits, base)
    assert calls == [1]
    model(**call)
    assert calls == [2]
