"""Strict loading and checksums of weights.

See :mod:`ptq4vm.models.download` for the sources of published weights.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.models.download import WEIGHTS, WeightSource, cache_folder, fetch_weights
from ptq4vm.models.onnx_weights import read_onnx
from ptq4vm.reading import load_safetensors
from ptq4vm.torch_files import load_plain

__all__ = [
    "WEIGHTS",
    "WeightSource",
    "cache_folder",
    "fetch_weights",
    "load_weights",
    "weights_checksum",
]

_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar")
_SAVE_ALONE = (
    "Save the weights alone with `torch.save(model.state_dict(), path)`, or download the file anew."
)
_CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Keys of the state dict in training checkpoints."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")
"""Name prefixes added by DataParallel, torch.compile and training frameworks."""
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_FIRST_CONVOLUTIONS = {
    "backbone.features.0.0.weight": ((16, 3, 3, 3), "rvm_mobilenetv3"),
    "backbone.conv1.weight": ((64, 3, 7, 7), "rvm_resnet50"),
    "backbone.model.features.0.0.weight": ((32, 3, 3, 3), "modnet"),
}
"""First convolution of each network, with its shape, for the identification of weights files."""


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a weights file into a network strictly.

    ``.pth``, ``.pt``, ``.ckpt`` and ``.pth.tar`` contain a state dict, alone or in a training
    checkpoint, and are read without running pickled code. ``.safetensors`` contains a state dict
    alone. ``.onnx`` is the FP32 export of RVM's authors
    (:func:`ptq4vm.models.onnx_weights.read_onnx`). A wrapper's prefix that all names share is
    removed. If the network's refiner has no parameters, those of the file's refiner are ignored.

    Args:
        network: Changed in place; unchanged if an error is raised.
        path: The weights file.

    Raises:
        PTQ4VMError: The file is missing, unreadable or foreign; keys or shapes differ from the
            network's; or tensors are sparse, quantized, without values, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise PTQ4VMError(
            f"Expected a file of weights, got {path}, which is not there. Check the path."
        )
    expected = network.state_dict()
    state = _unwrap(_read(path, network), expected)
    if isinstance(network, MattingModel):
        state = network.rename_weights(state)
    if not any(name.startswith("refiner.") for name in expected):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("refiner.")}
    _check_kinds(path, state)
    _check_fit(path, state, expected)
    for name, tensor in state.items():
        # In the network's dtype: a finite float64 value may overflow float32.
        infinite = ~tensor.to(expected[name].dtype).isfinite()
        if infinite.any():
            count = int(infinite.sum())
            raise PTQ4VMError(
                f"Expected finite weights in {path}, got {count} NaN or infinite values in {name}. "
                "Take a checkpoint from before the training went wrong, or download the file anew."
            )
    network.load_state_dict(state, strict=True)


def weights_checksum(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the state dict.

    The checksum covers names, dtypes, shapes and values.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bfloat16.
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _read(path: Path, network: nn.Module) -> dict[str, Tensor]:
    suffix = path.suffix.lower()
    if suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    if suffix == ".safetensors":
        try:
            return load_safetensors(path.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise PTQ4VMError(
                f"Expected a safetensors file, got {path}: {error}. Download it anew."
            ) from error
    if suffix == ".onnx":
        return read_onnx(path, network, dict(_FIRST_CONVOLUTIONS.values()))
    raise PTQ4VMError(
        f"Expected weights as {', '.join(_TORCH_SUFFIXES)}, .safetensors or .onnx, got {path}. "
        "Convert the file, or correct its name."
    )


def _read_torch(path: Path) -> dict[str, Tensor]:
    state = load_plain(path, "a PyTorch state dict", _SAVE_ALONE)
    if isinstance(state, dict):
        state = next((state[key] for key in _CONTAINERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        keys = ", ".join(map(str, list(state)[:5])) if isinstance(state, dict) else ""
        inside = f"a dict of {keys}" if keys else type(state).__name__
        raise PTQ4VMError(
            f"Expected a PyTorch state dict of tensors, got {inside} in {path}. {_SAVE_ALONE}"
        )
    return state


def _unwrap(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrapper prefixes that all names of the file have and those of the network lack."""
    for prefix in _WRAPPERS * 2:  # twice, since wrappers may be nested in either order
        if all(name.startswith(prefix) for name in state) and not any(
            name.startswith(prefix) for name in expected
        ):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_kinds(path: Path, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_nested or tensor.layout != torch.strided:
            kind, remedy = "is sparse or nested", "Save `tensor.to_dense()` in its place."
        elif tensor.is_meta:
            kind, remedy = (
                "is on the meta device and has no values",
                "Load the network's weights before saving it.",
            )
        elif tensor.is_quantized:
            kind, remedy = "is quantized by PyTorch", "Save the network before it is quantized."
        else:
            continue
        raise PTQ4VMError(f"Expected plain tensors in {path}, got {name}, which {kind}. {remedy}")


def _check_fit(path: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = [
        f"{name} {tuple(state[name].shape)} {state[name].dtype}, expected {tuple(tensor.shape)} "
        f"{tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and not _fits(state[name], tensor)
    ]
    problems = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape or type", wrong),
    )
    listed = [
        f"{len(names)} {what}: {', '.join(map(str, names[:3]))}{', …' if len(names) > 3 else ''}"
        for what, names in problems
        if names
    ]
    if listed:
        known = [
            model
            for first, (_, model) in _FIRST_CONVOLUTIONS.items()
            if first in state and first not in expected
        ]
        hint = f" The file looks like {known[0]}." if known else ""
        if not unexpected and not wrong and all(key.startswith("refiner.") for key in missing):
            hint = " It was made with refiner='fast_guided_filter'."
        raise PTQ4VMError(
            f"Expected the weights of this network in {path}, got keys {'; '.join(listed)}.{hint} "
            "Give the network and its weights in one variant."
        )


def _fits(got: Tensor, expected: Tensor) -> bool:
    kinds = _FLOATS if expected.is_floating_point() else _WHOLE_NUMBERS
    return got.shape == expected.shape and got.dtype in kinds
