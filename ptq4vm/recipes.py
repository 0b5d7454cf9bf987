"""Recipes included in the package."""

import re
from pathlib import Path
from typing import Any

import yaml

from ptq4vm.errors import PTQ4VMError

FORMER_NAMES = {"edge_bits": "first_last_bits", "float_modules": "ignored_modules"}
"""Settings by the names they had in version 0.1."""
FORMER_SOURCES = {
    "auto": "Auto",
    "builtin": "Builtin",
    "videomatte": "Composites",
    "video": "Videos",
    "cutout": "CutOuts",
    "evaluation": "EvaluationTree",
}
"""Classes of sources by the names that ``data.source`` took in version 0.1."""
FORMER_FOLDERS = {
    "foregrounds": "Composites",
    "backgrounds": "CutOuts",
    "photographs": "CutOuts",
    "composites": "EvaluationTree",
    "videos": "Videos",
}
"""Settings of ``data`` in version 0.1 that belong to a source now, and a class that has them."""
_STAGES = ("fit", "validate", "test", "predict")
_HERE = Path(__file__).parent
_FORMER = re.compile(rf"(?:^|[\s.{{,])({'|'.join(FORMER_NAMES)})\s*[:=]", re.MULTILINE)


def recipes_folder() -> Path:
    """Return the recipes folder: inside an installed package, or next to it in a checkout."""
    installed = _HERE / "lightning_configs"
    return (installed if installed.is_dir() else _HERE.parent / "lightning_configs") / "quantize"


def list_recipes() -> dict[str, str]:
    """Return the first comment line of each recipe, by name."""
    found = {}
    for path in sorted(recipes_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("# ")
    return found


def find_recipe(name: str) -> Path:
    """Return the configuration file of a recipe.

    Raises:
        PTQ4VMError: There is no recipe of this name.
    """
    names = list_recipes()
    if name not in names:
        raise PTQ4VMError(
            f"Expected a recipe of {', '.join(names)}, got {name!r}. A file of your own is given "
            "with --config FILE."
        )
    return recipes_folder() / f"{name}.yaml"


def with_present_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return quantization settings of an earlier version by their present names."""
    return {FORMER_NAMES.get(name, name): value for name, value in settings.items()}


def refuse_former_names(args: list[str]) -> None:
    """Check a command line and the YAML files it names for settings that were renamed.

    Raises:
        PTQ4VMError: One is used; the message has its present name.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        path = Path(arg.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml") and path.is_file():
            text, place = path.read_text(encoding="utf-8", errors="replace"), f" in {path}"
            data = _data_settings(text)
        else:
            text, place = f"{arg}=", ""
            name, equals, value = arg.partition("=")
            data = [{name.removeprefix("--data."): value if equals else following}]
            data = data if name.startswith("--data.") else []
        if (match := _FORMER.search(text)) is not None:
            raise PTQ4VMError(
                f"Expected the setting {FORMER_NAMES[match[1]]}, got its former name {match[1]}"
                f"{place}. Rename it."
            )
        for settings in data:
            _refuse_former_data(settings, place)


def _data_settings(text: str) -> list[dict[str, Any]]:
    """Return the groups ``data`` of a YAML file, at its top and below Lightning's subcommands."""
    try:
        whole = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return []  # reported by the command's parser
    groups = [whole, *(whole.get(stage) for stage in _STAGES)] if isinstance(whole, dict) else []
    data = [group.get("data") for group in groups if isinstance(group, dict)]
    return [settings for settings in data if isinstance(settings, dict)]


def _refuse_former_data(settings: dict[str, Any], place: str) -> None:
    source = settings.get("source")
    for name in re.findall(r"[\w.]+", source) if isinstance(source, str) else source or ():
        if isinstance(name, str) and (present := FORMER_SOURCES.get(name)) is not None:
            raise PTQ4VMError(
                f"Expected the source {present}, got its former name {name}{place}. Rename it."
            )
    for name in settings:
        if (owner := FORMER_FOLDERS.get(name)) is not None:
            raise PTQ4VMError(
                f"Expected {name} as a setting of a source, data.source.{name}, got data.{name}"
                f"{place}. Write --data.source.{name}, or in YAML source: {{class_path: {owner}, "
                f"init_args: {{{name}: ...}}}}."
            )


def with_bases(path: Path) -> list[Path]:
    """Return the files of a configuration: its chain of ``base`` files first, then ``path``.

    Raises:
        PTQ4VMError: The base is missing or circular.
    """
    files = [path]
    while (base := _base(files[0])) is not None:
        found = files[0].parent / base
        if not found.is_file() or found.resolve() in {one.resolve() for one in files}:
            raise PTQ4VMError(
                f"Expected `base` of {files[0]} to name another configuration relative to it, got "
                f"{base!r}. Correct or remove it."
            )
        files.insert(0, found)
    return files


def _base(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            settings = yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # reported by the command's parser
    base = settings.get("base") if isinstance(settings, dict) else None
    return base if isinstance(base, str) else None


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings of a configuration, merged group by group into those of its base."""
    merged: dict[str, Any] = {}
    for file in with_bases(path):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, value in settings.items():
            group = merged.get(key)
            both = isinstance(group, dict) and isinstance(value, dict) and key != "rows"
            merged[key] = {**group, **value} if both else value  # type: ignore[dict-item]
    merged.pop("base", None)
    return merged
