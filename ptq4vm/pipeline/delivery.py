"""Export of a finished run for a runtime, with parity and latency in the run folder."""

from pathlib import Path

from ptq4vm.deploy import (
    ExportOptions,
    TargetName,
    choose_downsample_ratio,
    export,
    measure_speed,
    require_job,
)
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_quantized
from ptq4vm.models import create_model
from ptq4vm.pipeline.quantize import QuantizeResult
from ptq4vm.pipeline.report import report_run
from ptq4vm.pipeline.settings import AUTO, QuantizeSettings
from ptq4vm.reporting import WorkBar, write_speeds
from ptq4vm.terminal import plain_console

SPEED = "speed.json"
ROUNDS = 20
"""Timed frames per network."""


def require_deliverable(
    settings: QuantizeSettings, output: Path, height: int, width: int
) -> TargetName:
    """Check before any work that a run can be exported, and return its target.

    Raises:
        PTQ4VMError: No runtime executes these bits, there is no target or its runtime is not
            installed, or the folder can't be written.
    """
    target = settings.target
    if target is None:
        raise PTQ4VMError("Expected --target with --size, got none. Choose one, e.g. openvino.")
    for one, plan in settings.final_plans().items():
        if one == AUTO or plan.fewest_activation_bits < 8:
            raise PTQ4VMError(
                f"Expected 8-bit activations to export, got bits {one}, which no runtime executes "
                "as integers. Leave --size out, or choose the recipe w8a8 or w4a8."
            )
    require_job(height, width, _graph(output, target, height, width), ExportOptions(target))
    return target


def _graph(folder: Path, target: str, height: int, width: int) -> Path:
    return folder / f"{target}_{height}x{width}.onnx"


def deliver(
    result: QuantizeResult,
    network: str,
    weights: str,
    target: TargetName,
    height: int,
    width: int,
    tolerance: float,
) -> list[str]:
    """Export the float network and every network of a run, check parity and measure latency.

    The run's report is written again, with the latencies.

    Args:
        result: The finished run.
        network: Name of the float network.
        weights: ``official``, or a file of float weights.
        target: The runtime.
        height: Height of the frames in pixels.
        width: Width of the frames in pixels.
        tolerance: Largest accepted mean |Δα| between PyTorch and the runtime.

    Returns:
        A line for each quantized graph: file, size in MB and parity.

    Raises:
        PTQ4VMError: See :func:`ptq4vm.deploy.export`.
    """
    console = plain_console()
    reference = create_model(network, weights=weights)
    ratio = choose_downsample_ratio(reference, "auto", height, width)
    lines, graphs = [], []
    with WorkBar(console=console) as bar:
        for bits in ("W32A32", *result.checkpoints):
            quantized = bits in result.checkpoints
            one = load_quantized(result.checkpoints[bits])[0] if quantized else reference
            one.downsample_ratio = ratio
            path = _graph(result.folder / bits.lower(), target, height, width)
            path.parent.mkdir(exist_ok=True)
            options = ExportOptions(target)
            exported = export(one, height, width, path, options, tolerance=tolerance, progress=bar)
            graphs.append(str(path))
            if quantized:
                lines.append(
                    f"{path}  ({bits}, {exported.size_mb:.2f} MB, mean |Δα| "
                    f"{exported.parity.mean:.1e} in {exported.runtime})"
                )
        speeds = measure_speed(
            graphs, height, width, ratio, ROUNDS, progress=lambda n, all: bar(n, all, "timing")
        )
    settings = {"size": f"{height}x{width}", "downsample_ratio": ratio, "rounds": ROUNDS}
    write_speeds(result.folder / SPEED, speeds, settings)
    report_run(result.folder)
    return lines
