import pytest
import torch
from weight_files import NAME

from ptq4vm.models import create_model


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return create_model(NAME)


@pytest.fixture
def blank():
    torch.manual_seed(2)
    return create_model(NAME)
