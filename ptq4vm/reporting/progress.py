"""Progress bars that also report to logs, without a terminal."""

import threading
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from typing_extensions import Self

from ptq4vm.terminal import text_column

_EVERY = 25.0
"""Seconds between lines without a terminal: at least one per half minute."""


class SteadyProgress(Progress):
    """Rich progress bars on a terminal; elsewhere, periodic lines for each unfinished task.

    Args:
        columns: as for :class:`rich.progress.Progress`.
        every: seconds between the lines.
        options: as for :class:`rich.progress.Progress`.
    """

    def __init__(self, *columns: Any, every: float = _EVERY, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._every = every
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Show the bars, or start writing lines."""
        super().start()
        if self._thread is None and not self.console.is_terminal and not self.disable:
            self._stopped.clear()
            self._thread = threading.Thread(
                target=self._write_lines, name="steady progress", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop the bars or the lines."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().stop()

    def _write_lines(self) -> None:
        while not self._stopped.wait(self._every):
            for task in self.tasks:
                if not task.finished:
                    share = "" if task.total is None else f", {task.percentage:.0f} %"
                    line = f"{task.description}{share}, after {round(task.elapsed or 0)} s"
                    self.console.print(line, highlight=False, markup=False)


class WorkBar:
    """Progress bar shown while work is unfinished: ``bar(done, total, description)``.

    A context manager, which removes the bar at its end.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._bar: SteadyProgress | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        """Update the bar and close it when ``done`` reaches ``total``."""
        if self._bar is None:
            what_column = text_column("{task.description}")
            columns = (what_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = SteadyProgress(*columns, **self._options)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=what)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
