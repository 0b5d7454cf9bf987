"""Settings and execution of `ptq4vm quantize`."""

from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentParser, Namespace

from ptq4vm import distributed
from ptq4vm.cli.common import (
    TRUST,
    console,
    parse_settings,
    parse_size,
    print_device,
    trainer_device,
)
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.pipeline import quantize
from ptq4vm.pipeline.delivery import deliver, require_deliverable
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting import render_table

_FROM_RECIPE = {
    "network",
    "weights",
    "downsample_ratio",
    "qconfig",
    "output",
    "checkpoint",
    "scoring",
}


def print_settings(group: str) -> None:
    """Print the help of all settings, or of one group of them."""
    if group == "all":
        parser = _settings()
    else:
        parser = ArgumentParser(prog="ptq4vm quantize", usage="", add_help=False)
        _add_group(parser, group)
    parser.print_help()


def run(args: list[str], size: str | None, tolerance: float) -> None:
    """Quantize and print the table; with a size, also export and time every network of the run."""
    config = parse_settings(_settings(), args)
    options = _options(config)
    frame = None if size is None else parse_size(size)
    if frame is not None:
        require_deliverable(options["bits"], options["target"], options["output"], *frame)
    if distributed.rank() == 0:
        print_device(trainer_device(options["trainer"].get("accelerator")))
    result = quantize(**options)
    if distributed.rank() > 0:
        return
    render_table(result.rows, console)
    files = []
    if frame is not None:
        files = deliver(
            result, options["network"], options["weights"], options["target"], *frame, tolerance
        )
    for name in ("report", "table", "pictures"):
        console.print(f"{name:12}{getattr(result, name)}", highlight=False, soft_wrap=True)
    for bits, path in result.checkpoints.items():
        console.print(f"checkpoint  {path}  ({bits})", highlight=False, soft_wrap=True)
    for line in files:
        console.print(f"exported    {line}", highlight=False, soft_wrap=True)
    console.print(f"metrics     {result.metrics}", highlight=False, soft_wrap=True)


def _settings() -> ArgumentParser:
    parser = ArgumentParser(prog="ptq4vm quantize", epilog=TRUST, description=quantize.__doc__)
    parser.add_argument(
        "--config", action="config", help="YAML file; may be repeated, later files take precedence"
    )
    parser.add_argument(
        "--base",
        type=str | None,
        default=None,
        help="in a YAML file: path of the file with its defaults",
    )
    for group in ("data", "block_reconstruction", "gac", "trainer"):
        _add_group(parser, group)
    parser.add_function_arguments(
        quantize, skip={"data", "block_reconstruction", "gac", "trainer", "bits"}
    )
    parser.add_argument(
        "--bits", type=list[str], default=["W8A8"], help="one or more, e.g. [W8A8, W4A8, auto]"
    )
    return parser


def _add_group(parser: ArgumentParser, group: str) -> None:
    if group == "data":
        skip = {"batch_size", "steps_per_epoch"}
        parser.add_class_arguments(VideoMattingDataModule, "data", skip=skip)
    elif group == "qconfig":
        parser.add_class_arguments(QConfig, "qconfig", skip={"bits"})
    elif group == "trainer":
        skip = {"max_epochs", "default_root_dir"}
        parser.add_class_arguments(L.Trainer, "trainer", skip=skip, instantiate=False)
    else:
        phase = GACModule if group == "gac" else BlockReconstructionModule
        parser.add_class_arguments(phase, group, skip=_FROM_RECIPE, instantiate=False)


def _options(config: Namespace) -> dict[str, Any]:
    """Return keyword arguments of :func:`quantize`, with groups of options as dictionaries."""
    options = {key: value for key, value in vars(config).items() if key not in ("config", "base")}
    for group in ("block_reconstruction", "gac", "trainer"):
        if not isinstance(options[group], Namespace):
            raise PTQ4VMError(
                f"Expected settings below {group}, got {options[group]!r}. Name some, or leave it "
                "out."
            )
        options[group] = dict(vars(options[group]))
    return options
