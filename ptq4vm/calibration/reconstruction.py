"""Block reconstruction: the rounding and the activation scales of one block are learned.

The methods are settings: AdaRound (arXiv 2004.10568), BRECQ (arXiv 2102.05426), QDrop (arXiv
2203.05740) and rounding to nearest.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptq4vm.calibration.losses import cosine, reconstruction_loss
from ptq4vm.graph import block_layers, quantized_layers, run_block
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import (
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
    """Settings of block reconstruction; the defaults are QDrop."""

    learn_rounding: bool = True
    """Learn the rounding of the weights, else round to nearest."""
    learn_scales: bool = True
    """Learn scales and zero points of the activations."""
    drop_prob: float = 0.5
    """QDrop: share of values that stay float, in the block's input and at each quantizer."""
    rounding_lr: float = 1e-2
    """Adam's learning rate for V."""
    scale_lr: float = 1e-3
    """Adam's learning rate for log scales and zero points, with cosine decay."""
    rounding_weight: float = 0.01
    """Weight of AdaRound's regularizer."""
    warmup: float = 0.2
    """Share of the steps without the regularizer."""

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


@dataclass(frozen=True)
class BlockReport:
    """The block's reconstruction loss for three roundings of its weights."""

    nearest: float
    """To nearest, before learning."""
    soft: float
    """By h(V), after learning; to nearest, where rounding is not learned."""
    hard: float
    """By h(V) ≥ ½, as the weights are in the end."""


# ---- the plain loop ------------------------------------------------------------------------------


def reconstruct_block(
    block: Block,
    network: MattingModel,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    settings: ReconstructionSettings,
    *,
    float_inputs: Sequence[Tensor] | None = None,
    steps: int = 100,
    batch_size: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> BlockReport:
    """Find the ranges of a block, learn its rounding and scales, and make the rounding hard.

    Recurrent states begin at 0. Which sequences and values are drawn is decided by torch's seed.

    Args:
        block: of ``network``.
        network: the quantized network; the block's layers are changed in place.
        inputs: from the quantized blocks before, (B, T, C, h, w) for each of ``block.inputs``.
        targets: the float block's outputs, and last its states where it has them, likewise.
        settings: of block reconstruction.
        float_inputs: from the float blocks before, which QDrop mixes into ``inputs``.
        steps: optimizer steps.
        batch_size: sequences in a step, drawn anew for each; None takes all.
        on_step: called with the number of steps done, after each.
    """
    known = quantized_layers(network)
    layers = [known[name] for name in block_layers(network, block)]
    data = _Sequences(block, inputs, float_inputs, targets)
    prepare_layers(layers, settings)
    find_ranges(layers, data.run_each)
    # The baseline that learning has to beat.
    with temporary_rounding(layers, NearestRounding):
        nearest = data.score()
    if settings.learns:
        _learn(layers, data, settings, steps, batch_size, on_step or _ignore)
    soft = data.score()
    harden(layers)
    return BlockReport(nearest, soft, data.score())


def _learn(
    layers: Sequence[QuantizedLayer],
    data: "_Sequences",
    settings: ReconstructionSettings,
    steps: int,
    batch_size: int | None,
    on_step: Callable[[int], None],
) -> None:
    optimizer = make_optimizer(layers, settings)
    for step in range(steps):
        progress = step / steps
        set_scale_lr(optimizer, settings, progress)
        batch = data if batch_size is None else data.draw(batch_size)
        inputs, floats = batch.inputs, batch.float_inputs
        losses = block_step(batch.loss, layers, inputs, floats, settings, progress)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        on_step(step + 1)


def _ignore(_: int) -> None:
    pass


class _Sequences(NamedTuple):
    """A block with calibration sequences of its inputs and targets, (B, T, C, h, w) each."""

    block: Block
    inputs: Sequence[Tensor]
    float_inputs: Sequence[Tensor] | None
    targets: Sequence[Tensor]

    def take(self, rows: Tensor | slice) -> "_Sequences":
        """Return the sequences with these numbers."""
        floats = self.float_inputs and [x[rows] for x in self.float_inputs]
        inputs, targets = ([x[rows] for x in values] for values in (self.inputs, self.targets))
        return _Sequences(self.block, inputs, floats, targets)

    def draw(self, count: int) -> "_Sequences":
        """Return ``count`` of the sequences, drawn at random."""
        return self.take(torch.randperm(len(self.inputs[0]))[:count])

    def loss(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the block's reconstruction loss on inputs that stand in for its own, ()."""
        # The last target is the state after each frame; before the first frame it is 0.
        state = None if self.block.state is None else torch.zeros_like(self.targets[-1][:, 0])
        return reconstruction_loss(run_block(self.block, inputs, state), tuple(self.targets))

    @torch.no_grad()
    def score(self) -> float:
        """Return the block's reconstruction loss."""
        return float(self.loss(self.inputs))

    def run_each(self) -> None:
        """Run the block over one sequence after the other."""
        # One at a time: an observer samples each call alike, and memory stays that of one sequence.
        for index in range(len(self.inputs[0])):
            one = self.take(slice(index, index + 1))
            one.loss(one.inputs)


# ---- its steps -----------------------------------------------------------------------------------


def prepare_layers(layers: Iterable[QuantizedLayer], settings: ReconstructionSettings) -> None:
    """Replace rounding to nearest by a learned one, in place, if rounding is learned."""
    if not settings.learn_rounding:
        return
    for layer in layers:
        layer.weight_quantizer.start_rounding(layer.weight)
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
    scales = [
        parameter
        for quantizer in _activation_quantizers(layers)
        for parameter in quantizer.parameters()
        if parameter.requires_grad and settings.learn_scales
    ]
    groups = [
        {"params": roundings, "lr": settings.rounding_lr, "name": "rounding"},
        {"params": scales, "lr": settings.scale_lr, "name": "scales"},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def set_scale_lr(
    optimizer: torch.optim.Optimizer, settings: ReconstructionSettings, progress: float
) -> None:
    """Decay the scales' learning rate by a cosine; ``progress`` is the share of steps done."""
    for group in optimizer.param_groups:
        if group.get("name") == "scales":
            group["lr"] = settings.scale_lr * cosine(progress)


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
    with dropping(_activation_quantizers(layers), settings.drop_prob), cached_weights(layers):
        reconstruction = reconstruct(inputs)
    beta = annealed_beta(progress, settings.warmup)
    if not settings.learn_rounding or beta is None:
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
    return [one.v for one in roundings if isinstance(one, LearnedRounding)]


def _mix(quantized: Tensor, floats: Tensor, drop_prob: float) -> Tensor:
    """Replace a random share of the quantized values by float ones."""
    return torch.lerp(quantized, floats, random_mask(quantized, drop_prob).to(quantized.dtype))
