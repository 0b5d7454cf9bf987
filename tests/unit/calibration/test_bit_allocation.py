import itertools

import numpy as np
import pytest
import torch

from ptq4vm.calibration.bit_allocation import choose_bits
from ptq4vm.calibration.layer_errors import LayerError, LayerSensitivity, Sensitivity
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import bits_label, network_cost, quantize_network
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig

PRODUCT = {"W4A4": 16, "W3A4": 12, "W4A8": 32, "W8A8": 64}


def random_problem(seed, count=6):
    rng = np.random.default_rng(seed)
    layers = [LayerSensitivity("first", 40, 10, "W8A8"), LayerSensitivity("last", 20, 10, "W8A8")]
    for index in range(count):
        base = rng.gamma(0.5, 5.0, 2)
        errors = {
            bits: LayerError(*(base * shrink))
            for bits, shrink in zip(PRODUCT, (1, 1 + rng.random(), rng.random(), 0.1), strict=True)
        }
        layers.insert(
            -1, LayerSensitivity(f"layer{index}", int(rng.integers(50, 2000)), 10, None, errors)
        )
    return Sensitivity(tuple(layers))


def cost(sensitivity, bits):
    return sum(
        layer.macs * PRODUCT[layer.fixed or bits.get(layer.name, "W4A4")]
        for layer in sensitivity.layers
    )


def brute_force(sensitivity, budget):
    """Compute the lowest error over all assignments within the budget."""
    free = [layer for layer in sensitivity.layers if not layer.fixed]
    sums = [sum(layer.errors["W4A4"][k] for layer in free) for k in (0, 1)]
    choices = (
        {layer.name: one for layer, one in zip(free, choice, strict=True)}
        for choice in itertools.product(PRODUCT, repeat=len(free))
    )
    limit = (1 + budget) * cost(sensitivity, {})
    return min(error_of(free, bits, sums) for bits in choices if cost(sensitivity, bits) <= limit)


def error_of(free, bits, sums):
    return sum(
        layer.errors[bits.get(layer.name, "W4A4")][k] / sums[k] for layer in free for k in (0, 1)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.0, 0.1, 0.6])
def test_choice_is_the_best_of_all_within_the_budget(seed, budget):
    sensitivity = random_problem(seed)
    chosen = choose_bits(sensitivity, budget=budget)
    assert cost(sensitivity, chosen) <= (1 + budget) * cost(sensitivity, {})
    assert set(chosen.values()) <= {"W3A4", "W4A8", "W8A8"}
    assert not {"first", "last"} & set(chosen)
    free = [layer for layer in sensitivity.layers if not layer.fixed]
    sums = [sum(layer.errors["W4A4"][k] for layer in free) for k in (0, 1)]
    assert error_of(free, chosen, sums) == pytest.approx(brute_force(sensitivity, budget), rel=1e-9)


def test_with_a_large_budget_every_layer_takes_its_best_bits():
    assert set(choose_bits(random_problem(0), budget=3.0).values()) == {"W8A8"}
    assert choose_bits(random_problem(0), candidates=[], budget=3.0) == {}
    assert choose_bits(random_problem(0), candidates=["w4a4"], budget=3.0) == {}


def test_bits_that_do_not_help_are_not_taken():
    errors = {"W4A4": LayerError(1.0, 1.0), "W8A8": LayerError(1.1, 1.1)}
    sensitivity = Sensitivity(
        (LayerSensitivity("a", 10, 10, None, errors), LayerSensitivity("b", 10, 10, None, errors))
    )
    assert choose_bits(sensitivity, candidates=["w8a8"], budget=3.0) == {}


def test_what_cannot_be_chosen_is_an_error():
    sensitivity = random_problem(0)
    with pytest.raises(PTQ4VMError, match="a budget of at least 0"):
        choose_bits(sensitivity, budget=-0.1)
    with pytest.raises(PTQ4VMError, match="measured at W6A6, got 6 without"):
        choose_bits(sensitivity, candidates=["W6A6"], budget=0.5)


def test_a_mixed_network_says_so():
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3")
    plain, mixed = (
        QConfig("W4A4", first_last_bits=4, range_method="minmax", layer_bits=bits)
        for bits in ({}, {"decoder.decode1.conv.0": "W4A8"})
    )
    costs = [network_cost(quantize_network(network, qconfig), 64, 64) for qconfig in (plain, mixed)]
    assert bits_label(plain, costs[0]) == "W4A4"
    # W4A8 adds the layer's MACs x 16 to Σ MACs x 4 x 4, so the ratio gives its share of the MACs.
    share = (costs[1].bit_operations / costs[0].bit_operations) - 1
    assert costs[1].activation_bits == pytest.approx(4 * (1 + share))
    assert bits_label(mixed, costs[1]) == f"W4A4 mixed (W4.0A{4 * (1 + share):.1f})"
