"""The command line: Lightning's own subcommands, and those that do a whole job in one go."""

import logging
import sys
import warnings
from importlib import import_module

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ptq4vm.cli.common import console
from ptq4vm.errors import PTQ4VMError
from ptq4vm.terminal import plain_console

_LIGHTNING = ("fit", "validate", "test", "predict")


_EXPECTED_WARNINGS = (
    "does not have many workers",
    "Found .* in eval mode at the start of training",  # a network being quantized stays in eval mode
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",  # a run that goes on; its log lies there too
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


_COMMANDS = {
    **dict.fromkeys(_LIGHTNING, "fit.run_lightning"),
    "quantize": "quantize.run_quantize",
    "report": "runs.run_report",
    "runs": "runs.run_runs",
    "compare": "runs.run_compare",
    "sensitivity": "sensitivity.run_sensitivity",
    "evaluate": "evaluate.run_evaluate",
    "matte": "matte.run_matte",
    "export": "export.run_export",
    "benchmark": "benchmark.run_benchmark",
    "weights": "weights.run_weights",
}
"""Module and function of each command; a module is imported when its command is chosen."""


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is told in a line, without a traceback."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        console.print(_HELP)
        return 0 if args else 2
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if args[0] not in _COMMANDS:
            known = ", ".join(_COMMANDS)
            raise PTQ4VMError(f"Expected a subcommand ({known}), got {args[0]!r}. See `ptq4vm --help`.")
        module, function = _COMMANDS[args[0]].split(".")
        command = getattr(import_module(f"ptq4vm.cli.{module}"), function)
        command(args if args[0] in _LIGHTNING else args[1:])
    except (PTQ4VMError, MisconfigurationException, ValueError) as error:
        # jsonargparse buries what a constructor raised under the list of types it tried.
        mistake = error.__cause__ if isinstance(error, ValueError) else error
        if not isinstance(mistake, PTQ4VMError | MisconfigurationException):
            raise
        plain_console(stderr=True).print(f"ptq4vm: {mistake}", style="bold red")
        return 2
    except OSError as error:
        plain_console(stderr=True).print(f"ptq4vm: {error}. Correct the path.", style="bold red")
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning ends a fit that was interrupted with SystemExit.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        plain_console(stderr=True).print("ptq4vm: interrupted; the same command goes on from here.")
        return 130
    return 0
