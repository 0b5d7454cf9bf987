"""The weight quantizer: a grid, and the rounding to it."""

from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers.functional import choose_qparams
from ptq4vm.quantizers.observers import find_range
from ptq4vm.quantizers.qconfig import QuantSpec
from ptq4vm.quantizers.rounding import (
    FixedRounding,
    LatentRounding,
    LearnedRounding,
    NearestRounding,
    Rounding,
    WeightGrid,
)

_NAMES = {"rounding.v": "rounding", "rounding.latent": "latent", "rounding.home": "home"}
"""Names of a rounding's tensors, and the names that checkpoints of a fit have for them."""


class WeightQuantizer(nn.Module):
    """Quantizes a weight (out channels, ...) that it does not own.

    ``rounding`` is replaced as quantization proceeds: to nearest at first, learned in block
    reconstruction, latent in global calibration, fixed at the end of either.

    Args:
        weight: the float weight, whose range decides the grid.
        spec: bits, symmetry and granularity of the grid.
    """

    scale: Tensor
    zero_point: Tensor
    absorbed: Tensor | None
    """The product of all γ multiplied into the scale, shaped as it; None where it is not known."""

    def __init__(self, weight: Tensor, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        rows = (
            weight.detach().flatten(1)
            if spec.granularity == "per_channel"
            else weight.detach().reshape(1, -1)
        )
        low, high = find_range(rows, spec)
        scale, zero_point = choose_qparams(low, high, spec.quant_min, spec.quant_max, spec.grid)
        # One for each channel even where all are equal: γ for each channel is absorbed into them.
        shape = (weight.shape[0], *(1,) * (weight.dim() - 1))
        self.register_buffer("scale", scale.expand(len(weight)).reshape(shape).clone())
        self.register_buffer("zero_point", zero_point.expand(len(weight)).reshape(shape).clone())
        self.register_buffer("absorbed", torch.ones_like(self.scale))
        self.rounding: Rounding = NearestRounding()
        self.register_state_dict_post_hook(_to_checkpoint_names)
        self.register_load_state_dict_pre_hook(_from_checkpoint_names)

    @property
    def grid(self) -> WeightGrid:
        """The grid in its present state."""
        return WeightGrid(self.scale, self.zero_point, self.spec.quant_min, self.spec.quant_max)

    @property
    def fixed(self) -> bool:
        """Whether the weight lies on its grid for good."""
        return isinstance(self.rounding, FixedRounding)

    @torch.no_grad()
    def restart_(self, weight: Tensor) -> None:
        """Find the grid, and begin the rounding, of another float weight of the same shape.

        Learned parameters stay the same objects.
        """
        fresh = WeightQuantizer(weight, self.spec)
        self.scale.copy_(fresh.scale)
        self.zero_point.copy_(fresh.zero_point)
        if isinstance(self.rounding, LearnedRounding | LatentRounding):
            fresh.start_rounding(weight, straight=isinstance(self.rounding, LatentRounding))
            self.rounding.load_state_dict(fresh.rounding.state_dict())

    def start_rounding(self, weight: Tensor, *, straight: bool = False) -> None:
        """Learn the rounding of a float weight, beginning with the weight itself.

        Args:
            weight: the float weight.
            straight: learn the codes straight through their rounding, in place of AdaRound.
        """
        self.rounding = (
            LatentRounding(weight, weight, self.grid)
            if straight
            else LearnedRounding(weight, self.grid)
        )

    def start_latent(self, weight: Tensor, floats: Tensor) -> None:
        """Learn the codes of a fixed weight.

        Args:
            weight: on its grid.
            floats: the float network's weight, same shape: decides how near to its neighbours each
                latent begins.

        Raises:
            PTQ4VMError: the γ that the scale has absorbed is not known.
            RuntimeError: the weight is not fixed.
        """
        if not self.fixed:
            raise RuntimeError("fix_ must come before start_latent")
        reference = self.reference(floats)
        if reference is None:
            raise PTQ4VMError(
                "Expected a checkpoint that says which scales global calibration has absorbed, got "
                "one of an earlier version. Repeat its global calibration, or set weight_lr to 0."
            )
        self.rounding = LatentRounding(weight, reference, self.grid)

    @torch.no_grad()
    def absorb_(self, gamma: Tensor) -> None:
        """Multiply the scale by γ, which broadcasts against it."""
        self.scale.mul_(gamma)
        if self.absorbed is not None:
            self.absorbed.mul_(gamma)

    def reference(self, floats: Tensor) -> Tensor | None:
        """Return the float weight that the codes stand for: ``floats`` times all absorbed γ.

        None where these are not known.
        """
        return None if self.absorbed is None else floats * self.absorbed

    def codes(self, weight: Tensor) -> Tensor:
        """Return the weight's codes, as floats; learned ones may lie between two integers."""
        return self.rounding.codes(weight, self.grid)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of the same shape."""
        return self.rounding(weight, self.grid)

    @torch.no_grad()
    def fix_(self, weight: Tensor) -> None:
        """Put the weight on its grid, in place, and replace the rounding by a fixed one."""
        self.rounding.harden()
        weight.copy_(self(weight))
        self.rounding = FixedRounding()


def _to_checkpoint_names(
    quantizer: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    _rename(state, prefix, _NAMES)


def _from_checkpoint_names(
    quantizer: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    _rename(state, prefix, {stored: name for name, stored in _NAMES.items()})


def _rename(state: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
    for old, new in names.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)
