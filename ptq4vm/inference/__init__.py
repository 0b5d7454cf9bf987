"""Run a network over frames and whole videos, in PyTorch or in a runtime, and measure its speed."""

from ptq4vm.inference.benchmark import Speed, measure_speed, open_network
from ptq4vm.inference.parity import Parity, measure_parity
from ptq4vm.inference.runner import MatteFrame, MatteReport, auto_downsample_ratio, composite_over, matte, matte_video
from ptq4vm.inference.runtimes import RUNTIMES, ExportedNetwork, Runtime, is_exported
from ptq4vm.video import (
    COLOURS,
    DEFAULT_RATE,
    Frame,
    FrameReader,
    FrameWriter,
    open_background,
    open_frames,
    open_writer,
)

__all__ = [
    "COLOURS",
    "DEFAULT_RATE",
    "RUNTIMES",
    "ExportedNetwork",
    "Frame",
    "FrameReader",
    "FrameWriter",
    "MatteFrame",
    "MatteReport",
    "Parity",
    "Runtime",
    "Speed",
    "auto_downsample_ratio",
    "composite_over",
    "is_exported",
    "matte",
    "matte_video",
    "measure_parity",
    "measure_speed",
    "open_background",
    "open_frames",
    "open_network",
    "open_writer",
]
