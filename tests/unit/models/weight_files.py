"""Weights files of tests."""

import torch
from safetensors.torch import save_file

NAME = "rvm_mobilenetv3"


def save(state, path):
    """Write a state dict in the format of the path's suffix and return the path."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path
