"""Ownership of files and folders by processes: process names, temporary files and locks."""

import atexit
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from ptq4vm.errors import PTQ4VMError, remedy

_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after the last write at which another machine's temporary file counts as abandoned."""

_PROCESS = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)")
"""Format of a name from :func:`this_process`."""

_made: set[Path] = set()
"""Temporary paths created by this process."""

_locked: set[int] = set()
"""File descriptors of the locks held by this process."""


# ---- processes ---------------------------------------------------------------------------------


def this_process() -> str:
    """Return a unique name of this process: ``<machine>-<process id>-<start time>``."""
    return f"{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}"


def process_id(process: str) -> int:
    """Return the process id in a name from :func:`this_process`."""
    return int(process.split("-")[1])


def is_running(process: str) -> bool | None:
    """Return whether the named process still runs; None if it is on another machine.

    The name is one from :func:`this_process`.
    """
    machine, pid, start = process.split("-")
    if machine != _machine():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # runs as another user
        pass
    # If the system doesn't report start times, the process id alone decides.
    return _started(int(pid)) in (None, int(start)) or start == "0"


def _started(pid: int) -> int | None:
    """Return a process's start in clock ticks since boot; -1 if it has ended, None if unknown."""
    try:
        # Fields after the command's name, which may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


@functools.cache
def _machine() -> str:
    """Return 8 hexadecimal digits that identify the process id namespace: a host or a container."""
    space = socket.gethostname()
    with suppress(OSError):
        space += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(space.encode()).hexdigest()[:8]


@functools.cache
def _boot() -> str:
    """Return the kernel's boot id; empty if unavailable."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


# ---- temporary files ---------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    """Return a new hidden path beside ``path``, for a file or folder that will replace it.

    The path is removed at the end of the process if it still exists. Leftovers of killed
    processes for the same ``path`` are removed now; those of running processes are kept.
    """
    _remove_abandoned(path)
    # Writers choose the format by the suffix. The stem is cut: names have at most 255 bytes.
    part = path.with_name(f".{path.stem[:50]}.{this_process()}.{uuid4().hex[:8]}.part{path.suffix}")
    _made.add(part)
    return part


def _remove_abandoned(path: Path) -> None:
    owner = rf"(?P<owner>{_PROCESS.pattern})\.[0-9a-f]{{8}}\.part"
    pattern = re.compile(rf"\.{re.escape(path.stem[:50])}\.{owner}{re.escape(path.suffix)}")
    with suppress(OSError):  # the folder may not exist; writing to it will report that
        for entry in os.scandir(path.parent):
            match = pattern.fullmatch(entry.name)
            if match is not None and _is_abandoned(Path(entry.path), match["owner"]):
                _remove(Path(entry.path))


def _is_abandoned(path: Path, owner: str) -> bool:
    running = is_running(owner)
    if running is None:
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    return not running


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@atexit.register
def _remove_made() -> None:
    for path in _made:
        _remove(path)


# ---- locks -------------------------------------------------------------------------------------


@contextmanager
def owned(place: Path, folder: bool = False) -> Iterator[None]:
    """Own a file or folder exclusively among processes, inside the context.

    An flock on a hidden file decides; the system releases it when the process ends in any way. If
    the file system has no flock, or doesn't share it between machines, the owner's name in the
    file decides.

    Args:
        place: file to be written, or folder.
        folder: True if ``place`` is a folder, which is created and contains the lock file.

    Raises:
        PTQ4VMError: another process owns it, or the lock file can't be written.
    """
    path = place / ".lock" if folder else place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, place)
    except OSError as error:
        raise PTQ4VMError(f"Can't write {path}: {error}. {remedy(error)}") from error
    try:
        yield
    finally:
        _release(lock, path)


def _acquire(path: Path, place: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = _flock(lock)
            owner = _read_owner(lock)
            if free is False or not _has_ended(owner, free is True):
                raise PTQ4VMError(_refusal(place, path, owner))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
                    facts = {
                        "process": this_process(),
                        "host": socket.gethostname(),
                        "boot": _boot(),
                        "since": since,
                    }
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, json.dumps(facts).encode(), 0)
                    _locked.add(lock)
                    return lock
        finally:
            if lock not in _locked:
                os.close(lock)
        # The previous owner has removed the file in the meantime: try again.


def _release(lock: int, path: Path) -> None:
    if lock not in _locked:  # in a forked child
        return
    _locked.discard(lock)
    with suppress(OSError):
        if os.path.samestat(os.fstat(lock), path.stat()):
            path.unlink()
    os.close(lock)


def _flock(lock: int) -> bool | None:
    """Return whether the flock was acquired; None if the file system doesn't support flock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read_owner(lock: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(lock, 4096, 0))
    except (ValueError, RecursionError):
        return {}  # not written yet, or truncated by a power failure
    known = isinstance(owner, dict) and _PROCESS.fullmatch(str(owner.get("process")))
    return owner if known else {}


def _has_ended(owner: dict[str, Any], free: bool) -> bool:
    if not owner or (free and _boot() and owner.get("boot") == _boot()):
        return True  # same kernel: flock is reliable, also across containers
    return is_running(owner["process"]) is False


def _refusal(place: Path, lock: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return (
            f"Expected {place} to be free, got one that another process works on. "
            "Wait for it, or choose another."
        )
    pid, here = process_id(owner["process"]), is_running(owner["process"]) is not None
    remedies = f"Wait for it, end it (kill {pid}), or choose another output."
    return (
        f"Expected {place} to be free, got one that process {pid} on {owner.get('host')} "
        f"has worked on since {owner.get('since')}. "
        f"{remedies if here else f'If it has ended, remove {lock}; else choose another output.'}"
    )


def _forget() -> None:
    """Drop the parent's temporary paths and locks in a forked child."""
    _made.clear()
    for lock in _locked:
        os.close(lock)
    _locked.clear()


os.register_at_fork(after_in_child=_forget)
