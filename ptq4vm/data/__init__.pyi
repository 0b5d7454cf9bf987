from .builtin import BuiltinSource
from .calibration import CalibrationSet
from .datamodule import VideoMattingDataModule
from .datasets import EvaluationSource, VideoMatteSource
from .inputs import Auto, Builtin, Composites, CutOuts, EvaluationTree, SourceSettings, Videos
from .sources import ClipSource, LayeredSource, Layers, compose
from .transforms import ClipAugmentation
from .videos import VideoSource

__all__ = [
    "Auto",
    "Builtin",
    "BuiltinSource",
    "CalibrationSet",
    "ClipAugmentation",
    "ClipSource",
    "Composites",
    "CutOuts",
    "EvaluationSource",
    "EvaluationTree",
    "LayeredSource",
    "Layers",
    "SourceSettings",
    "VideoMatteSource",
    "VideoMattingDataModule",
    "VideoSource",
    "Videos",
    "compose",
]
