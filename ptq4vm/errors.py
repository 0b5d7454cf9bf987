"""The one exception for everything a user can put right."""

from collections.abc import Mapping
from typing import Any


class PTQ4VMError(Exception):
    """Bad input: the message says what was expected, what was got, where, and what to do.

    The command line prints it without a traceback.
    """


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of some settings has changed, for an error to say; empty when nothing has. A missing one counts as None."""
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)
