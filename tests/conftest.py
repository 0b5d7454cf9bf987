"""Fixtures for every test."""

from pathlib import Path

import pytest
import torch

from ptq4vm.models import MattingModel, create_model, fetch_weights

# Small networks gain nothing from threads, and lose much where other jobs run beside the tests.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """The authors' published weights of rvm_mobilenetv3, from the user's cache or the network."""
    return fetch_weights("rvm_mobilenetv3")


@pytest.fixture(scope="session")
def random_rvm() -> MattingModel:
    """A random rvm_mobilenetv3 whose batch norms are set from noise, so that its values stay in a sane range."""
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3")
    with torch.no_grad():
        network.train()(torch.rand(2, 1, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="session")
def exact_integer_sums() -> None:
    """Skips where two products of 8 bits are added in 16, which they may exceed: on x86 without VNNI."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    if "avx2" in flags and "vnni" not in flags:
        pytest.skip("without VNNI integer sums saturate: an exported network is not PyTorch's")
