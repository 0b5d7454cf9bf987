"""Tests of RVM against the authors' ONNX export in ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
import torch
from skimage import data

from ptq4vm.models import create_model


@pytest.fixture(scope="module")
def frames():
    """Create five frames of a moving person, (5, 3, 270, 333): odd size, not a multiple of 16."""
    picture = data.astronaut()[:270].transpose(2, 0, 1).astype(np.float32) / 255
    return np.stack([picture[:, :, 7 * t : 7 * t + 333] for t in range(5)])


def reference(path, frames, ratio):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    state = [np.zeros((1, 1, 1, 1), np.float32)] * 4
    for frame in frames:
        inputs = dict(zip(("r1i", "r2i", "r3i", "r4i"), state, strict=True))
        inputs |= {"src": frame[None], "downsample_ratio": np.array([ratio], np.float32)}
        fgr, pha, *state = session.run(None, inputs)
        yield (
            torch.from_numpy(fgr),
            torch.from_numpy(pha),
            [torch.from_numpy(tensor) for tensor in state],
        )


def test_official_export_over_five_frames(official_weights, frames):
    network = create_model("rvm_mobilenetv3", official_weights, downsample_ratio=0.5)
    state = network.initial_state(torch.from_numpy(frames[:1]))
    for frame, (fgr, pha, expected) in zip(
        frames, reference(official_weights, frames, 0.5), strict=True
    ):
        output = network.forward_frame(torch.from_numpy(frame[None]), state)
        state = output.state
        torch.testing.assert_close(output.pha, pha, atol=1e-4, rtol=0)
        torch.testing.assert_close(output.fgr, fgr, atol=1e-4, rtol=0)
        for got, wanted in zip(state, expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
    assert 0.1 < float(output.pha.mean()) < 0.9, "a matte of a person, not an empty one"


def test_official_weights_without_the_learned_refiner(official_weights, frames):
    deep = create_model("rvm_mobilenetv3", official_weights, downsample_ratio=0.5)
    fast = create_model(
        "rvm_mobilenetv3", official_weights, downsample_ratio=0.5, refiner="fast_guided_filter"
    )
    src = torch.from_numpy(frames[:1])[None]
    assert float((deep(src).pha - fast(src).pha).abs().mean()) < 0.02
