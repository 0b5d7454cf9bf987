"""Settings and execution of `ptq4vm quantize`."""

from collections.abc import Sequence

import lightning.pytorch as L
from jsonargparse import ArgumentParser

from ptq4vm import distributed
from ptq4vm.cli.common import (
    TRUST,
    built,
    console,
    parse_settings,
    parse_size,
    print_device,
    trainer_device,
)
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.pipeline import QuantizeResult, QuantizeSettings, quantize
from ptq4vm.pipeline.delivery import deliver, require_deliverable
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting import render_table


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
    settings = built(QuantizeSettings, config)
    frame = None if size is None else parse_size(size)
    target = None if frame is None else require_deliverable(settings, config.output, *frame)
    trainer = vars(config.trainer)
    if distributed.rank() == 0:
        print_device(trainer_device(trainer["accelerator"]))
    given = {name: config[name] for name in ("output", "weights", "downsample_ratio")}
    result = quantize(config.network, config.data, settings, **given, trainer=trainer)
    if distributed.rank() > 0:
        return
    render_table(result.rows, console)
    files: list[str] = []
    if frame is not None and target is not None:
        files = deliver(result, config.network, config.weights, target, *frame, tolerance)
    print_files(result, files)


def print_files(result: QuantizeResult, exported: Sequence[str] = ()) -> None:
    """Print where the files of a run are.

    Args:
        result: finished run.
        exported: a line for each exported graph.
    """
    for name in ("report", "table", "pictures"):
        console.print(f"{name:12}{getattr(result, name)}", highlight=False, soft_wrap=True)
    for bits, path in result.checkpoints.items():
        console.print(f"checkpoint  {path}  ({bits})", highlight=False, soft_wrap=True)
    for line in exported:
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
    for group in ("data", "trainer"):
        _add_group(parser, group)
    parser.add_argument(
        "--network", type=str, default="rvm_mobilenetv3", help="registry name of the network"
    )
    parser.add_function_arguments(quantize, skip={"network", "data", "settings", "trainer"})
    parser.add_class_arguments(QuantizeSettings)
    return parser


def _add_group(parser: ArgumentParser, group: str) -> None:
    if group == "data":
        skip = {"batch_size", "steps_per_epoch"}
        parser.add_class_arguments(VideoMattingDataModule, "data", skip=skip)
    elif group == "trainer":
        skip = {"max_epochs", "max_steps", "default_root_dir", "num_sanity_val_steps"}
        skip |= {f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")}
        parser.add_class_arguments(L.Trainer, "trainer", skip=skip, instantiate=False)
    else:
        kinds = {
            "qconfig": QConfig,
            "block_reconstruction": BlockReconstructionSettings,
            "gac": GACSettings,
        }
        # A run's bits are a setting of their own.
        skip = {"bits"} if group == "qconfig" else set()
        parser.add_class_arguments(kinds[group], group, skip=skip)
