"""Tests of `ptq4vm evaluate` and `ptq4vm matte`."""

import json

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
