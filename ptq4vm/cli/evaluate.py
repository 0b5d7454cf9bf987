"""Command `ptq4vm evaluate`."""

from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from ptq4vm.cli.common import (
    add_network_option,
    add_ratio_option,
    add_runtime_options,
    console,
    open_model,
    print_device,
    trainer_device,
)
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.data.suites import SUITES, SuiteName, find_suite
from ptq4vm.deploy import choose_downsample_ratio
from ptq4vm.graph import network_facts
from ptq4vm.metrics import Protocol, choose_protocol
from ptq4vm.phases.callbacks import AlphaWriter
from ptq4vm.pipeline import evaluate
from ptq4vm.reporting import Cost, ResultRow, render_table, write_metrics
from ptq4vm.reporting.results import fidelity_of, truth_metrics
from ptq4vm.types import FrameModel


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ptq4vm evaluate",
        description="Score a network on an evaluation tree, or on the data sets of a suite.",
    )
    parser.add_argument(
        "model", help="name, weights file, quantized checkpoint, run folder or exported graph"
    )
    parser.add_argument(
        "--data", type=str, required=True, help="folder <set>/<clip>/{com,pha,fgr}/<frame>"
    )
    parser.add_argument(
        "--suite",
        type=SuiteName | None,
        default=None,
        help="score every data set of a suite that the folder holds: "
        + "; ".join(f"{name}: {', '.join(suite.folders)}" for name, suite in SUITES.items()),
    )
    parser.add_argument(
        "--protocol",
        type=Protocol | None,
        default=None,
        help="lr: all five metrics; hr: without Conn, Grad without normalization. By default hr "
        "for frames with a longer side above 1024 pixels",
    )
    parser.add_argument(
        "--json", type=Path | None, default=None, help="write the metrics to this file"
    )
    parser.add_argument(
        "--alpha",
        type=Path | None,
        default=None,
        help="write the mattes to this folder, as 8-bit PNG",
    )
    parser.add_argument(
        "--scoring",
        type=str,
        default="float",
        choices=["float", "png8"],
        help="png8 truncates mattes to 8 bits before scoring",
    )
    add_network_option(parser)
    parser.add_argument("--clips", type=int | None, default=None, help="maximum number of clips")
    parser.add_argument(
        "--frames", type=int | None, default=None, help="maximum number of frames per clip"
    )
    accelerators = ["auto", "cpu", "gpu", "cuda", "mps"]
    parser.add_argument(
        "--accelerator",
        type=str,
        default="auto",
        choices=accelerators,
        help="Lightning's accelerator",
    )
    add_ratio_option(parser, "An exported graph has a fixed ratio.")
    add_runtime_options(parser)
    return parser


def run_evaluate(args: list[str]) -> None:
    """Score a network on an evaluation tree, or on the data sets of a suite."""
    config = _make_parser().parse_args(args)
    places: dict[str, Path] = {str(config.model): Path(config.data)}
    missing: list[str] = []
    if config.suite is not None:
        places, missing = find_suite(Path(config.data), config.suite)
    network = open_model(config)
    network.to(trainer_device(config.accelerator))
    print_device(network.runs_on)
    scored = [_score(network, name, folder, config) for name, folder in places.items()]
    rows = [one.row for one in scored]
    render_table(rows, console)
    if missing:
        console.print(f"not found   {', '.join(missing)}", highlight=False)
    if config.json is not None:
        meta = {"data": config.data, "scoring": config.scoring}
        if config.suite is None:
            meta |= scored[0].conditions
        else:
            conditions = {one.row.name: one.conditions for one in scored}
            meta |= {"suite": config.suite, "conditions": conditions, "not_found": missing}
        write_metrics(config.json, rows, meta)


class _Scored(NamedTuple):
    row: ResultRow
    conditions: dict[str, Any]


def _score(network: FrameModel, name: str, folder: Path, config: Namespace) -> _Scored:
    data = VideoMattingDataModule(
        evaluation=str(folder), eval_clips=config.clips, eval_frames=config.frames
    )
    data.setup("test")
    if config.suite is not None:
        console.print(f"data set    {name}", highlight=False)
    height, width = data.evaluation_set[0].src.shape[-2:]
    ratio = config.downsample_ratio
    if ratio == "auto" and config.suite is not None and network.fixed_ratio is None:
        ratio = SUITES[config.suite].downsample_ratio or ratio
    network.downsample_ratio = choose_downsample_ratio(network, ratio, height, width)
    protocol = config.protocol or choose_protocol(height, width)
    callbacks = []
    if config.alpha is not None:
        # The writer's folders are <set>/<clip>, those of one part of a data set.
        place = config.alpha if config.suite is None else config.alpha / folder.parent.name
        callbacks = [AlphaWriter(place)]
    metrics = evaluate(network, data, config.scoring, config.accelerator, callbacks, protocol)
    conditions = {"protocol": protocol, "downsample_ratio": network.downsample_ratio}
    return _Scored(_row(name, network, metrics, height, width), conditions)


def _row(
    name: str, network: FrameModel, metrics: dict[str, float], height: int, width: int
) -> ResultRow:
    facts = network_facts(network, height, width)
    placement = facts.placement if facts.runtime == "torch" else facts.runtime
    effective = facts.effective_flops and facts.effective_flops * 1e9
    cost = Cost(facts.size_mb, facts.bit_operations * 1e9, effective)
    truth, fidelity = truth_metrics(metrics), fidelity_of(metrics)
    return ResultRow(name, facts.bits, placement, truth, cost, fidelity)
