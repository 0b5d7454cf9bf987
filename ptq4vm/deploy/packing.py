"""Packing of 4-bit weights, two per byte: ONNX has INT4 from opset 21."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

INT4_OPSET = 21
_INT4_IR_VERSION = 10


def pack_four_bits(model: onnx.ModelProto) -> None:
    """Store weights as INT4 or UINT4, in place, where their codes fit, and set opset 21.

    Weights behind DequantizeLinear become INT4 if all codes are in [-8, 7], and UINT4 if a
    zero point per channel moves them to [0, 15]; others stay int8. The model must have opset 20:
    for the operators in use, opset 21 only adds types.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        codes = numpy_helper.to_array(stored[node.input[0]])
        if codes.dtype != np.int8:
            continue
        (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
        by_channel = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
        kind, zero_points = TensorProto.INT4, np.zeros(len(by_channel), np.int8)
        if by_channel.min() < -8 or by_channel.max() > 7:
            kind, zero_points = TensorProto.UINT4, np.maximum(-by_channel.min(1), 0).astype(np.int8)
            if (by_channel.max(1) + zero_points).max() > 15:
                continue
        zero_point = f"{node.input[0]}_zero_point"
        beside = zero_points.reshape([-1 if place == axis else 1 for place in range(codes.ndim)])
        stored[node.input[0]].CopyFrom(_packed(node.input[0], codes + beside, kind))
        node.input[2] = zero_point
        model.graph.initializer.append(_packed(zero_point, zero_points, kind))
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = INT4_OPSET
    model.ir_version = max(model.ir_version, _INT4_IR_VERSION)


def _packed(name: str, codes: np.ndarray, kind: int) -> TensorProto:
    flat = codes.astype(np.int8).reshape(-1)
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.int8)])
    low, high = flat[0::2] & 15, flat[1::2] & 15
    packed = (low | (high << 4)).astype(np.uint8).tobytes()
    return TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=packed)
