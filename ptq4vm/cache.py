"""Location of the cache."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$PTQ4VM_CACHE``, else ``$XDG_CACHE_HOME/ptq4vm``, else ``~/.cache/ptq4vm``."""
    if chosen := os.environ.get("PTQ4VM_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "ptq4vm"
