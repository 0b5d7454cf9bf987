"""Quantization job: block reconstruction, global calibration and evaluation in a run folder."""

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptq4vm import distributed
from ptq4vm.atomic_io import written_whole
from ptq4vm.calibration.bit_allocation import CANDIDATE_BITS, choose_bits, require_budget
from ptq4vm.calibration.sensitivity import BASE_BITS, list_layers, measure_sensitivity
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.deploy import TargetName, find_target
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import FINAL_CHECKPOINT
from ptq4vm.models import create_model
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.phases.base import Scoring
from ptq4vm.pipeline.record import record_end
from ptq4vm.pipeline.report import collect_shots, load_networks, write_report
from ptq4vm.pipeline.rows import DEFAULT_ROWS, Method, check_rows
from ptq4vm.pipeline.run import Run
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting import ResultRow, draw_strips, markdown_table, write_metrics
from ptq4vm.reporting.page import REPORT
from ptq4vm.reporting.runs import METRICS, read_run

AUTO = "auto"
"""Bits of a W4A4 network with more bits in the most sensitive layers."""


@dataclass(frozen=True)
class QuantizeResult:
    """Result of :func:`quantize`."""

    folder: Path
    rows: list[ResultRow]
    table: Path
    pictures: Path
    metrics: Path
    report: Path
    checkpoints: dict[str, Path]
    """Final quantized checkpoint by bits."""


def quantize(
    data: VideoMattingDataModule,
    output: Path = Path("runs/quantize"),
    network: str = "rvm_mobilenetv3",
    weights: str = "official",
    downsample_ratio: float = 1.0,
    bits: Iterable[str] = ("W8A8",),
    budget: float = 0.1,
    rows: dict[str, Method] | None = None,
    qconfig: QConfig = QConfig(),  # noqa: B008  (frozen)
    target: TargetName | None = None,
    block_reconstruction: dict[str, Any] | None = None,
    gac: dict[str, Any] | None = None,
    block_steps: int = 100,
    block_batch_size: int = 1,
    gac_epochs: int = 10,
    gac_batch_size: int = 1,
    scoring: Scoring = "float",
    trainer: dict[str, Any] | None = None,
) -> QuantizeResult:
    """Quantize a network in two phases, score each step on the evaluation clips and draw mattes.

    Finished steps are kept in the run folder and are not repeated; a killed step resumes from its
    last block or epoch.

    Args:
        data: calibration and evaluation clips.
        output: run folder.
        network: registry name of the network.
        weights: ``official``, or a file of float weights.
        downsample_ratio: fraction of the frame's size at which the network's body works.
        bits: one or more of W8A8, W4A8, W4A4, ..., or ``auto``: W4A4, with W4A8 or W8A8 in the
            layers that gain most, selected by quantizing each layer alone on calibration sequences.
        budget: for ``auto``: maximum share of all bit operations in layers above W4A4, the first
            and last layers included.
        rows: rows of the table by name, the last of which is the run's result; by default the
            steps of the paper.
        qconfig: all other quantization settings; its ``bits`` are replaced by each of ``bits``.
        target: runtime of the result; sets in ``qconfig`` the options it needs to execute integers:
            placement, depthwise_granularity and, for TensorRT, activation_grid. By default
            ``qconfig`` is unchanged.
        block_reconstruction: options of :class:`BlockReconstructionModule`; rows may override them.
        gac: options of :class:`GACModule`; rows may override them.
        block_steps: optimization steps per block.
        block_batch_size: sequences per step of block reconstruction.
        gac_epochs: passes over the calibration set in global calibration.
        gac_batch_size: sequences per step of global calibration.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits.
        trainer: options of Lightning's Trainer: accelerator, devices, logger, ...

    Raises:
        PTQ4VMError: Invalid settings or data, or ``output`` contains a run with other settings.
    """
    settings = {
        name: value for name, value in locals().items() if name not in ("data", "output", "trainer")
    }
    run = Run(Path(output), data, dict(trainer or {}), scoring)
    if target is not None:
        qconfig = find_target(target).fit(qconfig)
    # Settings are validated before the folder is claimed.
    plans = {
        one: dataclasses.replace(qconfig, bits=BASE_BITS if one == AUTO else one) for one in bits
    }
    common = {"network": network, "weights": weights, "downsample_ratio": downsample_ratio}
    phases = _Phases(
        {**common, **(block_reconstruction or {})},
        {"weights": weights, **(gac or {})},
        block_steps,
        block_batch_size,
        gac_epochs,
        gac_batch_size,
    )
    phases.require_counts()
    if not plans:
        raise PTQ4VMError(
            "Expected at least one of bits, e.g. W8A8, got none. Leave bits out for W8A8."
        )
    methods = check_rows(rows or DEFAULT_ROWS)
    for row in methods.values():
        dataclasses.replace(qconfig, **row.qconfig)
    teacher = create_model(network, weights=weights, downsample_ratio=downsample_ratio)
    if AUTO in plans:
        require_budget(list_layers(teacher, plans[AUTO], *data.size), BASE_BITS, budget)
    else:
        del settings["budget"]
    with run.progress():
        run.draw()
    run.launch()
    with run.owned(), run.progress():
        distributed.first_alone(lambda: run.claim(settings, teacher))
        distributed.once(run.begin, teacher)
        run.prepare(teacher, phases.work(methods, data.num_sequences))
        if AUTO in plans:
            plans[AUTO] = _mix(run, teacher, plans[AUTO], budget)
        run.expect(len(plans))
        table = [run.score(run.folder / "float.json", "float", teacher)]
        for bits_name, plan in plans.items():
            table += _quantize_rows(run, run.folder / bits_name.lower(), plan, methods, phases)
        run.say("writing the table, the pictures and the report")
        return _report(run, teacher, list(plans), table)


