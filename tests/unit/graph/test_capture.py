import errno
import mmap
import os
import resource

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
    store.close()


def test_files_have_no_names_and_all_their_space(tmp_path, monkeypatch):
    """Check that files are unlinked (a kill leaves nothing) and preallocated (no SIGBUS later)."""
    reserved, map_ = [], mmap.mmap

    def watched(file, size):
        reserved.append(os.fstat(file).st_blocks * 512 - size)
        return map_(file, size)

    monkeypatch.setattr(mmap, "mmap", watched)
    store = SequenceStore(tmp_path / "store", 3)
    store.write("a", slice(0, 1), torch.rand(1, 400_000))
    monkeypatch.delattr(os, "posix_fallocate", raising=False)  # systems without posix_fallocate
    store.write("b", slice(0, 1), torch.rand(1, 400_000))
    assert len(reserved) == 2
    assert min(reserved) >= 0
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize("fallocate", [True, False])
def test_a_limit_on_the_size_of_files_is_told(tmp_path, monkeypatch, fallocate):
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = SequenceStore(tmp_path / "store", 3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(PTQ4VMError, match=r"Expected 0\.0048 GB free.*ulimit -f"):
            store.write("x", slice(0, 1), torch.rand(1, 400_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "larger disk"), (errno.EDQUOT, "quota")]
)
def test_a_disk_too_small_is_told_before_it_is_full(tmp_path, monkeypatch, number, remedy):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PTQ4VMError, match=f"{remedy}.*lower num_sequences or seq_length"):
        SequenceStore(tmp_path / "store", 3).write("x", slice(0, 1), torch.rand(1, 4))
