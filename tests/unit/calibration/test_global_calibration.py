from dataclasses import replace

import numpy as np
import pytest
import torch
from small_network import make_batch, make_network

from ptq4vm.calibration.global_calibration import (
    GlobalLossSettings,
    begin_global_calibration,
    end_global_calibration,
    global_loss,
)
from ptq4vm.calibration.windows import draw_window
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantize_network, quantized_layers
from ptq4vm.quantizers import QConfig, activation_quantizers, observing

AGAINST_TEACHER = GlobalLossSettings(
    truth_weight=0.0, feature_weight=1.0, coherence_weight=1.0, flow_weight=0.0
)


@pytest.mark.parametrize("seed", range(4))
def test_the_float_network_as_its_own_student_has_no_loss(seed):
    network = make_network()
    batch = draw_window(make_batch(network), 2, seed)
    assert global_loss(network, network, batch, AGAINST_TEACHER).item() < 1e-10
    truth = replace(AGAINST_TEACHER, truth_weight=1.0)
    assert global_loss(network, network, batch, truth).item() > 0.01


def test_each_term_is_that_of_its_formula():
    """In float64; the flow is zero, so that the warped alpha is the previous frame's."""
    student, teacher = make_network().double(), make_network().double()
    with torch.no_grad():
        student.encoder.weight *= 1.1
    batch = make_batch(teacher)
    own = make_batch(student)
    pha, state = (x.numpy() for x in (own.teacher_pha, own.teacher_state[0]))
    with torch.no_grad():
        fgr, target = (one.unroll(batch.src).fgr.numpy() for one in (student, teacher))
    true, alpha, visible = (x.numpy() for x in (batch.pha, batch.teacher_pha, batch.visible))
    assert 0 < pha.min() < pha.max() < 1  # nothing is clamped
    settings = GlobalLossSettings(
        truth_weight=0.3, teacher_weight=0.7, l1_weight=1.5, mse_weight=5.0, fgr_weight=0.1,
        state_weight=0.2, coherence_weight=2.0, flow_weight=0.4,
    )  # fmt: skip
    expected = {
        "alpha": sum(
            weight * (1.5 * np.abs(pha - y).mean() + 5.0 * np.square(pha - y).mean())
            for weight, y in ((0.3, true), (0.7, alpha))
        ),
        "fgr": 0.1 * np.abs(fgr - target).mean(),
        "state": 0.2 * np.abs(state - batch.teacher_state[0].numpy()).mean(),
        "coherence": 2 / 3 * 2.0 * np.square(np.diff(pha, axis=1) - np.diff(alpha, axis=1)).mean(),
        "flow": 2 / 3 * 0.4 * (
            (np.abs(np.diff(pha, axis=1)) * visible).sum((2, 3, 4)) / visible.sum((2, 3, 4))
        ).mean(),
    }  # fmt: skip
    loss = global_loss(student, teacher, batch, settings)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-6)


def test_a_loss_without_alpha_targets_is_refused():
    with pytest.raises(PTQ4VMError, match="Set one of them"):
        GlobalLossSettings(truth_weight=0.0, teacher_weight=0.0)


def test_a_plain_loop_lowers_the_loss():
    teacher = make_network()
    batch = make_batch(teacher)
    network = quantize_network(teacher, QConfig("W4A4", first_last_bits=4))
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(batch.src)
    for layer in quantized_layers(network).values():
        layer.fix_()
    begin_global_calibration(network, teacher, per_channel=True, learn_codes=False)
    adam = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(30):
        loss = global_loss(network, teacher, batch, AGAINST_TEACHER)
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    end_global_calibration(network)
    with torch.no_grad():
        after = global_loss(network, teacher, batch, AGAINST_TEACHER).item()
    assert after < 0.9 * losses[0], losses
