"""Clip sources, augmentation, the calibration set, and the datamodule over them.

Imported lazily: deployment uses the sources, and must not load Lightning for the datamodule.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
