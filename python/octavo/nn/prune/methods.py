"""Methods for torch.nn.utils.prune that select as octavo does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod, PruningContainer

from ...ops.prune import prune_mask
from ...ops.selection import check_units, number, selection, shape_2d, unit_shape
from ...runtime.arrays import float_code, kind_of


class _MagnitudeMethod(BasePruningMethod):
    """What the methods share: which weights to keep, from compute_mask's arguments, is all they differ in."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """default_mask with 0 where this method prunes.

        t: float32, float16, bfloat16 or float64, the weights or their importance, compared by float32
            magnitude; default_mask: like t in shape, 1 where nothing has been pruned yet.
        Returns a contiguous tensor of default_mask's dtype. TypeError or ValueError for other dtypes and
        shapes, and for an amount or a pattern that does not fit.
        """
        name = getattr(self, "_tensor_name", "t")
        kind_of(**{name: t, "default_mask": default_mask})
        float_code(t, name)
        if default_mask.shape != t.shape:
            expected, got = tuple(t.shape), tuple(default_mask.shape)
            raise ValueError(f"default_mask: expected shape {expected} like {name}, got {got}")
        with torch.no_grad():
            keep = self._keep(t.detach(), default_mask, name)
            return (default_mask * keep).contiguous()

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        raise NotImplementedError

    @classmethod
    def _apply(
        cls, module: nn.Module, name: str, importance_scores: Tensor | None, **arguments: Any
    ) -> BasePruningMethod:
        _check_parameter(module, name, importance_scores)
        with _unchanged_on_error(module):
            return super().apply(  # type: ignore[no-any-return, no-untyped-call]
                module, name, importance_scores=importance_scores, **arguments
            )


class L1Unstructured(_MagnitudeMethod):
    """Prunes the weights of the smallest magnitude: torch.nn.utils.prune.L1Unstructured with exact ties.

    amount: a float in [0, 1], the share of the weights, or an int, their number; where weights have been
        pruned before, of those that are left. k = round(amount * n), half to even, as in torch.
    Exactly k weights go, of equal magnitudes the lowest index first; torch's choice among those is arbitrary.
    NaN counts as the largest magnitude. TypeError for an amount that is no number, ValueError for one outside
    its range or, when it is applied, beyond the weights that are left.
    Use: octavo.nn.L1Unstructured.apply(module, "weight", amount=0.5), and as the pruning_method of
    torch.nn.utils.prune.global_unstructured.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float) -> None:
        self.amount = _check_amount(amount)

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        keep: Tensor = prune_mask(t, sparsity=_share(self.amount, t.numel(), "elements"))
        return keep

    @classmethod
    def apply(  # type: ignore[override]
        cls, module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None
    ) -> BasePruningMethod:
        """Prunes module.<name>, a float parameter, by this amount of it.

        importance_scores: a float tensor of the parameter's shape and device, compared in its place.
        Returns the method, or the torch.nn.utils.prune.PruningContainer of all methods so far. An error
        leaves the module as it was.
        """
        return cls._apply(module, name, importance_scores, amount=amount)


class ThresholdUnstructured(_MagnitudeMethod):
    """Prunes the weights whose magnitude is at most a threshold; NaN stays.

    threshold: a number, compared as float32. TypeError for no number, ValueError for NaN.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, threshold: float) -> None:
        self.threshold = selection(
            number(threshold, "threshold"), None, None, "unstructured", "keep"
        ).threshold

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        keep: Tensor = prune_mask(t, threshold=self.threshold)
        return keep

    @classmethod
    def apply(  # type: ignore[override]
        cls, module: nn.Module, name: str, threshold: float, importance_scores: Tensor | None = None
    ) -> BasePruningMethod:
        """Prunes module.<name> at this threshold. Arguments and errors: as for L1Unstructured.apply."""
        return cls._apply(module, name, importance_scores, threshold=threshold)


class RatioUnstructured(_MagnitudeMethod):
    """Prunes the weights whose magnitude is at most ratio * max |w| over the finite weights; NaN stays.

    ratio: a finite number >= 0. TypeError for no number, ValueError for one out of range. The maximum is that
    of one parameter, or of all under torch.nn.utils.prune.global_unstructured.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, ratio: float) -> None:
        self.ratio = selection(None, number(ratio, "ratio"), None, "unstructured", "keep").ratio

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        keep: Tensor = prune_mask(t, ratio=self.ratio)
        return keep

    @classmethod
    def apply(  # type: ignore[override]
        cls, module: nn.Module, name: str, ratio: float, importance_scores: Tensor | None = None
    ) -> BasePruningMethod:
        """Prunes module.<name> at this ratio. Arguments and errors: as for L1Unstructured.apply."""
        return cls._apply(module, name, importance_scores, ratio=ratio)


# The container of torch hands "unstructured" methods a vector of what is left, which has lost its groups, and
# "structured" ones whole slices along one axis; "global" ones get the tensor and the mask as they are.


