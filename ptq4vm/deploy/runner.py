"""Runs a matting network over frames as they come, and over whole videos."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ptq4vm.deploy.ahead import ahead
from ptq4vm.deploy.runtimes import ExportedNetwork
from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.base import MattingModel
from ptq4vm.types import MattingOutput
from ptq4vm.video.backgrounds import open_background, parse_colour
from ptq4vm.video.cuts import CutList, Cuts, cut_test
from ptq4vm.video.frames import Frame, FrameReader
from ptq4vm.video.reader import VideoReader
from ptq4vm.video.videos import open_frames, open_writer, require_output

LONG_SIDE = 512
"""Pixels of a frame's longer side that the network's body works at by itself."""
Ratio = float | Literal["auto"]
"""A downsample ratio in (0, 1], or the one of :func:`auto_downsample_ratio`."""


class MatteFrame(NamedTuple):
    """One frame and its matte, on the network's device. Inference tensors: clone them to train on them."""

    src: Tensor
    """(3, H, W) RGB in [0, 1]."""
    fgr: Tensor
    """(3, H, W) foreground colour, RGB in [0, 1]."""
    pha: Tensor
    """(1, H, W) alpha in [0, 1]."""
    cut: bool = False
    """Whether a new shot begins here: the network's state was restarted."""


class MatteReport(NamedTuple):
    """Result of :func:`matte_video`."""

    frames: int
    """How many were matted."""
    cuts: tuple[int, ...]
    """Numbers of the frames, from 0, at which the state was restarted."""


def auto_downsample_ratio(height: int, width: int) -> float:
    """The ratio at which the frame's longer side has 512 pixels, at most 1; RVM's authors recommend it."""
    return min(LONG_SIDE / max(height, width), 1.0)


def choose_downsample_ratio(model: MattingModel, ratio: Ratio, height: int, width: int) -> float:
    """Resolve ``auto``: what an exported graph has, else :func:`auto_downsample_ratio`.

    Raises:
        PTQ4VMError: a number outside (0, 1].
    """
    if ratio == "auto":
        return (
            model.downsample_ratio
            if isinstance(model, ExportedNetwork)
            else auto_downsample_ratio(height, width)
        )
    if not 0 < ratio <= 1:
        raise PTQ4VMError(
            f"Expected a downsample ratio in (0, 1], got {ratio}. Leave it out for auto."
        )
    return ratio


def matte(
    model: MattingModel,
    frames: Iterable[Frame],
    device: torch.device | str | None = None,
    cuts: Cuts = "auto",
) -> Generator[MatteFrame, None, None]:
    """Matte frames one by one, carrying the network's state; nothing else is kept.

    Args:
        model: works at its own ``downsample_ratio``, and in evaluation mode until the generator ends.
        frames: (H, W, 3) uint8 RGB, all of one size; the next is taken when the next matte is asked for.
        device: the network is moved there; None leaves it where it is.
        cuts: where the state is restarted: ``auto`` where :class:`~ptq4vm.video.CutDetector` finds a cut, ``off``
            nowhere, or the numbers of the frames, from 0, or a test of each frame in order.

    Yields:
        A :class:`MatteFrame` for each frame.

    Raises:
        PTQ4VMError: a frame of another size or type, or a network that answers with wrong shapes or with NaN.
    """
    if device is None:
        tensor = next(chain(model.parameters(), model.buffers()), None)
        device = torch.device("cpu") if tensor is None else tensor.device
    else:
        model.to(device)
    is_cut = cut_test(cuts)
    with _evaluating(model):
        state = None
        size: tuple[int, ...] | None = None
        for number, frame in enumerate(frames):
            size = frame.shape if size is None else size
            if (
                frame.dtype != np.uint8
                or frame.ndim != 3
                or frame.shape[2] != 3
                or frame.shape != size
            ):
                raise PTQ4VMError(
                    f"Expected (H, W, 3) uint8 frames of one size, got {frame.shape} {frame.dtype} at frame {number}"
                    + (f" after {size}" if number else "")
                )
            # Around the computation only: left open across a yield, the mode would leak into the caller.
            with torch.inference_mode():
                src = to_tensor(frame, device)[None]
                cut = is_cut(frame)
                state = model.initial_state(src) if state is None or cut else state
                output = model.forward_frame(src, state)
                _check_output(output, src, number)
            state = output.state
            yield MatteFrame(src[0], output.fgr[0], output.pha[0], cut)


