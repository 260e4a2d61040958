"""What torch's dispatcher runs of an operation where it looks for gradients.

In place of torch.library.register_autograd: torch.func (grad, vjp, jacrev) does not take what that makes, and
tangents of forward mode would be dropped, and nothing said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch import autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ..runtime.arrays import check_tangents

_one_level: Any = autograd_function.enable_single_level_autograd_function  # type: ignore[attr-defined]


@contextmanager
def _for_other_levels() -> Iterator[None]:
    """What the forward of a function has switched off, and the next levels of torch.func need."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        yield
    else:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            yield


def autograd_kernel(
    op: Any, setup: Callable[..., Any] | None, backward: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The kernel for the key Autograd. Transforms of torch.func run it once for each of their levels; what it
    hands on comes back to it for the next.

    setup(ctx, inputs, output), with keyword_only_inputs if there are any, and backward(ctx, *grads) are those
    of register_autograd, but that ctx.needs stands for ctx.needs_input_grad, a list for a list of tensors.
    backward is None for results without a gradient.
    """
    schema = op._schema.arguments
    by_position = [each for each in schema if not each.kwarg_only]
    defaults = {each.name: each.default_value for each in schema if each.kwarg_only}
    lists = {i for i, each in enumerate(by_position) if str(each.type) == "List[Tensor]"}
    returns_list = str(op._schema.returns[0].type) == "List[Tensor]"

    def handed_on(keyset: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments, **keywords)

    class Gradient(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, call: tuple[Any, list[int | None], dict[str, Any]], *flat: Any) -> Any:
            keyset, ctx.counts, keywords = call
            arguments = _nested(flat, ctx.counts)
            with _for_other_levels():
                found = handed_on(keyset, arguments, keywords)
            arguments += [each.default_value for each in by_position[len(arguments) :]]  # left out in a call
            more = {"keyword_only_inputs": defaults | keywords} if defaults else {}
            ctx.needs = _nested(ctx.needs_input_grad[1:], ctx.counts)
            setup(ctx, inputs=tuple(arguments), output=found, **more)  # type: ignore[misc]
            return tuple(found) if returns_list else found

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found = backward(ctx, grads) if returns_list else backward(ctx, *grads)  # type: ignore[misc]
            flat: list[Any] = [None]
            for count, each in zip(ctx.counts, found if isinstance(found, tuple) else (found,), strict=False):
                flat += [each] if count is None else each
            return tuple(flat)

    def run(keyset: Any, *arguments: Any, **keywords: Any) -> Any:
        flat: list[Any] = []
        for i, each in enumerate(arguments):
            flat += each if i in lists else [each]
        check_tangents(op._opname, *flat)
        wants = any(isinstance(each, Tensor) and each.requires_grad for each in flat)
        if backward is None or not (wants and torch.is_grad_enabled()):
            return handed_on(keyset, arguments, keywords)
        counts = [len(each) if i in lists else None for i, each in enumerate(arguments)]
        with _one_level():
            found = Gradient.apply((keyset, counts, keywords), *flat)  # type: ignore[attr-defined]
        return list(found) if returns_list else found

    return run


def _nested(flat: Sequence[Any], counts: Sequence[int | None]) -> list[Any]:
    """The arguments of a call again, of which lists of so many tensors were put end to end."""
    rest = iter(flat)
    return [next(rest) if count is None else [next(rest) for _ in range(count)] for count in counts]
