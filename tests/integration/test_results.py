"""Tests of benchmarks/results.py: rows valid for the pipeline, tables placed in the document."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.pipeline import Method, QuantizeSettings
from ptq4vm.pipeline.rows import check_rows
from ptq4vm.quantizers import QConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.fixture
def results():
    spec = importlib.util.spec_from_file_location("results", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w4a4", "w6a6", "w4a4_mixed", "full"])
def test_every_method_has_a_row_that_the_pipeline_takes(results, recipe):
    rows = check_rows(
        {name: Method(**row) for name, row in results.with_baselines(recipe)["rows"].items()}
    )
    assert list(rows)[-2:] == ["gac", "ofa"]
    assert rows["gac"].start == "biq"
    if recipe not in results.ALONE:
        blocks = {row.title.removesuffix(" (BIQ)"): name for name, row in rows.items()}
        own = results.with_baselines(recipe)["block_reconstruction"].get("drop_prob", 0.5)
        assert rows["biq"].options["drop_prob"] == own
        for method, drop_prob in results.DROPPING.items():
            assert rows[blocks[method]].options["drop_prob"] == drop_prob
            assert {rows[f"{method.lower()}_{part}"].start for part in ("gac", "ofa")} == {
                blocks[method]
            }
            for part in ("gac", "ofa"):
                row = rows[f"{method.lower()}_{part}"]
                own_settings = {"lr", "weight_lr", "window", "max_grad_norm"} - set(row.options)
                assert ("our learning rates" in row.title) == bool(own_settings), (
                    "named for what it is"
                )
    for row in rows.values():
        QConfig(**row.qconfig)
        known = BlockReconstructionSettings if row.start is None else GACSettings
        assert set(row.options) <= {one.name for one in dataclasses.fields(known)}
    bits = results.with_baselines(recipe)["bits"]
    QuantizeSettings(bits=bits, target="openvino", rows=rows)  # as the recipes are


def test_tables_replace_those_of_the_run_before(results, tmp_path, monkeypatch):
    document = tmp_path / "results.md"
    document.write_text(
        "# Results\n\nBefore.\n\n<!-- table w8a8-0 -->\nold\n<!-- end w8a8-0 -->\n\nAfter.\n"
    )
    monkeypatch.setattr(results, "DOCUMENT", document)
    seen = []

    def quantize(args):
        seen.append(yaml.safe_load(Path(args[args.index("--config") + 1]).read_text()))
        run = Path(args[args.index("--output") + 1])
        run.mkdir()
        (run / "table.md").write_text(f"| {args[-1]} \\1 |\n")

    monkeypatch.setattr(results.cli, "main", quantize)
    arguments = [
        "results.py",
        "--root",
        str(tmp_path),
        "--recipes",
        "w8a8",
        "w4a4",
        "--output",
        str(tmp_path / "runs"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    results.main()
    text = document.read_text()
    assert text.startswith(
        "# Results\n\nBefore.\n\n"
        "<!-- table w8a8-0 -->\n\n| 0 \\1 |\n\n<!-- end w8a8-0 -->\n\nAfter.\n"
    )
    assert text.endswith("<!-- table w4a4-0 -->\n\n| 0 \\1 |\n\n<!-- end w4a4-0 -->\n")
    assert all(config["data"]["held_out"] for config in seen)
