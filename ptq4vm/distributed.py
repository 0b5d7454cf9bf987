"""Work shared by the processes of a run, over torch.distributed; without a process group there is one process."""

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
"""Parts of the messages of broken connections whose type is plain RuntimeError."""

_PATIENCE = 2.0
"""Seconds for a process whose connections are closed to end."""

_known: list[str] = []
"""All processes of this run, by rank, as :func:`ptq4vm.ownership.this_process` names them."""


def count() -> int:
    """How many processes there are."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if count() > 1 else 0


def share(items: Items) -> Items:
    """This process's share: every so many-th item, so that shares differ in length by at most one."""
    return items[rank() :: count()]  # type: ignore[return-value]


def gather(value: Result) -> list[Result]:
    """The values of all processes, in order of rank; every process must call it."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def together(work: Callable[[], Result]) -> Result:
    """Work in every process, which fails in all of them if it fails in one: none is left waiting for another.

    Raises:
        PTQ4VMError: another process failed.
        Exception: what this one's work raised.
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
    """Work in the first process alone, while the others wait; fails as :func:`together`."""
    together(lambda: work(*arguments) if rank() == 0 else None)


def first_alone(work: Callable[[], Result]) -> Result:
    """Work in the first process, then in the others, which find the files that it made; fails as :func:`together`."""
    result = together(lambda: work() if rank() == 0 else None)
    others = together(lambda: work() if rank() > 0 else None)
    return others if rank() > 0 else result  # type: ignore[return-value]


def introduce() -> None:
    """Let every process know the others, so that one that is lost can be named; every process must call it."""
    _known[:] = gather(this_process())


def lost(error: BaseException) -> str | None:
    """Which other process is gone, in words; None where the error is of another kind than a broken connection."""
    broken = isinstance(error, distributed.DistError) or any(mark in str(error) for mark in _BROKEN)
    if not isinstance(error, RuntimeError) or not broken:
        return None
    # A process lets its connections go a moment before it ends.
    end = time.monotonic() + _PATIENCE
    while not (gone := _gone()) and time.monotonic() < end:
        time.sleep(0.05)
    names = [
        f"rank {number} of {len(_known)} (pid {process_id(_known[number])})" for number in gone
    ]
    return f"{' and '.join(names) or 'another process of this run'} was lost"


def leads() -> bool:
    """Whether this is the first process, also before the others are known and after they are gone."""
    return int(os.environ.get("LOCAL_RANK", 0)) == int(os.environ.get("NODE_RANK", 0)) == 0


def is_first_left() -> bool:
    """Whether all processes before this one have ended."""
    before = _known.index(this_process()) if this_process() in _known else 0
    return len([number for number in _gone() if number < before]) == before


def end_others() -> None:
    """From the first process, have the others on this machine end as by SIGTERM."""
    for process in _known if leads() else ():
        if process != this_process() and is_running(process):
            with suppress(ProcessLookupError):
                os.kill(process_id(process), signal.SIGTERM)


def _gone() -> list[int]:
    return [number for number, process in enumerate(_known) if is_running(process) is False]
