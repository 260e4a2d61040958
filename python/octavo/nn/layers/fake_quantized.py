"""FakeQuantizedLinear and FakeQuantizedConv2d: float layers that compute what int8 ones do, and train."""

from __future__ import annotations

from torch import Tensor, nn

from ...torch_ops.qat import fake_quantized_conv2d_op, fake_quantized_linear_op
from ..configs import DEFAULT, Int8Dynamic
from .base import in_dtype_of


class FakeQuantizedLinear(nn.Linear):
    """A torch.nn.Linear that computes, to the bit, what Int8Linear.from_float of it does, and trains.

    Weight and bias are the float parameters of torch.nn.Linear, with its state dict; x is [..., K] of any
    float dtype, y of the same. Every forward pass quantizes the weight per row and the
    input per row, and multiplies in int8. Gradients are straight through (Bengio et al. 2013,
    arXiv:1308.3432): with G the gradient of y, and W' and x' what the int8 values stand for, rounded to y's
    dtype,

        d W = G^T x',  d x = G W',  d bias = the sum of G over its rows.

    NaN and Inf in the input count as what they are quantized to, 0 and the largest value; in the weight they
    are a ValueError, for which a GPU is waited for. Second derivatives are a RuntimeError. autocast changes
    nothing: the input is taken in its dtype, the weight in its own.
    """

    qat_config: Int8Dynamic = DEFAULT

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = fake_quantized_linear_op(
            input, self.weight, self.bias, symmetric=self.qat_config.symmetric
        )
        return in_dtype_of(input, y)


class FakeQuantizedConv2d(nn.Conv2d):
    """A torch.nn.Conv2d that computes, to the bit, what Int8Conv2d.from_float of it does, and trains.

    The weight has one scale per output channel, the input one per sample. The rest is as for
    FakeQuantizedLinear, with the gradients of a convolution at the quantized weight and input.
    """

    qat_config: Int8Dynamic = DEFAULT

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            # values of x and zeros: the scale of x is that of the padded x
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode=mode)
            padding = (0, 0)
        y: Tensor = fake_quantized_conv2d_op(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )
        return in_dtype_of(input, y)
