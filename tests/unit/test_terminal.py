"""Tests that external text is printed verbatim, without Rich markup."""

import ast
from pathlib import Path

import ptq4vm
from ptq4vm.pipeline.run import Run
from ptq4vm.reporting import Fidelity, ResultRow, render_table
from ptq4vm.terminal import plain_console

NAMES = ("a[/b]c", "[red]x[/red]", ":warning:", "back\\")
SOURCES = sorted(Path(ptq4vm.__file__).parent.rglob("*.py"))


def test_a_plain_console_prints_markup_as_it_is(capsys):
    for name in NAMES:
        plain_console().print(name, style="bold")
        plain_console(stderr=True).print(name)
    for said in capsys.readouterr():
        assert said.split() == list(NAMES)


def test_tables_show_headings_titles_and_cells_as_they_are(capsys):
    rows = [ResultRow(name, name, name, {name: 1.0}, fidelity=Fidelity(2.0, 2.0)) for name in NAMES]
    for name in NAMES:
        render_table(rows, title=name)
    said = capsys.readouterr().out
    assert all(said.count(name) >= 4 for name in NAMES)


def test_a_run_says_its_rows_as_they_are(tmp_path, capsys):
    run = Run(tmp_path, None, {}, "float")
    with run.progress():
        for name in NAMES:
            run.say(name)
    said = capsys.readouterr().out
    assert [name for name in NAMES if name in said] == list(NAMES)
    assert [
        line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()
    ] == list(NAMES)


def test_consoles_and_columns_are_made_in_one_place():
    made = {
        (path.name, node.func.id)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Console", "TextColumn")
    }
    assert made == {("terminal.py", "Console"), ("terminal.py", "TextColumn")}
