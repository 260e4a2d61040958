"""Pruning against torch and NumPy: C7 an exact half, P1 other shares, C8 prune and quantize; P2 a threshold,
P3 patterns, P4 many tensors as one. Sets of buffers are used in turn, together more than the last-level cache
holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import peers
import peers_prune
from buffers import STEPS, Array, inputs, ours, outputs
from cli import main
from common import Case, Contender, Parity, check_all, check_equal, check_steps
from machine import optional, rotation
from plot import over_sparsity

octavo = optional("octavo")
reference = optional("octavo.reference")
octavo_nn = optional("octavo.nn")  # None without torch

THRESHOLD = 0.5  # of a standard normal weight: prunes 38 %
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def share_case(rows: int, cols: int, sparsity: float, compiled: bool) -> Case:
    """GB/s counts one read of the tensor: 25 % of the read bandwidth is the time of four reads. prune_ has no
    row: a weight that it has pruned is another one."""
    moved = rows * cols * 4
    label = f"exact {sparsity:.0%} of {rows}x{cols} float32: mask and pruned copy"

    def contenders() -> list[Contender]:
        ws = inputs(rows, cols, rotation(moved))
        given = [peers.given(w) for w in ws]
        outs = outputs(ws, (np.float32, True), (np.bool_, True))
        mask = reference.prune_masks([ws[0]], sparsity=sparsity)[0]
        expected, count = reference.apply_mask(ws[0], mask), len(ws)

        def prune(i: int) -> Any:
            return octavo.prune(given[i % count], sparsity=sparsity, out=outs[i % count][0])

        def prune_fresh(i: int) -> Any:
            return octavo.prune(given[i % count], sparsity=sparsity)

        def mask_only(i: int) -> Any:
            return octavo.prune_mask(given[i % count], sparsity=sparsity, out=outs[i % count][1])

        return [
            ours("octavo prune, out=", prune, lambda: check_equal(outs[0][0], expected)),
            Contender("octavo prune", prune_fresh, lambda: check_equal(prune_fresh(0), expected), ours=True),
            ours("octavo prune_mask, out=: only the mask", mask_only, lambda: check_equal(outs[0][1], mask)),
            plugin(given, expected, sparsity),
            *peers_prune.exact_shares(ws, mask, sparsity, compiled),
        ]

    name = "C7" if sparsity == 0.5 else "P1"
    return Case(name, label, float(moved), "GB/s", "read", contenders, sparsity=sparsity)


def plugin(given: Sequence[Any], expected: Array, sparsity: float) -> Contender:
    """octavo's selection through torch.nn.utils.prune, whose masks are floats and are multiplied."""
    name = "octavo.nn.L1Unstructured, in torch.nn.utils.prune"
    if octavo_nn is None:
        return Contender(name, why_not="needs torch")
    method = octavo_nn.L1Unstructured(sparsity)

    def call(i: int) -> Any:
        return method.prune(given[i % len(given)])

    # a product with 0 has the weight's sign
    return Contender(name, call, lambda: check_equal(call(0) + 0.0, expected), ours=True)


def threshold_case(rows: int, cols: int, compiled: bool) -> Case:
    moved = rows * cols * (4 + 4)
    label = f"prune at {THRESHOLD} {rows}x{cols} float32: pruned copy"

    def contenders() -> list[Contender]:
        ws = inputs(rows, cols, rotation(moved))
        given = [peers.given(w) for w in ws]
        outs = [out for (out,) in outputs(ws, (np.float32, True))]
        expected = reference.apply_mask(ws[0], reference.prune_masks([ws[0]], threshold=THRESHOLD)[0])
        count = len(ws)

        def prune(i: int) -> Any:
            return octavo.prune(given[i % count], threshold=THRESHOLD, out=outs[i % count])

        def arguments(i: int) -> tuple[Any, ...]:
            return given[i % count], THRESHOLD, outs[i % count]

        def check() -> Parity:
            return check_equal(outs[0], expected)

        return [
            ours("octavo prune, out=", prune, check),
            *peers_prune.thresholds(arguments, check, compiled),
        ]

    return Case("P2", label, float(moved), "GB/s", "copy", contenders)


