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

FORMAT_VERSION = 7
"""Part of every cache key; increment when the content of the cache or its computation changes."""


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


def file_name(index: int) -> str:
    """Return the file name of a sequence or chunk."""
    return f"{index:05d}.safetensors"


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


def read_tensors(path: Path, verify: bool = True) -> dict[str, Tensor]:
    """Read a file written by :func:`write_tensors`.

    Args:
        path: The file.
        verify: Compare its key and its checksum, which takes longer than reading it.

    Raises:
        PTQ4VMError: The file is missing, damaged or stale.
    """
    try:
        data = path.read_bytes()
        tensors, header = load_safetensors(data)
        problem = "" if not verify else _problem(path, tensors, header)
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        raise PTQ4VMError(
            f"Expected a whole file of the calibration cache at {path}, got: {problem}. Run again: "
            "it will be remade."
        )
    return tensors


class CheckedFiles:
    """Cached files of which this process knows that they are whole.

    A file that it has written or verified is not verified again while its inode, size and time of
    modification stay.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, ...]] = {}

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a file; see :func:`write_tensors`."""
        write_tensors(path, tensors)
        self._known[path] = _stamp(path)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Read a file, and verify it unless it is known; see :func:`read_tensors`."""
        stamp = _stamp(path)
        tensors = read_tensors(path, verify=not stamp or self._known.get(path) != stamp)
        self._known[path] = stamp
        return tensors

    def is_whole(self, path: Path, names: Iterable[str]) -> bool:
        """Return whether a valid file with these tensors exists; warn if it is damaged or stale."""
        stamp = _stamp(path)
        if not stamp:
            return False
        if self._known.get(path) == stamp:
            return True
        try:
            missing = set(names) - set(self.read(path))
            problem = f"it lacks {sorted(missing)}" if missing else ""
        except PTQ4VMError as error:
            problem = str(error)
        if problem:
            self._known.pop(path, None)
            warnings.warn(f"Remaking {path}, which is damaged or stale: {problem}", stacklevel=2)
        return not problem


def _stamp(path: Path) -> tuple[int, ...]:
    """Return inode, size and time of modification of a file; empty without a file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _problem(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the problem with the key or the checksum of a file; empty without one."""
    if header.get("key") != _key(path):
        return f"it was made as {header.get('key')}"
    return "" if header.get("sha256") == _checksum(tensors) else "its checksum is another"


def _key(path: Path) -> str:
    return "/".join(path.absolute().parts[-3:])


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
