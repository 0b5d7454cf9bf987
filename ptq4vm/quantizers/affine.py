"""Scale and shift of a layer's output, learned over the whole network."""

import torch
from torch import Tensor, nn


class AffineCalibration(nn.Module):
    """Scale and shift (γ, β) of a quantized layer's output, y = γ (W_q ∗ x_q) + b + β.

    γ is an exponential, and so positive: a negative one could not be absorbed into a weight scale.

    Args:
        channels: the number of γ and of β.
        scale_bias: scale the bias too, y = γ (W_q ∗ x_q + b) + β, as in the published code of arXiv
            2506.10840; its formula is the one above.
    """

    def __init__(self, channels: int, *, scale_bias: bool = False) -> None:
        super().__init__()
        self.scale_bias = scale_bias
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def scale_like(self, weight: Tensor) -> Tensor:
        """Return γ, shaped to multiply a weight (out channels, ...)."""
        return self.log_scale.exp().reshape(-1, *(1,) * (weight.dim() - 1))

    def forward(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and bias of the affine layer; cheaper than scaling its output."""
        scaled = bias * self.log_scale.exp() if self.scale_bias else bias
        return weight * self.scale_like(weight), scaled + self.shift
