"""The main job: block reconstruction, global calibration, evaluation and the table, in one resumable run folder."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ptq4vm.callbacks import WorkProgress
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow
from ptq4vm.graph import FINAL_CHECKPOINT, bits_label, load_quantized, network_cost, trace
from ptq4vm.graph.trace import example_frame
from ptq4vm.mixed_precision import CANDIDATE_BITS, choose_bits, require_budget
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import BlockReconstructionModule, GACModule, MattingModule, make_teacher
from ptq4vm.phases.base import Scoring, make_float_network
from ptq4vm.quantizers import QConfig
from ptq4vm.reporting import ResultRow, Strip, draw_strips, markdown_table, write_metrics
from ptq4vm.sensitivity import BASE_BITS, list_layers, measure_sensitivity

_log = logging.getLogger(__name__)

STAGES = {"rtn": "round to nearest", "biq": "BIQ", "gac": "BIQ + GAC", "ofa": "BIQ + GAC + OFA"}
"""Folder and name of each row that a bit width gets, in order."""
AUTO = "auto"
"""Stands among the bits for W4A4 with more bits in the layers that need them most."""
_SETTLED = 12
"""So many frames into a clip the recurrent state no longer changes what is seen."""


@dataclass(frozen=True)
class QuantizeResult:
    """What :func:`quantize` leaves behind."""

    folder: Path
    rows: list[ResultRow]
    table: Path
    pictures: Path
    metrics: Path
    checkpoints: dict[str, Path]
    """The finished quantized checkpoint of each bit width."""


def quantize(
    data: VideoMattingDataModule,
    output: Path = Path("runs/quantize"),
    network: str = "rvm_mobilenetv3",
    weights: str = "official",
    downsample_ratio: float = 1.0,
    bits: Iterable[str] = ("W8A8",),
    budget: float = 0.1,
    qconfig: QConfig = QConfig(),  # noqa: B008  (frozen)
    block_reconstruction: dict[str, Any] | None = None,
    gac: dict[str, Any] | None = None,
    block_steps: int = 100,
    block_batch_size: int = 1,
    gac_epochs: int = 10,
    gac_batch_size: int = 1,
    scoring: Scoring = "float",
    trainer: dict[str, Any] | None = None,
) -> QuantizeResult:
    """Quantize a network through both phases, score each step on the evaluation clips, and draw mattes.

    Every finished step stays in the run folder and is not done again; a killed step goes on from its last block or
    epoch.

    Args:
        data: calibration and evaluation clips.
        output: the run folder.
        network: the registry's name of the network.
        weights: ``official``, or a file of float weights.
        downsample_ratio: the network's body works at this fraction of the frame's size.
        bits: one or more of W8A8, W4A8, W4A4, ..., or ``auto``: W4A4, but W4A8 or W8A8 in the layers that gain most,
            found by quantizing each alone on calibration sequences.
        budget: of ``auto``: the share of all bit operations that layers above W4A4 may take, first and last included.
        qconfig: everything else about quantization; its ``bits`` are replaced by each of ``bits``.
        block_reconstruction: options of :class:`BlockReconstructionModule`.
        gac: options of :class:`GACModule`; its ``flow_weight`` is that of the last row.
        block_steps: steps for each block.
        block_batch_size: sequences in a step of block reconstruction.
        gac_epochs: passes through the calibration set in global calibration.
        gac_batch_size: sequences in a step of global calibration.
        scoring: ``float`` or ``png8``.
        trainer: options of Lightning's Trainer: accelerator, devices, logger, ...

    Raises:
        PTQ4VMError: bad settings or data; or ``output`` holds a run with other settings.
    """
    settings = {name: value for name, value in locals().items() if name not in ("data", "output", "trainer")}
    run = _Run(Path(output), data, dict(trainer or {}), scoring)
    # A folder is claimed only for what can be run.
    plans = {one: dataclasses.replace(qconfig, bits=BASE_BITS if one == AUTO else one) for one in bits}
    teacher = make_float_network(network, weights, downsample_ratio)
    if AUTO in plans:
        require_budget(list_layers(teacher, plans[AUTO], *data.size), BASE_BITS, budget)
    else:
        del settings["budget"]
    data.setup("fit")
    run.claim({**settings, "data": _data_settings(data)})
    with run.progress():
        run.prepare(teacher, len(plans), block_steps * block_batch_size, gac_epochs)
        rows = [run.score("float", "float", teacher)]
        if AUTO in plans:
            plans[AUTO] = run.mix(teacher, plans[AUTO], budget)
        for name, plan in plans.items():
            folder = run.folder / name.lower()
            common = {"network": network, "weights": weights, "downsample_ratio": downsample_ratio, "qconfig": plan}
            blocks = {**common, **(block_reconstruction or {})}
            nearest = {**blocks, "learn_rounding": False, "learn_scales": False}
            calibrate = {"weights": weights, "checkpoint": folder / "biq.safetensors", **(gac or {})}
            run.fit(folder, "rtn", BlockReconstructionModule, nearest, 1, 1, 1)
            run.fit(folder, "biq", BlockReconstructionModule, blocks, block_batch_size, block_steps, 1)
            run.fit(folder, "gac", GACModule, {**calibrate, "flow_weight": 0.0}, gac_batch_size, None, gac_epochs)
            run.fit(folder, "ofa", GACModule, calibrate, gac_batch_size, None, gac_epochs)
            for stage in STAGES:
                scored = load_quantized(folder / f"{stage}.safetensors")[0]
                rows.append(run.score(name, stage, scored, plan))
            shutil.copyfile(folder / "ofa.safetensors", folder / FINAL_CHECKPOINT)
        return run.report(teacher, list(plans), rows)


class _Run:
    """One run folder: what is in it, and what is still to do."""

    def __init__(self, folder: Path, data: VideoMattingDataModule, trainer: dict[str, Any], scoring: Scoring) -> None:
        self.folder, self.data, self.trainer, self.scoring = folder, data, trainer, scoring
        self._bar: Progress | None = None
        self._macs: dict[str, int] = {}
        self._size = (0, 0)
        self._work: dict[str, float] = {}

    def claim(self, settings: dict[str, Any]) -> None:
        """Write the settings into a new folder, or see that an existing one has the same."""
        path = self.folder / "settings.json"
        text = json.dumps(settings, indent=2, default=_plain, sort_keys=True)
        if path.is_file():
            before, now = _read_json(path), json.loads(text)
            changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            if changed:
                differences = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in changed)
                raise PTQ4VMError(
                    f"Expected {self.folder} to be new or a run with these settings, got another configuration "
                    f"({differences}). Choose another --output, or remove the folder."
                )
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_text(path, text)
        except OSError as error:
            raise PTQ4VMError(f"Can't write the run folder {self.folder}: {error}. Choose another --output.") from error

    # ---- progress ---------------------------------------------------------------------------------------------

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A bar for the whole run: what it is doing and how long is left."""
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, speed_estimate_period=120.0) as self._bar:
            self._task = self._bar.add_task("starting", total=None)
            yield

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=text)
            if not self._bar.console.is_terminal:
                self._bar.console.print(text, highlight=False)

    def _advance(self, work: float) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, work)

    def _attached(self, done: int, total: int, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=what)

    def _frames(self) -> int:
        return self.data.num_sequences * self.data.seq_length

    def prepare(self, teacher: MattingModel, plans: int, block_samples: int, gac_epochs: int) -> None:
        """Make the calibration set, and know how much work is ahead, in frames that go forward once."""
        layers = trace(teacher, example_frame(teacher))
        self._macs = {layer.name: layer.macs for layer in layers}
        self._say("calibration set: frames, float mattes, optical flow")
        teacher.to(self._make_trainer(self.folder, logger=False).strategy.root_device)
        self.data.attach(make_teacher(teacher), create_flow("dis"), self._attached)
        teacher.cpu()
        frames = self._frames()
        scored = self.data.evaluation_set.num_frames
        height, width = self.data.evaluation_set[0].src.shape[-2:]
        self._size = (height, width)
        calibrate = 3.0 * gac_epochs * frames
        blocks = 3.0 * frames
        self._work = {"rtn": blocks, "biq": blocks + 3.0 * block_samples * self.data.seq_length}
        self._work |= {"gac": calibrate, "ofa": calibrate, "score": float(scored)}
        score = self._work["score"]
        if self._bar is not None:
            self._bar.reset(self._task, total=score + plans * (sum(self._work.values()) + (len(STAGES) - 1) * score))

    def mix(self, teacher: MattingModel, plan: QConfig, budget: float) -> QConfig:
        """The plan with more bits for the layers that gain most; what was measured for it stays in the run folder."""
        self._say("AUTO: each layer quantized alone")
        path = self.folder / AUTO / "sensitivity.json"
        bits = (BASE_BITS, *CANDIDATE_BITS)
        teacher.to(self._make_trainer(self.folder, logger=False).strategy.root_device)
        with self._second_bar() as progress:
            found = measure_sensitivity(teacher, self.data, bits, plan, path=path, progress=progress)
        teacher.cpu()
        # What the user set wins.
        return dataclasses.replace(plan, layer_bits={**choose_bits(found, budget=budget), **plan.layer_bits})

    @contextmanager
    def _second_bar(self) -> Iterator[Callable[[int, int, str], None] | None]:
        """A bar for one long step."""
        bar = self._bar
        if bar is None:
            yield None
            return
        task = bar.add_task("starting", total=None)
        try:
            yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
        finally:
            bar.remove_task(task)

    # ---- steps ------------------------------------------------------------------------------------------------

    def _make_trainer(self, folder: Path, **options: Any) -> L.Trainer:
        settings = {
            # A version for each start: the log of what was done before a kill stays.
            "logger": CSVLogger(folder.parent, name=folder.name),
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            **{key: value for key, value in self.trainer.items() if value is not None},
            **options,
            "default_root_dir": folder,
        }
        settings["callbacks"] = [*(self.trainer.get("callbacks") or []), *options.get("callbacks", [])]
        settings["callbacks"].append(WorkProgress(self._advance, self._macs))
        try:
            return L.Trainer(**settings)
        except ValueError as error:
            raise PTQ4VMError(f"Expected trainer settings that Lightning takes, got: {error}") from error

    def fit(
        self,
        folder: Path,
        stage: str,
        module: type[Any],
        options: dict[str, Any],
        batch: int,
        steps: int | None,
        epochs: int,
    ) -> None:
        """Run one phase, or go on with it, unless its checkpoint is there."""
        output = folder / f"{stage}.safetensors"
        self._say(f"{folder.name.upper()}: {STAGES[stage]}" + (" (done before)" if output.is_file() else ""))
        if output.is_file():
            self._advance(self._work[stage])
            return
        L.seed_everything(self.data.seed, verbose=False)
        self.data.batch_size, self.data.steps_per_epoch = batch, steps
        keep = ModelCheckpoint(folder / stage, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
        trainer = self._make_trainer(
            folder / stage, callbacks=[keep], max_epochs=epochs, limit_val_batches=0, num_sanity_val_steps=0
        )
        last = folder / stage / "last.ckpt"
        resume = str(last) if last.is_file() else None
        trainer.fit(module(**options, output=output), datamodule=self.data, ckpt_path=resume, weights_only=True)
        last.unlink(missing_ok=True)

    def _loggers(self) -> list[Any]:
        """The loggers that the user asked for, which get the table's rows; the default CSV logs only fits."""
        loggers = self.trainer.get("logger") or []
        return [] if loggers is True else loggers if isinstance(loggers, list) else [loggers]

    def score(self, bits: str, stage: str, network: MattingModel, plan: QConfig | None = None) -> ResultRow:
        """A row of the table; scored once."""
        folder = self.folder if stage == "float" else self.folder / bits.lower()
        path = folder / f"{stage}.json"
        name = STAGES.get(stage, stage)
        if not path.is_file():
            self._say(f"{bits}: scoring {name}")
            trainer = self._make_trainer(folder / "evaluation", logger=False)
            metrics = trainer.test(MattingModule(network, self.scoring), datamodule=self.data, verbose=False)[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_text(path, json.dumps({key.removeprefix("test/"): value for key, value in metrics.items()}))
        else:
            self._advance(self._work["score"])
        values = _read_json(path)
        for logger in self._loggers():
            logger.log_metrics({f"{folder.name}/{stage}/{key}": value for key, value in values.items()})
        cost = network_cost(network, *self._size)
        label, placement = ("W32A32", "") if plan is None else (bits_label(plan, cost), plan.placement)
        return ResultRow(name, label, placement, values, cost.size_mb, cost.bit_operations * 1e9)

    def report(self, teacher: MattingModel, names: list[str], rows: list[ResultRow]) -> QuantizeResult:
        """Table, metrics.json and pictures."""
        self._say("writing the table and the pictures")
        checkpoints = {name: self.folder / name.lower() / FINAL_CHECKPOINT for name in names}
        meta = {"scoring": self.scoring, "checkpoints": {bits: str(path) for bits, path in checkpoints.items()}}
        write_metrics(self.folder / "metrics.json", rows, meta)
        table = self.folder / "table.md"
        table.write_text(markdown_table(rows))
        quantized = load_quantized(checkpoints[names[-1]])[0]
        draw_strips(collect_strips(self.data, teacher, quantized), self.folder / "pictures.png")
        return QuantizeResult(
            self.folder, rows, table, self.folder / "pictures.png", self.folder / "metrics.json", checkpoints
        )


@torch.inference_mode()
def collect_strips(
    data: VideoMattingDataModule, teacher: MattingModel, network: MattingModel, count: int = 4
) -> list[Strip]:
    """One frame, after the state has settled, of some evaluation clips, through both networks."""
    chunks = data.evaluation_set
    strips: list[Strip] = []
    for index in [i for i, chunk in enumerate(chunks.chunks) if chunk.start == 0][:count]:
        clip = chunks[index]
        src = clip.src[:_SETTLED]
        float_pha, quantized_pha = teacher.unroll(src[None]).pha, network.unroll(src[None]).pha
        last = len(src) - 1
        truth = None if clip.pha is None else clip.pha[last]
        title = f"{clip.name}, frame {last}"
        strips.append(Strip(title, src[last], truth, float_pha[0, last], quantized_pha[0, last]))
    return strips


def _data_settings(data: VideoMattingDataModule) -> dict[str, Any]:
    """What of the data decides the result; not where caches lie or how many processes read."""
    names = (
        "source", "foregrounds", "backgrounds", "composites", "videos", "labels", "evaluation", "num_sequences",
        "seq_length", "size", "augment", "seed", "eval_clips", "eval_frames",
    )  # fmt: skip
    return {"root": str(data.root.resolve()), **{name: getattr(data, name) for name in names}}


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise PTQ4VMError(f"Expected JSON in {path}, got something else ({error}). Remove the file.") from error


def _plain(value: Any) -> Any:
    """JSON for what json itself doesn't know."""
    return value.to_dict() if isinstance(value, QConfig) else str(value)
