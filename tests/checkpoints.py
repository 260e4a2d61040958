"""What the tests of checkpoints share: a model, and what must come back of it or stay as it was."""

from __future__ import annotations

import pytest

import octavo

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

TENSORS, MANIFEST = "model.safetensors", "octavo.json"


class Model(nn.Module):
    """Float and int8 parameters, buffers in the state dict and beside it."""

    def __init__(self, k=40, n=24):
        super().__init__()
        self.embed = nn.Embedding(7, k)
        self.up = nn.Linear(k, n)
        self.down = nn.Linear(n, k, bias=False)
        self.norm = nn.BatchNorm1d(k)
        self.register_buffer("inverse", torch.arange(k) + 0.5, persistent=False)

    def forward(self, x):
        return self.norm(self.down(nn.functional.gelu(self.up(self.embed(x) * self.inverse))))


def quantized(**sizes):
    return octavo.quantize_(Model(**sizes).eval())


def bits(tensor):
    return tensor.detach().resolve_conj().clone().contiguous().reshape(-1).view(torch.uint8)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for name, value in a.items():
        assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape), name
        assert torch.equal(bits(value), bits(b[name])), name


def stored(directory):
    return safe.load_file(directory / TENSORS)


def everything(model):
    """What an error must not change: which objects a model is made of, and what tensors hold."""
    modules = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return modules, [(name, id(tensor), None if tensor.is_meta else bits(tensor)) for name, tensor in tensors]


def refused(match, model, directory, **options):
    modules, tensors = everything(model)
    with pytest.raises(ValueError, match=match):
        octavo.load(model, directory, **options)
    now, values = everything(model)
    assert now == modules
    assert [each[:2] for each in values] == [each[:2] for each in tensors]
    assert all(a[2] is b[2] or torch.equal(a[2], b[2]) for a, b in zip(values, tensors, strict=True))
