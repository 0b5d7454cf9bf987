"""`ptq4vm weights`."""

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import console
from ptq4vm.models import fetch_weights, list_models


def run_weights(args: list[str]) -> None:
    """Fetch official weights."""
    parser = ArgumentParser(
        prog="ptq4vm weights", description="Bring a network's official weights, verified."
    )
    parser.add_argument("network", help=", ".join(list_models()))
    path = fetch_weights(
        parser.parse_args(args).network, report=lambda line: console.print(line, highlight=False)
    )
    console.print(str(path), highlight=False, soft_wrap=True)
