"""Quantization job: block reconstruction, global calibration and evaluation in a run folder."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ptq4vm import distributed
from ptq4vm.atomic_io import written_whole
from ptq4vm.calibration.bit_allocation import CANDIDATE_BITS, choose_bits
from ptq4vm.calibration.sensitivity import BASE_BITS, measure_sensitivity
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import FINAL_CHECKPOINT, load_quantized
from ptq4vm.models import float_network, weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import BlockReconstructionModule, GACModule, GACSettings, PTQPhase
from ptq4vm.pipeline.record import record_end
from ptq4vm.pipeline.report import collect_shots, load_networks, write_report
from ptq4vm.pipeline.run import FitLength, Run
from ptq4vm.pipeline.settings import AUTO, QuantizeSettings, row_plan
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting import ResultRow, draw_strips, markdown_table, write_metrics
from ptq4vm.reporting.page import REPORT
from ptq4vm.reporting.runs import METRICS, read_run


@dataclass(frozen=True)
class QuantizeResult:
    """Result of :func:`quantize`.

    Example:
        >>> import tempfile
        >>> from ptq4vm import QuantizeSettings, VideoMattingDataModule, quantize
        >>> from ptq4vm.pipeline import DEFAULT_ROWS
        >>> settings = QuantizeSettings(rows={"rtn": DEFAULT_ROWS["rtn"]})  # nothing is learned
        >>> size = {"height": 64, "width": 96, "eval_clips": 1, "eval_frames": 2}
        >>> data = VideoMattingDataModule(num_sequences=1, seq_length=2, **size)
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> result = quantize("rvm_mobilenetv3", data, settings, folder)  # doctest: +ELLIPSIS
        drawing sequences ...
        >>> [(row.name, row.bits) for row in result.rows]
        [('float', 'W32A32'), ('round to nearest', 'W8A8')]
    """

    folder: Path
    rows: list[ResultRow]
    table: Path
    pictures: Path
    metrics: Path
    report: Path
    checkpoints: dict[str, Path]
    """Final quantized checkpoint by bits."""


def quantize(
    network: str | MattingModel,
    data: VideoMattingDataModule,
    settings: QuantizeSettings = QuantizeSettings(),  # noqa: B008  (frozen)
    output: Path = Path("runs/quantize"),
    weights: str = "official",
    downsample_ratio: float = 1.0,
    trainer: dict[str, Any] | None = None,
) -> QuantizeResult:
    """Quantize a network in two phases, score each step on the evaluation clips and draw mattes.

    Finished steps are kept in the run folder and are not repeated; a killed step resumes from its
    last block or epoch.

    Args:
        network: registry name of the network, or the float network itself.
        data: calibration and evaluation clips.
        settings: bits, methods and lengths of the phases.
        output: run folder.
        weights: ``official``, or a file of float weights; only with a name.
        downsample_ratio: fraction of the frame's size at which the network's body works; only with
            a name.
        trainer: options of Lightning's Trainer: accelerator, devices, logger, ...

    Raises:
        PTQ4VMError: Invalid settings or data, or ``output`` contains a run with other settings.

    Example:
        >>> from ptq4vm import VideoMattingDataModule, quantize
        >>> data = VideoMattingDataModule()
        >>> quantize("rvm_mobilenetv3", data).checkpoints  # doctest: +SKIP
        {'W8A8': PosixPath('runs/quantize/w8a8/quantized.safetensors')}
    """
    # Everything is validated before the folder is claimed.
    settings.require_data(data)
    run, plans = (
        Run(Path(output), data, dict(trainer or {}), settings.scoring),
        settings.run_plans(),
    )
    teacher = float_network(network, weights, downsample_ratio)
    origin = _origin(teacher, weights if isinstance(network, str) else None)
    with run.progress():
        run.draw()
    run.launch()
    with run.owned(), run.progress():
        distributed.first_alone(lambda: run.claim({**origin, **settings.plain()}, teacher))
        distributed.once(run.begin, teacher)
        run.prepare(teacher, _work(settings, data.num_sequences))
        if AUTO in plans:
            plans[AUTO] = _mix(run, teacher, plans[AUTO], settings.share)
        run.expect(len(plans))
        table = [run.score(run.folder / "float.json", "float", teacher)]
        for bits, plan in plans.items():
            table += _quantize_rows(run, teacher, bits, plan, settings)
        run.say("writing the table, the pictures and the report")
        return _report(run, teacher, list(plans), table)


def _origin(teacher: MattingModel, weights: str | None) -> dict[str, Any]:
    """Return the settings of the float network; its weights are None if given in memory."""
    ratio = teacher.downsample_ratio
    return {"network": teacher.name, "weights": weights, "downsample_ratio": ratio}


def _work(settings: QuantizeSettings, sequences: int) -> dict[str, float]:
    """Return the cost of each row per frame of the calibration set, in forward passes."""
    batch, steps = map(settings.scaled, (settings.block_batch_size, settings.block_steps))
    epochs, learning = settings.scaled(settings.gac_epochs), steps * batch / sequences
    found = {}
    for key, method in settings.methods.items():
        own = settings.options(method)
        passes = epochs if isinstance(own, GACSettings) else 1 + learning * own.learns
        found[key] = 0.0 if method.checkpoint else 3.0 * passes
    return found


def _quantize_rows(
    run: Run, teacher: MattingModel, bits: str, plan: QConfig, settings: QuantizeSettings
) -> list[ResultRow]:
    """Make and score the networks of all methods for one plan; copy the last one's checkpoint."""
    table, folder = [], run.folder / bits.lower()
    for key, method in settings.methods.items():
        own, plan_of_row, start = settings.options(method), row_plan(plan, method), None
        output = folder / f"{key}.safetensors"
        if isinstance(own, GACSettings):
            start = folder / f"{method.start}.safetensors"
            batch, epochs = map(settings.scaled, (settings.gac_batch_size, settings.gac_epochs))
            length = FitLength(batch, None, epochs)
            make: Callable[[], PTQPhase] = partial(
                GACModule, start, teacher, output=output, **vars(own)
            )
        else:
            batch, steps = map(settings.scaled, (settings.block_batch_size, settings.block_steps))
            length = FitLength(batch, steps if own.learns else 1)
            make = partial(
                BlockReconstructionModule, teacher, qconfig=plan_of_row, output=output, **vars(own)
            )
        if method.checkpoint is None:
            run.fit(output, method.title, make, length)
        else:
            distributed.once(_take_checkpoint, method.checkpoint, output)
        scored, made_with = run.load(output, start, plan_of_row)
        row = run.score(folder / f"{key}.json", method.title, scored, made_with)
        table.append(row._replace(method=key, plan=bits))
    distributed.once(_copy_whole, output, folder / FINAL_CHECKPOINT)
    return table


