import shutil
from collections import namedtuple

import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import SequenceStore


def test_reads_what_was_written_and_gives_the_space_back(tmp_path):
    store = SequenceStore(tmp_path / "store", 3)
    values = torch.rand(3, 4, 2, 5)
    for some in (slice(1, 3), slice(0, 1)):
        store.write("float/f1", some, values[some])
    assert "float/f1" in store
    assert torch.equal(store.read("float/f1", torch.tensor([2, 0])), values[[2, 0]])
    assert torch.equal(store.read("float/f1", slice(1, 2)), values[1:2])
    store.drop("float/f1")
    assert "float/f1" not in store
    assert not list((tmp_path / "store").iterdir())
    store.close()
    assert not (tmp_path / "store").exists()


def test_a_disk_too_small_is_told_before_it_is_full(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 5))
    with pytest.raises(PTQ4VMError, match="larger disk"):
        SequenceStore(tmp_path / "store", 3).write("x", slice(0, 1), torch.rand(1, 4))
