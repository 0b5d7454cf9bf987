"""Reader of the authors' ONNX export of Robust Video Matting.

The export has its batch norms folded into the convolutions.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError

_TRAINING_ONLY = "project_seg"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def read_onnx(
    path: Path, network: nn.Module, advice: dict[tuple[int, ...], str]
) -> dict[str, Tensor]:
    """Return a state dict for ``network`` from an ONNX export with folded batch norms.

    Few tensors of the export are named, so its convolutions are matched by order, which is that of
    the network's modules, and checked by shape. Each batch norm becomes the identity plus the
    convolution's bias.

    Args:
        path: The ``.onnx`` file.
        network: Network that defines the expected convolutions. If its refiner has no parameters,
            those of the file are ignored.
        advice: Network names by the shape of their first convolution, for the error message.

    Raises:
        PTQ4VMError: The file is unreadable, or its convolutions are not those of the network.
    """
    found = _read_convolutions(path)
    wanted = _convolutions(network)
    if not _has_refiner(network):
        # The refiner is executed last.
        found = found[: len(wanted)]
    first = tuple(found[0][1].shape) if found else ()
    foreign = first in advice and advice[first] != getattr(network, "name", None)
    hint = f" The file looks like {advice[first]}." if foreign else ""
    if len(found) != len(wanted):
        raise PTQ4VMError(
            f"Expected {len(wanted)} convolutions in {path}, got {len(found)}.{hint} Give the "
            "weights of this network."
        )
    state, wrong = _untouched(network), []
    for (name, conv, norm), (stored_name, weight, bias) in zip(wanted, found, strict=True):
        # A folded batch norm leaves a bias even where the convolution had none.
        fits = weight.shape == conv.weight.shape and (bias is not None) == (
            conv.bias is not None or norm is not None
        )
        if not fits or (stored_name.endswith(".weight") and stored_name != f"{name}.weight"):
            wrong.append(
                f"{name} {tuple(conv.weight.shape)}, got {stored_name} {tuple(weight.shape)}"
            )
            continue
        state[f"{name}.weight"] = weight
        if norm is not None and bias is not None:
            state.update(_identity_norm(norm[0], norm[1], bias))
        elif bias is not None:
            state[f"{name}.bias"] = bias
    if wrong:
        raise PTQ4VMError(
            f"Expected the convolutions of this network in {path}, but {len(wrong)} differ, the "
            f"first: {'; '.join(wrong[:3])}.{hint} Give the weights of this network."
        )
    return state


def _read_convolutions(path: Path) -> list[tuple[str, Tensor, Tensor | None]]:
    """Return name, weight and bias of each convolution, in order of execution.

    A convolution that is used several times is listed once.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected an ONNX model, got {path}: {error}. Download it anew."
        ) from error
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in stored.values():
        # Not followed: an untrusted file could name any path.
        if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
            raise PTQ4VMError(
                f"Expected all weights inside {path}, got {tensor.name} in a file beside it. Write "
                "them into one file with `onnx.save(onnx.load(path), new_path)`."
            )
    convolutions = {}
    for node in graph.node:
        if node.op_type == "Conv":
            missing = [name for name in node.input[1:] if name not in stored]
            if missing or len(node.input) < 2:
                raise PTQ4VMError(
                    f"Expected convolutions with stored weights in {path}, got {node.name} with "
                    f"{missing} from elsewhere. Give the authors' FP32 export."
                )
            arrays = [_to_tensor(stored[name], path) for name in node.input[1:]]
            convolutions[node.input[1]] = (
                node.input[1],
                arrays[0],
                arrays[1] if len(arrays) > 1 else None,
            )
    return list(convolutions.values())


def _to_tensor(stored: TensorProto, path: Path) -> Tensor:
    if stored.data_type not in _FLOATS:
        known = stored.data_type in TensorProto.DataType.values()
        kind = (
            TensorProto.DataType.Name(stored.data_type)
            if known
            else f"unknown type {stored.data_type}"
        )
        raise PTQ4VMError(
            f"Expected weights of 16, 32 or 64-bit floats in {path}, got {kind} in {stored.name}. "
            "Give the authors' FP32 export."
        )
    try:
        return torch.from_numpy(np.array(numpy_helper.to_array(stored)))
    except (ValueError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected the values of {stored.name} in {path}, got: {error}. Download the file anew."
        ) from error


Norm = tuple[str, nn.BatchNorm2d]


def _convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d, Norm | None]]:
    """Return the executed convolutions in order, each with the batch norm that follows it."""
    found: list[tuple[str, nn.Conv2d, Norm | None]] = []
    for name, module in network.named_modules():
        if name.startswith(_TRAINING_ONLY):
            continue
        if isinstance(module, nn.Conv2d):
            found.append((name, module, None))
        # In these networks a batch norm is defined right behind its convolution.
        elif isinstance(module, nn.BatchNorm2d) and found:
            found[-1] = (found[-1][0], found[-1][1], (name, module))
    return found


def _has_refiner(network: nn.Module) -> bool:
    return any(name.startswith("refiner.") for name in network.state_dict())


def _untouched(network: nn.Module) -> dict[str, Tensor]:
    """Return zeros for the training-only projection, which the export lacks."""
    state = network.state_dict()
    return {
        name: torch.zeros_like(tensor)
        for name, tensor in state.items()
        if name.startswith(_TRAINING_ONLY)
    }


def _identity_norm(name: str, norm: nn.BatchNorm2d, bias: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.ones_like(bias),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros_like(bias),
        # The gain 1 / sqrt(var + eps) is then 1.
        f"{name}.running_var": torch.full_like(bias, 1 - norm.eps),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }
