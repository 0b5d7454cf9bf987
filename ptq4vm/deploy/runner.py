"""Video matting: frame by frame, and from file to file."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptq4vm.deploy.ahead import ahead
from ptq4vm.deploy.frames import MatteFrame, to_tensor
from ptq4vm.deploy.outputs import MatteOutputs
from ptq4vm.deploy.ratio import Ratio, choose_downsample_ratio, working_at
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import FrameModel, MattingOutput
from ptq4vm.video.cuts import CutList, Cuts, cut_test
from ptq4vm.video.frames import Frame, FrameReader
from ptq4vm.video.videos import open_frames


class MatteReport(NamedTuple):
    """Result of :func:`matte_video`."""

    frames: int
    """Number of frames."""
    cuts: tuple[int, ...]
    """Indices of the frames, from 0, at which the recurrent state was reset."""


def matte(
    model: FrameModel,
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
    if device is not None:
        model.to(torch.device(device))
    device = model.runs_on
    is_cut = cut_test(cuts)
    with model.evaluating():
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
    model: FrameModel,
    source: Path,
    alpha: Path | None = None,
    composite: Path | None = None,
    *,
    background: str | Path = "green",
    foreground: Path | None = None,
    cutout: Path | None = None,
    sound: bool = True,
    downsample_ratio: Ratio = "auto",
    cuts: str | Path = "auto",
    strict: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> MatteReport:
    """Matte a video or a folder of images, from file to file, one matte per source frame.

    Damaged frames, HDR and interlacing of the source give warnings at the end.

    Args:
        model: network; runs where it is, see ``runs_on``.
        source: video, folder of images or single image.
        alpha: output for alpha, as in :class:`MatteOutputs`.
        composite: output for the composite over ``background``, likewise.
        background: as in :class:`MatteOutputs`.
        foreground: output for the foreground colour, likewise.
        cutout: output for the foreground with alpha as fourth channel, likewise.
        sound: copy the source's sound to composite and cutout videos.
        downsample_ratio: as for :func:`write_mattes`.
        cuts: as for :func:`write_mattes`.
        strict: raise on a frame that can't be decoded, instead of repeating the previous frame.
        progress: callback, called with (frames done, total frames or None) after each frame.

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
    outputs = MatteOutputs(alpha, composite, background, foreground, cutout, sound)
    outputs.check(source)
    reader = open_frames(source, strict)
    report = write_mattes(model, reader, outputs, downsample_ratio, cuts, progress)
    for line in reader.notes:
        warnings.warn(line, stacklevel=2)
    return report


def write_mattes(
    model: FrameModel,
    reader: FrameReader,
    outputs: MatteOutputs,
    downsample_ratio: Ratio = "auto",
    cuts: str | Path = "auto",
    progress: Callable[[int, int | None], None] | None = None,
) -> MatteReport:
    """Matte the frames of an opened source and write the outputs, as :func:`matte_video`.

    Args:
        model: network; runs where it is, see ``runs_on``.
        reader: source; its ``notes`` are complete afterwards.
        outputs: files to write.
        downsample_ratio: scale of the frames for the network's body, in (0, 1]; ``auto`` for
            :func:`auto_downsample_ratio` or the ratio of an exported graph. The network's own
            ratio is restored at the end.
        cuts: frames at which the state is reset: ``auto``, ``off``, or a file as for
            :meth:`ptq4vm.video.CutList.read`. Listed cuts behind the end give a warning.
        progress: callback, called with (frames done, total frames or None) after each frame.

    Raises:
        PTQ4VMError: a file can't be read or written. Outputs are then removed.
    """
    listed = None if cuts in ("auto", "off") else CutList.read(Path(cuts))
    ratio = choose_downsample_ratio(model, downsample_ratio, reader.height, reader.width)
    done, found = 0, []
    # Reading and matting run in background threads, writing in this one.
    times: deque[Fraction] = deque()
    marks: deque[bool] = deque()
    test: Cuts = cuts if listed is None else lambda frame: marks.popleft()  # type: ignore[assignment]
    with outputs.writing(reader) as write, working_at(model, ratio):
        frames = ahead(_noting(reader, times, listed, marks))
        with closing(ahead(matte(model, frames, cuts=test))) as mattes:
            for done, frame in enumerate(mattes, 1):
                found += [done - 1] if frame.cut else []
                write(frame, times.popleft())
                if progress is not None:
                    progress(done, reader.num_frames)
    if listed is not None and listed.left:
        warnings.warn(
            f"Expected cuts within {done} frames, got {listed.left} behind the end in {cuts}.",
            stacklevel=2,
        )
    return MatteReport(done, tuple(found))


def _noting(
    reader: FrameReader, times: deque[Fraction], cuts: CutList | None, marks: deque[bool]
) -> Iterator[Frame]:
    for number, (time, frame) in enumerate(reader.timed()):
        times.append(time)
        if cuts is not None:
            marks.append(cuts(number, time))
        yield frame


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
