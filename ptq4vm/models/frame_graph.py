"""Graph of a network's frame function, traced by ``torch.export``, with its layers as modules."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq4vm.errors import PTQ4VMError

LAYERS = (nn.Conv2d, nn.Linear)
"""Layers that quantization replaces."""
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.SiLU,
    nn.GELU,
)  # fmt: skip
_ASSERTIONS = {"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"}


@dataclass(frozen=True)
class FrameGraph:
    """Frame function as a graph without in-place operations.

    Placeholders are ``src`` and the states. The output is (pha, fgr or None, states).
    """

    graph: fx.Graph
    """Names of modules and tensors in it are relative to ``root``."""
    root: nn.Module
    guards: Callable[..., Any] | None
    """Function of src and the states. It raises where the trace isn't valid for their sizes."""
    program: torch.export.ExportedProgram

    @property
    def given(self) -> tuple[fx.Node, ...]:
        """The frame and the states."""
        return tuple(node for node in self.graph.nodes if node.op == "placeholder")

    @property
    def results(self) -> tuple[fx.Node, fx.Node | None, tuple[fx.Node, ...]]:
        """Pha, fgr and the new states."""
        return next(reversed(self.graph.nodes)).args[0]  # type: ignore[return-value]

    @property
    def frame_shape(self) -> tuple[Any, ...]:
        """Shape of the frame; symbols where it isn't constant."""
        return tuple(self.given[0].meta["val"].shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrameGraph":
        return self  # never changed


def trace_frame(
    root: nn.Module, src: Tensor, states: tuple[Tensor, ...], with_fgr: bool
) -> FrameGraph:
    """Trace ``root(src, states)``, which returns pha, fgr if ``with_fgr``, and the new states.

    Calls of ``torch.nn`` modules without children stay calls of those modules. Each use of an
    activation module gets a module of its own, ``root.activations.<use>``, and a constant that was
    created in the frame function becomes a buffer of ``root``.

    Args:
        root: Module whose submodules are called; ``activations`` and buffers are added to it.
        src: Example frames, (B, 3, H, W), B > 1.
        states: Recurrent states for them, (B, C, h, w) each.
        with_fgr: True if a foreground is returned behind pha.

    Raises:
        PTQ4VMError: ``torch.export`` can't trace it, for any batch size at least, or it assigns to
            a part of a tensor.
    """
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    try:
        with torch.no_grad():
            program = torch.export.export(
                root, (src, states), dynamic_shapes=(sides, (sides,) * len(states)), strict=False
            )
    # The network's own code may raise anything under the trace.
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise PTQ4VMError(
            f"Expected a network whose frame function torch.export can trace, got "
            f"{type(error).__name__}: {reason}. Rewrite the line it names with tensor operations, "
            "or write the blocks yourself (docs/your-network.md, A class of your own)."
        ) from error
    guards = getattr(program.module(), "_guards_fn", None)
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    if any(_writes_to_part(node, order) for node in order):
        program = program.run_decompositions({})  # which takes longer, and renames operations
    module = program.module()
    for node in module.graph.nodes:
        node.meta["traced"] = node.name
    # A graph of no module, since names in it are those of root.
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in [node for node in reversed(graph.nodes) if _is_assertion(node)]:
        graph.erase_node(node)
    _without_in_place(graph)
    _join_modules(graph, root)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    _own_activations(graph, root)
    _own_constants(graph, module, root)
    _traceable_sizes(graph)
    _order_outputs(graph, with_fgr)
    traced = FrameGraph(graph, root, guards, program)
    if isinstance(traced.frame_shape[0], int):
        raise PTQ4VMError(
            f"Expected a frame function for any number of frames, got one for {len(src)} only. "
            "Take the batch size from a tensor's shape."
        )
    return traced


def is_tensor(node: fx.Node) -> bool:
    """Return whether a node computes one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def _is_assertion(node: fx.Node) -> bool:
    if node.op == "call_module":
        return node.target == "_guards_fn"
    return isinstance(node.target, torch._ops.OpOverload) and _name(node) in _ASSERTIONS


def _name(node: fx.Node) -> str:
    return node.target._schema.name.split("::")[1]  # type: ignore[union-attr]


# ---- in-place operations -------------------------------------------------------------------------


def _without_in_place(graph: fx.Graph) -> None:
    """Replace ``x.add_(y)`` by ``z = x.add(y)``, and x by z from there on."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if _is_in_place(node):
            changed = node.args[0]
            node.target = _pure(node)
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)


