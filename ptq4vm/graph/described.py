"""Construction of networks that a file describes by name and arguments."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel

_OURS = frozenset(inspect.signature(create_model).parameters) - {"kwargs"}
"""Arguments of :func:`create_model` itself; these may name files and callables."""


def create_described(name: str, arguments: Mapping[str, Any], where: Path) -> MattingModel:
    """Create the network that a file describes, with random weights.

    Args:
        name: Registry name from the file.
        arguments: Arguments from the file.
        where: Path of the file, for error messages.

    Raises:
        PTQ4VMError: The network or an argument is unknown, or :func:`require_own` rejects one.
    """
    require_own(arguments, where)
    return create_model(name, **arguments)


def require_own(arguments: Mapping[str, Any], where: Path) -> None:
    """Check that arguments from a file belong to the network and contain no path.

    Raises:
        PTQ4VMError: An argument is one of :func:`create_model` itself, or its value is an absolute
            path, a path with ``..``, or a URL.
    """
    for key, value in arguments.items():
        if key in _OURS:
            raise PTQ4VMError(
                f"Expected a network's own arguments in {where}, got {key!r}. Make the file anew."
            )
        if isinstance(value, str) and (
            Path(value).is_absolute() or ".." in Path(value).parts or "://" in value
        ):
            raise PTQ4VMError(
                f"Expected no path among the arguments in {where}, got {key}={value!r}. Make it "
                "anew."
            )
