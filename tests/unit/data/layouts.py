"""Tiny data sets in the supported layouts, and stand-ins for the teacher and optical flow."""

import cv2
import numpy as np
import torch

from ptq4vm.types import FlowEstimator, MattingOutput, Teacher

HEIGHT, WIDTH = 32, 48


def picture(seed, height=HEIGHT, width=WIDTH):
    """Create a smooth RGB picture, (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def alpha(frame, height=HEIGHT, width=WIDTH):
    """Create a soft disc that moves with the frame number, (height, width) uint8."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x - width / 2 - frame, y - height * 0.6)
    return np.clip(255 * (height / 3 - distance) / 4 + 127, 0, 255).astype(np.uint8)


def write(path, image):
    """Write an RGB or grey picture losslessly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def write_foregrounds(root, clips=("0000", "0001"), frames=6, height=HEIGHT, width=WIDTH):
    for number, clip in enumerate(clips):
        for t in range(frames):
            write(
                root / "train" / "fgr" / clip / f"{t:05d}.png",
                picture(100 * number + t, height, width),
            )
            write(root / "train" / "pha" / clip / f"{t:05d}.png", alpha(t, height, width))
    return root


def write_backgrounds(root, stills=("room", "hall"), moving=3, height=40, width=40):
    for number, clip in enumerate(stills):
        write(root / "train" / clip / "0.png", picture(900 + number, height, width))
    for t in range(moving):
        write(root / "train" / "street" / f"{t}.png", picture(800 + t, height, width))
    return root


def write_evaluation(
    root, names=("set_a/one", "set_a/two", "set_b/one"), frames=5, parts=("com", "pha", "fgr")
):
    for number, name in enumerate(names):
        for t in range(frames):
            for part in parts:
                image = (
                    alpha(t)
                    if part == "pha"
                    else picture(50 * number + t + (7 if part == "fgr" else 0))
                )
                write(root / name / part / f"{t:04d}.png", image)
    return root


def write_video(path, frames=8, height=HEIGHT, width=WIDTH):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (width, height))
    assert writer.isOpened()
    for t in range(frames):
        writer.write(np.full((height, width, 3), (20 * t + 10) % 256, dtype=np.uint8))
    writer.release()
    return path


def make_teacher(key="teacher", states=2):
    """Create a teacher whose alpha is a fixed ellipse.

    Returns:
        The teacher, and the list of input shapes of its calls.
    """
    calls = []

    def forward(src, state=None):
        calls.append(tuple(src.shape))
        height, width = src.shape[-2:]
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        soft = ((1 - (x / 0.5) ** 2 - ((y - 0.4) / 1.1) ** 2) * 10).clamp(0, 1)
        state = tuple(
            src.mean(2, keepdim=True)[..., :: 2**i, :: 2**i] for i in range(1, states + 1)
        )
        return MattingOutput(1 - src, soft.expand(*src.shape[:2], 1, height, width), state)

    return Teacher(forward, key), calls


def make_flow(key="flow"):
    """Create a flow estimator with a constant flow of half a pixel, visible everywhere.

    Returns:
        The estimator, and the list of input shapes of its calls.
    """
    calls = []

    def forward(src):
        calls.append(tuple(src.shape))
        count, _, height, width = src.shape
        return src.new_full((count - 1, 2, height, width), 0.5), src.new_ones(
            count - 1, 1, height, width
        )

    return FlowEstimator(forward, key), calls


def to_unit(image):
    """Convert uint8 (H, W[, 3]) to float (C, H, W) in [0, 1]."""
    return torch.from_numpy(image.reshape(*image.shape[:2], -1)).permute(2, 0, 1).float() / 255


def shot(seed, frames, height=HEIGHT, width=WIDTH):
    """Repeat a picture with sensor noise, (frames, height, width, 3) uint8."""
    noise = np.random.default_rng(seed).integers(0, 4, (frames, height, width, 3), dtype=np.uint8)
    return picture(seed, height, width) // 4 * 3 + noise


def write_shots(path, *lengths):
    """Write shots of the given lengths as a video, or without a suffix as a folder of frames."""
    frames = np.concatenate([shot(7 * number, length) for number, length in enumerate(lengths)])
    if not path.suffix:
        for t, frame in enumerate(frames):
            write(path / f"{t:04d}.png", frame)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return path
