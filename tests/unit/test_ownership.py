import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptq4vm import ownership
from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError
from ptq4vm.ownership import is_running, owned, process_id, temporary_path, this_process

ROOT = Path(__file__).parents[2]


def start(code, *args):
    """Start a subprocess and return it with its first line of output."""
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def kill(process, number=signal.SIGKILL):
    process.send_signal(number)
    process.communicate()


SLEEPS = (
    "import time; from ptq4vm.ownership import this_process; "
    "print(this_process(), flush=True); time.sleep(60)"
)
OWNS = """
import os, sys, time
from pathlib import Path
from ptq4vm.ownership import owned
with owned(Path(sys.argv[1]), folder=True):
    if len(sys.argv) > 2 and not (child := os.fork()):
        time.sleep(60)
    print(child if len(sys.argv) > 2 else os.getpid(), flush=True)
    time.sleep(60)
"""
WRITES = """
import sys, time
from pathlib import Path
from ptq4vm.atomic_io import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_text("half")
    print(part.name, flush=True)
    time.sleep(60)
"""


def test_a_process_runs_until_it_ends():
    assert is_running(this_process())
    process, name = start(SLEEPS)
    assert process_id(name) == process.pid
    assert is_running(name) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_running(name) is False  # a zombie
    kill(process)
    assert is_running(name) is False


def test_another_process_with_the_same_id_and_another_machines():
    machine, pid, start_ticks = this_process().split("-")
    assert is_running(f"{machine}-{pid}-{int(start_ticks) + 1}") is False
    assert is_running(f"{'0' * 8}-{pid}-{start_ticks}") is None


def test_a_killed_process_temporary_file_goes_with_the_next_start_and_a_living_ones_stays(tmp_path):
    target = tmp_path / "a.[x].json"  # contains glob characters
    living, kept = start(WRITES, target)
    killed, left = start(WRITES, target)
    kill(killed)
    assert {path.name for path in tmp_path.iterdir()} == {kept, left}
    with written_whole(target) as part:
        part.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {kept, target.name}
    kill(living)


def test_another_machines_temporary_folder_is_left_alone_for_a_day(tmp_path):
    target = tmp_path / "frames"
    folder = tmp_path / f".frames.{'0' * 8}-1-1.{'a' * 8}.part"
    folder.mkdir()
    (folder / "0000.png").touch()
    temporary_path(target)
    assert folder.is_dir()
    day_ago = time.time() - 25 * 3600
    os.utime(folder, (day_ago, day_ago))
    temporary_path(target)
    assert not folder.exists()


def test_what_nobody_cleared_goes_when_the_process_ends(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ptq4vm.ownership import temporary_path\n"
        "folder = temporary_path(Path(sys.argv[1])); folder.mkdir(); (folder / 'a').touch()\n"
        "temporary_path(Path(sys.argv[1])).touch(); print('ready', flush=True)"
    )
    process, _ = start(code, tmp_path / "out")
    process.communicate()
    assert not list(tmp_path.iterdir())


def test_long_names_get_a_temporary_one(tmp_path):
    target = tmp_path / ("ä" * 120 + ".json")
    with written_whole(target) as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_place_has_one_owner(tmp_path):
    place = tmp_path / "run"
    process, _ = start(OWNS, place)
    message = (
        f"process {process.pid} on {socket.gethostname()} has worked on since "
        f".*end it \\(kill {process.pid}\\)"
    )
    with pytest.raises(PTQ4VMError, match=message), owned(place, folder=True):
        pass
    kill(process, signal.SIGTERM)
    with (
        owned(place, folder=True),
        pytest.raises(PTQ4VMError, match=f"process {os.getpid()}"),
        owned(place, True),
    ):
        pass
    assert not list(place.iterdir())


def test_a_file_is_owned_beside_it(tmp_path):
    with owned(tmp_path / "new" / "net.safetensors"):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".net.safetensors.lock"]
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("forked", [[], ["fork"]])
def test_a_dead_owners_place_is_taken_over(tmp_path, forked):
    """Take over the lock even if a fork of the owner, e.g. a loader worker, still runs."""
    process, child = start(OWNS, tmp_path, *forked)
    kill(process)
    try:
        assert (tmp_path / ".lock").exists()
        with owned(tmp_path, folder=True):
            assert (
                process_id(json.loads((tmp_path / ".lock").read_text())["process"]) == os.getpid()
            )
    finally:
        if forked:
            os.kill(int(child), signal.SIGKILL)


def write_owner(folder, **changes):
    owner = {
        "process": this_process(),
        "host": "elsewhere",
        "boot": "another",
        "since": "2026-01-01",
        **changes,
    }
    (folder / ".lock").write_text(json.dumps(owner))


def test_another_hosts_place_is_refused_with_what_to_do(tmp_path):
    write_owner(tmp_path, process=f"{'0' * 8}-12-345")
    message = r"process 12 on elsewhere.*If it has ended, remove .*\.lock"
    with pytest.raises(PTQ4VMError, match=message), owned(tmp_path, folder=True):
        pass
    assert (tmp_path / ".lock").exists()


def test_another_container_on_this_machine_that_ended_is_no_owner(tmp_path):
    if not ownership._boot():
        pytest.skip("this system doesn't say which start of which kernel it is")
    write_owner(tmp_path, process=f"{'0' * 8}-12-345", boot=ownership._boot())
    with owned(tmp_path, folder=True):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"process": 3}', '{"process": "a-b-c"}', "[" * 4000]
)
def test_a_lock_that_says_nothing_is_free(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with owned(tmp_path, folder=True):
        pass


def test_without_locks_of_the_file_system_the_owners_name_decides(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    machine, pid, began = this_process().split("-")
    write_owner(tmp_path, boot=ownership._boot())
    with (
        pytest.raises(PTQ4VMError, match=f"process {pid} on elsewhere"),
        owned(tmp_path, folder=True),
    ):
        pass
    write_owner(tmp_path, process=f"{machine}-{pid}-{int(began) + 1}")  # its process id was reused
    with owned(tmp_path, folder=True):
        pass


def test_of_many_that_start_at_once_one_gets_it(tmp_path):
    """Start six processes that compete for the stale lock of a dead owner."""
    machine, pid, began = this_process().split("-")
    write_owner(tmp_path, process=f"{machine}-{pid}-{int(began) + 1}")
    code = (
        "import sys; from pathlib import Path; from ptq4vm.errors import PTQ4VMError\n"
        "from ptq4vm.ownership import owned\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n    with owned(Path(sys.argv[1]), folder=True): "
        "print('owns', flush=True); sys.stdin.readline()\n"
        "except PTQ4VMError: print('refused', flush=True)"
    )
    processes = [start(code, tmp_path)[0] for _ in range(6)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline().strip() for process in processes)
    for process in processes:
        process.communicate()
    assert said == ["owns"] + 5 * ["refused"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PTQ4VMError, match="Correct the path"),
        owned(tmp_path / "file" / "run", folder=True),
    ):
        pass
