"""Network whose blocks are pieces of a traced graph."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, fx, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.models.cutting import Piece
from ptq4vm.models.frame_graph import FrameGraph
from ptq4vm.types import RecurrentState


class ModuleNetwork(MattingModel):
    """Network whose blocks were cut by :func:`from_module`, which makes it.

    It works at the frame's own size. Layers keep their names behind ``net.``.

    Args:
        name: Registry name.
        traced: Graph of the frame function.
        initial: Function from a frame to the states before the first frame.
        pieces: Pieces of the graph.
        example_size: Height and width of the example.
    """

    fixed_ratio = 1.0

    def __init__(
        self,
        name: str,
        traced: FrameGraph,
        initial: Callable[[Tensor], RecurrentState],
        pieces: tuple[Piece, ...],
        example_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.example_size = example_size
        self.name = name
        self.net: nn.Module = traced.root.get_submodule("net")
        self._unused = frozenset(_drop_unused(traced))
        self.activations = traced.root.get_submodule("activations")
        for key, value in traced.root.named_buffers(recurse=False):
            self.register_buffer(key, value, persistent=False)
        self.traced, self._initial = traced, initial
        self._groups = tuple(piece.states for piece in pieces if piece.states)
        assembly = _Assembly(traced, pieces)
        self._blocks = assembly.blocks()
        self.traced_names = assembly.traced_names
        """Names that the values have in the program of ``torch.export``."""
        self._accepted = {self.example_size}
        self.eval().requires_grad_(False)

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks."""
        return tuple(replace(one, forward=partial(one.forward, self)) for one in self._blocks)

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return the zero state; states that only one block can hold are one state."""
        self._require_size(src)
        states = self._initial(src)
        return tuple(torch.cat([states[i] for i in group], 1) for group in self._groups)

    def apart(self, states: RecurrentState, like: RecurrentState) -> RecurrentState:
        """Return the states of the module, shaped like ``like``, from those of the blocks."""
        found: dict[int, Tensor] = {}
        for group, state in zip(self._groups, states, strict=True):
            found |= zip(group, state.split([like[i].shape[1] for i in group], 1), strict=True)
        return tuple(found[i] for i in range(len(like)))

    def rename_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accept the module's own names, and what its frame function doesn't use."""
        named = {key if key.startswith("net.") else f"net.{key}": x for key, x in state.items()}
        return {key: value for key, value in named.items() if key not in self._unused}

    def forward_values(
        self, src: Tensor, state: RecurrentState
    ) -> tuple[dict[str, Tensor], RecurrentState]:
        """Run the blocks over one frame.

        Raises:
            PTQ4VMError: The trace isn't valid for this frame size.
        """
        self._require_size(src)
        return super().forward_values(src, state)

    def _require_size(self, src: Tensor) -> None:
        if torch.jit.is_tracing():
            return  # sizes are tensors there, and were checked before
        size = (src.shape[2], src.shape[3])
        if size in self._accepted:
            return
        reason = self.refusal(src)
        if reason:
            raise PTQ4VMError(
                f"Expected frames of a size for which the trace of {self.name}, made at "
                f"{self.example_size[0]} x {self.example_size[1]}, holds, got {size[0]} x "
                f"{size[1]}: {reason}. Give from_module an example of this size."
            )
        self._accepted.add(size)

    def refusal(self, src: Tensor) -> str | None:
        """Return why the trace doesn't hold for frames of this size, None where it does."""
        if tuple(src.shape[2:]) == self.example_size:
            return None
        if any(isinstance(side, int) for side in self.traced.frame_shape[2:]):
            return "its operations contain the frame's size as a constant"
        if self.traced.guards is not None:
            meta = src.to("meta")
            try:
                self.traced.guards(meta, *self._initial(meta))
            except AssertionError as error:
                return str(error)
        return None


