"""Clip sources with known alpha: foregrounds to be composed, and composed evaluation sets."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

from ptq4vm.data.background_clips import BackgroundClips, pair_evenly
from ptq4vm.data.files import (
    cover_crop_clip,
    list_folders,
    matches,
    named_below,
    read_frames,
    require_folder,
    size_text,
)
from ptq4vm.data.shots import cuts_of_images
from ptq4vm.data.sources import ClipSource, LayeredSource, Layers
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingClip
from ptq4vm.video.images import list_frames

FOREGROUND_LAYOUT = "train/{fgr,pha}/<clip>/<frame>.jpg|png"
EVALUATION_LAYOUT = "<set>/<clip>/{com,pha,fgr}/<frame>.jpg|png"


def check_same_frames(clip: str, first: list[Path], second: list[Path]) -> None:
    """Check that two layers of a clip hold the same frames.

    Raises:
        PTQ4VMError: Names or number of the frames differ.
    """
    if len(first) != len(second):
        got = f"{len(first)} in {first[0].parent} and {len(second)} in {second[0].parent}"
        raise PTQ4VMError(
            f"Expected as many frames in each layer of clip {clip}, got {got}. Add what is missing."
        )
    for a, b in zip(first, second, strict=True):
        if a.stem != b.stem:
            raise PTQ4VMError(
                f"Expected the same frame names in each layer of clip {clip}, got {a.name} in "
                f"{a.parent} beside "
                f"{b.name} in {b.parent}. Rename the frames alike."
            )


def check_annotated(clip: str, frames: list[Path], annotated: list[Path]) -> None:
    """Check that annotated frames are frames of the clip.

    Raises:
        PTQ4VMError: One is not.
    """
    known = {path.stem for path in frames}
    for path in annotated:
        if path.stem not in known:
            raise PTQ4VMError(
                f"Expected alpha of frames of clip {clip}, got {path.name} in {path.parent} and "
                f"no such frame in {frames[0].parent}. Rename or remove it."
            )


class VideoMatteSource(LayeredSource):
    """VideoMatte240K's layout: foregrounds with alpha, composed with every background on the fly.

    Each clip is a pair of a foreground and a background; any prefix of the clips uses both evenly.
    A one-frame background is a still; one shorter than the foreground is looped back and forth.

    Args:
        foregrounds: Folder with `train/{fgr,pha}/<clip>/<frame>`.
        backgrounds: Background clips.
        size: Height and width; all layers are resized to cover it and cropped.
        seed: Seed of the pairing of foregrounds and backgrounds.
        held_out: Shell patterns of clips to exclude.

    Raises:
        PTQ4VMError: A folder is missing or empty, or the layers of a clip don't match.
    """

    def __init__(
        self,
        foregrounds: Path,
        backgrounds: BackgroundClips,
        size: tuple[int, int],
        seed: int = 0,
        held_out: Sequence[str] = (),
    ) -> None:
        self.size = size
        self._root = foregrounds
        found = self._list_foregrounds(foregrounds)
        self._foregrounds = {
            name: layers for name, layers in found.items() if not matches(name, held_out)
        }
        if not self._foregrounds:
            raise PTQ4VMError(
                f"Expected clips that are not held out in {foregrounds}, got none. Correct "
                "held_out."
            )
        self._backgrounds = backgrounds
        clips, stages = list(self._foregrounds), self._backgrounds.names
        self._pairs = pair_evenly(len(clips), len(stages), seed)
        self.names = [f"train/{clips[c]}+{stages[b]}" for c, b in self._pairs]

    @staticmethod
    def _list_foregrounds(root: Path) -> dict[str, tuple[list[Path], list[Path]]]:
        for part in ("fgr", "pha"):
            require_folder(root / "train" / part, "foregrounds", FOREGROUND_LAYOUT)
        clips = {}
        for folder in list_folders(root / "train" / "fgr"):
            fgr, pha = list_frames(folder), list_frames(root / "train" / "pha" / folder.name)
            for frames, place in ((fgr, folder), (pha, root / "train" / "pha" / folder.name)):
                if not frames:
                    raise PTQ4VMError(
                        f"Expected frames of clip {folder.name} in {place}, got none. Add or "
                        "remove it."
                    )
            check_same_frames(folder.name, fgr, pha)
            clips[folder.name] = (fgr, pha)
        if not clips:
            raise PTQ4VMError(
                f"Expected clips laid out as {FOREGROUND_LAYOUT}, got none in {root}."
            )
        return clips

    def num_frames(self, index: int) -> int:
        """Return the number of frames of the foreground."""
        return len(list(self._foregrounds.values())[self._pairs[index][0]][0])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Return the cuts of the foreground, detected by reading its frames."""
        return cuts_of_images(
            list(self._foregrounds.values())[self._pairs[index][0]][0], start, stop
        )

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Return frames [start, stop) of a foreground, its alpha and its background at ``size``."""
        self.check_range(index, start, stop)
        clip, stage = self._pairs[index]
        fgr_paths, pha_paths = list(self._foregrounds.values())[clip]
        fgr, pha = read_frames(fgr_paths[start:stop]), read_frames(pha_paths[start:stop], gray=True)
        check_same_size(self.names[index], fgr, pha, fgr_paths[start], pha_paths[start])
        bgr = self._backgrounds.read(stage, start, stop, self.size)
        return Layers(cover_crop_clip(fgr, self.size), cover_crop_clip(pha, self.size), bgr)

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return the files of the foreground, its alpha and the background."""
        clip, stage = self._pairs[index]
        layers = list(self._foregrounds.values())[clip]
        found = named_below(self._root, [path for layer in layers for path in layer[start:stop]])
        return found + self._backgrounds.files(stage, start, stop)

    def draw_order(self, generator: Generator) -> list[int]:
        """Return the pairs in order; they are already shuffled evenly by seed."""
        return list(range(len(self)))


