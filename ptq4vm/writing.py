"""Files that appear whole or not at all."""

import json
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
    path = Path(path).resolve()
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


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write a JSON file, whole or not at all; ``options`` are those of :func:`json.dumps`.

    Raises:
        PTQ4VMError: nothing can be written there.
    """
    content = json.dumps(value, indent=2, **options)
    with written_whole(path) as part:
        part.write_text(content + "\n", encoding="utf-8")
