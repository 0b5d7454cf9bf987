"""Post-training quantization of video matting networks."""

__version__ = "0.1.0"
