"""Steps of a pipeline side by side."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_END = object()
_PATIENCE = 0.1
"""Seconds after which a thread looks whether anybody still wants what it holds."""


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items, made in a thread of their own while the one before is worked on.

    Args:
        items: an iterable; it is run, and closed, in that thread.
        depth: how many may wait. Memory holds so many, one being made and one being used.

    Yields:
        Each item in order. What the iterable raises is raised here, after the items before it.
    """
    waiting: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as error:
            failure.append(error)
        finally:
            if isinstance(items, Generator):
                items.close()
            put(_END)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()
