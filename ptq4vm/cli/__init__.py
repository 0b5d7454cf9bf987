"""The command line: Lightning's own subcommands, and those that do a whole job in one go."""

# Only what is quick to import: all else is imported inside main, which tells an interruption in words.
import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import NamedTuple

from ptq4vm.errors import PTQ4VMError, remedy

_LIGHTNING = ("fit", "validate", "test", "predict")


_EXPECTED_WARNINGS = (
    "does not have many workers",
    "Found .* in eval mode at the start of training",  # a network being quantized stays in eval mode
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",  # a run that goes on; its log lies there too
    "configure_optimizers. returned .None",  # rounding to nearest learns nothing
)


_HELP = """\
ptq4vm: post-training quantization of video matting networks.

  ptq4vm weights rvm_mobilenetv3                     bring the official weights
  ptq4vm quantize --config lightning_configs/quantize/demo.yaml
                                                     both phases, evaluation and the table in one go
  ptq4vm report RUN                                  one HTML page that shows a run; quantize writes it too
  ptq4vm runs DIR                                    the runs below a folder
  ptq4vm compare RUN RUN...                          runs side by side
  ptq4vm sensitivity NETWORK --data.root ROOT ...    which layers quantization hurts most, one by one
  ptq4vm evaluate MODEL --data ROOT                  score a network on an evaluation tree
  ptq4vm matte INPUT --model MODEL --alpha OUT       turn a video into mattes
  ptq4vm export MODEL --size 288x512 --out FILE      an integer ONNX graph for a runtime, checked in it
  ptq4vm benchmark MODEL... --size 288x512           latency, frames per second, memory and size, side by side
  ptq4vm fit --config FILE                           one phase as a Lightning fit (also: lightning fit)
  ptq4vm validate|test|predict --config FILE         Lightning's other subcommands

MODEL is a network's name, a weights file, a quantized checkpoint, a run folder or, to evaluate or to matte with, what
`ptq4vm export` wrote.
`ptq4vm SUBCOMMAND --help` tells the options of each.
"""

_AGAIN = "the same command begins anew."
_NOTHING = f"nothing was written; {_AGAIN}"


class _Command(NamedTuple):
    function: str
    """Module and function; the module is imported when its command is chosen."""
    stopped: str
    """The next step after it was stopped."""


_COMMANDS = {
    **dict.fromkeys(_LIGHTNING, _Command("fit.run_lightning", _AGAIN)),
    "fit": _Command(
        "fit.run_lightning", "go on from the last epoch's checkpoint with --ckpt_path."
    ),
    "quantize": _Command(
        "quantize.run_quantize", "the same command goes on from the last block or epoch."
    ),
    "report": _Command("runs.run_report", _NOTHING),
    "runs": _Command("runs.run_runs", _NOTHING),
    "compare": _Command("runs.run_compare", _NOTHING),
    "sensitivity": _Command(
        "sensitivity.run_sensitivity", "the same command goes on from the last layer."
    ),
    "evaluate": _Command("evaluate.run_evaluate", _AGAIN),
    "matte": _Command("matte.run_matte", _NOTHING),
    "export": _Command("export.run_export", _NOTHING),
    "benchmark": _Command("benchmark.run_benchmark", _NOTHING),
    "weights": _Command("weights.run_weights", _NOTHING),
}


def main(args: list[str] | None = None) -> int:
    """Run a command.

    A user's mistake, a system's refusal or a signal is told in a line, without a traceback, and leaves no temporary
    files behind.

    Args:
        args: of the command line; those of the program if not given. The program then ends with this function: a
            signal that comes later, while Python clears up, ends it without a traceback.

    Returns:
        The exit status: 0; 2 after an error; 130, 143 or 129 after SIGINT, SIGTERM or SIGHUP, 141 where nobody reads
        standard output any more.
    """
    is_program = args is None
    args = sys.argv[1:] if args is None else args
    known = _COMMANDS.get(args[0]) if args else None
    with _stopped_by_signals(is_program) as quiet:
        try:
            _run(args)
            sys.stdout.flush()
        except BaseException as end:
            quiet()
            status, message = _explain(end, _AGAIN if known is None else known.stopped)
            if status is None:
                raise
            if message:
                _tell(message, "bold red" if status == _ERROR else "")
            return status
    return 0 if args else _ERROR


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if args[0] not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise PTQ4VMError(f"Expected a subcommand ({known}), got {args[0]!r}. See `ptq4vm --help`.")
    module, function = _COMMANDS[args[0]].function.split(".")
    command = getattr(import_module(f"ptq4vm.cli.{module}"), function)
    command(args if args[0] in _LIGHTNING else args[1:])


