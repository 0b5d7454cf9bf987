"""What a run folder says of its own making: versions, code, seed, weights, and when."""

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
    """Add a start to the run's record, which begins with the first.

    Args:
        folder: the run folder.
        facts: the same for every start, plain JSON: seed, checksum of the weights, what settings.json leaves out.
    """
    record = {"starts": [], **read_record(folder), **facts}
    record["starts"].append(
        {"time": now(), "git": _git(), "machine": platform.platform(), "versions": _versions()}
    )
    write_json(folder / RECORD, record)


def record_end(folder: Path) -> None:
    """Say in the record when the run was finished first."""
    record = read_record(folder)
    write_json(folder / RECORD, {**record, "finished": record.get("finished") or now()})


def now() -> str:
    """ISO 8601, to the second, in UTC."""
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
    """Revision of the checkout that this code lies in, and whether files in it were changed; None outside of one."""
    here = Path(__file__).parent
    try:
        # Tracked, or it is a copy that happens to lie in a checkout of something else.
        _ask(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _ask(here, "status", "--porcelain", "--untracked-files=no")
        return {"revision": _ask(here, "rev-parse", "HEAD"), "changed": bool(changed)}
    except OSError:
        return None


def _ask(folder: Path, *command: str) -> str:
    # A checkout's own settings may name a program that watches its files; and asking writes nothing.
    done = run_program(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *command], folder
    )
    if done.returncode:
        raise OSError(f"git exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()
