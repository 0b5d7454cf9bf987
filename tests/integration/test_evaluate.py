"""Tests of `ptq4vm evaluate` and `ptq4vm matte`."""

import json
import shutil

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from ptq4vm import cli


@pytest.fixture
def tree(tmp_path):
    """Write two clips of three frames in RVM's evaluation layout."""
    frame = cv2.resize(astronaut(), (96, 80))
    for clip in ("0000", "0001"):
        for kind in ("com", "pha", "fgr"):
            folder = tmp_path / "tree" / "set" / clip / kind
            folder.mkdir(parents=True)
            for t in range(3):
                image = np.roll(frame, t, 1)
                image = image[..., 1] // 128 * 255 if kind == "pha" else image[..., ::-1]
                cv2.imwrite(str(folder / f"frame_{t + 1}.png"), image)
    return tmp_path / "tree"


@pytest.mark.usefixtures("official_weights")
def test_evaluate_writes_metrics_and_the_mattes_it_scored(tree, tmp_path):
    args = [
        "--data",
        str(tree),
        "--json",
        str(tmp_path / "m.json"),
        "--alpha",
        str(tmp_path / "alpha"),
    ]
    assert cli.main(["evaluate", "rvm_mobilenetv3", *args, "--accelerator", "cpu"]) == 0
    row = json.loads((tmp_path / "m.json").read_text())["rows"][0]
    written = sorted(
        path.relative_to(tmp_path / "alpha") for path in (tmp_path / "alpha").rglob("*.png")
    )
    assert [str(path) for path in written] == [
        f"set/{c}/pha/frame_{t}.png" for c in ("0000", "0001") for t in (1, 2, 3)
    ]
    errors = []
    for path in written:
        preds, target = (
            cv2.imread(str(folder / path), cv2.IMREAD_GRAYSCALE) / 255.0
            for folder in (tmp_path / "alpha", tree)
        )
        errors.append(np.abs(preds - target).mean() * 1e3)
    # Mattes are rounded to 8 bits, not truncated: the error is at most half a step.
    assert row["metrics"]["mad"] == pytest.approx(np.mean(errors), abs=0.5 / 255 * 1e3)


@pytest.mark.usefixtures("official_weights")
def test_suite_scores_the_data_sets_that_are_there(tree, tmp_path, capsys):
    for name, part in (
        ("videomatte_512x288", "videomatte_static"),
        ("videomatte_512x288", "videomatte_motion"),
        ("d646_512x512", "d646_static"),
        ("aim_512x512", "aim_motion"),
        ("crgnn_512x288", "crgnn_real"),
    ):
        shutil.copytree(tree / "set", tmp_path / "suite" / name / part)
    for clip in (tmp_path / "suite" / "crgnn_512x288" / "crgnn_real").iterdir():
        (clip / "pha").rename(clip / "annotated")
        (clip / "annotated" / "frame_2.png").unlink()
    shutil.rmtree(tmp_path / "suite" / "aim_512x512")
    options = ["--suite", "rvm_lr", "--accelerator", "cpu", "--json", str(tmp_path / "m.json")]
    options += ["--alpha", str(tmp_path / "alpha"), "--data", str(tmp_path / "suite")]
    assert cli.main(["evaluate", "rvm_mobilenetv3", *options]) == 0
    assert "not found   aim_512x512" in capsys.readouterr().out
    found = json.loads((tmp_path / "m.json").read_text())
    rows = {row["name"]: row["metrics"] for row in found["rows"]}
    assert list(rows) == [
        "videomatte_512x288/videomatte_motion", "videomatte_512x288/videomatte_static",
        "d646_512x512/d646_static", "crgnn_512x288/crgnn_real",
    ]  # fmt: skip
    first, same, _, real = rows.values()
    assert first == same != real
    assert set(real) == {"mad", "mse", "grad", "conn", "dtssd"}
    assert found["meta"]["conditions"]["d646_512x512/d646_static"] == {
        "protocol": "lr", "downsample_ratio": 1.0
    }  # fmt: skip
    mattes = tmp_path / "alpha" / "crgnn_512x288" / "crgnn_real" / "0000" / "pha"
    assert len(list(mattes.iterdir())) == 3
    options[1] = "rvm_hr"
    assert cli.main(["evaluate", "rvm_mobilenetv3", *options]) == 2
    assert "got none of videomatte_1920x1080, d646_2048x2048" in _line(capsys.readouterr().err)


@pytest.mark.usefixtures("official_weights")
def test_protocol(tree, tmp_path):
    options = ["--data", str(tree / "set"), "--json", str(tmp_path / "m.json"), "--frames", "2"]
    metrics = {}
    for protocol in ("lr", "hr"):
        arguments = [*options, "--protocol", protocol, "--clips", "1", "--accelerator", "cpu"]
        assert cli.main(["evaluate", "rvm_mobilenetv3", *arguments]) == 0
        found = json.loads((tmp_path / "m.json").read_text())
        assert found["meta"]["protocol"] == protocol
        metrics[protocol] = found["rows"][0]["metrics"]
    assert metrics["lr"].keys() - metrics["hr"].keys() == {"conn"}
    assert metrics["lr"]["mad"] == metrics["hr"]["mad"]


def _line(text):
    return " ".join(text.split())


@pytest.mark.usefixtures("official_weights")
def test_matte_writes_alpha_and_composite(tree, tmp_path):
    source = tree / "set" / "0000" / "com"
    args = [
        "matte",
        str(source),
        "--alpha",
        str(tmp_path / "alpha"),
        "--composite",
        str(tmp_path / "over.mp4"),
    ]
    assert cli.main([*args, "--background", "green"]) == 0
    assert len(list((tmp_path / "alpha").glob("*.png"))) == 3
    assert (tmp_path / "over.mp4").stat().st_size > 500
