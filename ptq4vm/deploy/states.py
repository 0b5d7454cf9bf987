"""Recurrent states at the inputs and outputs of an exported graph: names, and 8-bit storage."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STATE_CODES = 127
"""Number of int8 codes on either side of zero."""


def state_names(count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the graph's names of ``count`` input and output states: (r1i, ...), (r1o, ...)."""
    return tuple(f"r{i}i" for i in range(1, count + 1)), tuple(
        f"r{i}o" for i in range(1, count + 1)
    )


def quantize_states(
    model: onnx.ModelProto, names: tuple[tuple[str, ...], tuple[str, ...]], scale: float
) -> None:
    """Make the recurrent states at a graph's boundary int8, in place, with zero point 0.

    Args:
        model: ONNX model to modify.
        names: names of the input states and of the output states.
        scale: scale of all states.
    """
    graph = model.graph
    grid = ["state_scale", "state_zero_point"]
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), grid[0]))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), grid[1]))
    before, after = names
    for node in graph.node:
        for side, outside in ((node.input, (*before, *after)), (node.output, after)):
            for position, name in enumerate(side):
                if name in outside:
                    side[position] = f"{name}_values"
    for value in (*graph.input, *graph.output):
        if value.name in (*before, *after):
            value.type.tensor_type.elem_type = TensorProto.INT8
    for name in reversed(before):
        graph.node.insert(
            0,
            helper.make_node(
                "DequantizeLinear", [name, *grid], [f"{name}_values"], name=f"{name}_read"
            ),
        )
    for name in after:
        graph.node.append(
            helper.make_node(
                "QuantizeLinear", [f"{name}_values", *grid], [name], name=f"{name}_written"
            )
        )
