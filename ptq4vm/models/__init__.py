"""Matting networks, their weights and the model registry."""

from ptq4vm.models.base import Block, MattingModel
from ptq4vm.models.download import WEIGHTS, fetch_weights
from ptq4vm.models.from_module import from_module
from ptq4vm.models.modnet import MODNet
from ptq4vm.models.registry import create_model, float_network, list_models, register_model
from ptq4vm.models.rvm import RobustVideoMatting
from ptq4vm.models.weights import load_weights, weights_checksum

__all__ = [
    "WEIGHTS",
    "Block",
    "MODNet",
    "MattingModel",
    "RobustVideoMatting",
    "create_model",
    "fetch_weights",
    "float_network",
    "from_module",
    "list_models",
    "load_weights",
    "register_model",
    "weights_checksum",
]
