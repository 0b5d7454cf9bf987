"""Rich output without markup: names of files, rows and layers are printed unchanged."""

from rich.console import Console
from rich.progress import TextColumn


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints ``[markup]`` and ``:emoji:`` literally, also in tables."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def text_column(template: str) -> TextColumn:
    """Return a text column of a progress bar that prints markup literally."""
    return TextColumn(template, markup=False)
