"""Tensors in files that are whole or absent: what was computed once and is kept."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from ptq4vm.errors import PTQ4VMError


def short_hash(settings: Mapping[str, Any]) -> str:
    """A short hash of settings that JSON can hold, for names of folders."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def make_folder(folder: Path) -> Path:
    """Make a folder of the cache.

    Raises:
        PTQ4VMError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PTQ4VMError(
            f"Expected a cache folder that can be written, got: {error}. Set cache_dir or PTQ4VM_CACHE."
        ) from error
    return folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that appears only when it is complete.

    Raises:
        PTQ4VMError: the file can't be written.
    """
    # Named by process, so that processes making the same file don't write into each other's.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise PTQ4VMError(f"Expected to write {path}, got: {error}. Free some space or change cache_dir.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of :func:`write_tensors`.

    Raises:
        PTQ4VMError: it is missing or damaged.
    """
    try:
        # Not load_file: its tensors look into the file, and a file that is cut short meanwhile would kill the process.
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise PTQ4VMError(
            f"Expected a whole file of the calibration cache at {path}, got: {error}. Run again: it will be remade."
        ) from error


def is_whole(path: Path, names: Iterable[str]) -> bool:
    """Whether a file of :func:`write_tensors` is there with these tensors; warns when it is there but damaged."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            missing = set(names) - set(file.keys())
        problem = f"it lacks {sorted(missing)}" if missing else ""
    except (OSError, SafetensorError) as error:
        problem = str(error)
    if problem:
        warnings.warn(f"Remaking {path}, which is damaged: {problem}.", stacklevel=2)
    return not problem
