"""Fixtures for every test."""

from pathlib import Path

import pytest
import torch

from ptq4vm.models import fetch_weights

# Small networks gain nothing from threads, and lose much where other jobs run beside the tests.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """The authors' published weights of rvm_mobilenetv3, from the user's cache or the network."""
    return fetch_weights("rvm_mobilenetv3")
