"""Sources of clips with known alpha: foregrounds to be composed, and composed evaluation sets."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

from ptq4vm.data.backgrounds import Backgrounds, pair_evenly
from ptq4vm.data.files import (
    cover_crop,
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
    """Two layers of a clip must hold the same frames, or they would be paired wrongly.

    Raises:
        PTQ4VMError: names or number of the frames differ.
    """
    if len(first) != len(second):
        got = f"{len(first)} in {first[0].parent} and {len(second)} in {second[0].parent}"
        raise PTQ4VMError(
            f"Expected as many frames in each layer of clip {clip}, got {got}. Add what is missing."
        )
    for a, b in zip(first, second, strict=True):
        if a.stem != b.stem:
            raise PTQ4VMError(
                f"Expected the same frame names in each layer of clip {clip}, got {a.name} in {a.parent} beside "
                f"{b.name} in {b.parent}. Rename the frames alike."
            )


class VideoMatteSource(LayeredSource):
    """VideoMatte240K's layout: foregrounds with alpha, composed with every background on the fly.

    Each clip of the source is a pair of a foreground clip and a background clip. The first pairs already use all
    foregrounds and all backgrounds evenly. A background of one frame is a still; one shorter than the foreground is
    read to and fro.

    Args:
        foregrounds: folder with `train/{fgr,pha}/<clip>/<frame>`.
        backgrounds: what to put them before.
        size: height and width; everything is scaled to cover it and cut.
        seed: pairs foregrounds with backgrounds.
        held_out: patterns of clips to leave alone.

    Raises:
        PTQ4VMError: a folder is missing or empty, or the layers of a clip don't match.
    """

    def __init__(
        self,
        foregrounds: Path,
        backgrounds: Backgrounds,
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
                f"Expected clips that are not held out in {foregrounds}, got none. Correct held_out."
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
                        f"Expected frames of clip {folder.name} in {place}, got none. Add or remove it."
                    )
            check_same_frames(folder.name, fgr, pha)
            clips[folder.name] = (fgr, pha)
        if not clips:
            raise PTQ4VMError(
                f"Expected clips laid out as {FOREGROUND_LAYOUT}, got none in {root}."
            )
        return clips

    def num_frames(self, index: int) -> int:
        """The number of frames of the foreground."""
        return len(list(self._foregrounds.values())[self._pairs[index][0]][0])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Those of the foreground: its frames are read."""
        return cuts_of_images(
            list(self._foregrounds.values())[self._pairs[index][0]][0], start, stop
        )

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Frames [start, stop) of a foreground, its alpha and its background, at the size asked for."""
        self.check_range(index, start, stop)
        clip, stage = self._pairs[index]
        fgr_paths, pha_paths = list(self._foregrounds.values())[clip]
        fgr, pha = read_frames(fgr_paths[start:stop]), read_frames(pha_paths[start:stop], gray=True)
        check_same_size(self.names[index], fgr, pha, fgr_paths[start], pha_paths[start])
        bgr = self._backgrounds.read(stage, start, stop, self.size)
        return Layers(cover_crop(fgr, self.size), cover_crop(pha, self.size), bgr)

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Of the foreground, its alpha and the background."""
        clip, stage = self._pairs[index]
        layers = list(self._foregrounds.values())[clip]
        found = named_below(self._root, [path for layer in layers for path in layer[start:stop]])
        return found + self._backgrounds.files(stage, start, stop)

    def draw_order(self, generator: Generator) -> list[int]:
        """The pairs as they stand: they are mixed by seed already, and evenly."""
        return list(range(len(self)))


def check_same_size(
    clip: str, first: torch.Tensor, second: torch.Tensor, path: Path, other: Path
) -> None:
    """Raises: PTQ4VMError: two layers of a clip differ in size."""
    if first.shape[-2:] != second.shape[-2:]:
        raise PTQ4VMError(
            f"Expected one size in all layers of clip {clip}, got {size_text(first)} in {path} and "
            f"{size_text(second)} in {other}. Resize them alike."
        )


class EvaluationSource(ClipSource):
    """Composites with their alpha, `<set>/<clip>/{com,pha,fgr}/<frame>`, also one folder deeper.

    Args:
        root: the folder of the sets, or the only folder within which lies that of the sets.
        size: height and width to scale and cut to; None leaves the frames as they are.
        labels: read alpha (which must be there) and foreground (where it is there); False gives composites only.

    Raises:
        PTQ4VMError: nothing is laid out so, more than one folder is, or the layers of a clip don't match.
    """

    def __init__(
        self, root: Path, size: tuple[int, int] | None = None, labels: bool = True
    ) -> None:
        self.root, self.size = self.find_root(root), size
        self._layers: list[dict[str, list[Path]]] = []
        self.names = []
        for folder in sorted(p.parent for p in self.root.glob("*/*/com")):
            self.names.append(folder.relative_to(self.root).as_posix())
            self._layers.append(self._list_layers(folder, labels))

    @staticmethod
    def find_root(root: Path) -> Path:
        """The folder that holds the sets: `root` or the only one within it that does."""
        require_folder(root, "evaluation sets", EVALUATION_LAYOUT)
        found = [folder for folder in (root, *list_folders(root)) if any(folder.glob("*/*/com"))]
        if len(found) > 1:
            names = ", ".join(str(folder) for folder in found)
            raise PTQ4VMError(
                f"Expected one folder of evaluation sets, got {len(found)}: {names}. Name one of them."
            )
        if not found:
            hint = (
                f" Give {root.parent} instead." if any(root.glob("*/com")) else " Correct the path."
            )
            raise PTQ4VMError(
                f"Expected evaluation clips laid out as {EVALUATION_LAYOUT}, got none in {root}.{hint}"
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
        if labels and "pha" not in layers:
            raise PTQ4VMError(
                f"Expected the true alpha of clip {name} in {folder / 'pha'}, got none. Add it, or calibrate with "
                "labels: false."
            )
        return layers

    def num_frames(self, index: int) -> int:
        """The number of composites of a clip."""
        return len(self._layers[index]["com"])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Those of the composites, which are read."""
        return cuts_of_images(self._layers[index]["com"], start, stop)

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Frames [start, stop) of a clip with what is known of them."""
        self.check_range(index, start, stop)
        layers = self._layers[index]
        read = {
            part: read_frames(paths[start:stop], gray=part == "pha")
            for part, paths in layers.items()
        }
        for part, frames in read.items():
            check_same_size(
                self.names[index], read["com"], frames, layers["com"][start], layers[part][start]
            )
        if self.size is not None:
            read = {part: cover_crop(frames, self.size) for part, frames in read.items()}
        stems = tuple(path.stem for path in layers["com"][start:stop])
        return MattingClip(
            read["com"], read.get("pha"), read.get("fgr"), None, self.names[index], start, stems
        )

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Of all layers that are read."""
        layers = self._layers[index].values()
        return named_below(self.root, [path for frames in layers for path in frames[start:stop]])
