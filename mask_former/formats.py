"""File formats that several parts of the package read and write. Each is read and written here only."""

import numpy as np
from numpy.typing import NDArray

# A panoptic PNG holds a segment id in three bytes.
MAX_SEGMENT_ID = 256**3 - 1


def rgb_to_id(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the segment ids (...) of colours (..., 3) in a panoptic PNG: R + 256 G + 65536 B."""
    # Three bytes and a zero are one little-endian number. Copying channel by channel is the fastest way.
    padded = np.zeros((*rgb.shape[:-1], 4), np.uint8)
    for channel in range(3):
        padded[..., channel] = rgb[..., channel]
    return padded.view("<i4")[..., 0]


def id_to_rgb(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return the colours (..., 3) of segment ids (...) in a panoptic PNG."""
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_SEGMENT_ID:
        raise ValueError(
            f"Segment ids must be in 0..{MAX_SEGMENT_ID} to fit three bytes, found {ids.min()}..{ids.max()}."
        )
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
