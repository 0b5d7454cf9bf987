"""Tests of command termination: OS errors, signals, closed pipes and lost ranks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ptq4vm import cli, distributed
from ptq4vm.ownership import this_process

ROOT = Path(__file__).parents[3]

REMEDIES = {
    "ENOENT": "Correct the path",
    "ENOTDIR": "Correct the path",
    "ENAMETOOLONG": "Correct the path",
    "EACCES": "permissions",
    "EROFS": "permissions",
    "ENOSPC": "larger disk",
    "EDQUOT": "quota",
    "EFBIG": "ulimit -f",
    "EMFILE": "ulimit -n",
    "ENOMEM": "Free memory",
    "EIO": "Look after the disk",
    "ESTALE": "Look after the disk",
    "EBUSY": "End the program",
    "ECONNREFUSED": "See to its cause",
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_is_the_errors_own(name, monkeypatch, capsys):
    def refused(args):
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number), "/some/[b]place")

    monkeypatch.setattr(cli, "_run", refused)
    assert cli.main(["runs", "x"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "/some/[b]place" in said
    assert REMEDIES[name] in said
    assert said.count("Correct the path") == (REMEDIES[name] == "Correct the path")


def command(body, *args):
    """Start the command line in a subprocess with a custom command body."""
    code = (
        f"import sys, ptq4vm.cli as cli\ndef run(args):\n{body}\n"
        "cli._run = run\nsys.exit(cli.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], env=environment, text=True, **pipes
    )


WRITES = """
    import time
    from pathlib import Path
    from ptq4vm.ownership import owned
    from ptq4vm.atomic_io import written_whole
    with owned(Path(args[1]), folder=True), written_whole(Path(args[1]) / "a.json") as part:
        part.write_text("half")
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "status", "how"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "")],
)
def test_a_signal_leaves_nothing_behind(tmp_path, number, status, how):
    process = command(WRITES, "matte", tmp_path / "out")
    process.stdout.readline()
    process.send_signal(getattr(signal, number))
    _, said = process.communicate()
    assert process.returncode == status
    assert how in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("quantize", "the same command goes on from the last block or epoch"),
        ("sensitivity", "the same command goes on from the last layer"),
        ("fit", "go on from the last epoch's checkpoint with --ckpt_path"),
        ("matte", "nothing was written; the same command begins anew"),
        ("export", "nothing was written; the same command begins anew"),
        ("benchmark", "nothing was written; the same command begins anew"),
        ("evaluate", "the same command begins anew"),
        ("test", "the same command begins anew"),
    ],
)
def test_only_commands_that_can_go_on_promise_it(name, promise, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main([name]) == 130
    assert " ".join(capsys.readouterr().err.split()) == f"ptq4vm: interrupted; {promise}."
    assert signal.getsignal(signal.SIGINT) is before


def test_lightnings_own_end_of_an_interrupted_fit(monkeypatch):
    def lightning(args):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(cli, "_run", lightning)
    assert cli.main(["fit"]) == 130


@pytest.mark.parametrize(
    "written",
    ["print('x' * 200000)", "from rich import print as p; p('x ' * 200000)", "print('x')"],
)
def test_it_ends_silently_where_nobody_reads(written):
    process = command(f"    sys.stdin.readline(); {written}", "runs")
    process.stdout.close()
    process.wait()
    assert process.returncode == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_another_broken_pipe_is_an_error(monkeypatch, capsys):
    def broken(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "_run", broken)
    monkeypatch.setattr(cli, "_nobody_reads", lambda: False)
    assert cli.main(["runs"]) == 2
    assert "Broken pipe. See to its cause" in capsys.readouterr().err


@pytest.fixture
def ended():
    """Return the name of a process that has ended."""
    code = "from ptq4vm.ownership import this_process; print(this_process())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()


GLOO = "[../gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:46797: Connection reset by peer."


def test_a_lost_rank_is_named(monkeypatch, capsys, ended):
    def loses(args):
        raise RuntimeError(GLOO)

    monkeypatch.setattr(cli, "_run", loses)
    monkeypatch.setattr(distributed, "_known", [this_process(), ended])
    assert cli.main(["quantize"]) == 2
    pid = ended.split("-")[1]
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said == f"ptq4vm: rank 1 of 2 (pid {pid}) was lost; "
        "the same command goes on from the last block or epoch."
    )


def test_one_of_those_left_speaks(monkeypatch, capsys, ended):
    """Print nothing on rank 1 when rank 2 is lost and rank 0 is running."""

    def loses(args):
        raise RuntimeError(GLOO)

    parent = f"{this_process().split('-')[0]}-{os.getppid()}-{processes_started(os.getppid())}"
    monkeypatch.setattr(cli, "_run", loses)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "_known", [parent, this_process(), ended])
    assert cli.main(["quantize"]) == 2
    assert capsys.readouterr().err == ""


def processes_started(pid):
    from ptq4vm.ownership import _started

    return _started(pid) or 0


def test_an_error_of_another_kind_keeps_its_traceback(monkeypatch, ended):
    def wrong(args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(cli, "_run", wrong)
    monkeypatch.setattr(distributed, "_known", [this_process(), ended])
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["quantize"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_within_a_finalizer_comes_once_more(number):
    body = f"""
    import os, time
    class Held:
        def __del__(self):
            os.kill(os.getpid(), {int(number)})
            time.sleep(0.2)
    held = Held()
    del held
    time.sleep(20)"""
    process = command(body, "runs")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_a_stop_after_the_command_ends_the_program_without_a_traceback():
    code = (
        "import sys, time, ptq4vm.cli as cli\n"
        "cli._run = lambda args: None\n"
        "sys.argv[1:] = ['runs']\n"
        "cli.main()\n"
        "print('done', flush=True)\n"
        "time.sleep(20)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)
    assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == -signal.SIGINT
