"""Matting networks, where their weights come from, and the registry that makes them by name."""

from ptq4vm.models.base import Block, MattingModel
from ptq4vm.models.rvm import RobustVideoMatting

__all__ = ["Block", "MattingModel", "RobustVideoMatting"]
