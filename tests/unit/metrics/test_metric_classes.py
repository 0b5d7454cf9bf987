import datetime
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import DTSSD, MAD, MSE, Conn, Grad, dtssd, functional, matting_metrics, to_png8

CLASSES = {"mad": MAD, "mse": MSE, "grad": Grad, "conn": Conn, "dtssd": DTSSD}

# Metric classes return float32, the tests average the functions' values in float64.
assert_close = partial(torch.testing.assert_close, check_dtype=False)


def clips(lengths=(3, 2, 4, 1, 2), size=(14, 18)):
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.rand(n, 1, *size, generator=generator) for _ in range(2)) for n in lengths]


def test_keys_and_prefix():
    metrics = matting_metrics(prefix="val/")
    metrics.update(*clips()[0])
    assert set(metrics.compute()) == {"val/mad", "val/mse", "val/grad", "val/conn", "val/dtssd"}
    assert "conn" not in matting_metrics(protocol="hr")
    assert not any(m.higher_is_better for m in metrics.values())


def test_mean_over_all_frames_of_all_clips():
    metrics = matting_metrics()
    for preds, target in clips():
        metrics.update(preds, target)
    got = metrics.compute()
    for name in CLASSES:
        values = torch.cat([getattr(functional, name)(p, t) for p, t in clips()])
        assert len(values) == 12
        assert_close(got[name], values.double().mean())


def test_metrics_do_not_share_states():
    # Equal first values must not put two metrics into one torchmetrics compute group.
    metrics = matting_metrics()
    zero = torch.zeros(2, 1, 6, 6)
    metrics.update(zero, zero)
    metrics.update(zero + 0.5, zero)
    assert_close(metrics.compute(), {k: v.compute() for k, v in metrics.items()})
    assert metrics.compute()["mad"] != metrics.compute()["mse"]
    names = [state for metric in metrics.values() for state in metric.metric_state]
    assert len(names) == len(set(names)) == 3 * len(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_batch_of_clips_equals_single_clips(name):
    pairs = clips((3, 3))
    single, batch = CLASSES[name](), CLASSES[name]()
    for pair in pairs:
        single.update(*pair)
    batch.update(*(torch.stack(x) for x in zip(*pairs, strict=True)))
    assert_close(batch.compute(), single.compute())


def test_first_frame_of_every_clip_in_a_batch_counts_as_zero():
    preds, target = (torch.stack(x) for x in zip(*clips((1, 1, 1)), strict=True))
    metric = DTSSD()
    metric.update(preds, target)
    assert metric.compute() == 0


@pytest.mark.parametrize("scoring", ["float", "png8"])
def test_chunked_equals_whole(scoring):
    preds, target = clips((7,))[0]
    whole, chunked = matting_metrics(scoring), matting_metrics(scoring)
    whole.update(preds, target)
    previous = None
    for p, t in zip(preds.split(3), target.split(3), strict=True):
        chunked.update(p, t, previous)
        previous = (p[-1], t[-1])
    assert_close(chunked.compute(), whole.compute())


def test_png8_quantizes_predictions_only():
    preds, target = clips((3,))[0]
    a, b = matting_metrics("png8"), matting_metrics()
    a.update(preds, target)
    b.update(to_png8(preds), target)
    assert a.compute() == b.compute()
    c = matting_metrics()
    c.update(preds, target)
    assert a.compute()["mad"] != c.compute()["mad"]


def test_high_resolution_options():
    preds, target = (x * 0.5 for x in clips((2,))[0])
    metrics = matting_metrics(protocol="hr")
    metrics.update(preds, target)
    assert_close(
        metrics.compute()["grad"], functional.grad(preds, target, normalize=False).double().mean()
    )


def test_forward_returns_the_value_of_this_clip():
    metric = DTSSD()
    for preds, target in clips():
        assert_close(metric(preds, target), dtssd(preds, target).double().mean())
    expected = torch.cat([dtssd(p, t) for p, t in clips()]).double().mean()
    assert_close(metric.compute(), expected)


def test_long_runs_do_not_drift():
    metric = MAD()
    preds, target = torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2)
    metric.update(preds, target)
    metric.mad_total, metric.mad_frames = (
        metric.mad_total * 10_000_000,
        metric.mad_frames * 10_000_000,
    )
    for _ in range(100):
        metric.update(preds, target)
    assert metric.mad_frames == 10_000_100
    np.testing.assert_allclose(
        metric.compute().item(), functional.mad(preds, target).item(), rtol=1e-9
    )


def test_reset():
    metric = Grad()
    metric.update(*clips()[0])
    metric.reset()
    metric.update(*clips()[1])
    assert_close(metric.compute(), functional.grad(*clips()[1]).double().mean())


def test_refuses():
    with pytest.raises(PTQ4VMError, match="png8"):
        matting_metrics("png")
    with pytest.raises(PTQ4VMError, match="T, 1, H, W"):
        MAD().update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))


def _score_shard(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout
    )
    metrics = matting_metrics()
    for preds, target in clips()[:4] if rank == 0 else clips()[4:]:
        metrics.update(preds, target)
    torch.save(metrics.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes import torch
def test_two_processes_with_uneven_shards_equal_one(tmp_path):
    mp.spawn(_score_shard, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    metrics = matting_metrics()
    for preds, target in clips():
        metrics.update(preds, target)
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), metrics.compute())
