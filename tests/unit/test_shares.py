import pytest

from ptq4vm import distributed
from ptq4vm.errors import PTQ4VMError


def test_one_process_does_it_all():
    assert (distributed.count(), distributed.rank()) == (1, 0)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.gather("a") == ["a"]
    assert distributed.first_alone(lambda: 5) == distributed.together(lambda: 5) == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_in_one_process_fails_in_all(monkeypatch, rank):
    """Simulate both ranks of one exchange in which rank 1 runs out of disk space."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "gather", lambda value: [None, "OSError: disk full"])

    def work():
        if rank == 1:
            raise OSError("disk full")

    with pytest.raises((PTQ4VMError, OSError)[rank], match="disk full"):
        distributed.together(work)


def test_the_first_process_works_before_the_others(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    log = []
    monkeypatch.setattr(distributed, "gather", lambda value: log.append("met") or [value])
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert distributed.first_alone(lambda rank=rank: log.append(rank) or rank) == rank
    assert log == [0, "met", "met", "met", 1, "met"]
    distributed.once(log.append, "never in the second")
    assert "never in the second" not in log
