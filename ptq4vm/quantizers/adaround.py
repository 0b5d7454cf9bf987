"""The weight quantizer: round to nearest, or learned rounding (AdaRound, arXiv 2004.10568)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers.functional import choose_qparams, dequantize, quantize, round_ste
from ptq4vm.quantizers.observers import find_range
from ptq4vm.quantizers.qconfig import QuantSpec

ZETA, GAMMA = 1.1, -0.1
_NEAR = 0.49
"""So far from its code can a latent lie at most to be rounded to it."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1), with ζ = 1.1 and γ = -0.1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V such that :func:`rectified_sigmoid` (V) = h, for h in [0, 1]."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1.0)


def rounding_regularizer(v: Tensor, beta: float) -> Tensor:
    """Σ 1 - |2 h(V) - 1|^β: zero when every rounding has decided for up or down."""
    return _RoundingRegularizer.apply(v, beta)


class _RoundingRegularizer(torch.autograd.Function):
    # Each power is taken once: half of what autograd needs, in blocks with many weights and few pixels.

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:  # type: ignore[override]
        sigmoid = torch.sigmoid(v)
        raw = (sigmoid * (ZETA - GAMMA)).add_(GAMMA)
        signed = raw.clamp(0.0, 1.0).mul_(2.0).sub_(1.0)  # 2 h(V) - 1
        size = signed.abs()
        power = size.pow(beta)
        slope = (
            (power / size.clamp_(min=1e-12)).mul_(signed.sign_()).mul_(-2.0 * beta * (ZETA - GAMMA))
        )
        slope = torch.ops.aten.sigmoid_backward(slope, sigmoid)
        ctx.save_for_backward(torch.ops.aten.hardtanh_backward(slope, raw, 0.0, 1.0))
        return power.numel() - power.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * grad, None


def annealed_beta(
    progress: float, warmup: float, start: float = 20.0, end: float = 2.0
) -> float | None:
    """β after ``progress`` in [0, 1] of a block's steps: cosine from start to end; None during the warm-up."""
    if progress < warmup:
        return None
    t = (progress - warmup) / max(1.0 - warmup, 1e-8)
    return end + 0.5 * (start - end) * (1.0 + math.cos(t * math.pi))


class WeightQuantizer(nn.Module):
    """Quantizes a weight (out channels, ...) that it does not own.

    ``rounding`` holds V of AdaRound. What happens to it is explicit: ``mode`` is ``nearest`` (V unused), ``soft``
    (h(V), differentiable), ``hard`` (h(V) ≥ ½), ``latent`` (see :meth:`start_latent`), ``fixed`` (the weight lies on
    the grid already: nothing is done) or ``float`` (the weight is used as it is).
    """

    scale: Tensor
    zero_point: Tensor
    absorbed: Tensor | None
    """The product of all γ that were multiplied into the scale, shaped as it; None where that is not known."""
    home: Tensor

    def __init__(self, weight: Tensor, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.mode = "nearest"
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
        self.rounding: nn.Parameter | None = None
        self.latent: nn.Parameter | None = None
        self.register_buffer("home", None)

    @torch.no_grad()
    def start_rounding(self, weight: Tensor) -> None:
        """Make V such that soft rounding gives the float weight itself."""
        ratio = weight / self.scale
        self.rounding = nn.Parameter(inverse_rectified_sigmoid(ratio - ratio.floor()))

    @torch.no_grad()
    def start_latent(self, weight: Tensor, floats: Tensor) -> None:
        """Go on learning the codes of a fixed weight, rounded with the gradient straight through.

        Args:
            weight: on its grid.
            floats: the float network's weight, same shape: says how near to another code each code is. None of them
                moves by more than one step.

        Raises:
            PTQ4VMError: which γ the scale has absorbed is not known.
        """
        reference = self.reference(floats)
        if reference is None:
            raise PTQ4VMError(
                "Expected a checkpoint that tells which scales global calibration has absorbed, got one of an earlier "
                "version. Repeat its global calibration, or set weight_lr to 0."
            )
        codes = self.codes(weight)
        near = codes + (reference / self.scale + self.zero_point - codes).clamp(-_NEAR, _NEAR)
        self.home, self.latent, self.mode = near.clone(), nn.Parameter(near), "latent"

    @torch.no_grad()
    def absorb_(self, gamma: Tensor) -> None:
        """Multiply the scale by γ, which broadcasts against it."""
        self.scale.mul_(gamma)
        if self.absorbed is not None:
            self.absorbed.mul_(gamma)

    def reference(self, floats: Tensor) -> Tensor | None:
        """The float weight that the codes stand for: the float network's times all γ absorbed; None if not known."""
        return None if self.absorbed is None else floats * self.absorbed

    def codes(self, weight: Tensor) -> Tensor:
        """The weight's integer codes by the current mode (soft ones lie between two integers)."""
        low, high = self.spec.quant_min, self.spec.quant_max
        if self.latent is not None:
            return round_ste(self.home + (self.latent - self.home).clamp(-1.0, 1.0)).clamp(
                low, high
            )
        if self.mode in ("nearest", "fixed"):
            return quantize(weight, self.scale, self.zero_point, low, high)
        if self.rounding is None:
            raise RuntimeError("start_rounding must come before soft or hard rounding")
        up = rectified_sigmoid(self.rounding)
        if self.mode == "hard":
            up = (up >= 0.5).to(weight.dtype)
        return ((weight / self.scale).floor() + up + self.zero_point).clamp(low, high)

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        if self.mode in ("fixed", "float"):
            return weight
        return dequantize(self.codes(weight), self.scale, self.zero_point)

    @torch.no_grad()
    def fix_(self, weight: Tensor) -> None:
        """Put the weight on the grid, by hard rounding where it was learned, and forget what was learned with."""
        self.mode = "hard" if self.rounding is not None else self.mode
        weight.copy_(self(weight))
        self.mode, self.rounding, self.latent, self.home = "fixed", None, None, None  # type: ignore[assignment]
