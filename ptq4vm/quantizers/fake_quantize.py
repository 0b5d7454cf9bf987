"""The activation quantizer, with learned scale and zero point."""

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


class LearnedScaleFakeQuantize(nn.Module):
    """Fake-quantizes a tensor on a grid whose scale and zero point are learned (LSQ+, arXiv 2004.09576).

    The parameters are relative, so that one learning rate suits all tensors: the logarithm of the scale, and the zero
    point as a fraction of the number of codes. Gradients pass the rounding of the zero point straight through.

    Args:
        spec: the grid; ``per_channel`` has one for each channel of (B, C, h, w).
        channels: C, which only ``per_channel`` needs.
    """

    ready: Tensor

    def __init__(self, spec: QuantSpec, channels: int = 1) -> None:
        super().__init__()
        self.spec = spec
        shape = (channels, 1, 1) if spec.granularity == "per_channel" else (1,)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.zeros(shape), requires_grad=spec.grid == "affine")
        # Whether a range was found. In checkpoints, so that an unfinished one is known when it is loaded.
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.enabled = True
        self.observer: Observer | None = None
        self.drop_prob = 0.0
        """QDrop (arXiv 2203.05740): this share of the values is left float at random."""

    @property
    def on_grid(self) -> bool:
        """Whether all that leaves it lies on its grid."""
        return self.enabled and self.drop_prob == 0.0

    @property
    def scale(self) -> Tensor:
        """Positive, (1,) or (C, 1, 1)."""
        return self.log_scale.exp()

    @property
    def zero_point(self) -> Tensor:
        """As ``scale``, an integer between the lowest and the highest code."""
        codes = self.spec.quant_max - self.spec.quant_min
        return clamp_ste(round_ste(self.offset * codes), self.spec.quant_min, self.spec.quant_max)

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Start from these, (1,) or (C,) each."""
        self.log_scale.copy_(scale.log().view_as(self.log_scale))
        self.offset.copy_(
            (zero_point / (self.spec.quant_max - self.spec.quant_min)).view_as(self.offset)
        )
        self.ready.fill_(True)

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
        """The integers, less the zero point, that times ``scale`` are what :meth:`forward` makes of x."""
        return centred_codes(
            x, self.scale, self.zero_point, self.spec.quant_min, self.spec.quant_max
        )

    def extra_repr(self) -> str:  # noqa: D102
        return f"bits={self.spec.bits}, grid={self.spec.grid}"


def activation_quantizers(module: nn.Module) -> list[LearnedScaleFakeQuantize]:
    """All of them inside the module, in order of definition."""
    return [child for child in module.modules() if isinstance(child, LearnedScaleFakeQuantize)]


@contextmanager
def observing(
    quantizers: list[LearnedScaleFakeQuantize],
    choose: Callable[[Observer], tuple[Tensor, Tensor]] = Observer.calculate_qparams,
) -> Iterator[None]:
    """Inside, the quantizers pass values on as they are and collect them; at the end each starts from what it saw.

    Args:
        quantizers: which.
        choose: gives scale and zero point for what was seen.
    """
    for quantizer in quantizers:
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
    """Inside, a share of the values stays float at random (QDrop)."""
    for quantizer in quantizers:
        quantizer.drop_prob = drop_prob
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.drop_prob = 0.0
