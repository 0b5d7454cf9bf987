"""Options and helpers shared by several commands."""

import re
from dataclasses import fields
from typing import TypeVar

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from ptq4vm.deploy import Ratio, Runtime, open_network
from ptq4vm.errors import PTQ4VMError
from ptq4vm.terminal import plain_console, text_column
from ptq4vm.types import WORKING_SIDE, FrameModel
from ptq4vm.video import require_size

console = plain_console()
Options = TypeVar("Options")


TRUST = (
    "A configuration is code: its class_path can name any installed class, whose module is "
    "imported, and its settings set the paths of written files. Run only configurations you "
    "trust, as you would a script."
)
"""Warning in the help of commands that take a configuration."""


COLUMNS = (
    text_column("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def parse_settings(parser: ArgumentParser, args: list[str]) -> Namespace:
    """Parse arguments and instantiate the classes they configure.

    Raises:
        PTQ4VMError: A setting has the wrong type.
    """
    try:
        config = parser.parse_args(args)
        _require_values(parser, config)
        return parser.instantiate_classes(config)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error.__cause__, PTQ4VMError):
            raise
        # jsonargparse accepts some nulls, e.g. an empty `data:`, and fails on them later; likewise
        # numbers of hundreds of digits and very deep nesting.
        raise PTQ4VMError(
            f"Expected settings of their own kinds, got: {error}. Look for empty ones."
        ) from error


def built(kind: type[Options], config: Namespace) -> Options:
    """Return the dataclass whose fields were added to the parser without a group."""
    return kind(**{one.name: config[one.name] for one in fields(kind)})  # type: ignore[arg-type]


def _require_values(parser: ArgumentParser, config: Namespace) -> None:
    """Check that nothing is null that has a value by default, and that groups are groups."""
    defaults = parser.get_defaults()
    for key in {name.split(".")[0] for name, _ in defaults.items()}:
        if isinstance(defaults[key], Namespace) and not isinstance(config.get(key), Namespace):
            raise PTQ4VMError(
                f"Expected settings below {key}, got {config.get(key)!r}. Name some, or leave it "
                "out."
            )
    for key, default in defaults.items():
        # A source of another class has other keys.
        given = key in config and not key.startswith("trainer.")
        if default is not None and given and config[key] is None:
            raise PTQ4VMError(f"Expected a value for {key}, got null. Leave it out.")


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``288x512`` as (height, width) = (288, 512).

    Raises:
        PTQ4VMError: The text has another form, or the size is out of range.
    """
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
    if match is None:
        raise PTQ4VMError(f"Expected a size as HEIGHTxWIDTH, e.g. 288x512, got {text!r}.")
    size = int(match[1]), int(match[2])
    require_size(*size)
    return size


def pick_device(name: str | None) -> torch.device:
    """Return the device of this name; by default the available accelerator, or the CPU.

    Raises:
        PTQ4VMError: The device is not available.
    """
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


def print_device(device: torch.device) -> None:
    """Print the name of the device in use."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    console.print(f"device      {name}", highlight=False)


def trainer_device(accelerator: object) -> torch.device:
    """Return the device that Lightning chooses for an accelerator, by default the available one."""
    return torch.device("cpu") if accelerator == "cpu" else pick_device(None)


def add_network_option(parser: ArgumentParser) -> None:
    """Add ``--network``, the architecture of a weights file."""
    parser.add_argument(
        "--network",
        type=str,
        default="rvm_mobilenetv3",
        help="architecture of a file of float weights",
    )


def add_size_option(parser: ArgumentParser) -> None:
    """Add ``--size``, required, for :func:`parse_size`."""
    parser.add_argument(
        "--size",
        type=str,
        required=True,
        help="height x width of the frames in pixels, e.g. 288x512",
    )


def add_ratio_option(parser: ArgumentParser, use: str) -> None:
    """Add ``--downsample_ratio``, by default auto, with a note ``use`` in its help."""
    parser.add_argument(
        "--downsample_ratio",
        type=Ratio,
        default="auto",
        help="fraction of the frame's size at which the network's body works, in (0, 1]; auto: its "
        f"longer side becomes {WORKING_SIDE} pixels, as RVM's authors advise. {use}",
    )


def add_runtime_options(parser: ArgumentParser) -> None:
    """Add ``--runtime`` and ``--threads``."""
    parser.add_argument(
        "--runtime",
        type=Runtime | None,
        default=None,
        help="runtime of an exported graph; by default its target",
    )
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="threads of an exported graph; by default all cores",
    )


def open_model(config: Namespace) -> FrameModel:
    """Open the network given by ``--model``."""
    return open_network(config.model, config.network, config.runtime, config.threads)
