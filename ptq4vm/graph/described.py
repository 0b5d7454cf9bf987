"""Networks that a file describes by name and arguments."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel

_OURS = frozenset(inspect.signature(create_model).parameters) - {"kwargs"}
"""Arguments of :func:`create_model` itself, which name files and callables."""


def create_described(name: str, arguments: Mapping[str, Any], where: Path) -> MattingModel:
    """Make the network that a file names, with random weights.

    Only arguments of the network's own constructor pass, none that could name a file.

    Args:
        name: the network's.
        arguments: from the file.
        where: the file, for the error.

    Raises:
        PTQ4VMError: an argument that isn't the network's own, one that names a place, or an unknown network.
    """
    for key, value in arguments.items():
        if key in _OURS:
            raise PTQ4VMError(f"Expected arguments of {name} in {where}, got {key!r}, which is none. Make the file anew.")
        if isinstance(value, str) and (Path(value).is_absolute() or ".." in Path(value).parts or "://" in value):
            raise PTQ4VMError(f"Expected no path in {where}, got {value!r} for {key}. Make the file anew.")
    return create_model(name, **arguments)
