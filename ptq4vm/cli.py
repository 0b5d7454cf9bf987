"""The command line: Lightning's own subcommands, and those that do a whole job in one go."""

import logging
import platform
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ptq4vm import processes
from ptq4vm.callbacks import AlphaWriter, LoggedConfig
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import export_checked
from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow
from ptq4vm.graph import bits_label, load_model, network_cost
from ptq4vm.inference import ExportedNetwork, Runtime, Speed, matte_video, measure_speed, open_network
from ptq4vm.models import fetch_weights, list_models
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import BlockReconstructionModule, GACModule, MattingModule, PTQPhase, make_teacher
from ptq4vm.phases.base import make_float_network
from ptq4vm.phases.checkpoints import WholeCheckpoints
from ptq4vm.pipeline import quantize, report_run
from ptq4vm.quantizers import QConfig, canonical_bits
from ptq4vm.reporting import (
    LayerBar,
    ResultRow,
    compare_runs,
    draw_sensitivity,
    list_runs,
    read_run,
    render_table,
    write_metrics,
)
from ptq4vm.sensitivity import LayerSensitivity, Sensitivity, measure_sensitivity

_console = Console()
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class _FramesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Over the last seconds; over all once it is done."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} fps")


_LIGHTNING = ("fit", "validate", "test", "predict")
_FROM_RECIPE = {"network", "weights", "downsample_ratio", "qconfig", "output", "checkpoint", "scoring"}
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


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is told in a line, without a traceback."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        _console.print(_HELP, highlight=False, markup=False)
        return 0 if args else 2
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    command: Callable[[list[str]], None] | None = _lightning if args[0] in _LIGHTNING else _COMMANDS.get(args[0])
    try:
        if command is None:
            known = ", ".join([*_LIGHTNING, *_COMMANDS])
            raise PTQ4VMError(f"Expected a subcommand ({known}), got {args[0]!r}. See `ptq4vm --help`.")
        command(args if command is _lightning else args[1:])
    except (PTQ4VMError, MisconfigurationException, ValueError) as error:
        # jsonargparse buries what a constructor raised under the list of types it tried.
        mistake = error.__cause__ if isinstance(error, ValueError) else error
        if not isinstance(mistake, PTQ4VMError | MisconfigurationException):
            raise
        Console(stderr=True).print(f"ptq4vm: {mistake}", style="bold red", highlight=False, markup=False)
        return 2
    except OSError as error:
        Console(stderr=True).print(f"ptq4vm: {error}. Correct the path.", style="bold red", highlight=False)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning ends a fit that was interrupted with SystemExit.
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        Console(stderr=True).print("ptq4vm: interrupted; the same command goes on from here.", highlight=False)
        return 130
    return 0