def _take_checkpoint(given: Path, output: Path) -> None:
    """Copy a quantized checkpoint to a new row.

    Raises:
        PTQ4VMError: The row has another one, or the file is none.
    """
    network, _ = load_quantized(given)
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        _copy_whole(given, output)
    elif weights_checksum(network) != weights_checksum(load_quantized(output)[0]):
        raise PTQ4VMError(
            f"Expected the checkpoint that {output} was copied from, got another in {given}. "
            "Put the former one back, or choose another --output."
        )


def _copy_whole(source: Path, target: Path) -> None:
    with written_whole(target) as part:
        shutil.copyfile(source, part)


def _mix(run: Run, teacher: MattingModel, plan: QConfig, budget: float) -> QConfig:
    """Return ``plan`` with bits by layer; cache the measurements in the run folder."""
    run.say("AUTO: each layer quantized alone")
    path = run.folder / AUTO / "sensitivity.json"
    bits = (BASE_BITS, *CANDIDATE_BITS)
    with run.on_device(teacher), run.second_bar() as progress:
        # All ranks repeat the measurement: waiting ranks would exceed the process group's timeout.
        found = distributed.gather(
            measure_sensitivity(teacher, run.data, bits, plan, path=path, progress=progress)
        )[0]
    # Bits set by the user take precedence.
    return replace(plan, layer_bits={**choose_bits(found, budget=budget), **plan.layer_bits})


def _report(
    run: Run, teacher: MattingModel, names: list[str], table: list[ResultRow]
) -> QuantizeResult:
    """Write table, metrics.json, pictures and report; return the result."""
    checkpoints = {name: run.folder / name.lower() / FINAL_CHECKPOINT for name in names}
    meta = {
        "scoring": run.scoring,
        "checkpoints": {bits: str(path) for bits, path in checkpoints.items()},
    }
    result = QuantizeResult(
        run.folder,
        table,
        run.folder / "table.md",
        run.folder / "pictures.png",
        run.folder / METRICS,
        run.folder / REPORT,
        checkpoints,
    )
    if distributed.rank() > 0:
        return result
    write_metrics(result.metrics, table, meta)
    with written_whole(result.table) as part:
        part.write_text(markdown_table(table))
    networks = load_networks(run.folder, names)
    shots, src = collect_shots(run.data, teacher, networks)
    # The first shot of each clip, by the network of the last bits.
    first = {shot.clip: shot for shot in reversed(shots)}
    draw_strips([shot.strip(names[-1]) for shot in reversed(first.values())], result.pictures)
    record_end(run.folder)
    write_report(read_run(run.folder), networks, teacher, shots, src, result.report)
    run.end(
        table, {"pictures": result.pictures, "report": result.report}, list(checkpoints.values())
    )
    return result
