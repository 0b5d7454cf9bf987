"""Calibration set: sequences drawn by seed, stored with teacher outputs and optical flow."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ptq4vm import distributed
from ptq4vm.data.sources import ClipSource, LayeredSource, compose, derive_seed
from ptq4vm.data.storage import is_whole, make_folder, read_tensors, short_hash, write_tensors
from ptq4vm.data.transforms import ClipAugmentation, cut_or_shrink
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import CalibrationClip, FlowEstimator, MattingClip, Teacher

Progress = Callable[[int, int, str], None]
"""progress(done, total, description): called after each step of a long operation."""


class SequencePlace(NamedTuple):
    """Location of a calibration sequence: source, clip index and first frame."""

    source: ClipSource
    clip: int
    start: int


def draw_sequences(
    source: ClipSource, count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Draw sequences without cuts, cycling through the clips with a random start in each.

    Args:
        source: Clip source.
        count: Number of sequences.
        length: Frames per sequence. Clips without a shot of this length are skipped.
        seed: Seed of the draw.
        progress: Called after each sequence.

    Raises:
        PTQ4VMError: No clip is long enough; raised before reading if all claimed lengths are far
            too short.
    """
    require_long_enough(source, length)
    generator = Generator().manual_seed(seed)
    drawn: list[SequencePlace] = []
    while len(drawn) < count:
        before = len(drawn)
        for clip in source.draw_order(generator):
            start = _draw_start(source, clip, length, generator) if len(drawn) < count else None
            if start is not None:
                drawn.append(SequencePlace(source, clip, start))
                if progress is not None:
                    progress(len(drawn), count, "drawing sequences")
        if len(drawn) == before:
            # `longest_shot` reads whole clips: needed only if cuts, not lengths, are the cause.
            long = [clip for clip in range(len(source)) if source.num_frames(clip) >= length]
            frames = source.longest_shot if long else source.num_frames
            longest = max(long or range(len(source)), key=frames)
            raise _too_short(source, longest, frames(longest), length)
    return drawn


def _draw_start(source: ClipSource, clip: int, length: int, generator: Generator) -> int | None:
    """Draw the first frame of a sequence without a cut; None if there is none of this length."""
    starts = list(range(source.num_frames(clip) - length + 1))
    while starts:
        start = starts[int(torch.randint(len(starts), (), generator=generator))]
        cuts = source.cuts(clip, start, start + length)
        if not cuts:
            return start
        starts = [
            start for start in starts if not any(start < cut < start + length for cut in cuts)
        ]
    return None


def require_long_enough(source: ClipSource, length: int) -> None:
    """Check the clips' claimed lengths without reading any clip.

    Raises:
        PTQ4VMError: All lengths are known, and ``length`` exceeds the largest by more than the
            factor ``source.claims_are_within``.
    """
    claims = [source.claimed_frames(clip) for clip in range(len(source))]
    known = [claim for claim in claims if claim is not None]
    if len(known) == len(claims) and length > source.claims_are_within * max(known):
        raise _too_short(source, known.index(max(known)), max(known), length)


def _too_short(source: ClipSource, clip: int, frames: int, length: int) -> PTQ4VMError:
    return PTQ4VMError(
        f"Expected clips of at least seq_length = {length} frames without a cut, got at most "
        f"{frames}, in clip "
        f"{source.names[clip]}. Shorten seq_length or add longer clips."
    )


