"""The terminal: names of files, rows and layers are shown as they are, whatever Rich would make of them."""

from rich.console import Console
from rich.progress import TextColumn


def plain_console(*, stderr: bool = False) -> Console:
    """A console that takes neither ``[markup]`` nor ``:emoji:`` out of what is printed, tables included."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar, likewise."""
    return TextColumn(template, markup=False)
