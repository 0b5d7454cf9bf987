"""Video matting: frame by frame, and from file to file."""

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
"""Length in pixels of the frame's longer side at the automatic downsample ratio."""
Ratio = float | Literal["auto"]
"""Downsample ratio in (0, 1], or ``auto`` for :func:`auto_downsample_ratio`."""


class MatteFrame(NamedTuple):
    """Frame and matte on the network's device, as inference tensors: clone them for training."""

    src: Tensor
    """(3, H, W) RGB in [0, 1]."""
    fgr: Tensor
    """(3, H, W) foreground colour, RGB in [0, 1]."""
    pha: Tensor
    """(1, H, W) alpha in [0, 1]."""
    cut: bool = False
    """True if a new shot begins at this frame, where the recurrent state was reset."""


class MatteReport(NamedTuple):
    """Result of :func:`matte_video`."""

    frames: int
    """Number of frames."""
    cuts: tuple[int, ...]
    """Indices of the frames, from 0, at which the recurrent state was reset."""


def auto_downsample_ratio(height: int, width: int) -> float:
    """Return the ratio for a longer side of 512 pixels, at most 1; recommended by RVM."""
    return min(LONG_SIDE / max(height, width), 1.0)


def choose_downsample_ratio(model: MattingModel, ratio: Ratio, height: int, width: int) -> float:
    """Resolve ``auto`` to an exported graph's ratio, else :func:`auto_downsample_ratio`.

    Raises:
        PTQ4VMError: the ratio is outside (0, 1].
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
    """Matte frames one by one, carrying the recurrent state; memory use doesn't grow.

    Args:
        model: network; runs at its own ``downsample_ratio`` and is in evaluation mode until the
            generator ends.
        frames: (H, W, 3) uint8 RGB frames of one size, read one per matte.
        device: device to move the network to; None leaves it where it is.
        cuts: frames at which the state is reset: ``auto`` for cuts found by
            :class:`~ptq4vm.video.CutDetector`, ``off`` for none, frame indices from 0, or a
            predicate called with each frame in order.

    Yields:
        A :class:`MatteFrame` per frame.

    Raises:
        PTQ4VMError: a frame differs in size or isn't uint8 RGB, or the network's output has a wrong
            shape, NaN or infinity.
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
                    "Expected (H, W, 3) uint8 frames of one size, "
                    f"got {frame.shape} {frame.dtype} at frame {number}"
                    + (f" after {size}" if number else "")
                )
            # Not across the yield: inference mode would leak into the caller.
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
    """Matte a video or a folder of images, from file to file, one matte per source frame.

    Args:
        model: network; runs on its parameters' device.
        source: video, folder of images or single image.
        alpha: output for alpha: .mp4, .mkv, .webm or .mov for a video, no suffix for a folder of
            PNGs, .png for a single image; None for no output.
        composite: output for fgr·pha + bgr·(1 - pha), in the same formats.
        background: ``#rrggbb``, colour name, or path of an image or a video; see
            :func:`open_background`.
        foreground: output for the foreground colour, in the same formats.
        downsample_ratio: scale of the frames for the network's body, in (0, 1]; ``auto`` for
            :func:`auto_downsample_ratio` or the ratio of an exported graph. The network's own
            ratio is restored at the end.
        progress: callback, called with (frames done, total frames or None) after each frame.
        cutout: output for the foreground with alpha as fourth channel: .mov (ProRes 4444) or .webm
            (VP9) for a video, no suffix for a folder of PNGs, .png for a single image.
        sound: copy the source's sound, without re-encoding, to composite and cutout videos.
        cuts: frames at which the state is reset: ``auto``, ``off``, or a file as for
            :meth:`ptq4vm.video.CutList.read`. Listed cuts behind the end give a warning.
        strict: raise on a frame that can't be decoded, instead of repeating the previous frame.
        notify: callback, called at the end with each line of the source's ``notes``: damaged
            frames, HDR, interlacing.

    Returns:
        Number of frames, and the frames at which the state was reset.

    Raises:
        PTQ4VMError: no output is given, or a file can't be read or written. Outputs are then
            removed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> from ptq4vm import load_model, matte_video
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / "in.png")
        >>> network = load_model("rvm_mobilenetv3")
        >>> matte_video(network, folder / "in.png", alpha=folder / "alpha.png").frames
        1
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
        # Reading and matting run in background threads, writing in this one.
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
    """Convert (H, W, 3) uint8 to (3, H, W) float in [0, 1]."""
    # Transferred as uint8, a quarter of the size of float32.
    return torch.from_numpy(np.stack(cv2.split(frame))).to(device).float().div_(255)


def to_frame(picture: Tensor) -> Frame:
    """Convert float (1, 3 or 4, H, W) in [0, 1] to rounded uint8 (H, W) or (H, W, 3 or 4)."""
    levels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).squeeze(2).cpu().numpy()


def composite_over(fgr: Tensor, pha: Tensor, bgr: Tensor) -> Tensor:
    """Composite ``fgr`` (…, 3, H, W) over ``bgr`` (…, 3, H, W) with alpha ``pha`` (…, 1, H, W)."""
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
    """Check the input and output paths of a job.

    Args:
        source: as for :func:`matte_video`.
        targets: path or None for each of ``alpha``, ``composite``, ``foreground`` and ``cutout``.
        background: as for :func:`matte_video`.

    Returns:
        The outputs that are not None.

    Raises:
        PTQ4VMError: there is no output, an output can't be written, two outputs are the same, an
            output is an input, or an input can't be read.
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
        # Writing replaces an existing file, which may be an input.
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
                f"Expected {name} of {(batch, channels, height, width)} from the network, "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.sum().isfinite():  # one pass: NaN and infinity propagate through the sum
            raise PTQ4VMError(
                f"Expected finite {name} from the network, got NaN or infinity at frame {number}"
            )


@contextmanager
def _evaluating(model: MattingModel) -> Iterator[None]:
    # Per module, since some modules may be in evaluation mode inside a training network.
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
