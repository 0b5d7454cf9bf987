"""Calibration in plain PyTorch: losses, the float teacher, layer sensitivity and bit allocation."""

from ptq4vm.calibration.teacher import make_teacher, teacher_key

__all__ = ["make_teacher", "teacher_key"]
