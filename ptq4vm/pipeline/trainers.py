"""Lightning trainers of a run, made with the user's options and loggers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric import Fabric
from lightning.pytorch.loggers import CSVLogger

from ptq4vm import distributed
from ptq4vm.errors import PTQ4VMError


class Trainers:
    """Trainers with common options.

    Args:
        options: options of Lightning's Trainer; those that are None are left to their defaults.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def launch(self) -> None:
        """Start the other ranks if the options ask for several; each runs the whole command."""
        names = ("accelerator", "devices", "num_nodes", "strategy")
        settings = {
            "devices": 1,
            **{key: self.options[key] for key in names if self.options.get(key) is not None},
        }
        with trainer_settings((ValueError, TypeError)):
            Fabric(**settings).launch()
        distributed.introduce()

    def loggers(self) -> list[Any]:
        """Return the user's loggers, which also receive the table's rows; the CSV has only fits."""
        loggers = self.options.get("logger") or []
        return [] if loggers is True else loggers if isinstance(loggers, list) else [loggers]

    def callbacks(self) -> list[Any]:
        """Return the user's callbacks."""
        return [*(self.options.get("callbacks") or [])]

    def make(self, folder: Path, callbacks: Iterable[L.Callback], **options: Any) -> L.Trainer:
        """Return a trainer.

        Args:
            folder: folder of its checkpoints and losses.
            callbacks: callbacks after those of the user.
            options: options of Lightning's Trainer, which override those of the user.
        """
        settings = {
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            **{key: value for key, value in self.options.items() if value is not None},
            # The report plots the losses of the CSV, which has one version per start of the run.
            "logger": [*self.loggers(), CSVLogger(folder.parent, name=folder.name)],
            **options,
            "default_root_dir": folder,
            "callbacks": [*self.callbacks(), *callbacks],
        }
        with trainer_settings():
            return L.Trainer(**settings)


@contextmanager
def trainer_settings(
    kinds: tuple[type[Exception], ...] = (ValueError, TypeError, RuntimeError),
) -> Iterator[None]:
    """Re-raise Lightning's configuration errors as `PTQ4VMError`.

    Args:
        kinds: exceptions to re-raise; by default those of a Trainer that is being made. A launch of
            processes also raises RuntimeError for other reasons than its settings.
    """
    try:
        yield
    except kinds as error:
        raise PTQ4VMError(
            f"Expected trainer settings that Lightning takes, got: {error}"
        ) from error
