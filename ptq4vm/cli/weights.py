"""Command `ptq4vm weights`."""

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import console
from ptq4vm.models import fetch_weights, list_models


def run_weights(args: list[str]) -> None:
    """Download the official weights of a network and print their path."""
    parser = ArgumentParser(
        prog="ptq4vm weights", description="Download and verify the official weights of a network."
    )
    parser.add_argument("network", help=", ".join(list_models()))
    path = fetch_weights(
        parser.parse_args(args).network, report=lambda line: console.print(line, highlight=False)
    )
    console.print(str(path), highlight=False, soft_wrap=True)
