"""Int8Embedding and Int8EmbeddingBag: tables of int8 rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...ops.embedding import INT8_EMBEDDING, INT8_EMBEDDING_BAG, MODES
from ...ops.linear import INT8_LINEAR
from ...ops.pack import pack_matrix
from ...runtime.arrays import needs_dispatcher, on_cuda
from ...torch_ops.embedding import int8_embedding_bag_op, int8_embedding_op
from ...torch_ops.linear import int8_linear_op
from ..configs import DEFAULT, Config, check_config
from .base import PackedModule, in_dtype_of, leaf, why_changed

if TYPE_CHECKING:
    from typing_extensions import Self


class _Int8Table(PackedModule):
    """What both hold, save, load and move.

    The state dict holds `weight_int8` int8 [V, D] and `weight_scale` float32 [V, 1]: to the bit those of an
    Int8Linear made from the same float weight [V, D], such as a tied head. Results are of the float module's
    dtype, `dtype`; `.to(dtype)` changes that, and nothing else.
    """

    # as torch.nn.Embedding has them; they are about gradients, which int8 has not
    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False
    sparse = False
    _product: tuple[Tensor, Tensor] | None = None  # _stored, and the same packed

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
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
        self.register_buffer("_stored", table, persistent=False)
        self.register_buffer(
            "weight_scale", torch.ones(num_embeddings, 1, dtype=torch.float32, device=device)
        )
        self._add_like(device)

    @classmethod
    def _of(cls, embedding: nn.Embedding | nn.EmbeddingBag, config: Config, **options: Any) -> Self:
        check_config(config)
        why = why_float(embedding)
        if why:
            raise ValueError(f"embedding: expected one that int8 can stand for, got {why}")
        with torch.no_grad():
            weight = embedding.weight
            entries, dim = weight.shape
            options |= {"device": "meta", "dtype": weight.dtype}
            new = cls(entries, dim, embedding.padding_idx, **options)
            new._set_float(weight)
            for name in ("norm_type", "scale_grad_by_freq", "sparse"):
                setattr(new, name, getattr(embedding, name))
        return new.train(embedding.training)

    def reset_parameters(self) -> None:
        """As torch.nn.Embedding does, and quantizes the table."""
        nn.init.normal_(self.weight)
        self._fill_padding_idx_with_zero()

    def _fill_padding_idx_with_zero(self) -> None:
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx] = 0

    @property
    def _shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def _packed(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def _lookup(self, indices: Tensor) -> Tensor:
        buffers = self._buffers  # read directly: nn.Module's __getattr__ costs more than a small kernel
        stored, scale = buffers["_stored"], buffers["weight_scale"]
        if needs_dispatcher(indices, stored):
            y: Tensor = int8_embedding_op(indices, stored, scale, out_dtype=self.dtype)
            return y
        return INT8_EMBEDDING.run(indices, stored, scale, self.dtype)  # type: ignore[no-any-return]

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """As a tied head has it; on the CPU with a packed copy of the table, made the first time."""
        stored, scale = self._stored, self.weight_scale
        if not on_cuda(stored):
            if self._product is None or self._product[0] is not stored:
                self._product = stored, pack_matrix(stored, "auto")
            stored = self._product[1]
        traced = needs_dispatcher(x, stored, scale, bias)
        return in_dtype_of(x, (int8_linear_op if traced else INT8_LINEAR.run)(x, stored, scale, bias))

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        return text if self.padding_idx is None else f"{text}, padding_idx={self.padding_idx}"


class Int8Embedding(_Int8Table):
    """y[..., :] = weight[indices] * weight_scale[indices]: a lookup in an int8 table.

    The state dict holds `weight_int8` int8 [V, D] and `weight_scale` float32 [V, 1]: to the bit those of an
    Int8Linear made from the same float weight, such as a tied head. Results are of the float module's dtype,
    `dtype`; `.to(dtype)` changes that, and nothing else. padding_idx is kept, and means nothing without
    gradients.
    """

    kernel = "int8_embedding"

    @classmethod
    def from_float(cls, embedding: nn.Embedding, config: Config = DEFAULT) -> Int8Embedding:
        """The int8 form of an embedding, with one scale per row whatever the config. ValueError for a weight
        with NaN or Inf, and for one with a max_norm."""
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding: expected a torch.nn.Embedding, got {type(embedding).__name__}")
        return cls._of(embedding, config)

    def forward(self, input: Tensor) -> Tensor:
        traced = leaf(self, input)
        return self._lookup(input) if traced is None else traced


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
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        traced = leaf(self, input, offsets, per_sample_weights)
        if traced is not None:
            return traced  # type: ignore[no-any-return]
        weight, dtype = self._stored, self.dtype
        arguments = (
            input,
            weight,
            self.weight_scale,
            offsets,
            self.mode,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
        if needs_dispatcher(input, weight, offsets, per_sample_weights):
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
