"""Int8Embedding and Int8EmbeddingBag: tables of int8 rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops.embedding import INT8_EMBEDDING, INT8_EMBEDDING_BAG, MODES
from ...ops.quantize import quantize
from ...runtime.arrays import needs_dispatcher
from ...torch_ops.embedding import int8_embedding_bag_op, int8_embedding_op
from ..configs import DEFAULT, Config, check_config
from .base import ScaledModule, why_changed

if TYPE_CHECKING:
    from typing_extensions import Self


class _Int8Table(ScaledModule):
    """What both hold, save, load and move.

    The state dict holds `weight` int8 [V, D] and `weight_scale` float32 [V, 1]: to the bit those of an
    Int8Linear made from the same float weight [V, D], such as a tied head. Results are of the float module's
    dtype; `.to(dtype)` changes that, and nothing else.
    """

    weight: Tensor
    _like: Tensor  # empty: its dtype is that of results, which .to(dtype) has to find

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"padding_idx: expected None or an int in [{-num_embeddings}, {num_embeddings}), "
                    f"got {padding_idx}"
                )
            padding_idx %= num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        table = torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8, device=device)
        self.register_buffer("weight", table)
        self.register_buffer(
            "weight_scale", torch.ones(num_embeddings, 1, dtype=torch.float32, device=device)
        )
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    @classmethod
    def _of(cls, embedding: nn.Embedding | nn.EmbeddingBag, config: Config, **options: Any) -> Self:
        check_config(config)
        why = why_float(embedding)
        if why:
            raise ValueError(f"embedding: expected one that int8 can stand for, got {why}")
        weight = embedding.weight.detach()
        with torch.no_grad():
            data, scale, _ = quantize(weight, nonfinite="raise")
            entries, dim = weight.shape
            new = cls(entries, dim, embedding.padding_idx, device="meta", **options)
            new.weight, new.weight_scale = data, scale.unsqueeze(-1)
            new._like = weight.new_empty(0)
        return new.train(embedding.training)

    @property
    def dtype(self) -> torch.dtype:
        """That of results."""
        return self._like.dtype

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        if key in state_dict and state_dict[key].dtype != torch.int8:  # copying would cut fractions off
            error_msgs.append(f"{key}: expected int8, got {state_dict[key].dtype}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class Int8Embedding(_Int8Table):
    """y[..., :] = weight[indices] * weight_scale[indices]: a lookup in an int8 table.

    The state dict holds `weight` int8 [V, D] and `weight_scale` float32 [V, 1]: to the bit those of an
    Int8Linear made from the same float weight, such as a tied head. Results are of the float module's dtype;
    `.to(dtype)` changes that, and nothing else. padding_idx is kept, and means nothing without gradients.
    """

    kernel = "int8_embedding"

    @classmethod
    def from_float(cls, embedding: nn.Embedding, config: Config = DEFAULT) -> Int8Embedding:
        """The int8 form of an embedding, with one scale per row whatever the config. ValueError for a weight
        with NaN or Inf, and for one with a max_norm."""
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding: expected a torch.nn.Embedding, got {type(embedding).__name__}")
        return cls._of(embedding, config)

    def forward(self, indices: Tensor) -> Tensor:
        weight, scale, dtype = self.weight, self.weight_scale, self.dtype
        if needs_dispatcher(indices, weight):
            y: Tensor = int8_embedding_op(indices, weight, scale, out_dtype=dtype)
            return y
        return INT8_EMBEDDING.run(indices, weight, scale, dtype)  # type: ignore[no-any-return]


class Int8EmbeddingBag(_Int8Table):
    """torch.nn.EmbeddingBag with an int8 table: sums, means or maxima over bags of rows.

    State dict and dtypes are those of Int8Embedding.
    """

    kernel = "int8_embedding_bag"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        if mode not in MODES:
            raise ValueError(f"mode: expected 'sum', 'mean' or 'max', got {mode!r}")
        self.mode = mode
        self.include_last_offset = include_last_offset

    @classmethod
    def from_float(cls, embedding: nn.EmbeddingBag, config: Config = DEFAULT) -> Int8EmbeddingBag:
        """The int8 form of an embedding bag, with one scale per row whatever the config. ValueError for a
        weight with NaN or Inf, and for one with a max_norm."""
        if not isinstance(embedding, nn.EmbeddingBag):
            raise TypeError(f"embedding: expected a torch.nn.EmbeddingBag, got {type(embedding).__name__}")
        return cls._of(
            embedding, config, mode=embedding.mode, include_last_offset=embedding.include_last_offset
        )

    def forward(
        self, indices: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        weight, dtype = self.weight, self.dtype
        arguments = (
            indices,
            weight,
            self.weight_scale,
            offsets,
            self.mode,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
        if needs_dispatcher(indices, weight, offsets, per_sample_weights):
            y: Tensor = int8_embedding_bag_op(*arguments, out_dtype=dtype)
            return y
        return INT8_EMBEDDING_BAG.run(*arguments, dtype)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


def why_float(module: nn.Embedding | nn.EmbeddingBag) -> str:
    """Why quantize_ cannot replace this layer; "" if it can."""
    if module.max_norm is not None:
        return "float: max_norm changes the weights in every forward pass"
    return why_changed(module, nn.Embedding if isinstance(module, nn.Embedding) else nn.EmbeddingBag)
