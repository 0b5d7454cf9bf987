from .builtin import BuiltinSource
from .calibration import CalibrationSet
from .datamodule import VideoMattingDataModule
from .datasets import EvaluationSource, VideoMatteSource
from .sources import ClipSource, LayeredSource, Layers, compose
from .transforms import ClipAugmentation
from .videos import VideoSource

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
