"""torch.compile and torch.export: one graph for every function and model, whatever the batch."""

from __future__ import annotations

import io

import pytest

import octavo

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import octavo.torch_ops  # noqa: E402

COLS = 16
WEIGHT = torch.randn(5, COLS, generator=torch.Generator().manual_seed(0))
PACKED = octavo.pack_weight(WEIGHT)
BIAS = WEIGHT[:, 0].contiguous()


def rows(batch):
    return torch.randn(batch, COLS, generator=torch.Generator().manual_seed(batch))


def pruned_in_place(x):
    x = x.clone()
    return octavo.prune_(x, sparsity=0.5), x


def scaled(x):
    data, scale, zero_point = octavo.quantize(x, symmetric=False)
    return octavo.scaled_int_mm(
        data, scale, PACKED, BIAS, a_zero_point=zero_point, activation="relu", out_dtype="bfloat16"
    )


OF_X = {
    "quantize": octavo.quantize,
    "quantize into": lambda x: octavo.quantize(
        x, out=(x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0]))
    ),
    "quantize, data into": lambda x: octavo.quantize(x, out=x.new_empty(x.shape, dtype=torch.int8)),
    "quantize in groups": lambda x: octavo.quantize(
        x, granularity="group", group_size=8, symmetric=False, rounding="stochastic", seed=2**64 - 1
    ),
    "dequantize": lambda x: octavo.dequantize(*octavo.quantize(x)),
    "fake_quantize": lambda x: torch.ops.octavo.fake_quantize(x),
    "pack_weight": lambda x: octavo.pack_weight(x).unpack(),
    "prune_mask": lambda x: octavo.prune_mask(x, pattern="2:4"),
    "prune": lambda x: octavo.prune(x, pattern="row", threshold=0.5),
    "prune_": pruned_in_place,
    "prune_ as one op": lambda x: (copy := x.clone(), torch.ops.octavo.prune_(copy, sparsity=0.5)),
    "prune_quantize": lambda x: octavo.prune_quantize(x, sparsity=0.5),
    "magnitude_threshold": lambda x: torch.ops.octavo.magnitude_threshold([x], 0.5),
    "masks as bits": lambda x: octavo.unpack_mask(octavo.pack_mask(x > 0), x.shape),
}
FUNCTIONS = {
    **OF_X,
    "int_mm": lambda x: octavo.int_mm(x.to(torch.int8), PACKED),
    "int_mm plain": lambda x: octavo.int_mm(x.to(torch.int8), WEIGHT.to(torch.int8).t()),
    "int8_linear": lambda x: octavo.int8_linear(x, PACKED, BIAS, activation="gelu"),
    "int8_linear into": lambda x: octavo.int8_linear(x, PACKED, out=x.new_empty(x.shape[0], 5)),
    "int8_linear of a quantized weight": lambda x: octavo.int8_linear(x, octavo.quantize(WEIGHT)),
    "int8_linear of several": lambda x: octavo.int8_linear(x, [PACKED, PACKED], [BIAS, None]),
    "scaled_int_mm": scaled,
    "rms_norm_quantize": lambda x: octavo.rms_norm_quantize(x, WEIGHT[0]),
    "layer_norm_quantize": lambda x: octavo.layer_norm_quantize(x, WEIGHT[0], WEIGHT[1], residual=x),
    "prune_mask of several": lambda x: octavo.prune_mask([x, WEIGHT], sparsity=0.3),
    "prune several": lambda x: octavo.prune([x, WEIGHT], ratio=0.1),
}


def model():
    torch.manual_seed(0)
    layers = [nn.Linear(COLS, 24), nn.ReLU(), nn.Linear(24, COLS, bias=False)]
    return octavo.quantize_(nn.Sequential(*layers).eval())


def assert_equal(actual, expected):
    actual, expected = torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected)
    for a, e in zip(actual, expected, strict=True):
        if e is None:
            assert a is None
        else:
            assert a.dtype == e.dtype
            assert torch.equal(a, e)


def compiles_once(run, backend):
    """Equal results for many batches from one compilation, and another for 1, a constant to torch."""
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 1):
        assert_equal(compiled(rows(batch)), run(rows(batch)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (*range(1, 10), 40):
            assert_equal(compiled(rows(batch)), run(rows(batch)))


@pytest.fixture(autouse=True)
def _compile_anew():
    torch.compiler.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_once_for_all_batches(name):
    compiles_once(FUNCTIONS[name], "eager")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_models_compile_once_for_all_batches(backend):
    with torch.no_grad():
        compiles_once(model(), backend)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_inductor_compiles_once_for_all_batches():
    quantized = model()
    with torch.no_grad():
        compiles_once(lambda x: quantized(octavo.prune(x, sparsity=0.5)), "inductor")


class Everything(nn.Module):
    """A model, and functions, on one input."""

    def __init__(self, functions):
        super().__init__()
        self.model, self.functions = model(), list(functions)

    def forward(self, x):
        return self.model(x), [run(x) for run in self.functions]


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_travel_and_take_any_batch(strict):
    # strict export of torch 2.8 refuses tensors that are not the module's
    everything = Everything((OF_X if strict else FUNCTIONS).values())
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(everything, (rows(4),), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (2, 4, 7, 64):
        assert_equal(loaded(rows(batch)), everything(rows(batch)))
