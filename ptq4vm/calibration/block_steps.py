"""Steps of block reconstruction, called by the plain loop and by the Lightning module.

The methods are settings: AdaRound (arXiv 2004.10568), BRECQ (arXiv 2102.05426), QDrop (arXiv
2203.05740) and rounding to nearest.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ptq4vm.calibration.losses import cosine
from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import (
    LatentRounding,
    LearnedRounding,
    LearnedScaleFakeQuantize,
    NearestRounding,
    Observer,
    QuantizedLayer,
    annealed_beta,
    cached_weights,
    dropping,
    observing,
    random_mask,
    rounding_regularizer,
    temporary_rounding,
)


@dataclass(frozen=True)
class ReconstructionSettings:
    """Settings of block reconstruction; the defaults are QDrop.

    Args:
        scale_inputs: scale the input channels of dense convolutions where that lowers the error of
            their outputs; see :mod:`ptq4vm.calibration.input_scales`.
        learn_rounding: learn the rounding of the weights, else round to nearest.
        learn_scales: learn scales and zero points of the activations.
        drop_prob: QDrop: share of values that stay float, in the block's input and at each
            quantizer inside it.
        rounding: ``adaround`` learns a V for each weight, pushed to round up or down by a
            regularizer; ``codes`` learns the codes straight through their rounding.
        rounding_lr: Adam's learning rate for the roundings' V; or for the codes, in steps of their
            grids, with cosine decay within each block.
        scale_lr: Adam's learning rate for log scales and zero points, with cosine decay within each
            block.
        absolute_scales: ``scale_lr`` is that of the scales themselves instead of their logarithms,
            as published methods state it.
        rounding_weight: weight of AdaRound's regularizer.
        warmup: share of a block's steps without the regularizer.

    Raises:
        PTQ4VMError: a share isn't within [0, 1].
    """

    scale_inputs: bool = False
    learn_rounding: bool = True
    learn_scales: bool = True
    rounding: Literal["adaround", "codes"] = "adaround"
    drop_prob: float = 0.5
    rounding_lr: float = 1e-2
    scale_lr: float = 1e-3
    absolute_scales: bool = False
    rounding_weight: float = 0.01
    warmup: float = 0.2

    def __post_init__(self) -> None:
        for name in ("drop_prob", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise PTQ4VMError(
                    f"Expected {name} within [0, 1], got {getattr(self, name)}. Correct it."
                )

    @property
    def learns(self) -> bool:
        """False for rounding to nearest."""
        return self.learn_rounding or self.learn_scales


class StepLosses(NamedTuple):
    """The loss of a step, and its terms, ()."""

    total: Tensor
    reconstruction: Tensor
    rounding: Tensor | None
    """AdaRound's regularizer, unweighted; None where it is not in the loss."""


def prepare_layers(layers: Iterable[QuantizedLayer], settings: ReconstructionSettings) -> None:
    """Replace rounding to nearest by a learned one, in place, if rounding is learned."""
    if not settings.learn_rounding:
        return
    for layer in layers:
        layer.weight_quantizer.start_rounding(layer.weight, straight=settings.rounding == "codes")
        for parameter in (p for one in layer.activation_quantizers for p in one.parameters()):
            # Offsets of grids without a zero point stay frozen.
            parameter.requires_grad_(parameter.requires_grad and settings.learn_scales)


@torch.no_grad()
def find_ranges(
    layers: Sequence[QuantizedLayer],
    run: Callable[[], None],
    choose: Callable[[Observer], tuple[Tensor, Tensor]] = Observer.calculate_qparams,
) -> None:
    """Set the activation ranges of layers, their weights rounded to nearest.

    Args:
        layers: of one block.
        run: runs the block over all sequences.
        choose: returns scale and zero point for an observer.
    """
    with (
        temporary_rounding(layers, NearestRounding),
        observing(_activation_quantizers(layers), choose),
        cached_weights(layers),
    ):
        run()


def make_optimizer(
    layers: Iterable[QuantizedLayer], settings: ReconstructionSettings
) -> torch.optim.Adam:
    """Return Adam over all that is learned in these layers: groups ``rounding`` and ``scales``."""
    layers = list(layers)
    roundings = _learned_roundings(layers) if settings.learn_rounding else []
    groups = [{"params": roundings, "lr": settings.rounding_lr, "name": "rounding"}]
    if settings.learn_scales:
        quantizers = _activation_quantizers(layers)
        groups += scale_groups(quantizers, settings.scale_lr, absolute=settings.absolute_scales)
    return torch.optim.Adam([group for group in groups if group["params"]])


