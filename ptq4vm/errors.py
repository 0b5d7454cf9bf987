"""The one exception for everything a user can put right."""

import errno
from collections.abc import Mapping
from typing import Any


class PTQ4VMError(Exception):
    """Bad input: the message says what was expected, what was got, where, and what to do.

    The command line prints it without a traceback.
    """


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which settings have changed, for an error; empty when none has.

    A missing one counts as None. Nested ones are compared one by one, under dotted names.
    """
    before, now = _flat(before), _flat(now)
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


_REMEDIES = {
    "Correct the path.": (
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
        "ENAMETOOLONG",
        "ELOOP",
        "EINVAL",
        "ENOTEMPTY",
    ),
    "Choose a place where you may read and write, or have its permissions changed.": (
        "EACCES",
        "EPERM",
        "EROFS",
    ),
    "Free space there, or choose a larger disk.": ("ENOSPC",),
    "Free space of your quota there, or choose another disk.": ("EDQUOT",),
    "Raise the limit for the size of a file (ulimit -f), or choose a file system for larger files.": (
        "EFBIG",
    ),
    "Raise the limit for open files (ulimit -n), or use fewer workers.": ("EMFILE", "ENFILE"),
    "Free memory, or ask for less: smaller frames, shorter sequences, fewer workers.": (
        "ENOMEM",
        "EAGAIN",
    ),
    "Look after the disk or its connection, then run again.": (
        "EIO",
        "ENXIO",
        "ENODEV",
        "ESTALE",
        "ETIMEDOUT",
    ),
    "End the program that uses it, or choose another place.": ("EBUSY", "ETXTBSY"),
}
"""Remedies and the names of errors they are for; a system need not have all of them."""


def remedy(error: Exception) -> str:
    """Say what a user can do about an error of the system, or of FFmpeg, in a sentence."""
    name = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return next(
        (text for text, names in _REMEDIES.items() if name in names),
        "See to its cause, then run again.",
    )
