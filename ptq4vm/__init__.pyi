from .data import VideoMattingDataModule
from .deploy import export, matte_video
from .graph import load_model
from .pipeline import QuantizeSettings, evaluate, quantize
from .quantizers import QConfig

__version__: str
__all__ = [
    "QConfig",
    "QuantizeSettings",
    "VideoMattingDataModule",
    "evaluate",
    "export",
    "load_model",
    "matte_video",
    "quantize",
]
