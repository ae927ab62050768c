"""The letters that shapes are written in, and what passes between the rooms of the model.

B images in a batch      H, W  padded input, in pixels
Q queries                h, w  mask grid, a quarter of H, W
K classes (index K is "no object")
M segments in one image  L supervised decoder layers
C channels               S     positions of a map, flattened
"""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What one decoder layer says. A model returns a list of them, one a supervised layer, the answer last.

    class_logits: (B, Q, K+1) float.
    mask_logits: (B, Q, h, w) float, before the sigmoid.
    """

    class_logits: Tensor
    mask_logits: Tensor


class Target(NamedTuple):
    """The segments of one image, padded like the batch.

    labels: (M,) int64 in 0..K-1; M may be 0.
    masks: (M, H, W) bool.
    valid: (H, W) bool, False where a pixel is void or padding and shall count in no mask loss;
        None where every pixel counts.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor | None = None
