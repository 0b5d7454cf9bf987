"""Reference implementation of the five matting metrics with numpy and scipy in float64.

Computes one frame at a time from the definitions. Shares no code and no library call with
ptq4vm.metrics: 2-D instead of separable convolution, scipy's instead of OpenCV's component
labelling, and a connectivity map built from the highest threshold down.
"""

from itertools import pairwise

import numpy as np
from scipy import ndimage


def mad(preds, target):
    """Compute the MAD (x10^3) of each frame, (T, H, W) -> (T,)."""
    return np.array([1e3 * np.abs(p - t).sum() / p.size for p, t in _frames(preds, target)])


def mse(preds, target):
    return np.array([1e3 * ((p - t) ** 2).sum() / p.size for p, t in _frames(preds, target)])


def dtssd(preds, target):
    frames = list(_frames(preds, target))
    values = [0.0]
    for (p0, t0), (p1, t1) in pairwise(frames):
        values.append(1e2 * np.sqrt((((p1 - p0) - (t1 - t0)) ** 2).mean()))
    return np.array(values)


def grad(preds, target, normalize=True):
    values = []
    for p, t in _frames(preds, target):
        if normalize:
            p, t = _min_max(p), _min_max(t)
        values.append(((_magnitude(p) - _magnitude(t)) ** 2).sum() / 1000)
    return np.array(values)


def conn(preds, target):
    return np.array([_conn_frame(p, t) for p, t in _frames(preds, target)])


def _frames(preds, target):
    for p, t in zip(preds, target, strict=True):
        yield np.asarray(p, np.float64), np.asarray(t, np.float64)


def _min_max(x):
    return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)


def _magnitude(x, sigma=1.4, epsilon=0.01):
    radius = int(np.ceil(sigma * np.sqrt(-2 * np.log(np.sqrt(2 * np.pi) * sigma * epsilon))))
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    gaussian = np.exp(-(u**2 + v**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    kernel = -u / sigma**2 * gaussian
    kernel /= np.linalg.norm(kernel)
    return np.hypot(
        ndimage.convolve(x, kernel, mode="nearest"),  # scipy's "nearest" repeats the edge pixel
        ndimage.convolve(x, kernel.T, mode="nearest"),
    )


def _conn_frame(p, t):
    omegas = [_largest_component((p >= i / 10) & (t >= i / 10)) for i in range(1, 11)]
    round_down = np.ones_like(p)
    for i in reversed(range(10)):  # descending, so that the lowest failed threshold is written last
        round_down[~omegas[i]] = i / 10
    phi_p, phi_t = (1 - (x - round_down) * ((x - round_down) >= 0.15) for x in (p, t))
    return np.abs(phi_p - phi_t).sum() / 1000


def _largest_component(mask):
    four_connected = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    labels, count = ndimage.label(mask, structure=four_connected)
    if count == 0:
        return np.zeros_like(mask)
    sizes = ndimage.sum_labels(mask, labels, index=np.arange(1, count + 1))
    return labels == 1 + np.argmax(sizes)
