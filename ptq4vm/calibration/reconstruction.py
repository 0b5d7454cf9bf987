"""Block reconstruction: the rounding and the activation scales of one block are learned.

This is the plain loop; its steps are in :mod:`ptq4vm.calibration.block_steps`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptq4vm.calibration.block_steps import (
    ReconstructionSettings,
    block_step,
    find_ranges,
    harden,
    make_optimizer,
    prepare_layers,
    set_learning_rates,
)
from ptq4vm.calibration.input_scales import choose_input_scales, set_input_scales
from ptq4vm.calibration.losses import reconstruction_loss
from ptq4vm.graph import block_layers, quantized_layers, run_block
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import NearestRounding, QuantizedLayer, temporary_rounding


@dataclass(frozen=True)
class BlockReport:
    """The block's reconstruction loss for three roundings of its weights."""

    nearest: float
    """To nearest, before learning."""
    soft: float
    """By h(V), after learning; to nearest, where rounding is not learned."""
    hard: float
    """By h(V) ≥ ½, as the weights are in the end."""


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

    Example:
        >>> import torch
        >>> from ptq4vm import QConfig
        >>> from ptq4vm.calibration.reconstruction import ReconstructionSettings, reconstruct_block
        >>> from ptq4vm.graph import partition, quantize_network, run_block
        >>> from ptq4vm.models import create_model
        >>> _ = torch.manual_seed(0)
        >>> teacher = create_model("rvm_mobilenetv3")  # random weights
        >>> network = quantize_network(teacher, QConfig(first_last_bits=4, range_method="minmax"))
        >>> src = torch.rand(2, 3, 3, 32, 32)  # two sequences of three frames
        >>> targets = run_block(teacher.blocks()[0], [src])
        >>> settings = ReconstructionSettings(drop_prob=0.0)
        >>> report = reconstruct_block(partition(network)[0], network, [src], targets, settings)
        >>> report.hard < report.nearest
        True
    """
    known = quantized_layers(network)
    layers = [known[name] for name in block_layers(network, block)]
    data = _Sequences(block, inputs, float_inputs, targets)
    prepare_layers(layers, settings)
    if settings.scale_inputs:
        set_input_scales(layers, choose_input_scales(layers, data.run_each))
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
        set_learning_rates(optimizer, layers, settings, progress)
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