class _CLI(LightningCLI):
    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Lightning's, which then looks into the checkpoint to go on from: a damaged or foreign one is told before."""
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None and Path(path).is_file():
            WholeCheckpoints().load_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Lightning's Trainer; what it refuses is a user's mistake."""
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise PTQ4VMError(f"Expected trainer settings that Lightning takes, got: {error}") from error

    def before_predict(self) -> None:
        """Mattes go to files as they come (add ptq4vm.callbacks.AlphaWriter); kept, they would fill the memory."""
        self.config_init["predict"]["return_predictions"] = False


def _lightning(args: list[str]) -> None:
    _CLI(
        PTQPhase,
        VideoMattingDataModule,
        subclass_mode_model=True,
        seed_everything_default=0,
        trainer_defaults={"num_sanity_val_steps": 0, "devices": 1},
        save_config_callback=LoggedConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "yaml"},
        # Lightning warns where arguments are given twice.
        args=None if args == sys.argv[1:] else args,
    )


def _quantize(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm quantize", description=quantize.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; may be given several times, later ones win.")
    parser.add_class_arguments(VideoMattingDataModule, "data", skip={"batch_size", "steps_per_epoch"})
    parser.add_class_arguments(BlockReconstructionModule, "block_reconstruction", skip=_FROM_RECIPE, instantiate=False)
    parser.add_class_arguments(GACModule, "gac", skip=_FROM_RECIPE, instantiate=False)
    parser.add_class_arguments(L.Trainer, "trainer", skip={"max_epochs", "default_root_dir"}, instantiate=False)
    parser.add_function_arguments(quantize, skip={"data", "block_reconstruction", "gac", "trainer", "bits"})
    parser.add_argument("--bits", type=list[str], default=["W8A8"], help="one or more, e.g. [W8A8, W4A8, auto]")
    config = _parse(parser, args)
    result = quantize(**_options(config))
    if processes.rank() > 0:
        return
    render_table(result.rows, _console)
    for name in ("report", "table", "pictures"):
        _console.print(f"{name:12}{getattr(result, name)}", highlight=False, soft_wrap=True)
    for bits, path in result.checkpoints.items():
        _console.print(f"checkpoint  {path}  ({bits})", highlight=False, soft_wrap=True)
    _console.print(f"metrics     {result.metrics}", highlight=False, soft_wrap=True)


def _report(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm report", description=report_run.__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--out", type=Path | None, default=None, help="the HTML file; by default RUN/report.html")
    config = parser.parse_args(args)
    path, problem = report_run(config.run, config.out)
    if problem is not None:
        _console.print(f"no frames   {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    _console.print(f"report      {path}", highlight=False, soft_wrap=True)


def _runs(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm runs", description="List the runs of `ptq4vm quantize` below a folder.")
    parser.add_argument("folder", type=Path, help="e.g. runs")
    list_runs(parser.parse_args(args).folder, _console)


def _compare(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm compare", description="Put finished runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="their folders")
    parser.add_argument("--json", type=Path | None, default=None, help="write the same here")
    config = parser.parse_args(args)
    compare_runs([read_run(folder) for folder in config.runs], _console, config.json)


def _parse(parser: ArgumentParser, args: list[str]) -> Namespace:
    try:
        return parser.instantiate_classes(parser.parse_args(args))
    except (TypeError, ValueError) as error:
        if isinstance(error.__cause__, PTQ4VMError):
            raise
        # jsonargparse lets some nulls pass, `data:` with nothing below it for one, and stumbles over them later.
        raise PTQ4VMError(f"Expected settings of their own kinds, got: {error}. Look for empty ones.") from error


def _options(config: Namespace) -> dict[str, Any]:
    """Keyword arguments for :func:`quantize`: groups that are options become dictionaries."""
    options = {key: value for key, value in vars(config).items() if key != "config"}
    for group in ("block_reconstruction", "gac", "trainer"):
        if not isinstance(options[group], Namespace):
            raise PTQ4VMError(f"Expected settings below {group}, got {options[group]!r}. Name some, or leave it out.")
        options[group] = dict(vars(options[group]))
    return options


def _evaluate(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm evaluate", description="Score a network on an evaluation tree.")
    parser.add_argument("model", help="name, weights file, quantized checkpoint, run folder or exported graph")
    parser.add_argument("--data", type=str, required=True, help="a tree <set>/<clip>/{com,pha,fgr}/<frame>")
    parser.add_argument("--json", type=Path | None, default=None, help="write the metrics here")
    parser.add_argument("--alpha", type=Path | None, default=None, help="write the mattes here, as 8-bit PNG")
    parser.add_argument("--scoring", type=str, default="float", choices=["float", "png8"], help="how mattes are scored")
    parser.add_argument("--network", type=str, default="rvm_mobilenetv3", help="what a file of float weights is of")
    parser.add_argument("--clips", type=int | None, default=None, help="score at most so many clips")
    parser.add_argument("--frames", type=int | None, default=None, help="score at most so many frames of a clip")
    accelerators = ["auto", "cpu", "gpu", "cuda", "mps"]
    parser.add_argument("--accelerator", type=str, default="auto", choices=accelerators, help="where to run")
    _add_runtime(parser)
    config = parser.parse_args(args)
    network = _load(config)
    data = VideoMattingDataModule(evaluation=config.data, eval_clips=config.clips, eval_frames=config.frames)
    data.setup("test")
    callbacks = [AlphaWriter(config.alpha)] if config.alpha is not None else []
    trainer = L.Trainer(accelerator=config.accelerator, devices=1, logger=False, callbacks=callbacks)  # type: ignore[arg-type]
    results = trainer.test(MattingModule(network, config.scoring), datamodule=data, verbose=False)[0]
    metrics = {key.removeprefix("test/"): value for key, value in results.items()}
    row = _row(str(config.model), network, metrics, *data.evaluation_set[0].src.shape[-2:])
    render_table([row], _console)
    if config.json is not None:
        write_metrics(config.json, [row], {"data": config.data, "scoring": config.scoring})


def _row(name: str, network: MattingModel, metrics: dict[str, float], height: int, width: int) -> ResultRow:
    if isinstance(network, ExportedNetwork):
        said, size_mb = network.description, network.path.stat().st_size / 1e6
        return ResultRow(name, said["bits"], network.runtime, metrics, size_mb, said["bit_operations"] * 1e9)
    cost = network_cost(network, height, width)
    qconfig: QConfig | None = getattr(network, "qconfig", None)
    bits, placement = ("W32A32", "") if qconfig is None else (bits_label(qconfig, cost), qconfig.placement)
    return ResultRow(name, bits, placement, metrics, cost.size_mb, cost.bit_operations * 1e9)


def _add_runtime(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--runtime", type=Runtime | None, default=None, help="of an exported graph; by default the one it is for"
    )
    parser.add_argument("--threads", type=int | None, default=None, help="of an exported graph; by default all cores")


def _load(config: Namespace) -> MattingModel:
    return open_network(config.model, config.network, config.runtime, config.threads)


def _benchmark(args: list[str]) -> None:
    parser = ArgumentParser(
        prog="ptq4vm benchmark",
        description="Time networks in alternation, each in a process of its own, on the CPU: ratios hold also where "
        "the machine is noisy. Frames are noise; the time does not depend on them.",
    )
    parser.add_argument(
        "models", nargs="+",
        help="names, weights files, quantized checkpoints (simulated in torch), run folders or exported graphs; "
        "graph.onnx@openvino names the runtime. Ratios are to the first.",
    )  # fmt: skip
    parser.add_argument("--size", type=str, required=True, help="height x width of the frames, e.g. 288x512")
    parser.add_argument(
        "--downsample_ratio", type=float | None, default=None, help="of networks in torch; graphs have theirs baked in"
    )
    parser.add_argument("--rounds", type=int, default=30, help="how often each is timed")
    parser.add_argument("--threads", type=int | None, default=None, help="of each; by default all cores")
    parser.add_argument("--network", type=str, default="rvm_mobilenetv3", help="what a file of float weights is of")
    parser.add_argument("--json", type=Path | None, default=None, help="write the figures here")
    config = parser.parse_args(args)
    with Progress(*_COLUMNS, console=_console) as progress:
        task = progress.add_task("loading", total=None)
        speeds = measure_speed(
            config.models, *_parse_size(config.size), config.downsample_ratio, config.rounds, config.threads,
            config.network,
            progress=lambda done, all: progress.update(task, completed=done, total=all, description="timing"),
        )  # fmt: skip
    rows = [_speed_row(speed, speeds[0]) for speed in speeds]
    render_table(rows, _console)
    if config.json is not None:
        settings = {name: config[name] for name in ("size", "downsample_ratio", "rounds", "threads")}
        write_metrics(config.json, rows, {**settings, "machine": platform.processor() or platform.machine()})


def _speed_row(speed: Speed, first: Speed) -> ResultRow:
    figures = {
        "median ms": speed.median_ms, "p90 ms": speed.p90_ms, "fps": speed.fps,
        "fps to the first": speed.fps / first.fps, "peak MB": speed.memory_mb,
    }  # fmt: skip
    executed = f"{speed.runtime} ({speed.layers})" if speed.layers else speed.runtime
    return ResultRow(speed.model, speed.bits, executed, {}, speed.size_mb, extra=figures)


def _export(args: list[str]) -> None:
    parser = ArgumentParser(
        prog="ptq4vm export",
        description="Write a network as an ONNX graph of integers, play a clip through it in its runtime, and keep the "
        "file only if the mattes are the same.",
    )
    parser.add_argument("model", help="a network's name, a weights file, a quantized checkpoint or a run folder")
    parser.add_argument("--size", type=str, required=True, help="height x width of the frames, e.g. 288x512")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--bits", type=Literal[32] | None, default=None, help="32: insist on a float model")
    parser.add_argument("--network", type=str, default="rvm_mobilenetv3", help="what a file of float weights is of")
    parser.add_argument(
        "--downsample_ratio", type=float | None, default=None,
        help="baked in: the network works at this fraction of the frame's size; by default the model's own",
    )  # fmt: skip
    parser.add_function_arguments(
        export_checked, skip={"network", "height", "width", "path", "progress"}, as_group=False
    )
    config = parser.parse_args(args)
    network = load_model(config.model, config.network)
    if config.bits == 32 and getattr(network, "qconfig", None) is not None:
        raise PTQ4VMError(
            f"Expected a float model with --bits 32, got {config.model}. Name the network or its weights."
        )
    if config.downsample_ratio is not None:
        network.downsample_ratio = config.downsample_ratio
    chosen = ("target", "opset", "dynamic_size", "pack", "simulate", "state_bits", "clip", "frames", "tolerance")
    with Progress(*_COLUMNS, console=_console) as progress:
        task = progress.add_task("exporting", total=None)
        exported = export_checked(
            network, *_parse_size(config.size), config.out, **{name: config[name] for name in chosen},
            progress=lambda done, total, what: progress.update(task, completed=done, total=total, description=what),
        )  # fmt: skip
    parity = exported.parity
    _console.print(
        f"file        {exported.path}  ({exported.size_mb:.2f} MB)\n"
        f"executes    {exported.storage}\n"
        f"parity      mean |Δα| {parity.mean:.1e}, largest {parity.highest:.1e}, {100 * parity.share:.2f} % of pixels "
        f"more than 1/255 apart, over {parity.frames} frames in {exported.runtime}",
        highlight=False,
        soft_wrap=True,
    )


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise PTQ4VMError(f"Expected a size as HEIGHTxWIDTH, e.g. 288x512, got {text!r}.")
    return int(match[1]), int(match[2])


def _matte(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm matte", description="Turn a video or a folder of frames into mattes.")
    parser.add_argument("input", type=Path, help="a video file, a folder of frames or an image")
    parser.add_argument("--model", type=str, default="rvm_mobilenetv3", help="name, weights, checkpoint or run folder")
    parser.add_argument("--network", type=str, default="rvm_mobilenetv3", help="what a file of float weights is of")
    parser.add_argument("--alpha", type=Path | None, default=None, help="alpha: .mp4, .mkv, .webm, or a folder of PNG")
    parser.add_argument("--foreground", type=Path | None, default=None, help="foreground, likewise")
    parser.add_argument("--composite", type=Path | None, default=None, help="over the background, likewise")
    parser.add_argument(
        "--cutout", type=Path | None, default=None,
        help="foreground and alpha in one: .mov (ProRes 4444), .webm (VP9), or a folder of PNG",
    )  # fmt: skip
    parser.add_argument("--sound", type=bool, default=True, help="copy a video's sound to composite and cutout")
    parser.add_argument("--background", type=str, default="green", help="a colour, an image or a video")
    parser.add_argument(
        "--downsample_ratio", type=float | None, default=None,
        help="the network works at this fraction of the frame's size; by default its longer side becomes 512, or it is "
        "what an exported graph has",
    )  # fmt: skip
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; by default what there is")
    _add_runtime(parser)
    config = parser.parse_args(args)
    background = Path(config.background) if Path(config.background).exists() else config.background
    network = _load(config)
    if not isinstance(network, ExportedNetwork):
        network.to(_device(config.device))
    with Progress(*_COLUMNS, _FramesPerSecond(), console=_console) as progress:
        task = progress.add_task("matting", total=None)
        frames = matte_video(
            network, config.input, config.alpha, config.composite, background, config.foreground,
            config.downsample_ratio, lambda done, total: progress.update(task, completed=done, total=total),
            config.cutout, config.sound,
        )  # fmt: skip
    _console.print(f"{frames} frames", highlight=False)


def _device(name: str | None) -> torch.device:
    """The device of this name, or by default what there is."""
    default = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=name or default).device
    except RuntimeError as error:
        raise PTQ4VMError(f"Expected a device that is there, got {name!r}: {error}") from error


def _sensitivity(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm sensitivity", description=measure_sensitivity.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; may be given several times, later ones win.")
    parser.add_argument("network", help=", ".join(list_models()))
    parser.add_argument("--weights", type=str, default="official", help="official, or a file of float weights")
    parser.add_argument("--downsample_ratio", type=float, default=1.0, help="the body works at this share of the size")
    parser.add_argument("--bits", type=list[str] | str, default="W4A4", help="e.g. W4A4, or [W4A4, W4A8, W8A8]")
    parser.add_argument("--sequences", type=int | None, default=None, help="measure on so many; by default on all")
    parser.add_argument("--output", type=Path, default=Path("runs/sensitivity"), help="a folder for what was found")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, ...; by default what there is")
    parser.add_class_arguments(VideoMattingDataModule, "data", skip={"batch_size", "steps_per_epoch"})
    parser.add_class_arguments(QConfig, "qconfig", skip={"bits"})
    config = _parse(parser, args)
    wanted = [canonical_bits(one) for one in ([config.bits] if isinstance(config.bits, str) else config.bits)]
    network = make_float_network(config.network, config.weights, config.downsample_ratio).to(_device(config.device))
    path = config.output / "sensitivity.json"
    with Progress(*_COLUMNS, console=_console) as progress:
        task = progress.add_task("calibration set", total=None)

        def report(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        config.data.attach(make_teacher(network), create_flow("dis"), report)
        found = measure_sensitivity(network, config.data, wanted, config.qconfig, config.sequences, path, report)
    picture = config.output / "sensitivity.png"
    draw_sensitivity([_bar(layer, wanted) for layer in found.layers], picture)
    _print_most_sensitive(found, wanted[0])
    _console.print(f"layers      {path}\npicture     {picture}", highlight=False, soft_wrap=True)


def _bar(layer: LayerSensitivity, wanted: list[str]) -> LayerBar:
    errors = {bits: layer.errors[bits] for bits in wanted}
    return LayerBar(
        layer.name,
        {bits: error.mad for bits, error in errors.items()},
        {bits: error.dtssd for bits, error in errors.items()},
    )


def _print_most_sensitive(found: Sensitivity, bits: str, count: int = 10) -> None:
    table = Table(title=f"The layers most sensitive to {bits}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for heading in ("weights", "share of MACs", "MAD ×10³", "dtSSD ×10²"):
        table.add_column(heading, justify="right", no_wrap=True)
    shares = found.shares()
    for layer in found.ranked(bits)[:count]:
        mad, dtssd = (f"{value:.2f}" for value in layer.errors[bits])
        table.add_row(layer.name, f"{layer.weights}", f"{shares[layer.name]:.1%}", mad, dtssd)
    _console.print(table)


def _weights(args: list[str]) -> None:
    parser = ArgumentParser(prog="ptq4vm weights", description="Bring a network's official weights, verified.")
    parser.add_argument("network", help=", ".join(list_models()))
    path = fetch_weights(parser.parse_args(args).network, report=lambda line: _console.print(line, highlight=False))
    _console.print(str(path), highlight=False, soft_wrap=True)


_COMMANDS = {
    "quantize": _quantize,
    "report": _report,
    "runs": _runs,
    "compare": _compare,
    "sensitivity": _sensitivity,
    "evaluate": _evaluate,
    "matte": _matte,
    "export": _export,
    "benchmark": _benchmark,
    "weights": _weights,
}

if __name__ == "__main__":
    sys.exit(main())
