"""Int8MultiheadAttention: attention whose four projections hold and multiply int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.linear import INT8_LINEARS
from ...runtime.arrays import is_jit_traced, needs_dispatcher
from ...torch_ops.linear import int8_linears_op
from ..configs import DEFAULT, Config, Int8Dynamic, Int8WeightOnly, check_config
from .base import in_dtype_of, leaf, no_script, why_changed
from .linear import Int8Linear


class Int8MultiheadAttention(nn.Module):
    """torch.nn.MultiheadAttention with int8 projections; the attention itself is computed in float.

    Arguments and results are those of torch.nn.MultiheadAttention, without add_bias_kv, add_zero_attn and
    nested tensors; ValueError or TypeError for shapes and dtypes that do not fit. Where query is key is
    value, or key is value, their projections share one quantization. The projections are modules, as the
    state dict shows: `q_proj.weight_int8` int8 [E, E], `q_proj.weight_scale` float32 [E, 1], `q_proj.bias`,
    and likewise for k_proj, v_proj and out_proj.
    """

    # as torch has them for weights of their own; torch.nn.TransformerEncoderLayer runs no fused kernel then
    _qkv_same_embed_dim = False
    in_proj_weight = None
    bias_k = None
    bias_v = None
    add_zero_attn = False
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim, num_heads: expected a multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first = batch_first
        for name, k in (("q", embed_dim), ("k", self.kdim), ("v", self.vdim), ("out", embed_dim)):
            self.add_module(f"{name}_proj", Int8Linear(k, embed_dim, bias, device=device, dtype=dtype))

    @classmethod
    def from_float(cls, attention: nn.MultiheadAttention, config: Config = DEFAULT) -> Int8MultiheadAttention:
        """The int8 form of an attention layer. ValueError for a weight with NaN or Inf, and for one with
        add_bias_kv, add_zero_attn or a forward of its own; octavo.quantize_ takes octavo.Int8Static too."""
        check_config(config, Int8Dynamic, Int8WeightOnly)
        new = cls.with_float_projections(attention)
        for name, linear in list(new.named_children()):
            new.add_module(name, Int8Linear.from_float(linear, config))  # type: ignore[arg-type]
        return new

    @classmethod
    def with_float_projections(cls, attention: nn.MultiheadAttention) -> Int8MultiheadAttention:
        """The attention layer in this form, its projections torch.nn.Linear with the weights that it has."""
        if not isinstance(attention, nn.MultiheadAttention):
            got = type(attention).__name__
            raise TypeError(f"attention: expected a torch.nn.MultiheadAttention, got {got}")
        why = why_float(attention)
        if why:
            raise ValueError(f"attention: expected one with an int8 form, got one that stays {why}")
        new = cls(
            attention.embed_dim,
            attention.num_heads,
            attention.dropout,
            kdim=attention.kdim,
            vdim=attention.vdim,
            batch_first=attention.batch_first,
            device="meta",
        )
        one: Tensor | None = attention.in_proj_weight
        weights = (
            (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            if one is None
            else one.chunk(3)
        )
        bias: Tensor | None = attention.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        out = attention.out_proj
        for name, w, b in zip("qkv", weights, biases, strict=True):
            new.add_module(f"{name}_proj", _linear(w, b))
        new.out_proj = _linear(out.weight, out.bias)
        return new.train(attention.training)

    def __prepare_scriptable__(self) -> nn.Module:
        return no_script(self)

    @property
    def q_proj_weight(self) -> Tensor:
        return cast("Tensor", self.q_proj.weight)

    @property
    def k_proj_weight(self) -> Tensor:
        return cast("Tensor", self.k_proj.weight)

    @property
    def v_proj_weight(self) -> Tensor:
        return cast("Tensor", self.v_proj.weight)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """Those of q_proj, k_proj and v_proj, in a new tensor."""
        biases = [layer._parameters["bias"] for layer in (self.q_proj, self.k_proj, self.v_proj)]
        given: list[Tensor] = [bias for bias in biases if bias is not None]
        return torch.cat(given) if given else None

    @property
    def bias(self) -> Tensor | None:
        """That of out_proj; None if the projections have none."""
        return self.out_proj._parameters["bias"]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        options = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        traced = leaf(self, query, key, value, *options)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        if query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
            got = [tuple(each.shape) for each in (query, key, value)]
            raise ValueError(f"query, key, value: expected three dimensions, or two for no batch, got {got}")
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: expected the causal mask with is_causal=True, got None")
        batched = query.dim() == 3
        q, k, v = (self._heads(each, batched) for each in self._project(query, key, value))
        dropout = self.dropout if self.training else 0.0
        # a hint, as in torch: where masks have to be added anyway, attn_mask says it
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask(attn_mask, key_padding_mask, q, k, batched)
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        if not batched:
            y = y.squeeze(0).transpose(0, 1)
        else:
            y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return self.out_proj(y.flatten(-2)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        if key is not value:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key:
            return _together(query, [self.q_proj, self.k_proj, self.v_proj])
        return self.q_proj(query), *_together(key, [self.k_proj, self.v_proj])

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """[batch, heads, length, head_dim], a view."""
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor, batched: bool
    ) -> Tensor | None:
        """What is added to the scores, in a shape that broadcasts to theirs."""
        batch, heads, length, keys = *q.shape[:-1], k.shape[-2]
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, "attn_mask", q.dtype, (length, keys), (batch * heads, length, keys))
            mask = mask if mask.dim() == 2 else mask.view(batch, heads, length, keys)
        if key_padding_mask is not None:
            shape = (batch, keys) if batched else (keys,)
            padding = _additive(key_padding_mask, "key_padding_mask", q.dtype, shape).view(batch, 1, 1, keys)
            mask = padding if mask is None else mask + padding
        return mask

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, "
            f"batch_first={self.batch_first}"
        )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    n, k = weight.shape
    linear = nn.Linear(k, n, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _together(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """What the layers make of x, which is quantized once where they would do the same."""
    same = [layer for layer in layers if type(layer) is Int8Linear]
    symmetric = {layer.symmetric for layer in same}
    # torch.jit.trace has no lists of strings, which the schema of the one call has
    if len(same) < len(layers) or len(symmetric) > 1 or is_jit_traced():
        return [layer(x) for layer in layers]
    weights, scales = [layer._stored for layer in same], [layer.weight_scale for layer in same]
    biases = [layer.bias for layer in same]
    results: Sequence[Tensor]
    if needs_dispatcher(x, *weights, *biases):
        if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
            return [layer(x) for layer in layers]  # torch.func.vmap takes no operation on lists of tensors
        given = [x.new_empty(0) if bias is None else bias for bias in biases]
        results = int8_linears_op(x, weights, scales, given, [""] * len(same), symmetric=symmetric.pop())
    else:
        results = INT8_LINEARS.run(x, weights, scales, biases, [None] * len(same), None, symmetric.pop())
    return [in_dtype_of(x, y) for y in results]


def _additive(mask: Tensor, name: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Tensor:
    """The mask as what is added to scores: 0, and -Inf where a bool mask is True."""
    if mask.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(mask.shape)}")
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool or a float mask, got {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def why_float(attention: nn.MultiheadAttention) -> str:
    """Why quantize_ cannot replace this layer; "" if it can."""
    if attention.bias_k is not None or attention.add_zero_attn:
        return "float: octavo has no attention with add_bias_kv or add_zero_attn"
    return why_changed(attention, nn.MultiheadAttention)