def _is_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _pure(node: fx.Node) -> Any:
    """Return the operation that computes a new tensor instead; None if there is none."""
    packet = getattr(torch.ops.aten, _name(node).removesuffix("_"), None)
    return getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]


def _writes_to_part(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Return whether an operation writes to memory that another value shares.

    Args:
        node: Operation.
        order: Places of all operations.
    """
    if not _is_in_place(node):
        return False
    changed: Any = node.args[0]
    # Of a view, the base would change too; of a base, its views that are read later.
    views = any(
        order[later] > order[node]
        for user in changed.users
        if _is_view(user)
        for later in user.users
    )
    return _is_view(changed) or views or _pure(node) is None


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    return not schema.is_mutable and any(one.alias_info is not None for one in schema.returns)


# ---- modules -------------------------------------------------------------------------------------


def _join_modules(graph: fx.Graph, root: nn.Module) -> None:
    """Replace the operations of each call of a ``torch.nn`` module by the call."""
    calls: dict[tuple[str, ...], list[fx.Node]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            # The keys count the calls of a module.
            calls.setdefault(tuple(stack), []).append(node)
    modules = dict(root.named_modules())
    for nodes in calls.values():
        path = list(nodes[0].meta["nn_module_stack"].values())[-1][0]
        if path not in modules or not _is_plain(modules[path]):
            continue
        inside = set(nodes)
        read = {
            one: None
            for node in nodes
            for one in node.all_input_nodes
            if one not in inside and one.op != "get_attr" and is_tensor(one)
        }
        written = [node for node in nodes if node.users.keys() - inside and is_tensor(node)]
        shared = [node for node in nodes if node.users.keys() - inside and not is_tensor(node)]
        if len(read) != 1 or len(written) != 1 or shared:
            continue  # e.g. a recurrent layer: its operations stay
        with graph.inserting_after(written[0]):
            call = graph.call_module(path, tuple(read))
        call.meta = dict(written[0].meta)
        written[0].replace_all_uses_with(call)
        for node in reversed(nodes):
            if not node.users:
                graph.erase_node(node)


def _is_plain(module: nn.Module) -> bool:
    # Of torch itself: a subclass may compute something else, and parametrisations are children.
    return type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())


def _own_activations(graph: fx.Graph, root: nn.Module) -> None:
    """Give each use of a shared or functional activation a module of its own.

    Quantization moves it into the layer before.
    """
    used: set[str] = set()
    own = nn.ModuleDict()
    for node in list(graph.nodes):
        if node.op == "call_module":
            module = root.get_submodule(node.target)
            if not isinstance(module, ACTIVATIONS):
                continue
            if node.target not in used:
                used.add(node.target)
                continue
            own[node.name] = copy.deepcopy(module)
        elif node.target is torch.ops.aten.relu.default:
            own[node.name] = nn.ReLU()
        else:
            continue
        with graph.inserting_after(node):
            call = graph.call_module(f"activations.{node.name}", node.args[:1])
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    root.add_module("activations", own.train(root.training))


def _own_constants(graph: fx.Graph, module: nn.Module, root: nn.Module) -> None:
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        owner, _, key = node.target.rpartition(".")
        try:
            getattr(root.get_submodule(owner), key)
        except AttributeError:
            name = "constant_" + node.target.replace(".", "_")
            value = getattr(module.get_submodule(owner), key)
            root.register_buffer(name, value.detach().clone(), persistent=False)
            node.target = name


# ---- sizes ---------------------------------------------------------------------------------------


def _traceable_sizes(graph: fx.Graph) -> None:
    """Call what takes sizes as Python does, so that ONNX export can keep sizes open.

    Operators called by overload take sizes as constants then.
    """
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = _name(node)
        if name == "sym_size":
            node.target = _size
        elif any(not is_tensor(one) and "val" in one.meta for one in node.all_input_nodes):
            places: tuple[Any, ...] = (torch, torch._C._nn, torch.Tensor)
            found = [getattr(place, name) for place in places if hasattr(place, name)]
            if name == "slice":
                node.target = _slice
            elif found and not isinstance(node.args[0], list | tuple):
                node.target = found[0]


def _size(x: Tensor, dim: int) -> int:
    return x.shape[dim]


def _slice(
    x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    return x[(slice(None),) * (dim % x.dim()) + (slice(start, end, step),)]


def _order_outputs(graph: fx.Graph, with_fgr: bool) -> None:
    output = next(reversed(graph.nodes))
    pha, *others = torch.utils._pytree.tree_leaves(output.args[0])
    fgr = others.pop(0) if with_fgr else None
    output.args = ((pha, fgr, tuple(others)),)
