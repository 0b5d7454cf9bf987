"""The examples in docstrings."""

import doctest
import importlib
from pathlib import Path

import pytest

import ptq4vm

PACKAGE = Path(ptq4vm.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


def test_what_the_readme_names_has_an_example():
    known = {"quantizers.qconfig", "graph.loading", "data.datamodule", "deploy.runner"}
    assert set(MODULES) >= known | {"pipeline.evaluation"}


@pytest.mark.usefixtures("official_weights")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run_and_print_what_they_show(name, capsys):
    module = importlib.import_module(f"ptq4vm.{name}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0, capsys.readouterr().out
