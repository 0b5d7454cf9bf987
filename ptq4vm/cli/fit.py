"""Lightning's subcommands: fit, validate, test and predict."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ptq4vm.cli.common import TRUST, console
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.ownership import owned
from ptq4vm.phases import PTQPhase
from ptq4vm.phases.callbacks import LoggedConfig, PromptStop
from ptq4vm.phases.checkpoints import WholeCheckpoints
from ptq4vm.pipeline.trainers import trainer_settings
from ptq4vm.reporting import WorkBar


class _CLI(LightningCLI):
    owns: ExitStack

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return Lightning's parser with a warning in its help that a configuration is code."""
        return super().init_parser(epilog=TRUST, **kwargs)

    def __init__(self, *args: Any, bar: WorkBar, **kwargs: Any) -> None:
        self.bar = bar
        super().__init__(*args, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Check early that the file is a checkpoint; no settings are read from it."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None and Path(path).is_file():
            WholeCheckpoints().load_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Create Lightning's Trainer with the phase's number of epochs, unless one is given.

        Lightning's configuration errors are raised as `PTQ4VMError`.
        """
        given = self._get(self.config_init, "trainer", default={}).get("max_epochs")
        if self.subcommand == "fit" and given is None and self.model.epochs is not None:
            kwargs["max_epochs"] = self.model.epochs
        with trainer_settings():
            trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(PromptStop())  # type: ignore[attr-defined]
        return trainer

    def instantiate_classes(self) -> None:
        """Instantiate the classes and show the datamodule's progress on the bar."""
        super().instantiate_classes()
        if self.trainer.is_global_zero:
            self.datamodule.progress = self.bar

    def before_fit(self) -> None:
        """Check model, data and checkpoint before loggers write; print the resume point."""
        options, stage = self.config_init[self.subcommand], TrainerFn(self.subcommand)
        try:
            # Resolves "last" and "best" to a file.
            path = self.trainer._checkpoint_connector._select_ckpt_path(
                stage, options.get("ckpt_path"), model_provided=True, model_connected=False
            )
        except ValueError as error:
            raise PTQ4VMError(f"Expected a checkpoint that is there, got: {error}") from error
        options["ckpt_path"] = path
        said = self.model.check(self.trainer, self.datamodule, self.subcommand, path)
        if (
            self.subcommand == "fit"
            and self.model.output is not None
            and self.trainer.is_global_zero
        ):
            # Two fits with the same output would overwrite each other.
            self.owns.enter_context(owned(Path(self.model.output)))
        if said is not None:
            rank_zero_only(console.print)(said, highlight=False, markup=False, soft_wrap=True)

    before_validate = before_test = before_fit

    def before_predict(self) -> None:
        """Disable the collection of predictions, which would exhaust memory.

        To write mattes to files, add :class:`ptq4vm.phases.callbacks.AlphaWriter`.
        """
        self.config_init["predict"]["return_predictions"] = False
        self.before_fit()


def run_lightning(args: list[str]) -> None:
    """Run Lightning's CLI with these arguments."""
    with ExitStack() as _CLI.owns, WorkBar(console=console) as bar:
        _CLI(
            PTQPhase,
            VideoMattingDataModule,
            subclass_mode_model=True,
            seed_everything_default=0,
            trainer_defaults={"num_sanity_val_steps": 0, "devices": 1},
            save_config_callback=LoggedConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "yaml"},
            # Lightning warns if args are given in addition to sys.argv.
            args=None if args == sys.argv[1:] else args,
            bar=bar,
        )
