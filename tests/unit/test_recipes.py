"""Recipes by name, their bases, and settings that were renamed."""

import configparser
from pathlib import Path

import pytest
import yaml

from ptq4vm import cli
from ptq4vm.errors import PTQ4VMError
from ptq4vm.former_names import refuse_former_names
from ptq4vm.recipes import find_recipe, list_recipes, read_recipe, with_bases

ROOT = Path(__file__).parents[2]


def test_recipes_are_the_shipped_files_and_have_a_line_of_help():
    files = {path.stem for path in (ROOT / "lightning_configs" / "quantize").glob("*.yaml")}
    assert set(list_recipes()) == files
    assert all(len(text) > 10 and text[-1] != ":" for text in list_recipes().values())


def test_an_unknown_recipe_is_refused_with_the_names_there_are():
    with pytest.raises(PTQ4VMError, match=r"Expected a recipe of demo, full, .*got 'w3a3'"):
        find_recipe("w3a3")


def test_settings_of_a_recipe_overrule_those_of_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 1\ngroup: {x: 1, y: 2}\nrows: {biq: 1, ofa: 2}\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\ngroup: {y: 3}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("base: middle.yaml\na: 2\nrows: {biq: 5}\n")
    assert [file.name for file in with_bases(path)] == ["base.yaml", "middle.yaml", "recipe.yaml"]
    assert read_recipe(path) == {"a": 2, "group": {"x": 1, "y": 3}, "rows": {"biq": 5}}


@pytest.mark.parametrize("base", ["recipe.yaml", "missing.yaml"])
def test_a_base_that_is_missing_or_itself_is_refused(tmp_path, base):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(PTQ4VMError, match=r"Expected `base` of .*recipe.yaml to name another"):
        with_bases(path)


def test_recipes_name_no_folder_of_a_data_set():
    for name in list_recipes():
        data = read_recipe(find_recipe(name))["data"]
        source = data["source"] if isinstance(data["source"], dict) else {}
        assert not {"foregrounds", "backgrounds", "videos", "evaluation"} & {
            *data,
            *source.get("init_args", {}),
        }


@pytest.mark.parametrize(
    "args",
    [["quantize", "--qconfig.edge_bits", "8"], ["fit", "--model.init_args.qconfig.edge_bits=8"]],
)
def test_a_former_name_on_the_command_line_is_refused_with_the_present_one(args, capsys):
    assert cli.main(args) == 2
    assert "Expected the setting first_last_bits, got its former name" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{file}", "--config={file}"])
def test_a_former_name_in_a_file_is_refused_with_the_present_one(tmp_path, form):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"qconfig": {"float_modules": ["refiner"]}}))
    with pytest.raises(PTQ4VMError, match=r"setting ignored_modules, .* in .*mine.yaml"):
        refuse_former_names([form.format(file=path)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.videos", "mine"], "Write --data.source Videos --data.source.videos VALUE, or in"),
        (["--data.source", "auto", "--data.videos", "mine"], "--data.source Auto --data.source.v"),
        (["--data.photographs=true"], "Expected photographs as a setting of a source"),
        (["--data.source", "builtin"], "Expected the source Builtin, got its former name builtin"),
        (["--data.source=[videomatte, video]"], "Expected the source Composites"),
        ("data: {source: auto, videos: mine}", "class_path: Auto, init_args: {videos: ...}"),
        ("data: {source: {class_path: video}}", "Expected the source Videos"),
        (["--data.source+", "video"], "Expected the source Videos"),
        (["--data.source.class_path=video"], "Expected the source Videos"),
        ("fit: {data: {source: [Videos, cutout]}}", "the source CutOuts, got .* in .*mine"),
        ("data: {composites: judged}", "class_path: EvaluationTree, init_args: {composites: ...}"),
    ],
)
def test_former_settings_of_data_are_refused_with_the_present_form(tmp_path, args, message):
    if isinstance(args, str):
        (tmp_path / "mine.yaml").write_text(args)
        args = [f"--config={tmp_path / 'mine.yaml'}"]
    with pytest.raises(PTQ4VMError, match=message):
        refuse_former_names(args)


def test_sources_by_their_present_names_are_no_former_ones(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: [Videos, {class_path: CutOuts, init_args: {videos: mine}}]}")
    args = ["--data", "auto", "--data.source", "my.video.Source", "--data.source.videos", "video"]
    refuse_former_names([*args, str(path), "x" * 300 + ".yaml"])
    tree = "{class_path: EvaluationTree, init_args: {composites: evaluation}}"
    refuse_former_names(["--data.source", tree])
    for odd in ("5", "true", "1.5", "[{}, 2]", "{class_path: 5}"):
        path.write_text(f"# edge_bits: the former name\ndata: {{source: {odd}}}")
        refuse_former_names([str(path)])


@pytest.mark.parametrize("text", [b"data: [", b"\xff\xfe", b"- 1", b"data: 5"])
def test_a_file_that_is_no_configuration_is_left_to_the_parser(tmp_path, capsys, text):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    refuse_former_names([str(path)])
    try:
        status = cli.main(["quantize", "--data", str(tmp_path), "--config", str(path)])
    except SystemExit as end:  # of the command's parser
        status = end.code
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


def test_former_names_in_a_base_are_refused(tmp_path):
    (tmp_path / "old.yaml").write_text("qconfig: {edge_bits: 8}")
    (tmp_path / "mine.yaml").write_text("base: old.yaml\nbits: [W8A8]")
    with pytest.raises(PTQ4VMError, match=r"first_last_bits, .* in .*old.yaml"):
        refuse_former_names([str(tmp_path / "mine.yaml")])


def test_the_wheel_lists_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = {line for line in config["options"]["packages"].split("\n") if line and line[0] != "#"}
    rooms = {f"ptq4vm.{path.parent.name}" for path in (ROOT / "ptq4vm").glob("*/__init__.py")}
    assert listed == {"ptq4vm", "ptq4vm.lightning_configs"} | rooms
