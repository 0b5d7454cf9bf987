"""Progress of a run: bars on the terminal, lines of the log, and the estimate of its work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

from ptq4vm import distributed
from ptq4vm.pipeline.record import now
from ptq4vm.reporting import SteadyProgress
from ptq4vm.reporting.runs import LOG
from ptq4vm.terminal import plain_console, text_column


@dataclass(frozen=True)
class Work:
    """Work of a run's steps, in forward passes of a frame.

    Args:
        rows: work of each row's fit, for one quantization plan.
        scoring: work of scoring one network.
    """

    rows: dict[str, float] = field(default_factory=dict)
    scoring: float = 0.0

    def total(self, plans: int) -> float:
        """Return the work of the float network and of all rows of this number of plans."""
        rows = sum(self.rows.values()) + len(self.rows) * self.scoring
        return self.scoring + plans * rows


class RunProgress:
    """Progress bars and log of a run.

    Args:
        folder: run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bar: Progress | None = None

    @contextmanager
    def show(self) -> Iterator[None]:
        """Show a progress bar of the run on rank 0, with the current step and remaining time."""
        columns = (
            SpinnerColumn(),
            text_column("{task.description}"),
            BarColumn(),
            text_column("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            text_column("left:"),
            TimeRemainingColumn(),
        )
        if distributed.rank() > 0:
            yield
            return
        with SteadyProgress(
            *columns, console=plain_console(), speed_estimate_period=120.0
        ) as self._bar:
            self._task = self._bar.add_task("starting", total=None)
            yield

    def say(self, text: str) -> None:
        """Show the current step and append it to the run's log; rank 0 only."""
        if distributed.rank() > 0:
            return
        with (self.folder / LOG).open("a") as log:
            log.write(f"{now()} {text}\n")
        if self._bar is not None:
            self._bar.update(self._task, description=text)
            if not self._bar.console.is_terminal:
                self._bar.console.print(text)

    def advance(self, work: float) -> None:
        """Add finished work to the bar."""
        if self._bar is not None:
            self._bar.advance(self._task, work)

    def update(self, done: int, total: int, what: str) -> None:
        """Set the bar to the state of one long operation; a callback of the datamodule."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=what)

    def restart(self, total: float) -> None:
        """Set the bar to zero, with this total work."""
        if self._bar is not None:
            self._bar.reset(self._task, total=total)

    @contextmanager
    def second_bar(self) -> Iterator[Callable[[int, int, str], None] | None]:
        """Show a second bar for one long step; yield its update function, or None without a bar."""
        bar = self._bar
        if bar is None:
            yield None
            return
        task = bar.add_task("starting", total=None)
        try:
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what
            )
        finally:
            bar.remove_task(task)