def check_same_size(
    clip: str, first: torch.Tensor, second: torch.Tensor, path: Path, other: Path
) -> None:
    """Check that two layers of a clip have the same height and width.

    Raises:
        PTQ4VMError: The sizes differ.
    """
    if first.shape[-2:] != second.shape[-2:]:
        raise PTQ4VMError(
            f"Expected one size in all layers of clip {clip}, got {size_text(first)} in {path} and "
            f"{size_text(second)} in {other}. Resize them alike."
        )


class EvaluationSource(ClipSource):
    """Composites with alpha, `<set>/<clip>/{com,pha,fgr}/<frame>`, also one folder deeper.

    Args:
        root: Folder of the sets, a folder with exactly one subfolder of sets, or one set.
        size: Height and width to resize and crop to; None keeps the frames unchanged.
        labels: Read alpha (required) and foreground (optional); False reads composites only.
        sparse: Accept a folder `annotated` in place of `pha`, with the alpha of some frames; that
            of the others is NaN.

    Raises:
        PTQ4VMError: No folder or more than one has this layout, or the layers of a clip don't
            match.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int] | None = None,
        labels: bool = True,
        sparse: bool = False,
    ) -> None:
        found = self.find_root(root)
        is_set = any(found.glob("*/com"))
        self.root, self.size, self._sparse = found.parent if is_set else found, size, sparse
        self._layers: list[dict[str, list[Path]]] = []
        self.names = []
        for folder in sorted(p.parent for p in found.glob("*/com" if is_set else "*/*/com")):
            self.names.append(folder.relative_to(self.root).as_posix())
            self._layers.append(self._list_layers(folder, labels))

    @staticmethod
    def find_root(root: Path) -> Path:
        """Return the folder that holds the sets: `root`, also if it is one, or its only subfolder.

        Raises:
            PTQ4VMError: There is no such folder, or more than one.
        """
        require_folder(root, "evaluation sets", EVALUATION_LAYOUT)
        if any(root.glob("*/com")):
            return root
        found = [folder for folder in (root, *list_folders(root)) if any(folder.glob("*/*/com"))]
        if len(found) > 1:
            names = ", ".join(str(folder) for folder in found)
            raise PTQ4VMError(
                f"Expected one folder of evaluation sets, got {len(found)}: {names}. Name one of "
                "them."
            )
        if not found:
            raise PTQ4VMError(
                f"Expected evaluation clips laid out as {EVALUATION_LAYOUT}, got none in {root}. "
                "Correct the path."
            )
        return found[0]

    def _list_layers(self, folder: Path, labels: bool) -> dict[str, list[Path]]:
        name = self.names[-1]
        layers = {"com": list_frames(folder / "com")}
        if not layers["com"]:
            raise PTQ4VMError(
                f"Expected frames of clip {name} in {folder / 'com'}, got none. Add or remove it."
            )
        for part in ("pha", "fgr") if labels else ():
            if frames := list_frames(folder / part):
                layers[part] = frames
                check_same_frames(name, layers["com"], frames)
        if self._sparse and "pha" not in layers:
            layers["pha"] = list_frames(folder / "annotated")
            check_annotated(name, layers["com"], layers["pha"])
        if labels and not layers.get("pha"):
            raise PTQ4VMError(
                f"Expected the true alpha of clip {name} in {folder / 'pha'}, got none. Add it, or "
                "calibrate with "
                "labels: false."
            )
        return layers

    def num_frames(self, index: int) -> int:
        """Return the number of composites of a clip."""
        return len(self._layers[index]["com"])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Return the cuts of the composites, detected by reading them."""
        return cuts_of_images(self._layers[index]["com"], start, stop)

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Return frames [start, stop) of a clip with alpha and foreground as far as known."""
        self.check_range(index, start, stop)
        layers = self._between(index, start, stop)
        read = {part: read_frames(paths, gray=part == "pha") for part, paths in layers.items()}
        for part, frames in read.items():
            check_same_size(
                self.names[index], read["com"], frames, layers["com"][0], layers[part][0]
            )
        stems = tuple(path.stem for path in layers["com"])
        if "pha" in self._layers[index]:
            alpha = dict(
                zip((p.stem for p in layers.get("pha", ())), read.get("pha", ()), strict=True)
            )
            unknown = torch.full_like(read["com"][0, :1], torch.nan)
            read["pha"] = torch.stack([alpha.get(stem, unknown) for stem in stems])
        if self.size is not None:
            read = {part: cover_crop_clip(frames, self.size) for part, frames in read.items()}
        return MattingClip(
            read["com"], read.get("pha"), read.get("fgr"), None, self.names[index], start, stems
        )

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return the files of all layers that are read."""
        layers = self._between(index, start, stop).values()
        return named_below(self.root, [path for frames in layers for path in frames])

    def _between(self, index: int, start: int, stop: int) -> dict[str, list[Path]]:
        """Return the files of frames [start, stop) by layer; no layer is empty."""
        layers = self._layers[index]
        stems = {path.stem for path in layers["com"][start:stop]}
        found = {part: [p for p in paths if p.stem in stems] for part, paths in layers.items()}
        return {part: paths for part, paths in found.items() if paths}
