"""The activations between blocks, of the float and of the quantized network, block after block."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ptq4vm.calibration.block_steps import harden
from ptq4vm.graph import SequenceStore, run_block
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import QuantizedLayer, cached_weights

Side = Literal["float", "quantized"]


class BlockWalk:
    """Runs every block once over the calibration sequences, and keeps what later blocks read.

    Args:
        store: holds ``float/src`` and ``quantized/src``, (T, 3, H, W) for each sequence, and the
            recurrent states before them, ``first/state0`` and so on, (C, h, w).
        network: the quantized network.
        teacher: the float network.
        layers: the quantized layers of each block of ``network``, by block name.
        batch_size: sequences that a block is run over at once.
        float_sequences: run the float blocks over the first so many sequences; None takes all.
    """

    def __init__(
        self,
        store: SequenceStore,
        network: MattingModel,
        teacher: MattingModel,
        layers: Mapping[str, Sequence[QuantizedLayer]],
        batch_size: int,
        float_sequences: int | None = None,
    ) -> None:
        self.store, self.layers, self.batch_size = store, layers, batch_size
        self.networks: dict[Side, MattingModel] = {"float": teacher, "quantized": network}
        self.blocks: dict[Side, tuple[Block, ...]] = {
            side: one.blocks() for side, one in self.networks.items()
        }
        count = store.num_sequences
        floats = count if float_sequences is None else min(float_sequences, count)
        self.counts: dict[Side, int] = {"float": floats, "quantized": count}
        self._position = 0

    def reach(self, block: Block) -> None:
        """Run both networks up to a block, and the float one over it too.

        The roundings of the blocks before become hard. Activations that no later block reads are
        dropped.
        """
        names = [other.name for other in self.blocks["quantized"]]
        for name in names[self._position : names.index(block.name)]:
            harden(self.layers[name])
            if f"float/{self._find(name, 'float').outputs[0]}" not in self.store:
                self._run_over_all(name, "float")  # else it ran when the block was learned
            self._run_over_all(name, "quantized")
            self._drop_after(names.index(name))
        self._position = names.index(block.name)
        self._run_over_all(block.name, "float")

    def inputs(self, block: Block, side: Side, index: Tensor | slice) -> list[Tensor]:
        """Return the block's inputs for the sequences of this index, (B, T, C, h, w) each."""
        return [self.store.read(f"{side}/{name}", index) for name in block.inputs]

    def targets(self, block: Block, index: Tensor | slice) -> tuple[Tensor, ...]:
        """Return the float block's outputs, and last its states, (B, T, C, h, w) each."""
        return tuple(self.store.read(f"float/{name}", index) for name in _results(block))

    def run(
        self, block: Block, side: Side, inputs: Sequence[Tensor], index: Tensor | slice
    ) -> tuple[Tensor, ...]:
        """Run the block of this name in one network, on inputs for the sequences of this index."""
        state = None
        if block.state is not None:
            state = self.store.read(f"first/state{block.state}", index)
        return run_block(self._find(block.name, side), inputs, state)

    def _find(self, name: str, side: Side) -> Block:
        return next(block for block in self.blocks[side] if block.name == name)

    @torch.no_grad()
    def _run_over_all(self, name: str, side: Side) -> None:
        block, count = self._find(name, side), self.counts[side]
        with cached_weights(self.layers[name]):
            for start in range(0, count, self.batch_size):
                part = slice(start, min(start + self.batch_size, count))
                outputs = self.run(block, side, self.inputs(block, side, part), part)
                for result, value in zip(_results(block), outputs, strict=True):
                    self.store.write(f"{side}/{result}", part, value)

    def _drop_after(self, position: int) -> None:
        blocks = self.blocks["quantized"]
        needed = {name for later in blocks[position + 1 :] for name in later.inputs}
        written = {name for done in blocks[: position + 1] for name in _results(done)}
        for name in written - needed:
            self.store.drop(f"float/{name}")
            self.store.drop(f"quantized/{name}")


def _results(block: Block) -> tuple[str, ...]:
    """Names of a block's outputs, and of its state."""
    return (*block.outputs, *(() if block.state is None else (f"state{block.state}",)))
