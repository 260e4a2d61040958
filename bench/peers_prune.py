"""torch and NumPy at pruning, as their users write it; whatever the library has for it is here too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from common import Contender, Parity
from machine import optional
from peers import Array, peer, quantize_rows, torch, torch_filling, torch_pair

pruning = optional("torch.nn.utils.prune")

TIES = 1e-5  # share of a mask that may differ where equal magnitudes met the cut
ORDER = 4  # units that may differ where their sums, in float32, change places with their neighbours'


def check_pruned(pruned: Any, w: Array, mask: Array) -> Parity:
    """Zero where the mask is False, unchanged elsewhere."""
    got = np.asarray(pruned)
    parity = check_mask(got != 0, mask, TIES)
    return parity if np.array_equal(got[got != 0], w[got != 0]) else Parity(False, "kept weights differ")


def check_mask(got: Any, mask: Array, share: float) -> Parity:
    wrong = np.count_nonzero((np.asarray(got) != 0) != mask) / mask.size
    if wrong > share:
        return Parity(False, f"{wrong:.1e} of the mask differs")
    return Parity(True, "exact" if not wrong else f"{wrong:.1e} off at ties")


def compiled_if(compiled: bool, name: str, build: Callable[..., Contender], *arguments: Any) -> Contender:
    if torch is not None and not compiled:
        return Contender(name, why_not="not with --quick")
    return peer(name, build, *arguments, needs=[torch])


# ---- an exact share of the weights


def exact_shares(ws: Sequence[Array], mask: Array, sparsity: float, compiled: bool) -> list[Contender]:
    k = round(sparsity * mask.size)
    more = (ws, mask, k)
    return [
        peer("torch.nn.utils.prune L1Unstructured", l1_unstructured, *more, needs=[torch, pruning]),
        peer("torch topk, then where", torch_selecting, *more, by_topk, needs=[torch]),
        peer("torch kthvalue, then where", torch_selecting, *more, by_kthvalue, needs=[torch]),
        compiled_if(compiled, "torch.compile of kthvalue, where", torch_selecting_compiled, *more),
        peer("NumPy partition, 1 thread", numpy_partition, *more, needs=[]),
    ]


def by_topk(w: Any, k: int) -> Any:
    magnitude = w.abs()
    return w.where(magnitude > magnitude.view(-1).topk(k, largest=False, sorted=False).values.max(), 0.0)


def by_kthvalue(w: Any, k: int) -> Any:
    magnitude = w.abs()
    return w.where(magnitude > magnitude.view(-1).kthvalue(k).values, 0.0)


def torch_selecting(
    name: str, ws: Sequence[Array], mask: Array, k: int, select: Callable[[Any, int], Any]
) -> Contender:
    tensors = [torch.from_numpy(w) for w in ws]

    def call(i: int) -> Any:
        return select(tensors[i % len(tensors)], k)

    return Contender(name, call, lambda: check_pruned(call(0), ws[0], mask))


def torch_selecting_compiled(name: str, ws: Sequence[Array], mask: Array, k: int) -> Contender:
    return torch_selecting(name, ws, mask, k, torch.compile(by_kthvalue, fullgraph=True, dynamic=False))


def l1_unstructured(name: str, ws: Sequence[Array], mask: Array, k: int) -> Contender:
    return torch_selecting(name, ws, mask, k, lambda w, k: pruning.L1Unstructured(k).prune(w))


def numpy_partition(name: str, ws: Sequence[Array], mask: Array, k: int) -> Contender:
    def call(i: int) -> Array:
        w = ws[i % len(ws)]
        magnitude = np.abs(w)
        cut = np.partition(magnitude.reshape(-1), k - 1)[k - 1]
        return np.where(magnitude > cut, w, np.float32(0))

    return Contender(name, call, lambda: check_pruned(call(0), ws[0], mask))


# ---- elementwise work on tensors that exist


def prune_at(w: Any, threshold: float, out: Any) -> None:
    out.copy_(w.where(w.abs() > threshold, 0.0))


def hardshrink(w: Any, threshold: float, out: Any) -> None:
    torch.hardshrink(w, threshold, out=out)


def thresholds(
    arguments: Callable[[int], tuple[Any, ...]], check: Callable[[], Parity], compiled: bool
) -> list[Contender]:
    name = "torch.hardshrink, out="
    fused = peer(name, torch_filling, hardshrink, arguments, check, needs=[torch])
    return [fused, *torch_pair(prune_at, arguments, check, compiled)]


def prune_quantize_rows(x: Any, threshold: float, data: Any, scale: Any, mask: Any) -> None:
    keep = x.abs() > threshold
    mask.copy_(keep)
    quantize_rows(x.where(keep, 0.0), data, scale)


# ---- patterns: masks into tensors that exist


def two_of_four_by_topk(w: Any, out: Any) -> None:
    out.zero_()
    out.view(-1, 4).scatter_(1, w.abs().view(-1, 4).topk(2, dim=1, sorted=False).indices, True)


def two_of_four_by_rank(w: Any, out: Any) -> None:
    magnitude = w.abs().view(-1, 4)
    larger = (magnitude.unsqueeze(-1) < magnitude.unsqueeze(-2)).sum(-1)
    out.view(-1, 4).copy_(larger < 2)


def two_of_four(
    arguments: Callable[[int], tuple[Any, ...]], check: Callable[[], Parity], compiled: bool
) -> list[Contender]:
    name = "torch eager, topk and scatter_"
    first = peer(name, torch_filling, two_of_four_by_topk, arguments, check, needs=[torch])
    return [first, *torch_pair(two_of_four_by_rank, arguments, check, compiled)]


def unit_mask(w: Any, r: int, c: int, k: int, out: Any) -> None:
    """The k units of r x c with the smallest sums go."""
    grid = (w.shape[0] // r, r, w.shape[1] // c, c)
    scores = w.abs().view(grid).sum((1, 3))
    keep = scores > scores.view(-1).kthvalue(k).values
    out.view(grid).copy_(keep[:, None, :, None])


def ln_structured(ws: Sequence[Array], mask: Array, sparsity: float, dim: int) -> Contender:
    """Its mask has the weight's dtype, and it has no out=."""
    name = "torch.nn.utils.prune LnStructured"
    return peer(name, torch_ln_structured, ws, mask, sparsity, dim, needs=[torch, pruning])


