"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ptq4vm.errors import PTQ4VMError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` to write to, which takes its name at the end; an exception removes it.

    Raises:
        PTQ4VMError: nothing can be written there.
    """
    path = Path(path).resolve()
    # The suffix stays last: writers choose their format by it.
    part = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise PTQ4VMError(
            f"Can't write {path}: {error}. Choose a place that exists, has room and lets you write"
        ) from error
    finally:
        # Suppressed for what stands in the way of the folder itself, where there is no file to remove.
        if part.parent.is_dir():
            part.unlink(missing_ok=True)