class _Assembly:
    """Blocks from the pieces of a graph; their functions take the network first."""

    def __init__(self, traced: FrameGraph, pieces: tuple[Piece, ...]) -> None:
        self.traced, self.pieces = traced, pieces
        self.src, *self.states = traced.given
        self.pha, self.fgr, self.new_states = traced.results
        self.names = {node: node.name for node in traced.graph.nodes}
        self.names |= {self.src: "src", self.pha: "pha"}
        if self.fgr not in (None, self.src):
            self.names[self.fgr] = "fgr"
        if _is_clamp(self.pha):
            self.names[self.pha.args[0]] = "pha_unclamped"
        self.traced_names = {
            name: node.meta.get("traced", "") for node, name in self.names.items()
        } | {"fgr": (self.fgr or self.src).name}

    def blocks(self) -> tuple[Block, ...]:
        homes = iter(range(len(self.pieces)))
        return tuple(
            self._part(piece, title, next(homes) if piece.states else None)
            for piece, title in zip(self.pieces, _titles(self.pieces), strict=True)
        )

    def _part(self, piece: Piece, title: str, home: int | None) -> Block:
        named = [n for n in piece.nodes if self.names[n] in ("pha", "fgr", "pha_unclamped")]
        outputs = list(dict.fromkeys((*piece.outputs, *named)))
        names = [self.names[node] for node in outputs]
        inputs = list(piece.inputs) or [self.src]
        if piece is self.pieces[-1] and self.fgr in (None, self.src):
            outputs, names = [*outputs, self.src], [*names, "fgr"]
            inputs = inputs if self.src in inputs else [self.src, *inputs]
        function = self._function(piece, inputs, outputs)
        given = tuple(self.names[node] for node in inputs)
        return Block(title, given, tuple(names), function, piece.layers, home)

    def _function(
        self, piece: Piece, inputs: list[fx.Node], outputs: list[fx.Node]
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Return a function of the network, the inputs and the state, if there is one."""
        graph = fx.Graph()
        known: dict[fx.Node, fx.Node] = {}
        for node in inputs:
            known[node] = graph.placeholder(node.name)
        for node in inputs:
            if node.meta["val"].dim() == 3:
                known[node] = graph.call_function(_to_tokens, (known[node],))
        if piece.states:
            widths = [int(self.states[i].meta["val"].shape[1]) for i in piece.states]
            split = graph.call_function(
                torch.split, (graph.placeholder("recurrent_state"), widths, 1)
            )
            for place, index in enumerate(piece.states):
                known[self.states[index]] = graph.call_function(_item, (split, place))

        def copied(node: fx.Node) -> fx.Node:
            if node not in known:
                known[node] = graph.node_copy(node, copied)
            return known[node]

        for node in piece.nodes:
            copied(node)
        results = [
            graph.call_function(_to_map, (copied(node),))
            if node.meta["val"].dim() == 3
            else copied(node)
            for node in outputs
        ]
        if piece.states:
            new = [copied(self.new_states[index]) for index in piece.states]
            results.append(new[0] if len(new) == 1 else graph.call_function(torch.cat, (new, 1)))
        graph.output(tuple(results))
        # Only its code: modules are looked up in the network that is given.
        return type(fx.GraphModule(self.traced.root, graph)).forward


def _drop_unused(traced: FrameGraph) -> set[str]:
    """Delete the modules that the graph doesn't use; return the names of their tensors."""
    before = set(traced.root.state_dict())
    used = [
        str(node.target) for node in traced.graph.nodes if node.op in ("call_module", "get_attr")
    ]
    for name, _ in reversed(list(traced.root.named_modules())):
        if name not in ("", "net", "activations") and not any(
            f"{one}.".startswith(f"{name}.") for one in used
        ):
            owner, _, key = name.rpartition(".")
            delattr(traced.root.get_submodule(owner), key)
    return before - set(traced.root.state_dict())


def _item(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _to_tokens(x: Tensor) -> Tensor:
    return x.squeeze(3).transpose(1, 2)


def _to_map(tokens: Tensor) -> Tensor:
    """Return tokens (B, N, C) as the map (B, C, N, 1), without moving them."""
    return tokens.transpose(1, 2).unsqueeze(3)


def as_traced(value: Tensor, traced: Tensor) -> Tensor:
    """Return a block's value in the form that it has in the trace: tokens from their map."""
    return _to_tokens(value) if traced.dim() == 3 else value


def _is_clamp(node: fx.Node) -> bool:
    bounds = (torch.ops.aten.clamp.default, torch.ops.aten.hardtanh.default)
    return node.target in bounds and tuple(node.args[1:]) in ((0, 1), (0.0, 1.0))


def _titles(pieces: Sequence[Piece]) -> list[str]:
    """Return the blocks' names: those of modules, or the first and last layer's."""
    titles: list[str] = []
    for piece in pieces:
        names = [layer.split(".") for layer in piece.layers]
        same = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
        common = ".".join(parts[0] for parts in same)
        others = (layer for other in pieces if other is not piece for layer in other.layers)
        if not names:
            title = "compose" if titles else "prepare"
        elif any(f"{layer}.".startswith(f"{common}.") for layer in others) or not common:
            title = f"{piece.layers[0]}-{piece.layers[-1]}"
        else:
            title = common
        titles.append(title if title not in titles else f"{title} ({len(titles)})")
    return titles
