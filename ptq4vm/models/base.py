"""The contract of a matting network: its blocks, its state, and the one time loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingOutput, RecurrentState


@dataclass(frozen=True)
class Block:
    """A functional closure: the smallest part of a network inside which a recurrent state is self-contained.

    ``forward`` takes the values named in ``inputs`` (and, when ``state`` is set, that recurrent state as its last
    argument) and returns one tensor for each name in ``outputs`` as a tuple (followed, when ``state`` is set, by the
    new state). It must look its layers up on the network when called, so that replaced layers are used.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    forward: Callable[..., tuple[Tensor, ...]]
    modules: tuple[str, ...] = ()
    """Dotted names of the submodules whose layers belong to this block."""
    state: int | None = None
    """Index of the recurrent state that lives in this block."""


def chained_blocks(
    first: str,
    prefix: str,
    count: int,
    taps: Mapping[int, str],
    forward: Callable[[int, Tensor], tuple[Tensor]],
) -> list[Block]:
    """The modules ``prefix.0``, ``prefix.1``, ... of an encoder as blocks, each reading what the one before hands on.

    Args:
        first: the value that the first one reads.
        prefix: dotted name of what holds them.
        count: how many there are.
        taps: names of the values that others read too, by number; the rest are ``features<number>``.
        forward: what number and input give.
    """
    blocks, last = [], first
    for index in range(count):
        name, value = f"{prefix}.{index}", taps.get(index, f"features{index}")
        blocks.append(Block(name, (last,), (value,), partial(forward, index), (name,)))
        last = value
    return blocks


class MattingModel(nn.Module, ABC):
    """A matting network, written as blocks over named values.

    The value ``src`` is given; the blocks must produce ``fgr`` and ``pha``, and may produce ``pha_unclamped``, alpha
    before it is clamped to [0, 1], which lets calibration learn where the clamp would stop the gradient. All values
    are maps, (B, C, h, w). A network that predicts no foreground hands on the frame as ``fgr``.
    """

    name: str
    """The registry's name of the network, e.g. ``rvm_mobilenetv3``."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """What :func:`create_model` must be given beside the name to build this network again; plain JSON."""
    state_bound: float | None = None
    """No recurrent state has a value beyond this; None where that is not known."""
    _downsample_ratio = 1.0

    @property
    def downsample_ratio(self) -> float:
        """The network's body works at this fraction of the frame's size, in (0, 1].

        Raises:
            PTQ4VMError: it is set to something else.
        """
        return self._downsample_ratio

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise PTQ4VMError(
                f"Expected downsample_ratio in (0, 1], got {ratio!r}. Use 1 to work at the frame's own size, "
                "or e.g. 0.25 for HD frames."
            )
        self._downsample_ratio = float(ratio)

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The network's blocks in topological order."""

    @abstractmethod
    def initial_state(self, src: Tensor) -> RecurrentState:
        """Zeros, shaped for frames like ``src`` (B, 3, H, W); the empty tuple for a per-frame network."""

    def relu_links(self) -> tuple[tuple[str, str], ...]:
        """Pairs of convolutions, the output of the first going through BatchNorm and ReLU to the second alone."""
        return ()

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published file's tensors under the names of this network's state dict; by default they have them."""
        return state

    def forward_values(
        self, src: Tensor, state: RecurrentState
    ) -> tuple[dict[str, Tensor], RecurrentState]:
        """Run the blocks over one frame.

        Args:
            src: (B, 3, H, W), RGB in [0, 1].
            state: what the last frame left behind, or :meth:`initial_state`.

        Returns:
            Every named value, and the new state.
        """
        # Convolutions then compute, and return, in this format: on CPU the faster one.
        values, new_state = {"src": src.contiguous(memory_format=torch.channels_last)}, list(state)
        for block in self.blocks():
            arguments = [values[name] for name in block.inputs]
            if block.state is not None:
                *outputs, new_state[block.state] = block.forward(*arguments, state[block.state])
            else:
                outputs = list(block.forward(*arguments))
            values.update(zip(block.outputs, outputs, strict=True))
        return values, tuple(new_state)

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """One frame, (B, 3, H, W) RGB in [0, 1], and the state before it."""
        values, state = self.forward_values(src, state)
        return MattingOutput(values["fgr"], values["pha"], state)

    def unroll(self, src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        """A sequence, (B, T, 3, H, W); the state returned is the one after the last frame."""
        state = self.initial_state(src[:, 0]) if state is None else state
        fgr, pha = [], []
        for frame in src.unbind(1):
            output = self.forward_frame(frame, state)
            state = output.state
            fgr.append(output.fgr)
            pha.append(output.pha)
        return MattingOutput(torch.stack(fgr, 1), torch.stack(pha, 1), state)

    forward = unroll
