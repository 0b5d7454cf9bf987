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

    Args:
        name: the network's.
        arguments: from the file.
        where: the file, for the error.

    Raises:
        PTQ4VMError: as :func:`require_own`, or an unknown network or argument.
    """
    require_own(arguments, where)
    return create_model(name, **arguments)


def require_own(arguments: Mapping[str, Any], where: Path) -> None:
    """See that a file's arguments are for a network's own constructor, and that none could name a file.

    Raises:
        PTQ4VMError: one is :func:`create_model`'s own, or names a place.
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
                f"Expected no path among the arguments in {where}, got {key}={value!r}. Make it anew."
            )