@dataclass(frozen=True)
class _Phases:
    """Options and lengths of the two phases.

    Args:
        block_reconstruction: options of block reconstruction, which rows may override.
        gac: options of global calibration, which rows may override.
        block_steps: optimization steps per block.
        block_batch_size: sequences per step of block reconstruction.
        gac_epochs: passes over the calibration set in global calibration.
        gac_batch_size: sequences per step of global calibration.
    """

    block_reconstruction: dict[str, Any]
    gac: dict[str, Any]
    block_steps: int
    block_batch_size: int
    gac_epochs: int
    gac_batch_size: int

    def require_counts(self) -> None:
        """Check that all lengths are at least 1."""
        for name in ("block_steps", "block_batch_size", "gac_epochs", "gac_batch_size"):
            if (count := getattr(self, name)) < 1:
                raise PTQ4VMError(f"Expected {name} of at least 1, got {count}. Raise it.")

    def work(self, methods: dict[str, Method], sequences: int) -> dict[str, float]:
        """Return the cost of each row per frame of the calibration set, in forward passes."""
        steps = self.block_steps * self.block_batch_size / sequences
        return {
            name: 3.0 * (self.gac_epochs if row.start else 1 + steps * _learns(row))
            for name, row in methods.items()
        }

    def fit_blocks(self, run: Run, folder: Path, name: str, row: Method, plan: QConfig) -> None:
        """Run block reconstruction for one row."""
        options = {"qconfig": plan, **self.block_reconstruction, **row.options}
        steps = self.block_steps if _learns(row) else 1
        module = BlockReconstructionModule
        run.fit(folder, name, row, module, options, self.block_batch_size, steps, 1)

    def fit_network(self, run: Run, folder: Path, name: str, row: Method, start: Path) -> None:
        """Run global calibration for one row."""
        options = {"checkpoint": start, **self.gac, **row.options}
        run.fit(folder, name, row, GACModule, options, self.gac_batch_size, None, self.gac_epochs)


def _quantize_rows(
    run: Run, folder: Path, plan: QConfig, methods: dict[str, Method], phases: _Phases
) -> list[ResultRow]:
    """Make and score the networks of all rows for one plan; copy the last one's checkpoint."""
    table = []
    for name, row in methods.items():
        plan_of_row, start = dataclasses.replace(plan, **row.qconfig), None
        if row.start is None:
            phases.fit_blocks(run, folder, name, row, plan_of_row)
        else:
            start = folder / f"{row.start}.safetensors"
            phases.fit_network(run, folder, name, row, start)
        scored, made_with = run.load(folder / f"{name}.safetensors", start, plan_of_row)
        table.append(run.score(folder / f"{name}.json", row.title, scored, made_with))
    distributed.once(_copy_whole, folder / f"{name}.safetensors", folder / FINAL_CHECKPOINT)
    return table


def _copy_whole(source: Path, target: Path) -> None:
    with written_whole(target) as part:
        shutil.copyfile(source, part)


def _learns(row: Method) -> bool:
    return row.options.get("learn_rounding", True) or row.options.get("learn_scales", True)


def _mix(run: Run, teacher: MattingModel, plan: QConfig, budget: float) -> QConfig:
    """Return ``plan`` with more bits in sensitive layers; cache measurements in the run folder."""
    run.say("AUTO: each layer quantized alone")
    path = run.folder / AUTO / "sensitivity.json"
    bits = (BASE_BITS, *CANDIDATE_BITS)
    with run.on_device(teacher), run.second_bar() as progress:
        # All ranks repeat the measurement: waiting ranks would exceed the process group's timeout.
        found = distributed.gather(
            measure_sensitivity(teacher, run.data, bits, plan, path=path, progress=progress)
        )[0]
    # Bits set by the user take precedence.
    return dataclasses.replace(
        plan, layer_bits={**choose_bits(found, budget=budget), **plan.layer_bits}
    )


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
