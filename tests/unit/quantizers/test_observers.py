import numpy as np
import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import (
    LearnedScaleFakeQuantize,
    Observer,
    QuantSpec,
    choose_qparams,
    find_range,
    merge_observers,
    observing,
)


def test_mse_range_is_no_worse_than_brute_force_in_numpy():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(size=4000), [12.0]]).astype(np.float32)
    spec = QuantSpec(4, "symmetric")
    low, high = find_range(torch.from_numpy(values)[None], spec)

    def error(bound):
        scale = max(bound / 7, 1e-8)
        return np.mean((np.clip(np.rint(values / scale), -8, 7) * scale - values) ** 2)

    best = min(error(bound) for bound in np.linspace(0.1, 12, 400))
    scale, _ = choose_qparams(low, high, -8, 7, "symmetric")
    assert error(float(scale) * 7) <= 1.05 * best


def test_percentile_range_leaves_outliers_out():
    values = torch.cat([torch.linspace(-1, 1, 10000), torch.tensor([50.0])])[None]
    _, high = find_range(values, QuantSpec(8, "affine", range_method="percentile"))
    assert high.item() < 1.01


def test_observer_says_what_is_wrong():
    observer = Observer(QuantSpec(8))
    with pytest.raises(PTQ4VMError, match="got none"):
        observer.calculate_qparams()
    observer.observe(torch.tensor([1.0, float("nan")]))
    with pytest.raises(PTQ4VMError, match="finite"):
        observer.calculate_qparams()


def test_observing_passes_values_on_and_then_starts():
    quantizer = LearnedScaleFakeQuantize(QuantSpec(8))
    x = torch.randn(1000)
    with observing([quantizer]):
        assert torch.equal(quantizer(x), x)
    assert bool(quantizer.ready)
    assert (quantizer(x) - x).abs().max() < 3 * float(quantizer.scale)


def test_each_channel_gets_a_grid_of_its_own():
    torch.manual_seed(0)
    spec = QuantSpec(4, granularity="per_channel")
    quantizer = LearnedScaleFakeQuantize(spec, channels=3)
    x = torch.randn(2, 3, 8, 9) * torch.tensor([1.0, 0.5, 3.0])[:, None, None]
    with observing([quantizer]):
        quantizer(x[:1])
        quantizer(x[1:])
    for channel in range(3):
        alone = LearnedScaleFakeQuantize(QuantSpec(4))
        with observing([alone]):
            alone(x[:1, channel])
            alone(x[1:, channel])
        torch.testing.assert_close(quantizer.scale[channel].flatten(), alone.scale)
        torch.testing.assert_close(quantizer(x)[:, channel], alone(x[:, channel]))
    quantizer(x).square().sum().backward()
    assert (quantizer.log_scale.grad != 0).all()


def test_a_channel_that_was_quiet_may_speak_up():
    quantizer = LearnedScaleFakeQuantize(QuantSpec(8, granularity="per_channel"), channels=2)
    x = torch.rand(1, 2, 16, 16)
    with observing([quantizer]):
        quantizer(x * torch.tensor([1.0, 0.0])[:, None, None])
    assert quantizer(torch.full((1, 2, 1, 1), 0.01))[0, 1].item() == pytest.approx(0.01, rel=0.1)


def test_observer_keeps_samples_not_whole_tensors():
    observer = Observer(QuantSpec(8))
    observer.observe(torch.rand(1_000_000))
    assert observer.samples[0].untyped_storage().nbytes() < 50_000


def test_observers_of_shares_merge_into_one_of_all():
    torch.manual_seed(0)
    values = torch.randn(5, 3, 40, 50) * torch.tensor([1.0, 3.0, 0.2, 9.0, 1.0]).reshape(5, 1, 1, 1)
    for spec in (
        QuantSpec(4, "affine", range_method="mse"),
        QuantSpec(4, "affine", "per_channel", "mse"),
    ):
        whole, shares = Observer(spec), [Observer(spec) for _ in range(3)]
        for index, value in enumerate(values):
            whole.observe(value[None])
            shares[index % 2].observe(value[None])  # the third observer gets no values
        merged = merge_observers(shares)
        assert all(map(torch.equal, merged.calculate_qparams(), whole.calculate_qparams()))
    with pytest.raises(PTQ4VMError, match="got none"):
        merge_observers([Observer(spec)]).calculate_qparams()