def torch_ln_structured(name: str, ws: Sequence[Array], mask: Array, sparsity: float, dim: int) -> Contender:
    tensors = [torch.from_numpy(w) for w in ws]
    ones, method = torch.ones_like(tensors[0]), pruning.LnStructured(sparsity, n=1, dim=dim)

    def call(i: int) -> Any:
        return method.compute_mask(tensors[i % len(tensors)], ones)

    return Contender(name, call, lambda: check_mask(call(0), mask, ORDER / mask.shape[dim]))


# ---- an exact share of many tensors together


def check_each(pruned: Sequence[Any], ws: Sequence[Array], masks: Sequence[Array]) -> Parity:
    """As check_pruned, of all together."""
    flat = [np.concatenate([np.asarray(a).reshape(-1) for a in arrays]) for arrays in (pruned, ws, masks)]
    return check_pruned(*flat)


def global_shares(sets: Sequence[Sequence[Array]], masks: Sequence[Array], k: int) -> list[Contender]:
    more = (sets, masks, k)
    return [
        global_unstructured("torch.nn.utils.prune global_unstructured", None, *more),
        peer("torch cat, kthvalue, where", torch_global, *more, needs=[torch]),
        peer("NumPy concatenate, partition, 1 thread", numpy_global, *more, needs=[]),
    ]


def global_unstructured(name: str, method: Any, *more: Any) -> Contender:
    """torch's own function, with its own method or with another's."""
    return peer(name, torch_global_unstructured, method, *more, needs=[torch, pruning])


def torch_global_unstructured(
    name: str, method: Any, sets: Sequence[Sequence[Array]], masks: Sequence[Array], k: int
) -> Contender:
    class Holder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, weight: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight)

    tensors = [[torch.from_numpy(w) for w in ws] for ws in sets]
    chosen = method or pruning.L1Unstructured

    def call(i: int) -> list[Any]:
        # new modules on the same weights: on the same ones it would go on from what is left
        modules = [Holder(w) for w in tensors[i % len(tensors)]]
        pruning.global_unstructured([(module, "weight") for module in modules], chosen, amount=k)
        return [module.weight for module in modules]

    return Contender(name, call, lambda: check_each(call(0), sets[0], masks), ours=method is not None)


def torch_global(name: str, sets: Sequence[Sequence[Array]], masks: Sequence[Array], k: int) -> Contender:
    tensors = [[torch.from_numpy(w) for w in ws] for ws in sets]

    def call(i: int) -> list[Any]:
        ws = tensors[i % len(tensors)]
        magnitudes = [w.abs() for w in ws]
        cut = torch.cat([m.view(-1) for m in magnitudes]).kthvalue(k).values
        return [w.where(m > cut, 0.0) for w, m in zip(ws, magnitudes, strict=True)]

    return Contender(name, call, lambda: check_each(call(0), sets[0], masks))


def numpy_global(name: str, sets: Sequence[Sequence[Array]], masks: Sequence[Array], k: int) -> Contender:
    def call(i: int) -> list[Array]:
        ws = sets[i % len(sets)]
        magnitudes = [np.abs(w) for w in ws]
        cut = np.partition(np.concatenate([m.reshape(-1) for m in magnitudes]), k - 1)[k - 1]
        return [np.where(m > cut, w, np.float32(0)) for w, m in zip(ws, magnitudes, strict=True)]

    return Contender(name, call, lambda: check_each(call(0), sets[0], masks))
