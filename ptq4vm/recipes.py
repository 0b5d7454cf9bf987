"""The shipped recipes, by name."""

from pathlib import Path
from typing import Any

import yaml

from ptq4vm.errors import PTQ4VMError

_HERE = Path(__file__).parent


def recipes_folder() -> Path:
    """Return the folder of the recipes: in a wheel inside the package, in a checkout beside it."""
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
    """Return the file of a recipe.

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
    """Return the files that make up a configuration: that named by its key ``base`` first.

    Raises:
        PTQ4VMError: The base is missing, or is based on itself.
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
        return None  # the command's own parser reports it
    base = settings.get("base") if isinstance(settings, dict) else None
    return base if isinstance(base, str) else None


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings of a configuration merged into those of its base, group by group."""
    merged: dict[str, Any] = {}
    for file in with_bases(path):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        for key, value in settings.items():
            group = merged.get(key)
            both = isinstance(group, dict) and isinstance(value, dict) and key != "rows"
            merged[key] = {**group, **value} if both else value  # type: ignore[dict-item]
    merged.pop("base", None)
    return merged
