"""Shared fixtures."""

from pathlib import Path

import pytest
import torch

from ptq4vm.models import MattingModel, create_model, fetch_weights

# Small networks do not benefit from threads, and slow down on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """Return the path of the official rvm_mobilenetv3 weights, downloaded if not cached."""
    return fetch_weights("rvm_mobilenetv3")


@pytest.fixture(scope="session")
def random_rvm() -> MattingModel:
    """Create rvm_mobilenetv3 with random weights and BatchNorm statistics estimated on noise.

    The statistics keep activations in a normal range.
    """
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3")
    with torch.no_grad():
        network.train()(torch.rand(2, 1, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="session")
def exact_integer_sums() -> None:
    """Skip on x86 CPUs without VNNI, whose integer kernels saturate at 16 bits."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    if "avx2" in flags and "vnni" not in flags:
        pytest.skip("without VNNI integer sums saturate: an exported network is not PyTorch's")
