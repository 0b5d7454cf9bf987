"""Execution of blocks over sequences, and a store for their inputs and outputs."""

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
        block: The block.
        inputs: One (B, T, ...) tensor for each name in ``block.inputs``.
        state: Recurrent state before the first frame, (B, ...); required by a block with state.

    Returns:
        One (B, T, ...) tensor for each name in ``block.outputs``. A block with state appends its
        states after each frame, (B, T, ...).

    Raises:
        PTQ4VMError: The block has a state and ``state`` is None.
    """
    batch, time = inputs[0].shape[:2]
    if block.state is None:
        # No recurrence: all frames at once.
        # (B, T, C, h, w) -> (B T, C, h, w)
        outputs = block.forward(*(_frames(x.flatten(0, 1)) for x in inputs))
        return tuple(y.unflatten(0, (batch, time)) for y in outputs)
    if state is None:
        raise PTQ4VMError(f"Expected a recurrent state for block {block.name!r}, got none.")
    steps = []
    for t in range(time):
        step = block.forward(*(_frames(x[:, t]) for x in inputs), state)
        state = step[-1]
        steps.append(step)
    # torch.cat keeps the frames' memory format; torch.stack does not.
    return tuple(
        torch.cat(values).unflatten(0, (time, batch)).transpose(0, 1)
        for values in zip(*steps, strict=True)
    )


def run_blocks(
    blocks: Sequence[Block], values: Mapping[str, Tensor], state: RecurrentState
) -> tuple[dict[str, Tensor], RecurrentState]:
    """Run a network, or part of it, over sequences block by block.

    Each block processes all frames before the next block starts. The result equals that of
    :meth:`MattingModel.forward_values` frame by frame; stateless blocks process all frames at once,
    which makes better use of threads and GPUs.

    Args:
        blocks: Blocks in order.
        values: Input values by name, (B, T, C, h, w), that these blocks read but do not compute;
            ``src`` for a whole network.
        state: Recurrent state of the network before the first frame, e.g.
            ``network.initial_state(src[:, 0])``.

    Returns:
        The input values and all block outputs, (B, T, C, h, w), and the states: those of these
        blocks after each frame, (B, T, C, h, w), the others unchanged.
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
    """Convert to the memory format of :meth:`MattingModel.forward_values`."""
    return x.contiguous(memory_format=torch.channels_last)


class SequenceStore:
    """Named tensors for N sequences, in GPU memory while half of it is free, else in mapped files.

    The operating system caches the files in memory and writes the rest to disk, so the number of
    sequences is not limited by memory. The files are unlinked, so their space is freed whenever the
    process ends. Their space is reserved in advance, since a full disk under a memory map kills the
    process.

    Args:
        folder: Folder for the files; created if missing.
        num_sequences: N.
        device: Device on which :meth:`read` returns tensors.
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
        """Store (B, T, ...) as sequences ``index`` of ``name``.

        All sequences of a name have the same shape.

        Raises:
            PTQ4VMError: The disk is full or the folder cannot be written.
        """
        if name not in self._tensors:
            self._tensors[name] = self._allocate(name, value[0])
        self._tensors[name][index].copy_(value)

    def _allocate(self, name: str, value: Tensor) -> Tensor:
        size = self.num_sequences * value.numel()
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            if free - size * 4 > total / 2:  # half is left for training
                return torch.empty(self.num_sequences, *value.shape, device=self.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size * 4)
                # The tensor keeps the map, and thus the file, alive.
                flat = torch.frombuffer(mmap.mmap(file.fileno(), size * 4), dtype=torch.float32)
        except OSError as error:
            raise PTQ4VMError(
                f"Expected {size * 4 / 1e9:.3g} GB free in {self.folder} for the cached "
                f"activations, got: {error}, with {_free(self.folder)} GB free. {remedy(error)} Or "
                "lower num_sequences or seq_length."
            ) from error
        return flat.view(self.num_sequences, *value.shape)

    def read(self, name: str, index: Tensor | slice) -> Tensor:
        """Return sequences ``index`` of ``name``, (B, T, ...), on the device."""
        return self._tensors[name][index].to(self.device)

    def drop(self, name: str) -> None:
        """Delete a name and free its space."""
        self._tensors.pop(name, None)

    def close(self) -> None:
        """Delete all names and free their space."""
        self._tensors.clear()


def _reserve(file: int, size: int) -> None:
    """Reserve ``size`` bytes for an empty file."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = memoryview(bytes(2**20))
    while size > 0:
        size -= os.write(file, zeros[:size])


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e9:.3g}" if folder.is_dir() else "?"