def draw_from_all(
    sources: list[ClipSource], count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Draw from several sources in turn; see :func:`draw_sequences` for arguments and errors."""
    for source in sources:
        require_long_enough(source, length)
    shares = [range(i, count, len(sources)) for i in range(len(sources))]
    drawn = [
        draw_sequences(source, len(share), length, derive_seed(seed, i), progress)
        for i, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    return [drawn[i % len(sources)][i // len(sources)] for i in range(count)]


def fingerprint_sequences(source: ClipSource, places: list[SequencePlace], length: int) -> str:
    """Hash the frames of one source's sequences; sequences of other sources are ignored."""
    ours = (place for place in places if place.source is source)
    return source.fingerprint((place.clip, place.start, place.start + length) for place in ours)


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


class CalibrationSet(Dataset[CalibrationClip]):
    """Map-style dataset of calibration sequences on disk, read one at a time.

    Args:
        folder: Folder of the sequences, `<number>.safetensors` with uint8 src and, if known, pha
            and fgr.
        teacher: Folder of the float network's outputs, files of the same names.
        flow: Folder of the optical flow, files of the same names.
        count: Number of sequences.
    """

    def __init__(self, folder: Path, teacher: Path, flow: Path, count: int) -> None:
        self.folder, self.teacher, self.flow, self.count = folder, teacher, flow, count

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
        file = file_name(index)
        clip = {
            name: value.float() / 255 for name, value in read_tensors(self.folder / file).items()
        }
        teacher = {name: value.float() for name, value in read_tensors(self.teacher / file).items()}
        flow = {name: value.float() for name, value in read_tensors(self.flow / file).items()}
        states = sorted(
            (name for name in teacher if name.startswith("state")), key=lambda name: int(name[5:])
        )
        return CalibrationClip(
            index=torch.tensor(index),
            src=clip["src"],
            pha=clip.get("pha", teacher["pha"]),
            fgr=clip.get("fgr"),
            teacher_pha=teacher["pha"],
            teacher_fgr=teacher["fgr"],
            teacher_state=tuple(teacher[name] for name in states),
            flow=flow["flow"],
            visible=flow["visible"],
        )


def file_name(index: int) -> str:
    """Return the file name of a sequence."""
    return f"{index:05d}.safetensors"


class CalibrationBuilder:
    """Builder of a calibration set's missing files, one sequence in memory at a time.

    Args:
        sequences: Locations of the sequences.
        length: Frames per sequence.
        augmentation: Augmentation of each sequence, by seed; None disables it.
        labels: Keep true alpha and foreground.
        seed: Seed of the augmentation.
        size: Height and width of stored sequences if the sources' frames are larger: each sequence
            is cropped or downscaled, by seed.
        num_workers: Worker processes that draw sequences ahead; 0 draws in the main process.
    """

    def __init__(
        self,
        sequences: list[SequencePlace],
        length: int,
        augmentation: ClipAugmentation | None,
        labels: bool,
        seed: int,
        size: tuple[int, int] | None = None,
        num_workers: int = 0,
    ) -> None:
        self.sequences, self.length, self.size = sequences, length, size
        self.augmentation, self.labels, self.seed = augmentation, labels, seed
        self.num_workers = num_workers
        # Exact flow is a label like alpha, and invalid after augmentation or cropping.
        untouched = augmentation is None and size is None
        self.exact_flow = (
            all(place.source.exact_flow for place in sequences) and labels and untouched
        )

    def compose(self, index: int) -> MattingClip:
        """Return a drawn sequence, (T, C, H, W) floats; alpha and foreground only if ``labels``."""
        source, clip, start = self.sequences[index]
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

    def build(
        self,
        folder: Path,
        teacher: Teacher,
        flow: FlowEstimator,
        progress: Progress | None,
        what: str = "calibration sequences",
    ) -> CalibrationSet:
        """Write missing or damaged files and keep the others; each rank writes its share.

        Args:
            folder: Folder of this set, named by a hash of all settings that determine its content.
            teacher: Float network.
            flow: Flow estimator; unused if the sources' exact flow is used.
            progress: Called after each sequence.
            what: Description of the sequences for ``progress``.

        Raises:
            PTQ4VMError: The source can't be read or the folder can't be written.
        """
        flow_key = "exact" if self.exact_flow else flow.key
        teacher_folder = make_folder(folder / f"teacher-{short_hash({'key': teacher.key})}")
        flow_folder = make_folder(folder / f"flow-{short_hash({'key': flow_key})}")
        share = distributed.share(range(len(self.sequences)))
        missing = []
        for done, index in enumerate(share):
            if progress is not None:
                progress(done, len(share), f"looking for {what}")
            if not is_whole(folder / file_name(index), ["src"]):
                missing.append(index)
        drawn = iter(self._draw_ahead(missing))
        for done, index in enumerate(share):
            file = file_name(index)
            if index in missing:
                write_tensors(folder / file, next(drawn))
            if not is_whole(teacher_folder / file, ["pha", "fgr"]):
                self._write_teacher(teacher_folder / file, folder / file, teacher)
            if not is_whole(flow_folder / file, ["flow", "visible"]):
                self._write_flow(flow_folder / file, folder / file, index, flow)
            if progress is not None:
                progress(done + 1, len(share), what)
        return CalibrationSet(folder, teacher_folder, flow_folder, len(self.sequences))

    def _draw_ahead(self, missing: list[int]) -> DataLoader[dict[str, Tensor]]:
        """Return a loader of these sequences in order, as uint8 tensors ready to store."""
        workers = self.num_workers if missing else 0
        return DataLoader(
            missing,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self._draw,  # type: ignore[arg-type]
            num_workers=workers,
            # Sources may hold unpicklable objects, such as the float network's forward pass.
            multiprocessing_context="fork" if workers else None,
            generator=Generator(),  # leave the global generator unchanged
        )

    def _draw(self, index: int) -> dict[str, Tensor]:
        clip = self.compose(index)
        known = {"src": clip.src, "pha": clip.pha, "fgr": clip.fgr}
        return {k: (v * 255).round().to(torch.uint8) for k, v in known.items() if v is not None}

    @staticmethod
    @torch.no_grad()
    def _write_teacher(path: Path, sequence: Path, teacher: Teacher) -> None:
        output = teacher.forward(read_tensors(sequence)["src"].float()[None] / 255)
        states = {f"state{i}": state[0].half() for i, state in enumerate(output.state)}
        write_tensors(path, {"pha": output.pha[0].float(), "fgr": output.fgr[0].half(), **states})

    @torch.no_grad()
    def _write_flow(self, path: Path, sequence: Path, index: int, estimator: FlowEstimator) -> None:
        if self.exact_flow:
            clip = self.compose(index)
            if clip.flow is None or clip.pha is None:
                raise TypeError(
                    f"Expected exact flow and alpha of clip {clip.name}: its source says it has "
                    "them."
                )
            flow, visible = clip.flow, exact_visibility(clip.pha, clip.flow)
        else:
            src = read_tensors(sequence)["src"].float() / 255
            if len(src) > 1:
                flow, visible = estimator.forward(src)
            else:
                flow, visible = (
                    src.new_zeros(0, 2, *src.shape[-2:]),
                    src.new_zeros(0, 1, *src.shape[-2:]),
                )
        write_tensors(path, {"flow": flow.half(), "visible": visible.to(torch.uint8)})