class L1SemiStructured(_MagnitudeMethod):
    """Keeps the n weights of the largest magnitude in each group of m along the last axis, such as "2:4".

    pattern: "n:m" with 1 <= n < m <= 32; ValueError for others and, when it is applied, for a last axis that
        m does not divide.
    What has been pruned before counts as 0 and stays pruned. Of equal magnitudes the lowest index stays.
    """

    PRUNING_TYPE = "global"

    def __init__(self, pattern: str = "2:4") -> None:
        if not isinstance(pattern, str) or ":" not in pattern:
            raise ValueError(f"pattern: expected 'n:m', such as '2:4', got {pattern!r}")
        self._chosen = selection(None, None, None, pattern, "keep")
        self.pattern = pattern

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        check_units(t, name, self._chosen)
        keep: Tensor = prune_mask(t.where(default_mask != 0, 0.0), pattern=self.pattern)
        return keep

    @classmethod
    def apply(  # type: ignore[override]
        cls, module: nn.Module, name: str, pattern: str = "2:4", importance_scores: Tensor | None = None
    ) -> BasePruningMethod:
        """Prunes module.<name> to this pattern. Arguments and errors: as for L1Unstructured.apply."""
        return cls._apply(module, name, importance_scores, pattern=pattern)


class L1Structured(_MagnitudeMethod):
    """Prunes the rows, columns or blocks whose magnitudes have the smallest sum.

    amount: a float in [0, 1], the share of the units, or an int, their number; of those that are not wholly
        pruned yet. TypeError and ValueError as for L1Unstructured.
    pattern: "row", "column" or "block{r}x{c}", such as "block4x16", of the 2-D view
        [prod(shape[:-1]), shape[-1]]; ValueError for others and, when it is applied, for a view that does not
        consist of whole blocks.
    What has been pruned before counts as 0. Of equal sums, which are float64, the lowest index goes first.
    """

    PRUNING_TYPE = "global"

    def __init__(self, amount: float, pattern: str) -> None:
        self.amount = _check_amount(amount)
        if not isinstance(pattern, str) or pattern == "unstructured" or ":" in pattern:
            raise ValueError(f"pattern: expected 'row', 'column' or 'block{{r}}x{{c}}', got {pattern!r}")
        self._chosen = selection(None, None, 0.0, pattern, "keep")
        self.pattern = pattern

    def _keep(self, t: Tensor, default_mask: Tensor, name: str) -> Tensor:
        check_units(t, name, self._chosen)
        live = default_mask != 0
        if not t.numel():
            _share(self.amount, 0, "units")
            return live
        (rows, cols), (r, c) = shape_2d(t), unit_shape(t, self._chosen)
        grid = (rows // r, r, cols // c, c)

        def units(each: Tensor) -> Tensor:
            return each.reshape(grid).transpose(1, 2).reshape(-1, r * c)

        # one row per unit: the same sums in the same order, and units that are gone can be left out
        keep = units(live).any(1)
        left = units(t.where(live, 0.0))[keep]
        mask: Tensor = prune_mask(left, sparsity=_share(self.amount, len(left), "units"), pattern="row")
        keep[keep.clone()] = mask[:, 0]
        return keep.reshape(grid[0], 1, grid[2], 1).expand(grid).reshape(t.shape)

    @classmethod
    def apply(  # type: ignore[override]
        cls,
        module: nn.Module,
        name: str,
        amount: float,
        pattern: str,
        importance_scores: Tensor | None = None,
    ) -> BasePruningMethod:
        """Prunes this amount of the units of module.<name>. The rest is as for L1Unstructured.apply."""
        return cls._apply(module, name, importance_scores, amount=amount, pattern=pattern)


def l1_unstructured(
    module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None
) -> nn.Module:
    """L1Unstructured.apply that returns the module, as torch.nn.utils.prune.l1_unstructured does."""
    L1Unstructured.apply(module, name, amount=amount, importance_scores=importance_scores)
    return module


def _check_amount(amount: float) -> float:
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise TypeError(f"amount: expected an int or a float, got {type(amount).__name__}")
    if not (amount >= 0 and (amount <= 1 or isinstance(amount, Integral))):  # NaN is neither
        raise ValueError(f"amount: expected a float in [0, 1] or an int >= 0, got {amount!r}")
    return int(amount) if isinstance(amount, Integral) else float(amount)


def _share(amount: float, n: int, what: str) -> float:
    """The sparsity that prunes this amount of n: k / n * n, rounded, is k again."""
    if isinstance(amount, float):
        return round(amount * n) / max(n, 1)
    if amount > n:
        raise ValueError(f"amount: expected at most {n}, the {what} that are left, got {amount}")
    return amount / max(n, 1)


def _check_parameter(module: nn.Module, name: str, importance_scores: Tensor | None) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    found = module._parameters.get(f"{name}_orig")
    if found is None:
        found = module._parameters.get(name)
    if found is None:
        names = tuple(
            key.removesuffix("_orig") for key, each in module._parameters.items() if each is not None
        )
        raise ValueError(f"name: expected a parameter of {type(module).__name__}, {names}, got {name!r}")
    scores = importance_scores
    kind_of(**{name: found, "importance_scores": scores})
    float_code(found, name)
    if scores is not None:
        float_code(scores, "importance_scores")
        if scores.shape != found.shape:
            expected, got = tuple(found.shape), tuple(scores.shape)
            raise ValueError(f"importance_scores: expected shape {expected} like {name}, got {got}")


@contextmanager
def _unchanged_on_error(module: nn.Module) -> Iterator[None]:
    # torch takes away the hook of an earlier pruning before it computes the new mask, does not bring it back
    # when that fails, and leaves the parameters in another order
    held: list[dict[Any, Any]] = [module._parameters, module._buffers, module._forward_pre_hooks]
    before = [dict(each) for each in held]
    containers = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, PruningContainer)]
    methods = [container._pruning_methods for container in containers]
    try:
        yield
    except BaseException:
        for each, old in zip(held, before, strict=True):
            each.clear()
            each.update(old)
        for container, kept in zip(containers, methods, strict=True):
            container._pruning_methods = kept
        raise
