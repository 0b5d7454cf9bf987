"""Pieces that several commands share."""

import re

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from ptq4vm.deploy import Runtime, open_network
from ptq4vm.deploy.runner import LONG_SIDE, Ratio
from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.terminal import plain_console, text_column
from ptq4vm.video import require_size

console = plain_console()


TRUST = (
    "A configuration is code: its class_path can name any class that is installed, whose module is imported, and its "
    "settings say where files are written. Run only those you trust, as you would a script."
)
"""For the help of commands that take one."""


COLUMNS = (
    text_column("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def parse_settings(parser: ArgumentParser, args: list[str]) -> Namespace:
    """Parse, and instantiate classes; raises PTQ4VMError on settings of another kind."""
    try:
        return parser.instantiate_classes(parser.parse_args(args))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error.__cause__, PTQ4VMError):
            raise
        # jsonargparse lets some nulls pass, `data:` with nothing below it for one, and stumbles over them later; so it
        # does over numbers of hundreds of digits and very deep nesting.
        raise PTQ4VMError(
            f"Expected settings of their own kinds, got: {error}. Look for empty ones."
        ) from error


def parse_size(text: str) -> tuple[int, int]:
    """``288x512`` -> (288, 512). Raises PTQ4VMError on anything else."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if match is None:
        raise PTQ4VMError(f"Expected a size as HEIGHTxWIDTH, e.g. 288x512, got {text!r}.")
    size = int(match[1]), int(match[2])
    require_size(*size)
    return size


def pick_device(name: str | None) -> torch.device:
    """The device of this name, or by default what there is."""
    default = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        device = torch.empty(0, device=name or default).device
    except RuntimeError as error:
        raise PTQ4VMError(f"Expected a device that is there, got {name!r}: {error}") from error
    if device.type == "meta":
        raise PTQ4VMError(
            "Expected a device that computes, got meta. Choose cpu, cuda or leave it out."
        )
    return device


def device_line(accelerator: str | None = None) -> str:
    """Return a line that names the device in use.

    Args:
        accelerator: Lightning's name; None and ``auto`` take what there is.
    """
    device = torch.device("cpu") if accelerator == "cpu" else pick_device(None)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return f"device      {name}"


def add_ratio_option(parser: ArgumentParser, use: str) -> None:
    """Add ``--downsample_ratio``, by default auto; ``use`` says what it applies to."""
    parser.add_argument(
        "--downsample_ratio", type=Ratio, default="auto",
        help=f"the network's body works at this fraction of the frame's size, in (0, 1]; auto: its longer side becomes "
        f"{LONG_SIDE} pixels, as RVM's authors advise. {use}",
    )  # fmt: skip


def add_runtime_options(parser: ArgumentParser) -> None:
    """Add ``--runtime`` and ``--threads``."""
    parser.add_argument(
        "--runtime",
        type=Runtime | None,
        default=None,
        help="of an exported graph; by default the one it is for",
    )
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="of an exported graph; by default all cores",
    )


def open_model(config: Namespace) -> MattingModel:
    """Open the network that ``--model`` names."""
    return open_network(config.model, config.network, config.runtime, config.threads)
