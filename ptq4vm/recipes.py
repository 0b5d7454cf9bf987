"""Recipes included in the package."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ptq4vm.errors import PTQ4VMError

_HERE = Path(__file__).parent


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
    base = read_settings(path).get("base")
    return base if isinstance(base, str) else None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of one file; none if it can't be read, which the command's parser says.

    Bytes that are not UTF-8 are replaced.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


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


def names_sources(files: Iterable[Path]) -> bool:
    """Return whether the last of these files with ``data.source`` names sources in the data folder.

    ``Auto`` recognises them, and ``Builtin`` needs no folder.
    """
    source: Any = "Builtin"
    for file in files:
        data = read_settings(file).get("data")
        source = data.get("source", source) if isinstance(data, dict) else source
    name = source.get("class_path") if isinstance(source, dict) else source
    return not (isinstance(name, str) and name.rpartition(".")[2] in ("Auto", "Builtin"))
