"""Weights of four bits, two to a byte: ONNX has INT4 from opset 21."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INT4_OPSET = 21
_INT4_IR_VERSION = 10


def pack_four_bits(model: onnx.ModelProto) -> None:
    """Store, in place, the weights behind DequantizeLinear as INT4 where all codes fit, and move to opset 21.

    Between opset 20, which the model must have, and 21 operators have only gained types.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        codes = numpy_helper.to_array(stored[node.input[0]])
        if codes.dtype != np.int8 or codes.min() < -8 or codes.max() > 7:
            continue
        stored[node.input[0]].CopyFrom(_int4(stored[node.input[0]].name, codes))
        (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
        count = codes.shape[axis]
        zero = helper.make_tensor(f"{node.input[2]}_int4", TensorProto.INT4, [count], [0] * count)
        node.input[2] = zero.name
        if zero.name not in stored:
            stored[zero.name] = zero
            model.graph.initializer.append(zero)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = INT4_OPSET
    model.ir_version = max(model.ir_version, _INT4_IR_VERSION)


def _int4(name: str, codes: np.ndarray) -> TensorProto:
    flat = codes.astype(np.int8).reshape(-1)
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.int8)])
    low, high = flat[0::2] & 15, flat[1::2] & 15
    packed = (low | (high << 4)).astype(np.uint8).tobytes()
    return TensorProto(name=name, data_type=TensorProto.INT4, dims=codes.shape, raw_data=packed)
