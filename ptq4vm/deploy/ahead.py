"""Prefetching of an iterable in a background thread."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_END = object()
_PATIENCE = 0.1
"""Polling interval in seconds at which a blocked producer thread checks for a stop request."""


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Prefetch the items of an iterable in a background thread.

    Args:
        items: iterable; iterated, and closed if it is a generator, in the background thread.
        depth: queue capacity. At most ``depth`` + 2 items are in memory: the queued ones, the one
            being produced and the one being consumed.

    Yields:
        The items, in order. An exception of the iterable is re-raised after the items before it.
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