def pattern_case(rows: int, cols: int, pattern: str, compiled: bool) -> Case:
    """Only the mask, as bool; GB/s counts one read of the tensor and one write of the mask."""
    moved = rows * cols * (4 + 1)
    select: dict[str, Any] = {"pattern": pattern} | ({} if ":" in pattern else {"sparsity": 0.5})
    share = "" if ":" in pattern else ", 50%"
    label = f"{pattern}{share} of {rows}x{cols} float32: mask, out="

    def contenders() -> list[Contender]:
        ws = inputs(rows, cols, rotation(moved))
        given = [peers.given(w) for w in ws]
        outs = [out for (out,) in outputs(ws, (np.bool_, True))]
        mask = reference.prune_masks([ws[0]], **select)[0]
        count = len(ws)

        def call(i: int) -> Any:
            return octavo.prune_mask(given[i % count], **select, out=outs[i % count])

        first = ours(f"octavo prune_mask, {pattern}", call, lambda: check_equal(outs[0], mask))
        if pattern == "2:4":

            def of_groups(i: int) -> tuple[Any, ...]:
                return given[i % count], outs[i % count]

            near = lambda: peers_prune.check_mask(outs[0], mask, peers_prune.TIES)  # noqa: E731
            return [first, *peers_prune.two_of_four(of_groups, near, compiled)]
        r, c = reference.unit_shape((rows, cols), pattern)
        units = (rows // r) * (cols // c)

        def of_units(i: int) -> tuple[Any, ...]:
            return given[i % count], r, c, round(0.5 * units), outs[i % count]

        near = lambda: peers_prune.check_mask(outs[0], mask, peers_prune.ORDER / units)  # noqa: E731
        rest = peers.torch_pair(peers_prune.unit_mask, of_units, near, compiled)
        if pattern in ("row", "column"):
            rest.append(peers_prune.ln_structured(ws, mask, 0.5, dim=0 if pattern == "row" else 1))
        return [first, *rest]

    return Case("P3", label, float(moved), "GB/s", "copy", contenders)


def global_case(hidden: int, layers: int) -> Case:
    """The linear layers of a transformer. GB/s counts one read of them all."""
    shapes = [*[(hidden, hidden)] * 4, (4 * hidden, hidden), (hidden, 4 * hidden)] * layers
    moved = sum(rows * cols * 4 for rows, cols in shapes)
    label = f"exact 50% of {len(shapes)} tensors as one, {moved >> 20} MiB float32: masks and pruned copies"

    def contenders() -> list[Contender]:
        count = rotation(moved)
        tensors = [inputs(rows, cols, count) for rows, cols in shapes]
        sets = [[np.roll(ws[i], j, axis=0) for j, ws in enumerate(tensors)] for i in range(count)]
        given = [[peers.given(w) for w in ws] for ws in sets]
        copies = [[peers.given(np.ones_like(w)) for w in ws] for ws in sets]
        outs = [[peers.given(np.ones(w.shape, np.bool_)) for w in ws] for ws in sets]
        masks = reference.prune_masks(sets[0], sparsity=0.5)
        k = sum(int((~mask).sum()) for mask in masks)

        def prune(i: int) -> Any:
            return octavo.prune(given[i % count], sparsity=0.5, out=copies[i % count])

        def mask_only(i: int) -> Any:
            return octavo.prune_mask(given[i % count], sparsity=0.5, out=outs[i % count])

        def check() -> Parity:
            pairs = zip(copies[0], sets[0], masks, strict=True)
            return check_all(*(check_equal(got, reference.apply_mask(w, m)) for got, w, m in pairs))

        def check_masks() -> Parity:
            return check_all(*(check_equal(got, mask) for got, mask in zip(outs[0], masks, strict=True)))

        method = None if octavo_nn is None else octavo_nn.L1Unstructured
        name = "global_unstructured with octavo.nn.L1Unstructured"
        return [
            ours("octavo prune of a list, out=", prune, check),
            ours("octavo prune_mask, out=: only the masks", mask_only, check_masks),
            peers_prune.global_unstructured(name, method, sets, masks, k),
            *peers_prune.global_shares(sets, masks, k),
        ]

    return Case("P4", label, float(moved), "GB/s", "read", contenders)


def prune_quantize_case(rows: int, cols: int, compiled: bool) -> Case:
    moved = rows * cols * (4 + 1 + 1) + rows * 4
    label = f"prune at {THRESHOLD} + quantize {rows}x{cols} float32, per row, with mask"

    def contenders() -> list[Contender]:
        xs = inputs(rows, cols, rotation(moved))
        given = [peers.given(x) for x in xs]
        outs = outputs(xs, (np.int8, True), (np.float32, False), (np.bool_, True))
        mask = reference.prune_masks([xs[0]], threshold=THRESHOLD)[0]
        data, scale, _ = reference.quantize(reference.apply_mask(xs[0], mask))
        count = len(xs)

        def call(i: int) -> Any:
            return octavo.prune_quantize(given[i % count], threshold=THRESHOLD, out=outs[i % count])

        def call_fresh(i: int) -> Any:
            return octavo.prune_quantize(given[i % count], threshold=THRESHOLD)

        def exact(got: tuple[Any, ...]) -> Parity:
            return check_all(*(check_equal(g, e) for g, e in zip(got, (data, scale, mask), strict=True)))

        def check_fresh() -> Parity:
            quantized, kept = call_fresh(0)
            return exact((quantized.data, quantized.scale, kept))

        def arguments(i: int) -> tuple[Any, ...]:
            return (given[i % count], THRESHOLD, *outs[i % count])

        def near() -> Parity:
            return check_all(check_equal(outs[0][2], mask), check_steps(outs[0][0], data, STEPS))

        return [
            ours("octavo prune_quantize, out=", call, lambda: exact(outs[0])),
            Contender("octavo prune_quantize", call_fresh, check_fresh, ours=True),
            *peers.torch_pair(peers_prune.prune_quantize_rows, arguments, near, compiled),
        ]

    return Case("C8", label, float(moved), "GB/s", "copy", contenders)


def make_cases(quick: bool, threads: int) -> Sequence[Case]:
    rows, cols, compiled = (512, 4096, False) if quick else (4096, 4096, True)
    return [
        *(share_case(rows, cols, share, compiled) for share in ((0.1, 0.5, 0.9) if quick else SHARES)),
        prune_quantize_case(rows, cols, compiled),
        threshold_case(rows, cols, compiled),
        *(pattern_case(rows, cols, pattern, compiled) for pattern in ("2:4", "block4x16", "row", "column")),
        global_case(256 if quick else 768, 1 if quick else 2),
    ]


if __name__ == "__main__":
    peers.prepare()
    sys.exit(main("pruning", make_cases, draw=over_sparsity))
