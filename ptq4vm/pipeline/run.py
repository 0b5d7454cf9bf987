"""Run folder: resumable steps and progress."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

from ptq4vm import distributed
from ptq4vm.atomic_io import write_json
from ptq4vm.calibration import make_teacher
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError, differences
from ptq4vm.flow import create_flow
from ptq4vm.graph import bits_label, load_quantized, network_cost, read_header, trace
from ptq4vm.graph.trace import example_frame
from ptq4vm.models import weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.ownership import owned
from ptq4vm.phases import MattingModule
from ptq4vm.phases.base import FloatMattes, Scoring
from ptq4vm.phases.callbacks import PromptStop, ResultLog, WorkProgress
from ptq4vm.pipeline.record import now, record_start
from ptq4vm.pipeline.rows import Method
from ptq4vm.quantizers import QConfig
from ptq4vm.reading import read_json, typed
from ptq4vm.reporting import ResultRow, SteadyProgress, measured
from ptq4vm.reporting.runs import FRAMES, LOG, RECORD, SETTINGS
from ptq4vm.reporting.tables import table_cells
from ptq4vm.terminal import plain_console, text_column

_PLACES = ("root", "foregrounds", "backgrounds", "composites", "videos", "evaluation")
_KINDS = {
    "weights": "weights",
    "calibration": "calibration clips",
    "evaluation": "evaluation clips",
    "held_out": "held-out clips",
    "format": "this version's way of reading clips",
}
"""Descriptions of the parts of ``content`` in a run folder's settings."""


