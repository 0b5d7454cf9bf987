"""Subprocesses that never run or import files from the current directory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_program(*arguments: str) -> list[str]:
    """Return the command of this interpreter in isolated mode (``-I``).

    Modules are not imported from the current directory, PYTHONPATH or the user's site folder.
    """
    return [sys.executable, "-I", *arguments]


def run_program(
    command: Sequence[str], folder: Path, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without a shell and without input.

    Args:
        command: program and arguments. A bare name is searched only in the absolute entries of
            PATH, since empty and relative entries refer to the current directory.
        folder: working directory; should not be writable by others.
        seconds: timeout; None for no limit.

    Returns:
        Exit status and output.

    Raises:
        FileNotFoundError: the program doesn't exist.
        OSError: the program can't be started.
        subprocess.TimeoutExpired: the timeout expired, and the program was killed.
    """
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(entry for entry in entries if Path(entry).is_absolute())
    found = shutil.which(command[0], path=path)
    if found is None:
        raise FileNotFoundError(f"no program {command[0]} in the absolute folders of PATH")
    return subprocess.run(
        [found, *command[1:]],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        timeout=seconds,
        check=False,
    )  # fmt: skip
