"""Base class of matting networks, with their blocks, recurrent state and time loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import FrameModel, MattingOutput, NetworkFacts, RecurrentState


@dataclass(frozen=True)
class Block:
    """Functional closure: the smallest subgraph that contains its recurrent state.

    ``forward`` takes the values named in ``inputs``, followed by the recurrent state if ``state``
    is set. It returns a tuple with one tensor for each name in ``outputs``, followed by the new
    state if ``state`` is set. It must look up its layers on the network at each call, so that
    replaced layers are used.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    forward: Callable[..., tuple[Tensor, ...]]
    modules: tuple[str, ...] = ()
    """Dotted names of the submodules whose layers belong to this block."""
    state: int | None = None
    """Index of the recurrent state in this block; None if the block is stateless."""


def chained_blocks(
    first: str,
    prefix: str,
    count: int,
    taps: Mapping[int, str],
    forward: Callable[[int, Tensor], tuple[Tensor]],
) -> list[Block]:
    """Return the modules ``prefix.0``, ``prefix.1``, ... of an encoder as a chain of blocks.

    Args:
        first: Name of the value that the first block reads.
        prefix: Dotted name of the parent module.
        count: Number of modules.
        taps: Output names by module index, for outputs that other blocks read too; the other
            outputs are named ``features<index>``.
        forward: Function of the module index and its input.
    """
    blocks, last = [], first
    for index in range(count):
        name, value = f"{prefix}.{index}", taps.get(index, f"features{index}")
        # partial, since a lambda would see the loop's last index.
        blocks.append(Block(name, (last,), (value,), partial(forward, index), (name,)))
        last = value
    return blocks


def never_in_place(module: nn.Module) -> None:
    """Make all activations of a module allocate their output.

    Once batch norm is folded, in-place activations would overwrite convolution outputs that
    calibration has captured.
    """
    for child in module.modules():
        if getattr(child, "inplace", False):
            child.inplace = False  # type: ignore[assignment]


class MattingModel(nn.Module, ABC):
    """Matting network, defined as blocks over named values.

    The value ``src`` is given. The blocks must produce ``fgr`` and ``pha``, and may produce
    ``pha_unclamped``, alpha before the clamp to [0, 1], through which calibration has a gradient
    everywhere. All values are maps, (B, C, h, w). A network that predicts no foreground returns the
    frame as ``fgr``.
    """

    name: str
    """Registry name of the network, e.g. ``rvm_mobilenetv3``."""
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Plain-JSON arguments of :func:`create_model`, besides the name, that rebuild this network."""
    state_bound: float | None = None
    """Upper bound of the absolute values of all recurrent states; None if unknown."""
    qconfig: Any = None
    """Configuration of the conversion, a :class:`ptq4vm.QConfig`; None for a float network."""
    facts: NetworkFacts | None = None
    """None: the facts follow from the layers, see :func:`ptq4vm.graph.network_facts`."""
    fixed_ratio: float | None = None
    """None: any downsample ratio can be set."""
    example_size: tuple[int, int] = (64, 64)
    """Height and width of the frame with which layers are traced."""
    # A class attribute, so that a network without the argument works at the frame's own size.
    _downsample_ratio = 1.0

    @property
    def runs_on(self) -> torch.device:
        """Device of the first parameter or buffer; the CPU for a network without any."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the network into evaluation mode for the duration of a context."""
        # Per module, since some modules may be in evaluation mode inside a training network.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @property
    def downsample_ratio(self) -> float:
        """Scale of the network's body relative to the frame size, in (0, 1].

        Raises:
            PTQ4VMError: It is set to a value outside (0, 1].
        """
        return self._downsample_ratio

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
            raise PTQ4VMError(
                f"Expected downsample_ratio in (0, 1], got {ratio!r}. Use 1 to work at the frame's "
                "own size, or e.g. 0.25 for HD frames."
            )
        if self.fixed_ratio not in (None, ratio):
            raise PTQ4VMError(
                f"Expected downsample_ratio {self.fixed_ratio:g}, the only one of {self.name}, got "
                f"{ratio:g}. Leave it out, or resize within the network."
            )
        self._downsample_ratio = float(ratio)

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """Return the network's blocks in topological order."""

    @abstractmethod
    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return the zero state for frames like ``src`` (B, 3, H, W).

        The tuple is empty for a per-frame network.
        """

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map the tensors of a published checkpoint to the names of this network's state dict.

        By default the names are equal.
        """
        return state

    def forward_values(
        self, src: Tensor, state: RecurrentState
    ) -> tuple[dict[str, Tensor], RecurrentState]:
        """Run the blocks over one frame.

        Args:
            src: (B, 3, H, W), RGB in [0, 1].
            state: Recurrent state after the previous frame, or :meth:`initial_state`.

        Returns:
            All named values, and the new state.
        """
        # Convolutions keep this memory format, which is the faster one on CPU.
        values, new_state = {"src": src.contiguous(memory_format=torch.channels_last)}, list(state)
        # States are read from before the frame and written beside them: a block sees no other's new
        # state.
        for block in self.blocks():
            arguments = [values[name] for name in block.inputs]
            if block.state is not None:
                *outputs, new_state[block.state] = block.forward(*arguments, state[block.state])
            else:
                outputs = list(block.forward(*arguments))
            values.update(zip(block.outputs, outputs, strict=True))
        return values, tuple(new_state)

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """Process one frame, (B, 3, H, W) RGB in [0, 1], given the previous state."""
        values, state = self.forward_values(src, state)
        return MattingOutput(values["fgr"], values["pha"], state)

    def unroll(self, src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        """Process a sequence, (B, T, 3, H, W), and return the state after its last frame.

        ``state`` defaults to :meth:`initial_state`.
        """
        return unroll_frames(self, src, state)

    # Calling the module processes a clip, as a training loop expects.
    forward = unroll


def unroll_frames(
    model: FrameModel, src: Tensor, state: RecurrentState | None = None
) -> MattingOutput:
    """Process a sequence frame by frame, as :meth:`FrameModel.unroll`."""
    state = model.initial_state(src[:, 0]) if state is None else state
    fgr, pha = [], []
    for frame in src.unbind(1):
        output = model.forward_frame(frame, state)
        state = output.state
        fgr.append(output.fgr)
        pha.append(output.pha)
    return MattingOutput(torch.stack(fgr, 1), torch.stack(pha, 1), state)
