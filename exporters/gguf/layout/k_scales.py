"""The 12 bytes that hold eight 6-bit scales s and eight 6-bit minima m in Q4_K and Q5_K.

    byte j        s[j] | (s[j+4] >> 4) << 6          j = 0..3
    byte 4+j      m[j] | (m[j+4] >> 4) << 6
    byte 8+j      s[j+4] & 15 | (m[j+4] & 15) << 4

Source: ggml/src/ggml-quants.c `get_scale_min_k4`.
"""

import numpy as np
from numpy.typing import NDArray

_LOW4, _LOW6 = np.uint8(15), np.uint8(63)


def pack_scales(scales: NDArray[np.int8], mins: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Scales and minima int8 (out, blocks * 8), 0..63, as bytes (out, blocks, 12)."""
    rows = len(scales)
    s, m = (part.view(np.uint8).reshape(rows, -1, 2, 4) for part in (scales, mins))
    first = [part[:, :, 0] | part[:, :, 1] >> np.uint8(4) << np.uint8(6) for part in (s, m)]
    last = s[:, :, 1] & _LOW4 | (m[:, :, 1] & _LOW4) << np.uint8(4)
    return np.concatenate([*first, last], axis=2)


def unpack_scales(octets: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Undo `pack_scales`."""
    s, m, last = octets[:, :, :4], octets[:, :, 4:8], octets[:, :, 8:]
    found = [
        np.concatenate([first & _LOW6, low | first >> np.uint8(6) << np.uint8(4)], axis=2)
        for first, low in ((s, last & _LOW4), (m, last >> np.uint8(4)))
    ]
    scales, mins = (part.reshape(len(octets), -1).view(np.int8) for part in found)
    return scales, mins
