"""Calibration set: sequences drawn by seed, stored with teacher outputs and optical flow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ptq4vm import distributed
from ptq4vm.data.drawing import Progress, SequencePlace
from ptq4vm.data.sources import LayeredSource, compose, derive_seed
from ptq4vm.data.storage import FORMAT_VERSION, CheckedFiles, file_name, make_folder, short_hash
from ptq4vm.data.transforms import ClipAugmentation, cut_or_shrink
from ptq4vm.types import CalibrationClip, FlowEstimator, MattingClip, Teacher

_FRAMES = ("src", "pha", "fgr")
"""Tensors of a file in uint8 codes; pha and fgr only if known."""
_NEEDED = ("src", "teacher_pha", "flow", "visible")


def exact_visibility(pha: Tensor, flow: Tensor) -> Tensor:
    """Compute the visibility mask of an exact backward flow.

    Args:
        pha: Exact alpha, (T, 1, H, W).
        flow: Exact backward flow, (T-1, 2, H, W) in pixels.

    Returns:
        (T-1, 1, H, W); 1 where the flow target lies inside the previous frame and its alpha
        differs by less than 0.1, else 0.
    """
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], dim=-1) + flow.permute(0, 2, 3, 1)
    size = torch.tensor([width, height])
    grid = (2 * place + 1) / size - 1
    inside = ((place >= 0) & (place <= size - 1)).all(dim=-1)[:, None]
    before = functional.grid_sample(pha[:-1], grid, padding_mode="border", align_corners=False)
    return (inside & ((before - pha[1:]).abs() < 0.1)).float()


class DrawnSequences:
    """Drawn calibration sequences, composed on demand.

    Args:
        places: Locations of the sequences.
        length: Frames per sequence.
        key: All that determines the sequences, as plain values, for the name of their folder.
        augmentation: Augmentation of each sequence, by seed; None disables it.
        labels: Keep true alpha and foreground.
        seed: Seed of the augmentation.
        size: Height and width of stored sequences if the sources' frames are larger: each sequence
            is cropped or downscaled, by seed.
        settle: Frames over which the float network runs before half of the sequences, drawn by
            seed, so that they begin with a settled recurrent state: the sequence's own, to and fro.
    """

    def __init__(
        self,
        places: list[SequencePlace],
        length: int,
        key: Mapping[str, Any],
        augmentation: ClipAugmentation | None = None,
        labels: bool = False,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        settle: int = 0,
    ) -> None:
        drawn = torch.randperm(len(places), generator=Generator().manual_seed(seed)).tolist()
        self.settled = set(drawn[: len(places) // 2])
        """Numbers of the sequences that begin with a settled state."""
        self.settle = settle
        self.places, self.length, self.key, self.size = places, length, key, size
        self.augmentation, self.labels, self.seed = augmentation, labels, seed
        # Exact flow is a label like alpha, and invalid after augmentation or cropping.
        untouched = augmentation is None and size is None
        self.exact_flow = all(place.source.exact_flow for place in places) and labels and untouched

    def __len__(self) -> int:
        return len(self.places)

    def compose(self, index: int) -> MattingClip:
        """Return a drawn sequence, (T, C, H, W) floats; alpha and foreground only if ``labels``."""
        source, clip, start = self.places[index]
        stop = start + self.length
        seed = derive_seed(self.seed, index)
        if self.augmentation is None:
            drawn = source.read(clip, start, stop)
        elif isinstance(source, LayeredSource):
            layers = self.augmentation.layers(source.read_layers(clip, start, stop), seed)
            drawn = compose(layers, source.names[clip], start)
        else:
            drawn = self.augmentation.clip(source.read(clip, start, stop), seed)
        if self.size is not None:
            drawn = cut_or_shrink(drawn, self.size, seed)
        return drawn if self.labels else drawn._replace(pha=None, fgr=None, flow=None)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a sequence as they are stored; flow only if it is exact."""
        clip = self.compose(index)
        frames = {name: getattr(clip, name) for name in _FRAMES}
        stored = {k: (v * 255).round().to(torch.uint8) for k, v in frames.items() if v is not None}
        if not self.exact_flow:
            return stored
        if clip.flow is None or clip.pha is None:
            raise TypeError(
                f"Expected exact flow and alpha of clip {clip.name}: its source says it has them."
            )
        return stored | _stored_flow(clip.flow, exact_visibility(clip.pha, clip.flow))

    def ahead(self, indices: list[int], num_workers: int) -> DataLoader[dict[str, Tensor]]:
        """Return a loader of the :meth:`tensors` of these sequences, in order.

        Args:
            indices: Numbers of the sequences.
            num_workers: Processes that compose sequences ahead; 0 composes in this one.
        """
        workers = num_workers if indices else 0
        return DataLoader(
            indices,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self.tensors,  # type: ignore[arg-type]
            num_workers=workers,
            # Sources may hold unpicklable objects, such as the float network's forward pass.
            multiprocessing_context="fork" if workers else None,
            generator=Generator(),  # leave the global generator unchanged
        )


