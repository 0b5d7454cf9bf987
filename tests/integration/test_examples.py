"""The examples in docstrings of the README's functions and classes."""

import doctest
import importlib

import pytest

MODULES = (
    "quantizers.qconfig",
    "graph.loading",
    "data.datamodule",
    "deploy.checked_export",
    "deploy.runner",
    "phases.block_reconstruction",
    "phases.gac",
    "pipeline.settings",
    "pipeline.quantize",
    "pipeline.evaluation",
)


@pytest.mark.usefixtures("official_weights")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run_and_print_what_they_show(name, capsys):
    module = importlib.import_module(f"ptq4vm.{name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0, capsys.readouterr().out