class Run:
    """Steps of a run, whose finished results are kept in its folder and are not repeated.

    Args:
        folder: run folder.
        data: calibration and evaluation clips.
        trainer: options of Lightning's Trainer.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits.
    """

    def __init__(
        self, folder: Path, data: VideoMattingDataModule, trainer: dict[str, Any], scoring: Scoring
    ) -> None:
        self.folder, self.data, self.trainer, self.scoring = folder, data, trainer, scoring
        self._bar: Progress | None = None
        self._macs: dict[str, int] = {}
        self._size = (0, 0)
        self._work: dict[str, float] = {}
        self._scoring_work = 0.0

    def claim(self, settings: dict[str, Any], teacher: MattingModel) -> None:
        """Write the settings to a new folder, or check that an existing folder has the same.

        Weights and clips are compared by content. Their paths may change and are then updated.

        Raises:
            PTQ4VMError: The folder has other settings, weights or clips.
        """
        path = self.folder / SETTINGS
        content = {"weights": weights_checksum(teacher), **self.data.content()}
        settings = {**settings, "data": _data_settings(self.data), "content": content}
        settings = json.loads(json.dumps(settings, default=_plain))
        before = read_json(path) if path.is_file() else None
        if before is not None:
            self._require_same(before, settings)
        if before != settings:
            _write_json(path, settings)

    def _require_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        remedy = "Choose another --output, or remove the folder."
        if changed := differences(_without_places(before), _without_places(now)):
            raise PTQ4VMError(
                f"Expected {self.folder} to be new or a run with these settings, got another "
                f"configuration ({changed}). {remedy}"
            )
        if not isinstance(held := before.get("content"), dict):
            raise PTQ4VMError(
                f"Expected {self.folder} to say which weights and clips it was begun with, got a "
                f"run of an earlier version: whether these are the same can't be known. {remedy}"
            )
        told = ({kind: one.get(k) for k, kind in _KINDS.items()} for one in (held, now["content"]))
        if changed := differences(*told):
            raise PTQ4VMError(
                f"Expected the weights and clips that {self.folder} was begun with, wherever they "
                f"lie, got others ({changed}). Put the former ones back, choose another --output, "
                "or remove the folder."
            )

    def begin(self, teacher: MattingModel) -> None:
        """Record seed, weights, data and trainer of this start, and pass them to the loggers.

        Unlike the settings, these may differ when the run is resumed.
        """
        facts = {
            "seed": self.data.seed,
            "weights_checksum": weights_checksum(teacher),
            "data": _data_settings(self.data),
            "trainer": {key: value for key, value in self.trainer.items() if value is not None},
        }
        facts = json.loads(json.dumps(facts, default=_plain))
        record_start(self.folder, facts)
        for logger in self._loggers():
            logger.log_hyperparams(
                {**read_json(self.folder / SETTINGS), **read_json(self.folder / RECORD)}
            )

    def end(self, table: list[ResultRow], pictures: dict[str, Path], models: list[Path]) -> None:
        """Pass the results to the loggers and to the :class:`ResultLog` callbacks."""
        for logger in self._loggers():
            logger.log_metrics(
                {f"result/{name}": value for name, value in table[-1].metrics.items()}
            )
        headings, body = table_cells(table)
        for callback in self.trainer.get("callbacks") or []:
            if isinstance(callback, ResultLog):
                callback.on_run_end(self._loggers(), [headings, *body], pictures, models)

    def launch(self) -> None:
        """Start the other ranks if the trainer has several; each runs the whole command."""
        names = ("accelerator", "devices", "num_nodes", "strategy")
        settings = {
            "devices": 1,
            **{key: self.trainer[key] for key in names if self.trainer.get(key) is not None},
        }
        with _trainer_settings():
            Fabric(**settings).launch()
        distributed.introduce()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder exclusively inside the context.

        Raises:
            PTQ4VMError: Another run owns the folder.
        """
        with ExitStack() as stack:
            distributed.once(lambda: stack.enter_context(owned(self.folder, folder=True)))
            yield

    # ---- progress --------------------------------------------------------------------------------

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a progress bar of the run on rank 0, with the current step and remaining time."""
        columns = (
            SpinnerColumn(),
            text_column("{task.description}"),
            BarColumn(),
            text_column("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            text_column("left:"),
            TimeRemainingColumn(),
        )
        if distributed.rank() > 0:
            yield
            return
        with SteadyProgress(
            *columns, console=plain_console(), speed_estimate_period=120.0
        ) as self._bar:
            self._task = self._bar.add_task("starting", total=None)
            yield

    def say(self, text: str) -> None:
        """Show the current step and append it to the run's log; rank 0 only."""
        if distributed.rank() > 0:
            return
        with (self.folder / LOG).open("a") as log:
            log.write(f"{now()} {text}\n")
        if self._bar is not None:
            self._bar.update(self._task, description=text)
            if not self._bar.console.is_terminal:
                self._bar.console.print(text)

    def _advance(self, work: float) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, work)

    def _attached(self, done: int, total: int, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=what)

    def draw(self) -> None:
        """Set up the datamodule, which draws the calibration sequences."""
        self.data.progress = self._attached
        try:
            self.data.setup("fit")
        finally:
            self.data.progress = None

    def prepare(self, teacher: MattingModel, work: Mapping[str, float]) -> None:
        """Create the calibration set and the float references, and compute the work of each row.

        Args:
            teacher: float network.
            work: cost of each row per frame of the calibration set, in forward passes of a frame.
        """
        self._macs = {layer.name: layer.macs for layer in trace(teacher, example_frame(teacher))}
        self.say("calibration set: frames, float mattes, optical flow")
        with self.on_device(teacher):
            sees, flow = make_teacher(teacher), create_flow("dis")
            self.data.attach(sees, flow, self._attached)
            self.data.add_references(sees, flow, self._attached)
        height, width = self.data.evaluation_set[0].src.shape[-2:]
        self._size = (height, width)
        frames = self.data.num_sequences * self.data.seq_length
        self._work = {name: factor * frames for name, factor in work.items()}
        self._scoring_work = float(self.data.evaluation_set.num_frames + self.data.held_out_frames)

    def expect(self, plans: int) -> None:
        """Set the total work of the progress bar for this number of quantization plans."""
        if self._bar is not None:
            rows = sum(self._work.values()) + len(self._work) * self._scoring_work
            self._bar.reset(self._task, total=self._scoring_work + plans * rows)

    @contextmanager
    def on_device(self, network: MattingModel) -> Iterator[None]:
        """Move the network to Lightning's device inside the context, then to the CPU."""
        network.to(self._make_trainer(self.folder, logger=False).strategy.root_device)
        try:
            yield
        finally:
            network.cpu()

    @contextmanager
    def second_bar(self) -> Iterator[Callable[[int, int, str], None] | None]:
        """Show a second bar for one long step; yield its update function, or None without a bar."""
        bar = self._bar
        if bar is None:
            yield None
            return
        task = bar.add_task("starting", total=None)
        try:
            yield lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what
            )
        finally:
            bar.remove_task(task)

    # ---- steps -----------------------------------------------------------------------------------

    def _make_trainer(self, folder: Path, **options: Any) -> L.Trainer:
        settings = {
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            **{key: value for key, value in self.trainer.items() if value is not None},
            # The report plots the losses of the CSV, which has one version per start of the run.
            "logger": [*self._loggers(), CSVLogger(folder.parent, name=folder.name)],
            **options,
            "default_root_dir": folder,
        }
        settings["callbacks"] = [
            *(self.trainer.get("callbacks") or []),
            *options.get("callbacks", []),
        ]
        settings["callbacks"] += [WorkProgress(self._advance, self._macs), PromptStop()]
        with _trainer_settings():
            return L.Trainer(**settings)

    def fit(
        self,
        folder: Path,
        name: str,
        row: Method,
        module: type[Any],
        options: dict[str, Any],
        batch: int,
        steps: int | None,
        epochs: int,
    ) -> None:
        """Run or resume one phase, unless its output checkpoint exists.

        Args:
            folder: folder of the bits.
            name: name of the row and of its files.
            row: method of the row.
            module: class of the phase.
            options: arguments of ``module``.
            batch: sequences per step.
            steps: steps per epoch; None for a pass over the calibration set.
            epochs: maximum number of epochs.
        """
        output = folder / f"{name}.safetensors"
        self.say(
            f"{folder.name.upper()}: {row.title}" + (" (done before)" if output.is_file() else "")
        )
        if output.is_file():
            self._advance(self._work[name])
            return
        L.seed_everything(self.data.seed, verbose=False)
        self.data.batch_size, self.data.steps_per_epoch = batch, steps
        # save_last with save_top_k=0 writes nothing since Lightning 2.6.
        keep = ModelCheckpoint(
            folder / name,
            filename="last",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        trainer = self._make_trainer(
            folder / name,
            callbacks=[keep],
            max_epochs=epochs,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        last = folder / name / "last.ckpt"
        resume = str(last) if last.is_file() else None
        with measured() as usage:
            phase = module(**options, output=output)
            if (restored := phase.check(trainer, self.data, "fit", resume)) is not None:
                self.say(f"{folder.name.upper()}: {row.title} {restored}")
            trainer.fit(phase, datamodule=self.data, ckpt_path=resume, weights_only=True)
        if distributed.rank() > 0:
            return
        if resume is None:  # a resumed fit measures only its remainder
            _write_json(folder / f"{name}.usage.json", usage)
        last.unlink(missing_ok=True)

    def load(self, path: Path, start: Path | None, plan: QConfig) -> tuple[MattingModel, QConfig]:
        """Load the quantized network of a row and its quantization settings.

        Args:
            path: checkpoint of the row.
            start: checkpoint from which the row starts, if any.
            plan: expected settings of a row without ``start``.

        Raises:
            PTQ4VMError: One of the two files was not made by this run.
        """
        network, qconfig = load_quantized(path)
        remedy = f"Put the file back, or remove {path} and what was made of it."
        changed = "" if start is not None else differences(qconfig.to_dict(), plan.to_dict())
        if changed:
            raise PTQ4VMError(
                f"Expected {path} to have this run's settings, got others ({changed}). {remedy}"
            )
        if start is not None:
            made = read_header(path)["made"]
            if made.get("start") != weights_checksum(load_quantized(start)[0]):
                raise PTQ4VMError(
                    f"Expected {path} to start from {start} as it is now, got one that started "
                    f"from another. {remedy}"
                )
        return network, qconfig

    def _loggers(self) -> list[Any]:
        """Return the user's loggers, which also receive the table's rows; the CSV has only fits."""
        loggers = self.trainer.get("logger") or []
        return [] if loggers is True else loggers if isinstance(loggers, list) else [loggers]

    def score(
        self, path: Path, title: str, network: MattingModel, plan: QConfig | None = None
    ) -> ResultRow:
        """Return a row of the table, scored once and cached at ``path``.

        Args:
            path: JSON file of the scores.
            title: title of the row.
            network: network to score.
            plan: quantization settings; None for the float network.

        Raises:
            PTQ4VMError: The cached scores belong to another network.
        """
        checksum = weights_checksum(network)
        if not path.is_file():
            self.say(f"{path.parent.name.upper()}: scoring {title}")
            module = (FloatMattes if plan is None else MattingModule)(network, self.scoring)
            values, per_frame = self._test(path.parent, module)
            if (people := self.data.held_out_dataloader()) is not None:
                found, _ = self._test(path.parent, module, people)
                values |= {
                    f"held_out_{key.removesuffix('_to_float')}": value
                    for key, value in found.items()
                }
            distributed.once(_write_json, path.with_suffix(FRAMES), per_frame)
            distributed.once(_write_json, path, {**values, "network": checksum})
        else:
            self._advance(self._scoring_work)
        content = read_json(path)
        if content.pop("network", None) != checksum:
            raise PTQ4VMError(
                f"Expected in {path} the scores of the network that this run has now, got those of "
                f"another: a file was replaced. Put it back, or remove {path} to score it again."
            )
        values = typed(
            content, dict[str, float], "metrics by name", path, "Remove it: it is measured again."
        )
        for logger in self._loggers():
            logger.log_metrics(
                {f"{path.parent.name}/{path.stem}/{key}": value for key, value in values.items()}
            )
        cost = network_cost(network, *self._size)
        label, placement = (
            ("W32A32", "") if plan is None else (bits_label(plan, cost), plan.placement)
        )
        usage = path.with_suffix(".usage.json")
        extra = {
            key: values.pop(key)
            for key in list(values)
            if key.endswith("_to_float") or key.startswith("held_out")
        }
        extra |= (
            read_json(usage, dict[str, float], "minutes and memory", "Remove it.")
            if usage.is_file()
            else {}
        )
        return ResultRow(
            title, label, placement, values, cost.size_mb, cost.bit_operations * 1e9, extra
        )

    def _test(
        self, folder: Path, module: MattingModule, clips: Any = None
    ) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
        """Return the metrics by name, and per-frame metrics by clip and name."""
        trainer = self._make_trainer(folder / "evaluation", logger=False)
        where = {"datamodule": self.data} if clips is None else {"dataloaders": clips}
        (metrics,) = trainer.test(module, verbose=False, **where)
        per_frame = {
            clip: curves
            for part in distributed.gather(module.per_frame)
            for clip, curves in part.items()
        }
        return {key.removeprefix("test/"): value for key, value in metrics.items()}, per_frame


@contextmanager
def _trainer_settings() -> Iterator[None]:
    """Re-raise Lightning's configuration errors as `PTQ4VMError`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise PTQ4VMError(
            f"Expected trainer settings that Lightning takes, got: {error}"
        ) from error


def _data_settings(data: VideoMattingDataModule) -> dict[str, Any]:
    """Return the data settings that affect the result, without cache paths and worker counts."""
    names = (
        "sources",
        "foregrounds",
        "backgrounds",
        "photographs",
        "composites",
        "videos",
        "held_out",
        "labels",
        "evaluation",
        "score_held_out",
        "num_sequences",
        "seq_length",
        "size",
        "enlarge",
        "augment",
        "seed",
        "eval_clips",
        "eval_frames",
    )
    return {"root": str(data.root.resolve()), **{name: getattr(data, name) for name in names}}


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without paths, whose content is compared instead."""
    data = settings.get("data")
    if isinstance(data, dict):
        data = {name: value for name, value in data.items() if name not in _PLACES}
    others = {name: value for name, value in settings.items() if name not in ("weights", "content")}
    return {**others, "data": data}


def _write_json(path: Path, value: Any) -> None:
    write_json(path, value, default=_plain, sort_keys=True)


def _plain(value: Any) -> Any:
    """Convert values that json can't serialize."""
    return dataclasses.asdict(value) if isinstance(value, QConfig | Method) else str(value)
