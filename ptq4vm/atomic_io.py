"""Files that appear whole or not at all."""

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
    """Yields a temporary path beside ``path`` to write to, which takes its name at the end; an exception removes it.

    Raises:
        PTQ4VMError: nothing can be written there.
    """
    path = Path(os.path.realpath(path))  # unlike resolve, takes loops of links
    part = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise PTQ4VMError(f"Can't write {path}: {error}. {remedy(error)}") from error
    finally:
        # Suppressed for what stands in the way of the folder itself, where there is no file to remove.
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Find out, before work is done for it, that :func:`written_whole` couldn't write there.

    Raises:
        PTQ4VMError: nothing can be written there, or a folder has the name.
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
    """Write a JSON file, whole or not at all; ``options`` are those of :func:`json.dumps`.

    Raises:
        PTQ4VMError: nothing can be written there.
    """
    content = json.dumps(value, indent=2, **options)
    with written_whole(path) as part:
        part.write_text(content + "\n", encoding="utf-8")