def scale_groups(
    quantizers: Sequence[LearnedScaleFakeQuantize], lr: float, *, absolute: bool
) -> list[dict[str, Any]]:
    """Return Adam's groups for what activation quantizers learn, named ``scales``.

    Args:
        quantizers: ranges of those with ``absolute`` scales are set, or :func:`set_learning_rates`
            is called before every step.
        lr: learning rate of log scales and zero points.
        absolute: ``lr`` is that of the scales themselves: a step of Adam by ``lr`` in a scale s is
            one by ``lr`` / s in its logarithm. Each scale then has a group of its own.
    """
    learned = [
        parameter
        for quantizer in quantizers
        for parameter in quantizer.parameters()
        if parameter.requires_grad
    ]
    if not absolute:
        return [{"params": learned, "lr": lr, "name": "scales"}]
    logs = [one.log_scale for one in quantizers if one.log_scale.requires_grad]
    known = set(map(id, logs))
    others = [parameter for parameter in learned if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr, "name": "scales"}]
    return groups + [{"params": [one], "lr": lr * _steepness(one), "name": "scale"} for one in logs]


def _steepness(log_scale: Tensor) -> float:
    """Return the change of a scale's logarithm by that of the scale, the mean over channels."""
    return float(log_scale.detach().neg().exp().mean())


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    layers: Sequence[QuantizedLayer],
    settings: ReconstructionSettings,
    progress: float,
) -> None:
    """Decay the learning rates of a block by a cosine.

    AdaRound's stays: its regularizer needs full steps at the end.

    Args:
        optimizer: from :func:`make_optimizer`.
        layers: of the block.
        settings: settings of the reconstruction.
        progress: share of steps done.
    """
    own = {id(one.log_scale) for layer in layers for one in layer.activation_quantizers}
    for group in optimizer.param_groups:
        if (name := group.get("name")) in ("scales", "scale"):
            group["lr"] = settings.scale_lr * cosine(progress)
            # Reading a scale waits for the device; those of other blocks have no gradient.
            if name == "scale" and id(group["params"][0]) in own:
                group["lr"] *= _steepness(*group["params"])
        elif settings.rounding == "codes":
            group["lr"] = settings.rounding_lr * cosine(progress)


def block_step(
    reconstruct: Callable[[Sequence[Tensor]], Tensor],
    layers: Sequence[QuantizedLayer],
    inputs: Sequence[Tensor],
    float_inputs: Sequence[Tensor] | None,
    settings: ReconstructionSettings,
    progress: float,
) -> StepLosses:
    """Return the loss of one step: reconstruction under QDrop, and AdaRound's regularizer.

    Args:
        reconstruct: runs the block on inputs and returns its reconstruction loss, ().
        layers: of the block.
        inputs: from the quantized blocks before, (B, T, C, h, w) each.
        float_inputs: from the float blocks before; None mixes none into ``inputs``.
        settings: of block reconstruction.
        progress: share of the block's steps that are done, in [0, 1].
    """
    if settings.drop_prob > 0.0 and float_inputs is not None:
        pairs = zip(inputs, float_inputs, strict=True)
        # QDrop in the block's input; dropping, below, is QDrop at its quantizers.
        inputs = [_mix(quantized, floats, settings.drop_prob) for quantized, floats in pairs]
    # Weights are rounded once a step, not once a frame; their gradient sums over the frames.
    with dropping(_activation_quantizers(layers), settings.drop_prob), cached_weights(layers):
        reconstruction = reconstruct(inputs)
    beta = annealed_beta(progress, settings.warmup)
    if not settings.learn_rounding or settings.rounding == "codes" or beta is None:
        return StepLosses(reconstruction, reconstruction, None)
    penalties = [rounding_regularizer(v, beta) for v in _learned_roundings(layers)]
    penalty = torch.stack(penalties).sum()
    return StepLosses(reconstruction + settings.rounding_weight * penalty, reconstruction, penalty)


def harden(layers: Iterable[QuantizedLayer]) -> None:
    """Round up or down for good by what was learned, in place."""
    for layer in layers:
        layer.weight_quantizer.rounding.harden()


def _activation_quantizers(layers: Iterable[QuantizedLayer]) -> list[LearnedScaleFakeQuantize]:
    return [one for layer in layers for one in layer.activation_quantizers]


def _learned_roundings(layers: Iterable[QuantizedLayer]) -> list[nn.Parameter]:
    roundings = [layer.weight_quantizer.rounding for layer in layers]
    learned = [one.v for one in roundings if isinstance(one, LearnedRounding)]
    return learned + [one.latent for one in roundings if isinstance(one, LatentRounding)]


def _mix(quantized: Tensor, floats: Tensor, drop_prob: float) -> Tensor:
    """Replace a random share of the quantized values by float ones."""
    return torch.lerp(quantized, floats, random_mask(quantized, drop_prob).to(quantized.dtype))