class CalibrationSet(Dataset[CalibrationClip]):
    """Map-style dataset of calibration sequences on disk, read one at a time.

    Args:
        folder: Folder of one file per sequence, written by :meth:`build`: uint8 src and, if known,
            pha and fgr; the float network's outputs; the optical flow.
        count: Number of sequences.
        files: Files that this process has written or verified, which are not verified again.
    """

    def __init__(self, folder: Path, count: int, files: CheckedFiles | None = None) -> None:
        self.folder, self.count, self.files = folder, count, files or CheckedFiles()

    @classmethod
    def build(
        cls,
        sequences: DrawnSequences,
        teacher: Teacher,
        flow: FlowEstimator,
        cache: Path,
        progress: Progress | None = None,
        *,
        files: CheckedFiles | None = None,
        num_workers: int = 0,
        what: str = "calibration sequences",
    ) -> "CalibrationSet":
        """Return the set after writing its missing or damaged files; each rank writes its share.

        A sequence is composed, passed through the teacher and the flow, and written once, whole.
        One sequence at a time is in memory.

        Args:
            sequences: Drawn sequences.
            teacher: Float network.
            flow: Flow estimator; unused if the sources' exact flow is used.
            cache: Folder of all sets; the set's own is named by a hash of what determines it.
            progress: Called after each sequence.
            files: Files that this process has verified before.
            num_workers: Worker processes that compose sequences ahead.
            what: Description of the sequences for ``progress``.

        Raises:
            PTQ4VMError: A source can't be read or the folder can't be written.
        """
        flow_key = "exact" if sequences.exact_flow else flow.key
        key = {"teacher": teacher.key, "flow": flow_key, "format": FORMAT_VERSION}
        folder = make_folder(cache / short_hash({**sequences.key, **key}))
        made = cls(folder, len(sequences), files)
        share = distributed.share(range(len(sequences)))
        missing = []
        for done, index in enumerate(share):
            if progress is not None:
                progress(done, len(share), f"looking for {what}")
            if not made.files.is_whole(folder / file_name(index), _NEEDED):
                missing.append(index)
        drawn = iter(sequences.ahead(missing, num_workers))
        for done, index in enumerate(share):
            if index in missing:
                settle = sequences.settle if index in sequences.settled else 0
                tensors = _with_targets(next(drawn), teacher, flow, settle)
                made.files.write(folder / file_name(index), tensors)
            if progress is not None:
                progress(done + 1, len(share), what)
        return made

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> CalibrationClip:
        """Return one sequence, unbatched; all floats are float32.

        Raises:
            PTQ4VMError: A file is missing or damaged.
            IndexError: The index is out of range.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"Expected a sequence within [0, {self.count}), got {index}.")
        stored = self.files.read(self.folder / file_name(index))
        clip = {
            name: value.float() / 255 if name in _FRAMES else value.float()
            for name, value in stored.items()
        }
        names = sorted((name for name in clip if name.startswith("state")), key=_number)
        states = tuple(clip[name] for name in names)
        first = (clip.get(f"first_{name}") for name in names)
        return CalibrationClip(
            index=torch.tensor(index),
            src=clip["src"],
            pha=clip.get("pha", clip["teacher_pha"]),
            fgr=clip.get("fgr"),
            teacher_pha=clip["teacher_pha"],
            teacher_state=states,
            flow=clip["flow"],
            visible=clip["visible"],
            first_state=tuple(
                torch.zeros_like(steps[0]) if known is None else known
                for known, steps in zip(first, states, strict=True)
            ),
        )


def _number(state: str) -> int:
    return int(state.removeprefix("state"))


@torch.no_grad()
def _with_targets(
    stored: dict[str, Tensor], teacher: Teacher, estimator: FlowEstimator, settle: int
) -> dict[str, Tensor]:
    """Return the stored tensors of a sequence, with the teacher's outputs and the flow.

    Before the first frame, the teacher runs over ``settle`` others.
    """
    src = stored["src"].float() / 255
    states: dict[str, Tensor] = {}
    state = None
    if settle:
        before = teacher.forward(src[None, _to_and_fro(settle, len(src))]).state
        states = {f"first_state{i}": steps[0, -1].half() for i, steps in enumerate(before)}
        state = tuple(one.float()[None] for one in states.values())  # as it will be read
    output = teacher.forward(src[None], state)
    states |= {f"state{i}": state[0].half() for i, state in enumerate(output.state)}
    targets = {"teacher_pha": output.pha[0].float(), **states}
    if "flow" in stored:
        return stored | targets
    if len(src) > 1:
        flow, visible = estimator.forward(src)
    else:
        flow, visible = (src.new_zeros(0, channels, *src.shape[-2:]) for channels in (2, 1))
    return stored | targets | _stored_flow(flow, visible)


def _to_and_fro(count: int, length: int) -> Tensor:
    """Return ``count`` frame numbers of a clip played to and fro that lead to frame 0."""
    steps = torch.arange(count, 0, -1) % max(1, 2 * (length - 1))
    return torch.minimum(steps, 2 * (length - 1) - steps)


def _stored_flow(flow: Tensor, visible: Tensor) -> dict[str, Tensor]:
    return {"flow": flow.half(), "visible": visible.to(torch.uint8)}
