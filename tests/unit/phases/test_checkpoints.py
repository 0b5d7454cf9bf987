import pickle
import resource
from pathlib import Path

import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases.checkpoints import WholeCheckpoints

CHECKPOINT = {
    "state_dict": {"a": torch.arange(1000.0)},
    "epoch": 3,
    "loops": {},
    "optimizer_states": [],
}


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    WholeCheckpoints().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_was_written_is_read(saved):
    read = WholeCheckpoints().load_checkpoint(saved)
    assert read["epoch"] == 3
    assert torch.equal(read["state_dict"]["a"], CHECKPOINT["state_dict"]["a"])
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_checkpoint_before(saved):
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(PTQ4VMError, match=r"Can't write .*last\.ckpt"):
            WholeCheckpoints().save_checkpoint({**CHECKPOINT, "epoch": 4}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("weights_only", [None, True, False])
def test_pickled_code_is_refused_and_not_run(saved, weights_only):
    torch.save({**CHECKPOINT, "callbacks": Evil()}, saved)
    with pytest.raises(PTQ4VMError, match="carries more than tensors"):
        WholeCheckpoints().load_checkpoint(saved, weights_only=weights_only)
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"?" * 100,
        lambda data: pickle.dumps(Evil()),
        lambda data: None,
    ],
)
def test_a_damaged_checkpoint_is_told(saved, damage):
    data = damage(saved.read_bytes())
    saved.unlink() if data is None else saved.write_bytes(data)
    with pytest.raises(PTQ4VMError, match="Expected a checkpoint of a fit, got"):
        WholeCheckpoints().load_checkpoint(saved)
    assert not Path("evil").exists()


def test_another_kind_of_file_is_told(saved):
    torch.save({"a": torch.zeros(1)}, saved)
    with pytest.raises(PTQ4VMError, match="holds something else"):
        WholeCheckpoints().load_checkpoint(saved)
