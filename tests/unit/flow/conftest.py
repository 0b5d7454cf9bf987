import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads of small convolutions waiting for a busy core make RAFT here fifty times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
