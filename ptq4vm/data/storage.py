"""Cached tensors in checksummed files, written atomically."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import load_safetensors


def short_hash(settings: Mapping[str, Any]) -> str:
    """Hash JSON-serializable settings to 16 hexadecimal digits, for folder names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def make_folder(folder: Path) -> Path:
    """Create a cache folder.

    Raises:
        PTQ4VMError: The folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PTQ4VMError(
            f"Expected a cache folder that can be written, got: {error}. Set cache_dir or "
            "PTQ4VM_CACHE."
        ) from error
    return folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically, with its key and a checksum.

    The key is the end of the file's path, since folders are named by a hash of the settings that
    determine their content.

    Raises:
        PTQ4VMError: The file can't be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, {"key": _key(path), "sha256": _checksum(plain)})
    with written_whole(path) as part:
        part.write_bytes(data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file written by :func:`write_tensors`.

    Raises:
        PTQ4VMError: The file is missing, damaged or stale.
    """
    try:
        data = path.read_bytes()
        tensors, header = load_safetensors(data)
        problem = "" if header.get("sha256") == _checksum(tensors) else "its checksum is another"
        if header.get("key") != _key(path):
            problem = f"it was made as {header.get('key')}"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        raise PTQ4VMError(
            f"Expected a whole file of the calibration cache at {path}, got: {problem}. Run again: "
            "it will be remade."
        )
    return tensors


def is_whole(path: Path, names: Iterable[str]) -> bool:
    """Return whether a valid file with these tensors exists; warn if it is damaged or stale."""
    if not path.exists():
        return False
    try:
        missing = set(names) - set(read_tensors(path))
        problem = f"it lacks {sorted(missing)}" if missing else ""
    except PTQ4VMError as error:
        problem = str(error)
    if problem:
        warnings.warn(f"Remaking {path}, which is damaged or stale: {problem}", stacklevel=2)
    return not problem


def _key(path: Path) -> str:
    return "/".join(path.absolute().parts[-3:])


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
