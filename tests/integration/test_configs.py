"""Tests of the shipped YAML files with the command line parser."""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from torchvision.models.optical_flow import raft_small

from ptq4vm import cli
from ptq4vm.cli import quantize_job as quantize_command
from ptq4vm.data import Auto, Composites, CutOuts, VideoMattingDataModule, Videos
from ptq4vm.phases import PTQPhase
from ptq4vm.pipeline import Method
from ptq4vm.recipes import read_recipe
from ptq4vm.reporting.results import read_rows

CONFIGS = Path(__file__).parents[2] / "lightning_configs"


@pytest.fixture
def options_of(monkeypatch):
    """Return a function from `ptq4vm quantize` arguments to the pipeline's options."""

    class Reached(Exception):
        pass

    seen = {}

    @functools.wraps(quantize_command.quantize)
    def stop(network, data, settings, **options):
        seen.update(vars(settings), network=network, data=data, **options)
        raise Reached

    def run(*args):
        monkeypatch.setattr(quantize_command, "quantize", stop)
        with pytest.raises(Reached):
            cli.main(["quantize", *args])
        return seen

    return run


@pytest.mark.parametrize(
    "path",
    [path for room in ("quantize", "paper") for path in sorted((CONFIGS / room).glob("*.yaml"))],
    ids=lambda path: f"{path.parent.stem}-{path.stem}",
)
def test_quantize_recipe_reaches_the_pipeline(path, options_of, tmp_path):
    seen = options_of(
        "--config", str(path), "--data.root", str(tmp_path), "--output", str(tmp_path / "run")
    )
    assert isinstance(seen["data"], VideoMattingDataModule)
    assert seen["data"].root == tmp_path
    assert seen["network"] == "rvm_mobilenetv3"
    assert set(seen["bits"]) <= {"W8A8", "W6A6", "W4A8", "W4A4", "auto"}


def test_rows_and_several_sources_come_from_a_file(options_of, tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text(
        "data: {source: [Composites, CutOuts], held_out: [anna_*, beach]}\n"
        "rows:\n"
        "  brecq: {title: BRECQ, options: {drop_prob: 0.0}}\n"
        "  published: {title: published grid, qconfig: "
        "{activation_grid: symmetric, range_method: minmax}}\n"
        "  gac: {title: BRECQ + GAC, start: brecq, options: {affine: per_layer}}\n"
    )
    seen = options_of("--config", str(path), "--output", str(tmp_path / "run"))
    assert seen["rows"]["gac"] == Method("BRECQ + GAC", "brecq", {"affine": "per_layer"})
    assert seen["rows"]["published"].qconfig["range_method"] == "minmax"
    assert seen["data"].sources == [Composites(), CutOuts()]
    assert seen["data"].held_out == ["anna_*", "beach"]


def test_every_run_of_the_sweep_reaches_the_pipeline(options_of, tmp_path, monkeypatch):
    """Format the arguments like `wandb agent` and run them through the sweep's shell command."""
    sweep = yaml.safe_load((CONFIGS / "sweep" / "recipes.yaml").read_text())
    shell, option, line, *rest = sweep["command"]
    assert (shell, option, rest) == ("sh", "-c", ["sh", "${args}"])
    names = sweep["parameters"]
    for values in itertools.product(*(choice["values"] for choice in names.values())):
        args = [f"--{name}={value}" for name, value in zip(names, values, strict=True)]
        told = line.replace("exec ptq4vm", "printf '%s\\n'")
        env = {"DATA": str(tmp_path), "WANDB_RUN_ID": "abc"}
        done = subprocess.run(
            [shell, option, told, "sh", *args], env=env, capture_output=True, text=True, check=True
        )
        command, *args = done.stdout.splitlines()
        assert command == "quantize"
        monkeypatch.chdir(CONFIGS.parent)
        seen = options_of(*args)
        assert seen["output"] == Path("runs/sweep/abc")
        recipe, seed = values
        assert list(seen["bits"]) == read_recipe(Path(recipe))["bits"]
        assert seen["data"].seed == seed
        assert not seen["trainer"]["logger"]._offline


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Replace the download of RAFT's weights by random ones; return the names asked for."""
    names = []

    def fetch(name):
        names.append(name)
        torch.manual_seed(0)
        torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
        return tmp_path / "raft.pth"

    monkeypatch.setattr("ptq4vm.phases.base.fetch_weights", fetch)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [one for one in sorted((CONFIGS / "paper").glob("*.yaml")) if one.stem != "base"],
    ids=lambda path: path.stem,
)
def test_a_paper_configuration_runs_at_its_smallest_scale(
    path, tmp_path, official_weights, fetched
):
    size = ["--data.height=64", "--data.width=96", "--data.num_sequences=1", "--data.seq_length=2"]
    source = ["--data.source=Builtin", "--data.evaluation=null", f"--data.cache_dir={tmp_path}"]
    args = [*size, *source, "--data.eval_clips=1", "--data.eval_frames=2", "--bits=[W4A4]"]
    run = tmp_path / "run"
    args += ["--scale=1/20000", f"--output={run}", "--trainer.accelerator=cpu"]
    assert cli.main(["quantize", "--config", str(path), *args]) == 0
    rows = read_rows(run / "metrics.json")
    assert [row.method for row in rows[1:]] == list(read_recipe(path)["rows"])
    assert all(row.placement == "paper" for row in rows[1:])
    assert fetched == (["raft_large"] if path.stem.endswith("raft") else [])


