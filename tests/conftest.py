"""Fixtures for every test."""

from pathlib import Path

import pytest

from ptq4vm.models import fetch_weights


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """The authors' published weights of rvm_mobilenetv3, from the user's cache or the network."""
    return fetch_weights("rvm_mobilenetv3")
