"""Tests that a run folder is bound to the contents of its weights and clips, not to their paths."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
import tiny
import torch
from jobs import quantize
from safetensors.torch import save_file
from test_resume import changed_weights, digest

from ptq4vm.data import EvaluationTree, VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.phases import BlockReconstructionModule, GACModule
from ptq4vm.pipeline import Method

pytestmark = pytest.mark.filterwarnings("ignore")
FRAME = "clips/set/one/com/0000.png"


def write_clips(root):
    generator = np.random.default_rng(0)
    for place in (root / "clips" / "set" / "one", root / "judged" / "set" / "two"):
        for part in ("com", "pha"):
            (place / part).mkdir(parents=True)
            for t in range(3):
                shape = (32, 48, 3) if part == "com" else (32, 48)
                cv2.imwrite(
                    str(place / part / f"{t:04d}.png"), generator.integers(0, 256, shape, np.uint8)
                )


def go(root, run, eval_chunk=25, **options):
    data = VideoMattingDataModule(
        root, EvaluationTree("clips"), evaluation="judged", num_sequences=2, seq_length=2,
        height=32, width=48, eval_frames=2, eval_chunk=eval_chunk, cache_dir=root / "cache",
    )  # fmt: skip
    rows = {"biq": Method("BIQ"), "ours": Method("ours", "biq")}
    settings = {"bits": ["W4A8"], "rows": rows, "block_steps": 2, "gac_epochs": 2}
    trainer = {"accelerator": "cpu", "logger": False}
    return quantize(
        data, run, "tiny", str(root / "tiny.safetensors"), **settings | options, trainer=trainer
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    save_file(tiny.TinyMatting().state_dict(), root / "tiny.safetensors")
    write_clips(root)
    go(root, root / "run")
    return root


@pytest.fixture
def copied(finished, tmp_path):
    """Copy the finished run and its data to another folder, with other modification times."""
    root = tmp_path / "elsewhere"
    shutil.copytree(finished, root)
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    return root


@pytest.fixture
def _learns_nothing(monkeypatch):
    for phase in (BlockReconstructionModule, GACModule):
        monkeypatch.setattr(phase, "training_step", None)


def replace(path):
    """Replace a file's content and keep its modification time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        save_file(changed_weights(path), path)
    else:
        other = cv2.imencode(".png", 255 - cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])[
            1
        ].tobytes()
        path.write_bytes(other)
    assert path.read_bytes() != content
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.usefixtures("_learns_nothing")
def test_the_same_content_elsewhere_goes_on_and_its_place_is_written_down(finished, copied):
    again = go(copied, copied / "run")
    before = json.loads((finished / "run" / "metrics.json").read_text())["rows"]
    assert json.loads(again.metrics.read_text())["rows"] == before
    settings = json.loads((copied / "run" / "settings.json").read_text())
    assert settings["data"]["root"] == str(copied)
    assert settings["weights"] == str(copied / "tiny.safetensors")
    one, other = (
        sorted(path.name for path in (root / "cache").rglob("*")) for root in (finished, copied)
    )
    assert one == other


@pytest.mark.usefixtures("_learns_nothing")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny.safetensors", "weights"),
        (FRAME, "calibration clips"),
        ("judged/set/two/pha/0001.png", "evaluation clips"),
    ],
)
def test_other_content_in_the_same_place_is_refused(name, kind, copied):
    replace(copied / name)
    before = digest(copied / "run")
    with pytest.raises(
        PTQ4VMError, match=rf"got others \({kind}: .* there, .* now\)\. Put the former"
    ):
        go(copied, copied / "run")
    assert digest(copied / "run") == before


@pytest.mark.usefixtures("_learns_nothing")
def test_what_no_sequence_and_no_score_needs_may_change(copied):
    replace(copied / "judged/set/two/pha/0002.png")  # eval_frames is 2
    go(copied, copied / "run", eval_chunk=1)


def test_a_run_that_does_not_say_what_it_was_begun_with_is_refused(copied):
    path = copied / "run" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["content"]
    path.write_text(json.dumps(settings))
    with pytest.raises(
        PTQ4VMError, match=r"got a run of an earlier version.*Choose another --output"
    ):
        go(copied, copied / "run")


def test_replaced_checkpoints_are_refused(copied):
    folder, other = copied / "run" / "w4a8", copied / "other"
    go(copied, other, block_steps=3)
    go(copied, copied / "wide", bits=["W8A8"])
    biq = folder / "biq.safetensors"
    shutil.copy(other / "w4a8" / "biq.safetensors", biq)
    with pytest.raises(
        PTQ4VMError, match=r"biq\.json the scores of the network that this run has now"
    ):
        go(copied, copied / "run")
    biq.with_suffix(".json").unlink()
    with pytest.raises(
        PTQ4VMError, match=r"ours\.safetensors to start from .*biq\.safetensors as it is now"
    ):
        go(copied, copied / "run")
    shutil.copy(copied / "wide" / "w8a8" / "biq.safetensors", biq)
    with pytest.raises(PTQ4VMError, match=r"bits: W8A8 there, W4A8 now"):
        go(copied, copied / "run")


def test_a_phase_goes_on_from_its_own_checkpoint_alone(copied, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    for run, options in (("run1", {"block_steps": 3}), ("run2", {})):
        with monkeypatch.context() as patch:
            patch.setattr(GACModule, "on_fit_end", killed)
            with pytest.raises(Killed):
                go(copied, copied / run, **options)
    shutil.copy(*(copied / run / "w4a8" / "ours" / "last.ckpt" for run in ("run1", "run2")))
    before = digest(copied / "run2" / "w4a8")
    with pytest.raises(PTQ4VMError, match=r"last\.ckpt to be made with these.*start: \w+ there"):
        go(copied, copied / "run2")
    assert digest(copied / "run2" / "w4a8") == before
