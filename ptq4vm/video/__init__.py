"""Readers and writers of videos and images, cut detection, and backgrounds for composites."""

from ptq4vm.video.backgrounds import COLOURS, open_background
from ptq4vm.video.cuts import CutDetector, CutList, Cuts, find_cuts
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader, FrameWriter, require_size
from ptq4vm.video.videos import open_frames, open_writer

__all__ = [
    "COLOURS",
    "DEFAULT_RATE",
    "CutDetector",
    "CutList",
    "Cuts",
    "Frame",
    "FrameReader",
    "FrameWriter",
    "find_cuts",
    "open_background",
    "open_frames",
    "open_writer",
    "require_size",
]
