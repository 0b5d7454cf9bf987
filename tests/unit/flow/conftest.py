import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Use one thread: with more, RAFT's small convolutions are 50x slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
