"""The calibration set: drawn once by seed, kept on disk together with what is computed from it."""

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
"""progress(done, total, what): called whenever one more of a long row of things is done."""


class SequencePlace(NamedTuple):
    """Where a calibration sequence comes from."""

    source: ClipSource
    clip: int
    start: int


def draw_sequences(
    source: ClipSource, count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Choose sequences from a source: clips in turn, a random beginning in each, no cut in any.

    Args:
        source: the clips.
        count: how many sequences to choose.
        length: frames of a sequence. Shorter clips are passed over, and those whose shots all are.
        seed: decides the choice.
        progress: told of each sequence.

    Raises:
        PTQ4VMError: no clip is long enough, which is known at once where clips claim to be far too short.
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
            # Only where cuts are the reason, whole clips are looked at.
            long = [clip for clip in range(len(source)) if source.num_frames(clip) >= length]
            frames = source.longest_shot if long else source.num_frames
            longest = max(long or range(len(source)), key=frames)
            raise _too_short(source, longest, frames(longest), length)
    return drawn


def _draw_start(source: ClipSource, clip: int, length: int, generator: Generator) -> int | None:
    """The first frame of a sequence without a cut; None where there is none so long."""
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
    """Refuse sequences far longer than every clip claims to be, before any clip is read.

    Raises:
        PTQ4VMError: every clip is too short.
    """
    claims = [source.claimed_frames(clip) for clip in range(len(source))]
    known = [claim for claim in claims if claim is not None]
    if len(known) == len(claims) and length > source.claims_are_within * max(known):
        raise _too_short(source, known.index(max(known)), max(known), length)


def _too_short(source: ClipSource, clip: int, frames: int, length: int) -> PTQ4VMError:
    return PTQ4VMError(
        f"Expected clips of at least seq_length = {length} frames without a cut, got at most {frames}, in clip "
        f"{source.names[clip]}. Shorten seq_length or add longer clips."
    )


def draw_from_all(
    sources: list[ClipSource], count: int, length: int, seed: int, progress: Progress | None = None
) -> list[SequencePlace]:
    """Draw from several sources in turn; arguments and errors as in :func:`draw_sequences`."""
    for source in sources:
        require_long_enough(source, length)
    shares = [range(i, count, len(sources)) for i in range(len(sources))]
    drawn = [
        draw_sequences(source, len(share), length, derive_seed(seed, i), progress)
        for i, (source, share) in enumerate(zip(sources, shares, strict=True))
    ]
    return [drawn[i % len(sources)][i // len(sources)] for i in range(count)]


def fingerprint_sequences(source: ClipSource, places: list[SequencePlace], length: int) -> str:
    """Hash of what the sequences of one source are made of; those of others are passed over."""
    ours = (place for place in places if place.source is source)
    return source.fingerprint((place.clip, place.start, place.start + length) for place in ours)


def exact_visibility(pha: Tensor, flow: Tensor) -> Tensor:
    """Where an exact flow leads to something that was to be seen in the frame before.

    Args:
        pha: exact alpha, (T, 1, H, W).
        flow: exact backward flow, (T-1, 2, H, W) in pixels.

    Returns:
        (T-1, 1, H, W), 1 where the place it leads to lies in the picture and has the same alpha, else 0.
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
    """Calibration sequences on disk, read one at a time.

    Args:
        folder: where the sequences are: `<number>.safetensors`, each with src, pha and fgr as far as known, uint8.
        teacher: where the float network's outputs for them are, files of the same names.
        flow: where their flows are, files of the same names.
        count: how many sequences there are.
    """

    def __init__(self, folder: Path, teacher: Path, flow: Path, count: int) -> None:
        self.folder, self.teacher, self.flow, self.count = folder, teacher, flow, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> CalibrationClip:
        """One sequence, unbatched; all floats are float32.

        Raises:
            PTQ4VMError: a file is missing or damaged.
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
    """The file of a sequence."""
    return f"{index:05d}.safetensors"


class CalibrationBuilder:
    """Makes what is missing of a calibration set, sequence by sequence: memory holds one of them at a time.

    Args:
        sequences: what to take from which source.
        length: frames of a sequence.
        augmentation: changes each sequence, by seed; None leaves them alone.
        labels: keep true alpha and foreground.
        seed: of the augmentation.
        size: height and width of what is kept, if the sources' frames are larger: cut out or shrunk, by seed.
        num_workers: processes that draw sequences ahead; 0 draws each when its turn comes.
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
        # An exact flow is as much of a label as the alpha it follows, and it survives neither augmentation nor cutting.
        untouched = augmentation is None and size is None
        self.exact_flow = (
            all(place.source.exact_flow for place in sequences) and labels and untouched
        )

    def compose(self, index: int) -> MattingClip:
        """Draw a sequence from the source: (T, C, H, W), floats, with alpha and foreground only if labels are kept."""
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
        """Make the files that are missing or damaged, and keep the others. Each process makes its share.

        Args:
            folder: of this set, named after everything that decides what is in it.
            teacher: the float network.
            flow: is not asked where the source's own exact flow is used.
            progress: told of each sequence.
            what: they are, for ``progress``.

        Raises:
            PTQ4VMError: the source can't be read or the folder can't be written.
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
        """These sequences in their order, as they are kept."""
        workers = self.num_workers if missing else 0
        return DataLoader(
            missing,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self._draw,  # type: ignore[arg-type]
            num_workers=workers,
            # Forked, since sources hold what can't be pickled, such as the float network's forward pass.
            multiprocessing_context="fork" if workers else None,
            generator=Generator(),  # else the loader draws from the global one
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
                    f"Expected exact flow and alpha of clip {clip.name}: its source says it has them."
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
