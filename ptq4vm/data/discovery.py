"""Recognition of data layouts in a user's folder."""

from dataclasses import dataclass, fields
from pathlib import Path

from ptq4vm.data.files import list_folders
from ptq4vm.data.videos import list_clips
from ptq4vm.errors import PTQ4VMError

HELD_OUT_SHARE = 5
"""One of so many videos is kept out of calibration and scored."""


@dataclass(frozen=True)
class Layout:
    """Folders of a data set by content, relative to its root; None where there is none."""

    videos: str | None = None
    """Video files and folders of frames without alpha."""
    foregrounds: str | None = None
    """``train/{fgr,pha}/<clip>/<frame>``."""
    backgrounds: str | None = None
    """``train/<clip>/<frame>`` without ``fgr`` and ``pha``."""
    evaluation: str | None = None
    """``<set>/<clip>/{com,pha}/<frame>``, possibly one folder deeper."""


def discover(root: Path, **named: str | None) -> Layout:
    """Find videos, foregrounds with alpha, backgrounds and an evaluation tree in a folder.

    Looks at the folder itself and one level below. Nothing is required but videos or foregrounds.

    Args:
        root: The data folder.
        named: Folders by field of :class:`Layout`, relative to ``root``, where there are several
            of one kind; None looks for one.

    Raises:
        PTQ4VMError: There is no such folder, it holds neither videos nor foregrounds, or more than
            one folder has the same layout.
    """
    if not root.is_dir():
        raise PTQ4VMError(f"Expected a folder of clips at {root}, got none. Correct the path.")
    found: dict[str, list[str]] = {one.name: [] for one in fields(Layout)}
    for folder in (root, *list_folders(root)):
        kind = _kind(folder, is_root=folder == root)
        if kind is not None:
            found[kind].append(folder.relative_to(root).as_posix())
    found |= {kind: [name] for kind, name in named.items() if name is not None}
    layout = Layout(**{kind: _only(root, kind, names) for kind, names in found.items()})
    if layout.videos is None and layout.foregrounds is None:
        raise PTQ4VMError(
            f"Expected videos, folders of frames or train/{{fgr,pha}}/<clip>/<frame> in {root} or "
            "one level below, got none. Correct the path."
        )
    return layout


def _kind(folder: Path, *, is_root: bool) -> str | None:
    if (folder / "train" / "fgr").is_dir() and (folder / "train" / "pha").is_dir():
        return "foregrounds"
    if (folder / "train").is_dir():
        return "backgrounds"
    if any(folder.glob("*/*/com")) or (not is_root and any(folder.glob("*/*/*/com"))):
        return "evaluation"
    clips = list_clips(folder)
    # A subfolder with images beside its own layout, e.g. a preview, is no folder of frames.
    plain = any(one.is_file() for one in clips) or not any(
        (one / "train").is_dir() for one in clips
    )
    return "videos" if clips and plain else None


def _only(root: Path, kind: str, names: list[str]) -> str | None:
    if len(names) > 1:
        setting = kind if kind == "evaluation" else f"source.{kind}"
        raise PTQ4VMError(
            f"Expected at most one folder of {kind} in {root}, got {', '.join(names)}. Name one "
            f"with --data.{setting}, or give one of them as the data folder."
        )
    return names[0] if names else None


def held_out_clips(names: list[str]) -> list[str]:
    """Choose the clips to keep out of calibration: every fifth, at least one of two or more.

    Args:
        names: Names of all clips without suffix, in order.
    """
    if len(names) < 2:
        return []
    return names[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE] or names[-1:]
