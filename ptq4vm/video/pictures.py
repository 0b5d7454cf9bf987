"""Conversion of decoded video frames to upright 8-bit RGB."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq4vm.video.frames import Frame

BT709, UNSPECIFIED = 1, 2
"""Matrix coefficients of ISO/IEC 23091-2, numbered as in FFmpeg."""
PQ, HLG = 16, 18
"""Transfer characteristics of ISO/IEC 23091-2: SMPTE ST 2084 and ARIB STD-B67."""
_HD_WIDTH, _SD_HEIGHT = 1280, 576
_WHITE_NITS, _HLG_PEAK_NITS, _HLG_GAMMA = 203.0, 1000.0, 1.2
_KNEE = 0.7
_DISPLAY_GAMMA = 2.4
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_rgb(frame: Any, transfer: int = UNSPECIFIED) -> Frame:
    """Convert an ``av.VideoFrame`` to (H, W, 3) uint8 RGB, upright.

    Frames without a matrix are BT.709 from 1280 columns or above 576 lines, else BT.601, the rule
    of mpv; FFmpeg assumes BT.601 throughout. HDR is tone-mapped, see :func:`tone_map`.

    Args:
        frame: Decoded frame.
        transfer: Transfer characteristics of the stream; :data:`PQ` and :data:`HLG` are HDR.
    """
    hd = frame.width >= _HD_WIDTH or frame.height > _SD_HEIGHT
    guess = hd and frame.colorspace == UNSPECIFIED and not frame.format.is_rgb
    colorspace = BT709 if guess else None
    if transfer in (PQ, HLG):
        deep = frame.to_ndarray(format="rgb48le", src_colorspace=colorspace)
        image = tone_map(deep, transfer)
    else:
        image = frame.to_ndarray(format="rgb24", src_colorspace=colorspace)
    return turn_upright(image, display_matrix(frame))


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Read the linear part (a, b, c, d) of a frame's display matrix; None if it has none.

    A pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift (ISO/IEC 14496-12).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = (int(values[i]) for i in (0, 1, 3, 4))
    return a, b, c, d


def turn_upright(image: Frame, matrix: tuple[int, int, int, int] | None) -> Frame:
    """Apply the quarter turns and reflections of a display matrix to (H, W, C).

    Other angles are rounded to the nearest quarter turn.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(b) > abs(a):
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    image = image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    return np.ascontiguousarray(image)


def swaps_sides(matrix: tuple[int, int, int, int] | None) -> bool:
    """Return whether a display matrix exchanges rows and columns."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def tone_map(image: NDArray[np.uint16], transfer: int) -> Frame:
    """Map BT.2020 HDR, (H, W, 3) uint16, to BT.709 SDR, uint8.

    Light is in units of HDR reference white, 203 cd/m² (ITU-R BT.2408); HLG is shown at 1000 cd/m²
    with system gamma 1.2 (ITU-R BT.2100). Light up to 0.7 of reference white is unchanged, so that
    the SDR range looks as in SDR; above, it approaches 1 exponentially. The result has the gamma of
    BT.1886.

    Args:
        image: RGB codes over the full 16-bit range.
        transfer: :data:`PQ` or :data:`HLG`.
    """
    light = _linear(transfer)[image]
    if transfer == HLG:
        luma = np.maximum(light @ _BT2020_LUMA, 1e-6)[..., None]
        light = light * (
            luma ** np.float32(_HLG_GAMMA - 1) * np.float32(_HLG_PEAK_NITS / _WHITE_NITS)
        )
    light = np.clip(light @ _BT2020_TO_BT709.T, 0, None)
    rolled = 1 - (1 - _KNEE) * np.exp((_KNEE - light) / (1 - _KNEE))
    shown = np.where(light > _KNEE, rolled, light)
    return np.rint(255 * shown ** np.float32(1 / _DISPLAY_GAMMA)).astype(np.uint8)


@lru_cache(maxsize=2)
def _linear(transfer: int) -> NDArray[np.float32]:
    """Tabulate 16-bit codes to light: PQ in units of reference white, HLG scene light in [0, 1]."""
    code = np.arange(65536) / 65535
    if transfer == PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = 10000 / _WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:  # ARIB STD-B67
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return light.astype(np.float32)
