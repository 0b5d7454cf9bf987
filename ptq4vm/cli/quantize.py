"""Command `ptq4vm quantize`: short form and help, without slow imports."""

import argparse
import sys
from pathlib import Path

from ptq4vm.recipes import find_recipe, list_recipes, names_sources, with_bases

GROUPS = ("data", "qconfig", "block_reconstruction", "gac", "trainer")
DEFAULT_RECIPE = "w8a8"
_EXAMPLE = """\
example:
  ptq4vm quantize rvm_mobilenetv3 --data CLIPS --recipe w8a8 --target openvino --size 720x1280

recipes:
"""
_MORE = f"""
Every setting of a recipe can be changed on the command line, e.g. --gac_epochs 4 --data.seed 1.
more help: --help=all, or one group: --help={"|".join(GROUPS)}
A configuration is code: its class_path can name any installed class. Run only those you trust.
"""


def run_quantize(args: list[str]) -> None:
    """Run block reconstruction and global calibration, evaluate, and export if a size is given."""
    front = _front()
    named, rest = front.parse_known_args(args)
    if named.help == "short":
        front.print_help(sys.stdout)
        return
    from ptq4vm.cli import quantize_job  # Lightning takes seconds to import

    if named.help is not None:
        quantize_job.print_settings(named.help)
        return
    quantize_job.run(_expand(named, rest), named.size, named.tolerance)


def _front() -> argparse.ArgumentParser:
    recipes = "".join(f"  {name:18}{text}\n" for name, text in list_recipes().items())
    front = argparse.ArgumentParser(
        prog="ptq4vm quantize",
        usage="ptq4vm quantize [NETWORK] --data CLIPS [--recipe NAME] [--target RUNTIME] "
        "[--size HxW] [--output DIR] [--SETTING VALUE ...]",
        description="Quantize a video matting network and evaluate it on clips kept out of "
        "calibration. A killed run continues with the same command.",
        epilog=_EXAMPLE + recipes + _MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    front.add_argument(
        "--data",
        metavar="CLIPS",
        help="folder of videos or folders of frames; foregrounds with alpha (train/{fgr,pha}), "
        "backgrounds (train) and an evaluation tree (SET/CLIP/{com,pha}) are recognised in it, "
        "unless a configuration names other sources",
    )
    front.add_argument(
        "--recipe", metavar="NAME", help=f"by default {DEFAULT_RECIPE} if --data is given"
    )
    front.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file of settings; later files take precedence",
    )
    front.add_argument(
        "--size",
        metavar="HxW",
        help="export for frames of this size, check parity and measure latency",
    )
    front.add_argument(
        "--tolerance",
        metavar="ERROR",
        type=float,
        default=5e-4,
        help="largest mean difference of alpha between PyTorch and the runtime (default 5e-4)",
    )
    # These are settings too; they are listed here for the help.
    for name, metavar, text in (
        ("--target", "RUNTIME", "openvino (default of the recipes), onnxruntime or tensorrt"),
        ("--weights", "FILE", "float weights; by default the official ones"),
        ("--output", "DIR", "the run folder"),
    ):
        front.add_argument(name, metavar=metavar, help=text)
    front.add_argument(
        "--help",
        "-h",
        nargs="?",
        const="short",
        choices=["short", "all", *GROUPS],
        metavar="GROUP",
        help="show this help, or the help of a group of settings",
    )
    return front


def _expand(named: argparse.Namespace, rest: list[str]) -> list[str]:
    """Return the short form as settings, configurations first so that options override them."""
    settings = []
    if rest and not rest[0].startswith("-"):
        settings += ["--network", rest.pop(0)]
    files = [] if named.recipe is None else [find_recipe(named.recipe)]
    files += [Path(file) for file in named.config or []]
    if not files and named.data is not None:
        files = [find_recipe(DEFAULT_RECIPE)]
    files = [one for file in files for one in with_bases(file)]
    configs = [f"--config={file}" for file in files]
    if named.data is not None:
        settings += [] if names_sources(files) else ["--data.source", "Auto"]
        settings += ["--data.root", named.data]
    for name in ("target", "weights", "output"):
        if getattr(named, name) is not None:
            settings.append(f"--{name}={getattr(named, name)}")
    return [*configs, *settings, *rest]
