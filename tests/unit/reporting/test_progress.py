import io
import threading

from rich.console import Console
from rich.progress import BarColumn

from ptq4vm.reporting import SteadyProgress, WorkBar


class Pipe(io.StringIO):
    """Stream other than a terminal that signals output."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def write(self, text):
        if "after" in text:
            self.written.set()
        return super().write(text)


def test_lines_come_without_a_terminal_while_nothing_is_told():
    pipe = Pipe()
    bar = SteadyProgress(BarColumn(), console=Console(file=pipe, width=100), every=0.01)
    bar.add_task("a [b] [/c] long step", total=4, completed=1)
    bar.update(bar.add_task("done", total=1), completed=1)
    with bar:
        assert pipe.written.wait(60)
    lines = [line for line in pipe.getvalue().splitlines() if "after" in line]
    assert lines[0].startswith("a [b] [/c] long step, 25 %, after 0 s")
    assert not any(line.startswith("done") for line in lines)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("steady")]


def test_a_terminal_gets_bars_and_no_lines():
    screen = Pipe()
    with SteadyProgress(
        console=Console(file=screen, width=100, force_terminal=True), every=0.001
    ) as bar:
        bar.add_task("step", total=4)
        assert bar._thread is None
    assert "step" in screen.getvalue()


def test_a_work_bar_is_there_while_there_is_work():
    pipe = Pipe()
    with WorkBar(console=Console(file=pipe, width=100)) as bar:
        assert bar._bar is None
        bar(0, 2, "one")
        assert bar._bar is not None
        bar(2, 2, "one")
        assert bar._bar is None
        bar(1, 3, "two")
        assert bar._bar is not None
    assert bar._bar is None
    assert [word in pipe.getvalue() for word in ("one", "two")] == [True, True]