def matte_video(
    model: MattingModel,
    source: Path,
    alpha: Path | None = None,
    composite: Path | None = None,
    background: str | Path = "green",
    foreground: Path | None = None,
    downsample_ratio: Ratio = "auto",
    progress: Callable[[int, int | None], None] | None = None,
    cutout: Path | None = None,
    sound: bool = True,
    cuts: str | Path = "auto",
    strict: bool = False,
    notify: Callable[[str], None] = warnings.warn,
) -> MatteReport:
    """Matte a video, or a folder of images, from file to file: one matte for each frame of the source.

    Args:
        model: runs where its parameters are.
        source: a video, a folder of images or one image.
        alpha: where alpha goes: .mp4, .mkv, .webm, .mov a video; no suffix a folder of PNGs; .png one image. None:
            nowhere.
        composite: where fgr·pha + bgr·(1 - pha) goes, likewise.
        background: ``#rrggbb``, a colour's name, or the path of an image or a video; see :func:`open_background`.
        foreground: where the foreground's colour goes, likewise.
        downsample_ratio: the network's body works at this fraction of the frame's size, in (0, 1];
            auto: :func:`auto_downsample_ratio`, or what an exported graph has. The network's own is put back at the
            end.
        progress: called after each frame with the frames done and their whole number where it is known.
        cutout: where the foreground goes with alpha as its fourth channel: .mov (ProRes 4444) or .webm (VP9) a video;
            no suffix a folder of PNGs; .png one image.
        sound: whether a video's sound is copied, as it is, to composite and cutout where they are videos.
        cuts: where the state is restarted: ``auto``, ``off``, or a file that :meth:`ptq4vm.video.CutList.read` takes.
            Those of a file that lie behind the end are warned of.
        strict: raise where a frame of the source can't be decoded, instead of repeating the one before.
        notify: called at the end with each line of the source's ``notes``: damaged frames, HDR, interlacing.

    Returns:
        How many frames were matted, and where the state was restarted.

    Raises:
        PTQ4VMError: no output was asked for, or something can't be read or written. No output is left behind then.
    """
    targets = {"alpha": alpha, "composite": composite, "foreground": foreground, "cutout": cutout}
    outputs = check_paths(source, targets, background)
    listed = None if cuts in ("auto", "off") else CutList.read(Path(cuts))
    reader = open_frames(source, strict)
    size = (reader.height, reader.width)
    ratio = choose_downsample_ratio(model, downsample_ratio, *size)
    done, found = 0, []
    with ExitStack() as stack:
        backgrounds = stack.enter_context(closing(open_background(background, size, reader.rate)))
        heard = reader.path if sound and isinstance(reader, VideoReader) else None
        writers = {
            name: stack.enter_context(
                open_writer(
                    path,
                    size,
                    reader.rate,
                    alpha=name == "cutout",
                    sound=heard if name in ("composite", "cutout") else None,
                    pixel_aspect=reader.pixel_aspect,
                    names=reader.names,
                )
            )
            for name, path in outputs.items()
        }
        stack.enter_context(_working_at(model, ratio))
        # Frames are read and matted in threads of their own, while this one writes what came before.
        times: deque[Fraction] = deque()
        marks: deque[bool] = deque()
        test: Cuts = cuts if listed is None else lambda frame: marks.popleft()  # type: ignore[assignment]
        frames = ahead(_noting(reader, times, listed, marks))
        mattes = stack.enter_context(closing(ahead(matte(model, frames, cuts=test))))
        for done, frame in enumerate(mattes, 1):
            time = times.popleft()
            found += [done - 1] if frame.cut else []
            for name, writer in writers.items():
                writer.write(_picture(name, frame, backgrounds), time)
            if progress is not None:
                progress(done, reader.num_frames)
    for line in reader.notes:
        notify(line)
    if listed is not None and listed.left:
        warnings.warn(
            f"Expected cuts within {done} frames, got {listed.left} behind the end in {cuts}.",
            stacklevel=2,
        )
    return MatteReport(done, tuple(found))


