"""Recipes included in the package."""

import re
from pathlib import Path
from typing import Any

import yaml

from ptq4vm.errors import PTQ4VMError

FORMER_NAMES = {"edge_bits": "first_last_bits", "float_modules": "ignored_modules"}
"""Settings by the names they had in version 0.1."""
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
    for arg in args:
        path = Path(arg.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml") and path.is_file():
            text, place = path.read_text(encoding="utf-8", errors="replace"), f" in {path}"
        else:
            text, place = f"{arg}=", ""
        if (match := _FORMER.search(text)) is not None:
            raise PTQ4VMError(
                f"Expected the setting {FORMER_NAMES[match[1]]}, got its former name {match[1]}"
                f"{place}. Rename it."
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
