import sys

import pytest
import torch

from ptq4vm.reporting import measured


@pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="elsewhere the peak isn't reset"
)
def test_the_peak_is_that_of_the_work_alone():
    with measured() as before:
        torch.ones(100_000_000)  # 400 MB, freed at once
    with measured() as after:
        pass
    assert before["peak_gb"] - after["peak_gb"] > 0.3
    assert after["peak_gb"] > 0
    assert 0 <= after["minutes"] < before["minutes"] < 5
