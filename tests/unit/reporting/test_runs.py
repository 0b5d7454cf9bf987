import io
import json

import pytest
from folders import write_run
from rich.console import Console

from ptq4vm import cli
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting import compare_runs, list_runs, read_run


def shown(function, *args):
    console = Console(file=io.StringIO(), width=160, color_system=None)
    function(*args, console)
    return console.file.getvalue()


def test_the_last_row_of_each_of_the_bits_is_final(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert [(bits, row.name, row.metrics["mad"]) for bits, row in run.final.items()] == [
        ("W8A8", "BIQ + <GAC>", 7.0), ("W4A8", "BIQ + <GAC>", 9.0)
    ]  # fmt: skip
    assert run.when == "2026-01-02 03:04"


def test_the_list_has_every_run_and_tells_its_state(tmp_path):
    write_run(tmp_path / "deep" / "one")
    write_run(tmp_path / "two", finished=False)
    (write_run(tmp_path / "bad") / "metrics.json").write_text('{"rows": [')
    (write_run(tmp_path / "odd") / "settings.json").write_text("[]")
    lines = shown(list_runs, tmp_path).splitlines()
    one, other, two = (line.split() for line in lines if "rvm_mobilenetv3" in line)
    assert one == [
        "deep/one",
        "rvm_mobilenetv3",
        "W8A8",
        "7.00",
        "3.50",
        "2.00",
        "3.90",
        "2026-01-02",
        "03:04",
        "finished",
    ]
    assert other[2:4] == ["W4A8", "9.00"]
    assert two == [
        "two",
        "rvm_mobilenetv3",
        "W8A8",
        "W4A8",
        *"––––",
        "2026-01-02",
        "03:04",
        "unfinished",
    ]
    damaged = [line for line in lines if line.startswith("damaged")]
    assert len(damaged) == 2
    assert "metrics.json" in damaged[0]
    assert "settings.json" in damaged[1]


def test_runs_stand_side_by_side(tmp_path):
    runs = [
        read_run(write_run(tmp_path / name, mad=mad, seed=seed))
        for name, mad, seed in (("a", 5.0, 0), ("b", 6.0, 1))
    ]
    lines = [line.split() for line in shown(compare_runs, runs).splitlines()]
    assert ["MAD", "×10³", "7.00", "9.00", "8.00", "10.00"] in lines
    assert ["data.seed", "0", "1"] in lines
    assert ["float", "W32A32", "5.00", "2.50", "0.00", "6.00", "3.00", "0.00"] in lines


def test_a_row_that_one_run_lacks_is_empty_there(tmp_path):
    runs = [
        read_run(write_run(tmp_path / name, bits))
        for name, bits in (("a", ["W8A8"]), ("b", ["W4A4"]))
    ]
    lines = [line.split() for line in shown(compare_runs, runs).splitlines()]
    assert ["BIQ", "W4A4", "–", "6.00", "3.00", "1.00"] in lines


def test_comparison_as_a_user_calls_it(tmp_path, capsys):
    runs = [str(write_run(tmp_path / where / "run")) for where in ("a", "b")]
    assert cli.main(["compare", *runs, "--json", str(tmp_path / "both.json")]) == 0
    content = json.loads((tmp_path / "both.json").read_text())
    assert [run["folder"] for run in content["runs"]] == runs
    assert content["runs"][0]["final"]["W4A8"]["metrics"]["mad"] == 9.0
    assert content["differing"] == []
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "finished" in capsys.readouterr().out


def change(name, **values):
    """Return a function that changes values in a JSON file of a run folder."""

    def write(run):
        path = run / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return write


@pytest.mark.parametrize(("command", "damage", "message"), [
    ("compare", lambda run: (run / "metrics.json").unlink(), "Expected a finished run"),
    ("compare", lambda run: (run / "settings.json").unlink(), "Expected a run folder"),
    ("compare", lambda run: (run / "settings.json").write_text('{"network": "x"}'),
     "Expected the settings of a run"),
    ("compare", lambda run: (run / "run.json").write_text("{"), "Expected JSON in"),
    ("compare", lambda run: (run / "metrics.json").write_text('{"rows": [{"nome": "float"}]}'),
     "Expected rows"),
    ("compare", lambda run: (run / "run.json").write_text('{"starts": [{"time": "soon"}]}'),
     "Expected times in"),
    ("compare", lambda run: (run / "metrics.json").write_text(
        '{"rows": [{"name": "float", "bits": "", "placement": "", "metrics": {"mad": "low"}}]}'),
     "Expected rows"),
    *((command, damage, message) for command in ("compare", "report") for damage, message in (
        (change("settings.json", bits=None), "Expected the settings of a run in"),
        (change("settings.json", bits=[]), "Expected the settings of a run, bits and rows, in"),
        (change("settings.json", bits=["../../W4A4"]),
         "Expected the settings of a run, bits and rows, in"),
        (change("settings.json", rows=[]), "[], not an object, for rows"),
        (change("settings.json", rows={"../x": {"title": "BIQ"}}),
         "Expected the settings of a run, bits and rows, in"),
        (change("settings.json", rows={"biq": {}}), "nothing for rows.biq.title"),
        (change("settings.json", data={"root": []}), "for data."),
        (change("settings.json", network=10**400), "an integer of more than 64 bits"),
        (lambda run: (run / "settings.json").write_text("[" * 10_000 + "]" * 10_000), "nest"),
        (change("run.json", starts="soon"), "'soon', not a list, for starts"),
        (change("run.json", starts=[[]]), "for starts.0"),
        (change("run.json", starts=[{"time": "2026-01-02", "versions": []}]),
         "for starts.0.versions"),
        (change("metrics.json", rows={}), "{}, not a list, for rows"),
        (change("metrics.json", rows=[[]]), "for rows.0"),
    )),
    ("report", lambda run: (run / "metrics.json").unlink(), "Expected a finished run"),
    ("report", lambda run: None, "Expected a quantized checkpoint"),
])  # fmt: skip
def test_a_damaged_folder_is_told_in_a_line(tmp_path, capsys, command, damage, message):
    run = write_run(tmp_path / "run")
    damage(run)
    assert cli.main([command, str(run)]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said


def test_nothing_to_list_is_told(tmp_path):
    with pytest.raises(PTQ4VMError, match="found none"):
        list_runs(tmp_path)


def test_names_are_shown_as_they_are(tmp_path, capsys):
    names = ("a[/b]c", "[red]x[/red] :warning:")
    runs = [str(write_run(tmp_path / name.replace("/", "∕"), ["W8A8"])) for name in names]
    strange = tmp_path / "a[" / "b]c"
    write_run(strange, ["W8A8"])
    content = json.loads((strange / "metrics.json").read_text())
    content["rows"][1] |= {"name": "[/x]", "bits": "[/y]", "extra": {"[/z]": 1.0, ":warning:": 2.0}}
    (strange / "metrics.json").write_text(json.dumps(content))
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert cli.main(["compare", *runs, str(strange)]) == 0
    said = capsys.readouterr().out
    for name in ("a[∕b]c", ":warning:", "[/x]"):
        assert name in said, name
    assert cli.main(["report", str(tmp_path / "a[" / "no[/b]c")]) == 2
    assert "no[/b]c" in "".join(capsys.readouterr().err.split())