def to_tensor(frame: Frame, device: torch.device | str) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float in [0, 1]."""
    # Moved as bytes, since those are a quarter.
    return torch.from_numpy(np.stack(cv2.split(frame))).to(device).float().div_(255)


def to_frame(picture: Tensor) -> Frame:
    """(4 or 3, H, W) or (1, H, W) float in [0, 1] -> (H, W, 4 or 3) or (H, W) uint8, rounded to the nearest."""
    levels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).squeeze(2).cpu().numpy()


def composite_over(fgr: Tensor, pha: Tensor, bgr: Tensor) -> Tensor:
    """Put (…, 3, H, W) ``fgr`` with (…, 1, H, W) ``pha`` over (…, 3, H, W) ``bgr``."""
    return fgr * pha + bgr * (1 - pha)


def _noting(
    reader: FrameReader, times: deque[Fraction], cuts: CutList | None, marks: deque[bool]
) -> Iterator[Frame]:
    for number, (time, frame) in enumerate(reader.timed()):
        times.append(time)
        if cuts is not None:
            marks.append(cuts(number, time))
        yield frame


def _picture(name: str, frame: MatteFrame, backgrounds: Iterator[Frame]) -> Frame:
    if name == "alpha":
        return to_frame(frame.pha)
    if name == "foreground":
        return to_frame(frame.fgr)
    if name == "cutout":
        return to_frame(torch.cat([frame.fgr, frame.pha]))
    bgr = to_tensor(next(backgrounds), frame.fgr.device)
    return to_frame(composite_over(frame.fgr, frame.pha, bgr))


def check_paths(
    source: Path, targets: Mapping[str, Path | None], background: str | Path = "green"
) -> dict[str, Path]:
    """Find mistakes in the paths of a job before any work is done for it.

    Args:
        source: as of :func:`matte_video`.
        targets: ``alpha``, ``composite``, ``foreground`` and ``cutout``; None where one isn't wanted.
        background: as of :func:`matte_video`.

    Returns:
        The outputs that are wanted.

    Raises:
        PTQ4VMError: there is none, one can't be written, two are the same, or an input can't be read.
    """
    outputs = {name: Path(path) for name, path in targets.items() if path is not None}
    if not outputs:
        raise PTQ4VMError(
            "Expected an output, got none; name a place for alpha, composite, foreground or cutout"
        )
    is_colour = isinstance(background, str) and parse_colour(background) is not None
    inputs = [Path(source)] if is_colour else [Path(source), Path(background)]
    taken = {os.path.realpath(path): f"the input {path}" for path in inputs}
    for name, path in outputs.items():
        require_output(path, alpha=name == "cutout")
        # An output replaces what has its name, and that may be what is being read.
        place = os.path.realpath(path)
        if place in taken:
            raise PTQ4VMError(
                f"Expected {name} to have a place of its own, got {path}: {taken[place]}"
            )
        taken[place] = f"already the place for {name}"
    return outputs


def _check_output(output: MattingOutput, src: Tensor, number: int) -> None:
    batch, _, height, width = src.shape
    for name, tensor, channels in (("fgr", output.fgr, 3), ("pha", output.pha, 1)):
        if tensor.shape != (batch, channels, height, width):
            raise PTQ4VMError(
                f"Expected {name} of {(batch, channels, height, width)} from the network, got {tuple(tensor.shape)}"
            )
        if not tensor.sum().isfinite():  # one pass; what is not finite stays so in a sum
            raise PTQ4VMError(
                f"Expected finite {name} from the network, got NaN or infinity at frame {number}"
            )


@contextmanager
def _evaluating(model: MattingModel) -> Iterator[None]:
    # Module by module: layers kept in evaluation mode inside a training network must not be switched on at the end.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _working_at(model: MattingModel, ratio: float) -> Iterator[None]:
    before = model.downsample_ratio
    model.downsample_ratio = ratio
    try:
        yield
    finally:
        model.downsample_ratio = before
