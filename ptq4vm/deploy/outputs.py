"""Files that are written with the mattes of a video."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from ptq4vm.deploy.frames import MatteFrame, composite_over, to_frame, to_tensor
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.backgrounds import open_background, parse_colour
from ptq4vm.video.frames import Frame, FrameReader
from ptq4vm.video.reader import VideoReader
from ptq4vm.video.videos import open_writer, require_output


@dataclass(frozen=True)
class MatteOutputs:
    """Files that are written with the mattes of a video; those that are None are not.

    Args:
        alpha: file for alpha: .mp4, .mkv, .webm or .mov for a video, no suffix for a folder of
            PNGs, .png for a single image.
        composite: file for the composite over the background, in the same formats.
        background: #rrggbb, a colour's name, or path of an image or a video.
        foreground: file for the foreground colour, in the same formats.
        cutout: file for the foreground with alpha as fourth channel: .mov (ProRes 4444) or .webm
            (VP9) for a video, no suffix for a folder of PNGs, .png for a single image.
        sound: copy the source's sound, without re-encoding, to composite and cutout videos.
    """

    alpha: Path | None = None
    composite: Path | None = None
    background: str | Path = "green"
    foreground: Path | None = None
    cutout: Path | None = None
    sound: bool = True

    @property
    def paths(self) -> dict[str, Path]:
        """Outputs that are not None, by name."""
        names = ("alpha", "composite", "foreground", "cutout")
        found = {name: getattr(self, name) for name in names}
        return {name: Path(path) for name, path in found.items() if path is not None}

    def check(self, source: Path) -> None:
        """Check the paths of a job, before any work.

        Args:
            source: input of the job.

        Raises:
            PTQ4VMError: there is no output, an output can't be written, two outputs are the same,
                or an output is an input.
        """
        if not self.paths:
            raise PTQ4VMError(
                "Expected an output, got none; name a place for alpha, composite, foreground or "
                "cutout"
            )
        colour = isinstance(self.background, str) and parse_colour(self.background) is not None
        inputs = [Path(source)] if colour else [Path(source), Path(self.background)]
        taken = {os.path.realpath(path): f"the input {path}" for path in inputs}
        for name, path in self.paths.items():
            require_output(path, alpha=name == "cutout")
            # Writing replaces an existing file, which may be an input.
            place = os.path.realpath(path)
            if place in taken:
                raise PTQ4VMError(
                    f"Expected {name} to have a place of its own, got {path}: {taken[place]}"
                )
            taken[place] = f"already the place for {name}"

    @contextmanager
    def writing(self, reader: FrameReader) -> Iterator[Callable[[MatteFrame, Fraction], None]]:
        """Open all outputs for the frames of a source, and close them at the end.

        After an exception, partial outputs are removed.

        Yields:
            Function that writes a frame with its timestamp in seconds to all outputs.

        Raises:
            PTQ4VMError: an output can't be written, or the background can't be read.
        """
        size = (reader.height, reader.width)
        heard = reader.path if self.sound and isinstance(reader, VideoReader) else None
        with ExitStack() as stack:
            backgrounds = stack.enter_context(
                closing(open_background(self.background, size, reader.rate))
            )
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
                for name, path in self.paths.items()
            }

            def write(frame: MatteFrame, time: Fraction) -> None:
                for name, writer in writers.items():
                    writer.write(_picture(name, frame, backgrounds), time)

            yield write


def _picture(name: str, frame: MatteFrame, backgrounds: Iterator[Frame]) -> Frame:
    if name == "alpha":
        return to_frame(frame.pha)
    if name == "foreground":
        return to_frame(frame.fgr)
    if name == "cutout":
        return to_frame(torch.cat([frame.fgr, frame.pha]))
    bgr = to_tensor(next(backgrounds), frame.fgr.device)
    return to_frame(composite_over(frame.fgr, frame.pha, bgr))
