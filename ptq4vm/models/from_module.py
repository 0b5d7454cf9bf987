"""A matting network from any PyTorch network that ``torch.export`` can trace."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel, never_in_place
from ptq4vm.models.cutting import cut
from ptq4vm.models.frame_graph import trace_frame
from ptq4vm.models.module_network import ModuleNetwork, as_traced
from ptq4vm.models.registry import register_copies
from ptq4vm.types import RecurrentState

InitialState = Callable[[Tensor], Sequence[Tensor]]
_MORE_SIZES = ((64, 32), (5, 3))
"""Pixels added to the example's height and width: further sizes at which blocks are compared."""


def from_module(
    net: nn.Module,
    inputs: Tensor | tuple[int, int],
    states: Sequence[Tensor] | InitialState = (),
    outputs: Callable[[Any], Any] | None = None,
    name: str | None = None,
    max_layers: int = 5,
) -> ModuleNetwork:
    """Cut a network into blocks, and prove that they reproduce it bit for bit.

    The frame function ``net(src, *states)`` is traced by ``torch.export``. It returns ``pha``, or
    a tuple ``(pha, *states)`` or ``(fgr, pha, *states)``, or a dictionary with ``pha`` and, if it
    has them, ``fgr`` and ``state``, a tuple. Without ``fgr`` the frame stands in for it. Each
    recurrent state, squeeze-and-excitation and residual unit is within one block, see
    :func:`ptq4vm.models.cutting.cut`. The network is copied, and its name is registered, so that
    checkpoints of this name can be loaded wherever ``from_module`` was called before.

    Args:
        net: Network in float32.
        inputs: Example frame (1, 3, H, W), RGB in [0, 1], or its (H, W). Also the frame size at
            which layers are traced.
        states: Recurrent states before the first frame: zeros (1, C, h, w) for the example, where h
            and w are those of the frame divided and rounded up; or a function from a frame to them.
        outputs: Function from what ``net`` returns to one of the forms above, e.g.
            ``lambda out: out["out"][:, 15:16].sigmoid()`` for one class of a segmentation network.
        name: Registry name; by default the name of the network's class.
        max_layers: Largest number of convolutions and linear layers in a block, except where fewer
            would divide one of the above.

    Raises:
        PTQ4VMError: An argument or what the network returns has another form; ``torch.export``
            can't trace it; the blocks don't reproduce it, with the first block that differs; or the
            name belongs to another kind of network.

    Example:
        >>> from torch import nn
        >>> from ptq4vm.models import from_module
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        >>> network = from_module(net, (64, 96), outputs=lambda x: x.sigmoid(), name="two_layers")
        >>> [block.name for block in network.blocks()]
        ['net', 'compose']
    """
    if not isinstance(max_layers, int) or max_layers < 1:
        raise PTQ4VMError(f"Expected max_layers of at least 1, got {max_layers!r}. Raise it.")
    src = _example(net, inputs)
    initial = _initial_state(states, src)
    frame = _Frame(copy.deepcopy(net).eval().requires_grad_(False), outputs)
    reference = copy.deepcopy(frame)
    never_in_place(frame)
    with torch.no_grad():
        with_fgr = _with_fgr(reference(src, initial(src)), src, initial(src))
    twice = src.repeat(2, 1, 1, 1)
    traced = trace_frame(frame, twice, initial(twice), with_fgr)
    size = (src.shape[2], src.shape[3])
    pieces = cut(traced, max_layers)
    for piece in pieces:
        _require_one_size([initial(src)[index] for index in piece.states])
    network = ModuleNetwork(name or type(net).__name__, traced, initial, pieces, size)
    for more in ((0, 0), *_MORE_SIZES):
        _prove(network, reference, src, more)
    register_copies(network)
    return network


# ---- arguments -----------------------------------------------------------------------------------


class _Frame(nn.Module):
    """Frame function with one kind of result: pha, fgr if there is one, and the new states."""

    def __init__(self, net: nn.Module, read: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.net = net
        self.read = (read,)  # in a tuple, so that a module in it isn't a part of the network

    def forward(self, src: Tensor, states: RecurrentState) -> tuple[Tensor, ...]:
        result = self.net(src, *states)
        if self.read[0] is not None:
            result = self.read[0](result)
        if isinstance(result, Mapping) and "pha" in result:
            mattes = [result[key] for key in ("fgr", "pha") if key in result]
            result = (*mattes, *result.get("state", ()))
        if isinstance(result, Tensor):
            result = (result,)
        count = len(result) - len(states) if isinstance(result, tuple | list) else 0
        if count not in (1, 2):
            got = type(result).__name__ if count == 0 else f"{len(result)} values"
            raise PTQ4VMError(
                f"Expected pha, (pha, *states), (fgr, pha, *states) or a dictionary with pha from "
                f"the network, which has {len(states)} states, got {got}. Give outputs, a function "
                "that returns one of these."
            )
        return (result[count - 1], *result[: count - 1], *result[count:])


def _with_fgr(result: tuple[Tensor, ...], src: Tensor, states: RecurrentState) -> bool:
    """Return whether there is a foreground, after a check of all shapes."""
    with_fgr = len(result) == len(states) + 2
    wanted = [(1, 1, *src.shape[2:]), *([tuple(src.shape)] if with_fgr else ())]
    wanted += [tuple(state.shape) for state in states]
    got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in result]
    if wanted != got:
        names = ["pha", *(["fgr"] if with_fgr else ()), *("state" for _ in states)]
        wrong = next(n for n, a, b in zip(names, wanted, got, strict=True) if a != b)
        raise PTQ4VMError(
            f"Expected {wrong} among results of shapes {wanted}, got {got}. Give outputs, a "
            "function that returns them so."
        )
    return with_fgr


