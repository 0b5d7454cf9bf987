"""Rounding of a weight to its grid's codes: to nearest, learned (AdaRound), latent or fixed."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptq4vm.quantizers.adaround import inverse_rectified_sigmoid, rectified_sigmoid
from ptq4vm.quantizers.functional import dequantize, quantize, round_ste

_NEAR = 0.49
"""Largest distance of a new latent from its code."""


class WeightGrid(NamedTuple):
    """The grid of a weight (out channels, ...): weight = scale (code - zero point)."""

    scale: Tensor
    """Positive, (out channels, 1, ...)."""
    zero_point: Tensor
    """Integers, shaped as ``scale``."""
    quant_min: int
    """Lowest code."""
    quant_max: int
    """Highest code."""


class Rounding(nn.Module, ABC):
    """Rounds a weight that it does not own."""

    @abstractmethod
    def codes(self, weight: Tensor, grid: WeightGrid) -> Tensor:
        """Return the codes of the weight, as floats."""

    def forward(self, weight: Tensor, grid: WeightGrid) -> Tensor:
        """Return the weight after rounding, of the same shape."""
        return dequantize(self.codes(weight, grid), grid.scale, grid.zero_point)

    def harden(self) -> None:
        """Make all codes integers, where they aren't yet."""


class NearestRounding(Rounding):
    """Rounds to the nearest code."""

    def codes(self, weight: Tensor, grid: WeightGrid) -> Tensor:  # noqa: D102
        return quantize(weight, *grid)


class FixedRounding(NearestRounding):
    """Passes on a weight that lies on its grid."""

    def forward(self, weight: Tensor, grid: WeightGrid) -> Tensor:  # noqa: D102
        return weight


class NoRounding(Rounding):
    """Passes on a float weight."""

    def codes(self, weight: Tensor, grid: WeightGrid) -> Tensor:
        """Raise RuntimeError: a float weight has no codes."""
        raise RuntimeError("a weight that isn't rounded has no codes")

    def forward(self, weight: Tensor, grid: WeightGrid) -> Tensor:  # noqa: D102
        return weight


class LearnedRounding(Rounding):
    """Rounds up or down by a learned V (AdaRound): softly by h(V), or hard where h(V) ≥ ½.

    Soft rounding is differentiable, and begins at the float weight itself: h(V) is the fraction
    that flooring cuts off.

    Args:
        weight: the float weight.
        grid: the weight's grid.
    """

    def __init__(self, weight: Tensor, grid: WeightGrid) -> None:
        super().__init__()
        with torch.no_grad():
            # h(V) then equals the fraction that floor cuts off, and soft rounding gives the weight
            # itself.
            ratio = weight / grid.scale
            self.v = nn.Parameter(inverse_rectified_sigmoid(ratio - ratio.floor()))
        self.hard = False

    def harden(self) -> None:
        """Switch from soft to hard rounding."""
        self.hard = True

    def codes(self, weight: Tensor, grid: WeightGrid) -> Tensor:
        """Return the codes; soft ones lie between two integers."""
        up = rectified_sigmoid(self.v)
        if self.hard:
            up = (up >= 0.5).to(weight.dtype)
        codes = (weight / grid.scale).floor() + up + grid.zero_point
        return codes.clamp(grid.quant_min, grid.quant_max)


class LatentRounding(Rounding):
    """Rounds learned latents to codes, the gradient straight through.

    A latent begins at its code, up to 0.49 steps nearer to the float weight, and moves by at most
    one step.

    Args:
        weight: the weight on its grid.
        reference: the float weight that the codes stand for, same shape.
        grid: the weight's grid.
    """

    home: Tensor

    def __init__(self, weight: Tensor, reference: Tensor, grid: WeightGrid) -> None:
        super().__init__()
        with torch.no_grad():
            codes = quantize(weight, *grid)
            nearer = reference / grid.scale + grid.zero_point - codes
            home = codes + nearer.clamp(-_NEAR, _NEAR)
            self.latent = nn.Parameter(home)
            self.register_buffer("home", home.clone())

    def codes(self, weight: Tensor, grid: WeightGrid) -> Tensor:  # noqa: D102
        # Bounded, or the codes would leave the neighbourhood of the float weight.
        moved = self.home + (self.latent - self.home).clamp(-1.0, 1.0)
        return round_ste(moved).clamp(grid.quant_min, grid.quant_max)
