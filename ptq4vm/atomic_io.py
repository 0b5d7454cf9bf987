"""Atomic writing of files."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptq4vm.errors import PTQ4VMError, remedy
from ptq4vm.ownership import temporary_path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file atomically: the temporary file replaces ``path`` at the end of the context.

    The temporary file is removed if an exception is raised.

    Yields:
        Path of the temporary file, in the same folder.

    Raises:
        PTQ4VMError: the file can't be written.
    """
    path = Path(os.path.realpath(path))  # unlike resolve, accepts loops of links
    part = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise PTQ4VMError(f"Can't write {path}: {error}. {remedy(error)}") from error
    finally:
        # The folder may be missing or a file, in which case there is nothing to remove.
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Check that :func:`written_whole` can write to the path.

    Raises:
        PTQ4VMError: the file can't be written, or the path is a folder.
    """
    if path.is_dir():
        raise PTQ4VMError(f"Expected a file to write to, got the folder {path}. Name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}."):
            pass
    except OSError as error:
        raise PTQ4VMError(f"Can't write {path}: {error}. {remedy(error)}") from error


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write a JSON file atomically; ``options`` are passed to :func:`json.dumps`.

    Raises:
        PTQ4VMError: the file can't be written.
    """
    content = json.dumps(value, indent=2, **options)
    with written_whole(path) as part:
        part.write_text(content + "\n", encoding="utf-8")
