"""Command `ptq4vm weights`."""

from jsonargparse import ArgumentParser

from ptq4vm.cli.common import console
from ptq4vm.models import WEIGHTS, fetch_weights


def run_weights(args: list[str]) -> None:
    """Download published weights and print their path."""
    parser = ArgumentParser(
        prog="ptq4vm weights",
        description="Download and verify the official weights of a network, or those of torchvision"
        "'s RAFT.",
    )
    parser.add_argument("network", help=", ".join(WEIGHTS))
    path = fetch_weights(
        parser.parse_args(args).network, report=lambda line: console.print(line, highlight=False)
    )
    console.print(str(path), highlight=False, soft_wrap=True)
