"""Every CUDA kernel on small odd shapes, for compute-sanitizer, which sees what is read or written where it
must not be. Whether the results are right is tests/test_cuda.py's to say.

    OCTAVO_CUDA_UNPROVEN=1 compute-sanitizer --tool memcheck python tests/cuda/sanitize.py
"""

from __future__ import annotations

import itertools

import torch

import octavo
from octavo.runtime import backends

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Exactly as large as it has to be: torch's allocator would hide what is read behind it."""
    return torch.randn(*shape, device="cuda").to(dtype)


def quantization() -> None:
    for dtype, (rows, cols) in itertools.product(FLOATS, ((3, 1), (5, 77), (2, 1000), (1, 9001))):
        x = floats(rows, cols, dtype=dtype)
        for how in (
            {},
            {"symmetric": False},
            {"granularity": "tensor"},
            {"granularity": "tensor", "symmetric": False},
            {"granularity": "group", "group_size": cols},
            {"rounding": "stochastic", "seed": 1},
            {"nonfinite": "raise"},
        ):
            found = octavo.quantize(x, **how)
            octavo.dequantize(*found, dtype=dtype)
        octavo.quantize(x.t())
        octavo.quantize(x, scale=torch.ones(rows, device="cuda"))


def norms() -> None:
    for dtype, (rows, cols) in itertools.product(FLOATS, ((3, 1), (5, 77), (2, 4099))):
        x, weight = floats(rows, cols, dtype=dtype), floats(cols, dtype=dtype)
        for norm in (octavo.rms_norm_quantize, octavo.layer_norm_quantize):
            norm(x)
            norm(x, weight, residual=x)


def products() -> None:
    for m, (n, k) in itertools.product((1, 3, 16, 17, 33, 70), ((1, 1), (37, 129), (130, 64), (9, 1030))):
        x, weight, bias = floats(m, k), octavo.pack_weight(floats(n, k)), floats(n)
        for activation in ACTIVATIONS:
            octavo.int8_linear(x, weight, bias, activation=activation, out_dtype="bfloat16")
        octavo.int8_linear(x, [weight, weight])
        a, scale, zero_point = octavo.quantize(x, symmetric=False)
        octavo.scaled_int_mm(a, scale, weight, a_zero_point=zero_point)
        octavo.int_mm(a, weight)
        octavo.int_mm(a.view(torch.uint8), weight.unpack()[0].t())


def pruning() -> None:
    for dtype in FLOATS:
        w = floats(12, 200, dtype=dtype)
        for pattern in ("unstructured", "row", "column", "block4x8"):
            for how in ({"sparsity": 0.5}, {"ratio": 0.5}, {"threshold": 0.5}):
                mask = octavo.prune_mask(w, pattern=pattern, **how)
                octavo.prune(w, pattern=pattern, **how)
                octavo.prune_quantize(w, pattern=pattern, **how)
        for pattern in ("2:4", "1:5"):
            octavo.prune_(w.clone(), pattern=pattern)
        octavo.prune_mask([w, w[:5], w[:0]], sparsity=0.3)
        octavo.magnitude_threshold([w, w], 0.7)
        octavo.unpack_mask(octavo.pack_mask(mask[:, :77]), (12, 77))
    octavo.prune_mask(floats(300_001), sparsity=0.5)


def main() -> None:
    why = backends.why_not_cuda(torch.cuda.current_device(), tuple(backends.cuda()[0].kernels()))
    if why:
        raise SystemExit(why)
    for work in (quantization, norms, products, pruning):
        work()
        torch.cuda.synchronize()
        print(f"{work.__name__}: done", flush=True)


if __name__ == "__main__":
    main()
