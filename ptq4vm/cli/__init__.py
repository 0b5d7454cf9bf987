"""Command line: Lightning's subcommands and the subcommands of complete jobs."""

# Fast imports only. Others are imported inside main, which reports an interruption cleanly.
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
from ptq4vm.former_names import refuse_former_names

_LIGHTNING = ("fit", "validate", "test", "predict")


_EXPECTED_WARNINGS = (
    "does not have many workers",
    "Found .* in eval mode at the start of training",  # quantization keeps the network in eval mode
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "configure_optimizers. returned .None",  # rounding to nearest learns nothing
)


_HELP = """\
ptq4vm: post-training quantization of video matting networks.

  ptq4vm quantize rvm_mobilenetv3 --data CLIPS --recipe w8a8 --size 720x1280
                                               quantize, evaluate, report and export in one run
  ptq4vm adapt RUN CLIP                        calibrate a quantized network on one clip
  ptq4vm report RUN                            write the HTML report of a finished run again
  ptq4vm runs DIR                              list the runs below a folder
  ptq4vm compare RUN RUN...                    compare finished runs in one table
  ptq4vm sensitivity NETWORK --data.root ROOT  measure the effect of quantizing each layer alone
  ptq4vm evaluate MODEL --data ROOT            score a network on an evaluation tree
  ptq4vm matte INPUT --model MODEL --alpha OUT
                                               compute the alpha mattes of a video
  ptq4vm export MODEL --size 288x512 --out FILE
                                               export an ONNX graph and check it in its runtime
  ptq4vm benchmark MODEL... --size 288x512     measure latency, frames per second and memory
  ptq4vm weights NETWORK                       download and verify the official weights
  ptq4vm fit --config FILE                     run one phase as a Lightning fit
  ptq4vm validate|test|predict --config FILE   run Lightning's other subcommands

MODEL is a network's name, a weights file, a quantized checkpoint or a run folder; evaluate, matte
and benchmark also accept a graph written by `ptq4vm export`.
`ptq4vm SUBCOMMAND --help` lists the options of a subcommand.
"""

_AGAIN = "the same command begins anew."
_NOTHING = f"nothing was written; {_AGAIN}"


class _Command(NamedTuple):
    function: str
    """Module and function; the module is imported when the command runs."""
    stopped: str
    """Advice printed after the command was stopped."""


_COMMANDS = {
    **dict.fromkeys(_LIGHTNING, _Command("fit.run_lightning", _AGAIN)),
    "fit": _Command(
        "fit.run_lightning", "go on from the last epoch's checkpoint with --ckpt_path."
    ),
    "quantize": _Command(
        "quantize.run_quantize", "the same command goes on from the last block or epoch."
    ),
    "adapt": _Command("adapt.run_adapt", "the same command goes on from the last epoch."),
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

    User errors, operating system errors and signals are reported in one line without a traceback,
    and no temporary files remain.

    Args:
        args: command line arguments; by default those of the process, which is then expected to
            exit after this function: a signal during interpreter shutdown causes no traceback.

    Returns:
        Exit status: 0; 2 after an error; 130, 143 or 129 after SIGINT, SIGTERM or SIGHUP; 141 if
        standard output was closed by its reader.
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
    refuse_former_names(args)
    module, function = _COMMANDS[args[0]].function.split(".")
    command = getattr(import_module(f"ptq4vm.cli.{module}"), function)
    command(args if args[0] in _LIGHTNING else args[1:])


# ---- exit status ---------------------------------------------------------------------------------


_ERROR = 2
_RENEWED_AFTER = 0.05
"""Delay in seconds before a signal lost in a finalizer is sent again."""


class _Stopped(SystemExit):
    """Exit after a signal; unwinds the stack so that temporary files are removed."""


@contextmanager
def _stopped_by_signals(is_program: bool) -> Iterator[Callable[[], None]]:
    """Raise :class:`_Stopped` on SIGTERM and SIGHUP inside the context.

    Signals that are ignored already, e.g. by nohup, stay ignored.

    Args:
        is_program: True if only interpreter shutdown follows; default handlers are set at exit.

    Yields:
        Function that ignores SIGINT, SIGTERM and SIGHUP from then on, for the final message.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(128 + number)

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    def renew(lost: "sys.UnraisableHookArgs") -> None:
        # Python only prints exceptions raised in a finalizer, so the signal is sent again.
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
        if handler is signal.SIG_DFL:  # not SIGINT, for which Python has a handler
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
    """Return the exit status and the message, which may be empty, for an exception.

    The status is None if the exception is to be raised again: an internal error or a SystemExit.

    Args:
        end: exception that ended the command.
        stopped: advice to print if the command was stopped.
    """
    # SystemExit is also raised by Lightning after an interrupted fit and by rich on a closed pipe.
    plain = isinstance(end, SystemExit) and not isinstance(end, _Stopped)
    cause = end.__context__ if plain else end
    if isinstance(cause, _Stopped):
        return int(cause.code or 0), _stop_all(f"terminated; {stopped}")
    if isinstance(cause, KeyboardInterrupt):
        return 128 + signal.SIGINT, _stop_all(f"interrupted; {stopped}")
    if isinstance(cause, BrokenPipeError) and (plain or _nobody_reads()):
        # The interpreter flushes standard output again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE, ""
    if isinstance(end, OSError):
        return _ERROR, f"{end}. {remedy(end)}"
    # jsonargparse wraps an exception of a constructor in a ValueError that lists the types tried.
    mistake = end.__cause__ if isinstance(end, ValueError) else end
    if isinstance(mistake, PTQ4VMError) or type(mistake).__name__ == "MisconfigurationException":
        return _ERROR, str(mistake)
    # Not imported here: the interruption may have hit an import.
    distributed = sys.modules.get("ptq4vm.distributed")
    lost = None if distributed is None else distributed.lost(end)
    if distributed is None or lost is None:
        return None, ""
    is_first_left = distributed.is_first_left()
    distributed.end_others()
    return _ERROR, f"{lost}; {stopped}" if is_first_left else ""


def _stop_all(message: str) -> str:
    """End the other processes of the run; return the message on the leading process, else ""."""
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
