"""Cutting of a frame function's graph into blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, fx, nn, ops

from ptq4vm.models.frame_graph import ACTIVATIONS, LAYERS, FrameGraph, is_tensor

_JOINS = {ops.aten.add.Tensor, ops.aten.mul.Tensor}
_FRAMES = -1
"""Position of the frame, before all operations."""


@dataclass(frozen=True)
class Piece:
    """Successive operations of the graph that become one block."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    """Values from earlier pieces, and the frame."""
    outputs: tuple[fx.Node, ...]
    """Values that later pieces read."""
    layers: tuple[str, ...]
    states: tuple[int, ...]


def cut(traced: FrameGraph, max_layers: int) -> tuple[Piece, ...]:
    """Return the pieces of a graph, in order.

    They divide few modules of the network that would fit in one piece, and then store few values.

    Never apart are: what lies between a recurrent state's input and its output; a layer and the
    BatchNorm and activation behind it; the calls of one module; branches that are multiplied or
    added, such as residual units, if they have at most ``max_layers`` layers together and not two
    states; and what is computed from a pooled value, up to its use (squeeze and excitation).
    Between pieces are float maps (B, C, h, w), or tokens (B, N, C), of which there is more than
    one. What follows the last layer is a piece of its own, if it can be.

    Args:
        traced: Graph.
        max_layers: Largest number of layers in a piece, except where no smaller one is possible.
    """
    return _Cutter(traced, max_layers).pieces()


class _Cutter:
    """The operations in order, with what they read."""

    def __init__(self, traced: FrameGraph, max_layers: int) -> None:
        self.root, self.max_layers = traced.root, max_layers
        nodes = list(traced.graph.nodes)
        self.src, *self.states = traced.given
        self.repeated = _repeated_nodes(traced)
        apart = {*traced.given, *self.repeated}
        self.body = [node for node in nodes[:-1] if node not in apart]
        self.place = {node: place for place, node in enumerate(self.body)} | {self.src: _FRAMES}
        self.reads = {node: [*self._tensors(node)] for node in self.body}
        self.last = {node: place for place, one in enumerate(self.body) for node in self.reads[one]}
        self.layers = [self._layer(node) for node in self.body]
        self.divided = self._divided()
        self.closures = [*map(self._closure, self.states, traced.results[2])]
        self.together = [*self._fused(), *self._calls(), *self._joined(), *self.closures]

    def pieces(self) -> tuple[Piece, ...]:
        legal = self._legal_ends()
        # Not one block may hold two states: those of one stretch become one state.
        behind = max((place for place, layer in enumerate(self.layers) if layer), default=0)
        split = next((end for end in legal if end >= behind), legal[-1])
        return tuple(
            self._piece(begin + 1, end + 1)
            for part in ([_FRAMES, *(one for one in legal if one <= split)],
                         [one for one in legal if one >= split])
            for begin, end in pairwise(self._cheapest(part))
        )  # fmt: skip

    def _tensors(self, node: fx.Node) -> dict[fx.Node, None]:
        """Return the tensors that a node reads, through sizes and constants too."""
        found: dict[fx.Node, None] = {}
        for one in node.all_input_nodes:
            found |= self._tensors(one) if one in self.repeated else {one: None}
        return found

    def _layer(self, node: fx.Node) -> str | None:
        if node.op == "call_module" and isinstance(
            self.root.get_submodule(str(node.target)), LAYERS
        ):
            return str(node.target)
        return None

    # ---- what stays together ---------------------------------------------------------------------

    def _fused(self) -> Iterable[tuple[int, int]]:
        kinds = (nn.BatchNorm2d, *ACTIVATIONS)
        for node in self.body:
            if node.op == "call_module" and isinstance(
                self.root.get_submodule(str(node.target)), kinds
            ):
                for before in self.reads[node]:
                    if before.op == "call_module":
                        yield self.place[before], self.place[node]

    def _calls(self) -> Iterable[tuple[int, int]]:
        first: dict[str, int] = {}
        for place, node in enumerate(self.body):
            if node.op == "call_module" and any(
                True for _ in self.root.get_submodule(str(node.target)).parameters()
            ):
                yield first.setdefault(node.target, place), place

    def _closure(self, state: fx.Node, new: fx.Node) -> tuple[int, int]:
        """Return the first and last place of a recurrent state's operations."""
        after, leads = {state}, {new}
        for node in self.body:
            if after.intersection(self.reads[node]):
                after.add(node)
        for node in reversed(self.body):
            if node in leads:
                leads.update(self.reads[node])
        direct = [node for node in self.body if state in self.reads[node]]
        places = [self.place[one] for one in (*(after & leads), *direct, new) if one in self.reads]
        return (min(places), max(places)) if places else (0, 0)

    def _joined(self) -> Iterable[tuple[int, int]]:
        """Yield the places of branches and of the operation that adds or multiplies them."""
        above = self._dominators()
        for place, node in enumerate(self.body):
            if node.target not in _JOINS or len(self.reads[node]) < 2:
                continue
            first = self._first_between(above[node], node)
            states = sum(begin <= place and first <= end for begin, end in self.closures)
            if self._count(first, place) <= self.max_layers and states <= 1:
                yield first, place

    def _dominators(self) -> dict[fx.Node, fx.Node | None]:
        """Return the nearest value through which all paths from the inputs to a node pass.

        None stands for the frame and the states together. Source: Cooper, Harvey and Kennedy, A
        simple, fast dominance algorithm (2001); one pass suffices without cycles.
        """
        above: dict[fx.Node, fx.Node | None] = {}
        for node in self.body:
            common: fx.Node | None = next(iter(self.reads[node]), None)
            for one in self.reads[node]:
                common = self._common(above, common, one)
            above[node] = common if common in self.reads else None
        return above

    def _common(
        self, above: dict[fx.Node, fx.Node | None], a: fx.Node | None, b: fx.Node | None
    ) -> fx.Node | None:
        while a is not b:
            if a not in above or b not in above:
                return None
            if self.place[a] > self.place[b]:
                a = above[a]
            else:
                b = above[b]
        return a

    def _first_between(self, start: fx.Node | None, end: fx.Node) -> int:
        """Return the first place of a path from ``start`` to ``end``, exclusive of ``start``."""
        leads, first = {end}, self.place[end]
        for place in range(self.place[end], _FRAMES if start is None else self.place[start], -1):
            node = self.body[place]
            if node in leads:
                first = place
                leads.update(self.reads[node])
        return first

    # ---- where to cut ----------------------------------------------------------------------------

    def _legal_ends(self) -> list[int]:
        """Return the places after which the graph can be cut, with its end."""
        closed = [False] * len(self.body)
        for first, last in self.together:
            closed[first:last] = [True] * (last - first)
        for node, last in self.last.items():
            if node in self.reads and not self._can_cross(node):
                first = self.place[node]
                closed[first:last] = [True] * (last - first)
        return [place for place in range(len(self.body)) if not closed[place]]

    def _can_cross(self, node: fx.Node) -> bool:
        if not is_tensor(node):
            return False
        value = node.meta["val"]
        frames = str(value.shape[0]) == str(self.src.meta["val"].shape[0]) if value.dim() else False
        # A symbol, which isn't compared with 1, stands for several.
        sides = value.shape[2:] if value.dim() == 4 else value.shape[1:2]
        several = any(not isinstance(side, int) or side > 1 for side in sides)
        return (
            frames and several and value.dim() in (3, 4)
            and value.dtype == self.src.meta["val"].dtype
        )  # fmt: skip

    def _cheapest(self, ends: Sequence[int]) -> list[int]:
        """Return the places among ``ends`` of the lowest :meth:`_cost`, by dynamic programming."""
        best: dict[int, tuple[tuple[float, ...], list[int]]] = {ends[0]: ((0.0,) * 5, [ends[0]])}
        for number, end in enumerate(ends[1:], 1):
            choices = []
            for begin in reversed(ends[:number]):
                span = begin + 1, end + 1
                # Between neighbours there is no choice.
                if begin != ends[number - 1] and (
                    self._count(*span) > self.max_layers or len(self._states(*span)) > 1
                ):
                    break
                before, path = best[begin]
                cost = (a + b for a, b in zip(before, self._cost(*span), strict=True))
                choices.append((tuple(cost), [*path, end]))
            best[end] = min(choices)
        return best[ends[-1]][1]

    def _cost(self, begin: int, end: int) -> tuple[float, ...]:
        """Return the cost of a block and the cut behind it, what counts most first."""
        stored = [node for node in self.body[begin:end] if self.last.get(node, 0) >= end]
        return (
            self.divided[end - 1],
            sum(_elements(node.meta["val"]) for node in stored),
            len(stored),
            1,
            self._count(begin, end) ** 2,  # ties go to layers evenly spread
        )

    def _count(self, begin: int, end: int) -> int:
        return sum(bool(layer) for layer in self.layers[begin:end])

    def _divided(self) -> list[int]:
        """Return, for a cut after each place, how many modules it divides that fit in a block."""
        calls: dict[tuple[str, ...], list[int]] = {}
        for place, node in enumerate(self.body):
            stack = tuple(node.meta.get("nn_module_stack") or ())
            for depth in range(1, len(stack) + 1):
                calls.setdefault(stack[:depth], []).append(place)
        divided = [0] * len(self.body)
        for places in calls.values():
            if 0 < sum(bool(self.layers[place]) for place in places) <= self.max_layers:
                for place in range(places[0], places[-1]):
                    divided[place] += 1
        return divided

    def _states(self, begin: int, end: int) -> tuple[int, ...]:
        return tuple(
            index for index, (first, _) in enumerate(self.closures) if begin <= first < end
        )

    def _piece(self, begin: int, end: int) -> Piece:
        nodes = self.body[begin:end]
        inputs = {
            one: None
            for node in nodes
            for one in self.reads[node]
            if self.place.get(one, begin) < begin
        }
        outputs = [node for node in nodes if self.last.get(node, 0) >= end]
        layers = dict.fromkeys(layer for layer in self.layers[begin:end] if layer)
        return Piece(
            tuple(nodes), tuple(inputs), tuple(outputs), tuple(layers), self._states(begin, end)
        )


def _repeated_nodes(traced: FrameGraph) -> set[fx.Node]:
    """Return what each block computes for itself: sizes, and constants without layers."""
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        sized = not is_tensor(node) and not isinstance(node.meta.get("val"), list | tuple)
        constant = node.op == "get_attr" or (
            node.op == "call_function" and all(one in found for one in node.all_input_nodes)
        )
        if (sized and node.op == "call_function") or constant:
            found.add(node)
    return found


def _elements(value: Tensor) -> float:
    count = 1.0
    for side in value.shape:
        count *= side if isinstance(side, int) else side.node.hint
    return count
