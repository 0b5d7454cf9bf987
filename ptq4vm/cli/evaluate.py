"""Command `ptq4vm evaluate`."""

from pathlib import Path

from jsonargparse import ArgumentParser

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
from ptq4vm.deploy import choose_downsample_ratio
from ptq4vm.graph import network_facts
from ptq4vm.phases.callbacks import AlphaWriter
from ptq4vm.pipeline import evaluate
from ptq4vm.reporting import Cost, ResultRow, render_table, write_metrics
from ptq4vm.reporting.results import fidelity_of, truth_metrics
from ptq4vm.types import FrameModel


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="ptq4vm evaluate", description="Score a network on an evaluation tree."
    )
    parser.add_argument(
        "model", help="name, weights file, quantized checkpoint, run folder or exported graph"
    )
    parser.add_argument(
        "--data", type=str, required=True, help="folder <set>/<clip>/{com,pha,fgr}/<frame>"
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
    """Score a network on an evaluation tree."""
    config = _make_parser().parse_args(args)
    network = open_model(config)
    data = VideoMattingDataModule(
        evaluation=config.data, eval_clips=config.clips, eval_frames=config.frames
    )
    data.setup("test")
    size = data.evaluation_set[0].src.shape[-2:]
    network.downsample_ratio = choose_downsample_ratio(network, config.downsample_ratio, *size)
    callbacks = [AlphaWriter(config.alpha)] if config.alpha is not None else []
    network.to(trainer_device(config.accelerator))
    print_device(network.runs_on)
    metrics = evaluate(network, data, config.scoring, config.accelerator, callbacks)
    row = _row(str(config.model), network, metrics, *size)
    render_table([row], console)
    if config.json is not None:
        write_metrics(
            config.json,
            [row],
            {
                "data": config.data,
                "scoring": config.scoring,
                "downsample_ratio": network.downsample_ratio,
            },
        )


def _row(
    name: str, network: FrameModel, metrics: dict[str, float], height: int, width: int
) -> ResultRow:
    facts = network_facts(network, height, width)
    placement = facts.placement if facts.runtime == "torch" else facts.runtime
    effective = facts.effective_flops and facts.effective_flops * 1e9
    cost = Cost(facts.size_mb, facts.bit_operations * 1e9, effective)
    truth, fidelity = truth_metrics(metrics), fidelity_of(metrics)
    return ResultRow(name, facts.bits, placement, truth, cost, fidelity)
