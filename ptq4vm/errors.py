"""The exception for user errors, and helpers for its messages."""

import errno
from collections.abc import Mapping
from typing import Any


class PTQ4VMError(Exception):
    """User error, with the expected and the actual input, its location and a remedy in the message.

    The command line prints the message without a traceback.
    """


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe changed settings for an error message; empty if there are none.

    Missing settings count as None. Nested settings are compared one by one, under dotted names.
    """
    before, now = flat_settings(before), flat_settings(now)
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and value
        flat |= flat_settings(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
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
    "Raise the limit for the size of a file (ulimit -f), "
    "or choose a file system for larger files.": ("EFBIG",),
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
"""Remedies and the errno names that they apply to; not every system defines all of them."""


def remedy(error: Exception) -> str:
    """Return a one-sentence remedy for an error of the operating system or of FFmpeg."""
    name = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return next(
        (text for text, names in _REMEDIES.items() if name in names),
        "See to its cause, then run again.",
    )
