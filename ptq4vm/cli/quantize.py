"""`ptq4vm quantize`."""

from typing import Any

import lightning.pytorch as L
from jsonargparse import ArgumentParser, Namespace

from ptq4vm import distributed
from ptq4vm.cli.common import TRUST, console, parse_settings
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.pipeline import quantize
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


def run_quantize(args: list[str]) -> None:
    """Quantize a network and print its table."""
    parser = ArgumentParser(prog="ptq4vm quantize", epilog=TRUST, description=quantize.__doc__)
    parser.add_argument(
        "--config", action="config", help="YAML file; may be given several times, later ones win."
    )
    parser.add_class_arguments(
        VideoMattingDataModule, "data", skip={"batch_size", "steps_per_epoch"}
    )
    parser.add_class_arguments(
        BlockReconstructionModule, "block_reconstruction", skip=_FROM_RECIPE, instantiate=False
    )
    parser.add_class_arguments(GACModule, "gac", skip=_FROM_RECIPE, instantiate=False)
    parser.add_class_arguments(
        L.Trainer, "trainer", skip={"max_epochs", "default_root_dir"}, instantiate=False
    )
    parser.add_function_arguments(
        quantize, skip={"data", "block_reconstruction", "gac", "trainer", "bits"}
    )
    parser.add_argument(
        "--bits", type=list[str], default=["W8A8"], help="one or more, e.g. [W8A8, W4A8, auto]"
    )
    config = parse_settings(parser, args)
    result = quantize(**_options(config))
    if distributed.rank() > 0:
        return
    render_table(result.rows, console)
    for name in ("report", "table", "pictures"):
        console.print(f"{name:12}{getattr(result, name)}", highlight=False, soft_wrap=True)
    for bits, path in result.checkpoints.items():
        console.print(f"checkpoint  {path}  ({bits})", highlight=False, soft_wrap=True)
    console.print(f"metrics     {result.metrics}", highlight=False, soft_wrap=True)


def _options(config: Namespace) -> dict[str, Any]:
    """Keyword arguments for :func:`quantize`: groups that are options become dictionaries."""
    options = {key: value for key, value in vars(config).items() if key != "config"}
    for group in ("block_reconstruction", "gac", "trainer"):
        if not isinstance(options[group], Namespace):
            raise PTQ4VMError(
                f"Expected settings below {group}, got {options[group]!r}. Name some, or leave it out."
            )
        options[group] = dict(vars(options[group]))
    return options
