"""Which process a file or folder belongs to, and whether that process still runs."""

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
"""Seconds without a write after which another machine's temporary file counts as abandoned."""

_PROCESS = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)")
"""A name of :func:`this_process`."""

_made: set[Path] = set()
"""Temporary paths of this process."""

_locked: set[int] = set()
"""Descriptors of the locks that this process holds."""


# ---- processes ------------------------------------------------------------------------------------


def this_process() -> str:
    """Name this process as no other is named: machine, process id and start, separated by ``-``."""
    return f"{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}"


def process_id(process: str) -> int:
    """The process id in a name that :func:`this_process` gave."""
    return int(process.split("-")[1])


def is_running(process: str) -> bool | None:
    """Whether a process runs, by the name that :func:`this_process` gave it; None on another machine."""
    machine, pid, start = process.split("-")
    if machine != _machine():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    # Where the system doesn't say when a process began, its id alone decides.
    return _started(int(pid)) in (None, int(start)) or start == "0"


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; -1 if it has ended, None if unknown."""
    try:
        # Behind the command's name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits for the space in which process ids mean something: a host or a container."""
    space = socket.gethostname()
    with suppress(OSError):
        space += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(space.encode()).hexdigest()[:8]


@functools.cache
def _boot() -> str:
    """Which start of which kernel this is; empty where the system doesn't say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


# ---- temporary files ------------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    """A new hidden name beside ``path`` for a file or folder that takes its place when it is whole.

    What is still there under this name when the process ends is removed. What a killed process left for the same
    ``path`` is removed now; never that of a process that runs.
    """
    _remove_abandoned(path)
    # The suffix stays last: writers choose their format by it. Shortened, as names have at most 255 bytes.
    part = path.with_name(f".{path.stem[:50]}.{this_process()}.{uuid4().hex[:8]}.part{path.suffix}")
    _made.add(part)
    return part


def _remove_abandoned(path: Path) -> None:
    owner = rf"(?P<owner>{_PROCESS.pattern})\.[0-9a-f]{{8}}\.part"
    pattern = re.compile(rf"\.{re.escape(path.stem[:50])}\.{owner}{re.escape(path.suffix)}")
    with suppress(OSError):  # of the folder, which may not be there; writing to it says so
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


# ---- locks ----------------------------------------------------------------------------------------


@contextmanager
def owned(place: Path, folder: bool = False) -> Iterator[None]:
    """Inside, no other process gets to own the same place.

    A lock of the system on a hidden file decides, which ends with the process, however that ends.
    Where the file system has none, or other machines don't see it, the owner's name in it decides.

    Args:
        place: a file that is to be written, or a folder.
        folder: whether it is a folder, which is made and holds the lock.

    Raises:
        PTQ4VMError: another process owns it, or nothing can be written there.
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
        # Its owner released and removed it meanwhile: once more.


def _release(lock: int, path: Path) -> None:
    if lock not in _locked:  # a fork's
        return
    _locked.discard(lock)
    with suppress(OSError):
        if os.path.samestat(os.fstat(lock), path.stat()):
            path.unlink()
    os.close(lock)


def _flock(lock: int) -> bool | None:
    """Whether the system gives this process the lock; None where the file system has none."""
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
        return {}  # not written yet, or cut off with the machine's power
    known = isinstance(owner, dict) and _PROCESS.fullmatch(str(owner.get("process")))
    return owner if known else {}


def _has_ended(owner: dict[str, Any], free: bool) -> bool:
    if not owner or (free and _boot() and owner.get("boot") == _boot()):
        return True  # this kernel knows all its locks, also those of other containers
    return is_running(owner["process"]) is False


def _refusal(place: Path, lock: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return f"Expected {place} to be free, got one that another process works on. Wait for it, or choose another."
    pid, here = process_id(owner["process"]), is_running(owner["process"]) is not None
    remedies = f"Wait for it, end it (kill {pid}), or choose another output."
    return (
        f"Expected {place} to be free, got one that process {pid} on {owner.get('host')} has worked on since "
        f"{owner.get('since')}. {remedies if here else f'If it has ended, remove {lock}; else choose another output.'}"
    )


def _forget() -> None:
    """In a fork: what the parent made and locked is not the child's."""
    _made.clear()
    for lock in _locked:
        os.close(lock)
    _locked.clear()


os.register_at_fork(after_in_child=_forget)
