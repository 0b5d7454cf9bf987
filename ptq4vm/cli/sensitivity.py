"""Command `ptq4vm sensitivity`."""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich import box
from rich.table import Table
from rich.text import Text

from ptq4vm.calibration import make_teacher
from ptq4vm.calibration.layer_errors import LayerSensitivity, Sensitivity
from ptq4vm.calibration.sensitivity import measure_sensitivity
from ptq4vm.cli.common import COLUMNS, TRUST, console, parse_settings, pick_device, print_device
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.flow import create_flow
from ptq4vm.models import create_model, list_models
from ptq4vm.ownership import owned
from ptq4vm.quantizers import QConfig, canonical_bits
from ptq4vm.reporting import LayerBar, SteadyProgress, draw_sensitivity


def run_sensitivity(args: list[str]) -> None:
    """Measure the sensitivity of each layer and write a table and a picture."""
    config = parse_settings(_make_parser(), args)
    wanted = [
        canonical_bits(one)
        for one in ([config.bits] if isinstance(config.bits, str) else config.bits)
    ]
    device = pick_device(config.device)
    network = create_model(
        config.network, weights=config.weights, downsample_ratio=config.downsample_ratio
    ).to(device)
    print_device(device)
    path = config.output / "sensitivity.json"
    with owned(config.output, folder=True), SteadyProgress(*COLUMNS, console=console) as progress:
        task = progress.add_task("calibration set", total=None)

        def report(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        config.data.attach(make_teacher(network), create_flow("dis"), report)
        found = measure_sensitivity(
            network, config.data, wanted, config.qconfig, config.sequences, path, report
        )
    picture = config.output / "sensitivity.png"
    draw_sensitivity([_bar(layer, wanted) for layer in found.layers], picture)
    _print_most_sensitive(found, wanted[0])
    console.print(f"layers      {path}\npicture     {picture}", highlight=False, soft_wrap=True)


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ptq4vm sensitivity", epilog=TRUST, description=measure_sensitivity.__doc__
    )
    parser.add_argument(
        "--config", action="config", help="YAML file; may be repeated, later files take precedence"
    )
    parser.add_argument("network", help=", ".join(list_models()))
    parser.add_argument(
        "--weights", type=str, default="official", help="official, or a file of float weights"
    )
    parser.add_argument(
        "--downsample_ratio",
        type=float,
        default=1.0,
        help="fraction of the frame's size at which the network's body works",
    )
    parser.add_argument(
        "--bits", type=list[str] | str, default="W4A4", help="e.g. W4A4, or [W4A4, W4A8, W8A8]"
    )
    parser.add_argument(
        "--sequences",
        type=int | None,
        default=None,
        help="number of calibration sequences; by default all",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sensitivity"), help="folder of the results"
    )
    parser.add_argument(
        "--device",
        type=str | None,
        default=None,
        help="cpu, cuda, ...; by default an available accelerator",
    )
    parser.add_class_arguments(
        VideoMattingDataModule, "data", skip={"batch_size", "steps_per_epoch"}
    )
    parser.add_class_arguments(QConfig, "qconfig", skip={"bits"})
    return parser


def _bar(layer: LayerSensitivity, wanted: list[str]) -> LayerBar:
    errors = {bits: layer.errors[bits] for bits in wanted}
    return LayerBar(
        layer.name,
        {bits: error.mad for bits, error in errors.items()},
        {bits: error.dtssd for bits, error in errors.items()},
    )


def _print_most_sensitive(found: Sensitivity, bits: str, count: int = 10) -> None:
    table = Table(
        title=f"The layers most sensitive to {bits}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("layer", overflow="fold")
    for heading in ("weights", "share of MACs", "MAD ×10³", "dtSSD ×10²"):
        table.add_column(heading, justify="right", no_wrap=True)
    shares = found.shares()
    for layer in found.ranked(bits)[:count]:
        mad, dtssd = (f"{value:.2f}" for value in layer.errors[bits])
        table.add_row(Text(layer.name), f"{layer.weights}", f"{shares[layer.name]:.1%}", mad, dtssd)
    console.print(table)
