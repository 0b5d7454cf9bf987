"""Programs that this one starts. Nothing that lies in the current directory is run, or imported, by them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_program(*arguments: str) -> list[str]:
    """Return the command of this interpreter with arguments, isolated.

    Neither the current directory nor PYTHONPATH, nor the user's own site folder, gives it modules.
    """
    return [sys.executable, "-I", *arguments]


def run_program(
    command: Sequence[str], folder: Path, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without a shell and without input.

    Args:
        command: the program and its arguments. A bare name is looked up in the absolute entries of PATH alone: an
            empty or relative one would mean the current directory.
        folder: the directory to run in, one that nobody else puts files into.
        seconds: how long it may take; None for any time.

    Returns:
        Its exit status, and what it wrote.

    Raises:
        FileNotFoundError: there is no such program.
        OSError: it can't be started.
        subprocess.TimeoutExpired: it took longer, and was ended.
    """
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(entry for entry in entries if Path(entry).is_absolute())
    found = shutil.which(command[0], path=path)
    if found is None:
        raise FileNotFoundError(f"no program {command[0]} in the absolute folders of PATH")
    return subprocess.run(
        [found, *command[1:]],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds,
        check=False,
    )  # fmt: skip