def _example(net: nn.Module, inputs: Tensor | tuple[int, int]) -> Tensor:
    if not isinstance(net, nn.Module) or isinstance(net, MattingModel):
        raise PTQ4VMError(
            f"Expected an nn.Module to cut into blocks, got {type(net).__name__}. "
            "A MattingModel has its blocks already."
        )
    if isinstance(inputs, Tensor):
        size = tuple(inputs.shape)
        if len(size) != 4 or size[:2] != (1, 3) or not inputs.is_floating_point():
            raise PTQ4VMError(
                f"Expected a float example frame (1, 3, H, W), got {size} of {inputs.dtype}."
            )
        height, width = size[2:]
    elif len(inputs) == 2 and all(isinstance(side, int) and side > 0 for side in inputs):
        height, width = inputs
    else:
        raise PTQ4VMError(f"Expected an example frame or its height and width, got {inputs!r}.")
    like = next(net.parameters(), torch.empty(0))
    # Random, so that no two values are equal by chance.
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, width, generator=generator).to(like)


def _initial_state(
    states: Sequence[Tensor] | InitialState, src: Tensor
) -> Callable[[Tensor], RecurrentState]:
    if callable(states):
        given = states
        first = tuple(given(src))
        make: Callable[[Tensor], RecurrentState] = lambda frame: tuple(given(frame))  # noqa: E731
    else:
        first = tuple(states)
        make = partial(_zeros, [(x.shape, src.shape[2:]) for x in first])
    for state in first:
        if not isinstance(state, Tensor) or state.dim() != 4 or len(state) != 1 or state.any():
            got = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise PTQ4VMError(
                f"Expected states of zeros (1, C, h, w) before the first frame, got {got}. "
                "Give zeros, and let the network make of them what it begins with."
            )
    return make


def _zeros(examples: list[tuple[torch.Size, torch.Size]], src: Tensor) -> RecurrentState:
    return tuple(
        src.new_zeros(
            src.shape[0],
            state[1],
            # Strides, as strided convolutions round: up.
            *(
                -(-side // max(1, round(whole / part)))
                for side, whole, part in zip(src.shape[2:], frame, state[2:], strict=True)
            ),
        )
        for state, frame in examples
    )


def _require_one_size(states: Sequence[Tensor]) -> None:
    """Check that states whose operations can't be separated can be one state.

    Raises:
        PTQ4VMError: Their heights and widths differ.
    """
    if len({state.shape[2:] for state in states}) > 1:
        shapes = ", ".join(str(tuple(state.shape)) for state in states)
        raise PTQ4VMError(
            f"Expected states that depend on each other within a frame to have one size, got "
            f"{shapes}. Give them one size, or write the blocks yourself (docs/your-network.md, A "
            "class of your own)."
        )


# ---- proof ---------------------------------------------------------------------------------------


@torch.no_grad()
def _prove(network: ModuleNetwork, frame: nn.Module, src: Tensor, more: tuple[int, int]) -> None:
    """Compare blocks and network over three frames, bit for bit."""
    height, width = (side + extra for side, extra in zip(src.shape[2:], more, strict=True))
    generator = torch.Generator().manual_seed(height)
    count = 1 if any(more) else 2
    frames = torch.rand(3, count, 3, height, width, generator=generator).to(src)
    if network.refusal(frames[0]) is not None:
        return  # and it will be refused
    wanted, states = network._initial(frames[0]), network.initial_state(frames[0])
    for one in frames:
        one = one.contiguous(memory_format=torch.channels_last)
        before = wanted
        try:
            pha, *others = frame(one, wanted)
        except Exception:
            if any(more):
                return  # the network itself doesn't take this size
            raise
        wanted = tuple(others[len(others) - len(before) :])
        values, states = network.forward_values(one, states)
        fgr = others[0] if len(others) > len(before) else one
        pairs = zip((fgr, pha, *wanted), (values["fgr"], values["pha"],
                    *network.apart(states, wanted)), strict=True)  # fmt: skip
        if not all(torch.equal(a, b) for a, b in pairs):
            raise PTQ4VMError(
                f"Expected the blocks of {network.name} to reproduce it bit for bit, got "
                f"{_first_difference(network, one, before, values)} at {height} x {width}. Write "
                "the blocks yourself (docs/your-network.md, A class of your own)."
            )


def _first_difference(
    network: ModuleNetwork, src: Tensor, states: RecurrentState, values: Mapping[str, Tensor]
) -> str:
    """Return the first block whose values aren't those of the trace as torch.export made it."""
    recorder = _Recorder(network.traced.program.module())
    recorder.run(src, *states)
    for block in network.blocks():
        for output in block.outputs:
            traced = recorder.values.get(network.traced_names[output])
            if traced is not None and not torch.equal(traced, as_traced(values[output], traced)):
                return f"another {output!r} in block {block.name!r}"
    return "the same as its trace by torch.export, which differs from the network"


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.clone()
        return value
