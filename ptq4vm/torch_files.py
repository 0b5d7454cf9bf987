"""Files that ``torch.save`` wrote: read without running code, at a cost that the file's size bounds."""

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
"""How a pickle names the one type it may hold that takes any amount of memory for a number of a few bytes."""

_DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""In which ways the unpickler stumbles over bytes that are no checkpoint."""


def load_plain(path: Path, expected: str, remedy: str, map_location: Any = "cpu") -> Any:
    """Read what ``torch.save`` wrote, as long as it is tensors and plain values: no pickled code is run.

    Args:
        path: the file.
        expected: what it should be, for the error.
        remedy: what to do if it isn't.
        map_location: where tensors go.

    Raises:
        PTQ4VMError: it is damaged, holds more than that, or would take more memory than its size.
    """
    try:
        obstacle = _obstacle(path)
        if obstacle is None:
            with warnings.catch_warnings():
                # About kinds of tensors and of pickles that are refused in words, here or by who asks.
                warnings.simplefilter("ignore")
                return torch.load(path, map_location=map_location, weights_only=True)
        cause = None
    except _DAMAGE as error:
        obstacle, cause = _explain(error), error
    raise PTQ4VMError(f"Expected {expected}, got {path}, which {obstacle}. {remedy}") from cause


def _obstacle(path: Path) -> str | None:
    """Why the file must not be read: it isn't tensors, or takes more memory than its size; None if it may be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
                return "is a TorchScript program"
            # Tensors are stored as they are; an entry that is compressed, or shared, grows when it is read.
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
    """Say in a few words why the file wasn't read; torch's own message has several lines, and terminal colours."""
    found = _FOREIGN_CLASS.search(str(error))
    if found is not None:
        return f"carries more than tensors: a pickled {found[1]}"
    if isinstance(error, OSError) and error.strerror:
        return f"can't be read: {error.strerror}"
    return "is damaged, or not what torch.save writes of tensors"
