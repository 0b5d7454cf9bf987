"""Validated reading of JSON and safetensors files: typed values or a :class:`PTQ4VMError`."""

import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ptq4vm.errors import PTQ4VMError

_DEEPEST = 32
"""Maximum nesting of JSON; files of ptq4vm have at most six levels."""
_LARGEST = 1e100
"""Maximum magnitude of finite numbers, so that charts can compute with them."""
_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class _Mismatch(NamedTuple):
    key: str
    problem: str


def parse_json(text: str | bytes) -> Any:
    """Parse JSON with at most 32 levels, integers below 2^64 in magnitude and printable text.

    Raises:
        ValueError: the text isn't such JSON.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nesting too deep to be read") from error
    level = [content]
    for _ in range(_DEEPEST):
        for value in level:
            if isinstance(value, str):
                value.encode()  # lone surrogates raise a ValueError
                if "\0" in value:
                    raise ValueError("a text with a NUL in it")
            elif isinstance(value, int) and abs(value) >= 2**64:
                raise ValueError("an integer of more than 64 bits")
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return content
    raise ValueError(f"nesting deeper than {_DEEPEST} levels")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return value if isinstance(value, list) else ()


def read_json(
    path: Path, kind: Any = dict, expected: str = "a JSON object", remedy: str = "Remove the file."
) -> Any:
    """Read a JSON file and check the type of its content.

    Args:
        path: file to read.
        kind: expected type, as for :func:`typed`.
        expected: description of the content, for the error message.
        remedy: remedy for other content, for the error message.

    Returns:
        The content as parsed.

    Raises:
        PTQ4VMError: the file doesn't exist, isn't JSON or has another type.
    """
    try:
        if not path.is_file():
            raise OSError("no file is there")
        content = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise PTQ4VMError(
            f"Expected JSON in {path}, got something else ({error}). {remedy}"
        ) from error
    return typed(content, kind, expected, path, remedy)


def typed(value: Any, kind: Any, expected: str, where: Path | str, remedy: str) -> Any:
    """Check the type of a value and return it unchanged.

    Args:
        value: parsed JSON.
        kind: ``str``, ``int``, ``float`` (also integers; magnitude at most 1e100, infinity or NaN),
            ``bool``, ``dict``, ``Any``, ``list[...]``, ``tuple[...]`` (a list in JSON),
            ``dict[str, ...]``, ``Literal``, a union, a ``TypedDict`` (further keys are allowed) or
            a dataclass (further keys are an error).
        expected: description of the whole value, for the error message.
        where: file of the value, for the error message.
        remedy: remedy for another type, for the error message.

    Raises:
        PTQ4VMError: the value has another type; the message names the key.
    """
    mismatch = _mismatch(value, kind, "")
    if mismatch is not None:
        at = f" for {mismatch.key}" if mismatch.key else ""
        raise PTQ4VMError(f"Expected {expected} in {where}, got {mismatch.problem}{at}. {remedy}")
    return value


def check_fields(settings: Any) -> None:
    """Check the numbers, flags, texts and choices among the fields of a dataclass.

    Raises:
        PTQ4VMError: one has another type; the message names it.
    """
    for name, kind in get_type_hints(type(settings)).items():
        leaves = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if all(one in (*_NAMES, NoneType) or get_origin(one) is Literal for one in leaves):
            where = type(settings).__name__
            typed({name: getattr(settings, name)}, dict[str, kind], "a value", where, "Correct it.")  # type: ignore[valid-type]


def _mismatch(value: Any, kind: Any, key: str) -> _Mismatch | None:
    """Return the first mismatch of value and type, or None."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin in (Union, UnionType):
        found = [_mismatch(value, one, key) for one in arguments]
        return None if None in found else max(found, key=lambda one: len(one.key))  # type: ignore[union-attr]
    if origin is Literal:
        known = ", ".join(map(repr, arguments))
        fits = any(type(value) is type(one) and value == one for one in arguments)
        return None if fits else _wrong(key, value, f"one of {known}")
    if origin in (list, tuple):
        return _list_mismatch(value, arguments, key)
    if is_typeddict(kind) or is_dataclass(kind):
        return _object_mismatch(value, kind, key)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            return _wrong(key, value, "an object")
        inner = arguments[1] if arguments else Any
        return _first(_mismatch(one, inner, _below(key, name)) for name, one in value.items())
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (not math.isfinite(value) or abs(value) <= _LARGEST)
    else:
        fits = type(value) is kind
    return None if fits else _wrong(key, value, _NAMES[kind])


def _list_mismatch(value: Any, arguments: tuple[Any, ...], key: str) -> _Mismatch | None:
    if not isinstance(value, list):
        return _wrong(key, value, "a list")
    kinds = arguments * len(value) if len(arguments) == 1 else arguments
    if arguments[-1] is ...:
        kinds = arguments[:1] * len(value)
    if len(kinds) != len(value):
        return _wrong(key, value, f"a list of {len(kinds)}")
    pairs = enumerate(zip(value, kinds, strict=True))
    return _first(_mismatch(one, kind, _below(key, number)) for number, (one, kind) in pairs)


def _object_mismatch(value: Any, kind: Any, key: str) -> _Mismatch | None:
    if not isinstance(value, dict):
        return _wrong(key, value, "an object")
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        needed = kind.__required_keys__
    else:
        needed = {
            one.name
            for one in fields(kind)
            if one.default is MISSING and one.default_factory is MISSING
        }
        unknown = sorted(value.keys() - hints.keys())
        if unknown:
            return _Mismatch(_below(key, unknown[0]), "an unknown setting")
    missing = sorted(needed - value.keys())
    if missing:
        return _Mismatch(_below(key, missing[0]), "nothing")
    return _first(
        _mismatch(value[name], hint, _below(key, name))
        for name, hint in hints.items()
        if name in value
    )


def _first(found: Iterable[_Mismatch | None]) -> _Mismatch | None:
    return next((one for one in found if one is not None), None)


def _wrong(key: str, value: Any, wanted: str) -> _Mismatch:
    return _Mismatch(key, f"{reprlib.repr(value)}, not {wanted},")


def _below(key: str, name: str | int) -> str:
    name = reprlib.repr(name)[1:-1] if isinstance(name, str) else str(name)
    return f"{key}.{name}" if key else name


def parse_number(text: str) -> float:
    """Parse a number from a log; infinity and NaN are allowed.

    Raises:
        ValueError: the text isn't a number, or its magnitude is finite and above 1e100.
    """
    value = float(text)
    if math.isfinite(value) and abs(value) > _LARGEST:
        raise ValueError(f"a number of at most {_LARGEST:g}, got {value:g}")
    return value


def load_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load tensors and metadata from the bytes of a safetensors file.

    Files aren't memory-mapped: truncation during reading would crash the process.

    Raises:
        ValueError: the bytes aren't safetensors, or a tensor's dtype isn't supported by the
            installed safetensors and torch.
    """
    try:
        tensors = load(data)
    except KeyError as error:
        raise ValueError(
            f"tensors of the type {error}, unknown to this safetensors and torch"
        ) from error
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from error
    size = int.from_bytes(data[:8], "little")
    return tensors, parse_json(data[8 : 8 + size]).get("__metadata__") or {}
