"""Clip sources, augmentation, calibration sets and the Lightning datamodule."""

from ptq4vm.data.builtin import BuiltinSource
from ptq4vm.data.calibration import CalibrationSet
from ptq4vm.data.datamodule import VideoMattingDataModule
from ptq4vm.data.datasets import EvaluationSource, VideoMatteSource
from ptq4vm.data.sources import ClipSource, LayeredSource, Layers, compose
from ptq4vm.data.transforms import ClipAugmentation
from ptq4vm.data.videos import VideoSource

__all__ = [
    "BuiltinSource",
    "CalibrationSet",
    "ClipAugmentation",
    "ClipSource",
    "EvaluationSource",
    "LayeredSource",
    "Layers",
    "VideoMatteSource",
    "VideoMattingDataModule",
    "VideoSource",
    "compose",
]
