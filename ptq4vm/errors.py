"""The one exception for everything a user can put right."""

from collections.abc import Mapping
from typing import Any


class PTQ4VMError(Exception):
    """Bad input: the message says what was expected, what was got, where, and what to do.

    The command line prints it without a traceback.
    """


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of some settings has changed, for an error to say; empty when nothing has.

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
