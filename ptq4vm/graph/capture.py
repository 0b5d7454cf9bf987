"""A block as a map from sequences to sequences, and the store of what flows between blocks."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ptq4vm.errors import PTQ4VMError, remedy
from ptq4vm.models.base import Block
from ptq4vm.types import RecurrentState


def run_block(
    block: Block, inputs: Sequence[Tensor], state: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Run a block over sequences.

    Args:
        block: the block.
        inputs: one (B, T, ...) tensor for each name in ``block.inputs``.
        state: (B, ...), the recurrent state before the first frame; needed by a block that has one.

    Returns:
        One (B, T, ...) tensor for each name in ``block.outputs``, then, where there is a state, the states after each
        frame, (B, T, ...).
    """
    batch, time = inputs[0].shape[:2]
    if block.state is None:
        # No recurrence: all frames at once.
        outputs = block.forward(*(_frames(x.flatten(0, 1)) for x in inputs))
        return tuple(y.unflatten(0, (batch, time)) for y in outputs)
    if state is None:
        raise PTQ4VMError(f"Expected a recurrent state for block {block.name!r}, got none.")
    steps = []
    for t in range(time):
        step = block.forward(*(_frames(x[:, t]) for x in inputs), state)
        state = step[-1]
        steps.append(step)
    # Concatenated, not stacked: the frames keep their memory format.
    return tuple(
        torch.cat(values).unflatten(0, (time, batch)).transpose(0, 1)
        for values in zip(*steps, strict=True)
    )


def run_blocks(
    blocks: Sequence[Block], values: Mapping[str, Tensor], state: RecurrentState
) -> tuple[dict[str, Tensor], RecurrentState]:
    """Unroll a network, or a part of it, over sequences: each block over all frames before the next one's turn.

    Gives what :meth:`MattingModel.forward_values` gives frame by frame; blocks without a state see all frames at once,
    which several threads, or a GPU, share better.

    Args:
        blocks: in order.
        values: what they read and don't make, by name, (B, T, C, h, w); for a whole network ``src``.
        state: the network's, as the last frame left it, or ``network.initial_state(src[:, 0])``.

    Returns:
        These values with all that the blocks made, (B, T, C, h, w), and the states: those that live in these blocks
        after each frame, (B, T, C, h, w), the others as they were.
    """
    known, states = dict(values), list(state)
    for block in blocks:
        before = None if block.state is None else state[block.state]
        outputs = run_block(block, [known[name] for name in block.inputs], before)
        if block.state is not None:
            *outputs, states[block.state] = outputs  # type: ignore[assignment]
        known.update(zip(block.outputs, outputs, strict=True))
    return known, tuple(states)


def _frames(x: Tensor) -> Tensor:
    """In the format in which :meth:`MattingModel.forward_values` computes."""
    return x.contiguous(memory_format=torch.channels_last)


class SequenceStore:
    """Named tensors for N sequences: in half of the GPU's memory, beyond that in mapped files.

    Of the files the system keeps in memory what fits and writes the rest to disk, so that any number of sequences can
    be held. They have no names, so that the system gives their space back when the process ends, however it ends, and
    all their space is reserved, since a disk that fills under a map ends the process.

    Args:
        folder: on the disk where the files lie; made if it isn't there.
        num_sequences: N.
        device: where :meth:`read` puts tensors.
    """

    def __init__(
        self, folder: Path, num_sequences: int, device: torch.device | str = "cpu"
    ) -> None:
        self.folder = folder
        self.num_sequences = num_sequences
        self.device = torch.device(device)
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def write(self, name: str, index: slice, value: Tensor) -> None:
        """Keep (B, T, ...) as the sequences with these numbers of ``name``; all sequences of a name have one shape."""
        if name not in self._tensors:
            self._tensors[name] = self._allocate(name, value[0])
        self._tensors[name][index].copy_(value)

    def _allocate(self, name: str, value: Tensor) -> Tensor:
        size = self.num_sequences * value.numel()
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            if free - size * 4 > total / 2:  # the other half is for learning
                return torch.empty(self.num_sequences, *value.shape, device=self.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size * 4)
                # Holds the file for as long as the tensor lives.
                flat = torch.frombuffer(mmap.mmap(file.fileno(), size * 4), dtype=torch.float32)
        except OSError as error:
            raise PTQ4VMError(
                f"Expected {size * 4 / 1e9:.3g} GB free in {self.folder} for the cached activations, got: {error}, "
                f"with {_free(self.folder)} GB free. {remedy(error)} Or lower num_sequences or seq_length."
            ) from error
        return flat.view(self.num_sequences, *value.shape)

    def read(self, name: str, index: Tensor | slice) -> Tensor:
        """(B, T, ...) of the sequences with these numbers, on the device."""
        return self._tensors[name][index].to(self.device)

    def drop(self, name: str) -> None:
        """Forget a name and give back its space."""
        self._tensors.pop(name, None)

    def close(self) -> None:
        """Forget all and give back its space."""
        self._tensors.clear()


def _reserve(file: int, size: int) -> None:
    """Make an empty file so large that no write to it needs more space."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = memoryview(bytes(2**20))
    while size > 0:
        size -= os.write(file, zeros[:size])


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e9:.3g}" if folder.is_dir() else "?"
