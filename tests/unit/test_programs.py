"""Tests that subprocesses neither run nor import files from the current directory."""

import json
import os
import subprocess

import pytest

from ptq4vm.deploy.benchmark import _SERVE
from ptq4vm.programs import python_program, run_program

MODULES = (
    "pip",
    "json",
    "pickle",
    "struct",
    "socket",
    "random",
    "sitecustomize",
    "usercustomize",
    "multiprocessing",
)


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """Fill the current directory with modules and programs that leave a trace when executed."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n"
        )
    for name in ("git", "uname"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path / 'ran'}\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", os.environ["PATH"]]))
    yield folder
    assert not (tmp_path / "ran").exists()


def test_python_imports_nothing_from_the_current_directory(trapped):
    code = (
        f"import sys, {', '.join(name for name in MODULES if 'customize' not in name)}; "
        "print(sys.path)"
    )
    done = run_program(python_program("-c", code), trapped)
    assert done.returncode == 0, done.stderr
    assert str(trapped) not in done.stdout


def test_pip_is_the_one_that_is_installed(trapped, tmp_path):
    done = run_program(python_program("-m", "pip", "--version"), tmp_path)
    assert done.stdout.startswith("pip ")


@pytest.mark.usefixtures("trapped")
def test_a_program_is_not_taken_from_the_current_directory(tmp_path):
    assert run_program(["git", "--version"], tmp_path).stdout.startswith("git version")


def test_only_relative_folders_in_path(trapped, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join(["", "."]))
    with pytest.raises(FileNotFoundError, match="git"):
        run_program(["git", "--version"], trapped)


def test_a_program_that_takes_too_long(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(python_program("-c", "import time; time.sleep(60)"), tmp_path, 0.2)


def test_a_benchmarks_process_imports_nothing_from_the_current_directory(trapped, tmp_path):
    # Start a benchmark process with a stub of the module that serves it.
    package = tmp_path / "modules/ptq4vm/deploy"
    package.mkdir(parents=True)
    (package / "benchmark.py").write_text(
        "import pickle, struct, socket, random\ndef serve(*plan): print(plan)\n"
    )
    installed = run_program(
        python_program("-c", "import json, sys; print(json.dumps(sys.path))"), tmp_path
    ).stdout
    path = json.dumps([str(tmp_path / "modules"), *json.loads(installed)])
    done = run_program(python_program("-c", _SERVE, path, "7", '["network"]'), trapped)
    assert done.stdout == "(7, ['network'])\n", done.stderr
