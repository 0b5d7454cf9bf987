import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting import Cost, Fidelity, ResultRow, markdown_table, render_table, write_metrics
from ptq4vm.reporting.results import read_rows

FLOAT = ResultRow(
    "float", "W32A32", "", {"mad": 6.08, "mse": 1.47, "dtssd": 1.36}, Cost(14.5), method="float"
)
LOW = ResultRow(
    "biq [draft]|x",
    "W4A4",
    "runtime",
    {"mad": 20.81, "mse": 11.17, "dtssd": 3.77},
    Cost(1.81, 2.4e9, 0.57e9),
    Fidelity(0.0123, 0.5),
)


def render(rows, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render_table(rows, console)
    return console.file.getvalue()


def test_markdown_table():
    assert markdown_table([FLOAT, LOW]).splitlines() == [
        "| name | bits | placement | MAD ×10³ | MSE ×10³ | dtSSD ×10² | MB | eff. GFLOPs "
        "| bit ops ×10⁹ | MAD to float | dtSSD to float |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| float | W32A32 | – | 6.08 | 1.47 | 1.36 | 14.50 | – | – | – | – |",
        r"| biq [draft]\|x | W4A4 | runtime | 20.81 (×3.42) | 11.17 | 3.77 (×2.77) | 1.81 "
        r"| 0.57 | 2.40 | 0.012 | 0.50 |",
    ]


def test_no_ratio_without_a_float_row_or_against_zero():
    assert "×3" not in markdown_table([LOW])
    assert "(×" not in markdown_table([FLOAT._replace(metrics={"mad": 0.0}), LOW])
    assert "| nan | 1.00 |" in markdown_table(
        [FLOAT, LOW._replace(metrics={"mad": float("nan"), "mse": 1, "dtssd": 1})]
    )


def test_terminal_of_80_columns_shows_every_number():
    text = render([FLOAT, LOW], 80)
    assert max(map(len, text.splitlines())) <= 80
    for number in (
        "6.08",
        "1.47",
        "1.36",
        "14.50",
        "20.81",
        "(×3.42)",
        "3.77",
        "(×2.77)",
        "2.40",
        "0.012",
    ):
        assert number in text
    assert "[draft]" in render([LOW], 200)


def test_bad_rows():
    for rows, message in (
        ([], "at least one row"),
        ([FLOAT, FLOAT], "one row of the float network"),
    ):
        with pytest.raises(PTQ4VMError, match=message):
            markdown_table(rows)


def test_metrics_file(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    meta = {
        "seed": torch.tensor(3),
        "share": np.float32(0.5),
        "data": Path("clips"),
        "sizes": (512, 288),
    }
    write_metrics(
        path,
        [FLOAT, LOW._replace(metrics={"mad": float("inf"), "mse": torch.tensor([11.0])})],
        meta,
    )
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["meta"] == {"seed": 3, "share": 0.5, "data": "clips", "sizes": [512, 288]}
    assert [row["name"] for row in content["rows"]] == ["float", "biq [draft]|x"]
    assert content["rows"][0]["metrics"] == FLOAT.metrics
    assert content["rows"][1]["metrics"] == {"mad": None, "mse": 11.0}
    assert content["rows"][1]["fidelity"] == {"mad": 0.0123, "dtssd": 0.5}
    assert read_rows(path)[0] == FLOAT
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_metrics_file_is_whole_or_untouched(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, [FLOAT], {})
    before = path.read_text()
    with pytest.raises(PTQ4VMError, match=r"meta\.model, got object"):
        write_metrics(path, [LOW], {"model": object()})
    with pytest.raises(PTQ4VMError, match="Can't write"):
        write_metrics(path / "below", [FLOAT], {})
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
