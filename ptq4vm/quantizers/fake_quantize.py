"""Activation quantizer with learned scale and zero point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ptq4vm.quantizers.functional import (
    centred_codes,
    clamp_ste,
    fake_quantize,
    random_mask,
    round_ste,
)
from ptq4vm.quantizers.observers import Observer
from ptq4vm.quantizers.qconfig import QuantSpec

DRIFT = 0.5
"""Maximum distance of a saved zero point from the code range, as a fraction of that range."""


class LearnedScaleFakeQuantize(nn.Module):
    """Fake quantizer with learned scale and zero point (LSQ+, arXiv 2004.09576).

    The parameters are the logarithm of the scale, and the zero point as a fraction of the number of
    codes, so that one learning rate suits all tensors. The zero point is rounded with a
    straight-through gradient.

    Args:
        spec: Grid; ``per_channel`` has one grid for each channel of (B, C, h, w).
        channels: C; needed for ``per_channel`` only.
    """

    ready: Tensor

    def __init__(self, spec: QuantSpec, channels: int = 1) -> None:
        super().__init__()
        self.spec = spec
        # Broadcasts against (B, C, h, w).
        shape = (channels, 1, 1) if spec.granularity == "per_channel" else (1,)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.zeros(shape), requires_grad=spec.grid == "affine")
        # True once a range is set; saved, so that loading detects unfinished checkpoints.
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.enabled = True
        self.observer: Observer | None = None
        self.drop_prob = 0.0
        """Fraction of the values randomly left float (QDrop, arXiv 2203.05740)."""

    @property
    def on_grid(self) -> bool:
        """True if all outputs lie on the grid."""
        return self.enabled and self.drop_prob == 0.0

    @property
    def scale(self) -> Tensor:
        """Scale, positive, (1,) or (C, 1, 1)."""
        return self.log_scale.exp()

    @property
    def zero_point(self) -> Tensor:
        """Zero point, same shape as ``scale``, an integer in [quant_min, quant_max]."""
        codes = self.spec.quant_max - self.spec.quant_min
        return clamp_ste(round_ste(self.offset * codes), self.spec.quant_min, self.spec.quant_max)

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Initialise scale and zero point, (1,) or (C,) each, and mark the quantizer as ready."""
        self.log_scale.copy_(scale.log().view_as(self.log_scale))
        self.offset.copy_(
            (zero_point / (self.spec.quant_max - self.spec.quant_min)).view_as(self.offset)
        )
        self.ready.fill_(True)

    @torch.no_grad()
    def bound_(self) -> None:
        """Clamp the learned zero point to at most :data:`DRIFT` beyond the codes.

        Every use clamps it to the codes themselves, with a gradient that passes through, so that in
        a long fit it can move far away.
        """
        codes = self.spec.quant_max - self.spec.quant_min
        low, high = self.spec.quant_min / codes - DRIFT, self.spec.quant_max / codes + DRIFT
        self.offset.clamp_(low, high)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.observer is not None:
            self.observer.observe(x)
        if not self.enabled:
            return x
        keep = random_mask(x, 1.0 - self.drop_prob) if self.drop_prob > 0.0 else None
        return fake_quantize(
            x, self.scale, self.zero_point, self.spec.quant_min, self.spec.quant_max, keep
        )

    def codes(self, x: Tensor) -> Tensor:
        """Return the integer codes minus the zero point; times ``scale`` they equal the output."""
        return centred_codes(
            x, self.scale, self.zero_point, self.spec.quant_min, self.spec.quant_max
        )

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.spec.bits}, grid={self.spec.grid}"


def activation_quantizers(module: nn.Module) -> list[LearnedScaleFakeQuantize]:
    """Return all activation quantizers of the module, in order of definition."""
    return [child for child in module.modules() if isinstance(child, LearnedScaleFakeQuantize)]


@contextmanager
def observing(
    quantizers: list[LearnedScaleFakeQuantize],
    choose: Callable[[Observer], tuple[Tensor, Tensor]] = Observer.calculate_qparams,
) -> Iterator[None]:
    """Context in which quantizers pass values through unchanged and observe them.

    At exit, each quantizer is initialised from its observations.

    Args:
        quantizers: Quantizers to calibrate.
        choose: Function from an observer to scale and zero point.
    """
    for quantizer in quantizers:
        # Off: ranges are those of activations that no other range has touched.
        quantizer.observer, quantizer.enabled = Observer(quantizer.spec), False
    try:
        yield
        for quantizer in quantizers:
            if quantizer.observer is not None:
                quantizer.set_qparams(*choose(quantizer.observer))
    finally:
        for quantizer in quantizers:
            quantizer.observer, quantizer.enabled = None, True


@contextmanager
def dropping(quantizers: list[LearnedScaleFakeQuantize], drop_prob: float) -> Iterator[None]:
    """Context in which a random fraction ``drop_prob`` of the values stays float (QDrop)."""
    for quantizer in quantizers:
        quantizer.drop_prob = drop_prob
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.drop_prob = 0.0
