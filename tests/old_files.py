"""What octavo 0.1.0 wrote, and what it computed from it: tests/data/0.1.0 is never written again.

    python tests/old_files.py FOLDER

writes such a folder, for a later version: every class that can stand in a pickle, and every kind of file that
octavo reads, in small. `outputs.txt` has a line for each array that came out: where from, dtype, shape, bits.
"""

from __future__ import annotations

import pickle
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

import octavo

FOLDER = Path(__file__).parent / "data" / "0.1.0"


def values(*shape):
    """Floats that are the same everywhere: no random numbers, and exact in every dtype."""
    return (((np.arange(np.prod(shape)) * 37 + 11) % 251 - 125) / 64).astype(np.float32).reshape(shape)


def sparse(*shape):
    """The same with zeros: whole blocks of 4 x 16, and others."""
    rows, columns = np.indices(shape)
    return values(*shape) * ((rows // 4 + columns // 16) % 3 == 0) * (rows % 5 != columns % 3)


# ---- what is pickled ----


def arrays(like=np.asarray):
    """Packed and quantized arrays, of NumPy or of torch."""
    quantized = octavo.quantize(like(sparse(20, 50)))
    asymmetric = octavo.quantize(like(values(3, 8)), granularity="group", group_size=4, symmetric=False)
    found = {"Quantized": quantized, "Quantized asymmetric": asymmetric}
    for layout in ("dense", "bitmask", "block"):
        found[layout] = octavo.pack_weight(quantized.data, quantized.scale, layout=layout)
        found[f"{layout} without scale"] = octavo.pack_weight(quantized.data, layout=layout)
    found["conv"] = octavo.pack_conv_weight(like(values(6, 4, 3, 3)))
    found["conv of groups"] = octavo.pack_conv_weight(like(values(6, 2, 3, 2)), groups=3)
    found["depthwise conv"] = octavo.pack_conv_weight(like(values(5, 1, 3, 3)), groups=5)
    return found


def layers():
    """An int8 layer of each class, made from a float one of the same name."""
    from octavo import Int8Dynamic, Int8Static, Int8WeightOnly
    from octavo import nn as onn

    given = floats()
    static = Int8Static([values(1)], symmetric=True)
    kinds = {
        "linear": lambda f: onn.Int8Linear.from_float(f, activation="relu"),
        "asymmetric": lambda f: onn.Int8Linear.from_float(f, Int8Dynamic(symmetric=False)),
        "bf16": lambda f: onn.Int8Linear.from_float(f),
        "sparse": lambda f: onn.Int8Linear.from_float(f),
        "weight_only": lambda f: onn.Int8WeightOnlyLinear.from_float(f, activation="relu"),
        "groups": lambda f: onn.Int8WeightOnlyLinear.from_float(f, Int8WeightOnly(8)),
        "static": lambda f: onn.Int8StaticLinear.from_float(f, Int8Static([]), input_range=(-1.0, 3.0)),
        "static_symmetric": lambda f: onn.Int8StaticLinear.from_float(f, static, input_range=(-1.5, 1.0)),
        "conv": lambda f: onn.Int8Conv2d.from_float(f, activation="relu"),
        "depthwise": lambda f: onn.Int8Conv2d.from_float(f),
        "embedding": lambda f: onn.Int8Embedding.from_float(f),
        "bag": lambda f: onn.Int8EmbeddingBag.from_float(f),
        "attention": lambda f: onn.Int8MultiheadAttention.from_float(f),
        "attention_weight_only": lambda f: onn.Int8MultiheadAttention.from_float(f, Int8WeightOnly()),
    }
    found = {name: kinds[name](module.eval()) for name, module in given.items()}
    packed = octavo.pack_weight(found["sparse"].weight, layout="bitmask")
    found["sparse"]._stored = packed.buffer  # as for a weight so large that it pays
    for module in found.values():
        results(module)  # what a layer keeps of a call is no part of a file
    return found


def floats():
    import torch
    from torch import nn

    found = {
        "linear": nn.Linear(24, 12),
        "asymmetric": nn.Linear(24, 10, bias=False),
        "bf16": nn.Linear(24, 12, dtype=torch.bfloat16),
        "sparse": nn.Linear(48, 20),
        "weight_only": nn.Linear(24, 12),
        "groups": nn.Linear(24, 12),
        "static": nn.Linear(24, 12),
        "static_symmetric": nn.Linear(24, 12, bias=False),
        "conv": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        "depthwise": nn.Conv2d(4, 4, (3, 2), stride=2, padding="valid", groups=4),
        "embedding": nn.Embedding(9, 8, padding_idx=2),
        "bag": nn.EmbeddingBag(9, 8, mode="sum", include_last_offset=True),
        "attention": nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True),
        "attention_weight_only": nn.MultiheadAttention(16, 2, bias=False),
    }
    return {
        name: with_values(module, sparse if name == "sparse" else values) for name, module in found.items()
    }


def with_values(module, make=values):
    import torch

    for parameter in module.parameters():
        parameter.data.copy_(torch.from_numpy((make if parameter.dim() == 2 else values)(*parameter.shape)))
    return module


def training():
    """Layers that are being trained, and pruned by torch.nn.utils.prune with octavo's methods."""
    from torch import nn
    from torch.nn.utils import prune

    given = floats()
    found = {"qat": octavo.prepare_qat_(nn.ModuleList([given["linear"], given["conv"]]).eval())}
    methods = {
        octavo.nn.L1Unstructured: {"amount": 0.5},
        octavo.nn.ThresholdUnstructured: {"threshold": 0.5},
        octavo.nn.RatioUnstructured: {"ratio": 0.5},
        octavo.nn.L1SemiStructured: {"pattern": "2:4"},
        octavo.nn.L1Structured: {"amount": 0.5, "pattern": "row"},
    }
    for method, options in methods.items():
        module = with_values(nn.Linear(8, 4))
        method.apply(module, "weight", **options)
        found[method.__name__] = module
    twice = with_values(nn.Linear(8, 4))
    octavo.nn.l1_unstructured(twice, "weight", 0.3)
    prune.l1_unstructured(twice, "weight", 0.3)
    found["pruned twice"] = twice
    found["mask"] = octavo.nn.PruningMask(given["asymmetric"].weight.detach() > 0)
    return found


def configs():
    fusion = octavo.nn.Fusion("activation", ("0", "1"), "a note")
    return [octavo.Int8Dynamic(False), octavo.Int8WeightOnly(8), octavo.Int8Static([1], steps=2), fusion]


def masked():
    """A model with masks as parametrizations: its state dict can be saved, the whole of it cannot."""
    from torch import nn

    return octavo.prune_model_(nn.Sequential(floats()["linear"]), sparsity=0.5, keep_masks=True)


def exported():
    """Programs of torch.export; one of them returns an octavo.Quantized."""
    import torch
    from torch import nn

    class Quantize(nn.Module):
        def forward(self, x):
            return octavo.quantize(x, symmetric=False)

    given, batch = layers(), torch.export.Dim("batch", min=1, max=64)
    chain = nn.Sequential(given["asymmetric"], nn.ReLU(), octavo.nn.Int8WeightOnlyLinear(10, 4))
    found = {}
    for name, module in {"linear": chain, "quantize": Quantize()}.items():
        program = torch.export.export(module, (torch.ones(2, 24),), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # where the writer's files lay
        found[name] = program
    return found


# ---- what comes out ----


def results(thing):
    """What is computed from it, as a list of arrays. Float sums of torch's own are no part of it: they differ
    from machine to machine."""
    if isinstance(thing, octavo.Quantized):
        return [*(each for each in thing if each is not None), octavo.dequantize(*thing)]
    if isinstance(thing, octavo.PackedWeight):
        a = _like(values(3, thing.shape[1]), thing.buffer)
        parts = [each for each in thing.unpack() if each is not None]
        if thing.scale is None:
            return [*parts, octavo.int_mm(octavo.quantize(a).data, thing)]
        return [*parts, octavo.int8_linear(a, thing), octavo.weight_only_linear(a, thing)]
    if isinstance(thing, octavo.PackedConvWeight):
        image = _like(values(2, thing.shape[1] * thing.groups, 7, 6), thing.buffer)
        return [*thing.unpack(), octavo.int8_conv2d(image, thing)]
    return [each.detach() for each in _results_of_module(thing)]


def _like(array, other):
    if isinstance(other, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array)


def _results_of_module(module):
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    def x(*shape):
        return torch.from_numpy(values(*shape))

    if isinstance(module, octavo.nn.PruningMask):
        return [module(x(*module.mask.shape))]
    if type(module) is nn.Linear or parametrize.is_parametrized(module):
        module(x(2, module.in_features))  # torch.nn.utils.prune computes the weight anew
        return [module.weight]
    if isinstance(module, nn.Embedding):
        return [module.weight]
    if isinstance(module, octavo.nn.Int8Embedding):
        return [module(torch.tensor([[0, 8], [2, 3]]))]
    if isinstance(module, octavo.nn.Int8EmbeddingBag):
        return [module(torch.tensor([1, 8, 5, 5]), torch.tensor([0, 3, 3, 4]))]
    if isinstance(module, octavo.nn.Int8Conv2d | nn.Conv2d):
        return [module(x(2, module.in_channels, 7, 6))]
    if hasattr(module, "in_features"):
        return [module(x(3, module.in_features))]
    if isinstance(module, torch.export.ExportedProgram):
        found = module.module()(x(5, 24))
        return results(found) if isinstance(found, octavo.Quantized) else [found]
    return [result for child in module.children() for result in _results_of_module(child)]


# ---- files ----

COMPRESSED = ("bf16", "sparse", "embedding")  # what the compressed-tensors form has


def write(folder):
    import torch
    from safetensors.torch import save_file
    from torch import nn

    folder.mkdir(parents=True)
    (folder / "arrays.pkl").write_bytes(pickle.dumps(arrays(), 4))
    tensors, modules, state = arrays(torch.from_numpy), layers(), nn.ModuleDict(layers()).state_dict()
    (folder / "configs.pkl").write_bytes(pickle.dumps(configs(), 4))
    torch.save(tensors, folder / "tensors.pt")
    torch.save(modules, folder / "layers.pt")
    torch.save(training(), folder / "training.pt")
    torch.save(state, folder / "state.pt")
    torch.save(masked().state_dict(), folder / "masked.pt")
    save_file(state, folder / "state.safetensors")
    octavo.save(nn.ModuleDict(modules), folder / "saved")
    some = nn.ModuleDict({name: modules[name] for name in COMPRESSED})
    octavo.export_compressed_tensors(some, folder / "compressed")
    for name, program in exported().items():
        torch.export.save(program, folder / f"{name}.pt2")
    (folder / "outputs.txt").write_text("".join(outputs({**read_arrays(folder), **read_torch(folder)})))


def outputs(things):
    """The lines of outputs.txt."""
    for name, thing in things.items():
        for i, result in enumerate(results(thing)):
            array = np.ascontiguousarray(result)
            yield f"{name} {i}: {array.dtype} {array.shape} {sha256(array.tobytes()).hexdigest()[:16]}\n"


def read_arrays(folder):
    """Everything that needs no torch, by the names in outputs.txt."""
    return _named("arrays.pkl", pickle.loads((folder / "arrays.pkl").read_bytes()))


def read_torch(folder):
    import torch
    from safetensors.torch import load_file
    from torch import nn

    def some():
        return nn.ModuleDict({name: floats()[name] for name in COMPRESSED})

    found = {}
    for name in ("tensors.pt", "layers.pt", "training.pt"):
        found |= _named(name, torch.load(folder / name, weights_only=False))
    state = torch.load(folder / "state.pt")
    return found | {
        "state.pt": _filled(nn.ModuleDict(layers()), state),
        "state.safetensors": _filled(nn.ModuleDict(layers()), load_file(folder / "state.safetensors")),
        "masked.pt": _filled(masked(), torch.load(folder / "masked.pt")),
        "saved": octavo.load(lambda: nn.ModuleDict(floats()), folder / "saved"),
        "compressed": octavo.load_compressed_tensors(some, folder / "compressed"),
        "linear.pt2": torch.export.load(folder / "linear.pt2"),
        "quantize.pt2": torch.export.load(folder / "quantize.pt2"),
    }


def _named(file, things):
    return {f"{file}/{name}": thing for name, thing in things.items()}


def _filled(model, state):
    """A model that held something else before."""
    import torch

    model.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    model.load_state_dict(state)
    return model


if __name__ == "__main__":
    write(Path(sys.argv[1]))