def test_paper_configurations_have_the_published_setting(options_of, tmp_path):
    path = CONFIGS / "paper" / "qdrop_gac_ofa.yaml"
    seen = options_of("--config", str(path), "--scale", "1/100", "--output", str(tmp_path / "run"))
    assert (seen["block_steps"], seen["gac_epochs"], seen["scale"]) == (20000, 55, "1/100")
    data, gac, qconfig = seen["data"], seen["gac"], seen["qconfig"]
    assert data.num_sequences * data.seq_length == 256
    assert seen["block_batch_size"] * data.seq_length == 32
    assert (gac.affine, gac.lr, gac.truth_weight, gac.teacher_weight) == ("per_layer", 1e-4, 1, 0)
    assert (qconfig.placement, qconfig.activation_grid) == ("paper", "symmetric")
    assert seen["rows"]["ofa"].options == {"flow_weight": 0.05}


@pytest.mark.parametrize(
    "logger", sorted((CONFIGS / "logger").glob("*.yaml")), ids=lambda path: path.stem
)
@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "fit").glob("*.yaml")), ids=lambda path: path.stem
)
def test_fit_configuration_names_what_exists(path, logger):
    parser = LightningArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(PTQPhase, "model", subclass_mode=True)
    parser.add_lightning_class_args(VideoMattingDataModule, "data")
    parser.add_lightning_class_args(L.Trainer, "trainer")
    config = parser.parse_args(["--config", str(path), "--config", str(logger)])
    assert config.model.class_path.startswith("ptq4vm.phases.")
    assert config.trainer.logger.init_args.get("offline", True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["frobnicate"], "Expected a subcommand"),
        (["quantize", "--bits", "[W9A9]"], "2 to 8 bits"),
        (["quantize", "--data.seq_length", "0"], "seq_length"),
        (["quantize", "--bits", "[auto]", "--budget", "-0.1"], "Expected a budget of at least 0"),
        (["sensitivity", "rvm_mobilenetv9"], "rvm_mobilenetv9"),
        (
            [
                "sensitivity",
                "rvm_mobilenetv3",
                "--bits",
                "W9A9",
                "--data.height",
                "32",
                "--data.width",
                "32",
            ],
            "2 to 8 bits",
        ),
        (["sensitivity", "rvm_mobilenetv3", "--bits", "[W4A4, 8]"], "W<weights>A<activations>"),
        (
            ["sensitivity", "rvm_mobilenetv3", "--device", "nowhere"],
            "Expected a device that is there",
        ),
        (["evaluate", "no-such-model", "--data", "."], "Expected a model"),
        (["evaluate", "rvm_mobilenetv3", "--data", "/no/such/tree"], "/no/such/tree"),
        (["matte", "/no/such/video.mp4", "--alpha", "a.mp4"], "/no/such/video.mp4"),
        (["weights", "rvm_mobilenetv9"], "rvm_mobilenetv9"),
    ],
)
@pytest.mark.usefixtures("official_weights")
def test_a_users_mistake_is_one_message_without_a_traceback(
    args, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error


def test_bad_bits_in_a_fit_configuration_are_told_plainly(
    capsys, tmp_path, monkeypatch, official_weights
):
    monkeypatch.chdir(tmp_path)
    args = [
        "fit",
        "--config",
        str(CONFIGS / "fit" / "rtn.yaml"),
        "--model.init_args.qconfig.bits",
        "W9A9",
    ]
    assert cli.main(args) == 2
    assert "Expected 2 to 8 bits, got 9" in " ".join(capsys.readouterr().err.split())


def test_help_names_every_subcommand(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        name in text
        for name in ("quantize", "sensitivity", "evaluate", "matte", "weights", "fit", "predict")
    )


def test_testing_what_was_never_calibrated_is_refused(
    capsys, tmp_path, monkeypatch, official_weights
):
    monkeypatch.chdir(tmp_path)
    args = [
        "test",
        "--config",
        str(CONFIGS / "fit" / "rtn.yaml"),
        "--model.init_args.qconfig.range_method",
        "minmax",
    ]
    assert cli.main([*args, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]) == 2
    assert "Expected a calibrated network" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("extra", [["--trainer.accelerator", "foo"], ["--ckpt_path", "nope.ckpt"]])
def test_what_lightning_refuses_is_told_without_a_traceback(
    extra, capsys, tmp_path, monkeypatch, official_weights
):
    monkeypatch.chdir(tmp_path)
    args = [
        "fit",
        "--config",
        str(CONFIGS / "fit" / "rtn.yaml"),
        "--data.height",
        "32",
        "--data.width",
        "32",
    ]
    assert cli.main([*args, "--data.num_sequences", "1", *extra]) == 2
    assert extra[1] in " ".join(capsys.readouterr().err.split())


def test_two_checkpoint_callbacks_of_one_kind_are_refused_without_a_traceback(
    capsys, tmp_path, monkeypatch, official_weights
):
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / "fit" / "rtn.yaml")
    twice = ["--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]
    twice += ["--trainer.callbacks.filename", "last"]
    twice += ["--trainer.callbacks.enable_version_counter", "false"]
    assert cli.main(["fit", "--config", config, *twice]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Expected trainer settings that Lightning takes, got: Found more than one" in error


def test_the_short_help_names_the_recipes_without_importing_torch(tmp_path):
    script = (
        "import sys; from ptq4vm import cli; cli.main(['quantize', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "w4a4_mixed" in done.stdout
    assert len(done.stdout.splitlines()) < 60


@pytest.mark.parametrize("group", ["all", "data", "qconfig", "gac", "trainer"])
def test_help_of_a_group_lists_its_settings(group, capsys):
    cli.main(["quantize", f"--help={group}"])
    text = capsys.readouterr().out
    assert ("--gac.lr" in text) == (group in ("all", "gac"))
    assert ("--trainer.devices" in text) == (group in ("all", "trainer"))


def test_short_form_sets_what_the_settings_do(options_of, tmp_path):
    seen = options_of(
        "rvm_resnet50", "--data", str(tmp_path), "--recipe", "w4a8", "--target", "onnxruntime",
        "--gac_epochs", "3", "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert seen["network"] == "rvm_resnet50"
    assert (seen["bits"], seen["gac_epochs"], seen["target"]) == (("W4A8",), 3, "onnxruntime")
    assert (seen["data"].root, seen["data"].sources) == (tmp_path, [Auto(photographs=True)])
    assert seen["block_reconstruction"].drop_prob == 0.0  # of the recipe
    assert seen["gac"].average == 0.98  # of its base


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "w4a4", "--size", "64x64"], "Expected 8-bit activations to export"),
        (["--recipe", "w8a8", "--size", "0x64"], "at least 1 x 1 pixels"),
        (["--size", "64x64"], "Expected --target with --size"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_any_work(args, message, capsys, tmp_path):
    assert cli.main(["quantize", *args, "--output", str(tmp_path / "run")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[{class_path: Composites, init_args: {foregrounds: people}}, Videos]",
         [Composites("people"), Videos()]),
        ("{class_path: Videos, init_args: {videos: mine}}", [Videos("mine")]),
        ("{class_path: Auto, init_args: {videos: mine}}", [Auto("mine")]),
        ("Builtin", [Auto()]),
    ],
)  # fmt: skip
def test_a_data_folder_keeps_the_sources_of_a_configuration(options_of, tmp_path, source, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{source: {source}}}")
    seen = options_of("--data", str(tmp_path), "--config", str(path))
    assert (seen["data"].root, seen["data"].sources) == (tmp_path, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits: null", "Expected a value for bits, got null"),
        ("block_steps: null", "Expected a value for block_steps, got null"),
        ("output: null", "Expected a value for output"),
        ("network: null", "Expected a value for network"),
        ("weights: null", "Expected a value for weights"),
        ("gac: null", "Expected settings below gac, got None"),
        ("qconfig: []", "settings below qconfig, got []"),
        ("block_reconstruction: 3", "settings below block_reconstruction, got 3"),
        ("trainer: null", "settings below trainer, got None"),
        ("rows: {a: {title: x, options: null}}", "Expected options of the row 'x'"),
        ("qconfig: {layer_bits: null}", "Expected a value for qconfig.layer_bits"),
        ("qconfig: {ignored_modules: null}", "Expected a value for qconfig.ignored_modules"),
    ],
)  # fmt: skip
def test_nulls_and_wrong_kinds_give_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert cli.main(["quantize", "--config", str(path)]) == 2
    assert message in capsys.readouterr().err
