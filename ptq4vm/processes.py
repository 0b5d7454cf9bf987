"""Work shared by the processes of a run, over torch.distributed; without a process group there is one process."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import distributed

from ptq4vm.errors import PTQ4VMError

Result = TypeVar("Result")
Items = TypeVar("Items", bound=Sequence[Any])


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


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
