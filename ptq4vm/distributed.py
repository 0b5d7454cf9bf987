"""Collective operations on torch.distributed; without a process group there is one process."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from torch import distributed

from ptq4vm.errors import PTQ4VMError
from ptq4vm.ownership import is_running, process_id, this_process

Result = TypeVar("Result")
Items = TypeVar("Items", bound=Sequence[Any])

_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""Markers of broken connections in messages of plain RuntimeErrors."""

_PATIENCE = 2.0
"""Seconds to wait for a process to end after its connections are closed."""

_known: list[str] = []
"""Names of all processes of this run by rank, from :func:`ptq4vm.ownership.this_process`."""


def count() -> int:
    """Return the number of processes."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def rank() -> int:
    """Return the rank of this process."""
    return distributed.get_rank() if count() > 1 else 0


def share(items: Items) -> Items:
    """Return this process's share, a strided slice; shares differ in length by at most one."""
    return items[rank() :: count()]  # type: ignore[return-value]


def gather(value: Result) -> list[Result]:
    """Gather the values of all processes, in order of rank; a collective call."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def together(work: Callable[[], Result]) -> Result:
    """Run work in every process; if it fails in one, raise in all, so that none waits forever.

    Raises:
        PTQ4VMError: another process failed.
        Exception: the error of this process's work.
    """
    result, mistake = None, None
    try:
        result = work()
    except Exception as error:
        mistake = error
    failed = gather(None if mistake is None else f"{type(mistake).__name__}: {mistake}")
    if mistake is not None:
        raise mistake
    for number, message in enumerate(failed):
        if message is not None:
            raise PTQ4VMError(f"Process {number} failed: {message}")
    return result  # type: ignore[return-value]


def once(work: Callable[..., Any], *arguments: Any) -> None:
    """Run work in rank 0 while the others wait; errors as for :func:`together`."""
    together(lambda: work(*arguments) if rank() == 0 else None)


def first_alone(work: Callable[[], Result]) -> Result:
    """Run work in rank 0 and then in the others, which can use its files; see :func:`together`."""
    result = together(lambda: work() if rank() == 0 else None)
    others = together(lambda: work() if rank() > 0 else None)
    return others if rank() > 0 else result  # type: ignore[return-value]


def introduce() -> None:
    """Exchange process names, so that a lost process can be named later; a collective call."""
    _known[:] = gather(this_process())


def lost(error: BaseException) -> str | None:
    """Describe the lost process behind a broken connection; None for errors of other kinds."""
    broken = isinstance(error, distributed.DistError) or any(mark in str(error) for mark in _BROKEN)
    if not isinstance(error, RuntimeError) or not broken:
        return None
    # Connections close shortly before the process ends.
    end = time.monotonic() + _PATIENCE
    while not (gone := _gone()) and time.monotonic() < end:
        time.sleep(0.05)
    names = [
        f"rank {number} of {len(_known)} (pid {process_id(_known[number])})" for number in gone
    ]
    return f"{' and '.join(names) or 'another process of this run'} was lost"


def leads() -> bool:
    """Return whether this is rank 0, also while there is no process group.

    Reads LOCAL_RANK and NODE_RANK.
    """
    return int(os.environ.get("LOCAL_RANK", 0)) == int(os.environ.get("NODE_RANK", 0)) == 0


def is_first_left() -> bool:
    """Return whether all processes of lower rank have ended."""
    before = _known.index(this_process()) if this_process() in _known else 0
    return len([number for number in _gone() if number < before]) == before


def end_others() -> None:
    """Send SIGTERM from rank 0 to the other running processes on this machine."""
    for process in _known if leads() else ():
        if process != this_process() and is_running(process):
            with suppress(ProcessLookupError):
                os.kill(process_id(process), signal.SIGTERM)


def _gone() -> list[int]:
    return [number for number, process in enumerate(_known) if is_running(process) is False]
