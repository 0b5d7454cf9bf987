"""Settings by the names they had in version 0.1, and their refusal with the present ones."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ptq4vm.errors import PTQ4VMError
from ptq4vm.recipes import read_settings, with_bases

_QUANTIZATION = {"edge_bits": "first_last_bits", "float_modules": "ignored_modules"}
_SOURCES = {
    "auto": "Auto",
    "builtin": "Builtin",
    "videomatte": "Composites",
    "video": "Videos",
    "cutout": "CutOuts",
    "evaluation": "EvaluationTree",
}
"""Classes of sources by the names that ``data.source`` took."""
_OF_SOURCES = {
    "foregrounds": ("Composites", "Auto"),
    "backgrounds": ("CutOuts", "Composites", "Auto"),
    "photographs": ("CutOuts", "Composites", "Auto"),
    "composites": ("EvaluationTree",),
    "videos": ("Videos", "CutOuts", "Auto"),
}
"""Settings of ``data`` that belong to a source now, and the classes that have them."""
_STAGES = ("fit", "validate", "test", "predict")


def with_present_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return quantization settings of an earlier version by their present names.

    Raises:
        PTQ4VMError: the network was equalized: the float network's weights are no longer its own.
    """
    if settings.get("equalize"):
        raise PTQ4VMError(
            "Expected a network without cross-layer equalization, which ptq4vm no longer has, got "
            "qconfig.equalize true. Quantize the float network again."
        )
    return {
        _QUANTIZATION.get(name, name): value
        for name, value in settings.items()
        if name != "equalize"
    }


def refuse_former_names(args: list[str]) -> None:
    """Check a command line, and the YAML files it names with their bases, for former names.

    Raises:
        PTQ4VMError: One is used; the message has its present name.
    """
    given: dict[str, Any] = {}
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        for file in _configurations(arg):
            content = read_settings(file)
            _refuse_names(_keys(content), f" in {file}")
            for data in _data_groups(content):
                _refuse_data(data, f" in {file}")
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            _refuse_names(re.split(r"[.\-]+", name), "")
        if name.startswith("--data."):
            key = name.removeprefix("--data.").rstrip("+")
            given[key.replace("source.class_path", "source")] = value if equals else following
    _refuse_data({**given, "source": _parse(given.get("source", ""))}, "")


def _configurations(arg: str) -> list[Path]:
    path = Path(arg.removeprefix("--config="))
    try:
        return with_bases(path) if path.suffix in (".yaml", ".yml") and path.is_file() else []
    except OSError:  # e.g. an argument that is too long for a path
        return []


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return None  # reported by the command's parser


def _keys(tree: Any) -> Iterator[str]:
    for one in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _keys(one)
    if isinstance(tree, dict):
        yield from map(str, tree)


def _data_groups(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups ``data`` of a file, at its top and below Lightning's subcommands."""
    groups = [content, *(content.get(stage) for stage in _STAGES)]
    data = [group.get("data") for group in groups if isinstance(group, dict)]
    return [settings for settings in data if isinstance(settings, dict)]


def _refuse_names(names: Any, place: str) -> None:
    for name in names:
        if (present := _QUANTIZATION.get(name)) is not None:
            raise PTQ4VMError(
                f"Expected the setting {present}, got its former name {name}{place}. Rename it."
            )


def _refuse_data(settings: Mapping[str, Any], place: str) -> None:
    named = _source_names(settings.get("source"))
    for name, classes in _OF_SOURCES.items():
        if name in settings:
            own = [_SOURCES.get(one, one) for one in named]
            owner = next((one for one in own if one in classes), classes[0])
            raise PTQ4VMError(
                f"Expected {name} as a setting of a source, got data.{name}{place}. Write "
                f"--data.source {owner} --data.source.{name} VALUE, or in YAML source: "
                f"{{class_path: {owner}, init_args: {{{name}: ...}}}}."
            )
    for name in named:
        if (present := _SOURCES.get(name)) is not None:
            raise PTQ4VMError(
                f"Expected the source {present}, got its former name {name}{place}. Rename it."
            )


def _source_names(source: Any) -> list[str]:
    """Return the names of the sources in a string, a mapping with class_path, or a list."""
    if isinstance(source, list):
        return [name for one in source for name in _source_names(one)]
    name = source.get("class_path") if isinstance(source, dict) else source
    return [name] if isinstance(name, str) else []
