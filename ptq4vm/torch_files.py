"""Safe reading of ``torch.save`` files, without code execution and with bounded memory."""

import mmap
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ptq4vm.errors import PTQ4VMError

_ZIP = b"PK\x03\x04"
_FOREIGN_CLASS = re.compile(r"GLOBAL (\S+) (?:was not|whose)")
_ALLOCATOR = b"bytearray\n"
"""Pickle reference to bytearray, the one allowed type that allocates any size from a few bytes."""

_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, MemoryError, struct.error, zipfile.BadZipFile,
    pickle.UnpicklingError,
)  # fmt: skip
"""Exceptions of the unpickler on invalid files."""


def load_plain(path: Path, expected: str, remedy: str, map_location: Any = "cpu") -> Any:
    """Load tensors and plain values from a ``torch.save`` file, without running pickled code.

    Args:
        path: file to read.
        expected: description of the content, for the error message.
        remedy: remedy for other content, for the error message.
        map_location: device of the tensors, as for :func:`torch.load`.

    Raises:
        PTQ4VMError: the file is damaged, has other content, or would need more memory than its
            size.
    """
    try:
        obstacle = _obstacle(path)
        if obstacle is None:
            with warnings.catch_warnings():
                # Kinds of tensors and pickles that torch warns of are rejected with an error.
                warnings.simplefilter("ignore")
                return torch.load(path, map_location=map_location, weights_only=True)
        cause = None
    except _DAMAGE as error:
        obstacle, cause = _explain(error), error
    raise PTQ4VMError(f"Expected {expected}, got {path}, which {obstacle}. {remedy}") from cause


def _obstacle(path: Path) -> str | None:
    """Return why the file must not be loaded, or None if it may be.

    Rejects TorchScript and files whose content may need more memory than the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
                return "is a TorchScript program"
            # torch.save stores tensors uncompressed; compressed or shared entries grow on reading.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "is compressed, as torch.save does not write it"
            if sum(entry.file_size for entry in entries) > size:
                return f"holds more than its {size} bytes"
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(_ALLOCATOR) >= 0:
                    return "carries more than tensors: a pickled bytearray"
    return None


def _explain(error: Exception) -> str:
    """Describe the error in a few words; torch's own message has several lines and colour codes."""
    found = _FOREIGN_CLASS.search(str(error))
    if found is not None:
        return f"carries more than tensors: a pickled {found[1]}"
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}"
    return "is damaged, or not what torch.save writes of tensors"
