"""Steps of a run, resumable from its folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

from ptq4vm import distributed
from ptq4vm.calibration import make_teacher
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.flow import create_flow
from ptq4vm.graph import bits_label, load_quantized, network_cost, trace
from ptq4vm.graph.trace import example_frame
from ptq4vm.metrics import choose_protocol
from ptq4vm.models import weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.phases import MattingModule, PTQPhase
from ptq4vm.phases.callbacks import PromptStop, ResultLog, WorkProgress
from ptq4vm.phases.scoring import FloatMattes, Scoring
from ptq4vm.pipeline.folder import ClaimedFolder, require_row, write_sorted_json
from ptq4vm.pipeline.progress import RunProgress, Work
from ptq4vm.pipeline.scores import Scores, read_scores, write_scores
from ptq4vm.pipeline.trainers import Trainers
from ptq4vm.quantizers import QConfig
from ptq4vm.reading import read_json
from ptq4vm.reporting import Cost, ResultRow, measured
from ptq4vm.reporting.results import fidelity_of, truth_metrics
from ptq4vm.reporting.runs import FRAMES
from ptq4vm.reporting.tables import table_cells


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
        self.folder, self.data, self.scoring = folder, data, scoring
        self._folder = ClaimedFolder(folder, data)
        self._progress = RunProgress(folder)
        self._trainers = Trainers(trainer)
        self._macs: dict[str, int] = {}
        self._size = (0, 0)
        self._work = Work()

    # ---- folder, ranks and progress --------------------------------------------------------------

    def launch(self) -> None:
        """Start the other ranks if the trainer has several; each runs the whole command."""
        self._trainers.launch()

    def owned(self) -> AbstractContextManager[None]:
        """Own the folder exclusively inside the context; see :meth:`ClaimedFolder.owned`."""
        return self._folder.owned()

    def claim(self, settings: dict[str, Any], teacher: MattingModel) -> None:
        """Write or compare the folder's settings; see :meth:`ClaimedFolder.claim`."""
        self._folder.claim(settings, teacher)

    def begin(self, teacher: MattingModel) -> None:
        """Record seed, weights, data and trainer of this start, and pass them to the loggers.

        Unlike the settings, these may differ when the run is resumed.
        """
        self._folder.record(teacher, self._trainers.options)
        for logger in self._trainers.loggers():
            logger.log_hyperparams(self._folder.facts())

    def end(self, table: list[ResultRow], pictures: dict[str, Path], models: list[Path]) -> None:
        """Pass the results to the loggers and to the :class:`ResultLog` callbacks."""
        loggers = self._trainers.loggers()
        for logger in loggers:
            logger.log_metrics({f"result/{name}": one for name, one in table[-1].metrics.items()})
        headings, body = table_cells(table)
        for callback in self._trainers.callbacks():
            if isinstance(callback, ResultLog):
                callback.on_run_end(loggers, [headings, *body], pictures, models)

    def progress(self) -> AbstractContextManager[None]:
        """Show a progress bar of the run on rank 0, with the current step and remaining time."""
        return self._progress.show()

    def second_bar(self) -> AbstractContextManager[Callable[[int, int, str], None] | None]:
        """Show a second bar for one long step; yield its update function, or None without a bar."""
        return self._progress.second_bar()

    def say(self, text: str) -> None:
        """Show the current step and append it to the run's log; rank 0 only."""
        self._progress.say(text)

    def expect(self, plans: int) -> None:
        """Set the total work of the progress bar for this number of quantization plans."""
        self._progress.restart(self._work.total(plans))

    # ---- steps -----------------------------------------------------------------------------------

    def draw(self) -> None:
        """Set up the datamodule, which draws the calibration sequences."""
        self.data.setup("fit", self._progress.update)

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
            self.data.attach(sees, flow, self._progress.update)
            self.data.add_references(sees, flow, self._progress.update)
        height, width = self.data.evaluation_set[0].src.shape[-2:]
        self._size = (height, width)
        frames = self.data.num_sequences * self.data.seq_length
        self._work = Work(
            {name: factor * frames for name, factor in work.items()},
            float(self.data.evaluation_set.num_frames + self.data.held_out_frames),
        )

    @contextmanager
    def on_device(self, network: MattingModel) -> Iterator[None]:
        """Move the network to Lightning's device inside the context, then back."""
        before = network.runs_on
        network.to(self._make_trainer(self.folder, logger=False).strategy.root_device)
        try:
            yield
        finally:
            network.to(before)

    def _make_trainer(
        self, folder: Path, callbacks: Iterable[L.Callback] = (), **options: Any
    ) -> L.Trainer:
        own = (WorkProgress(self._progress.advance, self._macs), PromptStop())
        return self._trainers.make(folder, [*callbacks, *own], **options)

    def fit(
        self, output: Path, title: str, make: Callable[[], PTQPhase], length: "FitLength"
    ) -> None:
        """Run or resume one phase, unless its output checkpoint exists.

        Args:
            output: checkpoint of the row; its folder, without suffix, is that of the fit.
            title: title of the row.
            make: makes the phase.
            length: length of the fit.
        """
        folder = output.with_suffix("")
        title = f"{output.parent.name.upper()}: {title}"
        self.say(title + (" (done before)" if output.is_file() else ""))
        if output.is_file():
            self._progress.advance(self._work.rows[output.stem])
            return
        L.seed_everything(self.data.seed, verbose=False)
        data = self.data.batches(length.batch_size, length.steps)
        # save_last with save_top_k=0 writes nothing since Lightning 2.6.
        keep = ModelCheckpoint(
            folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        last = folder / "last.ckpt"
        resume = str(last) if last.is_file() else None
        with measured() as usage:
            phase = make()
            trainer = self._make_trainer(
                folder,
                callbacks=[keep],
                max_epochs=phase.epochs or length.epochs,
                limit_val_batches=0,
                num_sanity_val_steps=0,
            )
            if (restored := phase.check(trainer, data, "fit", resume)) is not None:
                self.say(f"{title} {restored}")
            trainer.fit(phase, datamodule=data, ckpt_path=resume, weights_only=True)
        if distributed.rank() > 0:
            return
        if resume is None:  # a resumed fit measures only its remainder
            write_sorted_json(output.with_suffix(".usage.json"), usage)
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
        require_row(path, start, qconfig, plan)
        return network, qconfig

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
        if path.is_file():
            self._progress.advance(self._work.scoring)
        else:
            self.say(f"{path.parent.name.upper()}: scoring {title}")
            kind = FloatMattes if plan is None else MattingModule
            module = kind(network, self.scoring, choose_protocol(*self._size))
            self._measure(path, module, checksum)
        scores = read_scores(path, checksum)
        for logger in self._trainers.loggers():
            logger.log_metrics(
                {f"{path.parent.name}/{path.stem}/{name}": one for name, one in scores.logged()}
            )
        cost = network_cost(network, *self._size)
        label, placement = (
            ("W32A32", "") if plan is None else (bits_label(plan, cost), plan.placement)
        )
        usage = path.with_suffix(".usage.json")
        used = (
            read_json(usage, dict[str, float], "minutes and memory", "Remove it.")
            if usage.is_file()
            else {}
        )
        return ResultRow(
            title,
            label,
            placement,
            scores.metrics,
            Cost(cost.size_mb, cost.bit_operations * 1e9, cost.effective_flops * 1e9, **used),
            scores.fidelity,
            scores.held_out,
            method=path.stem,
        )

    def _measure(self, path: Path, module: MattingModule, checksum: str) -> None:
        """Score a network, and write its metrics and its per-frame metrics."""
        values, per_frame = self._test(path.parent, module)
        held_out = None
        if (people := self.data.held_out_dataloader()) is not None:
            held_out = fidelity_of(self._test(path.parent, module, people)[0])
        scores = Scores(truth_metrics(values), fidelity_of(values), held_out)
        distributed.once(write_sorted_json, path.with_suffix(FRAMES), per_frame)
        distributed.once(write_scores, path, scores, checksum)

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


class FitLength(NamedTuple):
    """Length of a fit."""

    batch_size: int
    """Sequences per step."""
    steps: int | None
    """Steps per epoch; None for a pass over the calibration set."""
    epochs: int | None = None
    """Number of epochs; None if the phase decides it."""