# ---- how a command may end ------------------------------------------------------------------------


_ERROR = 2
_RENEWED_AFTER = 0.05
"""Seconds, by which a finalizer has ended."""


class _Stopped(SystemExit):
    """A signal asks the process to end; unwinds the stack, so that what was begun is cleared away."""


@contextmanager
def _stopped_by_signals(is_program: bool) -> Iterator[Callable[[], None]]:
    """Inside, SIGTERM and SIGHUP raise; one that is ignored, as by nohup, stays so.

    Args:
        is_program: nothing but Python's own clearing up comes behind.

    Yields:
        Call it to have these and SIGINT ignored: the command has ended, and says so in peace.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(128 + number)

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    def renew(lost: "sys.UnraisableHookArgs") -> None:
        # Python prints what is raised in a finalizer, and goes on: the stop has to come once more.
        if isinstance(lost.exc_value, KeyboardInterrupt | _Stopped):
            number = int(getattr(lost.exc_value, "code", 128 + signal.SIGINT)) - 128
            timer = threading.Timer(_RENEWED_AFTER, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        else:
            print_it(lost)

    mine = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if mine else ()
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not None}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # not SIGINT, which Python has a handler for
            signal.signal(number, stop)
    print_it, sys.unraisablehook = sys.unraisablehook, renew
    try:
        yield ignore
    finally:
        sys.unraisablehook = print_it
        for number, handler in before.items():
            signal.signal(
                number, signal.SIG_DFL if is_program and handler is not signal.SIG_IGN else handler
            )


def _explain(end: BaseException, stopped: str) -> tuple[int | None, str]:
    """The exit status, and a line or nothing; None where there is to be a traceback, or the exit is one already.

    Args:
        end: what ended the command.
        stopped: what there is to do after the command was stopped.
    """
    # Lightning ends a fit that was interrupted with a SystemExit of its own, rich a table that nobody reads.
    plain = isinstance(end, SystemExit) and not isinstance(end, _Stopped)
    cause = end.__context__ if plain else end
    if isinstance(cause, _Stopped):
        return int(cause.code or 0), _stop_all(f"terminated; {stopped}")
    if isinstance(cause, KeyboardInterrupt):
        return 128 + signal.SIGINT, _stop_all(f"interrupted; {stopped}")
    if isinstance(cause, BrokenPipeError) and (plain or _nobody_reads()):
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE, ""
    if isinstance(end, OSError):
        return _ERROR, f"{end}. {remedy(end)}"
    # jsonargparse buries what a constructor raised under the list of types it tried.
    mistake = end.__cause__ if isinstance(end, ValueError) else end
    if isinstance(mistake, PTQ4VMError) or type(mistake).__name__ == "MisconfigurationException":
        return _ERROR, str(mistake)
    # Not imported here: imports may be what was interrupted.
    distributed = sys.modules.get("ptq4vm.distributed")
    lost = None if distributed is None else distributed.lost(end)
    if distributed is None or lost is None:
        return None, ""
    is_first_left = distributed.is_first_left()
    distributed.end_others()
    return _ERROR, f"{lost}; {stopped}" if is_first_left else ""


def _stop_all(message: str) -> str:
    """End the run's other processes too; the message, where this process is the one to say it."""
    distributed = sys.modules.get("ptq4vm.distributed")
    if distributed is None:
        return message
    distributed.end_others()
    return message if distributed.leads() else ""


def _nobody_reads() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _tell(message: str, style: str) -> None:
    from ptq4vm.terminal import plain_console

    plain_console(stderr=True).print(f"ptq4vm: {message}", style=style, soft_wrap=True)
