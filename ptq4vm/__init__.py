"""Post-training quantization of video matting networks."""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [
    "QConfig",
    "VideoMattingDataModule",
    "evaluate",
    "export",
    "load_model",
    "matte_video",
    "quantize",
]
