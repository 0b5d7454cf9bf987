"""Provenance record of a run: versions, revision, seed, weights and times."""

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptq4vm import __version__
from ptq4vm.atomic_io import write_json
from ptq4vm.programs import run_program
from ptq4vm.reporting.runs import RECORD, read_record

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "numpy",
    "opencv-python-headless",
    "scikit-image",
)


def record_start(folder: Path, facts: dict[str, Any]) -> None:
    """Add a start to the run's record; create the record on the first start.

    Args:
        folder: run folder.
        facts: JSON values that replace those of earlier starts: seed, checksum of the weights, and
            settings that settings.json omits.
    """
    record = {"starts": [], **read_record(folder), **facts}
    record["starts"].append(
        {"time": now(), "git": _git(), "machine": platform.platform(), "versions": _versions()}
    )
    write_json(folder / RECORD, record)


def record_end(folder: Path) -> None:
    """Add the time at which the run was first finished to the record."""
    record = read_record(folder)
    write_json(folder / RECORD, {**record, "finished": record.get("finished") or now()})


def now() -> str:
    """Return the current UTC time in ISO 8601 format, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"ptq4vm": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # another build of the same library, such as opencv-python
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Return revision and changed state of the checkout of this code; None outside a checkout."""
    here = Path(__file__).parent
    try:
        # An untracked file is a copy inside a checkout of another project.
        _ask(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _ask(here, "status", "--porcelain", "--untracked-files=no")
        return {"revision": _ask(here, "rev-parse", "HEAD"), "changed": bool(changed)}
    except OSError:
        return None


def _ask(folder: Path, *command: str) -> str:
    # fsmonitor would run a program named in the checkout's settings; optional locks would write.
    done = run_program(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *command], folder
    )
    if done.returncode:
        raise OSError(f"git exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
