"""Weights: loading them strictly, and their checksums. Where they come from is in :mod:`ptq4vm.models.download`."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.models.download import WEIGHTS, WeightSource, cache_folder, fetch_weights
from ptq4vm.models.onnx_weights import read_onnx

__all__ = ["WEIGHTS", "WeightSource", "cache_folder", "fetch_weights", "load_weights", "weights_checksum"]

_FIRST_CONVOLUTIONS = {
    "backbone.features.0.0.weight": ((16, 3, 3, 3), "rvm_mobilenetv3"),
    "backbone.conv1.weight": ((64, 3, 7, 7), "rvm_resnet50"),
    "backbone.model.features.0.0.weight": ((32, 3, 3, 3), "modnet"),
}
"""By what a file of weights is recognised."""


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a network, all of it or nothing.

    ``.pth``, ``.pt`` and ``.ckpt`` hold a state dict, as the authors publish it, and are read without running pickled
    code; ``.safetensors`` likewise; ``.onnx`` is the export of RVM's authors in FP32
    (:func:`ptq4vm.models.onnx_weights.read_onnx`).
    A network whose refiner has no parameters ignores those of the file's refiner.

    Args:
        network: changed in place; untouched when an error is raised.
        path: the file.

    Raises:
        PTQ4VMError: a missing, unreadable or foreign file, keys or shapes that are not the network's, NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise PTQ4VMError(f"Expected a file of weights, got {path}, which is not there. Check the path.")
    state = _read(path, network)
    if isinstance(network, MattingModel):
        state = network.rename_weights(state)
    expected = network.state_dict()
    if not any(name.startswith("refiner.") for name in expected):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("refiner.")}
    _check_fit(path, state, expected)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise PTQ4VMError(
                f"Expected finite weights in {path}, got {count} NaN or infinite values in {name}. "
                "Take a checkpoint from before the training went wrong, or download the file anew."
            )
    network.load_state_dict(state, strict=True)


def weights_checksum(network: nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over the state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, network: nn.Module) -> dict[str, Tensor]:
    if path.suffix in (".pth", ".pt", ".ckpt"):
        return _read_torch(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise PTQ4VMError(f"Expected a safetensors file, got {path}: {error}. Download it anew.") from error
    if path.suffix == ".onnx":
        return read_onnx(path, network, dict(_FIRST_CONVOLUTIONS.values()))
    raise PTQ4VMError(
        f"Expected weights as .pth, .pt, .ckpt, .safetensors or .onnx, got {path}. Convert the file, or correct its "
        "name."
    )


def load_plain(path: Path, expected: str, remedy: str, map_location: Any = "cpu") -> Any:
    """What ``torch.save`` wrote, as long as it is tensors and plain values: no pickled code is run.

    Args:
        path: the file.
        expected: what it should be, for the error.
        remedy: what to do if it isn't.
        map_location: where tensors go.

    Raises:
        PTQ4VMError: it is damaged, or holds more than that.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    # Bytes that are no checkpoint make the unpickler stumble in any of these ways.
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
            AssertionError, struct.error, pickle.UnpicklingError) as error:  # fmt: skip
        lines = str(error).splitlines() or [type(error).__name__]
        raise PTQ4VMError(
            f"Expected {expected}, got {path}, which is damaged or carries more than tensors "
            f"({lines[0][:200]}). {remedy}"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    state = load_plain(path, "a PyTorch state dict", "Save `model.state_dict()`, or download the file anew.")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else ""
        inside = f"a dict of {keys}" if keys else type(state).__name__
        raise PTQ4VMError(
            f"Expected a PyTorch state dict of tensors, got {inside} in {path}. Save `model.state_dict()` alone."
        )
    return state


def _check_fit(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = [
        f"{name} {tuple(state[name].shape)} {state[name].dtype}, expected {tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and not _fits(state[name], tensor)
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape or type", wrong))
    listed = [
        f"{len(names)} {what}: {', '.join(map(str, names[:3]))}{', …' if len(names) > 3 else ''}"
        for what, names in problems
        if names
    ]
    if listed:
        known = [model for first, (_, model) in _FIRST_CONVOLUTIONS.items() if first in state and first not in expected]
        hint = f" The file looks like {known[0]}." if known else ""
        if not unexpected and not wrong and all(key.startswith("refiner.") for key in missing):
            hint = " It was made with refiner='fast_guided_filter'."
        raise PTQ4VMError(
            f"Expected the weights of this network in {path}, got keys {'; '.join(listed)}.{hint} "
            "Give the network and its weights in one variant."
        )


def _fits(got: Tensor, expected: Tensor) -> bool:
    return got.shape == expected.shape and got.is_floating_point() == expected.is_floating_point()
