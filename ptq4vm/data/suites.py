"""Suites of evaluation sets, by the names and sizes that their papers use."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ptq4vm.data.files import list_folders
from ptq4vm.errors import PTQ4VMError

SuiteName = Literal["rvm_lr", "rvm_hr"]


class Suite(NamedTuple):
    """Data sets of a suite."""

    folders: tuple[str, ...]
    """Each holds ``<part>/<clip>/{com,pha,fgr}/<frame>``."""
    downsample_ratio: float | None = None
    """Ratio at which networks work; None for that of the frame size."""


SUITES: dict[SuiteName, Suite] = {
    "rvm_lr": Suite(("videomatte_512x288", "d646_512x512", "aim_512x512", "crgnn_512x288")),
    "rvm_hr": Suite(
        ("videomatte_1920x1080", "d646_2048x2048", "aim_2048x2048", "crgnn_1920x1080"), 0.25
    ),
}
"""Evaluation sets of "Robust High-Resolution Video Matting with Temporal Guidance" (Lin et al.).

VideoMatte240K's test clips over static and moving backgrounds; images of Distinctions-646 and Adobe
Image Matting, moved over backgrounds; and the real clips of "Video Matting via
Consistency-Regularized Graph Neural Networks" (Wang et al., ICCV 2021), of which some frames have
alpha, in a folder ``annotated`` in place of ``pha``.
"""


def find_suite(root: Path, name: SuiteName) -> tuple[dict[str, Path], list[str]]:
    """Find the data sets of a suite in a folder.

    Args:
        root: Folder of the data sets.
        name: Name of the suite.

    Returns:
        The folder of each part, by ``<data set>/<part>``, and the data sets that are not there.

    Raises:
        PTQ4VMError: The suite is unknown, or none of its data sets is there.
    """
    if name not in get_args(SuiteName):
        raise PTQ4VMError(
            f"Expected suite to be one of {', '.join(get_args(SuiteName))}, got {name!r}."
        )
    found: dict[str, Path] = {}
    missing = []
    for folder in SUITES[name].folders:
        parts = list_folders(root / folder) if (root / folder).is_dir() else []
        parts = [part for part in parts if any(part.glob("*/com"))]
        found |= {f"{folder}/{part.name}": part for part in parts}
        if not parts:
            missing.append(folder)
    if not found:
        raise PTQ4VMError(
            f"Expected data sets of the suite {name} in {root}, laid out as <data set>/<part>/"
            f"<clip>/{{com,pha,fgr}}/<frame>, got none of {', '.join(missing)}. Name their folder."
        )
    return found, missing
